"""`batcher status`: `--verify` as a user meets it, `--key-ttl`, and a run that is going on."""

import pytest


@pytest.fixture
def finished(batcher, server, write, reviews):
    """A job that has ended."""
    job = write(reviews(20))
    assert batcher("run", job, "--base-url", server.base_url, "--quiet").code == 0
    return job


def test_a_job_that_is_as_it_should_be(batcher, finished):
    plain = batcher("status", finished)
    status = batcher("status", finished, "--verify")
    assert (status.code, status.err) == (0, "")
    assert status.out == f"{plain.out}verify    the store is whole, and the files are what it holds\n"
    as_json = batcher("status", finished, "--verify", "--json")
    assert (as_json.code, as_json.json["verify"], as_json.json["succeeded"]) == (0, [], 20)
    assert "verify" not in batcher("status", finished, "--json").json


def test_each_finding_is_a_line_and_exit_1_and_export_mends_it(batcher, finished, tmp_path):
    results, errors = tmp_path / "job.results.jsonl", tmp_path / "job.errors.jsonl"
    results.write_bytes(results.read_bytes().replace(b'"review-7"', b'"review-8"'))
    errors.unlink()
    status = batcher("status", finished, "--verify")
    advice = f"batcher export {finished} writes it anew"
    findings = [
        f"{results} is not what the store holds: line 8 should be review-7, and is review-8: {advice}",
        f"{errors} is missing: {advice}",
    ]
    assert (status.code, status.err) == (1, "")
    assert status.out.splitlines()[-2:] == [f"verify    {finding}" for finding in findings]
    assert "rows      20: 20 succeeded" in status.out
    as_json = batcher("status", finished, "--verify", "--json")
    assert (as_json.code, as_json.json["verify"], as_json.err) == (1, findings, "")
    assert batcher("export", finished).code == 0
    assert batcher("status", finished, "--verify").code == 0


def test_files_elsewhere_are_named(batcher, finished, tmp_path):
    (tmp_path / "job.results.jsonl").rename(tmp_path / "r.jsonl")
    (tmp_path / "job.errors.jsonl").rename(tmp_path / "e.jsonl")
    assert batcher("status", finished, "--verify").code == 1
    assert batcher("status", finished, "--verify", "--output", "r.jsonl", "--errors", "e.jsonl").code == 0


def test_files_that_a_killed_run_left_behind_are_older(
    batcher, serve, launch, kill, write, reviews, tmp_path
):
    with serve("--latency-after", "20-40") as server:
        url = ("--base-url", server.base_url, "--max-inflight", 10)
        job = write(reviews(30))
        assert batcher("run", job, *url, "--quiet").code == 0
        write(reviews(8000))  # more than can be done meanwhile
        with launch("run", job, *url) as running:
            server.wait_for(100, running)
            # Beside the run, its files are nothing to worry about.
            beside = batcher("status", job, "--verify", "--json")
            assert (beside.code, beside.json["verify"], beside.json["rows"]) == (0, [], 8000)
            shown = batcher("status", job, "--verify")
            kill(running)
    assert shown.out.splitlines()[-2:] == [
        "verify    a run is going on: it writes the files when it ends, and they were not looked at",
        "verify    the store is whole",
    ]
    status = batcher("status", job, "--verify")
    assert status.code == 1
    (line,) = [line for line in status.out.splitlines() if line.startswith("verify")]
    results = tmp_path / "job.results.jsonl"
    assert line == (
        f"verify    {results} is older than the store: line 31 (review-30) is not there: "
        f"batcher export {job} writes it anew"
    )


def test_a_store_that_can_not_be_read_is_exit_3_and_says_what_is_damaged(batcher, finished, tmp_path):
    store = tmp_path / "job.db"
    content = store.read_bytes()
    store.write_bytes(content[:100] + b"\xff" * (len(content) - 100))
    plain = batcher("status", finished)
    assert (plain.code, plain.out) == (3, "")
    (line,) = plain.err.splitlines()
    assert line.startswith(f"batcher: {store} can't be read: ")
    assert "the store is damaged: move it and job.db-wal away" in line

    status = batcher("status", finished, "--verify")
    assert (status.code, status.err) == (3, plain.err)
    assert all(found.startswith("verify    ") for found in status.out.splitlines())
    as_json = batcher("status", finished, "--verify", "--json")
    assert (as_json.code, as_json.err) == (3, plain.err)
    assert line == f"batcher: {as_json.json['stopped']}"
    assert as_json.json["verify"] == [found[10:] for found in status.out.splitlines()] != []


def test_a_job_that_has_not_run_has_nothing_to_verify(batcher, write, reviews):
    status = batcher("status", write(reviews(3)), "--verify")
    assert (status.code, status.out) == (2, "")
    assert "nothing of this job has run yet" in status.err


def test_how_long_keys_are_remembered_is_given_as_to_a_run(batcher, serve, launch, kill, write, reviews):
    job = write(reviews(20))
    options = ("--max-inflight", 10, "--delivery", "at-most-once", "--quiet")
    with (
        serve("--latency-after", "20000") as slow,
        launch("run", job, "--base-url", slow.base_url, *options, "--rpm", 60_000) as running,
    ):
        slow.wait_for(10, running)
        kill(running)
    with serve(port=slow.port):
        assert batcher("run", job, "--base-url", slow.base_url, *options).code == 1
    for ttl, past in (((), 0), (("--key-ttl", "2h"), 0), (("--key-ttl", "0"), 10)):
        assert batcher("status", job, "--json", *ttl).json["past_key_ttl"] == past
    assert "10 of them for longer than --key-ttl" in batcher("status", job, "--key-ttl", "0s").out


@pytest.mark.parametrize(
    ("given", "says"), [("x", "'x' is not a time"), ("-1", "--key-ttl must be 0 seconds")]
)
def test_a_time_that_is_none_is_refused(batcher, finished, given, says):
    status = batcher("status", finished, "--key-ttl", given)
    assert (status.code, status.out) == (2, "")
    assert says in status.err
