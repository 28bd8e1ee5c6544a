"""The dual bucket: requests and tokens, both or neither."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from batcher.limits.pace import Pace
from batcher.limits.window import Window


@dataclass(frozen=True, slots=True)
class Took:
    """The first `count` of the group are admitted: send them, or give them back."""

    count: int
    #: It goes alone, to see whether the pool is open again.
    probe: bool = False


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing is admitted now; ask again at `until`, or, where that is None, when something has landed."""

    until: float | None


@dataclass(frozen=True, slots=True)
class Never:
    """The first of the group is larger than the whole limit."""

    maximum: int


Fit = Took | Wait | Never


class _Limit:
    """One limit: the pace shapes it, the window proves it; the earliest time is the later of both."""

    __slots__ = ("pace", "window")

    def __init__(self, per_minute: int, burst_s: float) -> None:
        # A burst below one request would never let one go early, and needs none: Pace lets any go when
        # nothing is owed.
        self.pace = Pace(per_minute, burst_s)
        self.window = Window(per_minute)

    def earliest(self, cost: int, now: float) -> float:
        return max(self.pace.earliest(cost, now), self.window.earliest(cost, now))

    def take(self, cost: int, now: float) -> None:
        self.pace.take(cost, now)
        self.window.hold(cost)

    def give_back(self, cost: int) -> None:
        self.pace.give_back(cost)
        self.window.give_back(cost)


class Bucket:
    """Requests per minute and tokens per minute; either may be absent.

    A cost is a number of tokens; each also costs one request.

    >>> bucket = Bucket(rpm=60, tpm=None, burst_s=1.0)
    >>> bucket.fit([10, 10], now=0.0)
    Took(count=1, probe=False)
    >>> bucket.fit([10], now=0.0)
    Wait(until=1.0)
    """

    __slots__ = ("_requests", "_tokens")

    def __init__(self, rpm: int | None, tpm: int | None, burst_s: float) -> None:
        self._requests = None if rpm is None else _Limit(rpm, burst_s)
        self._tokens = None if tpm is None else _Limit(tpm, burst_s)

    def fit(self, costs: Iterable[int], now: float) -> Fit:
        """Admit the longest prefix of `costs` (tokens of each request) that may go at `now`.

        It reads no further than the first one that may not.
        """
        requests, tokens = self._requests, self._tokens
        count = 0
        for cost in costs:
            if tokens is not None and cost > tokens.window.limit:
                return Took(count) if count else Never(tokens.window.limit)
            at = now if requests is None else requests.earliest(1, now)
            if tokens is not None:
                at = max(at, tokens.earliest(cost, now))
            if at > now:
                return Took(count) if count else Wait(None if at == math.inf else at)
            if requests is not None:
                requests.take(1, now)
            if tokens is not None:
                tokens.take(cost, now)
            count += 1
        return Took(count)

    def sent(self, costs: Iterable[int], now: float) -> None:
        """Start the minute of what has just been sent."""
        for cost in costs:
            if self._requests is not None:
                self._requests.window.sent(1, now)
            if self._tokens is not None:
                self._tokens.window.sent(cost, now)

    def give_back(self, costs: Iterable[int]) -> None:
        """Return the reservations of what never left."""
        for cost in costs:
            if self._requests is not None:
                self._requests.give_back(1)
            if self._tokens is not None:
                self._tokens.give_back(cost)

    def seed(self, sent: Iterable[tuple[float, int]]) -> None:
        """Count what an earlier process sent: (time, tokens) of each request, oldest first."""
        for at, cost in sent:
            if self._requests is not None:
                self._requests.window.seed(1, at)
            if self._tokens is not None:
                self._tokens.window.seed(cost, at)

    def rest(self, now: float) -> None:
        """Start without a burst: after a pause."""
        for limit in (self._requests, self._tokens):
            if limit is not None:
                limit.pace.rest(now)

    def binding(self, cost: int, now: float) -> str | None:
        """Name the limit that a request of `cost` tokens waits for: `requests`, `tokens` or None."""
        requests = now if self._requests is None else self._requests.earliest(1, now)
        tokens = now if self._tokens is None else self._tokens.earliest(cost, now)
        if max(requests, tokens) <= now:
            return None
        return "requests" if requests >= tokens else "tokens"
