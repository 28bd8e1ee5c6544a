import json
from itertools import product

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from batcher.money.usage import Usage
from batcher.reply import is_replayed
from batcher.request import Claimed, Lost, Reply, Request, Row
from batcher.rules import TABLE
from batcher.verdict import (
    Again,
    Done,
    Fail,
    Halt,
    Hold,
    Policy,
    Standing,
    blames_endpoint,
    endpoint_hold,
    judge,
)

CHAT, RESPONSES, EMBEDDINGS = "/v1/chat/completions", "/v1/responses", "/v1/embeddings"
MODERATIONS, COMPLETIONS = "/v1/moderations", "/v1/completions"
NOW = 1000.0
ONCE = Policy(at_most_once=True)


def claimed(path=CHAT, charged=0, body=b'{"input": "x"}', free=0, doubted=False):
    request = Request((Row(1, b"k" * 16, "a"),), "key", "shared", "m", path, body, 1, None)
    return Claimed(7, request, free + charged + 1, charged, doubted)


def reply(status=200, body=b"", headers=()):
    if not isinstance(body, bytes):
        body = orjson.dumps(body)
    raw = tuple((name.encode(), value.encode("latin-1")) for name, value in dict(headers).items())
    return Reply(status, raw, body, 1.0, 2.0)


def verdict(
    landed,
    path=CHAT,
    charged=0,
    chance=0.5,
    policy=None,
    standing=None,
    body=b'{"input": "x"}',
    free=0,
    doubted=False,
):
    asked = claimed(path, charged, body, free, doubted)
    return judge(asked, landed, NOW, chance, policy or Policy(), standing or Standing())


def error(code=None, type_=None, message="m"):
    return {"error": {"message": message, "type": type_, "code": code, "param": None}}


ANSWERS = {
    CHAT: {"id": "c", "choices": [{"index": 0, "finish_reason": "stop", "message": {"content": "hi"}}]},
    COMPLETIONS: {"choices": [{"text": "hi", "finish_reason": "length"}]},
    RESPONSES: {"status": "completed", "output": [{"type": "message"}]},
    EMBEDDINGS: {"data": [{"embedding": [0.1]}]},
    MODERATIONS: {"results": [{"flagged": False}]},
}


# --- failures: a second table, written by hand from DESIGN.md and not from the first

