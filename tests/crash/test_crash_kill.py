"""SIGKILL at any moment: nothing is lost, nothing settled is sent again, the files come out the same."""

import csv
import random
import time

import pytest

import batcher as library

ROWS = 2000
FEWER_ROWS = 1000
IN_FLIGHT = 200


@pytest.fixture
def killed_thrice(launch, kill):
    """Run a job, kill it three times on the way; return how many rows were settled at each death."""

    def run(server, job, rows, seed, *options):
        chance, settled = random.Random(seed), []
        for share in sorted(chance.uniform(0.1, 0.9) for _ in range(3)):
            with launch("run", job, "--base-url", server.base_url, *options) as running:
                server.wait_for(int(share * rows), running)
                time.sleep(chance.uniform(0, 0.03))
                kill(running)
            settled.append(library.status(job).succeeded)
        return settled

    return run


def attempts(batcher, job, log):
    assert batcher("export", job, "--attempts", log).code == 0
    with log.open(newline="") as file:
        return list(csv.DictReader(file))


def test_killed_three_times_the_files_are_those_of_a_run_that_never_was(
    batcher, serve, faults, killed_thrice, server, reviews, write, tmp_path
):
    rows = reviews(ROWS)
    calm = write(rows, "calm.jsonl")
    assert batcher("run", calm, "--base-url", server.base_url, "--max-inflight", IN_FLIGHT).code == 0

    job = write(rows)
    options = ("--max-inflight", IN_FLIGHT)
    with serve(*faults, "--latency-after", "5-30", "--seed", "1") as faulty:
        settled = killed_thrice(faulty, job, ROWS, 1, *options)
        before = faulty.requests()
        ended = batcher("run", job, "--base-url", faulty.base_url, *options, "--json")
        ledger = faulty.ledger()
    assert ended.code == 0
    for name in ("results", "errors"):
        ours, theirs = (tmp_path / f"{base}.{name}.jsonl" for base in ("job", "calm"))
        assert ours.read_bytes() == theirs.read_bytes()

    # What was settled is not sent again: all that the server saw of the last run is rows that were not.
    assert settled == sorted(settled)
    assert 0 < settled[0] < settled[-1] < ROWS
    summary = ended.json
    assert summary["already_done"] == settled[-1]
    assert summary["requests"] == ledger["requests"] - before == ROWS - settled[-1] + summary["retries"]
    answered = set()
    for attempt in attempts(batcher, job, tmp_path / "attempts.csv"):
        assert attempt["key"] not in answered
        if attempt["billed"] == "yes":
            answered.add(attempt["key"])
    assert len(answered) == ROWS

    assert (ledger["billed"], ledger["billed_twice"]) == (ROWS, 0)
    assert summary["prompt_tokens"] == ledger["prompt_tokens"]
    assert summary["completion_tokens"] == ledger["completion_tokens"]


def test_an_edited_job_sends_exactly_what_is_new(batcher, server, reviews, write, lines, tmp_path):
    rows = reviews(ROWS)
    job = write(rows)
    options = ("--base-url", server.base_url, "--max-inflight", IN_FLIGHT, "--json", "--quiet")
    first = batcher("run", job, *options).json

    edited = [dict(row) for row in rows]
    edited[70] = {**edited[70], "body": {**edited[70]["body"], "max_completion_tokens": 3}}
    del edited[1500]
    (added,) = reviews(1, seed=99)
    edited.append({**added, "custom_id": "review-new"})
    random.Random(5).shuffle(edited)
    write(edited)
    before = server.requests()
    ended = batcher("run", job, *options)
    assert ended.code == 0
    assert server.requests() - before == ended.json["requests"] == 2
    assert (ended.json["rows"], ended.json["succeeded"], ended.json["already_done"]) == (ROWS, ROWS, ROWS - 2)
    # The deleted row and the old text stay on the bill.
    assert ended.json["prompt_tokens"] > first["prompt_tokens"]

    results = lines(tmp_path / "job.results.jsonl")
    assert [line["custom_id"] for line in results] == [row["custom_id"] for row in edited]
    fresh = write(edited, "fresh.jsonl")
    assert batcher("run", fresh, *options).code == 0
    assert (tmp_path / "job.results.jsonl").read_bytes() == (tmp_path / "fresh.results.jsonl").read_bytes()

    # Back to the first file: nothing is new, and the deleted row's answer is there again.
    write(rows)
    again = batcher("run", job, *options).json
    assert (again["requests"], again["rows"], again["succeeded"]) == (0, ROWS, ROWS)
    assert [line["custom_id"] for line in lines(tmp_path / "job.results.jsonl")] == [
        row["custom_id"] for row in rows
    ]


