"""Real processes and real kills: the command against the simulator, SIGKILL at any moment, until it is done.

    python -m tests.crash.kills --kills 500      # some 8 minutes on two cores
    python -m tests.crash.kills --seed 17        # that job again (but what runs beside it is never the same)

A job is a seed. Its server does everything wrong now and then that time cures, and honours keys or does not;
the command is killed at random moments and at chosen ones (`failing.py`), and then run again until every row
has ended. What must hold is laid beside the server's own ledger, and beside the files of a run that nobody
disturbed.
"""

import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from decimal import Decimal
from functools import cache
from multiprocessing import Pool
from pathlib import Path

from tests.conftest import HANGS_S, environment, review_lines, simulator
from tests.crash.failing import POINTS, TIMES
from tests.crash.reports import Report, main, mode

#: What a server may do to a request that another attempt makes good, each to so large a share of them.
FAULTS = (
    *("408", "409", "key-in-progress", "429", "429-no-wait", "500", "502", "503", "503-retry-after"),
    *("503-server_is_overloaded", "504", "529", "error-string", "error-empty", "reset-before", "hang"),
    *("reset-after", "cut-off", "drip", "not-json", "content-type", "wrong-length", "empty"),
    *("error-object", "blank-lines", "failed", "queued"),
)
SHARE = 0.003
#: Dollars for a million tokens: the same in PRICES.
INPUT, OUTPUT = Decimal(1), Decimal(4)
PRICES = '{"gpt-4o-mini": {"input": 1, "output": 4}}'
#: So often a job is killed at the most, and run at the most.
KILLS, RUNS = 5, 25


