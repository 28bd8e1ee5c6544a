"""A disk that fills up in the middle: the run stops, what was written stays, and the next run goes on."""

import resource
import subprocess
import sys

from tests.conftest import HANGS_S, environment
from tests.crash.full_disk import ROWS as ROWS_OF_EACH
from tests.crash.full_disk import fill_all
from tests.crash.universes import explore_full_disk

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
        options = [str(job), "--base-url", server.base_url, "--max-inflight", "50", "--grace", "1s"]
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


def test_a_disk_of_any_size_keeps_what_was_committed_and_the_next_run_goes_on():
    # `make crash` tries every size.
    filled, ledger = fill_all([3, 9, 14, 40, 85], processes=2)
    assert [each for each in filled if each.broken] == []
    assert [each.code for each in filled] == [3, 3, 3, 3, 0]
    assert 0 < filled[2].kept < filled[3].kept < ROWS_OF_EACH
    assert (ledger["billed"], ledger["billed_twice"]) == (len(filled) * ROWS_OF_EACH, 0)


def test_a_statement_that_the_disk_refuses_whichever_it_is_loses_nothing_committed():
    for statement in range(1, 90):
        for count in (1, 10_000):
            report = explore_full_disk(statement, count)
            assert report.broken == "", (statement, count)
