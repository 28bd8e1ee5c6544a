"""How a job stands: made of what its store holds and of what this run did."""

import pytest

from batcher.stop import INTERRUPTED
from batcher.store.reader import Contents, ModelBill
from batcher.summary import summarise
from batcher.tally import Tally

KEYS = [
    "rows", "succeeded", "failed", "in_doubt", "pending", "already_done", "requests", "retries",
    "prompt_tokens", "completion_tokens", "cost_usd", "in_doubt_cost_usd_max", "elapsed_s", "stopped",
    "by_model", "by_error", "truncated", "filtered", "past_key_ttl",
]  # fmt: skip


def bill(**changes):
    facts = {
        "requests": 3,
        "answered": 2,
        "prompt_tokens": 30,
        "cached_tokens": 4,
        "completion_tokens": 5,
        "cost_pico_usd": 1_500_000_000_000,
        "in_doubt": 1,
        "in_doubt_pico_usd_max": 1,
    }
    return ModelBill(**facts | changes)


def contents(by_model=None, **changes):
    facts = {"done": 5, "refused": 2, "exhausted": 1, "in_doubt": 1, "line_count": 10}
    facts |= {"truncated": 1, "filtered": 2, "by_error": {"bad_request": 3}}
    facts |= {"namespace": "n", "base_url": "u", "by_model": by_model or {}}
    return Contents(**facts | changes)


def summary(of=None, rows=10, tally=None, stopped=None, past_key_ttl=0):
    return summarise(of or contents(), past_key_ttl, rows, tally or Tally(), 1.23456, stopped)


def test_the_keys_are_those_that_the_command_promises():
    made = summary(contents({"m": bill()})).to_dict()
    assert list(made) == KEYS
    assert made["by_model"] == {
        "m": {
            "requests": 3,
            "prompt_tokens": 30,
            "cached_tokens": 4,
            "completion_tokens": 5,
            "cost_usd": "1.50",
            "in_doubt": 1,
            "in_doubt_cost_usd_max": "0.000000000001",
        }
    }


def test_rows_are_of_the_whole_job_and_requests_of_this_run():
    tally = Tally(already_done=4, requests=7, retries=2, succeeded=1)
    made = summary(tally=tally)
    assert (made.rows, made.succeeded, made.failed, made.in_doubt, made.pending) == (10, 5, 3, 1, 1)
    assert (made.already_done, made.requests, made.retries, made.elapsed_s) == (4, 7, 2, 1.235)


def test_failures_are_told_by_their_code_and_answers_that_ended_early_by_why():
    made = summary()
    assert (made.by_error, made.truncated, made.filtered) == ({"bad_request": 3}, 1, 2)


def test_what_its_key_covers_no_longer_is_told():
    assert summary(past_key_ttl=3).past_key_ttl == 3


def test_pending_is_never_negative():
    assert summary(rows=0).pending == 0


def test_models_are_added_up_exactly():
    made = summary(contents({"a": bill(cost_pico_usd=1), "b": bill(in_doubt_pico_usd_max=2)}))
    assert (made.cost_usd, made.in_doubt_cost_usd_max) == ("1.500000000001", "0.000000000003")
    assert (made.prompt_tokens, made.completion_tokens) == (60, 10)


def test_one_unknown_makes_the_sum_unknown():
    made = summary(contents({"a": bill(), "b": bill(cost_pico_usd=None, in_doubt_pico_usd_max=None)}))
    assert (made.cost_usd, made.in_doubt_cost_usd_max) == (None, None)
    assert (made.by_model["a"].cost_usd, made.by_model["b"].cost_usd) == ("1.50", None)


def test_nothing_costs_nothing():
    made = summary()
    assert (made.cost_usd, made.in_doubt_cost_usd_max, made.by_model) == ("0.00", "0.00", {})


FINE = {"refused": 0, "exhausted": 0, "in_doubt": 0}


@pytest.mark.parametrize(
    ("counts", "stopped", "code"),
    [
        ({"done": 10}, None, 0),
        ({"done": 9, "refused": 1}, None, 1),
        ({"done": 9, "exhausted": 1}, None, 1),
        ({"done": 9, "in_doubt": 1}, None, 1),
        ({"done": 9}, None, 1),
        ({"done": 10}, "no quota", 3),
        ({"done": 3}, "no quota", 3),
        ({"done": 3}, INTERRUPTED.reason, 130),
    ],
)
def test_the_exit_code_says_how_it_ended(counts, stopped, code):
    made = summary(contents(**FINE | counts), stopped=stopped)
    assert made.exit_code == code
    assert made.stopped == stopped
