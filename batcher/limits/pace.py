"""The shape of the flow: an even pace with a small burst."""


class Pace:
    """GCRA, the generic cell rate algorithm (ITU-T I.371), for units of any size.

    It keeps one number, the theoretical arrival time: when everything taken so far would have flowed out
    at the even rate. `burst_s` is how far ahead of that time the flow may run, in seconds of the rate. A
    single cost larger than the burst goes as soon as nothing is owed, and leaves a debt of its own size.

    >>> pace = Pace(per_minute=60, burst_s=1)
    >>> pace.earliest(1, now=100.0) <= 100.0
    True
    >>> pace.take(1, now=100.0)
    >>> pace.earliest(1, now=100.0)
    101.0
    """

    __slots__ = ("_burst_s", "_due", "_interval_s")

    def __init__(self, per_minute: int, burst_s: float) -> None:
        self._interval_s = 60.0 / per_minute
        self._burst_s = burst_s
        self._due = float("-inf")

    def earliest(self, cost: int, now: float) -> float:
        """Return when `cost` may go: `now` or a time before it if at once."""
        if self._due <= now:
            return now
        return self._due - max(self._burst_s - cost * self._interval_s, 0.0)

    def take(self, cost: int, now: float) -> None:
        """Let `cost` go, whatever `earliest` says."""
        self._due = max(self._due, now) + cost * self._interval_s

    def give_back(self, cost: int) -> None:
        """Undo a `take` that was not used."""
        self._due -= cost * self._interval_s

    def rest(self, now: float) -> None:
        """Forget the credit of an idle time: after a pause the flow starts at its rate, without a burst."""
        self._due = max(self._due, now + self._burst_s)
