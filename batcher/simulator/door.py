"""The listening socket, which a script can shut: connects are refused then, as by a host that is down."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterable, Sequence

from batcher.simulator.config import Scheduled, StartError
from batcher.simulator.outcomes import OUTAGE

_BACKLOG = 4096
#: Where it can't be opened again at once, it is tried again after so long.
_RETRY_S = 0.05


def outages(script: Iterable[Scheduled]) -> list[tuple[float, float]]:
    """Return (second it begins, second it is over) of every outage of a script; those that touch are one."""
    merged: list[tuple[float, float]] = []
    for begin_s, end_s in sorted(
        (line.at_s or 0.0, line.end_s) for line in script if line.fault == OUTAGE.name
    ):
        if merged and begin_s <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end_s))
        else:
            merged.append((begin_s, end_s))
    return merged


class Door:
    """Takes connections, except during outages.

    `connection` makes the protocol of one that is taken, `drop` resets all that there are.
    """

    def __init__(
        self,
        host: str,
        script: Sequence[Scheduled],
        connection: Callable[[], asyncio.Protocol],
        drop: Callable[[], object],
    ) -> None:
        self._host = host
        self._outages = outages(script)
        self._connection = connection
        self._drop = drop
        self._server: asyncio.Server | None = None
        self._following: asyncio.Task[None] | None = None
        self._port = 0
        self._held: list[socket.socket] = []

    async def open(self, port: int) -> int:
        """Listen, and return the port, which is another than the one that was asked for if that was 0.

        Raises `StartError` where the address can't be had.
        """
        try:
            self._server = await self._bound(port)
            self._port = int(self._server.sockets[0].getsockname()[1])
            if self._outages:
                self._hold(self._server)
            await self._server.start_serving()
        except (OSError, OverflowError) as error:
            raise StartError(
                f"can't listen on {self._host} port {port}: {error}; name another (port 0: any free one)"
            ) from None
        return self._port

    def begin(self) -> None:
        """Let the seconds of the script begin."""
        if self._outages:
            self._following = asyncio.ensure_future(self._follow())

    def close(self) -> None:
        """Listen no more."""
        if self._following:
            self._following.cancel()
        if self._server:
            self._server.close()
        for holding in self._held:
            holding.close()

    async def _bound(self, port: int) -> asyncio.Server:
        return await asyncio.get_running_loop().create_server(
            self._connection, self._host, port, backlog=_BACKLOG, start_serving=False
        )

    def _hold(self, server: asyncio.Server) -> None:
        """Bind each address once more without listening, so that nobody takes the port during an outage.

        Two sockets may be bound to one address if neither listens yet (Linux); elsewhere the port is at risk.
        """
        for listening in server.sockets:
            holding = socket.socket(listening.family, socket.SOCK_STREAM)
            self._held.append(holding)
            holding.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                holding.bind(listening.getsockname())

    async def _follow(self) -> None:
        passed_s = 0.0
        for begin_s, end_s in self._outages:
            await asyncio.sleep(begin_s - passed_s)
            self._shut()
            if end_s == float("inf"):
                return
            await asyncio.sleep(end_s - begin_s)
            await self._reopen()
            passed_s = end_s

    def _shut(self) -> None:
        if self._server:
            self._server.close()
        self._drop()

    async def _reopen(self) -> None:
        while True:
            try:
                self._server = await self._bound(self._port)
                await self._server.start_serving()
            except OSError:
                await asyncio.sleep(_RETRY_S)
            else:
                return
