"""What a store holds, read beside a running job or after it: never writes, never holds a checkpoint back."""

import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

import msgspec

from batcher.errors import StoreError
from batcher.request import State
from batcher.store.catalogue import query
from batcher.store.file import open_reader

#: So many rows are fetched at a time.
_FETCH = 500


class ModelBill(msgspec.Struct, frozen=True, kw_only=True):
    """What one model was asked and what it cost, over every run of the job."""

    #: Attempts made.
    requests: int
    #: Attempts that were answered.
    answered: int
    prompt_tokens: int
    #: The part of the prompt tokens that was read from the server's cache.
    cached_tokens: int
    completion_tokens: int
    #: What is certain, in 10^-12 dollar; None where the price of an answer is unknown.
    cost_pico_usd: int | None
    #: Attempts that may have been billed.
    in_doubt: int
    #: The most that those can have cost; None where one of them has no bound.
    in_doubt_pico_usd_max: int | None


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """How far a job is."""

    namespace: str
    base_url: str
    #: Rows in the file when it was last counted; None if it never was.
    line_count: int | None
    #: Rows of the file by how they ended; a row in none of them is pending.
    done: int
    refused: int
    exhausted: int
    in_doubt: int
    #: Of the done: answers that ended at their output limit, and by the server's content filter.
    truncated: int
    filtered: int
    #: Of the others: how many by the error's code, the most frequent first.
    by_error: dict[str, int]
    by_model: dict[str, ModelBill]

    @property
    def ended(self) -> int:
        """Rows that are not pending."""
        return self.done + self.refused + self.exhausted + self.in_doubt


def read(path: Path) -> Contents:
    """Read what the store says of the job.

    Raises:
        StoreError: there is no store, or it can't be read.
    """
    with _reading(path) as db:
        # One transaction: a job that runs meanwhile does not show through half a settlement.
        db.execute("BEGIN")
        namespace, base_url, _, line_count = db.execute(query("read_job")).fetchone()
        ends = db.execute(query("count_rows")).fetchall()
        bills = {row[0]: _bill(row[1:]) for row in db.execute(query("bill"))}
    return Contents(
        namespace=namespace,
        base_url=base_url,
        line_count=line_count,
        by_model=bills,
        truncated=sum(count for state, why, count in ends if (state, why) == ("done", "length")),
        filtered=sum(count for state, why, count in ends if (state, why) == ("done", "content_filter")),
        by_error=_by_error(ends),
        **{state: sum(each[2] for each in ends if each[0] == state) for state in get_args(State)},
    )


def _by_error(ends: list[tuple[State, str, int]]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for state, code, count in ends:
        if state != "done":
            counts[code] += count
    return dict(counts.most_common())


def _bill(row: tuple[int | None, ...]) -> ModelBill:
    requests, answered, prompt, cached, completion, cost, unpriced, doubts, most, unbounded = row
    return ModelBill(
        requests=requests or 0,
        answered=answered or 0,
        prompt_tokens=prompt or 0,
        cached_tokens=cached or 0,
        completion_tokens=completion or 0,
        cost_pico_usd=None if unpriced else cost or 0,
        in_doubt=doubts or 0,
        in_doubt_pico_usd_max=None if unbounded else most,
    )


def rows(path: Path, name: str) -> Iterator[tuple[Any, ...]]:
    """Read the rows of one query of the catalogue (`results`, `errors` or `attempts_log`), a few at a time.

    Raises:
        StoreError: there is no store, or it can't be read.
    """
    with _reading(path) as db:
        cursor = db.execute(query(name))
        while some := cursor.fetchmany(_FETCH):
            yield from some


class _reading(closing[sqlite3.Connection]):  # noqa: N801  used as a function
    """A connection that turns what SQLite says into a `StoreError`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        super().__init__(open_reader(path))

    def __exit__(self, *exc_info: object) -> None:
        super().__exit__(*exc_info)
        if isinstance(exc_info[1], sqlite3.Error | TypeError):
            message = f"{self._path} can't be read: {exc_info[1]}"
            raise StoreError(message) from exc_info[1]
