"""Does the server give back the tokens that a request reserved and did not use? Its headers can show it."""

from typing import Final, NamedTuple

#: What is heard is compared with what was heard so much before, in seconds, if at least such a share of the
#: limit could have come back meanwhile.
_APART_S: Final = 5.0
_LEAST_SHARE: Final = 0.02
#: More remains than our sending explains by so much of what could have come back, so often in a row.
_SHARES: Final = (0.6, 1.4)
_SURE: Final = 3


class Heard(NamedTuple):
    """What remained of the tokens when what was sent at `at` arrived, and what we had sent by then."""

    at: float
    remaining: int
    #: Within the period, and in all.
    counted: int
    ever: int
    #: Of all answers so far: tokens that were reserved and not used.
    unused: int
    #: When the server says that the limit is whole again, in seconds; None where it does not.
    reset_s: float | None


class Returns:
    """Compares what remains with what would if reservations stayed.

    More than that can only be there if the server has given some back. What would remain is that of a window
    where the reset shows that it is no bucket (see `Announced.period_s`), else the larger of both views (see
    `Level`). A window that begins anew gives everything back at once, which is another amount. Where the
    budget is whole all the time nothing can be told, and nothing is: a reservation counts for what it is.
    """

    __slots__ = ("_from", "_signs", "shown")

    def __init__(self) -> None:
        self._from: Heard | None = None
        self._signs = 0
        #: Whether it is certain.
        self.shown = False

    def hear(self, word: Heard, limit: int, per_s: float) -> None:
        """Take one word; `limit` and `per_s` are the server's."""
        before = self._from
        if before is None or word.at < before.at:
            self._from = word
            return
        could = word.unused - before.unused
        apart_s = word.at - before.at
        if apart_s < _APART_S or could < _LEAST_SHARE * limit:
            return
        expected: float = before.remaining - (word.counted - before.counted)
        if _may_be_bucket(before, limit, per_s) or _may_be_bucket(word, limit, per_s):
            as_bucket = before.remaining - (word.ever - before.ever) + per_s * apart_s
            expected = max(expected, min(as_bucket, limit))
        came_back = word.remaining - expected
        least, most = _SHARES
        self._signs = self._signs + 1 if least * could <= came_back <= most * could else 0
        self.shown = self.shown or self._signs >= _SURE
        self._from = word


def _may_be_bucket(word: Heard, limit: int, per_s: float) -> bool:
    """Say whether the reset is what a bucket that refills evenly would say."""
    if word.reset_s is None:
        return True
    refilled_s = (limit - word.remaining) / per_s
    return abs(word.reset_s - refilled_s) <= max(1.0, refilled_s / 10)
