"""How fast a pool may open up: at the start, and again after the server has said no."""

from typing import Final

#: In flight before anything has succeeded.
START: Final = 32
#: Where no more than this share of a flight was refused, or a single one, it was no congestion.
STRAY_SHARE: Final = 1 / 8


class Ramp:
    """How many requests of a pool may be in flight: slow start and congestion avoidance (RFC 5681).

    Each success opens it by one until it is at half of where it was when the server last held the pool, and
    from there by one for every window's worth of successes. It does not grow while fewer are in flight than
    half of what it allows: then it is not what limits (RFC 7661). A hold closes it to a single request, the
    probe; what was in flight when it began does not stand in the probe's way. If the probe gets through and
    few others of that flight were refused (a server may refuse one for reasons of its own), the pool is where
    it was. It keeps a pool without known limits from running into the same refusal over and over;
    where limits are known and right there are no holds, and it is soon out of the way.

    Attempts are named by numbers that grow in the order in which they are taken.

    >>> ramp = Ramp()
    >>> ramp.take(32, newest=32)
    >>> ramp.landed(1, succeeded=True)
    >>> ramp.free
    2
    """

    __slots__ = (
        "_before",
        "_flight",
        "_in_flight",
        "_last_earlier",
        "_newest",
        "_refused",
        "_threshold",
        "_window",
    )

    def __init__(self) -> None:
        self._window = float(START)
        self._threshold = float("inf")
        #: On their way of those that were taken since the last hold began; the last number that was not.
        self._in_flight = 0
        self._newest = self._last_earlier = 0
        #: During a hold: the window when it began, how many were in flight, and how many of those refused.
        self._before: float | None = None
        self._flight = self._refused = 0

    @property
    def free(self) -> int:
        """How many more may go now."""
        return max(int(self._window) - self._in_flight, 0)

    def take(self, count: int, newest: int) -> None:
        """Count requests that are on their way; `newest` is the number of the last of them."""
        self._in_flight += count
        self._newest = newest

    def landed(self, number: int, *, succeeded: bool, refused: bool = False) -> None:
        """Count one that is no longer on its way; `refused` is one that the server held the pool for."""
        if number > self._last_earlier:
            if succeeded:
                self._window = self._grown(self._window, self._in_flight)
            self._in_flight -= 1
            return
        self._refused += refused
        if succeeded and self._before is not None:
            self._before = self._grown(self._before, self._flight)

    def _grown(self, window: float, in_flight: int) -> float:
        if in_flight < window / 2:
            return window
        return window + (1 if window < self._threshold else 1 / window)

    def cut(self) -> None:
        """Close to a single request: the server holds the pool."""
        if self._before is None:
            self._before = self._window
            self._flight, self._refused = self._in_flight + 1, 1
        else:
            self._refused = self._flight  # the probe was refused as well: no stray
        self._in_flight, self._last_earlier = 0, self._newest
        self._window = 1.0

    def reopen(self) -> None:
        """Open again: the probe got through."""
        if self._before is None:
            return
        # One of two may be either, and one of one is.
        strays = max(self._flight * STRAY_SHARE, 1.0 if self._flight > 2 else 0.0)
        if self._refused <= strays:
            self._window = self._before
        else:
            self._threshold = max(self._before / 2, 1.0)
        self._before = None
