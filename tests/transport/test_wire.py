"""What our client makes of servers that misbehave, each in one way (the contract: `tests/conformance`)."""

import asyncio
import contextlib
import gzip
import logging
import ssl

import pytest
import trustme

import batcher.transport.connection
import batcher.transport.wire
from batcher.clock import SystemClock
from batcher.errors import ConfigurationError
from batcher.request import Lost, Reply
from batcher.transport.endpoint import Endpoint
from batcher.transport.wire import Wire
from tests.transport.servers import answering, claimed, echo, ok, serving, unused_port

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[True, False], ids=["uvloop", "asyncio"])
def anyio_backend(request):
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture(autouse=True)
def _quick_sweep(monkeypatch):
    monkeypatch.setattr(batcher.transport.wire, "SWEEP_S", 0.05)


@contextlib.asynccontextmanager
async def wire_to(port, scheme="http", host="127.0.0.1", headers=None, **options):
    transport = Wire(Endpoint.parse(f"{scheme}://{host}:{port}/v1", headers), SystemClock(), **options)
    try:
        yield transport
    finally:
        await transport.aclose()


def nothing(_claimed):
    pass


async def exchange(answer, times=1, **options):
    """Send some requests, one after the other, to a server that answers so."""
    async with serving(answer) as server, wire_to(server.port, **options) as wire:
        return [await wire.send(claimed(number + 1), nothing) for number in range(times)], server


# bodies

CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5;ext=1\r\nhello\r\n1\r\n \r\n5\r\nworld\r\n0\r\nTrailer: late\r\n\r\n"
)
WHOLE = {
    "sized": (ok(b"hello world"),),
    "sized, nothing": (ok(b""),),
    "chunked": (CHUNKED,),
    "chunked in odd splits": (CHUNKED[:9], CHUNKED[9:40], CHUNKED[40:55], CHUNKED[55:61], CHUNKED[61:]),
    "chunked byte by byte": tuple(CHUNKED[at : at + 1] for at in range(len(CHUNKED))),
    "sized byte by byte": tuple(bytes([byte]) for byte in ok(b"hello world")),
    "no body": (b"HTTP/1.1 204 No Content\r\n\r\n",),
    "not modified": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",),
    "interim first": (
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 103 Early\r\nA: b\r\n\r\n" + ok(b"hello world"),
    ),
    "blank lines first": (b"\r\n\r\n", b"\r\n" + ok(b"hello world")),
}


@pytest.mark.parametrize("name", WHOLE)
async def test_a_whole_reply_leaves_the_connection_for_the_next(name):
    replies, server = await exchange(answering(*WHOLE[name]), times=3)
    body = b"" if name in ("sized, nothing", "no body", "not modified") else b"hello world"
    for reply in replies:
        assert isinstance(reply, Reply), reply
        assert reply.body == body
        assert b"trailer" not in dict(reply.headers)
        assert b"a" not in dict(reply.headers)
    assert server.connections == 1


async def test_a_body_without_a_length_ends_with_the_connection():
    async def answer(talk):
        await talk.request()
        await talk.write(b"HTTP/1.1 200 OK\r\nX-A: 1\r\n\r\nhello", b" world")
        talk.close()

    replies, server = await exchange(answer, times=2)
    assert [reply.body for reply in replies] == [b"hello world"] * 2
    assert server.connections == 2


@pytest.mark.parametrize("status", [b"200 OK", b"400 Bad"])
async def test_a_body_that_is_packed_though_nobody_asked_is_unpacked_and_masked(status):
    packed = gzip.compress(b'{"said": "sk-credential-1"}')
    reply = b"HTTP/1.1 %b\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % (status, len(packed))
    headers = {"Authorization": "Bearer sk-credential-1"}
    async with serving(answering(reply + packed)) as server, wire_to(server.port, headers=headers) as wire:
        got = await wire.send(claimed(), nothing)
    assert got.body == (b'{"said": "sk-credential-1"}' if got.status == 200 else b'{"said": "***"}')


