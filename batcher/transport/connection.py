"""One HTTP/1.1 connection: a request out, its reply in, and what became of it if none came.

The parser is llhttp, by way of httptools; what it doesn't decide is decided here (RFC 9112): where a body
ends that has no length, what a closed connection means, and whether the connection may carry another request.
"""

import asyncio
import re
import zlib
from collections.abc import Callable
from typing import cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from batcher.request import Claimed, Landed, Lost, Reply

#: How much of the server's own idle limit we use. uvicorn closes after 5 s; the rest is for the way there.
IDLE_SHARE = 0.8

#: A larger reply is no answer, in bytes: the largest of OpenAI (2,048 vectors as text) are half of it.
MAX_REPLY_BYTES = 256_000_000
#: What a body begins with that is packed (RFC 1952), as some gateways send it though nobody asked for it.
_GZIP = b"\x1f\x8b"

_KEEP_ALIVE_TIMEOUT = re.compile(rb"timeout\s*=\s*\"?(\d{1,9})", re.IGNORECASE)


class Connection(asyncio.Protocol):
    """A connection that is busy with one request, idle, or closed.

    `mask` takes the credentials out of an error's body.

    `freed(connection, now)` is called when a reply is complete and another request may follow,
    `gone(connection)` once when it is closed, whoever closed it.
    """

    __slots__ = (
        "_answering",
        "_body",
        "_ended_at",
        "_freed",
        "_fresh",
        "_future",
        "_gone",
        "_head",
        "_headers",
        "_mask",
        "_now",
        "_parser",
        "_reusable",
        "_sent_at",
        "_size",
        "_transport",
        "_where",
        "deadline",
        "expires_at",
        "idle_s",
        "open",
    )

    def __init__(
        self,
        where: str,
        idle_s: float,
        now: Callable[[], float],
        mask: Callable[[bytes], bytes],
        freed: Callable[["Connection", float], None],
        gone: Callable[["Connection"], None],
    ) -> None:
        self._where = where
        self._now = now
        self._mask = mask
        self._freed = freed
        self._gone = gone
        #: How long it may be idle and then still be used.
        self.idle_s = idle_s
        #: When it has been idle for too long; set by the owner.
        self.expires_at = 0.0
        #: When the request under way is given up.
        self.deadline = 0.0
        #: False as soon as no request may be sent on it any more.
        self.open = False
        self._transport: asyncio.Transport
        self._parser: HttpResponseParser | None = None
        self._future: asyncio.Future[Landed] | None = None
        self._sent_at = self._ended_at = 0.0
        self._fresh = True
        self._reusable = self._answering = False
        self._headers: list[tuple[bytes, bytes]] = []
        self._head: tuple[tuple[bytes, bytes], ...] | None = None
        self._body: list[bytes] = []
        self._size = 0

    # what the owner calls

    @property
    def busy(self) -> bool:
        """Whether a request is under way."""
        return self._future is not None

    def usable(self) -> bool:
        """Whether a request written now has a chance: nobody has begun to close the connection."""
        return self.open and not self._transport.is_closing()

    def start(
        self,
        claimed: Claimed,
        sent: Callable[[Claimed], None],
        head: bytes,
        future: asyncio.Future[Landed],
        now: float,
    ) -> None:
        """Write one request; `future` gets its `Reply` or `Lost`. It must be usable and not busy."""
        self._future = future
        self._answering = False
        self._sent_at = now
        request = claimed.request
        body = request.body
        data = b"".join(
            (
                head,
                request.key.encode(),
                b"\r\nContent-Length: ",
                str(len(body)).encode(),
                b"\r\n\r\n",
                body,
            )
        )
        sent(claimed)
        self._transport.write(data)

    def lose(self, kind: str, reason: str) -> None:
        """Give up the request under way, which counts as sent, and close the connection."""
        future, self._future = self._future, None
        if future is not None and not future.done():
            future.set_result(Lost(True, kind, reason, self._sent_at, self._now()))
        self.abort()

    def abandon(self, future: asyncio.Future[Landed]) -> None:
        """Close the connection if nobody waits for its reply any more: `future` was cancelled."""
        if self._future is future:
            self._future = None
            self.abort()

    def close(self) -> None:
        """Close it in good order."""
        self.open = False
        self._transport.close()

    def abort(self) -> None:
        """Close it at once."""
        self.open = False
        self._transport.abort()

    # what the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.BaseProtocol`."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass of it
        self._parser = HttpResponseParser(self)
        self.open = True

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._future is None or self._parser is None:
            self.close()  # nobody asked
            return
        self._answering = True
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self._reusable = False
            if self._future is not None:
                self.lose("protocol", f"{self._where} sent something that is not HTTP/1.1: {error}")
        if self._future is None:
            if self._reusable:
                self._freed(self, self._ended_at)
            else:
                self.close()

    def eof_received(self) -> None:
        """See `asyncio.Protocol`: the server sends no more, so we close as well."""
        self.open = False
        self._ended(None)

    def connection_lost(self, error: Exception | None) -> None:
        """See `asyncio.BaseProtocol`."""
        self.open = False
        self._ended(error)
        self._parser = None  # it holds our methods: a cycle
        self._gone(self)

    # what the parser calls

    def on_message_begin(self) -> None:
        """Start anew: the reply, the one after an interim reply, or what nobody asked for."""
        if self._future is None:
            self._reusable = False
        self._headers = []
        self._head = None
        self._body = []
        self._size = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one header, or one trailer, which is then left out."""
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Close the list, so that trailers don't get into it."""
        self._head = tuple(self._headers)

    def on_body(self, data: bytes) -> None:
        """Take a piece of the body."""
        self._body.append(data)
        self._size += len(data)
        if self._size > MAX_REPLY_BYTES and self._future is not None:
            self._reusable = False
            self.lose("protocol", f"{self._where} sent a reply of more than {MAX_REPLY_BYTES} bytes")

    def on_message_complete(self) -> None:
        """End a reply; interim ones (1xx) are skipped."""
        assert self._parser is not None  # noqa: S101  for the type checker
        status = self._parser.get_status_code()
        if status < 200:
            self._head = None
        else:
            self._complete(status, self._parser.should_keep_alive())

    def _complete(self, status: int, keep: bool) -> None:
        future, self._future = self._future, None
        if future is None:
            return
        head = self._head or ()
        now = self._ended_at = self._now()
        # a reply before the whole request is written: the server doesn't want the rest of it
        self._reusable = keep and self.open and not self._transport.get_write_buffer_size()
        if self._fresh:
            self._fresh = False
            self._lower_idle_limit(head)
        if not future.done():
            body = _unpacked(b"".join(self._body))
            # An answer is kept as it was sent; only errors quote what they were asked with.
            future.set_result(
                Reply(status, head, body if status < 300 else self._mask(body), self._sent_at, now)
            )

    def _lower_idle_limit(self, head: tuple[tuple[bytes, bytes], ...]) -> None:
        """Obey `Keep-Alive: timeout=N`. Only a connection's first reply is asked: servers don't change it."""
        for name, value in head:
            if name == b"keep-alive" and (found := _KEEP_ALIVE_TIMEOUT.search(value)):
                self.idle_s = min(self.idle_s, IDLE_SHARE * int(found[1]))

    def _ended(self, error: Exception | None) -> None:
        """Decide what the end of the connection means for the request under way."""
        if self._future is None:
            return
        if error is None and self._head is not None and not _has_length(self._head) and self._parser:
            self._complete(self._parser.get_status_code(), keep=False)
        elif self._answering:
            self.lose("cut_off", f"{self._where} closed the connection in the middle of its reply")
        else:
            self.lose("reset", f"{self._where} closed the connection before it replied")


def _unpacked(body: bytes) -> bytes:
    """Undo gzip; what is broken, or grows beyond all measure, stays as it is and is no answer."""
    if not body.startswith(_GZIP):
        return body
    unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        text = unpacker.decompress(body, MAX_REPLY_BYTES)
    except zlib.error:
        return body
    return text if unpacker.eof else body


def _has_length(head: tuple[tuple[bytes, bytes], ...]) -> bool:
    """Whether a body says itself where it ends; else it ends with the connection (RFC 9112, 6.3)."""
    return any(
        name == b"content-length" or (name == b"transfer-encoding" and value.lower().endswith(b"chunked"))
        for name, value in head
    )
