"""What is written down of an attempt and its rows, made of the reply and its verdict. Pure."""

from collections.abc import Sequence
from typing import Final, assert_never

from batcher.request import (
    REJECTED,
    Attempt,
    Claimed,
    Landed,
    Outcome,
    Rejected,
    Reply,
    Request,
    Settlement,
    State,
)
from batcher.source import batch_line
from batcher.verdict import Again, Done, Fail, Halt, Hold, Verdict


def settlement(claimed: Claimed, landed: Landed, verdict: Verdict, cost_pico_usd: int | None) -> Settlement:
    """Make the settlement of one attempt; `cost_pico_usd` is what its answer costs, if it is one."""
    match verdict:
        case Done():
            return _answered(claimed, landed, verdict, cost_pico_usd)
        case Fail():
            return Settlement(_unanswered(claimed, landed, verdict), _failed(claimed, verdict))
        case Again() | Hold() | Halt():
            return Settlement(_unanswered(claimed, landed, verdict))
    assert_never(verdict)


def rejections(items: Sequence[Rejected]) -> list[Outcome]:
    """Make the ends of lines that can't be requests."""
    return [
        Outcome(item.row, "refused", code=REJECTED, message=item.reason, line=item.line) for item in items
    ]


def too_large(request: Request, limit: str) -> list[Outcome]:
    """Make the ends of the rows of a request that is larger than a whole `limit` and never sent."""
    message = (
        f"needs {request.tokens} tokens, and {limit}: raise it, lower the request's output limit, or split it"
    )
    return _unsent(request, "exhausted", "exceeds_limit", message)


def in_doubt(requests: Sequence[Request]) -> list[Outcome]:
    """Make the ends of rows that were sent by a process that died, and are not sent again."""
    message = f"it was sent, and its answer lost: {_DOUBT}"
    return [end for each in requests for end in _unsent(each, "in_doubt", "in_doubt", message)]


_DOUBT: Final = "it may have been billed; to send it again: --retry-in-doubt"


def answers(settlements: Sequence[Settlement], landed: Sequence[tuple[Claimed, Landed]]) -> int:
    """Count what was paid for, of settlements that could not be written and of what is not judged yet."""
    judged = sum(each.attempt.billed == "yes" for each in settlements)
    return judged + sum(isinstance(what, Reply) and 200 <= what.status < 300 for _, what in landed)


def _unsent(request: Request, state: State, code: str, message: str) -> list[Outcome]:
    return [
        Outcome(row, state, code=code, message=message, line=batch_line(request, row)) for row in request.rows
    ]


def _answered(claimed: Claimed, landed: Landed, done: Done, cost_pico_usd: int | None) -> Settlement:
    usage = done.usage
    attempt = Attempt(
        id=claimed.id,
        billed="yes",
        sent_at=landed.sent_at,
        ended_at=landed.ended_at,
        status=done.status,
        request_id=done.request_id,
        prompt_tokens=0 if usage is None else usage.prompt_tokens,
        cached_tokens=0 if usage is None else usage.cached_tokens,
        completion_tokens=0 if usage is None else usage.completion_tokens,
        cost_pico_usd=cost_pico_usd,
        replayed=done.replayed,
    )
    answers = zip(claimed.request.rows, done.answers, strict=True)
    return Settlement(
        attempt,
        tuple(
            Outcome(row, "done", claimed.id, done.status, done.request_id, body, finish=done.finish)
            for row, body in answers
        ),
    )


def _unanswered(claimed: Claimed, landed: Landed, verdict: Fail | Again | Hold | Halt) -> Attempt:
    return Attempt(
        id=claimed.id,
        billed=verdict.billed,
        sent_at=landed.sent_at,
        ended_at=landed.ended_at,
        status=verdict.status,
        error=verdict.error,
        request_id=verdict.request_id,
        replayed=verdict.replayed if isinstance(verdict, Again | Fail) else False,
    )


def _failed(claimed: Claimed, fail: Fail) -> tuple[Outcome, ...]:
    request = claimed.request
    code, message = fail.error, fail.message
    if fail.state == "in_doubt":
        code, message = "in_doubt", f"{message}; {_DOUBT}"
    return tuple(
        Outcome(
            row,
            fail.state,
            claimed.id,
            fail.status,
            fail.request_id,
            fail.body,
            code,
            message,
            batch_line(request, row),
        )
        for row in request.rows
    )
