"""The credit ends at two in the morning: the run stops within one flight, and the next one goes on."""

ROWS, PAID, INFLIGHT = 2000, 700, 50


def test_a_quota_that_is_used_up_stops_the_run_within_one_flight(
    batcher, serve, reviews, write, lines, tmp_path
):
    rows = reviews(ROWS)
    job = write(rows)
    options = ("--max-inflight", INFLIGHT, "--json", "--quiet")
    with serve("--quota", str(PAID), "--latency-after", "5-20") as first:
        ended = batcher("run", job, "--base-url", first.base_url, *options)
        ledger = first.ledger()
    assert ended.code == 3
    (line,) = ended.err.splitlines()
    assert line.startswith(
        "batcher: stopped: the account has no quota or credit left: add credit or raise the limit"
    )
    assert "then run the same command" in line
    # One flight is on the wire when the first refusal comes, and one more may be until it is written down.
    assert ledger["requests"] <= PAID + 2 * INFLIGHT
    summary = ended.json
    assert (summary["succeeded"], summary["failed"], summary["pending"]) == (PAID, 0, ROWS - PAID)
    assert (ledger["billed"], summary["prompt_tokens"]) == (PAID, ledger["prompt_tokens"])
    assert len(lines(tmp_path / "job.results.jsonl")) == PAID

    with serve("--latency-after", "5-20", port=first.port) as second:
        ended = batcher("run", job, "--base-url", second.base_url, *options)
        ledger = second.ledger()
    assert (ended.code, ended.json["already_done"], ended.json["succeeded"]) == (0, PAID, ROWS)
    assert (ledger["billed"], ledger["billed_twice"]) == (ROWS - PAID, 0)
    results = lines(tmp_path / "job.results.jsonl")
    assert [line["custom_id"] for line in results] == [row["custom_id"] for row in rows]