@pytest.mark.parametrize("broken", [b"\x1f\x8b", b"\x1f\x8bgarbage", gzip.compress(b"hello", mtime=0)[:-4]])
async def test_a_packed_body_that_is_broken_stays_as_it_is(broken):
    replies, _ = await exchange(answering(ok(broken)))
    assert replies[0].body == broken


async def test_a_body_that_never_ends_is_given_up(monkeypatch):
    monkeypatch.setattr(batcher.transport.connection, "MAX_REPLY_BYTES", 100_000)

    async def answer(talk):
        await talk.request()
        await talk.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            await talk.write(b"3e8\r\n" + b" " * 1000 + b"\r\n")

    replies, _ = await exchange(answer)
    assert isinstance(replies[0], Lost)
    assert (replies[0].left, replies[0].kind) == (True, "protocol")
    assert "more than 100000 bytes" in replies[0].reason
    bomb = gzip.compress(b" " * 200_000)
    replies, _ = await exchange(answering(ok(bomb)))
    assert replies[0].body == bomb


async def test_a_large_body_goes_and_comes_whole():
    body = b"x" * 20_000_000
    async with serving(echo) as server, wire_to(server.port) as wire:
        reply = await wire.send(claimed(body=body), nothing)
        assert reply.body == body


async def test_the_request_is_what_the_server_reads():
    seen = []

    async def answer(talk):
        while request := await talk.request():
            seen.append(request)
            await talk.write(ok())

    async with serving(answer) as server, wire_to(server.port, headers={"Authorization": "Bearer k"}) as wire:
        await wire.send(claimed(7, b'{"a":1}'), nothing)
    (head, body) = seen[0]
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /v1/chat/completions HTTP/1.1"
    for line in (
        f"Host: 127.0.0.1:{server.port}",
        "Authorization: Bearer k",
        "Content-Type: application/json",
        "Idempotency-Key: key-7",
        "Content-Length: 7",
    ):
        assert lines.count(line) == 1
    assert body == b'{"a":1}'


# replies that end badly


async def _reset(talk):
    await talk.request()
    talk.reset()


async def _close(talk):
    await talk.request()
    talk.close()


def _then(end, *parts):
    async def answer(talk):
        await talk.request()
        await talk.write(*parts, pause_s=0.01)
        getattr(talk, end)()

    return answer


