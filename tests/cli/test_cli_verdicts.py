"""Every line of the verdict table through the real command: what it does, says, logs and pays.

Where one run meets many faults, one request is under way at a time: attempt number n is what request number
n met. Every other request is answered, so that no fault looks like an outage.
"""

import json
import random
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from contextlib import contextmanager, suppress
from decimal import Decimal
from typing import NamedTuple

import pytest
from click.testing import CliRunner

from batcher.cli import cli
from batcher.rules import TABLE
from batcher.simulator.outcomes import SCRIPTABLE
from tests.conftest import HANGS_S, Finished, environment, review, simulator

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
#: What the jobs' model costs, in dollars per token.
PROMPT_USD, COMPLETION_USD = Decimal("0.15e-6"), Decimal("0.60e-6")


def label(rule):
    """Name a line of the table."""
    words = (rule.asks and "asks", rule.bare and "bare", rule.doubted and "doubted")
    return " ".join(word for word in (str(rule.status), rule.code, *words) if word)


RULES = {label(rule): rule for rule in TABLE}

QUOTAS = (
    *("insufficient_quota", "credit_balance_exhausted", "organization_spend_limit_exceeded"),
    *("project_spend_limit_exceeded", "organization_usage_limit_exceeded", "billing_hard_limit_reached"),
    "billing_not_active",
)

#: Fault -> the line of the table that it meets: `failed` and `queued` on responses, `drip` with --timeout 1.
MET = {
    "400": "4xx",
    "400-retry": "4xx",
    "400-context_length_exceeded": "400 context_length_exceeded",
    "400-content_filter": "400 content_filter",
    "401": "401",
    "402": "402",
    "402-retry-after": "402 asks",
    "403": "403",
    "404": "404",
    "408": "408",
    "409": "409",
    "key-in-progress": "409 idempotency_key_in_progress",
    "413": "413",
    "422": "4xx",
    "429": "429",
    "429-no-wait": "429",
    "429-slow_down": "429 slow_down",
    **{f"429-{code}": f"429 {code}" for code in QUOTAS},
    "500": "500",
    "500-no-retry": "500",
    "502": "502",
    "503": "503",
    "503-retry-after": "503 asks",
    "503-server_is_overloaded": "503 server_is_overloaded",
    "504": "504",
    "529": "529",
    "redirect": "3xx",
    "error-array": "4xx",
    "error-string": "500 bare",
    "error-empty": "500 bare",
    "reset-before": "reset",
    "hang": "timeout",
    "reset-after": "reset",
    "cut-off": "cut_off",
    "drip": "timeout",
    "not-json": "invalid",
    "wrong-length": "cut_off",
    "empty": "invalid",
    "error-object": "error",
    "failed": "failed",
    "queued": "unfinished",
    "refuse-connections": "unreachable",
}
#: Faults that are answers all the same.
ANSWERED = ("content-type", "blank-lines", "truncated", "filtered")

_PAGE = b"<html>a gateway's page</html>"
_ERROR = b'{"error": {"message": "no (simulated)", "type": "x", "code": "%b"}}'


def reply(status, body, lines=b""):
    """Make a whole reply."""
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n%b\r\n%b" % (status, len(body), lines, body)


