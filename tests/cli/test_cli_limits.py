"""The limits of an account, through the command."""

import signal
import time

from tests.conftest import HANGS_S

DAILY = "batcher: waiting for requests a day: the next request goes in "


def test_limits_that_nobody_gave_are_learned_and_kept(batcher, serve, write, reviews):
    job = write(reviews(80))
    with serve("--rpm", "1200", "--latency-before", "5-20") as server:
        began = time.monotonic()
        ended = batcher("run", job, "--base-url", server.base_url, "--json")
        took_s = time.monotonic() - began
        assert server.ledger()["refused"] == {}
    assert (ended.code, ended.json["succeeded"], ended.json["retries"]) == (0, 80, 0)
    told = "batcher: keeping to the limits that the server announces: 1,200 requests a minute"
    assert ended.err.splitlines().count(told) == 1
    assert took_s > 3.0  # 80 of 20 a second, but for the burst


def test_a_daily_limit_holds_across_runs(launch, serve, write, reviews):
    job = write(reviews(8))
    with serve() as server:
        for already in (0, 5):
            with launch("run", job, "--base-url", server.base_url, "--rpd", 5, "--json") as running:
                assert running.process.stderr.readline().startswith(DAILY)
                assert server.requests() == 5
                running.signal(signal.SIGINT)
                stopped = running.finish()
            assert (stopped.code, stopped.json["succeeded"], stopped.json["already_done"]) == (
                130,
                5,
                already,
            )


def test_tokens_that_come_back_are_used(batcher, serve, write, reviews):
    rows = reviews(30)
    for row in rows:
        row["body"]["max_completion_tokens"] = 1000
    job = write(rows)
    limits = ("--tpm", "24000", "--window", "sliding", "--tpm-counts", "actual")
    with serve(*limits) as server:
        began = time.monotonic()
        ended = batcher(
            "run", job, "--base-url", server.base_url, "--tpm", 24_000, "--tpm-counts", "actual", "--json"
        )
        assert time.monotonic() - began < HANGS_S
        assert server.ledger()["refused"] == {}
    assert (ended.code, ended.json["succeeded"]) == (0, 30)
    # 22 of them would fit a minute if each kept what it reserves.
    assert ended.json["elapsed_s"] < 30
