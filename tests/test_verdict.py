import json
from itertools import product

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from batcher.money.usage import Usage
from batcher.request import Claimed, Lost, Reply, Request, Row
from batcher.verdict import TABLE, Again, Done, Fail, Halt, Hold, Policy, Standing, judge

CHAT, RESPONSES, EMBEDDINGS = "/v1/chat/completions", "/v1/responses", "/v1/embeddings"
MODERATIONS, COMPLETIONS = "/v1/moderations", "/v1/completions"
NOW = 1000.0
ONCE = Policy(at_most_once=True)


def claimed(path=CHAT, charged=0):
    request = Request((Row(1, b"k" * 16, "a"),), "key", "shared", "m", path, b"{}", 1, None)
    return Claimed(7, request, charged + 1, charged)


def reply(status=200, body=b"", headers=()):
    if not isinstance(body, bytes):
        body = orjson.dumps(body)
    raw = tuple((name.encode(), value.encode("latin-1")) for name, value in dict(headers).items())
    return Reply(status, raw, body, 1.0, 2.0)


def verdict(landed, path=CHAT, charged=0, chance=0.5, policy=None, standing=None):
    return judge(claimed(path, charged), landed, NOW, chance, policy or Policy(), standing or Standing())


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
    (404, error("model_not_found"), {}, Fail, "no", "bad_request"),
    (413, b"", {}, Fail, "no", "bad_request"),
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
    (402, b"", {}, Halt, "no", "quota"),
    (403, error(), {}, Halt, "no", "permission"),
    (408, b"", {}, Again, "maybe", "timeout"),
    (408, error(), {}, Again, "maybe", "timeout"),
    (409, error(), {}, Again, "no", "conflict"),
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
    (400, error(None, None, "Rate limit reached, try again in 20s"), {}, Fail, "no", "bad_request"),
    (500, error(None, "server_error"), {}, Again, "no", "server_error"),
    (500, {"error": {}}, {}, Again, "no", "server_error"),
    (500, error(500, None), {}, Again, "no", "server_error"),
    # not the API's own words: whoever said it, the work may be done
    (500, b"<html>Internal Server Error</html>", {}, Again, "maybe", "server_error"),
    (500, b"", {}, Again, "maybe", "server_error"),
    (500, {"detail": "x"}, {}, Again, "maybe", "server_error"),
    (500, {"error": "x"}, {}, Again, "maybe", "server_error"),
    (503, error(), {}, Again, "no", "unavailable"),
    (503, error(), {"retry-after": "3"}, Hold, "no", "unavailable"),
    (503, b"upstream connect error", {}, Again, "maybe", "unavailable"),
    (502, b"<html>", {}, Again, "maybe", "bad_gateway"),
    (502, error(), {}, Again, "maybe", "bad_gateway"),
    (504, b"", {}, Again, "maybe", "gateway_timeout"),
    (520, b"", {}, Again, "maybe", "server_error"),
    (599, error(), {}, Again, "maybe", "server_error"),
    (100, b"", {}, Again, "maybe", "invalid_answer"),
    (199, b"", {}, Again, "maybe", "invalid_answer"),
    (600, b"", {}, Again, "maybe", "invalid_answer"),
    (999, error("insufficient_quota"), {}, Again, "maybe", "invalid_answer"),
    (200, b"", {}, Again, "maybe", "invalid_answer"),
    (204, b"", {}, Again, "maybe", "invalid_answer"),
    (200, b"<html>", {}, Again, "maybe", "invalid_answer"),
    (200, error("server_error"), {}, Again, "maybe", "invalid_answer"),
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

KINDS = {"fail": Fail, "again": Again, "hold pool": Hold, "hold endpoint": Hold, "halt": Halt}


