"""What every `Transport` promises, whichever way it sends.

An implementation takes part by a *rig*: a function that returns an async context manager, which yields
`(transport, server)`.

    rig(behaviours, *, timeout_s=30.0)

`behaviours` says what the requests meet, in order; the last one goes on for ever. A rig has to know the few
below, and nothing of how they look on a wire. To add an implementation, write its rig and name it in `RIGS`.
"""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import anyio
import pytest
import trustme

from batcher.clock import SystemClock
from batcher.request import Claimed, Landed, Lost, Reply, Transport
from batcher.testing import MemoryTransport
from batcher.transport.endpoint import Endpoint
from batcher.transport.wire import Wire
from tests.transport.servers import Talk, claimed, serving, unused_port

pytestmark = pytest.mark.anyio


@dataclass(frozen=True)
class Answer:
    """A whole reply. `body=None` answers with the request's own body."""

    status: int = 200
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes | None = None


@dataclass(frozen=True)
class Hang:
    """The request is read and never answered."""


@dataclass(frozen=True)
class Reset:
    """The request is read, and the connection closed before a byte of the reply."""


@dataclass(frozen=True)
class CutOff:
    """The reply breaks off in the middle of its body."""


@dataclass(frozen=True)
class Refuse:
    """No connection can be made: nothing leaves. Only ever alone."""


Behaviour: TypeAlias = Answer | Hang | Reset | CutOff | Refuse


class Rig(Protocol):
    """See the module."""

    def __call__(
        self, behaviours: Sequence[Behaviour], *, timeout_s: float = 30.0
    ) -> AbstractAsyncContextManager[Transport]: ...


def _wire_rig(scheme: str) -> Rig:
    @contextlib.asynccontextmanager
    async def rig(behaviours: Sequence[Behaviour], *, timeout_s: float = 30.0) -> AsyncIterator[Transport]:
        async with contextlib.AsyncExitStack() as stack:
            port = unused_port()
            if behaviours != [Refuse()]:
                tls = _server_tls() if scheme == "https" else None
                port = (await stack.enter_async_context(serving(_acting(behaviours), tls))).port
            endpoint = Endpoint.parse(
                f"{scheme}://127.0.0.1:{port}/v1", {"Authorization": "Bearer sk-hidden"}
            )
            transport = Wire(endpoint, SystemClock(), timeout_s=timeout_s)
            stack.push_async_callback(transport.aclose)
            yield transport

    return rig


def _acting(behaviours: Sequence[Behaviour]) -> Callable[[Talk], Awaitable[None]]:
    left = list(behaviours)

    async def act(talk: Talk) -> None:
        while request := await talk.request():
            behaviour = left.pop(0) if len(left) > 1 else left[0]
            if isinstance(behaviour, Answer):
                body = request[1] if behaviour.body is None else behaviour.body
                lines = [b"HTTP/1.1 %d X" % behaviour.status, b"Content-Length: %d" % len(body)]
                lines += [name + b": " + value for name, value in behaviour.headers]
                await talk.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)
            elif isinstance(behaviour, CutOff):
                await talk.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", pause_s=0.01)
                talk.close()
            elif isinstance(behaviour, Reset):
                talk.close()

    return act


AUTHORITY = trustme.CA()


def _server_tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert("127.0.0.1").configure_cert(context)
    return context


@contextlib.asynccontextmanager
async def _memory_rig(
    behaviours: Sequence[Behaviour], *, timeout_s: float = 30.0
) -> AsyncIterator[Transport]:
    left = list(behaviours)

    def answer(claimed: Claimed, now: float) -> Landed:
        behaviour = left.pop(0) if len(left) > 1 else left[0]
        match behaviour:
            case Answer(status, headers, body):
                lowered = tuple((name.lower(), value) for name, value in headers)
                body = claimed.request.body if body is None else body
                return Reply(status, lowered, body, now, now + 0.01)
            case Hang():
                return Lost(True, "timeout", "nothing came", now, now + timeout_s)
            case Refuse():
                return Lost(False, "connect", "nobody listens", None, now + 0.01)
            case Reset() | CutOff():
                kind = "reset" if isinstance(behaviour, Reset) else "cut_off"
                return Lost(True, kind, "the connection ended", now, now + 0.01)

    transport = MemoryTransport(answer, SystemClock())
    yield transport
    await transport.aclose()


RIGS = {"wire": _wire_rig("http"), "wire over TLS": _wire_rig("https"), "memory": _memory_rig}


@pytest.fixture(params=RIGS)
def rig(request, tmp_path, monkeypatch):
    AUTHORITY.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    return RIGS[request.param]


@pytest.fixture(params=[True, False], ids=["uvloop", "asyncio"])
def anyio_backend(request):
    return "asyncio", {"use_uvloop": request.param}


def nothing(_claimed):
    pass