_WAIT = b"retry-after-ms: 20\r\n"
_IN_PROGRESS = ("idempotency_key_in_use", "idempotency_in_progress", "request_in_progress")
_MISMATCH = (
    *("idempotency_key_reused", "idempotency_key_mismatch", "idempotency_conflict", "idempotency_mismatch"),
    "idempotency_error",
)
#: The line that no fault of the simulator's meets -> the bytes that do; what goes again unbilled is last.
RAW = {
    "400 string_above_max_length": reply(400, _ERROR % b"string_above_max_length"),
    **{
        f"{status} {code}": reply(status, _ERROR % code.encode())
        for status in (400, 409, 422)
        for code in _MISMATCH
    },
    "503 asks bare": reply(503, _PAGE, _WAIT),
    "503 bare": reply(503, _PAGE),
    "52x": reply(520, _PAGE),
    "5xx": reply(501, _ERROR % b"not_implemented"),
    "other": reply(600, _PAGE),
    "lost": b"SSH-2.0-OpenSSH_9.6\r\n",
    "503 slow_down": reply(503, _ERROR % b"slow_down"),
    "529 asks": reply(529, _ERROR % b"overloaded", _WAIT),
    **{f"409 {code}": reply(409, _ERROR % code.encode()) for code in _IN_PROGRESS},
}
#: The line that only a row meets of which an attempt was lost, and the test below that loses it.
DOUBTED = "409 doubted"
#: The lines that a signal makes, and the test below that does.
STOPPED = ("stopped", "closed")


def test_every_line_of_the_table_is_met_here_and_every_fault_meets_one():
    assert {*MET.values(), *RAW, *STOPPED, DOUBTED} == set(RULES)
    assert {*MET, *ANSWERED} == set(SCRIPTABLE)
    assert not set(MET.values()) & set(RAW)


# --- a job, and what it meets


class Job:
    """A job file in its folder, and the command."""

    def __init__(self, folder, count, path=CHAT):
        chance = random.Random(1)
        rows = [review(number, chance) for number in range(count)]
        if path == RESPONSES:
            for row in rows:
                body = row["body"]
                row["body"] = {"model": body["model"], "input": body["messages"][1]["content"]}
                row["body"]["max_output_tokens"] = 16
                row["url"] = path
        self.folder = folder
        self.file = folder / "job.jsonl"
        self.file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def command(self, base_url, *options):
        args = ("run", self.file, "--base-url", base_url, "--json", "--quiet", *options)
        return [sys.executable, "-m", "batcher", *map(str, args)]

    def run(self, base_url, *options):
        pipes = {"capture_output": True, "text": True, "timeout": HANGS_S}
        done = subprocess.run(self.command(base_url, *options), env=environment(), cwd=self.folder, **pipes)
        assert "Traceback" not in done.stderr
        return Finished(done.returncode, done.stdout, done.stderr)

    def attempts(self):
        """Export the attempts log, in this process: it saves a second's quarter for each test."""
        log = self.folder / "log.jsonl"
        done = CliRunner().invoke(cli, ["export", str(self.file), "--attempts", str(log)])
        assert done.exit_code == 0, done.output
        return _lines(log)

    def errors(self):
        """Return the errors file, by custom_id."""
        return {line["custom_id"]: line for line in _lines(self.folder / "job.errors.jsonl")}

    def results(self):
        return {line["custom_id"]: line for line in _lines(self.folder / "job.results.jsonl")}