FAILURES = [
    # status, body, headers, type, billed, error
    (400, error("invalid_value", "invalid_request_error"), {}, Fail, "no", "bad_request"),
    (400, b"<html>", {}, Fail, "no", "bad_request"),
    (400, error("context_length_exceeded"), {}, Fail, "no", "context_length_exceeded"),
    (400, error(None, "context_length_exceeded"), {}, Fail, "no", "context_length_exceeded"),
    (400, error("string_above_max_length"), {}, Fail, "no", "too_large"),
    (400, error("content_filter"), {}, Fail, "no", "content_filter"),
    (400, [error("invalid_value")], {}, Fail, "no", "bad_request"),
    (400, error(), {"x-should-retry": "true"}, Again, "no", "bad_request"),
    (400, error(), {"x-should-retry": "false"}, Fail, "no", "bad_request"),
    (400, error("content_filter"), {"x-should-retry": "true"}, Fail, "no", "content_filter"),
    (404, error("model_not_found"), {}, Fail, "no", "not_found"),
    (404, b"<html>", {}, Fail, "no", "not_found"),
    (413, b"", {}, Fail, "no", "too_large"),
    (413, error("request_too_large"), {}, Fail, "no", "too_large"),
    (422, error(), {}, Fail, "no", "bad_request"),
    (418, b"{}", {}, Fail, "no", "bad_request"),
    # what is quota at 429 is nothing special elsewhere
    (400, error("insufficient_quota"), {}, Fail, "no", "bad_request"),
    (500, error("insufficient_quota"), {}, Again, "no", "server_error"),
    (301, b"", {"location": "/x"}, Halt, "no", "redirected"),
    (304, b"", {}, Halt, "no", "redirected"),
    (307, b"", {}, Halt, "no", "redirected"),
    (401, error("invalid_api_key"), {}, Halt, "no", "authentication"),
    (401, b"", {}, Halt, "no", "authentication"),
    (401, error(), {"x-should-retry": "true"}, Halt, "no", "authentication"),
    (402, b"", {}, Halt, "no", "quota"),
    (402, error(), {"retry-after": "3"}, Hold, "no", "credit"),
    (402, b"", {"retry-after": "soon"}, Halt, "no", "quota"),
    (403, error(), {}, Halt, "no", "permission"),
    (408, b"", {}, Again, "maybe", "timeout"),
    (408, error(), {}, Again, "maybe", "timeout"),
    (409, error(), {}, Again, "no", "conflict"),
    (409, b"", {}, Again, "no", "conflict"),
    (409, error("conflict"), {}, Again, "no", "conflict"),
    (409, error("idempotency_key_in_progress"), {}, Again, "no", "in_progress"),
    (409, error("idempotency_key_in_use"), {}, Again, "no", "in_progress"),
    (409, error(None, "request_in_progress"), {"retry-after": "3"}, Again, "no", "in_progress"),
    (409, error("idempotency_key_in_progress"), {"x-should-retry": "false"}, Fail, "no", "in_progress"),
    (400, error("idempotency_key_in_progress"), {}, Fail, "no", "bad_request"),
    # a key that came with another body: 422 in the IETF's draft, 400 of a type of its own as Stripe has it
    (422, error("idempotency_key_reused"), {}, Fail, "no", "key_reused"),
    (400, error(None, "idempotency_error"), {}, Fail, "no", "key_reused"),
    (409, error("idempotency_conflict"), {}, Fail, "no", "key_reused"),
    (409, error("idempotency_key_mismatch"), {"x-should-retry": "true"}, Fail, "no", "key_reused"),
    (429, error("idempotency_key_reused"), {}, Hold, "no", "rate_limit"),
    (429, error("rate_limit_exceeded", "requests"), {}, Hold, "no", "rate_limit"),
    (429, error("rate_limit_exceeded", "tokens"), {"retry-after-ms": "5"}, Hold, "no", "rate_limit"),
    (429, b"", {}, Hold, "no", "rate_limit"),
    (429, b"slow down", {}, Hold, "no", "rate_limit"),
    (429, {"error": "slow down"}, {}, Hold, "no", "rate_limit"),
    (429, error("insufficient_quota", "insufficient_quota"), {}, Halt, "no", "quota"),
    (429, error(None, "insufficient_quota"), {}, Halt, "no", "quota"),
    (429, error("something_new", "insufficient_quota"), {}, Halt, "no", "quota"),
    (429, error("insufficient_quota", "requests"), {"retry-after-ms": "5"}, Halt, "no", "quota"),
    (429, error("credit_balance_exhausted"), {}, Halt, "no", "quota"),
    (429, error("organization_spend_limit_exceeded"), {}, Halt, "no", "quota"),
    (429, error("project_spend_limit_exceeded"), {}, Halt, "no", "quota"),
    (429, error("organization_usage_limit_exceeded"), {}, Halt, "no", "quota"),
    (429, error("billing_hard_limit_reached"), {}, Halt, "no", "quota"),
    (429, error("billing_not_active"), {}, Halt, "no", "billing"),
    (429, error(None, "billing_not_active"), {}, Halt, "no", "billing"),
    # the code goes before the type
    (429, error("billing_not_active", "insufficient_quota"), {}, Halt, "no", "billing"),
    # the message says nothing
    (429, error("rate_limit_exceeded", "tokens", "insufficient_quota"), {}, Hold, "no", "rate_limit"),
    (429, b"insufficient_quota", {}, Hold, "no", "rate_limit"),
    (429, [error("insufficient_quota")], {}, Halt, "no", "quota"),
    (429, error("slow_down"), {}, Hold, "no", "slow_down"),
    (429, error("rate_limit_exceeded"), {"x-should-retry": "false"}, Fail, "no", "rate_limit"),
    (429, error("rate_limit_exceeded"), {"x-should-retry": "True "}, Hold, "no", "rate_limit"),
    (429, error("insufficient_quota"), {"x-should-retry": "true"}, Halt, "no", "quota"),
    (400, error(None, None, "Rate limit reached, try again in 20s"), {}, Fail, "no", "bad_request"),
    (500, error(None, "server_error"), {}, Again, "no", "server_error"),
    (500, {"error": {}}, {}, Again, "no", "server_error"),
    (500, error(500, None), {}, Again, "no", "server_error"),
    # not the API's own words: whoever said it, the work may be done
    (500, b"<html>Internal Server Error</html>", {}, Again, "maybe", "server_error"),
    (500, b"", {}, Again, "maybe", "server_error"),
    (500, {"detail": "x"}, {}, Again, "maybe", "server_error"),
    (500, {"error": "x"}, {}, Again, "maybe", "server_error"),
    (500, error(), {"x-should-retry": "false"}, Fail, "no", "server_error"),
    (500, error(), {"x-should-retry": "perhaps"}, Again, "no", "server_error"),
    (503, error("server_is_overloaded"), {}, Hold, "no", "overloaded"),
    (503, error("slow_down"), {}, Hold, "no", "slow_down"),
    (503, b"busy", {"retry-after": "3"}, Hold, "maybe", "unavailable"),
    (503, error(), {}, Again, "no", "unavailable"),
    (503, error(), {"retry-after": "3"}, Hold, "no", "unavailable"),
    (503, b"upstream connect error", {}, Again, "maybe", "unavailable"),
    (502, b"<html>", {}, Again, "maybe", "bad_gateway"),
    (502, error(), {}, Again, "maybe", "bad_gateway"),
    (504, b"", {}, Again, "maybe", "gateway_timeout"),
    (520, b"", {}, Again, "maybe", "bad_gateway"),
    (524, b"<html>", {}, Again, "maybe", "bad_gateway"),
    (529, error(None, "overloaded_error"), {}, Again, "no", "overloaded"),
    (529, error(None, "overloaded_error"), {"retry-after": "3"}, Hold, "no", "overloaded"),
    (501, b"", {}, Again, "maybe", "server_error"),
    (530, b"", {}, Again, "maybe", "server_error"),
    (599, error(), {}, Again, "maybe", "server_error"),
    (100, b"", {}, Again, "maybe", "invalid_answer"),
    (199, b"", {}, Again, "maybe", "invalid_answer"),
    (600, b"", {}, Again, "maybe", "invalid_answer"),
    (999, error("insufficient_quota"), {}, Again, "maybe", "invalid_answer"),
    (200, b"", {}, Again, "maybe", "invalid_answer"),
    (204, b"", {}, Again, "maybe", "invalid_answer"),
    (200, b"<html>", {}, Again, "maybe", "invalid_answer"),
    (200, error("server_error"), {}, Again, "maybe", "error_in_answer"),
    (200, error(), {}, Again, "maybe", "error_in_answer"),
    # an error under the status of a success means what it means elsewhere
    (200, error("insufficient_quota"), {}, Halt, "no", "quota"),
    (200, error("context_length_exceeded"), {}, Fail, "no", "context_length_exceeded"),
    (200, error(429), {}, Hold, "no", "rate_limit"),
    (200, error(401), {}, Halt, "no", "authentication"),
    (200, error(502), {}, Again, "maybe", "bad_gateway"),
    (200, error(200), {}, Again, "maybe", "error_in_answer"),
    (200, error(9999), {}, Again, "maybe", "error_in_answer"),
]


@pytest.mark.parametrize(("status", "body", "headers", "kind", "billed", "word"), FAILURES)
def test_a_failure_means(status, body, headers, kind, billed, word):
    got = verdict(reply(status, body, {"x-request-id": "r-1", **headers}))
    assert (type(got), got.billed, got.error) == (kind, billed, word)
    assert (got.status, got.request_id) == (status, "r-1")


