"""What wakes a stage of the loop."""

import asyncio

import anyio


class Bell:
    """Wakes one task, once for any number of rings."""

    __slots__ = ("_rung",)

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Wake who waits, or let who comes next not wait."""
        self._rung.set()

    async def wait(self, seconds: float | None = None) -> None:
        """Wait for a ring, or for so many seconds."""
        if seconds is None:
            await self._rung.wait()
        else:
            with anyio.move_on_after(max(seconds, 0.0)):
                await self._rung.wait()
        self._rung.clear()
