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
        "_before_requests",
        "_before_tokens",
        "_gone_requests",
        "_gone_tokens",
        "_keep_s",
        "_newest",
        "_oldest",
        "_ring",
        "_slot",
        "_slot_ends",
        "_slot_s",
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
        #: Held and counted.
        self.requests = self.tokens = 0
        #: What was counted and has left.
        self._gone_requests = self._gone_tokens = 0
        self._slot_s = period_s / SLOTS
        self._keep_s = period_s + SKEW_S
        #: Requests and tokens of each slot, at its number modulo the length: a period, the skew, and a slot
        #: at either end.
        self._ring = [[0, 0] for _ in range(SLOTS + math.ceil(SKEW_S / self._slot_s) + 3)]
        #: The slots in use (none if the newest is before the oldest); the newest and its end.
        self._oldest, self._newest = 0, -1
        self._slot, self._slot_ends = self._ring[0], -math.inf
        #: The sums of all other slots.
        self._before_requests = self._before_tokens = 0
        #: When the oldest of them leaves: `roll` then.
        self.leaves = math.inf

    def roll(self, now: float) -> None:
        """Let go of the slots that have left."""
        while self.leaves <= now:
            slot = self._ring[self._oldest % len(self._ring)]
            if slot is not self._slot:
                self._before_requests -= slot[0]
                self._before_tokens -= slot[1]
            self._go(*slot)
            slot[:] = 0, 0
            self._oldest += 1
            if self._oldest <= self._newest:
                self.leaves = self._leaves_at(self._oldest)
            else:
                # What is sent next begins a slot, even if the clock goes back.
                self.leaves, self._slot_ends = math.inf, -math.inf

    def _go(self, requests: int, tokens: int) -> None:
        self.requests -= requests
        self.tokens -= tokens
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
            now if by_requests <= 0 else self.requests_freed(by_requests),
            now if by_tokens <= 0 else self.tokens_freed(by_tokens),
        )

    def requests_freed(self, amount: float) -> float:
        """Return when so many of the requests that are counted will have left, infinity if fewer are."""
        return self._freed(amount, 0)

    def tokens_freed(self, amount: float) -> float:
        """Return when so many of the tokens that are counted will have left, infinity if fewer are."""
        return self._freed(amount, 1)

    def _freed(self, amount: float, of: int) -> float:
        for number in range(self._oldest, self._newest + 1):
            amount -= self._ring[number % len(self._ring)][of]
            if amount <= 0:
                return self._leaves_at(number)
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
        slot = self._slot
        slot[0] += requests
        slot[1] += tokens

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
        number = min(math.floor(sent_at / self._slot_s), self._newest)
        if number < self._oldest:
            return  # it has left
        slot = self._ring[number % len(self._ring)]
        # Never more than is there: if the clock went back it may stand in another slot.
        tokens = max(tokens, -slot[1])
        slot[1] += tokens
        if slot is not self._slot:
            self._before_tokens += tokens
        self._go(0, -tokens)

    def counted(self) -> tuple[int, int]:
        """Return the requests and the tokens that were sent within the period: all but what is held."""
        requests, tokens = self._slot
        return self._before_requests + requests, self._before_tokens + tokens

    def granted(self) -> tuple[int, int]:
        """Return the requests and the tokens that were ever sent, or are held."""
        return self.requests + self._gone_requests, self.tokens + self._gone_tokens

    def _advance(self, now: float) -> None:
        """Begin the slot of `now`."""
        self.roll(now)
        number = math.floor(now / self._slot_s)
        if self._newest < self._oldest:
            self._oldest = number
            self.leaves = self._leaves_at(number)
        self._newest = number
        slot = self._ring[number % len(self._ring)]
        # Where floats take a slot's end for a part of it, it is the same one once more.
        if slot is not self._slot:
            self._before_requests, self._before_tokens = self.counted()
            self._slot = slot
        self._slot_ends = (self._newest + 1) * self._slot_s

    def _leaves_at(self, number: int) -> float:
        return (number + 1) * self._slot_s + self._keep_s
