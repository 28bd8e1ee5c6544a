"""The bound: never more than the limits in any window of their period."""

import math
from typing import Final

MINUTE_S: Final = 60.0
DAY_S: Final = 86_400.0
#: The resolution: what was sent is remembered with its slot, a share of the period.
SLOTS: Final = 600
#: A request may take this much longer to reach the server than one sent a period later.
SKEW_S: Final = 0.25


class Window:
    """At most so many requests and tokens in every window of `period_s` seconds, counted at the server.

    What is granted is *held* until it is sent; from then on it is counted in a ring of slots (0.1 s of a
    minute) and leaves when the whole slot is a period (and a skew) old. So what is granted but delayed
    counts, and what was sent counts for at least the period: held + counted <= limit at every instant bounds
    every window. Without a limit (infinity) it counts all the same: the limit may be learned later.

    >>> window = Window(max_requests=2)
    >>> window.take(2, 500)
    >>> window.earliest(1, 250, now=0.0)  # nothing has been sent: no time is known for another request
    (inf, 0.0)
    >>> window.sent(2, 500, now=0.0)
    >>> round(window.earliest(1, 250, now=0.0)[0], 2)
    60.35
    """

    __slots__ = (
        "_gone_requests",
        "_gone_tokens",
        "_keep_s",
        "_newest",
        "_oldest",
        "_place",
        "_ring_requests",
        "_ring_tokens",
        "_slot_ends",
        "_slot_s",
        "counted_requests",
        "counted_tokens",
        "leaves",
        "max_requests",
        "max_tokens",
        "period_s",
        "requests",
        "tokens",
    )

    def __init__(
        self, max_requests: float = math.inf, max_tokens: float = math.inf, period_s: float = MINUTE_S
    ) -> None:
        self.max_requests = max_requests
        self.max_tokens = max_tokens
        self.period_s = period_s
        #: Held and counted; and how much of that is counted.
        self.requests = self.tokens = 0
        self.counted_requests = self.counted_tokens = 0
        #: What was counted and has left.
        self._gone_requests = self._gone_tokens = 0
        self._slot_s = period_s / SLOTS
        self._keep_s = period_s + SKEW_S
        #: Sums by slot number, modulo the length: a period, the skew, and the slots at either end.
        length = SLOTS + math.ceil(SKEW_S / self._slot_s) + 3
        self._ring_requests = [0] * length
        self._ring_tokens = [0] * length
        #: The slots in use (none if the newest is before the oldest), the newest's place and its end.
        self._oldest, self._newest, self._place = 0, -1, 0
        self._slot_ends = -math.inf
        #: When the oldest of them leaves: `roll` then.
        self.leaves = math.inf

    def roll(self, now: float) -> None:
        """Let go of the slots that have left."""
        ring_requests, ring_tokens = self._ring_requests, self._ring_tokens
        while self.leaves <= now:
            place = self._oldest % len(ring_requests)
            self._go(ring_requests[place], ring_tokens[place])
            ring_requests[place] = ring_tokens[place] = 0
            self._oldest += 1
            if self._oldest <= self._newest:
                self.leaves = self._leaves_at(self._oldest)
            else:
                # What is sent next begins a slot, even if the clock goes back.
                self.leaves, self._slot_ends = math.inf, -math.inf

    def _go(self, requests: int, tokens: int) -> None:
        self.requests -= requests
        self.tokens -= tokens
        self.counted_requests -= requests
        self.counted_tokens -= tokens
        self._gone_requests += requests
        self._gone_tokens += tokens

    def earliest(self, requests: int, tokens: int, now: float) -> tuple[float, float]:
        """Return when there is room for so many requests, and for so many tokens.

        Infinity if only what is still unsent is in the way.
        """
        self.roll(now)
        by_requests = self.requests + requests - self.max_requests
        by_tokens = self.tokens + tokens - self.max_tokens
        return (
            now if by_requests <= 0 else self._freed(by_requests, self._ring_requests),
            now if by_tokens <= 0 else self._freed(by_tokens, self._ring_tokens),
        )

    def requests_freed(self, amount: float) -> float:
        """Return when so many of the requests that are counted will have left, infinity if fewer are."""
        return self._freed(amount, self._ring_requests)

    def tokens_freed(self, amount: float) -> float:
        """Return when so many of the tokens that are counted will have left, infinity if fewer are."""
        return self._freed(amount, self._ring_tokens)

    def _freed(self, amount: float, ring: list[int]) -> float:
        for slot in range(self._oldest, self._newest + 1):
            amount -= ring[slot % len(ring)]
            if amount <= 0:
                return self._leaves_at(slot)
        return math.inf

    def take(self, requests: int, tokens: int) -> None:
        """Hold these from now until they are sent or given back."""
        self.requests += requests
        self.tokens += tokens

    def give_back(self, requests: int, tokens: int) -> None:
        """End the reservation of what never left."""
        self.requests -= requests
        self.tokens -= tokens

    def sent(self, requests: int, tokens: int, now: float) -> None:
        """Turn what is held into a count that leaves a period after `now`."""
        # On a clock that went back it counts as of the latest time known: longer, not shorter.
        if now >= self._slot_ends:
            self._advance(now)
        self.counted_requests += requests
        self.counted_tokens += tokens
        place = self._place
        self._ring_requests[place] += requests
        self._ring_tokens[place] += tokens

    def seed(self, requests: int, tokens: int, at: float) -> None:
        """Count what was sent at `at`, before this window was made: oldest first."""
        self.take(requests, tokens)
        self.sent(requests, tokens, at)

    def correct(self, tokens: int, sent_at: float, now: float) -> None:
        """Change what was sent at `sent_at` by so many tokens: more of them count from `now` on."""
        self.roll(now)
        if tokens >= 0:
            self.seed(0, tokens, now)
            return
        slot = min(math.floor(sent_at / self._slot_s), self._newest)
        if slot < self._oldest:
            return  # it has left
        place = slot % len(self._ring_tokens)
        # Never more than is there: if the clock went back it may stand in another slot.
        tokens = max(tokens, -self._ring_tokens[place])
        self._ring_tokens[place] += tokens
        self._go(0, -tokens)

    def granted(self) -> tuple[int, int]:
        """Return the requests and the tokens that were ever sent, or are held."""
        return self.requests + self._gone_requests, self.tokens + self._gone_tokens

    def _advance(self, now: float) -> None:
        """Begin the slot of `now`."""
        self.roll(now)
        slot = math.floor(now / self._slot_s)
        if self._newest < self._oldest:
            self._oldest = slot
            self.leaves = self._leaves_at(slot)
        self._newest = slot
        self._place = self._newest % len(self._ring_requests)
        self._slot_ends = (self._newest + 1) * self._slot_s

    def _leaves_at(self, slot: int) -> float:
        return (slot + 1) * self._slot_s + self._keep_s