SIZED = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhell"
BAD = {
    "reset before a byte": (_reset, "reset"),
    "closed before a byte": (_close, "reset"),
    "closed in the head": (_then("close", b"HTTP/1.1 200 O"), "cut_off"),
    "closed after an interim reply": (_then("close", b"HTTP/1.1 100 Continue\r\n\r\n"), "cut_off"),
    "sized, cut off": (_then("close", SIZED), "cut_off"),
    "sized, reset": (_then("reset", SIZED), "cut_off"),
    "chunked, cut off": (_then("close", CHUNKED[:-10]), "cut_off"),
    "without a length, reset": (_then("reset", b"HTTP/1.1 200 OK\r\n\r\nhell"), "cut_off"),
    "garbage": (answering(b"SSH-2.0-OpenSSH_9.2\r\n"), "protocol"),
    "bad chunk": (answering(CHUNKED.replace(b"1\r\n ", b"zz\r\n ")), "protocol"),
    "bad length": (answering(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"), "protocol"),
    "length and chunks": (answering(CHUNKED.replace(b"\r\n", b"\r\nContent-Length: 3\r\n", 1)), "protocol"),
    "another protocol": (
        answering(b"HTTP/1.1 101 S\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"),
        "protocol",
    ),
}


@pytest.mark.parametrize("name", BAD)
async def test_a_reply_that_ends_badly_is_lost_and_may_have_counted(name):
    answer, kind = BAD[name]
    (lost, again), server = await exchange(answer, times=2, headers={"Authorization": "Bearer sk-hidden"})
    assert isinstance(lost, Lost), lost
    assert (lost.left, lost.kind) == (True, kind)
    assert lost.sent_at is not None
    assert lost.sent_at <= lost.ended_at
    assert f"127.0.0.1:{server.port}" in lost.reason
    assert "\n" not in lost.reason
    assert "sk-hidden" not in repr(lost)
    assert isinstance(again, Lost)
    assert server.connections == 2


# what may be used again


@pytest.mark.parametrize(
    "reply",
    [
        ok(b"fine", b"Connection: close\r\n"),
        ok(b"fine").replace(b"1.1", b"1.0"),
        ok(b"fine") + b"junk",
        ok(b"fine") + b"HTTP/1.1 200 OK\r\nConte",
        ok(b"fine") + ok(b"nobody asked"),
    ],
    ids=["close", "1.0", "junk", "half a reply", "another reply"],
)
async def test_a_connection_in_doubt_gives_its_reply_and_is_closed(reply):
    async def answer(talk):
        while await talk.request():
            await talk.write(reply)

    replies, server = await exchange(answer, times=3)
    assert [reply.body for reply in replies] == [b"fine"] * 3
    assert server.connections == 3


async def test_a_connection_that_the_server_closes_while_idle_is_not_used():
    async def answer(talk):
        await talk.request()
        await talk.write(ok())
        talk.close()

    async with serving(answer) as server, wire_to(server.port) as wire:
        for _ in range(3):
            assert isinstance(await wire.send(claimed(), nothing), Reply)
            await asyncio.sleep(0.02)
        assert server.connections == 3


async def test_bytes_on_an_idle_connection_close_it():
    async def answer(talk):
        while await talk.request():
            await talk.write(ok(b"1"))
            await asyncio.sleep(0.01)
            await talk.write(ok(b"unasked"))

    async with serving(answer) as server, wire_to(server.port) as wire:
        assert (await wire.send(claimed(), nothing)).body == b"1"
        await asyncio.sleep(0.05)
        assert (await wire.send(claimed(), nothing)).body == b"1"
        assert server.connections == 2


@pytest.mark.parametrize(
    ("extra", "idle_s"), [(b"", 0.1), (b"Keep-Alive: max=100, timeout=0\r\n", 60.0)], ids=["ours", "theirs"]
)
async def test_a_connection_is_closed_when_it_was_idle_for_too_long(extra, idle_s):
    async with serving(answering(ok(extra=extra))) as server, wire_to(server.port, idle_s=idle_s) as wire:
        await wire.send(claimed(), nothing)
        assert server.open == 1
        await asyncio.sleep(0.25)
        assert server.open == 0
        assert isinstance(await wire.send(claimed(), nothing), Reply)
        assert server.connections == 2


async def test_a_reply_before_the_request_is_written_is_kept_and_its_connection_is_not():
    async def answer(talk):
        await talk.reader.readuntil(b"\r\n\r\n")
        await talk.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")

    async with serving(answer) as server, wire_to(server.port) as wire:
        for _ in range(2):
            reply = await wire.send(claimed(body=b"x" * 20_000_000), nothing)
            assert reply.status == 413
        assert server.connections == 2


# how many connections


async def test_connections_are_no_more_than_allowed_and_serve_whoever_waits():
    async def answer(talk):
        while request := await talk.request():
            await asyncio.sleep(0.01)
            await talk.write(ok(request[1]))

    async with serving(answer) as server, wire_to(server.port, max_connections=3) as wire:
        bodies = [b"%d" % number for number in range(20)]
        replies = await asyncio.gather(*(wire.send(claimed(body=body), nothing) for body in bodies))
        assert [reply.body for reply in replies] == bodies
        assert server.connections == 3


async def test_a_connection_that_comes_free_serves_the_one_that_waits_for_another_to_open():
    async with serving(echo) as server, wire_to(server.port, max_connections=500) as wire:
        replies = await asyncio.gather(*(wire.send(claimed(), nothing) for _ in range(500)))
        assert {type(reply) for reply in replies} == {Reply}
        # one each if nobody shared; how many more than MAX_OPENING depends on how busy the machine is
        assert server.connections <= 250


async def test_requests_in_line_time_out_unsent():
    async def answer(talk):
        await talk.request()

    calls = []
    async with serving(answer) as server, wire_to(server.port, max_connections=1, timeout_s=0.125) as wire:
        first, second = await asyncio.gather(*(wire.send(claimed(n), calls.append) for n in (1, 2)))
    assert (first.left, first.kind) == (True, "timeout")
    assert (second.left, second.kind, second.sent_at) == (False, "timeout", None)
    assert [each.id for each in calls] == [1]


# connections that never come


async def test_a_name_that_does_not_exist():
    async with wire_to(80, host="nonexistent.invalid") as wire:
        lost = await wire.send(claimed(), nothing)
    assert (lost.left, lost.kind) == (False, "dns")
    assert lost.reason.startswith("the name of nonexistent.invalid:80 can't be resolved: ")


async def test_a_refused_connection():
    port = unused_port()
    async with wire_to(port) as wire:
        lost = await wire.send(claimed(), pytest.fail)
    assert lost.reason == f"can't connect to 127.0.0.1:{port}: Connection refused"
    assert (lost.left, lost.kind, lost.sent_at) == (False, "connect", None)


async def test_every_address_of_a_name_is_tried():
    async with serving(echo) as server, wire_to(server.port, host="localhost") as wire:
        wire._dialer._addresses = [
            (2, 1, 6, "", ("127.0.0.1", unused_port())),
            (2, 1, 6, "", ("127.0.0.1", server.port)),
        ]
        wire._dialer._resolved_at = SystemClock().now()
        assert isinstance(await wire.send(claimed(), nothing), Reply)
        assert wire._dialer._addresses[0][4] == ("127.0.0.1", server.port)


async def test_a_handshake_that_hangs_is_given_up():
    async def answer(talk):
        await asyncio.sleep(60)

    async with serving(answer) as server, wire_to(server.port, "https", connect_timeout_s=0.1) as wire:
        lost = await wire.send(claimed(), pytest.fail)
        assert (lost.left, lost.kind) == (False, "connect")
        assert lost.reason == f"no connection to 127.0.0.1:{server.port} within 0.1 s"


async def test_a_bug_in_dialling_is_raised_not_lost(monkeypatch):
    async with wire_to(1) as wire:

        async def broken(factory):
            raise ZeroDivisionError

        monkeypatch.setattr(wire._dialer, "dial", broken)
        with pytest.raises(ZeroDivisionError):
            await wire.send(claimed(), nothing)


@pytest.mark.parametrize("times", [1, 2])
async def test_an_error_of_the_callback_is_raised_and_closes_the_connection(times):
    def broken(_claimed):
        raise ZeroDivisionError

    async with serving(echo) as server, wire_to(server.port) as wire:
        if times == 2:
            await wire.send(claimed(), nothing)
        with pytest.raises(ZeroDivisionError):
            await wire.send(claimed(), broken)
        assert isinstance(await wire.send(claimed(), nothing), Reply)
        assert server.connections == 2


# TLS


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def trusted(authority, tmp_path, monkeypatch):
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))