@pytest.mark.parametrize(("status", "body", "headers", "kind", "billed", "word"), FAILURES)
def test_at_most_once_sends_nothing_again_that_may_have_been_billed(
    status, body, headers, kind, billed, word
):
    got = verdict(reply(status, body, headers), policy=ONCE)
    if billed == "maybe":
        assert (type(got), got.state, got.billed, got.error) == (Fail, "in_doubt", "maybe", word)
    else:
        assert (type(got), got.billed, got.error) == (kind, billed, word)


# --- the table, line by line

KINDS = {"fail": Fail, "find": Fail, "again": Again, "wait": Again, "hold": Hold, "halt": Halt}
LOSSES = {
    # the word in the table -> whether it left, and the kinds of loss that it stands for
    "unreachable": (False, "connect", "dns", "tls", "timeout"),
    "stopped": (False, "stopped", "closed"),
    "lost": (True, "protocol", "unheard of"),
    **{kind: (True, kind) for kind in ("reset", "timeout", "cut_off", "closed")},
}
NO_ANSWER = {
    "invalid": {},
    "error": error("unheard_of"),
    "failed": {"status": "failed", "error": {"code": "server_error"}, "output": []},
    "unfinished": {"status": "queued", "output": []},
}


def landings(rule):
    """What must be judged by this line of the table."""
    if rule.status in NO_ANSWER:
        return [reply(200, NO_ANSWER[rule.status])]
    if rule.status in LOSSES:
        left, *kinds = LOSSES[rule.status]
        return [Lost(left, kind, "r", 1.0 if left else None, 2.0) for kind in kinds]
    if isinstance(rule.status, str):
        return [reply(status, error()) for status in members(rule.status)]
    headers = {"retry-after": "3"} if rule.asks else {}
    if rule.code is not None:
        words = [(rule.code, None), (None, rule.code), ("unheard_of", rule.code), (rule.code, "unheard_of")]
        return [reply(rule.status, error(*each), headers) for each in words]
    if rule.bare:
        return [reply(rule.status, body, headers) for body in (b"", b"<html>", b"[]")]
    words = [(None, None), ("unheard_of", "of_that_kind")]
    return [reply(rule.status, error(*each), headers) for each in words]


def members(group):
    """Return the statuses of a group that have no line of their own."""
    if group == "other":
        return [103, 600]
    size = 10 ** group.count("x")
    first = int(group.rstrip("x")) * size
    ours = {rule.status for rule in TABLE if rule.code is None} | (
        set(range(520, 530)) if group == "5xx" else set()
    )
    return [status for status in range(first, first + size) if status not in ours]


@pytest.mark.parametrize("rule", TABLE, ids=lambda rule: " ".join(map(str, rule[:2] + rule[7:])))
def test_the_table_is_obeyed_line_by_line(rule):
    path = RESPONSES if rule.status in ("failed", "unfinished") else CHAT
    for landed in landings(rule):
        got = verdict(landed, path, doubted=rule.doubted)
        assert (type(got), got.billed, got.error) == (KINDS[rule.action], rule.billed, rule.error), landed
        assert got.message.startswith(rule.meaning)
        if isinstance(got, Hold):
            assert got.scope == rule.scope
        if isinstance(got, Again):
            assert got.charged == (rule.action == "again")
        assert blames_endpoint(landed) == (rule.scope == "endpoint")


def test_no_two_lines_of_the_table_match_the_same():
    assert len({rule[:2] + rule[7:] for rule in TABLE}) == len(TABLE)


# --- losses

LEFT = Lost(True, "reset", "the server closed the connection", 1.0, 2.0)
NEVER_LEFT = Lost(False, "connect", "connection refused", None, 2.0)


def test_a_loss_after_it_left_is_in_doubt():
    got = verdict(LEFT)
    assert (type(got), got.billed, got.charged) == (Again, "maybe", True)
    got = verdict(LEFT, policy=ONCE)
    assert (type(got), got.state, got.billed) == (Fail, "in_doubt", "maybe")
    assert "the server closed the connection" in got.message


@pytest.mark.parametrize(("policy", "charged"), [(Policy(), 0), (ONCE, 0), (Policy(max_attempts=1), 99)])
def test_a_loss_before_it_left_holds_the_endpoint_and_costs_nothing(policy, charged):
    got = verdict(NEVER_LEFT, policy=policy, charged=charged)
    assert (type(got), got.scope, got.billed) == (Hold, "endpoint", "no")
    assert "connection refused" in got.message


@pytest.mark.parametrize(("holds", "longest_s"), [(0, 0.5), (1, 1.0), (3, 4.0), (50, 60.0)])
def test_holds_grow_with_those_before(holds, longest_s):
    for landed in (NEVER_LEFT, reply(429)):
        assert verdict(landed, standing=Standing(holds=holds), chance=0.0).until == NOW
        assert verdict(landed, standing=Standing(holds=holds), chance=0.5).until == NOW + longest_s / 2


# --- attempts


@pytest.mark.parametrize("landed", [LEFT, reply(500), reply(502), reply(409), reply(200, b"cut")])
def test_the_last_attempt_exhausts_the_row(landed):
    policy = Policy(max_attempts=3)
    for charged in (0, 1):
        got = verdict(landed, charged=charged, policy=policy)
        assert (type(got), got.charged) == (Again, True)
    got = verdict(landed, charged=2, policy=policy)
    assert (type(got), got.state) == (Fail, "exhausted")
    assert got.message.startswith("3 attempts, the last: ")
    assert got.billed == verdict(landed).billed


@pytest.mark.parametrize(("charged", "longest_s"), [(0, 0.5), (1, 1.0), (2, 2.0), (20, 60.0)])
def test_the_backoff_of_a_row_grows_with_its_own_attempts(charged, longest_s):
    policy = Policy(max_attempts=100)
    assert verdict(LEFT, charged=charged, policy=policy, chance=0.0).due == NOW
    assert verdict(LEFT, charged=charged, policy=policy, chance=0.5).due == NOW + longest_s / 2


PROBE = {"policy": Policy(max_attempts=3), "standing": Standing(holds=1, probe=True)}


