import orjson
import pytest

from batcher.money.usage import Usage
from batcher.parse import parse
from batcher.request import REJECTED, Attempt, Claimed, Lost, Outcome, Rejected, Reply, Request, Row
from batcher.settlement import rejections, settlement, too_large
from batcher.verdict import Again, Done, Fail, Halt, Hold

ROWS = (Row(3, b"a" * 16, "a"), Row(4, b"b" * 16, 'quote " and é'))
BODY = b'{"model":"m","input":["x","y"]}'
REQUEST = Request(ROWS, "key", "shared", "m", "/v1/embeddings", BODY, 5, 70)
CLAIMED = Claimed(9, REQUEST, 2, 1)
REPLY = Reply(200, (), b"{}", sent_at=10.0, ended_at=12.5)


def test_an_answer_ends_every_row_of_its_request():
    done = Done(201, "r", (b"1", b"2"), Usage(7, cached_tokens=2, completion_tokens=3))
    made = settlement(CLAIMED, REPLY, done, 88)
    assert made.attempt == Attempt(
        id=9,
        billed="yes",
        sent_at=10.0,
        ended_at=12.5,
        status=201,
        request_id="r",
        prompt_tokens=7,
        cached_tokens=2,
        completion_tokens=3,
        cost_pico_usd=88,
    )
    assert made.outcomes == (
        Outcome(ROWS[0], "done", 9, 201, "r", b"1"),
        Outcome(ROWS[1], "done", 9, 201, "r", b"2"),
    )


def test_an_answer_that_ended_early_is_kept_as_one():
    done = Done(200, None, (b"1", b"2"), None, "length")
    assert [each.finish for each in settlement(CLAIMED, REPLY, done, None).outcomes] == ["length"] * 2


def test_an_unknown_usage_has_an_unknown_cost():
    attempt = settlement(CLAIMED, REPLY, Done(200, None, (b"1", b"2"), None), None).attempt
    assert (attempt.prompt_tokens, attempt.completion_tokens, attempt.cost_pico_usd) == (0, 0, None)


def test_an_answer_too_few_is_an_error_in_the_loop_and_not_a_lost_row():
    with pytest.raises(ValueError, match="shorter"):
        settlement(CLAIMED, REPLY, Done(200, None, (b"1",), None), None)


@pytest.mark.parametrize("state", ["refused", "exhausted", "in_doubt"])
def test_a_failure_ends_every_row_with_the_line_to_run_again(state):
    fail = Fail(state, "bad", "it is bad", "maybe", 400, "r", b'{"error":1}')
    made = settlement(CLAIMED, REPLY, fail, None)
    assert made.attempt == Attempt(
        id=9, billed="maybe", sent_at=10.0, ended_at=12.5, status=400, error="bad", request_id="r"
    )
    assert made.attempt.cost_pico_usd == 0
    assert [outcome.row for outcome in made.outcomes] == list(ROWS)
    for outcome in made.outcomes:
        again = parse(outcome.line, 1)
        assert (again.custom_id, again.url, again.body) == (outcome.row.custom_id, REQUEST.path, BODY)
        code, message = "bad", "it is bad"
        if state == "in_doubt":
            code, message = state, "it is bad; it may have been billed; to send it again: --retry-in-doubt"
        assert (outcome.state, outcome.code, outcome.message) == (state, code, message)
        assert (outcome.attempt, outcome.status, outcome.request_id) == (9, 400, "r")
        assert outcome.body == b'{"error":1}'


@pytest.mark.parametrize(
    "verdict",
    [
        Again(50.0, True, "lost", "m", "maybe", 502, "r"),
        Hold("pool", 50.0, 50.0, False, "rate_limit", "m", "no", 429, "r"),
        Halt("quota", "m", "no", 429, "r"),
    ],
)
def test_what_goes_on_ends_no_row(verdict):
    lost = Lost(True, "reset", "r", sent_at=10.0, ended_at=11.0)
    made = settlement(CLAIMED, lost, verdict, None)
    assert made.outcomes == ()
    assert (made.attempt.billed, made.attempt.error) == (verdict.billed, verdict.error)
    assert (made.attempt.status, made.attempt.request_id) == (verdict.status, "r")
    assert (made.attempt.sent_at, made.attempt.ended_at) == (10.0, 11.0)


def test_what_never_left_has_no_time_of_leaving():
    lost = Lost(False, "connect", "r", None, 11.0)
    hold = Hold("endpoint", 50.0, 50.0, False, "unreachable", "m", "no")
    attempt = settlement(CLAIMED, lost, hold, None).attempt
    assert (attempt.sent_at, attempt.ended_at, attempt.billed) == (None, 11.0, "no")


def test_a_rejected_line_ends_as_refused_with_the_line_itself():
    line = b"not json \xff"
    assert rejections([Rejected(ROWS[0], "line 3: not valid JSON", line)]) == [
        Outcome(ROWS[0], "refused", code=REJECTED, message="line 3: not valid JSON", line=line)
    ]


def test_a_request_that_is_larger_than_a_limit_ends_every_row():
    outcomes = too_large(REQUEST, "the limit is 4 a minute")
    assert [(outcome.row, outcome.state, outcome.attempt) for outcome in outcomes] == [
        (row, "exhausted", None) for row in ROWS
    ]
    assert {outcome.code for outcome in outcomes} == {"exceeds_limit"}
    assert outcomes[0].message.startswith("needs 5 tokens, and the limit is 4 a minute: raise it")
    assert orjson.loads(outcomes[1].line)["custom_id"] == ROWS[1].custom_id
