"""How fast is a whole durable job, and what does a row cost?

Question: rows per second, microseconds of CPU per row (every thread of the client) and peak memory of a job
of chat requests: parsed, keyed, admitted, claimed durably, sent, judged, settled durably, written out.
Contenders: `batcher run`; `bare wire` (the same requests through our transport alone: no limits, no store, no
retries, nothing written down); `openai loop` (a semaphore of 256 over the official client: what most scripts
are; a twentieth of the rows, since it is slow).
Machine: printed with the table. The simulator has a core of its own; medians of alternated runs.

    python benchmarks/run.py [--rows 50000] [--bytes 500] [--runs 3]
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SERVER_CORE = max(0, (os.cpu_count() or 1) - 1)
FEWER = 20


def write_job(path, rows, size):
    """Write a job whose lines have about `size` bytes."""
    empty = len(json.dumps(line(0, "")))
    with path.open("w") as file:
        for number in range(rows):
            file.write(json.dumps(line(number, "x" * (size - empty - 12))) + "\n")


def line(number, text):
    body = {
        "model": "gpt-4o-mini",
        "messages": [{"role": "user", "content": f"{number} {text}"}],
        "max_completion_tokens": 16,
    }
    return {"custom_id": f"row-{number:08d}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def batcher(job, base_url):
    """Be `batcher run`."""
    os.execv(  # the process that is measured
        sys.executable,
        [sys.executable, "-m", "batcher", "run", str(job), "--base-url", base_url, "--quiet", "--json"],
    )


def bare_wire(job, base_url):
    """Send the rows through the transport, 1,000 at a time, and forget the replies."""
    import uvloop

    from batcher.clock import SystemClock
    from batcher.request import Claimed, Request, Row
    from batcher.transport.endpoint import Endpoint
    from batcher.transport.wire import Wire

    async def main():
        wire = Wire(Endpoint.from_environment(base_url, os.environ), SystemClock())
        lines = enumerate(job.open("rb"))

        async def sender():
            for number, raw in lines:
                body = json.dumps(json.loads(raw)["body"], separators=(",", ":")).encode()
                request = Request(
                    (Row(number, b"k" * 16, ""),), f"{number}", "", "", "/v1/chat/completions", body, 0, 0
                )
                await wire.send(Claimed(number, request, 1, 0), lambda _: None)

        await asyncio.gather(*(sender() for _ in range(1000)))
        await wire.aclose()

    uvloop.run(main())


def openai_loop(job, base_url):
    """Do what a script does."""
    import openai

    async def main():
        client = openai.AsyncOpenAI(base_url=base_url)
        gate = asyncio.Semaphore(256)

        async def one(body):
            async with gate:
                return await client.chat.completions.create(**body)

        bodies = [json.loads(raw)["body"] for raw in job.open()]
        await asyncio.gather(*map(one, bodies))

    asyncio.run(main())


CONTENDERS = {"batcher run": batcher, "bare wire": bare_wire, "openai loop": openai_loop}


def measure(name, job):
    """Run a contender in a process of its own; return (wall s, CPU s, peak MB)."""
    simulator = subprocess.Popen(
        ["taskset", "-c", str(SERVER_CORE), sys.executable, "-m", "batcher", "simulate", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        base_url = simulator.stdout.readline().split()[-1]
        began = time.perf_counter()
        with tempfile.TemporaryFile() as output:
            child = subprocess.Popen(
                [sys.executable, __file__, "--be", name, "--job", str(job), "--at", base_url],
                stdout=output,
                env={**os.environ, "OPENAI_API_KEY": "benchmark"},
            )
            _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - began
        if status:
            raise SystemExit(f"{name} failed with status {status}")
    finally:
        simulator.terminate()
        simulator.wait()
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--bytes", type=int, default=500)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", choices=CONTENDERS)
    parser.add_argument("--be", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--at", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.be:
        CONTENDERS[options.be](options.job, options.at)
        return
    names = [options.only] if options.only else list(CONTENDERS)
    figures = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        for run in range(options.runs):
            for name in names:
                rows = options.rows // FEWER if name == "openai loop" else options.rows
                job = Path(folder) / f"{name.replace(' ', '-')}-{run}.jsonl"
                write_job(job, rows, options.bytes)
                wall, cpu, peak = measure(name, job)
                figures[name].append((rows / wall, cpu / rows * 1e6, peak))
                for left in job.parent.glob(f"{job.stem}*"):
                    left.unlink()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, ", end="")
    print(f"{options.rows:,} rows of {options.bytes} bytes, medians of {options.runs} runs\n")
    print(f"{'':12}  {'rows/s':>8}  {'CPU us/row':>10}  {'peak MB':>8}  {'CPU/first':>9}")
    first = None
    for name in names:
        rate, cpu, peak = (statistics.median(each) for each in zip(*figures[name], strict=True))
        first = first or cpu
        print(f"{name:12}  {rate:8,.0f}  {cpu:10.1f}  {peak:8.0f}  {cpu / first:9.2f}")


if __name__ == "__main__":
    main()
