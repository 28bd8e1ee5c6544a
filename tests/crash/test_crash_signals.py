"""Ctrl-C and SIGTERM end a run in order; a second one ends it at once; it goes on where it was."""

import signal
import time

import pytest

SIGNALS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@SIGNALS
def test_the_first_signal_lets_what_is_in_flight_land(
    batcher, serve, launch, server, reviews, write, lines, tmp_path, number
):
    rows = reviews(500)
    job, calm = write(rows), write(rows, "calm.jsonl")
    assert batcher("run", calm, "--base-url", server.base_url, "--max-inflight", 50).code == 0
    options = ("--max-inflight", 50)
    with serve("--latency-after", "50-150") as slow:
        with launch("run", job, "--base-url", slow.base_url, *options, "--json") as running:
            slow.wait_for(150, running)
            running.signal(number)
            stopped = running.finish()
        summary = stopped.json
        assert stopped.code == 130
        assert "run the same command again" in summary["stopped"]
        assert (summary["in_doubt"], summary["by_model"]["gpt-4o-mini"]["in_doubt"]) == (0, 0)
        assert summary["rows"] == len(rows) == summary["succeeded"] + summary["pending"]
        assert summary["succeeded"] == slow.ledger()["billed"] < len(rows)
        written = [line["custom_id"] for line in lines(tmp_path / "job.results.jsonl")]
        assert len(written) == summary["succeeded"]
        assert "Traceback" not in stopped.err

        ended = batcher("run", job, "--base-url", slow.base_url, *options, "--json")
        ledger = slow.ledger()
    assert (ended.code, ended.json["already_done"]) == (0, summary["succeeded"])
    assert (ledger["requests"], ledger["billed_twice"]) == (len(rows), 0)
    assert (tmp_path / "job.results.jsonl").read_bytes() == (tmp_path / "calm.results.jsonl").read_bytes()


@SIGNALS
def test_the_second_signal_does_not_wait(batcher, serve, launch, reviews, write, number):
    job = write(reviews(200))
    with serve("--latency-after", "20000") as slow:
        began = time.monotonic()
        with launch(
            "run", job, "--base-url", slow.base_url, "--max-inflight", 10, "--rpm", 60_000, "--json"
        ) as running:
            slow.wait_for(10, running)
            running.signal(number)
            time.sleep(0.5)
            assert running.is_running
            running.signal(number)
            stopped = running.finish()
        # Neither the server's 20 s nor the grace of 30 s.
        assert time.monotonic() - began < 20
        assert slow.requests() == 10
    assert (stopped.code, stopped.json["succeeded"], stopped.json["pending"]) == (130, 0, 200)
    assert stopped.json["by_model"]["gpt-4o-mini"]["in_doubt"] == 10
    assert "Traceback" not in stopped.err
    assert batcher("status", job, "--json").json["by_model"]["gpt-4o-mini"]["in_doubt"] == 10


def test_the_grace_period_ends_what_does_not_land(serve, launch, reviews, write):
    job = write(reviews(50))
    with serve("--latency-after", "20000") as slow:
        began = time.monotonic()
        with launch(
            "run",
            job,
            "--base-url",
            slow.base_url,
            "--max-inflight",
            10,
            "--rpm",
            60_000,
            "--grace",
            "1s",
            "--json",
        ) as running:
            slow.wait_for(10, running)
            running.signal(signal.SIGINT)
            stopped = running.finish()
        assert time.monotonic() - began < 20
    assert (stopped.code, stopped.json["by_model"]["gpt-4o-mini"]["in_doubt"]) == (130, 10)


def test_a_second_process_on_the_same_store_is_refused(batcher, serve, launch, reviews, write):
    job = write(reviews(100))
    with (
        serve("--latency-after", "20000") as slow,
        launch("run", job, "--base-url", slow.base_url, "--max-inflight", 10, "--rpm", 60_000) as first,
    ):
        slow.wait_for(10, first)
        second = batcher("run", job, "--base-url", slow.base_url)
        assert (second.code, second.out) == (2, "")
        (line,) = second.err.splitlines()
        assert f"process {first.pid}:" in line
        # Looking is allowed.
        assert batcher("status", job, "--json").json["pending"] == 100
        assert first.is_running
        assert slow.requests() == 10