class Job:
    """One job, its server, and the commands that are killed over it."""

    def __init__(self, seed, folder):
        self.chance = random.Random(seed)
        self.folder = folder
        self.honours = self.chance.random() < 0.5
        self.at_most_once = self.chance.random() < 0.4
        self.rows = self.chance.choice([60, 150, 300])
        self.path = folder / "job.jsonl"
        write_job(self.path, self.rows)
        (folder / "prices.json").write_text(PRICES)
        self.report = Report(seed, mode(self.at_most_once, self.honours))
        delivery = "at-most-once" if self.at_most_once else "at-least-once"
        self.options = [
            *("--max-inflight", self.chance.choice([5, 20, 60]), "--delivery", delivery, "--timeout", 3),
            *("--max-attempts", 10, "--prices", folder / "prices.json", "--namespace", "kills", "--json"),
        ]

    def server_options(self):
        faults = [f"--fault={name}={SHARE}" for name in FAULTS] if self.chance.random() < 0.7 else []
        keys = self.chance.choice(["honour", "keep-failures"]) if self.honours else "ignore"
        latency = ["--latency-after", "2-40"]
        return ["--seed", str(self.report.seed), *latency, "--idempotency", keys, *faults]

    def suffer(self, server):
        """Run the command, and kill it, until every row has ended; return its last summary."""
        while self.report.lives < RUNS:
            self.report.lives += 1
            code, summary = self.run(server, kill=self.report.deaths < KILLS)
            if code == -signal.SIGKILL:
                self.report.deaths += 1
            elif code in (0, 1) and not summary["pending"] and not summary["failed"]:
                return summary
            elif code not in (0, 1):
                raise AssertionError(f"exit {code}: {summary}")
        raise AssertionError(f"not done after {self.report.lives} runs")

    def run(self, server, *, kill):
        """Run the command once; return its exit code and what it printed."""
        arguments = list(map(str, ["run", self.path, "--base-url", server.base_url, *self.options]))
        point = self.chance.choice([None, *POINTS]) if kill else None
        failing = []
        if point is not None:
            nth = self.chance.randint(1, max(TIMES[point] * self.rows // 400, 1))
            failing = ["tests.crash.failing", "SIGKILL", point, str(nth)]
        command = [sys.executable, "-m", *(failing or ["batcher"]), *arguments]
        root = Path(__file__).parents[2]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment(), cwd=root)
        if kill and point is None:
            time.sleep(self.chance.uniform(0.2, 2.5))
            process.kill()
        out, err = process.communicate(timeout=HANGS_S)
        if process.returncode == -signal.SIGKILL:
            self.report.points[point or "any time"] += 1
            return process.returncode, None
        if "Traceback" in err:
            raise AssertionError(err)
        return process.returncode, json.loads(out)


def write_job(path, rows):
    path.write_text("".join(json.dumps(line) + "\n" for line in review_lines(rows)))


@cache
def undisturbed(rows):
    """Return the results of a job that nobody disturbs."""
    with tempfile.TemporaryDirectory() as folder, simulator() as server:
        path = Path(folder) / "job.jsonl"
        write_job(path, rows)
        command = [
            sys.executable,
            "-m",
            "batcher",
            "run",
            str(path),
            "--base-url",
            server.base_url,
            "--quiet",
        ]
        subprocess.run(command, check=True, env=environment(), timeout=HANGS_S)
        return (Path(folder) / "job.results.jsonl").read_bytes()


def check(job, summary, ledger):
    """Make sure that every promise holds."""
    attempts = read_attempts(job)
    answers = Counter(each["key"] for each in attempts if each["billed"] == "yes")
    # What the server said again is certain after all: it was in doubt, and its answer has come.
    doubts = Counter(each["key"] for each in attempts if each["billed"] in ("maybe", "replayed"))
    bills = {each["key"]: each for each in ledger["entries"]}
    check_files(job, summary)
    assert max(answers.values(), default=0) <= 1, "answered twice"
    assert answers.keys() <= bills.keys(), "on the bill, and never billed"
    for key, bill in bills.items():
        assert bill["times"] <= answers[key] + doubts[key], f"billed and not on the bill: {bill}"
    if job.honours or job.at_most_once:
        assert ledger["billed_twice"] == 0, f"{ledger['billed_twice']} billed twice"
    settled = sum(price(bills[key]) / bills[key]["times"] for key in answers)
    assert Decimal(summary["cost_usd"]) == settled, f"the bill is {summary['cost_usd']} and not {settled}"
    paid = sum(map(price, bills.values()))
    most = settled + Decimal(summary["in_doubt_cost_usd_max"])
    assert settled <= paid <= most, f"the ledger's {paid} is not within {settled} to {most}"
    if job.honours and not job.at_most_once:
        assert settled == paid, f"the bill is {settled}, the server's {paid}"
    report = job.report
    report.rows, report.attempts = summary["rows"], len(attempts)
    report.in_doubt = sum(each["in_doubt"] for each in summary["by_model"].values())
    report.in_doubt_rows = summary["in_doubt"]
    report.billed_again = ledger["billed"] - len(bills)


def check_files(job, summary):
    """The files are those of an undisturbed run, but for rows in doubt."""
    calm = undisturbed(job.rows).splitlines(keepends=True)
    results, errors = ((job.folder / f"job.{name}.jsonl").read_bytes() for name in ("results", "errors"))
    doubted = [json.loads(line)["custom_id"] for line in errors.splitlines()]
    assert job.at_most_once or not doubted, f"in doubt at least once: {doubted}"
    assert len(doubted) == summary["in_doubt"] == summary["rows"] - summary["succeeded"]
    names = [json.loads(line)["custom_id"] for line in calm]
    assert doubted == [name for name in names if name in set(doubted)], "the errors are not in order"
    kept = [line for line, name in zip(calm, names, strict=True) if name not in set(doubted)]
    assert results == b"".join(kept), "the results differ"
    again = subprocess.run(
        [sys.executable, "-m", "batcher", "status", job.path, "--json"],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=HANGS_S,
        check=True,
    )
    status = json.loads(again.stdout)
    assert (status["cost_usd"], status["in_doubt"]) == (summary["cost_usd"], summary["in_doubt"])


def read_attempts(job):
    log = job.folder / "attempts.jsonl"
    command = [sys.executable, "-m", "batcher", "export", job.path, "--attempts", log]
    subprocess.run(command, check=True, env=environment(), timeout=HANGS_S, capture_output=True)
    return [json.loads(line) for line in log.read_bytes().splitlines()]


def price(bill):
    return (bill["prompt_tokens"] * INPUT + bill["completion_tokens"] * OUTPUT) / 1_000_000


def torment(seed):
    """See one job through; its report says what is broken, if anything is."""
    with tempfile.TemporaryDirectory() as folder:
        job = Job(seed, Path(folder))
        try:
            with simulator(*job.server_options()) as server:
                summary = job.suffer(server)
                check(job, summary, server.ledger())
        except Exception as problem:  # noqa: BLE001  whatever it is, it is told with its seed
            job.report.broken = f"{type(problem).__name__}: {problem}"
        return job.report


def torment_until(kills, first, processes):
    """See jobs through until so many kills have been survived; yield their reports."""
    survived = 0
    with Pool(processes) as pool:
        for report in pool.imap_unordered(torment, range(first, first + kills)):
            survived += report.deaths
            yield report
            if survived >= kills:
                pool.terminate()
                return


if __name__ == "__main__":
    main("kills", 500, torment, torment_until)
