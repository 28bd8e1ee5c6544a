"""`batcher run`, `status` and `export` as a user meets them."""

import csv
import gzip
import json

import pytest

KEYS = [
    *("rows", "succeeded", "failed", "in_doubt", "pending", "already_done", "requests", "retries"),
    *("prompt_tokens", "completion_tokens", "cost_usd", "in_doubt_cost_usd_max", "elapsed_s", "stopped"),
    *("by_model", "by_error", "truncated", "filtered", "past_key_ttl"),
]
SECRET = "sk-distinctive-4711"


@pytest.fixture
def run(batcher, server):
    """Run a job against the simulator that all tests share."""
    return lambda job, *options, **how: batcher("run", job, "--base-url", server.base_url, *options, **how)


def test_json_is_the_only_thing_on_standard_output(run, write, reviews):
    ended = run(write(reviews(20)), "--json")
    assert ended.code == 0
    summary = ended.json
    assert list(summary) == KEYS
    assert ended.out.count("\n") == 1
    assert (summary["rows"], summary["succeeded"], summary["stopped"]) == (20, 20, None)
    assert isinstance(summary["cost_usd"], str)
    assert "rows      20: 20 succeeded" in ended.err


def test_quiet_says_nothing_of_a_success(run, write, reviews):
    ended = run(write(reviews(5)), "--quiet")
    assert ended == (0, "", "")


def test_the_summary_goes_to_standard_error(run, write, reviews):
    ended = run(write(reviews(5)))
    assert (ended.code, ended.out) == (0, "")
    assert "gpt-4o-mini" in ended.err
    assert "job.results.jsonl" in ended.err


def test_a_refused_key_stops_the_run(batcher, serve, write, reviews):
    job = write(reviews(20))
    with serve("--api-key", "another") as server:
        ended = batcher("run", job, "--base-url", server.base_url, "--json", "--quiet")
    assert ended.code == 3
    (line,) = ended.err.splitlines()
    assert "OPENAI_API_KEY" in line
    assert list(ended.json) == KEYS
    assert ended.json["stopped"] in line
    assert (ended.json["pending"], ended.json["failed"]) == (20, 0)


def test_json_of_an_interrupted_run(serve, launch, write, reviews):
    import signal

    job = write(reviews(10))
    with (
        serve("--latency-after", "20000") as slow,
        launch("run", job, "--base-url", slow.base_url, "--json", "--quiet", "--grace", "0") as running,
    ):
        slow.wait_for(10, running)
        running.signal(signal.SIGINT)
        ended = running.finish()
    assert ended.code == 130
    assert list(ended.json) == KEYS
    assert len(ended.err.splitlines()) == 1


def test_lines_that_are_no_requests_fail_and_the_rest_runs(run, batcher, write, reviews, lines, tmp_path):
    rows = reviews(10)
    bad = [
        {"model": "gpt-4o-mini"},
        {**rows[0]},
        {**rows[1], "custom_id": "no-model", "body": {"messages": []}},
        {**rows[1], "custom_id": "streams", "body": {**rows[1]["body"], "stream": True}},
    ]
    job = write([*rows, *bad])
    with job.open("a") as file:
        file.write("garbage\n\n")
    ended = run(job, "--json")
    assert ended.code == 1
    assert list(ended.json) == KEYS
    assert (ended.json["rows"], ended.json["succeeded"], ended.json["failed"]) == (15, 10, 5)
    errors = lines(tmp_path / "job.errors.jsonl")
    assert [line["error"]["message"].split(":")[0] for line in errors] == [
        f"line {number}" for number in range(11, 16)
    ]
    assert [line["custom_id"] for line in errors] == ["row-11", "review-0", "no-model", "streams", "row-15"]
    assert [line["response"] for line in errors] == [None] * 5
    assert errors[1]["request"] == rows[0]
    assert errors[4]["request"] == "garbage"
    assert len(lines(tmp_path / "job.results.jsonl")) == 10
    # They can't run, so they are no job; the other rows need nothing.
    assert batcher("export", job, "--failed", "again.jsonl").code == 0
    assert (tmp_path / "again.jsonl").read_text() == ""
    assert run(job, "--json").json["requests"] == 0


def test_bare_bodies_are_named_by_their_line(run, write, reviews, lines, tmp_path):
    bodies = [row["body"] for row in reviews(3)]
    bodies += [{"model": "text-embedding-3-small", "input": "a text"}, bodies[0]]
    ended = run(write(bodies), "--json")
    assert (ended.code, ended.json["requests"]) == (0, 5)
    results = lines(tmp_path / "job.results.jsonl")
    assert [line["custom_id"] for line in results] == [f"row-{number}" for number in range(1, 6)]
    assert results[3]["response"]["body"]["object"] == "list"


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_compressed_jobs(run, write, reviews, lines, tmp_path, suffix):
    import zstandard

    compress = {"gz": gzip.compress, "zst": zstandard.compress}[suffix]
    (tmp_path / f"packed.jsonl.{suffix}").write_bytes(compress(write(reviews(20)).read_bytes()))
    assert run(f"packed.jsonl.{suffix}", "--json").json["succeeded"] == 20
    assert len(lines(tmp_path / "packed.results.jsonl")) == 20
    assert (tmp_path / "packed.db").stat().st_mode & 0o777 == 0o600


