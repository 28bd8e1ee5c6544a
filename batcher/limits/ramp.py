"""How fast a pool may open up: at the start, and again after the server has said no."""

from typing import Final

#: In flight before anything has succeeded.
START: Final = 32


class Ramp:
    """How many requests of a pool may be in flight: slow start and congestion avoidance (RFC 5681).

    Each success opens it by one until it is at half of where it was when the server last held the pool, and
    from there by one for every window's worth of successes. It does not grow while fewer are in flight than
    half of what it allows: then it is not what limits (RFC 7661). A hold closes it to a single request. It
    keeps a pool without known limits from running into the same refusal over and over; where limits are
    known and right there are no holds, and it is soon out of the way.

    >>> ramp = Ramp()
    >>> ramp.take(32)
    >>> ramp.landed(succeeded=True)
    >>> ramp.free
    2
    """

    __slots__ = ("_in_flight", "_threshold", "_window")

    def __init__(self) -> None:
        self._in_flight = 0
        self._window = float(START)
        self._threshold = float("inf")

    @property
    def free(self) -> int:
        """How many more may go now."""
        return max(int(self._window) - self._in_flight, 0)

    def take(self, count: int) -> None:
        """Count requests that are on their way."""
        self._in_flight += count

    def landed(self, *, succeeded: bool) -> None:
        """Count one that is no longer on its way."""
        if succeeded and self._in_flight >= self._window / 2:
            self._window += 1 if self._window < self._threshold else 1 / self._window
        self._in_flight -= 1

    def cut(self) -> None:
        """Close to a single request: the server holds the pool."""
        self._threshold = max(self._window / 2, 1.0)
        self._window = 1.0