@pytest.mark.parametrize("landed", [reply(429), reply(503, error(), {"retry-after": "3"})])
def test_a_refusal_of_the_pool_is_free_unless_it_was_the_probe(landed):
    got = verdict(landed, charged=2, policy=Policy(max_attempts=3))
    assert (type(got), got.scope, got.charged, got.due) == (Hold, "pool", False, NOW)
    got = verdict(landed, charged=1, **PROBE)
    assert (type(got), got.charged, got.due) == (Hold, True, NOW)


def test_a_probe_that_is_refused_to_its_last_attempt_lets_another_go_first():
    got = verdict(reply(429), charged=2, **PROBE)
    assert (type(got), got.charged) == (Hold, True)
    assert got.due > got.until


def test_it_fails_if_others_get_through_meanwhile_and_it_is_refused_again():
    got = verdict(reply(429), charged=3, policy=Policy(max_attempts=3))
    assert (type(got), got.state, got.billed) == (Fail, "exhausted", "no")
    assert got.message.startswith("3 attempts, the last: the rate limit is reached")


TAIL = {
    "policy": Policy(max_attempts=3),
    "standing": Standing(holds=4, probe=True, down=True, tail=True, suspect=True),
}


@pytest.mark.parametrize("landed", [reply(429), reply(502), LEFT])
def test_where_nothing_else_is_left_that_could_get_through_they_go_first_in_turn_and_fail(landed):
    got = verdict(landed, charged=1, **TAIL)
    assert (type(got), got.charged) == (Hold, True)
    assert got.due > got.until
    got = verdict(landed, charged=2, **TAIL)
    assert (type(got), got.state) == (Fail, "exhausted")


# --- an earlier attempt that is under way yet

IN_PROGRESS = reply(409, error("idempotency_key_in_progress"))
#: How long an answer may take, in seconds, and how many waits for it are free.
WAITS = [(0.5, 8), (29.0, 8), (30.0, 9), (300.0, 18), (3600.0, 128)]


@pytest.mark.parametrize(("timeout_s", "most"), WAITS)
def test_a_key_in_progress_is_waited_for_as_long_as_an_answer_may_take_and_then_charged(timeout_s, most):
    policy = Policy(max_attempts=2, timeout_s=timeout_s)
    for charged in (0, 1):
        for free in (0, most - 1):
            got = verdict(IN_PROGRESS, charged=charged, free=free, policy=policy)
            assert (type(got), got.charged, got.billed, got.replayed) == (Again, False, "no", False)
    got = verdict(IN_PROGRESS, free=most, policy=policy)
    assert (type(got), got.charged) == (Again, True)
    got = verdict(IN_PROGRESS, charged=1, free=most, policy=policy)
    assert (type(got), got.state, got.error) == (Fail, "exhausted", "in_progress")


@pytest.mark.parametrize(("timeout_s", "most"), WAITS)
def test_the_free_waits_last_longer_than_an_answer_on_average(timeout_s, most):
    policy = Policy(timeout_s=timeout_s)
    waits = [verdict(IN_PROGRESS, free=free, policy=policy).due - NOW for free in range(most)]
    assert waits == sorted(waits)
    assert sum(waits) >= timeout_s


def test_what_the_server_asks_for_is_a_minimum_for_a_wait_too():
    landed = reply(409, error("idempotency_key_in_progress"), {"retry-after": "7"})
    assert verdict(landed).due == NOW + 7
    assert verdict(landed, free=6, chance=1.0).due == NOW + 32


@pytest.mark.parametrize("body", [b"", b"busy", error(), error("conflict")])
def test_a_conflict_after_an_attempt_in_doubt_is_that_attempt(body):
    got = verdict(reply(409, body), charged=3, doubted=True)
    assert (type(got), got.charged, got.error) == (Again, False, "in_progress")
    got = verdict(reply(409, body), charged=3)
    assert (type(got), got.charged, got.error) == (Again, True, "conflict")


@pytest.mark.parametrize("status", [400, 409, 422])
def test_a_key_that_came_with_another_body_is_no_wait_even_after_an_attempt_in_doubt(status):
    got = verdict(reply(status, error("idempotency_key_reused")), doubted=True)
    assert (type(got), got.state, got.billed, got.error) == (Fail, "refused", "no", "key_reused")
    assert "--namespace" in got.message


def test_a_doubt_changes_nothing_but_conflicts():
    for status, body, headers, kind, billed, word in FAILURES:
        if status != 409:
            got = verdict(reply(status, body, headers), doubted=True)
            assert (type(got), got.billed, got.error) == (kind, billed, word)


# --- what the server has said before

REPLAYED = {"idempotent-replayed": "true"}


@pytest.mark.parametrize(
    "name",
    [
        *("idempotent-replayed", "idempotency-replayed", "x-idempotent-replay", "x-idempotency-key-replayed"),
        *("replayed-idempotently", "x-gateway-idempotent-replayed"),
    ],
)
@pytest.mark.parametrize("value", ["true", "True", " TRUE ", "1", "yes"])
def test_a_reply_says_by_its_header_that_it_was_given_before(name, value):
    assert is_replayed(reply(200, b"", {"date": "x", name: value}))
    assert is_replayed(reply(500, b"", {name: value, "x-request-id": "r"}))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        *({"idempotent-replayed": value} for value in ("", " ", "false", "0", "no", "2", "truely", "null")),
        *({name: "true"} for name in ("idempotency-key", "replayed", "x-replay", "idempotent", "x-cache")),
        {"idempotency-key": "true", "x-replayed": "true"},
        {"x-note": "idempotent-replayed: true"},
    ],
)
def test_what_is_no_such_mark_says_nothing(headers):
    assert not is_replayed(reply(200, b"", headers))


def test_an_answer_says_whether_it_was_given_before():
    body = orjson.dumps(ANSWERS[CHAT])
    assert verdict(reply(200, body, REPLAYED)).replayed
    assert not verdict(reply(200, body)).replayed
    assert verdict(reply(200, body, REPLAYED)).answers == (body,)


SAID_AGAIN = [each for each in FAILURES if each[0] >= 300]


