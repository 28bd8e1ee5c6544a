"""How a job stands: rows, tokens and cost, as `--json` prints them and `batcher.run` returns them."""

from collections.abc import Iterable
from typing import Any

import msgspec

from batcher.money.cost import usd_string
from batcher.stop import INTERRUPTED
from batcher.store.reader import Contents
from batcher.tally import Tally


class ModelSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What one model was asked, over every run of the job."""

    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    #: Exact decimals of a dollar; None where a price is unknown.
    cost_usd: str | None
    in_doubt: int
    #: None where what is in doubt has no bound.
    in_doubt_cost_usd_max: str | None


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """How a job stands. Counts, tokens and cost are of the whole job in its store.

    `already_done`, `requests`, `retries` and `elapsed_s` are those of this run.
    """

    rows: int
    succeeded: int
    failed: int
    in_doubt: int
    pending: int
    already_done: int
    requests: int
    retries: int
    prompt_tokens: int
    completion_tokens: int
    #: Exact decimals of a dollar; None where a price is unknown.
    cost_usd: str | None
    #: The most that attempts whose answer was lost can add; None where one of them has no bound.
    in_doubt_cost_usd_max: str | None
    elapsed_s: float
    #: Why the run ended before its rows did; None if it did not.
    stopped: str | None
    by_model: dict[str, ModelSummary]
    #: Rows that failed or are in doubt, by the code in the errors file, the most frequent first.
    by_error: dict[str, int]
    #: Of the rows that succeeded: answers that ended at their output limit, and by the content filter.
    truncated: int
    filtered: int
    #: Attempts in doubt for longer than --key-ttl: their key no longer keeps them from being billed again.
    past_key_ttl: int

    def to_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        fields: dict[str, Any] = msgspec.to_builtins(self)
        return fields

    @property
    def exit_code(self) -> int:
        """Return the command's exit code: 0, 1, 3 or 130."""
        if self.stopped is not None:
            return 130 if self.stopped.startswith(INTERRUPTED.reason) else 3
        return 1 if self.failed or self.in_doubt or self.pending else 0


def not_begun(reason: str) -> Summary:
    """Make the summary of a run that could not begin: nothing was read, sent or paid for."""
    return Summary(
        **dict.fromkeys(("rows", "succeeded", "failed", "in_doubt", "pending"), 0),
        **dict.fromkeys(("already_done", "requests", "retries", "prompt_tokens", "completion_tokens"), 0),
        **dict.fromkeys(("truncated", "filtered", "past_key_ttl"), 0),
        cost_usd="0.00",
        in_doubt_cost_usd_max="0.00",
        elapsed_s=0.0,
        stopped=reason,
        by_model={},
        by_error={},
    )


def summarise(
    contents: Contents, past_key_ttl: int, rows: int, tally: Tally, elapsed_s: float, stopped: str | None
) -> Summary:
    """Make the summary of a job of `rows` rows from what its store holds and what this run did."""
    bills = contents.by_model
    models = {
        model: ModelSummary(
            requests=bill.requests,
            prompt_tokens=bill.prompt_tokens,
            cached_tokens=bill.cached_tokens,
            completion_tokens=bill.completion_tokens,
            cost_usd=_usd(bill.cost_pico_usd),
            in_doubt=bill.in_doubt,
            in_doubt_cost_usd_max=_usd(bill.in_doubt_pico_usd_max),
        )
        for model, bill in bills.items()
    }
    return Summary(
        rows=rows,
        succeeded=contents.done,
        failed=contents.refused + contents.exhausted,
        in_doubt=contents.in_doubt,
        pending=max(rows - contents.ended, 0),
        already_done=tally.already_done,
        requests=tally.requests,
        retries=tally.retries,
        prompt_tokens=sum(bill.prompt_tokens for bill in bills.values()),
        completion_tokens=sum(bill.completion_tokens for bill in bills.values()),
        cost_usd=_usd(_sum(bill.cost_pico_usd for bill in bills.values())),
        in_doubt_cost_usd_max=_usd(_sum(bill.in_doubt_pico_usd_max for bill in bills.values())),
        elapsed_s=round(elapsed_s, 3),
        stopped=stopped,
        by_model=models,
        by_error=contents.by_error,
        truncated=contents.truncated,
        filtered=contents.filtered,
        past_key_ttl=past_key_ttl,
    )


def _sum(amounts: Iterable[int | None]) -> int | None:
    total = 0
    for amount in amounts:
        if amount is None:
            return None
        total += amount
    return total


def _usd(pico_usd: int | None) -> str | None:
    return None if pico_usd is None else usd_string(pico_usd)
