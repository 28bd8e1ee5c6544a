"""Opening a connection: name, TCP and TLS, and a plain word for what went wrong."""

import asyncio
import os
import socket
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import truststore

from batcher.clock import Clock
from batcher.errors import ConfigurationError
from batcher.transport.endpoint import Endpoint

#: How long an answer of the name service is used. Thousands of connections then cost a few questions.
RESOLVE_EVERY_S = 30.0
#: How long one address may take while others are untried: a host's IPv6 address may lead nowhere.
PATIENCE_S = 2.0
#: How long a closing TLS connection waits for the server's goodbye.
TLS_GOODBYE_S = 1.0

P = TypeVar("P", bound=asyncio.Protocol)
_Address: TypeAlias = tuple[socket.AddressFamily, socket.SocketKind, int, str, Any]


class DialError(Exception):
    """No connection came of it: `kind` and `reason` are those of `Lost`."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


class Dialer:
    """Opens connections to one endpoint: `await Dialer(endpoint, clock).dial(Protocol)`.

    It has no timeout: whoever awaits it cancels it.
    """

    def __init__(self, endpoint: Endpoint, clock: Clock) -> None:
        self._endpoint = endpoint
        self._clock = clock
        self._tls = tls_context() if endpoint.scheme == "https" else None
        self._addresses: list[_Address] = []
        self._resolved_at = 0.0
        self._lookup: asyncio.Task[list[_Address]] | None = None

    async def dial(self, factory: Callable[[], P]) -> P:
        """Open one connection and return its protocol; `DialError` if that can't be."""
        where = self._endpoint.address
        try:
            addresses = await self._resolve()
        except OSError as error:
            raise DialError("dns", f"the name of {where} can't be resolved: {_plain(error)}") from None
        try:
            sock = await self._connect(addresses)
        except OSError as error:
            self._addresses = []  # they may be out of date
            raise DialError("connect", f"can't connect to {where}: {_plain(error)}") from None
        try:
            return await self._start(factory, sock)
        except OSError as error:
            sock.close()
            raise DialError("tls", f"no TLS connection to {where}: {_plain(error)}") from None

    async def _resolve(self) -> list[_Address]:
        """Return the addresses, in the order to try: one question however many connections ask."""
        if self._addresses and self._clock.now() - self._resolved_at < RESOLVE_EVERY_S:
            return self._addresses
        if self._lookup is None or self._lookup.done():
            self._lookup = asyncio.create_task(self._ask())
        return await asyncio.shield(self._lookup)

    async def _ask(self) -> list[_Address]:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(self._endpoint.host, self._endpoint.port, type=socket.SOCK_STREAM)
        self._addresses = list(found)
        self._resolved_at = self._clock.now()
        return self._addresses

    async def _connect(self, addresses: list[_Address]) -> socket.socket:
        """Connect to the first address that lets us; one that doesn't goes to the end of the list."""
        *others, last = addresses
        for address in others:
            try:
                async with asyncio.timeout(PATIENCE_S):
                    return await _tcp(address)
            except OSError:
                if addresses[0] is address:  # other dials rotate the same list
                    addresses.append(addresses.pop(0))
        return await _tcp(last)

    async def _start(self, factory: Callable[[], P], sock: socket.socket) -> P:
        loop = asyncio.get_running_loop()
        if self._tls is None:
            _, protocol = await loop.create_connection(factory, sock=sock)
        else:
            _, protocol = await loop.create_connection(
                factory,
                sock=sock,
                ssl=self._tls,
                server_hostname=self._endpoint.host,
                ssl_shutdown_timeout=TLS_GOODBYE_S,
            )
        return protocol


async def _tcp(address: _Address) -> socket.socket:
    family, kind, proto, _, where = address
    sock = socket.socket(family, kind, proto)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(sock, where)
    except BaseException:
        sock.close()
        raise
    return sock


def tls_context() -> ssl.SSLContext:
    """Return a context that verifies certificates and host names against the system's store.

    `SSL_CERT_FILE` and `SSL_CERT_DIR` are honoured everywhere. Where OpenSSL finds the store by itself
    (most Linux systems), a plain context reads it once; truststore reads the same file anew for every
    connection, which took 45 ms each with Debian's 140 certificates. Elsewhere truststore asks the system.
    """
    cert_file = os.environ.get("SSL_CERT_FILE")
    if cert_file or os.environ.get("SSL_CERT_DIR") or _openssl_finds_store():
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.set_default_verify_paths()
    else:
        context = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if cert_file:
        try:
            context.load_verify_locations(cafile=cert_file)
        except OSError as error:
            raise ConfigurationError(
                f"SSL_CERT_FILE={cert_file} can't be read as certificates: {_plain(error)}"
            ) from None
    context.set_alpn_protocols(["http/1.1"])
    return context


def _openssl_finds_store() -> bool:
    if sys.platform in ("darwin", "win32"):
        return False
    paths = ssl.get_default_verify_paths()
    return bool(paths.cafile) or bool(paths.capath and any(Path(paths.capath).iterdir()))


def _plain(error: OSError) -> str:
    """Say an error in words, without the numbers and file names that exceptions carry."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not trusted ({error.verify_message.rstrip('.')}); "
            "for a private authority, set SSL_CERT_FILE"
        )
    if isinstance(error, ssl.SSLError):
        return (error.reason or "the handshake failed").replace("_", " ").lower()
    if isinstance(error, socket.gaierror):
        return error.strerror or "no address found"
    if isinstance(error, TimeoutError) and not error.errno:
        return "no answer in time"
    return os.strerror(error.errno) if error.errno else "the server closed the connection"
