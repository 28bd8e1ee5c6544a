"""The shape of the flow: an even pace with a small burst."""

import math
from typing import Final

#: Times are compared to so much, in seconds: sums of floats end just beside the exact value.
SLACK_S: Final = 1e-7


class Pace:
    """GCRA, the generic cell rate algorithm (ITU-T I.371), for units of any size.

    It keeps one number, the theoretical arrival time: when everything taken so far would have flowed out
    at the even rate. `burst_s` is how far ahead of that time the flow may run, in seconds of the rate. A
    single cost larger than the burst goes as soon as nothing is owed, and leaves a debt of its own size.
    A rate of infinity is no limit.

    >>> pace = Pace(per_s=1.0, burst_s=1)
    >>> pace.earliest(1, now=100.0) <= 100.0
    True
    >>> pace.take(1, now=100.0)
    >>> pace.earliest(1, now=100.0)
    101.0
    """

    __slots__ = ("burst_s", "due", "interval_s")

    def __init__(self, per_s: float, burst_s: float) -> None:
        self.burst_s = burst_s
        #: The theoretical arrival time.
        self.due = -math.inf
        self.set_rate(per_s)

    def set_rate(self, per_s: float) -> None:
        """Change the rate, in units per second, from now on."""
        #: Seconds a unit.
        self.interval_s = 1.0 / per_s

    def earliest(self, cost: int, now: float) -> float:
        """Return when `cost` may go: `now` if at once."""
        if self.due <= now:
            return now
        at = self.due - max(self.burst_s - cost * self.interval_s, 0.0)
        return at if at > now + SLACK_S else now

    def take(self, cost: int, now: float) -> None:
        """Let `cost` go, whatever `earliest` says."""
        self.due = max(self.due, now) + cost * self.interval_s

    def give_back(self, cost: int) -> None:
        """Undo a `take` that was not used."""
        self.due -= cost * self.interval_s

    def rest(self, now: float) -> None:
        """Forget the credit of an idle time: after a pause the flow starts at its rate, without a burst."""
        if self.interval_s > 0.0:
            self.due = max(self.due, now + self.burst_s)