def test_without_honoured_keys_what_is_billed_twice_was_in_doubt(
    batcher, serve, killed_thrice, reviews, write
):
    job = write(reviews(FEWER_ROWS))
    options = ("--max-inflight", 100)
    with serve("--idempotency", "ignore", "--latency-after", "5-30") as server:
        killed_thrice(server, job, FEWER_ROWS, 3, *options)
        ended = batcher("run", job, "--base-url", server.base_url, *options, "--json")
        ledger = server.ledger()
    assert (ended.code, ended.json["succeeded"]) == (0, FEWER_ROWS)
    doubts = ended.json["by_model"]["gpt-4o-mini"]["in_doubt"]
    assert 0 < ledger["billed_twice"] <= ledger["billed"] - FEWER_ROWS <= doubts <= 3 * 100


def test_at_most_once_nothing_is_paid_twice_and_a_person_decides(
    batcher, serve, faults, killed_thrice, reviews, write, lines, tmp_path
):
    rows = reviews(FEWER_ROWS)
    job = write(rows)
    options = ("--max-inflight", 100, "--delivery", "at-most-once")
    # A server that pays no heed to keys: what is sent twice is billed twice.
    with serve(*faults, "--idempotency", "ignore", "--latency-after", "5-30") as server:
        killed_thrice(server, job, FEWER_ROWS, 4, *options)
        ended = batcher("run", job, "--base-url", server.base_url, *options, "--json")
        ledger = server.ledger()
        summary = ended.json
        assert (ended.code, ledger["billed_twice"]) == (1, 0)
        results = [line["custom_id"] for line in lines(tmp_path / "job.results.jsonl")]
        doubtful = lines(tmp_path / "job.errors.jsonl")
        assert summary["in_doubt"] == len(doubtful) > 0
        assert (summary["pending"], summary["failed"], summary["succeeded"]) == (0, 0, len(results))
        assert sorted(results + [line["custom_id"] for line in doubtful]) == sorted(
            row["custom_id"] for row in rows
        )
        by_id = {row["custom_id"]: row for row in rows}
        assert all(line["request"] == by_id[line["custom_id"]] for line in doubtful)
        # Nothing that was billed has been lost from sight.
        assert len(results) <= ledger["billed"] <= len(results) + len(doubtful)

        # The same command again sends nothing more.
        assert batcher("run", job, "--base-url", server.base_url, *options, "--json").json["requests"] == 0
        assert batcher("status", job, "--json").json["in_doubt"] == len(doubtful)

        finished = batcher(
            "run", job, "--base-url", server.base_url, "--max-inflight", 100, "--retry-in-doubt", "--json"
        )
    assert (finished.code, finished.json["succeeded"], finished.json["in_doubt"]) == (0, FEWER_ROWS, 0)
    assert [line["custom_id"] for line in lines(tmp_path / "job.results.jsonl")] == list(by_id)
    assert (tmp_path / "job.errors.jsonl").read_bytes() == b""


def test_what_a_killed_run_has_sent_counts_in_the_minute_of_the_next(serve, launch, kill, reviews, write):
    job = write(reviews(60))
    with serve() as server:
        # A burst of a whole minute: only the window keeps the second run from sending the rest at once.
        options = ("run", job, "--base-url", server.base_url, "--rpm", 40, "--burst", "60s", "--json")
        with launch(*options) as first:
            server.wait_for(40, first)
            kill(first)
        with launch(*options) as second:
            time.sleep(3)
            assert second.is_running
            assert server.requests() == 40
            kill(second)


def test_what_may_be_paid_for_again_is_told_before_it_is_sent(
    batcher, serve, launch, kill, reviews, write, tmp_path
):
    job = write(reviews(20))
    with serve("--latency-after", "20000") as slow:
        options = ("run", job, "--rpm", 60_000, "--base-url")
        with launch(*options, slow.base_url) as running:
            slow.wait_for(5, running)
            kill(running)
        port = slow.port
    status = batcher("status", job, "--key-ttl", "0")
    assert "of them for longer than --key-ttl" in status.out
    with serve(port=port) as server:
        told = batcher(*options, server.base_url, "--key-ttl", "0")
        assert "are no longer covered by their keys (--key-ttl)" in told.err
        assert "no longer covered" not in batcher(*options, server.base_url).err

        for path in tmp_path.glob("job.db*"):
            path.unlink()
        anew = batcher(*options, server.base_url)
    assert "an earlier run has written" in anew.err
    assert "job.db is gone: all rows are sent, and paid for, anew" in anew.err
    assert (told.code, anew.code) == (0, 0)