@pytest.mark.parametrize(("status", "body", "headers", "kind", "billed", "word"), SAID_AGAIN)
def test_a_failure_that_is_only_said_again_goes_again_with_another_key_whatever_it_means(
    status, body, headers, kind, billed, word
):
    landed = reply(status, body, {"x-request-id": "r-1", **headers, **REPLAYED})
    for standing in (Standing(), DOWN, Standing(holds=3, probe=True), Standing(found=False)):
        got = verdict(landed, standing=standing, chance=0.5)
        assert (type(got), got.charged, got.replayed) == (Again, True, True)
        assert (got.billed, got.error, got.status, got.request_id) == (billed, word, status, "r-1")
        assert NOW + 0.25 <= got.due <= NOW + 3
    got = verdict(landed, charged=2, policy=Policy(max_attempts=3))
    assert (type(got), got.state, got.replayed, got.error) == (Fail, "exhausted", True, word)
    assert got.message.startswith("3 attempts, the last: ")


@pytest.mark.parametrize(("status", "body", "headers", "kind", "billed", "word"), SAID_AGAIN)
def test_at_most_once_a_failure_that_is_only_said_again_is_in_doubt_if_it_may_have_been_billed(
    status, body, headers, kind, billed, word
):
    got = verdict(reply(status, body, {**headers, **REPLAYED}), policy=ONCE)
    if billed == "maybe":
        assert (type(got), got.state, got.error) == (Fail, "in_doubt", word)
    else:
        assert (type(got), got.replayed, got.error) == (Again, True, word)


@pytest.mark.parametrize("body", [b"", b"<html>", error("server_error"), error("insufficient_quota")])
def test_a_damaged_answer_that_comes_again_keeps_its_key(body):
    first, again = verdict(reply(200, body)), verdict(reply(200, body, REPLAYED))
    assert first == again
    assert not getattr(again, "replayed", False)


# --- the endpoint as a whole

DOWN = Standing(holds=2, down=True)


@pytest.mark.parametrize("landed", [LEFT, reply(502), reply(503), reply(504), reply(529, error())])
def test_what_is_lost_while_the_endpoint_is_down_holds_it_free_of_charge(landed):
    for charged in (0, 99):
        got = verdict(landed, charged=charged, standing=DOWN)
        assert (type(got), got.scope, got.charged) == (Hold, "endpoint", False)
        assert got.until == NOW + 1.0  # half of the third backoff
        assert got.due > got.until  # another one goes first
        assert endpoint_hold(got) == got.until


@pytest.mark.parametrize("landed", [reply(500, error()), reply(409), reply(408), reply(200, b"cut")])
def test_what_says_something_of_the_row_is_charged_while_the_endpoint_is_down_too(landed):
    got = verdict(landed, standing=DOWN)
    assert (type(got), got.charged) == (Again, True)


def test_at_most_once_a_row_ends_in_doubt_and_holds_what_is_down():
    got = verdict(reply(502), policy=ONCE, standing=DOWN)
    assert (type(got), got.state) == (Fail, "in_doubt")
    assert endpoint_hold(got) == NOW + 1.0
    assert endpoint_hold(verdict(reply(502), policy=ONCE)) is None


def test_what_is_not_found_is_the_rows_mistake_only_if_anything_ever_was():
    assert type(verdict(reply(404, error()))) is Fail
    got = verdict(reply(404, error()), charged=99, standing=Standing(found=False))
    assert (type(got), got.charged, got.error) == (Again, False, "not_found")
    assert got.due > NOW


@pytest.mark.parametrize("kind", ["stopped", "closed"])
def test_what_our_own_stop_ended_is_charged_to_nobody(kind):
    for left in (True, False):
        got = verdict(Lost(left, kind, "r", 1.0 if left else None, 2.0), charged=4)
        if left and kind == "stopped":
            continue
        assert (type(got), got.scope, got.charged) == (Hold, "job", False)
        assert endpoint_hold(got) is None


def test_what_the_server_asked_for_is_too_little_if_it_did_not_help():
    landed = reply(429, b"", {"retry-after-ms": "20"})
    assert verdict(landed, chance=0.0).until == NOW + 0.02
    assert verdict(landed, chance=0.5, standing=Standing(holds=3)).until == NOW + 2.0
    long = reply(429, b"", {"retry-after": "100"})
    assert verdict(long, chance=0.5, standing=Standing(holds=3)).until == NOW + 105.0


# --- what the server asks for

DATE = {"date": "Wed, 21 Oct 2015 07:28:00 GMT"}


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "0.5"}, 0.0005),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "86400"}, 86_400.0),
        ({"retry-after-ms": "1500", "retry-after": "7"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "7"}, 7.0),
        ({"retry-after-ms": "-1", "retry-after": "7"}, 7.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:30 GMT", **DATE}, 30.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT", **DATE}, 0.0),
        ({"retry-after": "Wed, 21 Oct 2015 09:28:30 +0200", **DATE}, 30.0),
    ],
)
def test_the_time_that_the_server_asks_for_is_a_minimum(headers, wait_s):
    for status, body in ((429, b""), (503, error())):
        got = verdict(reply(status, body, headers), chance=0.0)
        assert (type(got), got.until) == (Hold, NOW + wait_s)
        later = verdict(reply(status, body, headers), chance=0.99).until
        assert NOW + wait_s <= later <= NOW + wait_s * 1.1
    assert verdict(reply(500, error(), headers), chance=0.0).due == NOW + wait_s
    assert verdict(reply(500, error(), headers), chance=0.99).due >= NOW + wait_s


