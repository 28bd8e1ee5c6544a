"""Time and chance: the only module that reads either.

Every decision takes `now` and `chance` as arguments; the loop asks a `Clock` for them and passes them on.
Tests hand it the virtual clock of `batcher.testing`.
"""

import random
import secrets
import time
from typing import Protocol


class Clock(Protocol):
    """Where the loop gets its time and its randomness from."""

    def now(self) -> float:
        """Return seconds on a clock that never goes back; only differences mean anything."""
        ...

    def wall(self) -> float:
        """Return seconds since 1970 (UTC): for records that outlive the process, never for waiting."""
        ...

    def chance(self) -> float:
        """Return a random number, 0 <= chance < 1."""
        ...

    def token(self) -> str:
        """Make a name that nobody else has: 32 hexadecimal digits."""
        ...


class SystemClock:
    """The machine's own clock and randomness."""

    def now(self) -> float:
        """See `Clock.now`."""
        return time.monotonic()

    def wall(self) -> float:
        """See `Clock.wall`."""
        return time.time()

    def chance(self) -> float:
        """See `Clock.chance`."""
        return random.random()  # noqa: S311  spreads retries; nothing secret depends on it

    def token(self) -> str:
        """See `Clock.token`."""
        return secrets.token_hex(16)
