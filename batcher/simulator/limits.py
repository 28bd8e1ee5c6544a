"""Requests and tokens per minute, as a server counts them: pure, `now` is an argument.

Two kinds of budget behind the same verbs (`pass_to`, `wait_s`, `take`, `give_back`):
- `Bucket` is what OpenAI's headers look like (reset = (limit - remaining) / rate): it holds one minute's
  worth, starts full and refills continuously. Over its first minute it can grant twice its limit.
- `SlidingWindow` grants at most its limit in every 60 seconds, exactly.
"""

import functools
import math
from bisect import bisect_left
from collections import deque
from typing import Literal, NamedTuple, Protocol

PERIOD_S = 60.0
# Sums of floats end just beside the exact value: nobody is refused over a millionth of a token.
SLACK = 1e-6


class Budget(Protocol):
    """So many per minute of one thing. The other verbs speak of the moment last named by `pass_to`."""

    limit: int
    #: What can be taken: never above the limit.
    remaining: float

    def pass_to(self, now: float) -> None:
        """Let time pass until `now`: what has come free is there again."""
        ...

    def wait_s(self, amount: int) -> float:
        """Return 0 if so much can be taken, else in how many seconds; infinity if it never can."""
        ...

    def take(self, amount: int) -> None:
        """Take so much; the caller has seen that `wait_s` is 0."""
        ...

    def give_back(self, amount: int, at: float) -> None:
        """Give back so much of what was taken at `at`."""
        ...

    def reset_s(self) -> float:
        """Return the seconds until it is whole again if nothing more is taken."""
        ...


class Bucket:
    """Holds `limit`, starts full, and refills by `limit` per minute."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.remaining = float(limit)
        self._per_s = limit / PERIOD_S
        self._now = 0.0

    def pass_to(self, now: float) -> None:
        """See `Budget.pass_to`."""
        if now > self._now:
            remaining = self.remaining + (now - self._now) * self._per_s
            self.remaining = min(self.limit, remaining)
            self._now = now

    def wait_s(self, amount: int) -> float:
        """See `Budget.wait_s`."""
        if amount > self.limit:
            return math.inf
        missing = amount - self.remaining
        return missing / self._per_s if missing > SLACK else 0.0

    def take(self, amount: int) -> None:
        """See `Budget.take`."""
        self.remaining -= amount

    def give_back(self, amount: int, at: float) -> None:  # noqa: ARG002  it keeps no time
        """See `Budget.give_back`."""
        self.remaining = min(self.limit, self.remaining + amount)

    def reset_s(self) -> float:
        """See `Budget.reset_s`."""
        return (self.limit - self.remaining) / self._per_s


class SlidingWindow:
    """Remembers what was taken when: what was taken at t is free again at exactly t + 60 s."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.remaining: float = limit
        self._now = 0.0
        self._log: deque[tuple[float, int]] = deque()

    def pass_to(self, now: float) -> None:
        """See `Budget.pass_to`."""
        self._now = now
        log = self._log
        while log and log[0][0] + PERIOD_S <= now:
            self.remaining += log.popleft()[1]

    def wait_s(self, amount: int) -> float:
        """See `Budget.wait_s`."""
        if amount > self.limit:
            return math.inf
        missing = amount - self.remaining
        if missing <= 0:
            return 0.0
        for at, taken in self._log:
            missing -= taken
            if missing <= 0:
                return at + PERIOD_S - self._now
        raise AssertionError("the log holds all that was taken")

    def take(self, amount: int) -> None:
        """See `Budget.take`."""
        log = self._log
        if log and log[-1][0] == self._now:
            log[-1] = (self._now, log[-1][1] + amount)
        else:
            log.append((self._now, amount))
        self.remaining -= amount

    def give_back(self, amount: int, at: float) -> None:
        """See `Budget.give_back`."""
        place = bisect_left(self._log, (at, 0))
        if place < len(self._log) and self._log[place][0] == at:
            self._log[place] = (at, self._log[place][1] - amount)
            self.remaining += amount

    def reset_s(self) -> float:
        """See `Budget.reset_s`."""
        return self._log[-1][0] + PERIOD_S - self._now if self._log else 0.0


class Over(NamedTuple):
    """A request that the limits refuse."""

    kind: Literal["requests", "tokens"]
    limit: int
    requested: int
    #: Seconds until it would be taken; infinity if it is larger than the limit.
    wait_s: float


class ModelLimits:
    """The two budgets of one model: a request takes from both or from neither."""

    def __init__(self, rpm: int | None, tpm: int | None, window: Literal["bucket", "sliding"]) -> None:
        kind: type[Bucket] | type[SlidingWindow] = Bucket if window == "bucket" else SlidingWindow
        self._requests: Budget | None = kind(rpm) if rpm else None
        self._tokens: Budget | None = kind(tpm) if tpm else None
        self._budgets = [budget for budget in (self._requests, self._tokens) if budget]
        self._pattern = (_lines(rpm, b"requests") if rpm else b"") + (_lines(tpm, b"tokens") if tpm else b"")
        self._now = 0.0

    def take(self, tokens: int, now: float) -> Over | None:
        """Take one request of so many tokens, or say which budget stands against it the longest."""
        self._pass_to(now)
        by_requests, by_tokens = self._requests, self._tokens
        requests_wait_s = by_requests.wait_s(1) if by_requests else 0.0
        tokens_wait_s = by_tokens.wait_s(tokens) if by_tokens else 0.0
        if by_tokens and tokens_wait_s and tokens_wait_s >= requests_wait_s:
            return Over("tokens", by_tokens.limit, tokens, tokens_wait_s)
        if by_requests and requests_wait_s:
            return Over("requests", by_requests.limit, 1, requests_wait_s)
        if by_requests:
            by_requests.take(1)
        if by_tokens:
            by_tokens.take(tokens)
        return None

    def give_back(self, tokens: int, at: float) -> None:
        """Give back so many of the tokens that a request took at `at`."""
        if self._tokens:
            self._tokens.give_back(tokens, at)

    def headers(self, now: float) -> bytes:
        """Return the `x-ratelimit-*` header lines, of the budgets that there are."""
        self._pass_to(now)
        values: list[int | bytes] = []
        for budget in self._budgets:
            values += int(budget.remaining + SLACK), duration(budget.reset_s())
        return self._pattern % tuple(values)

    def _pass_to(self, now: float) -> None:
        if now != self._now:
            self._now = now
            for budget in self._budgets:
                budget.pass_to(now)


def _lines(limit: int, kind: bytes) -> bytes:
    """Return a pattern for what remains, and the time until it is whole again."""
    return b"x-ratelimit-limit-%b: %d\r\nx-ratelimit-remaining-%b: %%d\r\nx-ratelimit-reset-%b: %%b\r\n" % (
        kind,
        limit,
        kind,
        kind,
    )


def whole_ms(seconds: float) -> int:
    """Return the milliseconds, rounded up: who waits so long does not come too early."""
    return math.ceil(seconds * 1000 - 1e-6)


def duration(seconds: float) -> bytes:
    """Write a duration as OpenAI's headers do: `0s`, `12ms`, `1.5s`, `1m30s`, `6m0s`."""
    return _duration(whole_ms(seconds))


@functools.lru_cache(maxsize=100_000)
def _duration(ms: int) -> bytes:
    if 0 < ms < 1000:
        return b"%dms" % ms
    if ms < 60_000:
        return b"%gs" % (ms / 1000)
    minutes, rest_ms = divmod(ms, 60_000)
    return b"%dm%gs" % (minutes, rest_ms / 1000)