def landings(rule):
    """What must be judged by this line of the table."""
    match rule.status:
        case "never left" | "lost":
            return [Lost(rule.status == "lost", "reset", "r", None, 2.0)]
        case "stopped":
            return [Lost(False, kind, "r", None, 2.0) for kind in ("stopped", "closed")]
        case "invalid":
            return [reply(200, b"{}")]
        case "other":
            return [reply(600), reply(103)]
        case "3xx" | "4xx" | "5xx":
            first = int(rule.status[0]) * 100
            ours = {other.status for other in TABLE} | {
                int(str(other.status).split()[-1]) for other in TABLE if str(other.status).startswith("bare ")
            }
            return [reply(status, error()) for status in range(first, first + 100) if status not in ours]
        case str(word):
            return [reply(int(word.removeprefix("bare ")), body) for body in (b"", b"<html>", b"[]")]
        case status if rule.code is None:
            return [reply(status, error()), reply(status, error("unheard_of", "of_that_kind"))]
        case status:
            return [
                reply(status, error(rule.code)),
                reply(status, error(None, rule.code)),
                reply(status, error("unheard_of", rule.code)),
                reply(status, error(rule.code, "unheard_of")),
            ]


@pytest.mark.parametrize("rule", TABLE, ids=lambda rule: f"{rule.status} {rule.code}")
def test_the_table_is_obeyed_line_by_line(rule):
    for landed in landings(rule):
        got = verdict(landed)
        assert (type(got), got.billed, got.error) == (KINDS[rule.action], rule.billed, rule.error), landed
        if isinstance(got, Hold):
            assert got.scope == rule.action.removeprefix("hold ")
        if not isinstance(got, Again):
            assert got.message.startswith(rule.meaning)


def test_no_two_lines_of_the_table_match_the_same():
    assert len({(rule.status, rule.code) for rule in TABLE}) == len(TABLE)


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


def test_a_refusal_for_rate_is_free_unless_it_was_the_probe():
    policy, probe = Policy(max_attempts=3), Standing(probe=True)
    assert type(verdict(reply(429), charged=99, policy=policy)) is Hold
    assert type(verdict(reply(429), charged=1, policy=policy, standing=probe)) is Hold
    got = verdict(reply(429), charged=2, policy=policy, standing=probe)
    assert (type(got), got.state, got.billed) == (Fail, "exhausted", "no")


def test_an_overloaded_server_that_names_a_time_holds_the_pool_free_of_charge():
    landed = reply(503, error(), {"retry-after": "3"})
    got = verdict(landed, charged=99)
    assert (type(got), got.scope, got.until >= NOW + 3) == (Hold, "pool", True)
    assert type(verdict(landed, charged=99, standing=Standing(probe=True))) is Fail


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
    assert got == Done(status, "r", (body,), Usage() if path == MODERATIONS else None)
    assert got.billed == "yes"


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
    (CHAT, orjson.dumps(error())),
    (CHAT, b'{"choices": null}'),
    (CHAT, b'{"choices": []}'),
    (CHAT, b'{"choices": {}}'),
    (CHAT, b'{"choices": [5]}'),
    (CHAT, orjson.dumps(ANSWERS[CHAT])[:-1]),
    (CHAT, orjson.dumps(ANSWERS[CHAT]) + b"}"),
    (CHAT, orjson.dumps(ANSWERS[RESPONSES])),
    (COMPLETIONS, b'{"choices": []}'),
    (RESPONSES, b"{}"),
    (RESPONSES, b'{"status": "completed"}'),
    (RESPONSES, b'{"status": "completed", "output": null}'),
    (EMBEDDINGS, b"{}"),
    (EMBEDDINGS, b'{"data": []}'),
    (MODERATIONS, b'{"results": []}'),
    (MODERATIONS, b'{"results": 1}'),
    *(
        (RESPONSES, orjson.dumps({"output": [], "status": status}))
        for status in ("failed", "queued", "in_progress", "cancelled")
    ),
]