def test_a_job_from_standard_input(run, batcher, write, reviews, lines, tmp_path):
    text = write(reviews(20)).read_text()
    ended = run("-", "--store", "piped.db", "--json", stdin=text)
    assert (ended.code, ended.json["rows"], ended.json["succeeded"]) == (0, 20, 20)
    assert len(lines(tmp_path / "piped.results.jsonl")) == 20
    again = run("-", "--store", "piped.db", "--json", stdin=text)
    assert (again.json["requests"], again.json["already_done"]) == (0, 20)
    assert batcher("status", "-", "--store", "piped.db", "--json").json["succeeded"] == 20


def test_options_come_from_the_environment(run, write, reviews):
    job = write(reviews(3))
    ended = run(job, env={"BATCHER_RUN_RPM": "-7"})
    assert (ended.code, ended.err) == (2, "batcher: --rpm must be at least 1, not -7\n")
    ended = run(job, "--json", env={"BATCHER_RUN_LIMIT_ROWS": "2", "BATCHER_RUN_QUIET": "1"})
    assert (ended.json["requests"], ended.json["pending"], ended.err) == (2, 1, "")
    # The command line goes before it.
    assert run(job, "--rpm", "6000", env={"BATCHER_RUN_RPM": "-7"}).code == 0


def test_the_key_and_the_endpoint_come_from_the_env_file(batcher, serve, write, reviews, tmp_path):
    job = write(reviews(3))
    with serve("--api-key", "from-the-file") as server:
        (tmp_path / ".env").write_text(f"OPENAI_API_KEY=from-the-file\nOPENAI_BASE_URL={server.base_url}\n")
        ended = batcher("run", job, "--json", env={"OPENAI_API_KEY": None, "OPENAI_BASE_URL": None})
        assert (ended.code, ended.json["succeeded"]) == (0, 3)
        # The environment goes before it.
        other = batcher("run", job, "--store", "other.db", env={"OPENAI_BASE_URL": server.base_url})
        assert other.code == 3


def test_limit_rows_then_the_rest(run, write, reviews):
    job = write(reviews(20))
    first = run(job, "--limit-rows", 5, "--json")
    assert (first.json["requests"], first.json["rows"], first.json["pending"]) == (5, 20, 15)
    rest = run(job, "--json")
    assert (rest.code, rest.json["requests"], rest.json["already_done"]) == (0, 15, 5)


def test_status_is_what_the_run_said(run, batcher, write, reviews):
    job = write(reviews(20))
    ended = run(job, "--json").json
    status = batcher("status", job, "--json")
    assert status.code == 0
    assert list(status.json) == KEYS
    this_run = {"already_done", "requests", "retries", "elapsed_s"}
    assert {k: v for k, v in status.json.items() if k not in this_run} == {
        k: v for k, v in ended.items() if k not in this_run
    }
    assert "rows      20: 20 succeeded" in batcher("status", job).out


def test_the_bill_says_what_its_key_covers_no_longer(batcher, serve, write, reviews, tmp_path):
    job = write(reviews(5))
    (tmp_path / "faults.jsonl").write_text('{"fault": "reset-after", "after": 2, "count": 1}\n')
    with serve("--idempotency", "ignore", "--faults", str(tmp_path / "faults.jsonl")) as server:
        ended = batcher("run", job, "--base-url", server.base_url, "--key-ttl", "0", "--json")
    assert (ended.code, ended.json["past_key_ttl"]) == (0, 1)
    past = (
        "more for 1 attempts in doubt, 1 of them for longer than --key-ttl: their keys no longer cover them"
    )
    assert ended.err.count(past) == 1
    for options, says in ((("--key-ttl", "0"), True), ((), False), (("--key-ttl", "1h"), False)):
        told = batcher("status", job, *options).out
        assert "more for 1 attempts in doubt" in told
        assert (past in told) == says


def test_status_beside_a_run_knows_what_is_settled(batcher, serve, launch, write, reviews):
    job = write(reviews(60))
    with serve() as fast:
        url = ("--base-url", fast.base_url)
        settled = batcher("run", job, *url, "--limit-rows", 20, "--json").json
    with (
        serve("--latency-after", "20000", port=fast.port) as slow,
        launch("run", job, *url, "--max-inflight", 10, "--rpm", 60_000, "--quiet") as running,
    ):
        slow.wait_for(10, running)
        status = batcher("status", job, "--json").json
        assert running.is_running
    assert (status["rows"], status["succeeded"], status["pending"]) == (60, 20, 40)
    assert status["by_model"]["gpt-4o-mini"]["in_doubt"] == 10
    # What is in flight may cost something more; the price of what is settled is known all the same.
    assert status["cost_usd"] == settled["cost_usd"]


def test_export_writes_the_files_again(run, batcher, write, reviews, tmp_path):
    job = write(reviews(20))
    assert run(job).code == 0
    results = tmp_path / "job.results.jsonl"
    first = results.read_bytes()
    results.unlink()
    assert batcher("export", job).code == 0
    assert results.read_bytes() == first
    assert batcher("export", job, "--output", "other.jsonl").code == 0
    assert (tmp_path / "other.jsonl").read_bytes() == first