@pytest.mark.parametrize(
    "headers",
    [
        {},
        *(
            {name: value}
            for name, value in product(
                ("retry-after", "retry-after-ms"),
                (
                    "",
                    " ",
                    "soon",
                    "-5",
                    "nan",
                    "inf",
                    "-inf",
                    "1e400",
                    "1e300",
                    "999999999999",
                    "0x10",
                    "²",
                    "1,5",
                    "Mon, 99 Foo 2015 99:99:99 GMT",
                    "Wed, 21 Oct 9999 07:28:00 GMT",
                    "Wed, 21 Oct 2015 07:28:00 +99999999999999999999",
                ),
            )
        ),
        {"retry-after": "86401"},
        {"retry-after": "Wed, 21 Oct 2015 07:28:30 GMT"},  # no Date to read it by
        {"retry-after": "Wed, 21 Oct 2015 07:28:30 GMT", "date": "today"},
        {"retry-after": "Wed, 21 Oct 2015 07:27:59 GMT", **DATE},  # gone by
        {"retry-after": "Wed, 21 Oct 2015 07:28:30 -0000", **DATE},  # no time zone
        {"retry-after": "Wed, 21 Oct 2099 07:28:30 GMT", **DATE},
    ],
)
def test_a_time_that_cannot_be_meant_is_as_none(headers):
    got = verdict(reply(429, b"", {**DATE, **headers} if headers.get("date") else headers), chance=0.5)
    assert (type(got), got.until) == (Hold, NOW + 0.25)
    assert type(verdict(reply(503, error(), headers))) is Again


# --- successes


@pytest.mark.parametrize("path", ANSWERS)
@pytest.mark.parametrize("status", [200, 201, 299])
def test_a_whole_answer_is_done(path, status):
    body = orjson.dumps(ANSWERS[path])
    got = verdict(reply(status, body, {"x-request-id": "r"}), path)
    finish = "length" if path == COMPLETIONS else None
    assert got == Done(status, "r", (body,), Usage() if path == MODERATIONS else None, finish)
    assert got.billed == "yes"


def chat_ending(*reasons):
    return {"choices": [{"message": {"content": "hi"}, "finish_reason": reason} for reason in reasons]}


@pytest.mark.parametrize(
    ("path", "body", "finish"),
    [
        (CHAT, chat_ending("stop"), None),
        (CHAT, chat_ending(None), None),
        (CHAT, chat_ending(7), None),
        (CHAT, chat_ending("length"), "length"),
        (CHAT, chat_ending("stop", "length"), "length"),
        (CHAT, chat_ending("content_filter"), "content_filter"),
        (CHAT, chat_ending("length", "content_filter", "length"), "content_filter"),
        # what was filtered may have no message at all
        (CHAT, {"choices": [{"finish_reason": "content_filter"}]}, "content_filter"),
        (RESPONSES, {"status": "completed", "output": []}, None),
        (RESPONSES, {"output": []}, None),
        (RESPONSES, {"status": "incomplete", "output": []}, "length"),
        (RESPONSES, {"status": "incomplete", "incomplete_details": 5, "output": []}, "length"),
        (
            RESPONSES,
            {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}, "output": []},
            "length",
        ),
        (
            RESPONSES,
            {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}, "output": []},
            "content_filter",
        ),
    ],
)
def test_an_answer_that_ended_early_is_an_answer_and_says_so(path, body, finish):
    got = verdict(reply(200, body), path)
    assert (type(got), got.finish) == (Done, finish)


def vectors(count):
    return {"data": [{"embedding": [0.1]}] * count}


@pytest.mark.parametrize(
    ("given", "count"),
    [("a", 1), (["a"], 1), (["a", "b", "c"], 3), ([1, 2, 3], 1), ([[1, 2], [3]], 2)],
)
def test_there_is_one_embedding_for_each_input(given, count):
    body = orjson.dumps({"model": "m", "input": given})
    assert type(verdict(reply(200, vectors(count)), EMBEDDINGS, body=body)) is Done
    for other in (count - 1, count + 1):
        got = verdict(reply(200, vectors(other)), EMBEDDINGS, body=body)
        assert (type(got), got.error) == (Again, "invalid_answer")
        assert f"{other} embeddings for {count} inputs" in got.message


def test_an_input_that_only_the_server_understands_is_not_counted():
    body = orjson.dumps({"model": "m", "input": {"image": "x"}})
    assert type(verdict(reply(200, vectors(2)), EMBEDDINGS, body=body)) is Done


def test_blank_lines_that_kept_the_connection_alive_are_no_part_of_the_answer():
    body = orjson.dumps(ANSWERS[CHAT])
    assert verdict(reply(200, b"\n\r\n\n  " + body + b"\n")).answers == (body,)


def test_an_answer_tells_its_usage_and_tier():
    chat = {**ANSWERS[CHAT], "service_tier": "flex"}
    chat["usage"] = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    assert verdict(reply(200, chat)).usage == Usage(5, completion_tokens=2, tier="flex")
    responses = {**ANSWERS[RESPONSES], "usage": {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7}}
    assert verdict(reply(200, responses), RESPONSES).usage == Usage(5, completion_tokens=2)
    embeddings = {**ANSWERS[EMBEDDINGS], "usage": {"prompt_tokens": 5, "total_tokens": 5}}
    assert verdict(reply(200, embeddings), EMBEDDINGS).usage == Usage(5)


NO_ANSWERS = [
    (CHAT, b""),
    (CHAT, b"null"),
    (CHAT, b"[]"),
    (CHAT, b"5"),
    (CHAT, b'"text"'),
    (CHAT, b"data: {}\n\n"),
    (CHAT, b"{}"),
    (CHAT, b'{"choices": null}'),
    (CHAT, b'{"choices": []}'),
    (CHAT, b'{"choices": {}}'),
    (CHAT, b'{"choices": [5]}'),
    (CHAT, orjson.dumps(ANSWERS[CHAT])[:-1]),
    (CHAT, orjson.dumps(ANSWERS[CHAT]) + b"}"),
    (CHAT, orjson.dumps(ANSWERS[RESPONSES])),
    (CHAT, b'{"choices": [{}]}'),
    (CHAT, b'{"choices": [{"message": null}]}'),
    (CHAT, b'{"choices": [{"message": "hi"}]}'),
    (CHAT, b'{"choices": [{"text": "hi"}]}'),
    (CHAT, b'{"choices": [{"message": {}}, {}]}'),
    (COMPLETIONS, b'{"choices": []}'),
    (COMPLETIONS, b'{"choices": [{"message": {}}]}'),
    (COMPLETIONS, b'{"choices": [{"text": null}]}'),
    (RESPONSES, b"{}"),
    (RESPONSES, b'{"status": "completed"}'),
    (RESPONSES, b'{"status": "completed", "output": null}'),
    (EMBEDDINGS, b"{}"),
    (EMBEDDINGS, b'{"data": []}'),
    (MODERATIONS, b'{"results": []}'),
    (MODERATIONS, b'{"results": 1}'),
    (EMBEDDINGS, b'{"data": [{}]}'),
    (EMBEDDINGS, b'{"data": [{"embedding": null}]}'),
    (EMBEDDINGS, b'{"data": [{"embedding": []}]}'),
    *(
        (EMBEDDINGS, b'{"data": [{"embedding": %b}]}' % odd)
        for odd in (b'""', b"[ ]", b"{}", b"5", b"true", b'["a"]', b"[null]", b"[[1]]")
    ),
    (MODERATIONS, b'{"results": [null]}'),
]


