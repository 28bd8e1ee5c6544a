"""A disk that fills up in the middle: the run stops, what was written stays, and the next run goes on."""

import resource
import subprocess
import sys

from tests.conftest import HANGS_S, environment

ROWS = 1500
#: No file may grow beyond this, in bytes: to SQLite a write that fails is a write that fails.
LARGEST = 700_000


def limit_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST, LARGEST))


def test_a_write_that_fails_stops_the_run_and_the_next_one_goes_on(
    batcher, serve, reviews, write, lines, tmp_path
):
    rows = reviews(ROWS)
    job = write(rows)
    with serve("--latency-after", "5-20") as server:
        options = [str(job), "--base-url", server.base_url, "--max-inflight", "50"]
        command = [sys.executable, "-m", "batcher", "run", *options, "--json", "--quiet"]
        ended = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=environment(),
            timeout=HANGS_S,
            preexec_fn=limit_files,
            check=False,
        )
        assert ended.returncode == 3
        (line,) = ended.stderr.splitlines()
        assert line.startswith(f"batcher: stopped: {tmp_path / 'job.db'}")
        kept = batcher("status", job, "--json").json["succeeded"]
        assert 0 < kept < ROWS

        again = batcher("run", *options, "--json", "--quiet")
        ledger = server.ledger()
    assert (again.code, again.json["succeeded"], again.json["already_done"]) == (0, ROWS, kept)
    assert (ledger["billed"], ledger["billed_twice"]) == (ROWS, 0)
    results = lines(tmp_path / "job.results.jsonl")
    assert [line["custom_id"] for line in results] == [row["custom_id"] for row in rows]
