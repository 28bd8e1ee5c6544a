"""How much of an account's limit does a run use, and how often is it refused?

Question: requests (or tokens) that a server served within its limit in a minute of the steady state, as a
share of the limit, and how many it answered with 429; against a server that enforces a true sliding window.
Contenders: none of the others can be asked this over a whole job; `limiter.py` compares the limiters.
Cases: requests bind; tokens bind; a run that is killed (SIGKILL) and run again after 30 s; a second client
that uses 30% of the account unannounced; limits that only the server's headers tell.
Machine: printed with the table. Simulator, run and second client are processes of their own.

    python benchmarks/limits.py [--minutes 4] [--only CASE] [--window sliding]
"""

import argparse
import asyncio
import json
import os
import platform
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from bisect import bisect_left
from pathlib import Path

MODEL = "gpt-4o-mini"
RPM = 30_000
TPM = 9_000_000
LATENCY = ("--latency-before", "20-200", "--latency-after", "20-200")
OTHERS = 0.3
KILL_AFTER_S, AGAIN_AFTER_S = 40, 30


def body(chance, largest):
    """Make a chat request of some size."""
    words = "x" * chance.randint(40, largest)
    message = {"role": "user", "content": f"{chance.random()} {words}"}
    return {"model": MODEL, "messages": [message], "max_completion_tokens": chance.randint(1, 200)}


def write_job(path, rows, largest=800):
    chance = random.Random(rows)
    with path.open("w") as file:
        for number in range(rows):
            line = {"custom_id": f"row-{number}", "method": "POST", "url": "/v1/chat/completions"}
            file.write(json.dumps({**line, "body": body(chance, largest)}) + "\n")


class Server:
    """`batcher simulate` as a process."""

    def __init__(self, *options):
        command = [sys.executable, "-m", "batcher", "simulate", "--port", "0", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.base_url = self.process.stdout.readline().split()[-1]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()


def start(job, server, *options):
    command = [sys.executable, "-m", "batcher", "run", str(job), "--base-url", server.base_url, "--quiet"]
    environ = {**os.environ, "OPENAI_API_KEY": "none"}
    return subprocess.Popen([*command, "--json", *options], env=environ, stdout=subprocess.PIPE, text=True)


async def use_steadily(base_url, per_s, until):
    """Be the second client: so many requests a second, evenly, whatever they are answered."""
    host, port = base_url.split("/")[2].split(":")
    payload = json.dumps(body(random.Random(1), 40)).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(payload)}\r\n\r\n"
    request = head.encode() + payload

    answered = {}

    async def connection(first, every_s):
        reader, writer = await asyncio.open_connection(host, int(port))
        due = first
        while due < until:
            await asyncio.sleep(due - time.monotonic())
            writer.write(request)
            answer = await reader.readuntil(b"\r\n\r\n")
            status = answer.split()[1].decode()
            answered[status] = answered.get(status, 0) + 1
            length = next(x for x in answer.lower().split(b"\r\n") if x.startswith(b"content-length"))
            await reader.readexactly(int(length.split(b":")[1]))
            due = max(due + every_s, time.monotonic())
        writer.close()

    # So many that none is busy when its turn comes: an answer takes 0.4 s at most.
    count = int(per_s * 0.6) + 1
    now = time.monotonic()
    try:
        async with asyncio.timeout_at(asyncio.get_running_loop().time() + until - now):
            await asyncio.gather(*(connection(now + i / per_s, count / per_s) for i in range(count)))
    except (TimeoutError, asyncio.CancelledError, ConnectionError):
        pass
    print(json.dumps(answered))


async def second_client(base_url, seconds):
    task = asyncio.create_task(use_steadily(base_url, RPM / 60 * OTHERS, time.monotonic() + seconds))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await task


