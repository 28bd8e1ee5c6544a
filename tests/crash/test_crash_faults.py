"""Whatever the server does to single requests: every row once, in order, and a bill equal to the server's."""

from decimal import Decimal

ROWS = 2000


def test_every_row_once_in_order_and_the_bill_is_the_servers(
    batcher, serve, faults, reviews, write, lines, tmp_path
):
    rows = reviews(ROWS)
    job = write(rows)
    with serve(*faults) as server:
        ended = batcher("run", job, "--base-url", server.base_url, "--max-inflight", 200, "--json", "--quiet")
        ledger = server.ledger()
    assert (ended.code, ended.err) == (0, "")
    assert all(
        ledger["faults"].get(name) for name in ("429", "500", "reset-before", "reset-after", "cut-off")
    )

    results = lines(tmp_path / "job.results.jsonl")
    assert [line["custom_id"] for line in results] == [row["custom_id"] for row in rows]
    assert all(line["error"] is None and line["response"]["status_code"] == 200 for line in results)
    assert (tmp_path / "job.errors.jsonl").read_bytes() == b""

    status = batcher("status", job, "--json").json
    for summary in (status, ended.json):
        assert (summary["rows"], summary["succeeded"]) == (ROWS, ROWS)
        assert summary["prompt_tokens"] == ledger["prompt_tokens"]
        assert summary["completion_tokens"] == ledger["completion_tokens"]
        assert summary["by_model"]["gpt-4o-mini"]["requests"] == ledger["requests"]
    assert ended.json["requests"] == ledger["requests"]
    assert (ledger["billed"], ledger["billed_twice"]) == (ROWS, 0)


def test_without_honoured_keys_the_bill_holds_what_was_billed_twice(batcher, serve, reviews, write, tmp_path):
    job = write(reviews(ROWS))
    prices = tmp_path / "prices.json"
    prices.write_text('{"gpt-4o-mini": {"input": 1, "output": 4}}')
    more = ("--fault", "reset-after=3%", "--fault", "cut-off=3%", "--idempotency", "ignore")
    with serve(*more) as server:
        ended = batcher(
            "run", job, "--base-url", server.base_url, "--max-inflight", 200, "--prices", prices, "--json"
        )
        ledger = server.ledger()
    summary = ended.json
    assert (ended.code, summary["succeeded"]) == (0, ROWS)
    again = ledger["billed"] - ROWS
    assert ledger["billed_twice"] > 0
    assert 0 < again <= summary["by_model"]["gpt-4o-mini"]["in_doubt"]
    paid = (ledger["prompt_tokens"] * Decimal(1) + ledger["completion_tokens"] * Decimal(4)) / 1_000_000
    certain, most = Decimal(summary["cost_usd"]), Decimal(summary["in_doubt_cost_usd_max"])
    assert certain < paid <= certain + most
    assert "attempts in doubt" in ended.err
