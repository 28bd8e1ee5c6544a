"""Two processes for one store: one has it, the other leaves without touching anything."""

import pytest


@pytest.mark.parametrize("made_before", [False, True])
def test_of_two_that_start_at_once_one_runs_and_one_leaves(
    batcher, serve, launch, reviews, write, lines, tmp_path, made_before
):
    rows = reviews(20)
    job = write(rows)
    with serve("--latency-after", "1500") as slow:
        options = ("run", job, "--base-url", slow.base_url, "--rpm", 60_000, "--json", "--quiet")
        if made_before:
            assert batcher(*options, "--limit-rows", 1).code == 1
        with launch(*options) as one, launch(*options) as other:
            ended = sorted((one.finish(), other.finish()), key=lambda each: each.code)
        ledger = slow.ledger()
    assert [each.code for each in ended] == [0, 2]
    assert ended[0].json["succeeded"] == len(rows)
    (line,) = ended[1].err.splitlines()
    assert "is in use by process" in line
    assert ended[1].json["stopped"] in line
    assert (ledger["billed"], ledger["billed_twice"]) == (len(rows), 0)
    assert [line["custom_id"] for line in lines(tmp_path / "job.results.jsonl")] == [
        row["custom_id"] for row in rows
    ]
