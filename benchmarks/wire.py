"""What does one request cost on the wire?

Question: requests per second, and microseconds of the client's CPU per request, at 256 and 1,000 in flight,
with requests of 350 bytes, against a server that answers at once.
Contenders: `floor` (a bare loop on asyncio.Protocol and httptools that can do nothing else: what no client
in Python gets under), `wire` (ours, plain), `wire tls`, and of `aiohttp` and `httpx2` (under the official
client) what is importable here.
Machine: printed with the table. Client and server are pinned to a core each; medians of alternated runs.

    python benchmarks/wire.py [--runs 5] [--seconds 2]
"""

import argparse
import asyncio
import contextlib
import importlib.util
import multiprocessing
import os
import platform
import ssl
import statistics
import tempfile
import time
from pathlib import Path

import anyio
import httptools
import trustme

from batcher.clock import SystemClock
from batcher.request import Claimed, Reply, Request, Row
from batcher.transport.endpoint import Endpoint
from batcher.transport.files import raise_file_limit
from batcher.transport.wire import Wire

PATH = "/v1/chat/completions"
BODY = b'{"model":"gpt-4.1-mini","messages":[{"role":"user","content":"%s"}],"max_tokens":16}' % (b"x" * 272)
ANSWER = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"gpt-4.1-mini","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"positive"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":90,"completion_tokens":1,"total_tokens":91}}'
)
REPLY = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nx-request-id: req_0123456789\r\n"
    b"x-ratelimit-remaining-requests: 9999\r\nContent-Length: %d\r\n\r\n%b" % (len(ANSWER), ANSWER)
)
CLIENT_CORE, SERVER_CORE = 0, max(0, (os.cpu_count() or 1) - 1)


class Server(asyncio.Protocol):
    """Answers every request with the same bytes."""

    def connection_made(self, transport):
        self.write = transport.write
        self.parser = httptools.HttpRequestParser(self)

    def data_received(self, data):
        self.parser.feed_data(data)

    def on_message_complete(self):
        self.write(REPLY)

    def connection_lost(self, error):  # noqa: ARG002  asyncio's signature
        self.parser = None


def serve(pipe, cert):
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setaffinity(0, {SERVER_CORE})
    raise_file_limit(4096)

    async def main():
        loop = asyncio.get_running_loop()
        plain = await loop.create_server(Server, "127.0.0.1", 0, backlog=4096)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert)
        tls = await loop.create_server(Server, "127.0.0.1", 0, ssl=context, backlog=4096)
        pipe.send([server.sockets[0].getsockname()[1] for server in (plain, tls)])
        await asyncio.Event().wait()

    anyio.run(main, backend_options={"use_uvloop": True})


class Floor(asyncio.Protocol):
    """One connection of the bare loop: the next request goes out where the last reply came in."""

    def __init__(self, count):
        self.count = count

    def connection_made(self, transport):
        self.write = transport.write
        self.parser = httptools.HttpResponseParser(self)
        self.body = b""
        self.done = None

    def data_received(self, data):
        self.parser.feed_data(data)

    def on_header(self, name, value):
        pass

    def on_body(self, data):
        self.body = data

    def on_message_complete(self):
        self.done.set_result(self.body)


async def floor(ports, inflight, enough):
    loop = asyncio.get_running_loop()
    data = Endpoint.parse("http://x/v1").head(PATH) + b"k\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
    done = [0]

    async def one():
        _, protocol = await loop.create_connection(lambda: Floor(done), "127.0.0.1", ports[0])
        async for _ in enough(done):
            protocol.done = loop.create_future()
            protocol.write(data)
            await protocol.done

    await asyncio.gather(*(one() for _ in range(inflight)))


