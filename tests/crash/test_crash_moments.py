"""SIGTERM and SIGINT at every stage of a run: it ends in order, and the next one goes on."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import HANGS_S, environment
from tests.crash.failing import POINTS

ROWS = 60
#: Where all that is left is to write the files, and a signal may come too late.
LATE = {"closing", "closed", "writing", "written", "replaced"}
MOMENTS = [(signal.SIGTERM, point) for point in POINTS]
MOMENTS += [(signal.SIGINT, point) for point in ("opened", "claimed", "replied", "writing")]


@pytest.fixture
def signalled(tmp_path):
    """Return a function that runs a command which is sent a signal when it passes a point."""

    def run(number, point, *arguments):
        command = [sys.executable, "-m", "tests.crash.failing", number.name, point, "1", *map(str, arguments)]
        root = Path(__file__).parents[2]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment(), timeout=HANGS_S, cwd=root, check=False
        )

    return run


@pytest.mark.parametrize(("number", "point"), MOMENTS)
def test_a_signal_at_any_stage_ends_the_run_in_order(
    batcher, server, signalled, reviews, write, tmp_path, point, number
):
    job = write(reviews(ROWS, seed=1))
    options = (job, "--base-url", server.base_url, "--max-inflight", 10, "--rpm", 60_000, "--json")
    before = server.ledger("/ledger")
    stopped = signalled(number, point, "run", *options)
    assert stopped.returncode in ((0, 130) if point in LATE else (130,)), stopped.stderr
    assert "Traceback" not in stopped.stderr
    summary = json.loads(stopped.stdout)
    assert (summary["stopped"] is None) == (stopped.returncode == 0)
    assert summary["rows"] in (0, ROWS)

    ended = batcher("run", *options, "--quiet")
    assert (ended.code, ended.json["succeeded"]) == (0, ROWS)
    assert [path.name for path in tmp_path.glob(".*")] == []
    ledger = server.ledger("/ledger")
    # Every test has its own store, and so its own keys.
    assert ledger["billed"] - before["billed"] == ROWS
