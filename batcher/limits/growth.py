"""How fast traffic may grow once the server has called it too fast."""

from typing import Final

#: "Above 1M tokens a minute, traffic should grow at most 50% per 15 minutes" (OpenAI on 429 `slow_down`).
FREE_TPM: Final = 1_000_000
FACTOR: Final = 1.5
EVERY_S: Final = 900.0


class Growth:
    """A rate of tokens that begins at two thirds of what was too much, and grows by half in 15 minutes.

    >>> growth = Growth(last_minute=6_000_000, now=0.0)
    >>> round(growth.per_s(now=0.0) * 60), round(growth.per_s(now=900.0) * 60)
    (4000000, 6000000)
    """

    __slots__ = ("_began_at", "_per_s")

    def __init__(self, last_minute: int, now: float) -> None:
        self._began_at = now
        self._per_s = max(last_minute / FACTOR, FREE_TPM) / 60

    def per_s(self, now: float) -> float:
        """Return the rate at `now`, in tokens per second."""
        return self._per_s * float(FACTOR ** ((now - self._began_at) / EVERY_S))
