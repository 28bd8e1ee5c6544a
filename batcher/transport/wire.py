"""Our own HTTP/1.1 client: nothing but POST, made to cost as little as one request can.

What keeps it cheap: one future and one write per request, a head that is built once per path, connections
and their parsers that are used again, no timer per request (one sweep looks at all deadlines), and no
object per response but the `Reply`.

    send ─► an idle connection (the one used last) ─► write ─► reply ─► idle again, or the next that waits
         └► none: wait ─► the first that becomes free or open ───┘

A request that finds no idle connection waits in line, and a connection is opened for it; whichever is first
serves it. So there are never many more connections than requests in flight at the busiest moment.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from aiolimiter import AsyncLimiter

from batcher.clock import Clock
from batcher.request import Claimed, Landed, Lost
from batcher.transport.connection import Connection
from batcher.transport.dial import Dialer, DialError
from batcher.transport.endpoint import Endpoint

#: How often deadlines are looked at, and so how late a timeout can be.
SWEEP_S = 0.25
#: Connections that may be opening at once: below the shortest usual queue of a listener (100 in asyncio).
MAX_OPENING = 64
#: Opening plain connections: (burst, seconds to refill it). A burst fits a listener's queue; 500 a second are
#: 8% of our core (0.16 ms each, measured), and a thousand are open within two seconds.
PLAIN_PACE = (50, 0.1)
#: The same for TLS: 100 a second take 16% of our core (1.6 ms each, measured), and more of the server's.
TLS_PACE = (20, 0.2)


class _Waiting:
    """A request in line for a connection."""

    __slots__ = ("claimed", "connection", "deadline", "future", "head", "sent")

    def __init__(
        self,
        claimed: Claimed,
        sent: Callable[[Claimed], None],
        head: bytes,
        future: asyncio.Future[Landed],
        deadline: float,
    ) -> None:
        self.claimed = claimed
        self.sent = sent
        self.head = head
        self.future = future
        self.deadline = deadline
        self.connection: Connection | None = None


class Wire:
    """A `Transport` to one endpoint. It belongs to the event loop of its first `send`.

    `timeout_s` is a request's total, from the call of `send`; `connect_timeout_s` covers name, TCP and TLS
    of one connection; an idle connection is closed after `idle_s`, or sooner if the server says so.
    Raises `ConfigurationError` if `SSL_CERT_FILE` can't be read.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        clock: Clock,
        *,
        max_connections: int = 1000,
        timeout_s: float = 300.0,
        connect_timeout_s: float = 10.0,
        idle_s: float = 4.0,
    ) -> None:
        self._endpoint = endpoint
        self._now = clock.now
        self._max_connections = max_connections
        self._timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._idle_s = idle_s
        self._dialer = Dialer(endpoint, clock)
        self._limiter = AsyncLimiter(*(TLS_PACE if endpoint.scheme == "https" else PLAIN_PACE))
        self._heads: dict[str, bytes] = {}
        self._connections: set[Connection] = set()
        self._idle: list[Connection] = []
        self._waiting: deque[_Waiting] = deque()
        #: Connections being opened, and when each is given up.
        self._opening: dict[asyncio.Task[Connection], float] = {}
        self._pacing: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False
        self._emptied: asyncio.Event | None = None

    async def send(self, claimed: Claimed, sent: Callable[[Claimed], None]) -> Landed:
        """See `Transport.send`."""
        now = self._now()
        deadline = now + self._timeout_s
        loop = self._loop or self._begin()
        future: asyncio.Future[Landed] = loop.create_future()
        path = claimed.request.path
        head = self._heads.get(path) or self._make_head(path)
        connection = self._take_idle(now)
        if connection is None:
            return await self._send_later(_Waiting(claimed, sent, head, future, deadline))
        connection.deadline = deadline
        try:
            connection.start(claimed, sent, head, future, now)
            return await future
        except BaseException:
            connection.abandon(future)
            raise

    def abort(self) -> None:
        """See `Transport.abort`. What was idle stays open."""
        reason = "the run was stopped before the reply came"
        while self._waiting:
            self._give_up(self._waiting.popleft(), "closed", reason)
        for task in self._opening:
            task.cancel()
        for connection in [each for each in self._connections if each.busy]:
            connection.lose("closed", reason)

    async def aclose(self) -> None:
        """See `Transport.aclose`. Whatever is sent afterwards is `Lost`, kind `closed`."""
        self._closed = True
        self.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()
        tasks: list[asyncio.Task[Connection] | asyncio.Task[None]] = [*self._opening]
        if self._pacing is not None:
            self._pacing.cancel()
            tasks.append(self._pacing)
        if tasks:
            await asyncio.wait(tasks)
        self._idle.clear()
        for connection in self._connections:
            connection.abort()
        if self._connections:
            self._emptied = asyncio.Event()
            await self._emptied.wait()

    def _begin(self) -> asyncio.AbstractEventLoop:
        self._loop = asyncio.get_running_loop()
        if not self._closed:
            self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)
        return self._loop

    def _make_head(self, path: str) -> bytes:
        head = self._heads[path] = self._endpoint.head(path)
        return head

    # the line, and the connections that serve it

    def _take_idle(self, now: float) -> Connection | None:
        """Return the connection that was idle for the shortest time, if it can still be trusted."""
        idle = self._idle
        while idle:
            connection = idle.pop()
            if not connection.usable():
                continue
            if now < connection.expires_at:
                return connection
            connection.close()
        return None

    async def _send_later(self, waiting: _Waiting) -> Landed:
        if self._closed:
            self._give_up(waiting, "closed", "the transport is closed")
        else:
            self._waiting.append(waiting)
            self._open_more()
        try:
            return await waiting.future
        except BaseException:
            if waiting.connection is not None:
                waiting.connection.abandon(waiting.future)
            elif waiting in self._waiting:
                self._waiting.remove(waiting)
            raise

    def _freed(self, connection: Connection, now: float) -> None:
        """Give a connection to the first in line, or keep it for the next that comes."""
        while self._waiting:
            waiting = self._waiting.popleft()
            if waiting.future.done():
                continue
            waiting.connection = connection
            connection.deadline = waiting.deadline
            try:
                connection.start(waiting.claimed, waiting.sent, waiting.head, waiting.future, now)
            except Exception as error:  # noqa: BLE001  it is raised by the `send` that waits
                connection.abandon(waiting.future)
                waiting.future.set_exception(error)
            return
        connection.expires_at = now + connection.idle_s
        self._idle.append(connection)

    def _gone(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if self._emptied is not None and not self._connections:
            self._emptied.set()
        self._open_more()

    def _give_up(self, waiting: _Waiting, kind: str, reason: str) -> None:
        if not waiting.future.done():
            waiting.future.set_result(Lost(False, kind, reason, None, self._now()))

    # opening connections

    def _wanted(self) -> int:
        """How many connections to begin to open: one for each in line that none is opening for."""
        opening = len(self._opening)
        room = self._max_connections - len(self._connections) - opening
        return min(len(self._waiting) - opening, room, MAX_OPENING - opening)

    def _open_more(self) -> None:
        if self._pacing is None and self._loop is not None and self._wanted() > 0 and not self._closed:
            self._pacing = self._loop.create_task(self._pace())

    async def _pace(self) -> None:
        """Begin to open connections as fast as is decent. Only this task waits in the limiter.

        The limiter's waiters wake each other, so that a thousand of them would burn the core.
        """
        try:
            while self._wanted() > 0:
                await self._limiter.acquire()
                if self._wanted() > 0:
                    task = asyncio.create_task(self._dialer.dial(self._connection))
                    self._opening[task] = self._now() + self._connect_timeout_s
                    task.add_done_callback(self._opened)
        finally:
            self._pacing = None

    def _connection(self) -> Connection:
        endpoint = self._endpoint
        return Connection(endpoint.address, self._idle_s, self._now, endpoint.mask, self._freed, self._gone)

    def _opened(self, task: asyncio.Task[Connection]) -> None:
        """Use a new connection, or tell the first in line why there is none."""
        deadline = self._opening.pop(task)
        where = self._endpoint.address
        if task.cancelled():
            if deadline <= self._now():  # else it was `abort`, and nobody is left in line
                self._fail_first("connect", f"no connection to {where} within {self._connect_timeout_s:g} s")
        elif (error := task.exception()) is not None:
            if isinstance(error, DialError):
                self._fail_first(error.kind, error.reason)
            elif self._waiting:
                self._waiting.popleft().future.set_exception(error)
        elif not task.result().usable():
            self._fail_first("connect", f"{where} closed the connection as soon as it was open")
        else:
            self._connections.add(task.result())
            self._freed(task.result(), self._now())
        self._open_more()

    def _fail_first(self, kind: str, reason: str) -> None:
        if self._waiting:
            self._give_up(self._waiting.popleft(), kind, reason)

    # deadlines

    def _sweep(self) -> None:
        """Give up whatever is past its deadline, and close what was idle too long."""
        now = self._now()
        late = f"no reply from {self._endpoint.address} within {self._timeout_s:g} s"
        while self._waiting and self._waiting[0].deadline <= now:
            self._give_up(self._waiting.popleft(), "timeout", f"{late}: no connection was free")
        for connection in [each for each in self._connections if each.busy and each.deadline <= now]:
            connection.lose("timeout", late)
        for task in [task for task, deadline in self._opening.items() if deadline <= now]:
            task.cancel()
        kept = []
        for connection in self._idle:
            if connection.usable() and now < connection.expires_at:
                kept.append(connection)
            elif connection.open:
                connection.close()
        self._idle = kept
        if self._loop is not None:
            self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)