def server_tls(authority, name):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


@pytest.mark.usefixtures("trusted")
async def test_a_private_authority_is_trusted_by_ssl_cert_file(authority):
    tls = server_tls(authority, "127.0.0.1")
    async with serving(echo, tls) as server, wire_to(server.port, "https") as wire:
        for body in (b"1", b"x" * 3_000_000):
            assert (await wire.send(claimed(body=body), nothing)).body == body
        assert server.connections == 1


@pytest.mark.usefixtures("trusted")
async def test_a_certificate_for_another_name_is_refused(authority):
    tls = server_tls(authority, "other.example")
    async with serving(echo, tls) as server, wire_to(server.port, "https") as wire:
        lost = await wire.send(claimed(), pytest.fail)
    assert (lost.left, lost.kind) == (False, "tls")
    assert "not valid for '127.0.0.1'" in lost.reason


async def test_an_unknown_authority_is_refused(authority, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    tls = server_tls(authority, "127.0.0.1")
    async with serving(echo, tls) as server, wire_to(server.port, "https") as wire:
        lost = await wire.send(claimed(), pytest.fail)
    assert (lost.left, lost.kind) == (False, "tls")
    assert lost.reason == (
        f"no TLS connection to 127.0.0.1:{server.port}: its certificate is not trusted (unable to get local "
        "issuer certificate); for a private authority, set SSL_CERT_FILE"
    )


async def test_a_server_that_speaks_no_tls():
    async with serving(answering(ok())) as server, wire_to(server.port, "https") as wire:
        talk = asyncio.create_task(wire.send(claimed(), pytest.fail))
        await asyncio.sleep(0.1)
        wire.abort()
        assert not (await talk).left

    async def answer(talk):
        await talk.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with serving(answer) as server, wire_to(server.port, "https") as wire:
        lost = await wire.send(claimed(), pytest.fail)
        assert (lost.left, lost.kind) == (False, "tls")
        assert "wrong version number" in lost.reason


@pytest.mark.usefixtures("trusted")
async def test_a_certificate_file_that_is_none_is_a_configuration_error(tmp_path, monkeypatch):
    for content in (None, "no certificate"):
        path = tmp_path / "bad.pem"
        if content:
            path.write_text(content)
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
        with pytest.raises(ConfigurationError, match="SSL_CERT_FILE="):
            Wire(Endpoint.parse("https://h/v1"), SystemClock())


async def test_nothing_is_logged(caplog):
    caplog.set_level(logging.DEBUG)
    await exchange(_reset)
    await exchange(answering(b"garbage\r\n"))
    assert [record for record in caplog.records if record.name != "asyncio" or record.levelno > 10] == []


# what is cancelled, and what is late


class _Clock(SystemClock):
    ahead_s = 0.0

    def now(self):
        return super().now() + self.ahead_s


async def test_a_connection_that_was_idle_for_too_long_is_not_used_even_before_the_sweep():
    clock = _Clock()
    async with serving(echo) as server:
        wire = Wire(Endpoint.parse(f"http://127.0.0.1:{server.port}"), clock)
        await wire.send(claimed(), nothing)
        await wire.send(claimed(), nothing)
        assert server.connections == 1
        clock.ahead_s = 4.0
        await wire.send(claimed(), nothing)
        assert server.connections == 2
        await wire.aclose()


async def test_cancelling_a_request_closes_its_connection_at_once():
    async def answer(talk):
        await talk.request()
        await talk.write(ok())
        await talk.request()

    async with serving(answer) as server, wire_to(server.port) as wire:
        await wire.send(claimed(1), nothing)
        task = asyncio.create_task(wire.send(claimed(2), nothing))
        await asyncio.sleep(0.02)
        assert server.open == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.02)
        assert server.open == 0


async def test_a_cancelled_request_leaves_the_line():
    async def answer(talk):
        await talk.request()

    async with serving(answer) as server, wire_to(server.port, max_connections=1) as wire:
        tasks = [asyncio.create_task(wire.send(claimed(number), nothing)) for number in (1, 2, 3)]
        await asyncio.sleep(0.02)
        assert len(wire._waiting) == 2
        for task in tasks:
            task.cancel()
        landed = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(each) for each in landed} == {asyncio.CancelledError}
        assert not wire._waiting
