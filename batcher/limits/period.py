"""The limits of a minute, or of a day: our own window, and the server's word on it."""

from collections.abc import Iterator
from typing import Final

from batcher.limits.level import Level
from batcher.limits.window import DAY_S, SKEW_S, Window

#: What is waited for where the server says that too little remains: it ends the name.
LEFT: Final = " left at the server"


class Period:
    """A window and, for each of its two limits, what the server says remains."""

    __slots__ = ("_words", "requests", "tokens", "window")

    def __init__(self, window: Window) -> None:
        self.window = window
        self.requests = Level(window.period_s + SKEW_S)
        self.tokens = Level(window.period_s + SKEW_S)
        self._words = (
            ("requests a day", "tokens a day") if window.period_s == DAY_S else ("requests", "tokens")
        )

    @property
    def heard(self) -> bool:
        """Whether the server has said what remains of either."""
        return self.requests.heard or self.tokens.heard

    def room(self, now: float, *, awaited: bool) -> tuple[float, float]:
        """Return how many requests and how many tokens may go at `now`.

        `awaited` says that a reply is on its way, and with it the server's next word.
        """
        window = self.window
        window.roll(now)
        requests, tokens = window.granted()
        return (
            min(
                window.max_requests - window.requests,
                self.requests.room(window.requests, requests, now, awaited=awaited),
            ),
            min(
                window.max_tokens - window.tokens,
                self.tokens.room(window.tokens, tokens, now, awaited=awaited),
            ),
        )

    def times(self, cost: int, now: float, *, awaited: bool) -> Iterator[tuple[float, str]]:
        """Yield from when a request of `cost` tokens may go, by each limit, with its name."""
        window = self.window
        yield from zip(window.earliest(1, cost, now), self._words, strict=True)
        requests, tokens = window.granted()
        levels = (
            self.requests.earliest(1, window.requests, requests, now, window.requests_freed, awaited=awaited),
            self.tokens.earliest(cost, window.tokens, tokens, now, window.tokens_freed, awaited=awaited),
        )
        yield from zip(levels, (f"requests{LEFT}", f"tokens{LEFT}"), strict=True)

    def note(self, now: float) -> None:
        """Remember what has been sent by now, for the server's word that comes later."""
        window = self.window
        counted_requests, counted_tokens = window.counted()
        requests, tokens = window.granted()
        self.requests.note(counted_requests, window.requests, requests, now)
        self.tokens.note(counted_tokens, window.tokens, tokens, now)

    def level(self, kind: str) -> Level:
        """Return that of the `requests`, or of the `tokens`."""
        return self.requests if kind == "requests" else self.tokens