def wire(scheme):
    async def run(ports, inflight, enough):
        endpoint = Endpoint.parse(
            f"{scheme}://localhost:{ports[scheme == 'https']}/v1", {"Authorization": "Bearer k"}
        )
        transport = Wire(endpoint, SystemClock(), max_connections=inflight)
        request = Request((Row(1, b"k" * 16, "row-1"),), "k" * 43, "default", "m", PATH, BODY, 100, None)
        claimed = Claimed(1, request, 1, 0)
        done = [0]

        def sent(claimed):
            pass

        async def one():
            async for _ in enough(done):
                landed = await transport.send(claimed, sent)
                assert type(landed) is Reply, landed

        await asyncio.gather(*(one() for _ in range(inflight)))
        await transport.aclose()

    return run


async def aiohttp(ports, inflight, enough):
    import aiohttp

    done = [0]
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=inflight)) as session:

        async def one():
            async for _ in enough(done):
                async with session.post(f"http://127.0.0.1:{ports[0]}{PATH}", data=BODY) as reply:
                    await reply.read()

        await asyncio.gather(*(one() for _ in range(inflight)))


async def httpx2(ports, inflight, enough):
    import httpx2

    done = [0]
    limits = httpx2.Limits(max_connections=inflight, max_keepalive_connections=inflight)
    async with httpx2.AsyncClient(limits=limits, timeout=60) as client:

        async def one():
            async for _ in enough(done):
                await client.post(f"http://127.0.0.1:{ports[0]}{PATH}", content=BODY)

        await asyncio.gather(*(one() for _ in range(inflight)))


def measure(contender, ports, inflight, seconds):
    """Run one contender: after a warm-up of half the time, count what completes in `seconds`."""
    marks = []

    async def enough(done):
        while True:
            now = time.perf_counter()
            if len(marks) < 2 and now >= (start + seconds / 2 if not marks else marks[0][0] + seconds):
                marks.append((now, time.process_time(), done[0]))
            if len(marks) == 2:
                return
            yield
            done[0] += 1

    start = time.perf_counter()
    anyio.run(contender, ports, inflight, enough, backend_options={"use_uvloop": True})
    (wall0, cpu0, count0), (wall1, cpu1, count1) = marks
    return (count1 - count0) / (wall1 - wall0), (cpu1 - cpu0) / max(1, count1 - count0) * 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    raise_file_limit(4096)

    authority = trustme.CA()
    folder = Path(tempfile.mkdtemp())
    authority.cert_pem.write_to_path(folder / "ca.pem")
    os.environ["SSL_CERT_FILE"] = str(folder / "ca.pem")
    cert = folder / "cert.pem"
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(cert)

    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs, cert), daemon=True)
    server.start()
    ports = ours.recv()
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setaffinity(0, {CLIENT_CORE})

    contenders = {"floor": floor, "wire": wire("http"), "wire tls": wire("https")}
    others = {"aiohttp": aiohttp, "httpx2": httpx2}
    contenders |= {name: run for name, run in others.items() if importlib.util.find_spec(name)}
    figures = {}
    for _ in range(options.runs):
        for inflight in (256, 1000):
            for name, run in contenders.items():
                # opening 1,000 connections at the wire's pace takes 2 s, and 10 s over TLS
                warm = options.seconds if name != "wire tls" or inflight < 1000 else options.seconds * 4
                figures.setdefault((inflight, name), []).append(measure(run, ports, inflight, warm))
    server.terminate()

    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, ", end="")
    print(f"{options.runs} runs of {options.seconds:g} s, medians\n")
    print(f"{'in flight':>9}  {'client':<9}  {'requests/s':>10}  {'CPU us':>7}  {'CPU/floor':>9}")
    for (inflight, name), runs in figures.items():
        rate, cpu = (statistics.median(column) for column in zip(*runs, strict=True))
        base = statistics.median(cpu for _, cpu in figures[inflight, "floor"])
        print(f"{inflight:>9}  {name:<9}  {rate:>10,.0f}  {cpu:>7.1f}  {cpu / base:>9.2f}")


if __name__ == "__main__":
    main()