@pytest.mark.parametrize(("path", "body"), NO_ANSWERS)
def test_a_success_without_a_whole_answer_is_none(path, body):
    got = verdict(reply(200, body), path)
    assert (type(got), got.billed, got.error) == (Again, "maybe", "invalid_answer")
    assert got.message.startswith("a success without a whole answer: ")
    got = verdict(reply(200, body), path, policy=ONCE)
    assert (type(got), got.state) == (Fail, "in_doubt")


@pytest.mark.parametrize("path", ANSWERS)
def test_an_error_in_a_success_means_what_its_code_means(path):
    got = verdict(reply(200, error("insufficient_quota")), path)
    assert (type(got), got.error) == (Halt, "quota")


@pytest.mark.parametrize(
    ("path", "body", "word", "says"),
    [
        (CHAT, error("server_error"), "error_in_answer", "m"),
        (CHAT, {"choices": [{"finish_reason": "error"}]}, "error_in_answer", "ended in an error"),
        (RESPONSES, error("server_error"), "error_in_answer", "m"),
        (RESPONSES, {"status": "failed", "error": {"message": "no\nluck"}}, "response_failed", "no luck"),
        (
            RESPONSES,
            {"status": "failed", "error": {"code": "server_error"}},
            "response_failed",
            "server_error",
        ),
        (RESPONSES, {"status": "failed", "error": "x", "output": []}, "response_failed", "does not say why"),
        (RESPONSES, {"status": "cancelled", "output": []}, "response_failed", "cancelled"),
        (RESPONSES, {"status": "queued", "output": []}, "response_unfinished", "queued"),
        (RESPONSES, {"status": "in_progress"}, "response_unfinished", "in_progress"),
    ],
)
def test_a_success_that_says_that_it_is_none_is_not_believed(path, body, word, says):
    got = verdict(reply(200, body), path)
    assert (type(got), got.billed, got.error) == (Again, "maybe", word)
    assert says in got.message
    assert "\n" not in got.message


@pytest.mark.parametrize("path", ANSWERS)
def test_an_answer_that_is_cut_anywhere_is_none(path):
    body = orjson.dumps(ANSWERS[path] | {"usage": {"prompt_tokens": 12}})
    for end in range(len(body)):
        assert type(verdict(reply(200, body[:end]), path)) is Again, body[:end]


@pytest.mark.parametrize("path", ANSWERS)
@pytest.mark.parametrize(
    "odd",
    [
        {"usage": []},
        {"usage": 5},
        {"usage": "many"},
        {"usage": True},
        {"usage": {"prompt_tokens": 5, "completion_tokens": 1, "prompt_tokens_details": 7}},
        {"usage": {"input_tokens": 5, "output_tokens": 1, "output_tokens_details": []}},
        {"service_tier": 7},
        {"service_tier": {}},
        {"usage": [], "service_tier": []},
    ],
)
def test_a_paid_answer_is_not_lost_over_what_only_the_bill_wants(path, odd):
    body = orjson.dumps({**ANSWERS[path], **odd})
    got = verdict(reply(200, body), path)
    assert (type(got), got.answers) == (Done, (body,))
    assert got.usage == (Usage() if path == MODERATIONS else None)


def test_a_usage_that_cannot_be_right_is_unknown():
    for usage in ({}, {"prompt_tokens": -1, "completion_tokens": 1}, {"prompt_tokens": "5"}):
        got = verdict(reply(200, {**ANSWERS[CHAT], "usage": usage}))
        assert (type(got), got.usage) == (Done, None)


# --- bodies


def test_raw_line_breaks_go_and_nothing_else_changes():
    body = (
        b'\n{\r\n  "choices" : [ {"message": {}, "a":1.50, "b" : "x\\ny\\u00e9 \xc3\xa9 "}]'
        b'\r, "id":\n "c" }\r\n'
    )
    got = verdict(reply(200, body))
    assert type(got) is Done
    expected = b'{  "choices" : [ {"message": {}, "a":1.50, "b" : "x\\ny\\u00e9 \xc3\xa9 "}], "id": "c" }'
    assert got.answers == (expected,)
    assert orjson.loads(expected) == orjson.loads(body)


def test_a_body_on_one_line_is_left_as_it_is():
    body = b' {"choices" : [{"message": {}}]}\t'
    assert verdict(reply(200, body)).answers == (body,)


@pytest.mark.parametrize(
    "body",
    [
        b'{"choices": [{"text": "a\nb"}]}',
        b'{"choices": [{"index": 1\n2}]}',
        b'{"choices": [{"a": tr\nue}]}',
        b'{"choices": [{"text": "a\\\nn"}]}',
    ],
)
def test_what_only_looks_like_json_without_its_line_breaks_is_no_answer(body):
    assert type(verdict(reply(200, body))) is Again


