"""How many chat requests a second does the simulator answer on one core?

Question: is the simulator fast enough that it is never what a benchmark of batcher measures? The issue asks
for over 15,000 requests/s on one core, with limits and ledger on and no latency.
Contenders: the simulator with everything off, with limits, with keys that are all new, with keys that are
all replayed, and with faults.
Machine: the simulator is pinned to one core and this load generator (asyncio.Protocol and httptools, on
uvloop) to another: it needs two. CPU is the simulator's own, user and system, all threads.

    python benchmarks/simulator.py [--requests N] [--connections N]
"""

import argparse
import asyncio
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import httptools
import orjson
import uvloop

LIMITS = ["--rpm", "100000000", "--tpm", "100000000000"]
CONTENDERS = [
    ("nothing on", [], "none"),
    ("limits", LIMITS, "none"),
    ("limits, new keys", LIMITS, "new"),
    ("limits, sliding, new keys", [*LIMITS, "--window", "sliding"], "new"),
    ("limits, replayed keys", LIMITS, "same"),
    ("limits, new keys, faults", [*LIMITS, "--fault", "429=1%", "--fault", "500=1%"], "new"),
]


class Load:
    """Hands out requests until there are none, and knows when the last answer is in."""

    def __init__(self, total: int, keys: str) -> None:
        self.left = self.waiting = total
        self.keys = keys
        self.done = asyncio.get_running_loop().create_future()
        self.bad = 0

    def next(self) -> bytes | None:
        if not self.left:
            return None
        self.left -= 1
        body = orjson.dumps(
            {
                "model": "gpt-4o-mini",
                "messages": [
                    {"role": "system", "content": "Answer positive, negative or neutral. One word."},
                    {"role": "user", "content": f"Row {self.left}: " + "a fine film, if a little long. " * 5},
                ],
                "max_tokens": 16,
            }
        )
        key = b""
        if self.keys != "none":
            name = self.left if self.keys == "new" else self.left % 1000
            if self.keys == "same":
                body = body.replace(b"Row %d:" % self.left, b"Row %d:" % name)
            key = b"Idempotency-Key: %064d\r\n" % name
        return (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer sk-test\r\n"
            b"Content-Type: application/json\r\n%bContent-Length: %d\r\n\r\n%b" % (key, len(body), body)
        )

    def landed(self, status: int) -> None:
        self.bad += status != 200
        self.waiting -= 1
        if not self.waiting:
            self.done.set_result(None)


class Client(asyncio.Protocol):
    def __init__(self, load: Load) -> None:
        self.load = load
        self.parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.send()

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        self.load.landed(self.parser.get_status_code())
        self.send()

    def send(self) -> None:
        request = self.load.next()
        if request:
            self.transport.write(request)


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


async def drive(port: int, total: int, connections: int, keys: str) -> tuple[float, int]:
    loop = asyncio.get_running_loop()
    load = Load(total, keys)
    started = time.perf_counter()
    clients = [
        await loop.create_connection(lambda: Client(load), "127.0.0.1", port) for _ in range(connections)
    ]
    await asyncio.wait_for(load.done, 120)
    elapsed = time.perf_counter() - started
    for transport, _ in clients:
        transport.abort()
    return elapsed, load.bad


def measure(
    options: list[str], keys: str, total: int, connections: int
) -> tuple[float, float, float, float, int]:
    command = [sys.executable, "-m", "batcher", "simulate", "--port", "0", *options]
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, preexec_fn=lambda: os.sched_setaffinity(0, {cores[-1]})
    )
    try:
        port = int(server.stdout.readline().rsplit(":", 1)[1].split("/")[0])
        for part in (total // 10, total):  # the first is a warm-up
            cpu_before = cpu_s(server.pid)
            own_before = time.process_time()
            elapsed, bad = uvloop.run(drive(port, part, connections, keys))
        cpu = cpu_s(server.pid) - cpu_before
        own = time.process_time() - own_before
        return total / elapsed, cpu / elapsed, cpu / total * 1e6, own / elapsed, bad, resident_mb(server.pid)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--connections", type=int, default=256)
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[0]})
    print(f"{platform.machine()}, {len(cores)} cores, Python {platform.python_version()}")
    print(
        f"{arguments.requests:,} chat requests, {arguments.connections} connections, simulator on one core\n"
    )
    print(f"{'contender':<28}{'requests/s':>11}{'ratio':>7}{'CPU share':>11}{'CPU us/request':>16}", end="")
    print(f"{'load CPU':>10}{'not 200':>9}{'MB':>6}")
    first = None
    for name, options, keys in CONTENDERS:
        rate, share, each_us, own, bad, memory = measure(
            options, keys, arguments.requests, arguments.connections
        )
        first = first or rate
        print(f"{name:<28}{rate:>11,.0f}{rate / first:>7.2f}{share:>11.0%}{each_us:>16.1f}", end="")
        print(f"{own:>10.0%}{bad:>9,}{memory:>6.0f}", flush=True)