def read(store):
    """Return (sent at, tokens, status, error) of every attempt that left, in order."""
    with sqlite3.connect(store) as db:
        return db.execute(
            "SELECT sent_at, tokens, status, error FROM attempts JOIN settlements ON attempt = attempts.id"
            " WHERE sent_at IS NOT NULL ORDER BY sent_at"
        ).fetchall()


def steady_use(log, begin, end, limit, by_tokens):
    """Return the served share of the limit between two times."""
    served = [(at, tokens if by_tokens else 1) for at, tokens, status, _ in log if status == 200]
    return sum(cost for at, cost in served if begin <= at < end) / (end - begin) * 60 / limit


def worst_window(log, limit, by_tokens):
    """Return the largest share of the limit that left within 60 seconds."""
    times = [at for at, *_ in log]
    sums = [0]
    for _, tokens, *_ in log:
        sums.append(sums[-1] + (tokens if by_tokens else 1))
    return max(sums[bisect_left(times, at + 60)] - sums[i] for i, at in enumerate(times)) / limit


def run_case(folder, name, args):
    limit, by_tokens = (TPM, True) if name == "tokens" else (RPM, False)
    if name == "learned":
        limit = 6_000
    server_limit = ("--tpm", str(TPM)) if by_tokens else ("--rpm", str(limit))
    given = {"tokens": ("--tpm", str(TPM)), "learned": ()}.get(name, ("--rpm", str(limit)))
    share = 1 - OTHERS if name == "shared" else 1.0
    # A tokens row is some 205 + 105 tokens.
    per_minute = TPM / 210 if by_tokens else limit * share
    job = folder / f"{name}.jsonl"
    write_job(job, int(per_minute * args.minutes))
    window = "bucket" if name == "learned" else args.window
    with Server(*server_limit, "--window", window, *LATENCY) as server:
        second, others = None, {}
        if name == "shared":
            command = [sys.executable, __file__, "--second", server.base_url, str(60 * args.minutes + 30)]
            second = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        began = time.time()
        run = start(job, server, *given)
        if name == "restart":
            time.sleep(KILL_AFTER_S)
            run.send_signal(signal.SIGKILL)
            run.wait()
            time.sleep(AGAIN_AFTER_S)
            run = start(job, server, *given)
        summary = json.loads(run.communicate()[0])
        if second is not None:
            second.terminate()
            others = json.loads(second.communicate()[0])
    log = read(job.with_suffix(".db"))
    end = log[-1][0] - 1
    begin = began + (150 if name == "restart" else 75)
    refused = sum(status == 429 for _, _, status, _ in log)
    return {
        "case": name,
        "rows": summary["rows"],
        "failed": summary["failed"],
        "429": f"{refused} ({refused / len(log):.2%})",
        "used": f"{steady_use(log, begin, end, limit * share, by_tokens):.1%}",
        "whole run": f"{steady_use(log, log[0][0], log[-1][0], limit * share, by_tokens):.1%}",
        "worst 60 s": f"{worst_window(log, limit, by_tokens):.2%}",
        "the others": ", ".join(f"{count} x {status}" for status, count in sorted(others.items())) or "-",
    }


CASES = ("requests", "tokens", "restart", "shared", "learned")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4)
    parser.add_argument("--only", choices=CASES, action="append")
    parser.add_argument("--window", choices=("sliding", "bucket"), default="sliding")
    parser.add_argument("--second", nargs=2, metavar=("URL", "SECONDS"), help="be the second client")
    args = parser.parse_args()
    if args.second:
        url, seconds = args.second
        asyncio.run(second_client(url, float(seconds)))
        return
    print(f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores")
    header = False
    for name in args.only or CASES:
        with tempfile.TemporaryDirectory() as folder:
            row = run_case(Path(folder), name, args)
        if not header:
            print("| " + " | ".join(row) + " |\n|" + "---|" * len(row))
            header = True
        print("| " + " | ".join(str(value) for value in row.values()) + " |", flush=True)


if __name__ == "__main__":
    main()