def test_failed_rows_are_a_job_that_runs(batcher, serve, run, write, reviews, lines, tmp_path):
    rows = reviews(40)
    job = write(rows)
    with serve("--fault", "500=30%") as bad:
        ended = batcher("run", job, "--base-url", bad.base_url, "--max-attempts", 1, "--json")
    assert ended.code == 1
    errors = lines(tmp_path / "job.errors.jsonl")
    assert len(errors) == ended.json["failed"] > 0
    assert errors[0]["response"]["status_code"] == 500
    assert batcher("export", job, "--failed", "again.jsonl").code == 0
    again = lines(tmp_path / "again.jsonl")
    by_id = {row["custom_id"]: row for row in rows}
    assert again == [by_id[line["custom_id"]] for line in errors] == [line["request"] for line in errors]
    assert run("again.jsonl", "--json").json["succeeded"] == len(again)


def test_rows_in_doubt_after_a_crash_keep_their_request_and_are_no_job_of_their_own(
    batcher, serve, launch, kill, write, reviews, lines, tmp_path
):
    rows = reviews(10)
    job = write(rows)
    once = ("--delivery", "at-most-once", "--rpm", 60_000)
    with serve("--latency-after", "20000") as slow:
        with launch("run", job, "--base-url", slow.base_url, *once) as running:
            slow.wait_for(10, running)
            kill(running)
        ended = batcher("run", job, "--base-url", slow.base_url, *once, "--json")
    assert (ended.code, ended.json["in_doubt"]) == (1, 10)
    exported = batcher("export", job, "--failed", "again.jsonl")
    assert "left out: 10" in exported.err
    assert lines(tmp_path / "again.jsonl") == []
    assert [line["request"] for line in lines(tmp_path / "job.errors.jsonl")] == rows


def test_the_attempts_are_a_log(run, batcher, write, reviews, lines, tmp_path):
    job = write(reviews(5))
    summary = run(job, "--json").json
    assert batcher("export", job, "--attempts", "log.csv").code == 0
    with (tmp_path / "log.csv").open(newline="") as file:
        log = list(csv.DictReader(file))
    assert [row["attempt"] for row in log] == ["1", "2", "3", "4", "5"]
    assert {(row["billed"], row["status"], row["error"]) for row in log} == {("yes", "200", "")}
    assert sum(int(row["prompt_tokens"]) for row in log) == summary["prompt_tokens"]
    assert sorted(json.loads(row["custom_ids"])[0] for row in log) == [f"review-{i}" for i in range(5)]
    assert all(float(row["latency_ms"]) > 0 for row in log)
    assert batcher("export", job, "--attempts", "log.jsonl").code == 0
    assert len(lines(tmp_path / "log.jsonl")) == 5


def test_a_price_that_is_not_known_is_unknown(run, write, reviews):
    rows = [{**row, "body": {**row["body"], "model": "nobody-knows-me"}} for row in reviews(3)]
    ended = run(write(rows), "--json")
    assert (ended.code, ended.json["cost_usd"]) == (0, None)
    assert "bill      unknown" in ended.err


def test_prices_come_from_a_file(run, write, reviews, tmp_path):
    (tmp_path / "prices.json").write_text(json.dumps({"gpt-4o-mini": {"input": "1", "output": "1"}}))
    summary = run(write(reviews(3)), "--prices", "prices.json", "--json").json
    tokens = summary["prompt_tokens"] + summary["completion_tokens"]
    assert round(float(summary["cost_usd"]) * 1_000_000) == tokens


def test_no_credential_is_ever_written(batcher, serve, write, reviews, tmp_path):
    env = {"OPENAI_API_KEY": SECRET, "OPENAI_CUSTOM_HEADERS": f"X-Gateway: {SECRET}", "OPENAI_ORG_ID": SECRET}
    job, said = write(reviews(20)), []
    with serve("--api-key", "another") as refusing:
        said.append(
            batcher("run", job, "--base-url", refusing.base_url, "--store", "a.db", "--json", env=env)
        )
    said.append(
        batcher("run", job, "--base-url", refusing.base_url, "--store", "a.db", "--max-stall", "0", env=env)
    )
    with serve("--fault", "500=20%", "--fault", "cut-off=20%") as faulty:
        url = faulty.base_url
        said.append(batcher("run", job, "--base-url", url, "--max-attempts", 1, "--json", env=env))
        said.append(batcher("export", job, "--attempts", "log.csv", "--failed", "again.jsonl", env=env))
    said.append(batcher("run", job, "--base-url", "nonsense", env=env))
    assert [ended.code for ended in said] == [3, 3, 1, 0, 2]
    for ended in said:
        assert SECRET not in ended.out + ended.err
    written = [path for path in tmp_path.iterdir() if path.is_file()]
    assert {"a.db", "job.db", "job.errors.jsonl", "log.csv"} <= {path.name for path in written}
    for path in written:
        assert SECRET.encode() not in path.read_bytes(), path.name
