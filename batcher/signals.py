"""SIGINT and SIGTERM, from the first moment of a run to its last."""

import asyncio
import signal
import threading
from types import TracebackType
from typing import Any, Final, Protocol, Self

from batcher.stop import INTERRUPTED, Stop

_BOTH: Final = (signal.SIGINT, signal.SIGTERM)


class Stoppable(Protocol):
    """What a signal stops: in order at first, at once if another one comes."""

    @property
    def stopping(self) -> bool:
        """Whether it has been stopped already."""
        ...

    def stop(self, stop: Stop) -> None:
        """Stop in order."""
        ...

    def hurry(self) -> None:
        """Stop at once."""
        ...


class Signals:
    """Takes the signals of the main thread while it is open; elsewhere the caller cancels instead."""

    def __init__(self) -> None:
        self._target: Stoppable | None = None
        self._before: list[Any] = []
        #: Whether one has come that stopped nothing.
        self.asked = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = [signal.getsignal(number) for number in _BOTH]
            for number in _BOTH:
                asyncio.get_running_loop().add_signal_handler(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in zip(_BOTH, self._before, strict=False):
            asyncio.get_running_loop().remove_signal_handler(number)
            signal.signal(number, before)

    def stop(self, target: Stoppable | None) -> None:
        """Let the signals stop this from now on, or nothing; one that has come already does so at once."""
        self._target = target
        if target is not None and self.asked:
            target.stop(INTERRUPTED)

    def _receive(self) -> None:
        if self._target is None:
            self.asked = True
            return
        if self._target.stopping:
            self._target.hurry()
        self._target.stop(INTERRUPTED)
