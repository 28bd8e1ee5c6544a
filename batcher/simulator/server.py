"""The server: sockets, the clock, the signals. What a request means is `service.py`'s.

One connection is one `asyncio.Protocol` with an `HttpRequestParser`; a request without latency is read,
decided and answered within `data_received`, with no task or future of its own.
"""

import asyncio
import contextlib
import signal
import socket
import struct
from collections import deque
from collections.abc import Callable, Coroutine
from typing import cast

import httptools

from batcher.simulator.config import Config
from batcher.simulator.door import Door
from batcher.simulator.outcomes import Ending
from batcher.simulator.replies import error, reply
from batcher.simulator.service import Service, Work

#: A larger body is refused with 413.
_MAX_BODY_BYTES = 64 * 1024 * 1024
#: A connection that sends so many requests ahead of their answers is not read until some are answered.
_MAX_AHEAD = 64
#: Closing a socket that does not linger sends RST in place of FIN.
_NO_LINGER = struct.pack("ii", 1, 0)


class _Outbox:
    """Holds back what is written until all that has come is read: the clients wake once, not per answer.

    Without it the simulator answers a fifth fewer requests per second.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: list[_Connection] = []

    def add(self, connection: "_Connection") -> None:
        """Flush this connection when the loop comes round."""
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append(connection)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for connection in waiting:
            connection.flush()


class _Connection(asyncio.Protocol):
    """One client's connection: answers its requests one at a time, in the order in which they came."""

    def __init__(
        self,
        service: Service,
        loop: asyncio.AbstractEventLoop,
        outbox: _Outbox,
        open_: set["_Connection"],
    ) -> None:
        self._service = service
        self._loop = loop
        self._outbox = outbox
        self._unsent = b""
        self._open = open_
        self._parser = httptools.HttpRequestParser(self)
        self._busy = False
        self._closing = False
        # Requests that came while one was being answered: the arguments of `_begin`.
        self._ahead: deque[tuple[str, bytes, str | None, bytes | None, bytes, bool]] = deque()
        self._reset()

    def _reset(self) -> None:
        self._target = b""
        self._key: str | None = None
        self._credential: bytes | None = None
        self._body = b""
        # What came of the body after its first part, and the bytes of it all.
        self._more: list[bytes] | None = None
        self._size = 0

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not derive from it
        self._open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Forget the connection. Work that is under way goes on, and is billed: nobody told the server."""
        self._closing = True
        self._ahead.clear()
        self._unsent = b""
        self._open.discard(self)

    def data_received(self, data: bytes) -> None:
        """Parse what came; the methods below are called as its parts are seen."""
        if self._closing:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            raise
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._give_up(400, "This is not a request in HTTP/1.1.")

    def pause_writing(self) -> None:
        """Stop reading from a client that does not read."""
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Read on."""
        if len(self._ahead) < _MAX_AHEAD and not self._closing:
            self._transport.resume_reading()

    # What httptools calls.

    def on_url(self, url: bytes) -> None:
        """Take (a part of) the request's target."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take the three headers that matter; their lengths tell most of the others apart."""
        size = len(name)
        if size == 15:
            if name.lower() == b"idempotency-key":
                self._key = value.decode("latin-1")
        elif size == 13:
            if name.lower() == b"authorization":
                self._credential = value
        elif size == 6 and name.lower() == b"expect":
            self._write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """Take (a part of) the body."""
        if not self._body:
            self._body = body
        elif self._more:
            self._more.append(body)
        else:
            self._more = [body]
        self._size += len(body)
        if self._size > _MAX_BODY_BYTES and not self._closing:
            self._give_up(413, f"The body is larger than {_MAX_BODY_BYTES} bytes.")

    def on_message_complete(self) -> None:
        """Begin with the request, or let it wait for the one before it."""
        if self._closing:
            return
        if self._more:
            self._body += b"".join(self._more)
        method = self._parser.get_method().decode()
        keep = self._parser.should_keep_alive()
        target, key, credential, body = self._target, self._key, self._credential, self._body
        self._reset()
        if not self._busy:
            self._begin(method, target, key, credential, body, keep)
            return
        self._ahead.append((method, target, key, credential, body, keep))
        if len(self._ahead) == _MAX_AHEAD:
            self._transport.pause_reading()

    # A request's way through the service.

    def _begin(
        self, method: str, target: bytes, key: str | None, credential: bytes | None, body: bytes, keep: bool
    ) -> None:
        outcome = self._service.arrive(method, target, key, credential, body, self._loop.time())
        self._busy = True
        if isinstance(outcome, bytes):
            self._write(outcome)
            self._next(keep)
        elif outcome.before_s:
            self._loop.call_later(outcome.before_s, self._count, outcome, keep)
        else:
            self._count(outcome, keep)

    def _count(self, work: Work, keep: bool) -> None:
        # Time is read here and where the request begins, and nowhere else.
        self._service.count(work, self._loop.time())
        if work.after_s:
            self._loop.call_later(work.after_s, self._finish, work, keep)
        else:
            self._finish(work, keep)

    def _finish(self, work: Work, keep: bool) -> None:
        self._service.finish(work)
        if self._closing:
            return
        fault = work.fault
        if fault is None:
            self._write(work.answer)
            self._next(keep)
            return
        pieces = fault.split(work.answer)
        if fault.takes_s:
            self._send(deque(pieces), fault.takes_s / (len(pieces) - 1), fault.ending, keep)
        else:
            self._write(b"".join(pieces))
            self._end(fault.ending, keep)

    def _send(self, pieces: deque[bytes], pause_s: float, ending: Ending, keep: bool) -> None:
        """Send the next piece, and after a pause those that are left, unless the client is gone."""
        if self._closing:
            return
        self._write(pieces.popleft())
        if pieces:
            self._loop.call_later(pause_s, self._send, pieces, pause_s, ending, keep)
        else:
            self._end(ending, keep)

    def _end(self, ending: Ending, keep: bool) -> None:
        if ending == "next":
            self._next(keep)
        elif ending == "close":
            self.close()
        elif ending == "reset":
            self.flush()
            self.abort()

    def _next(self, keep: bool) -> None:
        self._busy = False
        if not keep:
            self.close()
        elif self._ahead:
            if len(self._ahead) == _MAX_AHEAD:
                self._transport.resume_reading()
            # By way of the loop: a thousand requests ahead would be a stack a thousand deep.
            self._busy = True
            self._loop.call_soon(self._begin_next)

    def _begin_next(self) -> None:
        if self._ahead:
            self._begin(*self._ahead.popleft())

    def _give_up(self, status: int, message: str) -> None:
        self._write(reply(status, b"", error(message, "invalid_request_error")))
        self.close()

    def _write(self, data: bytes) -> None:
        if not self._unsent:
            self._outbox.add(self)
        self._unsent += data

    def flush(self) -> None:
        """Hand what was written to the transport."""
        if self._unsent:
            self._transport.write(self._unsent)
            self._unsent = b""

    def close(self) -> None:
        """Send what was written, and close."""
        self.flush()
        self._closing = True
        self._transport.close()

    def abort(self) -> None:
        """Close with RST, and send nothing more."""
        if self._closing:
            return
        self._closing = True
        self._unsent = b""
        with contextlib.suppress(OSError):  # the client may have closed it just now
            self._transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER
            )
        self._transport.abort()


async def serve(config: Config, ready: Callable[[str], object]) -> None:
    """Serve until cancelled; `ready` is called once, with the base URL, when connections are taken.

    Raises `StartError` where the address can't be had or a package is missing.
    """
    loop = asyncio.get_running_loop()
    outbox = _Outbox(loop)
    connections: set[_Connection] = set()

    def drop() -> None:
        for connection in list(connections):
            connection.abort()

    door = Door(config.host, config.script, lambda: _Connection(service, loop, outbox, connections), drop)
    service = Service(config, first=door.begin)
    host = f"[{config.host}]" if ":" in config.host else config.host
    try:
        port = await door.open(config.port)
        ready(f"http://{host}:{port}/v1")
        await loop.create_future()
    finally:
        door.close()
        for connection in list(connections):
            connection.close()


def run(config: Config, ready: Callable[[str], object]) -> None:
    """Serve until SIGINT or SIGTERM, on uvloop where it is installed; raises as `serve` does."""
    _allow_many_sockets()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_until_signalled(serve(config, ready)))


async def _until_signalled(serving: Coroutine[None, None, None]) -> None:
    task = asyncio.ensure_future(serving)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _allow_many_sockets() -> None:
    """Raise the soft limit on open files: every connection is one."""
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