@pytest.mark.parametrize("text", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\xaf"])
def test_what_is_not_utf_8_is_no_answer_and_no_body(text):
    assert type(verdict(reply(200, b'{"choices": [{"text": "%b"}]}' % text))) is Again
    for status in (400, 500):
        got = verdict(
            reply(status, b'{"error": {"message": "m"}, "param": "%b"}' % text), policy=Policy(max_attempts=1)
        )
        assert (type(got), got.body) == (Fail, None)


@pytest.mark.parametrize("opening", [b"[", b'{"choices":', b'{"error":', b'{"usage":', b'{"x":'])
@pytest.mark.parametrize("status", [200, 400, 429, 500])
def test_a_bottomless_body_is_judged_too(opening, status):
    got = verdict(reply(status, opening * 100_000), policy=Policy(max_attempts=1))
    assert isinstance(got, Fail | Hold)
    closing = {b"[": b"]"}.get(opening, b"}")
    body = b'{"choices": [{"message": {}}], "x": %b1%b}' % (opening * 100_000, closing * 100_000)
    verdict(reply(status, body))


def test_an_error_keeps_its_body_if_it_is_json():
    body = b'{\n "error": {"message": "bad\\nidea",\r\n "code": "c"}}\n'
    got = verdict(reply(400, body))
    assert got.body == b'{ "error": {"message": "bad\\nidea", "code": "c"}}'
    assert got.message == "the server refuses what the row says: bad idea"
    assert verdict(reply(400, b"<html>")).body is None
    assert verdict(reply(400, b'{"detail": 1}')).body == b'{"detail": 1}'


def test_an_error_without_words_is_told_by_its_status():
    assert "HTTP 400" in verdict(reply(400, {"error": {}})).message
    assert "HTTP 413: no body" in verdict(reply(413)).message
    vllm = {"object": "error", "message": "too long", "type": "BadRequestError", "code": 400}
    assert verdict(reply(400, vllm)).message.endswith("HTTP 400: too long")
    assert verdict(reply(400, {"detail": "no such field"})).message.endswith("HTTP 400: no such field")
    assert 'HTTP 400: {"detail":[1]}' in verdict(reply(400, {"detail": [1]})).message
    page = b"<!DOCTYPE html>\n<html><style>a {}</style><title>gone</title><p>for\ngood</html>"
    assert "HTTP 404: gone for good" in verdict(reply(404, page)).message
    assert "HTTP 404: a < b" in verdict(reply(404, b"a < b")).message
    assert "HTTP 308 to https://x/y" in verdict(reply(308, b"", {"location": "https://x/y"})).message
    assert len(verdict(reply(404, b"x" * 100_000)).message) < 400


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, error(message="x" * 5_000_000)),
        (400, {"detail": "x" * 5_000_000}),
        (200, error(message="x" * 5_000_000)),
        (200, {"status": "failed", "error": {"message": "x" * 5_000_000}}),
    ],
)
def test_a_message_has_an_end(status, body):
    assert len(verdict(reply(status, body), RESPONSES).message) < 1200


# --- anything

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ("error", "choices", "output", "data", "results", "usage", "status", "service_tier")
WORDS = ("insufficient_quota", "billing_not_active", "failed", "code", "type", "message")
shaped = st.dictionaries(
    st.sampled_from(FIELDS),
    json_values
    | st.lists(
        st.dictionaries(st.sampled_from(["finish_reason", "index"]), json_values, max_size=2), max_size=2
    )
    | st.dictionaries(st.sampled_from(WORDS), json_values | st.sampled_from(WORDS), max_size=3),
    max_size=4,
)


@st.composite
def broken(draw):
    """JSON, cut or with bytes put in."""
    body = json.dumps(draw(shaped), indent=draw(st.sampled_from([None, 1]))).encode()
    cut = draw(st.integers(0, len(body)))
    return body[:cut] + draw(st.binary(max_size=3)) + body[cut + draw(st.integers(0, 2)) :]


bodies = st.binary(max_size=60) | shaped.map(lambda value: json.dumps(value).encode()) | broken()
headers = st.dictionaries(
    st.sampled_from(
        ["retry-after", "retry-after-ms", "date", "location", "x-request-id", "x-should-retry", *REPLAYED]
    ),
    st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=12)
    | st.sampled_from(["Wed, 21 Oct 2015 07:28:00 GMT", "1e308", "-0", "nan", "12", "true", "false"])
    | st.floats().map(str),
    max_size=4,
)
statuses = st.sampled_from([200, 400, 401, 429, 500, 503]) | st.integers(0, 1000)


@settings(max_examples=300)
@given(
    st.sampled_from(list(ANSWERS)),
    statuses,
    bodies,
    headers,
    st.floats(0, 1, exclude_max=True),
    st.builds(Policy, max_attempts=st.integers(1, 3), at_most_once=st.booleans()),
    st.builds(
        Standing,
        holds=st.integers(0, 2000),
        probe=st.booleans(),
        down=st.booleans(),
        found=st.booleans(),
        tail=st.booleans(),
        suspect=st.booleans(),
    ),
    st.integers(0, 2),
    st.integers(0, 30),
    st.booleans(),
)
@example(CHAT, 429, b"", {"retry-after": "1, 1 1 1 1"}, 0.5, Policy(), Standing(), 0, 0, False)
def test_anything_has_a_verdict(
    path, status, body, headers, chance, policy, standing, charged, free, doubted
):
    landed = reply(status, body, headers)
    got = verdict(landed, path, charged, chance, policy, standing, free=free, doubted=doubted)
    assert got.billed in ("no", "maybe", "yes")
    assert got.status == status
    if isinstance(got, Done):
        assert 200 <= status < 300
        (answer,) = got.answers
        assert b"\n" not in answer
        assert b"\r" not in answer
        assert json.loads(answer.decode()) == json.loads(body.decode())
        return
    if isinstance(got, Fail):
        spent = charged + 1 >= policy.max_attempts or headers.get("x-should-retry") == "false"
        assert spent or got.state != "exhausted"
        assert got.body is None or (json.loads(got.body.decode()), b"\n" in got.body)[1] is False
    else:
        assert got.billed == "no" or not policy.at_most_once
    if is_replayed(landed) and status >= 300:
        assert isinstance(got, Again | Fail)
        assert got.replayed
    if isinstance(got, Again | Hold):
        until = got.due if isinstance(got, Again) else got.until
        assert NOW <= until <= NOW + 86_400 * 1.1
    if not isinstance(got, Again):
        assert got.message
        assert "\n" not in got.message
        got.message.encode()
