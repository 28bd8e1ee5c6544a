"""Small real servers, each of which does what it is told: the other end of the transport's tests."""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeAlias

from batcher.request import Claimed, Request, Row

PATH = "/v1/chat/completions"


class Talk:
    """One connection, seen from the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def request(self) -> tuple[bytes, bytes] | None:
        """Read one request: its head and body; None if the client has closed."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            return head, await self.reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def write(self, *parts: bytes, pause_s: float = 0.0) -> None:
        """Write the parts one by one, so that each is a segment of its own."""
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()
            await asyncio.sleep(pause_s)

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """Close so that the client sees a reset, and no end of file."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Answer: TypeAlias = Callable[[Talk], Awaitable[None]]


class Server:
    """What a test asks of the server while it runs."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.connections = 0
        self.open = 0


@contextlib.asynccontextmanager
async def serving(answer: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    """Run `answer` for every connection; what it leaves open stays open until the end."""
    tasks: set[asyncio.Task[None]] = set()
    writers: list[asyncio.StreamWriter] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        writers.append(writer)
        server.connections += 1
        server.open += 1
        try:
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await answer(Talk(reader, writer))
                await reader.read()
        finally:
            server.open -= 1
            tasks.discard(task)

    listener = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls, backlog=1024)
    server = Server(listener.sockets[0].getsockname()[1])
    try:
        yield server
    finally:
        listener.close()
        await asyncio.sleep(0.01)  # lets the connections just accepted reach `handle`
        for writer in writers:
            writer.transport.abort()
        for task in list(tasks):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await asyncio.sleep(0)  # lets the aborted transports close their sockets


def unused_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def answering(*parts: bytes) -> Answer:
    """Answer every request with these parts."""

    async def answer(talk: Talk) -> None:
        while await talk.request():
            await talk.write(*parts)

    return answer


def ok(body: bytes = b"{}", extra: bytes = b"") -> bytes:
    """Return a whole reply, sized."""
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%b\r\n%b" % (len(body), extra, body)


async def echo(talk: Talk) -> None:
    """Answer every request with its own body."""
    while request := await talk.request():
        await talk.write(ok(request[1]))


def claimed(number: int = 1, body: bytes = b'{"model":"m"}', path: str = PATH) -> Claimed:
    """Make a claimed attempt, without a journal."""
    row = Row(number, number.to_bytes(16, "big"), f"row-{number}")
    request = Request((row,), f"key-{number}", "default", "m", path, body, 10, None)
    return Claimed(number, request, 1, 0)
