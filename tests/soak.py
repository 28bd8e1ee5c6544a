"""A soak: a job against a server that does everything wrong now and then, and then goes away for a while.

    python -m tests.soak                       # 20,000 rows, an outage of 20 s: about 20 minutes
    python -m tests.soak --rows 1000 --outage 3

Every fault that does not stop a job meets half a percent of the requests. The job runs twice with the same
seed: as fast as it goes, and with half of that as the rate limit. Each row must end, with its own answer or
for a fault that is its own, the same both times, and the bill must be the server's.
"""

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import orjson

from batcher.simulator import FAULT_NAMES
from tests.conftest import environment, review_lines, simulator

URL = "/v1/chat/completions"
#: What stops a job: no soak can go through it.
STOPS = {"401", "402", "403", "redirect", *(name for name in FAULT_NAMES if name.startswith("429-"))} - {
    "429-no-wait",
    "429-slow_down",
}
SHARE = 0.005
#: The codes of rows that may fail: what the server refuses for good. All else is cured by time.
REFUSED = {"bad_request", "context_length_exceeded", "content_filter", "too_large", "not_found"}
#: Of a fault that meets a request five times in a row there may be one in 20,000 rows.
MAX_ATTEMPTS = 10


class Soaked(NamedTuple):
    """What became of a job."""

    code: int
    summary: dict
    #: custom_id -> its answer's text, or its error's code.
    ends: dict
    ledger: dict
    stderr: str


def soak(folder: Path, rows: int, outage_s: float, seed: int, rpm: int | None = None) -> Soaked:
    """Run the job once, in this folder."""
    folder.mkdir()
    job = folder / "job.jsonl"
    job.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in review_lines(rows)))
    script = folder / "outage.jsonl"
    script.write_text(json.dumps({"fault": "503", "at_s": 2, "for_s": outage_s}))
    limit = [] if rpm is None else ["--rpm", str(rpm)]
    faults = [f"--fault={name}={SHARE}" for name in FAULT_NAMES if name not in STOPS]
    options = ["--seed", str(seed), "--latency-after", "20-100", "--faults", str(script), *faults, *limit]
    with simulator(*options) as server:
        command = [sys.executable, "-m", "batcher", "run", str(job), "--base-url", server.base_url, *limit]
        command += ["--namespace", "soak", "--timeout", "5", "--max-attempts", str(MAX_ATTEMPTS), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
        ledger = server.ledger()
    ends = {}
    for line in (folder / "job.results.jsonl").read_bytes().splitlines():
        result = orjson.loads(line)
        ends[result["custom_id"]] = result["response"]["body"]["id"]
    for line in (folder / "job.errors.jsonl").read_bytes().splitlines():
        error = orjson.loads(line)
        ends[error["custom_id"]] = error["error"]["code"]
    return Soaked(done.returncode, json.loads(done.stdout), ends, ledger, done.stderr)


def check(soaked: Soaked, rows: int) -> None:
    """Raise `AssertionError` where anything was lost, mixed up, failed in vain or paid twice."""
    summary, ledger = soaked.summary, soaked.ledger
    assert soaked.code in (0, 1), soaked.stderr
    assert "Traceback" not in soaked.stderr
    lines = {line["custom_id"]: line["body"] for line in review_lines(rows)}
    assert soaked.ends.keys() == lines.keys()
    assert (summary["succeeded"] + summary["failed"], summary["pending"]) == (rows, 0)
    answered = {name: end for name, end in soaked.ends.items() if end.startswith("chatcmpl-")}
    assert len(answered) == summary["succeeded"]
    digests = {name: digest(lines[name]) for name in answered}
    assert answered == {name: f"chatcmpl-{each}" for name, each in digests.items()}
    failures = Counter(end for end in soaked.ends.values() if not end.startswith("chatcmpl-"))
    assert failures == summary["by_error"]
    # 500 with x-should-retry: false is the one server error that no attempt may follow.
    assert set(failures) <= REFUSED | {"server_error"}
    assert failures["server_error"] == summary["failed"] - sum(failures[code] for code in REFUSED)
    assert ledger["billed_twice"] == 0
    settled = [entry for entry in ledger["entries"] if entry["body"] in set(digests.values())]
    assert len(settled) == len(answered)
    assert sum(entry["prompt_tokens"] for entry in settled) == summary["prompt_tokens"]
    assert sum(entry["completion_tokens"] for entry in settled) == summary["completion_tokens"]
    # What else was billed are rows whose answer was lost, and that were refused when they went again.
    others = len(ledger["entries"]) - len(settled)
    assert others <= summary["by_model"]["gpt-4o-mini"]["in_doubt"]


def digest(body: dict) -> str:
    """Name a request as the simulator names its answer."""
    return blake2b(URL.encode() + b"\n" + orjson.dumps(body), digest_size=16).hexdigest()


def main() -> None:
    """Soak twice and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--outage", type=float, default=20.0, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with TemporaryDirectory() as folder:
        began = time.monotonic()
        free = soak(Path(folder) / "free", given.rows, given.outage, given.seed)
        rpm = int(free.summary["requests"] / (time.monotonic() - began - given.outage) * 60 / 2)
        limited = soak(Path(folder) / "limited", given.rows, given.outage, given.seed, rpm)
    for name, soaked in (("free", free), (f"{rpm} RPM", limited)):
        check(soaked, given.rows)
        summary = soaked.summary
        print(
            f"{name}: exit {soaked.code}, {summary['succeeded']} succeeded, {summary['failed']} failed "
            f"({summary['by_error']}), {summary['requests']} requests, {summary['elapsed_s']} s; "
            f"billed {soaked.ledger['billed']}, twice {soaked.ledger['billed_twice']}, "
            f"faults {sum(soaked.ledger['faults'].values())}"
        )
    assert free.ends == limited.ends
    print(f"each of {given.rows} rows ended the same both times")


if __name__ == "__main__":
    main()
