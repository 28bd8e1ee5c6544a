"""The bound: never more than the limit in any window of a minute."""

import math
from collections import deque

#: A rate limit is per minute.
PERIOD_S = 60.0
#: The resolution: a cost is remembered with the slot in which it was sent.
SLOT_S = 0.1
#: A request may take this much longer to reach the server than one sent a period later.
SKEW_S = 0.25


class Window:
    """At most `limit` in every window of 60 seconds, counted at the server.

    A cost is *held* from its grant until it is sent; from then on it is counted in a ring of slots of 0.1 s
    and leaves when the whole slot is 60 s (and a skew) old. So what is granted but delayed counts, and what
    was sent counts for at least the period: held + counted <= limit at every instant bounds every window.

    >>> window = Window(limit=2)
    >>> window.hold(2)
    >>> window.earliest(1, now=0.0)  # nothing has been sent: no time is known
    inf
    >>> window.sent(2, now=0.0)
    >>> round(window.earliest(1, now=0.0), 2)
    60.35
    """

    __slots__ = ("_counted", "_held", "_slots", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._held = 0
        self._counted = 0
        #: [slot number, sum], oldest first; at most PERIOD_S / SLOT_S and a few.
        self._slots: deque[list[int]] = deque()

    def earliest(self, cost: int, now: float) -> float:
        """Return when there is room for `cost`; infinity if only what is still unsent is in the way."""
        slots = self._slots
        while slots and _leaves(slots[0][0]) <= now:
            self._counted -= slots.popleft()[1]
        missing = self._held + self._counted + cost - self.limit
        if missing <= 0:
            return now
        for slot, amount in slots:
            missing -= amount
            if missing <= 0:
                return _leaves(slot)
        return math.inf

    def hold(self, cost: int) -> None:
        """Reserve `cost` from now until it is sent or given back."""
        self._held += cost

    def give_back(self, cost: int) -> None:
        """End the reservation of what never left."""
        self._held -= cost

    def sent(self, cost: int, now: float) -> None:
        """Turn the reservation into a count that leaves a period after `now`."""
        self._held -= cost
        self.seed(cost, now)

    def seed(self, cost: int, at: float) -> None:
        """Count what was sent at `at`, before this window was made: oldest first."""
        self._counted += cost
        slot = math.floor(at / SLOT_S)
        if self._slots and self._slots[-1][0] >= slot:
            self._slots[-1][1] += cost
        else:
            self._slots.append([slot, cost])


def _leaves(slot: int) -> float:
    return (slot + 1) * SLOT_S + PERIOD_S + SKEW_S
