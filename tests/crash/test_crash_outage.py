"""The server goes away: what can't reach it costs a row nothing, and only --max-stall ends the run."""

import time


def test_a_server_that_comes_back_finds_the_run_waiting(
    batcher, serve, launch, server, reviews, write, lines, tmp_path
):
    rows = reviews(600)
    job = write(rows)
    # Three attempts: what was in flight spends one, and the outage is worth more than the other two.
    options = ("--max-inflight", 50, "--max-attempts", 3, "--json")
    with serve("--latency-after", "50-100") as first:
        port = first.port
        with launch("run", job, "--base-url", first.base_url, *options) as running:
            first.wait_for(150, running)
            first.process.kill()
            first.process.wait()
            time.sleep(2)
            assert running.is_running
            with serve(port=port) as second:
                ended = running.finish()
                ledger = second.ledger()
    assert ended.code == 0
    assert ended.json["succeeded"] == len(rows)
    assert [line["custom_id"] for line in lines(tmp_path / "job.results.jsonl")] == [
        row["custom_id"] for row in rows
    ]
    assert ledger["billed_twice"] == 0
    assert "Traceback" not in ended.err


def test_where_nothing_listens_the_run_gives_up_after_max_stall(batcher, serve, reviews, write):
    job = write(reviews(20))
    with serve() as gone:
        pass
    url = ("--base-url", gone.base_url)
    ended = batcher("run", job, *url, "--max-stall", "1s", "--max-attempts", 1, "--quiet", "--json")
    assert ended.code == 3
    (line,) = ended.err.splitlines()
    assert str(gone.port) in line
    assert "--max-stall" in line
    assert (ended.json["pending"], ended.json["requests"], ended.json["failed"]) == (20, 0, 0)
    assert ended.json["stopped"] in line

    with serve(port=gone.port):
        assert batcher("run", job, *url).code == 0