def _lines(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


@pytest.fixture
def job(tmp_path):
    """Return a function that makes a job in the test's folder."""
    return lambda count=4, path=CHAT: Job(tmp_path, count, path)


@contextmanager
def meeting(folder, faults, first=1, step=1):
    """Start a simulator whose requests `first`, `first + step` and so on meet one of the faults each."""
    script = folder / "faults.jsonl"
    lines = [
        {"fault": fault, "after": first + step * place, "count": 1} for place, fault in enumerate(faults)
    ]
    script.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with simulator("--faults", str(script)) as server:
        yield server


def stop_line(ended):
    """Return why a run stopped; there must be one line on standard error, and it must say so."""
    assert ended.code == 3
    assert ended.err == f"batcher: stopped: {ended.json['stopped']}\n"
    assert ended.json["stopped"].isprintable()
    return ended.json["stopped"]


def check_bill(summary, ledger):
    """Tokens and cost must be what the server billed, once each."""
    tokens = ("prompt_tokens", "completion_tokens")
    assert [summary[name] for name in tokens] == [ledger[name] for name in tokens]
    assert ledger["billed_twice"] == 0
    cost = summary["prompt_tokens"] * PROMPT_USD + summary["completion_tokens"] * COMPLETION_USD
    assert Decimal(summary["cost_usd"]) == cost


def check_attempt(attempt, rule, status, billed=None):
    assert (attempt["error"], attempt["billed"]) == (rule.error, billed or rule.billed)
    assert attempt["status"] == (status or None)
    assert (attempt["prompt_tokens"], attempt["completion_tokens"]) == (0, 0)


def check_error(line, rule, status):
    assert line["error"]["code"] in (rule.error, "in_doubt")
    assert (line["error"]["code"] == "in_doubt") == ("--retry-in-doubt" in line["error"]["message"])
    assert line["error"]["message"].startswith(rule.meaning)
    assert (line["response"] or {"status_code": 0})["status_code"] == status


def check_attempts(log, rule, status):
    """All attempts must have met the same, but for one that was about to go when the run stopped."""
    for attempt in log:
        stopped = attempt["error"] == RULES["stopped"].error
        check_attempt(attempt, RULES["stopped"] if stopped else rule, 0 if stopped else status)
        assert not (stopped and attempt["sent_at"])
    assert log[0]["error"] == rule.error


class Met(NamedTuple):
    """A run that met one fault after another, every second request."""

    faults: list[str]
    ended: Finished
    log: list[dict]
    errors: dict[str, dict]
    results: dict[str, dict]
    ledger: dict | None

    def attempt(self, fault):
        """Return the attempt that met a fault, and what became of its row afterwards."""
        attempt = self.log[2 * self.faults.index(fault)]
        later = [
            each
            for each in self.log
            if each["key"] == attempt["key"] and each["attempt"] > attempt["attempt"]
        ]
        return attempt, later

    def error(self, attempt):
        """Return the line of the errors file of the row of an attempt: rows go first in their order."""
        keys = list(dict.fromkeys(each["key"] for each in self.log))
        return self.errors[f"review-{keys.index(attempt['key'])}"]


def meet(folder, faults, path, *options, step=2):
    """Run one job through all faults, one request at a time."""
    job = Job(folder, step * len(faults), path)
    with meeting(folder, faults, step=step) as server:
        ended = job.run(server.base_url, "--max-inflight", 1, *options)
        ledger = server.ledger()
    log = job.attempts()
    assert len(log) == ledger["requests"] == ended.json["requests"]
    assert ledger["faults"] == dict.fromkeys(faults, 1)
    return Met(faults, ended, log, job.errors(), job.results(), ledger)


#: What goes again, each met once. First what may be billed, so that at most once a row meets it only once.
AGAIN = [
    *("408", "error-string", "error-empty", "502", "504", "reset-before", "reset-after", "hang", "drip"),
    *("cut-off", "wrong-length", "not-json", "empty", "error-object", "failed", "queued"),
    *("409", "key-in-progress", "500", "503", "529", "400-retry"),
    *("429", "429-no-wait", "429-slow_down", "503-server_is_overloaded"),
    *("503-retry-after", "402-retry-after"),
]
#: As above, on responses: without what takes a second and is like another.
AT_MOST_ONCE = [fault for fault in AGAIN[:-2] if fault != "drip"]


def test_all_that_goes_again_is_met_here():
    elsewhere = {"500-no-retry", "refuse-connections"}
    goes_again = {fault for fault, name in MET.items() if RULES[name].action in ("again", "wait", "hold")}
    assert {*AGAIN} == (goes_again | {"400-retry"}) - elsewhere
    assert {RULES[MET[fault]].billed for fault in AGAIN[:16]} == {"maybe"}
    assert {RULES[MET[fault]].billed for fault in AGAIN[16:]} == {"no"}


def rule_of(fault, path):
    """Return the line that a fault meets."""
    return RULES["error" if path == CHAT and fault in ("failed", "queued") else MET[fault]]


def status_of(fault):
    """Return the status of what came; 0 where it was lost."""
    return 0 if MET[fault] in ("reset", "timeout", "cut_off") else SCRIPTABLE[fault].status


@pytest.fixture(scope="module")
def at_least_once(tmp_path_factory):
    """Meet everything that goes again, by default."""
    options = ("--max-attempts", 20, "--timeout", 1)
    return meet(tmp_path_factory.mktemp("again"), AGAIN, CHAT, *options)


@pytest.fixture(scope="module")
def at_most_once(tmp_path_factory):
    """Meet it where nothing is sent again that may have been billed."""
    options = ("--max-attempts", 20, "--timeout", 1, "--delivery", "at-most-once")
    return meet(tmp_path_factory.mktemp("once"), AT_MOST_ONCE, RESPONSES, *options)


# --- what goes again


def done_keys(met):
    """Return the keys of attempts whose work was done before the answer was lost."""
    return {met.attempt(fault)[0]["key"] for fault in met.faults if SCRIPTABLE[fault].works}


def test_a_run_through_all_that_goes_again_succeeds(at_least_once):
    met, summary = at_least_once, at_least_once.ended.json
    assert (met.ended.code, met.ended.err) == (0, "")
    assert (summary["succeeded"], summary["failed"], summary["in_doubt"]) == (summary["rows"], 0, 0)
    assert (summary["retries"], summary["by_error"], met.errors) == (len(AGAIN), {}, {})
    assert len(met.results) == summary["rows"]
    check_bill(summary, met.ledger)
    doubts = [each for each in met.log if each["billed"] == "maybe"]
    assert summary["by_model"]["gpt-4o-mini"]["in_doubt"] == len(doubts) > 0
    # What was done and then lost is answered with the same again: that leaves one doubt less.
    settled = Counter(each["key"] for each in met.log if each["billed"] == "replayed")
    assert settled == dict.fromkeys(done_keys(met), 1)
    assert [each["billed"] for each in met.log[1 : 2 * len(AGAIN) : 2]] == ["yes"] * len(AGAIN)


@pytest.mark.parametrize("fault", AGAIN)
def test_what_goes_again_is_answered_later(at_least_once, fault):
    attempt, later = at_least_once.attempt(fault)
    rule = rule_of(fault, CHAT)
    settled = rule.billed == "maybe" and attempt["key"] in done_keys(at_least_once)
    billed = attempt["billed"] if settled else rule.billed
    assert billed in (rule.billed, "replayed")
    check_attempt(attempt, rule, status_of(fault), billed)
    assert (later[-1]["billed"], later[-1]["status"], later[-1]["error"]) == ("yes", 200, None)
    assert [each["number"] for each in later] == [attempt["number"] + 1 + i for i in range(len(later))]


def test_a_run_at_most_once_leaves_what_may_be_billed_in_doubt(at_most_once):
    met, summary = at_most_once, at_most_once.ended.json
    doubts = [fault for fault in AT_MOST_ONCE if rule_of(fault, RESPONSES).billed == "maybe"]
    assert (met.ended.code, met.ended.err) == (1, "")
    assert (summary["in_doubt"], summary["failed"], summary["pending"]) == (len(doubts), 0, 0)
    assert summary["retries"] == len(AT_MOST_ONCE) - len(doubts)
    assert sum(summary["by_error"].values()) == len(doubts) == len(met.errors)
    assert summary["by_model"]["gpt-4o-mini"]["in_doubt"] == len(doubts)
    # What was done and then lost is on the server's bill alone, and within what may come on top.
    lost = [fault for fault in AT_MOST_ONCE if SCRIPTABLE[fault].works]
    assert met.ledger["billed"] == summary["succeeded"] + len(lost)
    billed = met.ledger["prompt_tokens"] * PROMPT_USD + met.ledger["completion_tokens"] * COMPLETION_USD
    known, most = Decimal(summary["cost_usd"]), Decimal(summary["in_doubt_cost_usd_max"])
    assert known < billed <= known + most


@pytest.mark.parametrize("fault", AT_MOST_ONCE)
def test_at_most_once_sends_again_only_what_is_not_billed(at_most_once, fault):
    rule, status = rule_of(fault, RESPONSES), status_of(fault)
    attempt, later = at_most_once.attempt(fault)
    check_attempt(attempt, rule, status)
    if rule.billed == "no":
        assert (later[-1]["billed"], later[-1]["status"]) == ("yes", 200)
        return
    assert later == []
    check_error(at_most_once.error(attempt), rule, status)


def test_at_most_once_loses_nothing_that_is_not_billed(tmp_path):
    faults = ["409", "key-in-progress", "500", "503", "529", "400-retry"]
    met = meet(tmp_path, faults, CHAT, "--delivery", "at-most-once", "--max-attempts", 20)
    assert (met.ended.code, met.ended.json["retries"], met.errors) == (0, len(faults), {})
    check_bill(met.ended.json, met.ledger)


def test_a_pool_that_waits_charges_no_row(tmp_path):
    faults = ["429", "429-no-wait", "429-slow_down", "503-server_is_overloaded"]
    # Two requests after each are answered: the one that was claimed meanwhile, and the one that goes first.
    met = meet(tmp_path, faults, CHAT, "--delivery", "at-most-once", "--max-attempts", 1, step=3)
    assert (met.ended.code, met.ended.json["retries"], met.errors) == (0, len(faults), {})
    check_bill(met.ended.json, met.ledger)


def test_a_row_that_fails_each_time_is_exhausted(job):
    job = job(3)
    with simulator("--fault", "500=100%") as server:
        ended = job.run(server.base_url, "--max-attempts", 2)
    assert (ended.code, ended.err, ended.json["by_error"]) == (1, "", {"server_error": 3})
    assert (ended.json["requests"], ended.json["retries"]) == (6, 3)
    for line in job.errors().values():
        assert line["error"]["message"].startswith(f"2 attempts, the last: {RULES['500'].meaning}")


# --- what fails

#: What the row fails for. The first request is answered: something is found there.
FAILS = [fault for fault, name in MET.items() if RULES[name].action in ("fail", "find")] + ["500-no-retry"]
FAILS.remove("400-retry")


class Failed(NamedTuple):
    """A run with one row for each fault, what it left, and the run with --retry-failed after it."""

    ended: Finished
    log: list[dict]
    errors: dict[str, dict]
    bills: list[dict]
    again: Finished
    errors_again: dict[str, dict]


@pytest.fixture(scope="module")
def failed(tmp_path_factory):
    """Meet everything that a row fails for, and try again."""
    folder = tmp_path_factory.mktemp("failed")
    job = Job(folder, len(FAILS) + 3)
    with meeting(folder, FAILS, first=2) as server:
        ended = job.run(server.base_url, "--max-inflight", 1)
        log, errors, bills = job.attempts(), job.errors(), [server.ledger()]
        again = job.run(server.base_url, "--retry-failed")
        bills.append(server.ledger())
    return Failed(ended, log, errors, bills, again, job.errors())


def test_rows_fail_and_the_others_succeed(failed):
    summary = failed.ended.json
    assert (failed.ended.code, failed.ended.err, summary["stopped"]) == (1, "", None)
    assert (summary["succeeded"], summary["failed"], summary["retries"]) == (3, len(FAILS), 0)
    words = [RULES[MET[fault]].error for fault in FAILS]
    assert summary["by_error"] == {word: words.count(word) for word in words}
    check_bill(summary, failed.bills[0])


@pytest.mark.parametrize("fault", FAILS)
def test_a_row_that_is_refused_fails_at_once(failed, fault):
    place, rule, status = FAILS.index(fault) + 1, RULES[MET[fault]], SCRIPTABLE[fault].status
    check_attempt(failed.log[place], rule, status)
    line = failed.errors[f"review-{place}"]
    check_error(line, rule, status)
    assert "(simulated)" in line["error"]["message"]
    assert line["response"]["body"] == json.loads(SCRIPTABLE[fault].body)
    assert ("must not be tried again" in line["error"]["message"]) == (fault == "500-no-retry")


def test_retry_failed_runs_them_again(failed):
    again = failed.again
    assert (again.code, again.err, failed.errors_again) == (0, "", {})
    assert (again.json["requests"], again.json["already_done"]) == (len(FAILS), 3)
    assert (again.json["succeeded"], again.json["failed"]) == (len(FAILS) + 3, 0)
    check_bill(again.json, failed.bills[1])


def test_what_is_not_found_before_anything_was_goes_again(job):
    job = job()
    with meeting(job.folder, ["404"]) as server:
        ended = job.run(server.base_url, "--max-inflight", 1)
        check_bill(ended.json, server.ledger())
    assert (ended.code, ended.json["retries"]) == (0, 1)
    check_attempt(job.attempts()[0], RULES["404"], 404)


def test_where_nothing_is_found_the_job_stops(job):
    job = job()
    with simulator("--fault", "404=100%") as server:
        ended = job.run(server.base_url)
    line = stop_line(ended)
    assert line.startswith(RULES["404"].meaning)
    assert "model" in line
    assert "--base-url" in line
    assert (ended.json["pending"], ended.json["failed"], job.errors()) == (4, 0, {})
    check_attempts(job.attempts(), RULES["404"], 404)


# --- what is an answer all the same


def test_answers_in_odd_clothes_are_answers(job):
    job = job(6)
    # Silence and slow bytes are no failure as long as --timeout allows them.
    with meeting(job.folder, [*ANSWERED, "drip"]) as server:
        ended = job.run(server.base_url, "--max-inflight", 1)
        check_bill(ended.json, server.ledger())
    assert (ended.code, ended.err, job.errors()) == (0, "", {})
    summary = ended.json
    assert (summary["succeeded"], summary["retries"]) == (6, 0)
    assert (summary["truncated"], summary["filtered"]) == (1, 1)
    results = job.results()
    reasons = [line["response"]["body"]["choices"][0]["finish_reason"] for line in results.values()]
    assert reasons == ["stop", "stop", "length", "content_filter", "stop", "stop"]
    assert {(each["billed"], each["status"], each["error"]) for each in job.attempts()} == {
        ("yes", 200, None)
    }


def test_responses_that_end_early_are_counted(job):
    job = job(3, RESPONSES)
    with meeting(job.folder, ["truncated", "filtered"]) as server:
        ended = job.run(server.base_url)
        check_bill(ended.json, server.ledger())
    assert (ended.code, ended.json["truncated"], ended.json["filtered"]) == (0, 1, 1)


# --- what everything waits for

#: A fault for each line that holds the endpoint or a pool: if nothing else comes, --max-stall ends the run.
STALLS = (
    *("reset-before", "hang", "cut-off", "502", "503", "504", "529"),
    *("429-no-wait", "429-slow_down", "503-retry-after", "503-server_is_overloaded", "402-retry-after"),
)


@pytest.mark.parametrize("fault", STALLS)
def test_what_lasts_ends_the_run_and_no_row(job, fault):
    rule, job = RULES[MET[fault]], job(3)
    with simulator("--fault", f"{fault}=100%") as server:
        # It may be charged once, before it is known to last: then never again.
        options = ("--max-stall", "0.6", "--timeout", "0.3" if fault == "hang" else "10")
        ended = job.run(server.base_url, "--max-attempts", 2, *options)
        check_bill(ended.json, {**server.ledger(), "prompt_tokens": 0, "completion_tokens": 0})
    line = stop_line(ended)
    assert line.startswith(rule.meaning)
    assert "--max-stall" in line
    assert (ended.json["pending"], ended.json["failed"], ended.json["in_doubt"]) == (3, 0, 0)
    assert job.errors() == {}
    check_attempts(job.attempts(), rule, status_of(fault))


def test_nobody_listens(job):
    job, rule = job(3), RULES["unreachable"]
    script = job.folder / "faults.jsonl"
    script.write_text('{"fault": "refuse-connections", "at_s": 0}\n')
    with simulator("--faults", str(script)) as server:
        ended = job.run(server.base_url, "--max-stall", "0.6", "--max-attempts", 2)
    line = stop_line(ended)
    assert line.startswith(rule.meaning)
    assert str(server.port) in line
    assert "--max-stall" in line
    assert (ended.json["pending"], ended.json["failed"]) == (3, 0)
    # What was on its way when it began is reset; then nothing leaves.
    log = job.attempts()
    left = [each for each in log if each["sent_at"] is not None]
    check_attempts(left, RULES["reset"], 0)
    check_attempts([each for each in log if each not in left], rule, 0)


# --- what stops the job

HALTS = [fault for fault, name in MET.items() if RULES[name].action == "halt"]


@pytest.mark.parametrize("faults", [HALTS[i : i + 4] for i in range(0, len(HALTS), 4)], ids=", ".join)
def test_what_stops_the_job_keeps_what_was_done_and_what_was_not(job, faults):
    """The same command, again and again: each run gets one row on, until the server does well."""
    job = job(6)
    with meeting(job.folder, faults, first=2, step=2) as server:
        for done, fault in enumerate(faults, 1):
            rule = RULES[MET[fault]]
            ended = job.run(server.base_url, "--max-inflight", 1)
            check_bill(ended.json, server.ledger())
            line = stop_line(ended)
            assert line.startswith(rule.meaning)
            assert ("http://elsewhere.invalid/" in line) == (fault == "redirect")
            summary = ended.json
            assert (summary["succeeded"], summary["pending"], summary["failed"]) == (done, 6 - done, 0)
            assert (summary["already_done"], summary["requests"]) == (done - 1, 2)
            assert list(job.results()) == [f"review-{number}" for number in range(done)]
            assert job.errors() == {}
        log = job.attempts()
        rest = job.run(server.base_url)
        check_bill(rest.json, server.ledger())
    # What was about to go when the job stopped did not.
    sent = [each for each in log if each["sent_at"] is not None]
    for attempt in log:
        if attempt not in sent:
            check_attempt(attempt, RULES["stopped"], 0)
    for attempt, fault in zip(sent[1::2], faults, strict=True):
        check_attempt(attempt, RULES[MET[fault]], status_of(fault))
    assert (rest.code, rest.err) == (0, "")
    assert (rest.json["succeeded"], rest.json["already_done"]) == (6, len(faults))


# --- what no fault of the simulator's does: a server of a few lines


@contextmanager
def raw_server(replies, step=2):
    """Give request number 1 the first of the replies, number 3 the next and so on, and answer the others."""
    message = {"role": "assistant", "content": "fine"}
    usage = {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}
    answer = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}
    fine = reply(200, json.dumps(answer).encode())
    script = {step * place + 1: what for place, what in enumerate(replies)}
    number = 0

    def talk(connection):
        nonlocal number
        with connection, suppress(OSError), connection.makefile("rb") as file:
            while head := file.readline():
                length = 0
                while head.strip():
                    if head.lower().startswith(b"content-length:"):
                        length = int(head.split(b":")[1])
                    head = file.readline()
                file.read(length)
                number += 1
                connection.sendall(script.get(number, fine))

    def accept():
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connection.settimeout(HANGS_S)
                threading.Thread(target=talk, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(HANGS_S)


def meet_raw(folder, *options):
    """Run one job through all raw replies, one request at a time."""
    job = Job(folder, 2 * len(RAW))
    with raw_server(list(RAW.values())) as base_url:
        ended = job.run(base_url, "--max-inflight", 1, "--max-attempts", 20, *options)
    return Met(list(RAW), ended, job.attempts(), job.errors(), job.results(), None)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Meet what the simulator does not do, in both modes."""
    return {
        mode: meet_raw(tmp_path_factory.mktemp(mode), "--delivery", mode)
        for mode in ("at-least-once", "at-most-once")
    }


@pytest.mark.parametrize("name", RAW)
def test_what_other_servers_do(raw, name):
    rule = RULES[name]
    status = 0 if name == "lost" else int(RAW[name].split()[1])
    for mode, met in raw.items():
        attempt, later = met.attempt(name)
        check_attempt(attempt, rule, status)
        if rule.action == "fail" or (mode == "at-most-once" and rule.billed == "maybe"):
            assert later == []
            check_error(met.error(attempt), rule, status)
        else:
            assert (later[-1]["billed"], later[-1]["status"]) == ("yes", 200)


def test_a_run_through_what_other_servers_do(raw):
    maybe = [name for name in RAW if RULES[name].billed == "maybe"]
    fails = [name for name in RAW if RULES[name].action == "fail"]
    for mode, met in raw.items():
        summary, lost = met.ended.json, len(maybe) if mode == "at-most-once" else 0
        assert (met.ended.code, met.ended.err) == (1, "")
        assert (summary["failed"], summary["in_doubt"], summary["pending"]) == (len(fails), lost, 0)
        assert summary["retries"] == len(RAW) - len(fails) - lost
        assert summary["by_model"]["gpt-4o-mini"]["in_doubt"] == len(maybe)
        assert summary["prompt_tokens"] == 10 * summary["succeeded"] == 10 * len(met.results)


def test_a_conflict_after_a_lost_attempt_is_waited_out_free_of_charge(job):
    job = job(1)
    conflict = reply(409, _ERROR % b"conflict", _WAIT)
    with raw_server([RAW["lost"], *[conflict] * 4], step=1) as base_url:
        ended = job.run(base_url, "--max-attempts", 2)
    assert (ended.code, ended.err, ended.json["retries"]) == (0, "", 5)
    lost, *waits, answered = job.attempts()
    check_attempt(lost, RULES["lost"], 0)
    for attempt in waits:
        check_attempt(attempt, RULES[DOUBTED], 409)
    assert answered["billed"] == "yes"
    # This server does not say that it gives the same answer again: it may have made another one.
    assert ended.json["by_model"]["gpt-4o-mini"]["in_doubt"] == 1


def test_a_failure_that_is_only_said_again_is_asked_for_under_another_key(job):
    job = job(1)
    failures = [reply(500, _ERROR % b"x"), reply(500, _ERROR % b"x", b"Idempotent-Replayed: true\r\n")]
    with raw_server(failures, step=1) as base_url:
        ended = job.run(base_url)
    assert (ended.code, ended.err, ended.json["retries"]) == (0, "", 2)
    first, second, third = (each["key"] for each in job.attempts())
    assert first == second != third


def test_an_interrupted_run_says_what_was_sent_and_what_never_left(job):
    job = job(6)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        # The queue holds one connection that nobody accepts; the others never get that far.
        listener.listen(0)
        base_url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        command = job.command(base_url, "--grace", 0, "--rpm", 60_000)
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment()) as process:
            try:
                listener.settimeout(HANGS_S)
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(HANGS_S)
                    assert connection.recv(1).startswith(b"P")
                    process.send_signal(signal.SIGINT)
                    out, err = process.communicate(timeout=HANGS_S)
            finally:
                process.kill()
    ended = Finished(process.returncode, out, err)
    assert ended.code == 130
    assert ended.err == f"batcher: stopped: {ended.json['stopped']}\n"
    assert (ended.json["pending"], ended.json["failed"], ended.json["in_doubt"]) == (6, 0, 0)
    log = job.attempts()
    assert {each["error"] for each in log} == {RULES[name].error for name in STOPPED}
    for attempt in log:
        left = attempt["sent_at"] is not None
        check_attempt(attempt, RULES["closed" if left else "stopped"], 0)
    doubts = [each for each in log if each["billed"] == "maybe"]
    assert ended.json["by_model"]["gpt-4o-mini"]["in_doubt"] == len(doubts)
