"""What the server says remains, carried on to now."""

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from math import inf
from operator import attrgetter
from typing import Final, NamedTuple

from batcher.limits.window import MINUTE_S

#: So much of the rate is left to others who may send before the server's next word comes, in seconds of it:
#: at least, and at most where it is learned.
LEAST_MARGIN_S: Final = 0.15
MOST_MARGIN_S: Final = 6.0
#: How long it is remembered that a word fell short of what was expected, in seconds (to a third).
_MEMORY_S: Final = 300.0
#: How often what has been sent is noted, in seconds, and how many notes are kept: some minutes.
NOTE_S: Final = 0.02
_NOTES: Final = 16_384
#: The transport and the window may read the clock so far apart for one request, in seconds.
_SAME_S: Final = 0.005
#: So many successes in a row of which each says that nothing remains: it is not meant.
_NOT_MEANT: Final = 32
#: Others are seen if they use more than such a share of the limit, and never leave less than such a one: what
#: then really remains is waited for.
_HARDLY: Final = 0.03
_LEAST_SHARE: Final = 0.25
#: Sums of floats end just beside the exact value: nobody waits for a millionth of a token.
_SLACK: Final = 1e-6


class _Note(NamedTuple):
    """What had been sent at some time: within the period, and ever; and what was expected to remain."""

    at: float
    counted: int
    ever: int
    expected: float


class Level:
    """How much of one limit the server has left for us: its last word, less what we have sent since.

    Others may use the account, so it can be less than our own window thinks. The word is about the moment at
    which a request of ours arrived: what we had sent by then it has counted, what we send later it has not.
    How its budget fills up again is not known, so the smaller of two views holds: as a sliding window, it
    gets back what leaves our own; as a bucket, it refills evenly. The first needs another word soon: it holds
    while a reply is on its way, and no longer than a period. Where words fall short of what was expected when
    their requests were sent, others take it in the meantime, and that much is left to them.
    """

    __slots__ = (
        "_at",
        "_empty",
        "_margin",
        "_note",
        "_notes",
        "_per_s",
        "_period_s",
        "_remaining",
        "heard",
    )

    def __init__(self, period_s: float) -> None:
        self._period_s = period_s
        self._notes: deque[_Note] = deque(maxlen=_NOTES)
        #: Whether there is a word to go by.
        self.heard = False
        #: The word, what we had sent then, and the rate of the server's limit.
        self._at = -inf
        self._note = _Note(-inf, 0, 0, -inf)
        self._remaining = 0
        self._per_s = 0.0
        #: What is left to others.
        self._margin = 0.0
        self._empty = 0

    def note(self, counted: int, used: int, granted: int, now: float) -> None:
        """Remember what has been sent by now, within the period and (`granted`) in all."""
        expected = min(self._as_bucket(granted, now), self._as_window(used)) if self.heard else -inf
        self._notes.append(_Note(now, counted, granted - (used - counted), expected))

    def hear(self, remaining: int, per_s: float, at: float, *, refused: bool) -> None:
        """Take the server's word that came with the reply to what was sent at `at`.

        `per_s` is the rate of its limit; `refused` says that the reply was a refusal. What is older than its
        last word, or than our notes, says nothing.
        """
        self._empty = 0 if remaining or refused else self._empty + 1
        note = self._noted(at)
        if self._empty > _NOT_MEANT or note is None:
            self.heard = self.heard and self._empty <= _NOT_MEANT
            return
        # Where nothing was expected yet nothing can fall short: minus infinity.
        memory = math.exp(-max(at - self._at, 0.0) / _MEMORY_S)
        short = note.expected - remaining
        if refused and 2 * remaining <= note.expected:
            # Nobody says by how much a refused one fell short.
            short += 1 + note.expected / 2
        self._margin = min(max(short, self._margin * memory), MOST_MARGIN_S * per_s)
        if note is self._note:
            # Sent together: the one that found less has come later.
            self._remaining = min(remaining, self._remaining)
        elif at > self._at:
            self._at, self._note = at, note
            self._remaining, self._per_s = remaining, per_s
            self.heard = True

    @property
    def left_per_s(self) -> float:
        """The rate that others leave to us, as of the last word; infinity if there is hardly any other.

        What is neither left nor ours, they have used. Who paces itself by that leaves them their part, where
        who goes on at the whole rate until nothing is left would have them refused.
        """
        left = (self._remaining + self._note.counted) / MINUTE_S
        if not self.heard or left > (1 - _HARDLY) * self._per_s:
            return inf
        return max(left, _LEAST_SHARE * self._per_s)

    def sent_by(self, at: float) -> tuple[int, int] | None:
        """Return what had been sent by `at`: within the period, and in all; None where that is not known."""
        note = self._noted(at)
        return None if note is None else (note.counted, note.ever)

    def _noted(self, at: float) -> _Note | None:
        place = bisect_right(self._notes, at + _SAME_S, key=attrgetter("at"))
        return self._notes[place - 1] if place else None

    def room(self, used: int, granted: int, now: float, *, awaited: bool) -> float:
        """Return how much may go at `now`.

        `used` is what our window counts and holds, `granted` all that was ever sent or is held; `awaited`
        says that a reply is on its way.
        """
        if not self.heard:
            return inf
        room = self._as_bucket(granted, now) + _SLACK
        if awaited and now < self._void_at:
            room = min(room, self._as_window(used))
        return room - self._left_to_others

    def earliest(
        self,
        cost: int,
        used: int,
        granted: int,
        now: float,
        freed: Callable[[float], float],
        *,
        awaited: bool,
    ) -> float:
        """Return when so much may go if nothing is heard before; `freed` tells when our window frees it."""
        if not self.heard:
            return now
        cost += self._left_to_others
        missing = cost - self._as_bucket(granted, now)
        at = now + missing / self._per_s if missing > 0 else now
        missing = cost - self._as_window(used)
        if awaited and now < self._void_at and missing > 0:
            at = max(at, min(freed(missing), self._void_at))
        return at

    @property
    def _left_to_others(self) -> int:
        return round(max(self._margin, LEAST_MARGIN_S * self._per_s))

    @property
    def _void_at(self) -> float:
        """When all that the server had counted has left a window."""
        return self._at + self._period_s

    def _as_window(self, used: int) -> float:
        return self._remaining - (used - self._note.counted)

    def _as_bucket(self, granted: int, now: float) -> float:
        # It may pass the limit: our own window, or the next word, is in the way before.
        return self._remaining - (granted - self._note.ever) + self._per_s * (now - self._at)