@pytest.mark.parametrize("status", [200, 400, 429, 500, 503])
async def test_a_reply_comes_as_it_was_sent_whatever_it_says(rig, status):
    answer = Answer(status, ((b"X-Request-Id", b"req-1"), (b"x-two", b"a"), (b"X-TWO", b"b")), b'{"n":1}\xff')
    async with rig([answer]) as transport:
        reply = await transport.send(claimed(), nothing)
    assert isinstance(reply, Reply), reply
    assert (reply.status, reply.body) == (status, b'{"n":1}\xff')
    ours = [pair for pair in reply.headers if pair[0].startswith(b"x-")]
    assert ours == [(b"x-request-id", b"req-1"), (b"x-two", b"a"), (b"x-two", b"b")]
    assert reply.header(b"x-two") == "a"
    assert reply.sent_at <= reply.ended_at


async def test_sent_is_told_once_and_before_the_reply(rig):
    events = []
    async with rig([Answer()]) as transport:
        for number in (1, 2):
            await transport.send(claimed(number), lambda attempt: events.append(("sent", attempt.id)))
            events.append(("landed", number))
    assert events == [("sent", 1), ("landed", 1), ("sent", 2), ("landed", 2)]


async def test_each_of_many_at_once_gets_its_own_reply(rig):
    bodies = [b'{"n":%d}' % number for number in range(150)]
    async with rig([Answer()]) as transport:
        replies = await asyncio.gather(*(transport.send(claimed(body=body), nothing) for body in bodies))
    assert [reply.body for reply in replies] == bodies


@pytest.mark.parametrize(
    ("behaviour", "kind"), [(Reset(), "reset"), (CutOff(), "cut_off"), (Hang(), "timeout")], ids=str
)
async def test_what_left_and_has_no_whole_reply_is_lost_and_left(rig, behaviour, kind):
    calls = []
    async with rig([behaviour, Answer()], timeout_s=0.5) as transport:
        lost = await transport.send(claimed(1), calls.append)
        after = await transport.send(claimed(2), nothing)
    assert isinstance(lost, Lost), lost
    assert (lost.left, lost.kind) == (True, kind)
    assert lost.sent_at is not None
    assert lost.sent_at <= lost.ended_at
    assert [each.id for each in calls] == [1]
    assert isinstance(after, Reply), after


async def test_what_finds_no_server_never_left(rig):
    async with rig([Refuse()]) as transport:
        losses = [await transport.send(claimed(), pytest.fail) for _ in range(2)]
    for lost in losses:
        assert isinstance(lost, Lost), lost
        assert (lost.left, lost.kind, lost.sent_at) == (False, "connect", None)


async def test_a_reason_is_one_line_without_a_credential(rig):
    for behaviour in (Reset(), CutOff(), Refuse()):
        async with rig([behaviour]) as transport:
            lost = await transport.send(claimed(), nothing)
        assert lost.reason
        assert "\n" not in lost.reason
        assert "sk-hidden" not in repr(lost)


async def test_abort_ends_all_that_is_under_way_and_tells_what_left(rig):
    left, landed, some_left = set(), {}, anyio.Event()

    def sent(attempt):
        left.add(attempt.id)
        some_left.set()

    async def one(number):
        landed[number] = await transport.send(claimed(number), sent)

    async with rig([Hang()]) as transport, anyio.create_task_group() as tasks:
        for number in range(100):
            tasks.start_soon(one, number)
        await some_left.wait()
        transport.abort()
    assert len(landed) == 100
    for number, lost in landed.items():
        assert isinstance(lost, Lost), lost
        assert (lost.kind, lost.left) == ("closed", number in left)


async def test_after_abort_it_can_be_used(rig):
    async with rig([Hang(), Answer()]) as transport, anyio.create_task_group() as tasks:
        tasks.start_soon(transport.send, claimed(1), nothing)
        await anyio.sleep(0.1)
        transport.abort()
        assert isinstance(await transport.send(claimed(2), nothing), Reply)


async def test_cancellation_is_raised_and_the_next_request_is_not_disturbed(rig):
    async with rig([Hang(), Answer()]) as transport:
        with anyio.move_on_after(0.1) as scope:
            await transport.send(claimed(1), nothing)
        assert scope.cancelled_caught
        reply = await transport.send(claimed(2, b'{"second":1}'), nothing)
    assert isinstance(reply, Reply), reply
    assert reply.body == b'{"second":1}'


async def test_cancelled_before_it_is_sent_it_never_leaves(rig):
    async with rig([Answer()]) as transport:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await transport.send(claimed(1), pytest.fail)
        assert scope.cancelled_caught
        assert isinstance(await transport.send(claimed(2), nothing), Reply)


async def test_once_closed_nothing_leaves(rig):
    async with rig([Answer()]) as transport:
        await transport.send(claimed(1), nothing)
        await transport.aclose()
        lost = await transport.send(claimed(2), pytest.fail)
        await transport.aclose()
    assert (lost.left, lost.kind) == (False, "closed")
