"""A disk that is full from the n-th write on, for every n: the run stops, and the next one goes on.

    python -m tests.crash.full_disk            # every page that a small job writes: some minutes

No file of the process may grow beyond so many pages (RLIMIT_FSIZE): to SQLite a write that fails is a write
that fails. The last sizes are large enough.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import HANGS_S, environment, review_lines, simulator

ROWS = 40
PAGE = 4096
#: Where the whole of the job has room, in pages.
ENOUGH = 85


@dataclass
class Filled:
    """What became of a job on a disk of so many pages."""

    pages: int
    code: int
    kept: int
    said: str
    broken: str = ""


def fill(pages, server):
    """Run the job with so little room, and again with enough; say what became of it."""
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder) / "job.jsonl"
        lines = review_lines(ROWS, seed=pages)
        job.write_text("".join(json.dumps(line) + "\n" for line in lines))
        command = [sys.executable, "-m", "batcher", "run", str(job), "--base-url", server.base_url]
        command += ["--max-inflight", "4", "--rpm", "60000", "--grace", "0.5", "--json", "--quiet"]
        first = run(command, pages * PAGE)
        again = run(command, resource.RLIM_INFINITY)
        filled = Filled(pages, first.returncode, 0, first.stderr.strip())
        results = (Path(folder) / "job.results.jsonl").read_bytes().splitlines()
    try:
        summary = json.loads(again.stdout)
        filled.kept = summary["already_done"]
        assert first.returncode in (0, 3), first.stderr
        assert (first.returncode == 0) == (first.stderr == ""), first.stderr
        assert len(first.stderr.splitlines()) <= 1, first.stderr
        assert json.loads(first.stdout)["stopped"] is None or first.returncode == 3
        assert again.returncode == 0, again.stderr
        assert summary["succeeded"] == ROWS
        assert [json.loads(line)["custom_id"] for line in results] == [line["custom_id"] for line in lines]
    except (AssertionError, ValueError) as problem:
        filled.broken = f"{type(problem).__name__}: {problem}"
    return filled


def run(command, largest):
    def limit_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))

    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment(),
        timeout=HANGS_S,
        preexec_fn=limit_files,
        check=False,
    )


def fill_all(sizes, processes=1):
    """Fill disks of all these sizes; return what became of each, and the server's ledger."""
    with simulator() as server, ThreadPoolExecutor(processes) as threads:
        filled = list(threads.map(lambda pages: fill(pages, server), sizes))
        return filled, server.ledger("/ledger")


def main():
    filled, ledger = fill_all(range(1, ENOUGH + 1), len(os.sched_getaffinity(0)))
    for each in filled:
        if each.broken:
            print(f"{each.pages} pages: {each.broken}")
    stopped = [each for each in filled if each.code == 3]
    print(
        f"{len(filled)} sizes of disk, {len(stopped)} of them too small; {ledger['billed']} billed for "
        f"{len(filled) * ROWS} rows, {ledger['billed_twice']} twice; "
        f"{sum(bool(each.broken) for each in filled)} broken"
    )
    sys.exit(any(each.broken for each in filled) or ledger["billed_twice"] > 0)


if __name__ == "__main__":
    main()