@pytest.mark.parametrize(("path", "body"), NO_ANSWERS)
def test_a_success_without_a_whole_answer_is_none(path, body):
    got = verdict(reply(200, body), path)
    assert (type(got), got.billed, got.error) == (Again, "maybe", "invalid_answer")
    got = verdict(reply(200, body), path, policy=ONCE)
    assert (type(got), got.state) == (Fail, "in_doubt")


@pytest.mark.parametrize("path", ANSWERS)
def test_an_answer_that_is_cut_anywhere_is_none(path):
    body = orjson.dumps(ANSWERS[path] | {"usage": {"prompt_tokens": 12}})
    for end in range(len(body)):
        assert type(verdict(reply(200, body[:end]), path)) is Again, body[:end]


def test_a_response_cut_off_by_its_output_limit_is_an_answer():
    body = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}, "output": []}
    assert type(verdict(reply(200, body), RESPONSES)) is Done


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
    body = b'\n{\r\n  "choices" : [ {"a":1.50, "b" : "x\\ny\\u00e9 \xc3\xa9\t".}]\r, "id":\n "c" }\r\n'
    body = body.replace(b'\t".', b' "')
    got = verdict(reply(200, body))
    assert type(got) is Done
    expected = b'{  "choices" : [ {"a":1.50, "b" : "x\\ny\\u00e9 \xc3\xa9 "}], "id": "c" }'
    assert got.answers == (expected,)
    assert orjson.loads(expected) == orjson.loads(body)


def test_a_body_on_one_line_is_left_as_it_is():
    body = b' {"choices" : [{}]}\t'
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
    body = b'{"choices": [{}], "x": %b1%b}' % (opening * 100_000, closing * 100_000)
    verdict(reply(status, body))


def test_an_error_keeps_its_body_if_it_is_json():
    body = b'{\n "error": {"message": "bad\\nidea",\r\n "code": "c"}}\n'
    got = verdict(reply(400, body))
    assert got.body == b'{ "error": {"message": "bad\\nidea", "code": "c"}}'
    assert got.message == "the server refuses what the row says: badidea"
    assert verdict(reply(400, b"<html>")).body is None
    assert verdict(reply(400, b'{"detail": 1}')).body == b'{"detail": 1}'


def test_an_error_without_words_is_told_by_its_status():
    assert "HTTP 400" in verdict(reply(400, {"error": {}})).message
    assert "HTTP 413: no body" in verdict(reply(413)).message
    assert "HTTP 404: <html>gone</html>" in verdict(reply(404, b"<html>\ngone</html>")).message
    assert "HTTP 308 to https://x/y" in verdict(reply(308, b"", {"location": "https://x/y"})).message
    assert len(verdict(reply(404, b"x" * 100_000)).message) < 400


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
    st.sampled_from(["retry-after", "retry-after-ms", "date", "location", "x-request-id"]),
    st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=12)
    | st.sampled_from(["Wed, 21 Oct 2015 07:28:00 GMT", "1e308", "-0", "nan", "12"])
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
    st.builds(Standing, holds=st.integers(0, 2000), probe=st.booleans()),
    st.integers(0, 2),
)
@example(CHAT, 429, b"", {"retry-after": "1, 1 1 1 1"}, 0.5, Policy(), Standing(), 0)
def test_anything_has_a_verdict(path, status, body, headers, chance, policy, standing, charged):
    got = verdict(reply(status, body, headers), path, charged, chance, policy, standing)
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
        assert charged + 1 >= policy.max_attempts or got.state != "exhausted"
        assert got.body is None or (json.loads(got.body.decode()), b"\n" in got.body)[1] is False
    else:
        assert got.billed == "no" or not policy.at_most_once
    if isinstance(got, Again | Hold):
        until = got.due if isinstance(got, Again) else got.until
        assert NOW <= until <= NOW + 86_400 * 1.1
    if not isinstance(got, Again):
        assert got.message
        assert "\n" not in got.message
        got.message.encode()
