"""Every fault, through a socket: what the client sees, and what the ledger says was billed."""

import http.client
import json
import socket
import subprocess
import sys
import time
from typing import NamedTuple

import pytest

from batcher.simulator import FAULT_NAMES, Config
from batcher.simulator.faults import Faults
from batcher.simulator.outcomes import BLANK_LINES_S, DRIP_S

INVALID, QUOTA, RATE = "invalid_request_error", "insufficient_quota", "rate_limit_exceeded"
#: Name -> the status, type and code of an error in OpenAI's shape.
ERRORS = {
    "400": (400, INVALID, None),
    "400-retry": (400, INVALID, None),
    "400-context_length_exceeded": (400, INVALID, "context_length_exceeded"),
    "400-content_filter": (400, INVALID, "content_filter"),
    "401": (401, INVALID, "invalid_api_key"),
    "402": (402, "insufficient_credits", None),
    "402-retry-after": (402, "insufficient_credits", None),
    "403": (403, "request_forbidden", "unsupported_country_region_territory"),
    "404": (404, INVALID, "model_not_found"),
    "408": (408, "timeout_error", None),
    "409": (409, INVALID, "conflict"),
    "key-in-progress": (409, INVALID, "idempotency_key_in_progress"),
    "413": (413, INVALID, "request_too_large"),
    "422": (422, INVALID, "unprocessable_entity"),
    "429": (429, "requests", RATE),
    "429-no-wait": (429, "requests", RATE),
    "429-slow_down": (429, "requests", "slow_down"),
    "429-insufficient_quota": (429, QUOTA, "insufficient_quota"),
    "429-credit_balance_exhausted": (429, QUOTA, "credit_balance_exhausted"),
    "429-organization_spend_limit_exceeded": (429, QUOTA, "organization_spend_limit_exceeded"),
    "429-project_spend_limit_exceeded": (429, QUOTA, "project_spend_limit_exceeded"),
    "429-organization_usage_limit_exceeded": (429, QUOTA, "organization_usage_limit_exceeded"),
    "429-billing_hard_limit_reached": (429, INVALID, "billing_hard_limit_reached"),
    "429-billing_not_active": (429, "billing_not_active", "billing_not_active"),
    "500": (500, "server_error", None),
    "500-no-retry": (500, "server_error", None),
    "503": (503, "server_error", None),
    "503-retry-after": (503, "server_error", None),
    "503-server_is_overloaded": (503, "server_error", "server_is_overloaded"),
    "529": (529, "overloaded_error", None),
}
OTHER_REFUSALS = {
    "502": 502,
    "504": 504,
    "redirect": 307,
    "error-array": 400,
    "error-string": 500,
    "error-empty": 500,
}
LOST = ("reset-before", "hang")
BILLED = (
    *("reset-after", "cut-off", "drip", "not-json", "content-type", "wrong-length", "empty", "error-object"),
    *("blank-lines", "truncated", "filtered", "failed", "queued"),
)
#: Headers about waiting, where a fault has any.
WAIT = {
    "402-retry-after": {"retry-after": "1"},
    "429": {"retry-after": "1", "retry-after-ms": "20"},
    "503-retry-after": {"retry-after": "1"},
    "400-retry": {"x-should-retry": "true"},
    "500-no-retry": {"x-should-retry": "false"},
}
WAITING = ("retry-after", "retry-after-ms", "x-should-retry")


BODY = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'


class Met(NamedTuple):
    """What one request met: an answer or an exception, and the ledger before and after it."""

    answer: object
    took_s: float
    before: dict
    after: dict

    @property
    def billed(self):
        return self.after["billed"] - self.before["billed"]

    @property
    def body(self):
        return self.answer.body


def meet(simulator, number):
    before, began = simulator.ledger(), time.monotonic()
    simulator.timeout_s = 0.4 if FAULT_NAMES[number] == "hang" else 10
    try:
        answer = simulator.chat(f"row {number}")
    except (OSError, http.client.HTTPException) as error:
        answer = error
    return Met(answer, time.monotonic() - began, before, simulator.ledger())


@pytest.fixture(scope="module")
def met(start_once, tmp_path_factory):
    """Return name -> `Met`, of one simulator that gives its first request the first fault, and so on."""
    path = tmp_path_factory.mktemp("script") / "faults.jsonl"
    lines = [{"fault": name, "after": number, "count": 1} for number, name in enumerate(FAULT_NAMES, 1)]
    path.write_text("\n".join(map(json.dumps, lines)))
    with start_once("--faults", str(path)) as simulator:
        yield {name: meet(simulator, number) for number, name in enumerate(FAULT_NAMES)}


@pytest.fixture
def right(plain):
    """Return a function that asks a simulator without faults for the right answer to a fault's request."""
    return lambda name: plain.chat(f"row {FAULT_NAMES.index(name)}")


def test_every_fault_is_in_a_table_of_these_tests():
    assert set(FAULT_NAMES) == {*ERRORS, *OTHER_REFUSALS, *LOST, *BILLED}


@pytest.mark.parametrize("name", FAULT_NAMES)
def test_a_fault_is_counted_by_name_and_billed_if_work_was_done(met, name):
    one = met[name]
    counted = {key: n for key, n in one.after["faults"].items() if n != one.before["faults"].get(key)}
    assert counted == {name: 1}
    assert one.billed == (name in BILLED)
    status = str(ERRORS[name][0] if name in ERRORS else OTHER_REFUSALS.get(name))
    refused = {key: n for key, n in one.after["refused"].items() if n != one.before["refused"].get(key)}
    assert list(refused) == ([] if status == "None" else [status])


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_has_openais_shape_and_its_status_type_and_code(met, name):
    answer = met[name].answer
    error = answer.body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (answer.status, error["type"], error["code"]) == ERRORS[name]
    assert answer.headers["content-type"] == "application/json"
    assert error["message"]


@pytest.mark.parametrize("name", [*ERRORS, *OTHER_REFUSALS])
def test_only_some_refusals_say_when_or_whether_to_come_again(met, name):
    answer = met[name].answer
    assert {key: answer.headers[key] for key in WAITING if key in answer.headers} == WAIT.get(name, {})


@pytest.mark.parametrize("name", OTHER_REFUSALS)
def test_other_refusals_have_their_status(met, name):
    assert met[name].answer.status == OTHER_REFUSALS[name]


@pytest.mark.parametrize("name", ["502", "504"])
def test_a_gateway_answers_with_a_page(met, name):
    answer = met[name].answer
    assert answer.headers["content-type"].startswith("text/html")
    assert b"<title>" + name.encode() in answer.raw


def test_a_redirect_leads_to_another_host(met):
    answer = met["redirect"].answer
    assert answer.headers["location"].startswith("http://elsewhere.invalid/")
    assert answer.raw == b""


def test_errors_in_other_shapes(met):
    assert [set(item) for item in met["error-array"].body] == [{"error"}]
    assert isinstance(met["error-string"].body["error"], str)
    assert met["error-empty"].answer.raw == b""


@pytest.mark.parametrize("name", ["reset-before", "reset-after"])
def test_a_reset_is_a_reset(met, name):
    assert isinstance(met[name].answer, ConnectionResetError)


def test_who_hangs_is_left_waiting(met):
    assert isinstance(met["hang"].answer, TimeoutError)


@pytest.mark.parametrize(("name", "whole"), [("cut-off", False), ("wrong-length", True)])
def test_less_comes_than_the_length_says(met, right, name, whole):
    error = met[name].answer
    assert isinstance(error, http.client.IncompleteRead)
    assert right(name).raw.startswith(error.partial)
    assert (error.partial == right(name).raw) is whole
    assert error.expected > 0


@pytest.mark.parametrize(("name", "took_s"), [("drip", DRIP_S), ("blank-lines", BLANK_LINES_S)])
def test_a_right_answer_may_be_long_in_coming(met, right, name, took_s):
    answer = met[name].answer
    assert answer.body == right(name).body
    assert int(answer.headers["content-length"]) == len(answer.raw)
    assert met[name].took_s > took_s * 0.9


def test_blank_lines_come_before_the_answer_and_count(met, right):
    raw = met["blank-lines"].answer.raw
    assert raw == b"\n" * (len(raw) - len(right("blank-lines").raw)) + right("blank-lines").raw
    assert raw.startswith(b"\n\n")


def test_a_200_that_holds_no_answer(met, right):
    assert {met[name].answer.status for name in ("not-json", "content-type", "empty", "error-object")} == {
        200
    }
    with pytest.raises(json.JSONDecodeError):
        _ = met["not-json"].body
    assert met["not-json"].answer.headers["content-type"].startswith("text/html")
    assert met["content-type"].answer.headers["content-type"].startswith("text/html")
    assert met["content-type"].answer.raw == right("content-type").raw
    assert met["empty"].answer.raw == b""
    for name in ("error-object", "failed", "queued"):
        assert set(met[name].body) == {"error"}


@pytest.mark.parametrize(("name", "reason"), [("truncated", "length"), ("filtered", "content_filter")])
def test_an_answer_says_why_it_ended(met, right, name, reason):
    [choice] = met[name].body["choices"]
    assert choice["finish_reason"] == reason
    assert met[name].body["usage"] == right(name).body["usage"]


RESPONSE = {"model": "m", "input": "hi"}


#: Fault -> the fields of a response that meets it.
STATES = {
    "truncated": {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}},
    "filtered": {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}},
    "failed": {"status": "failed", "output": []},
    "queued": {"status": "queued", "output": [], "usage": None},
}


def test_a_response_has_states_of_its_own(start, script, plain):
    embedding = {"model": "m", "input": "hi"}
    lines = [{"fault": name, "after": 2 * n + 1, "count": 2} for n, name in enumerate(STATES)]
    with start(*script(*lines), "--idempotency", "ignore") as simulator:
        asked = {
            name: (
                simulator.post("/v1/responses", RESPONSE).body,
                simulator.post("/v1/embeddings", embedding),
            )
            for name in STATES
        }
        assert simulator.ledger()["billed"] == 2 * len(STATES)
    for name, (body, other) in asked.items():
        assert {field: body[field] for field in STATES[name]} == STATES[name]
        assert body["id"] == plain.post("/v1/responses", RESPONSE).body["id"]
        if name in ("truncated", "filtered"):
            assert [item["status"] for item in body["output"]] == ["incomplete"]
            assert other.raw == plain.post("/v1/embeddings", embedding).raw
        else:
            assert set(other.body) == {"error"}
    assert asked["failed"][0]["error"]["code"] == "server_error"


def test_what_is_slow_holds_up_nobody_and_ends_when_its_client_leaves(start, script):
    lines = [{"fault": name, "after": n, "count": 1} for n, name in enumerate(("hang", "drip"), 1)]
    ask = b"POST /v1/chat/completions HTTP/1.1\r\nIdempotency-Key: %b\r\nContent-Length: %d\r\n\r\n%b"
    with start(*script(*lines)) as simulator:
        slow = []
        for number, key in enumerate((b"k1", b"k2"), 1):
            slow.append(socket.create_connection(("127.0.0.1", simulator.port), timeout=5))
            slow[-1].sendall(ask % (key, len(BODY), BODY))
            while simulator.ledger()["requests"] < number:
                time.sleep(0.01)
        began = time.monotonic()
        assert slow[1].recv(5) == b"HTTP/"
        # Their keys are free, and nobody waits for them.
        answers = [simulator.post("/v1/chat/completions", BODY, Idempotency_Key=key) for key in ("k1", "k2")]
        assert time.monotonic() - began < DRIP_S
        for connection in slow:
            connection.close()
        time.sleep(0.1)
        assert simulator.chat().status == 200
        ledger = simulator.ledger()
    assert [answer.status for answer in answers] == [200, 200]
    assert ["idempotent-replayed" in answer.headers for answer in answers] == [False, True]
    assert (ledger["billed"], ledger["billed_twice"]) == (3, 0)


def test_a_refusal_at_the_door_takes_nothing_from_the_limits_and_one_behind_it_does(start, script):
    lines = [
        {"fault": name, "after": n, "count": 1} for n, name in enumerate(("401", "hang", "503", "empty"), 1)
    ]
    with start(*script(*lines), "--rpm", "10", "--window", "sliding") as simulator:
        simulator.timeout_s = 0.3
        remaining = []
        for number in range(4):
            try:
                remaining.append(simulator.chat(str(number)).headers["x-ratelimit-remaining-requests"])
            except TimeoutError:
                continue
    assert remaining == ["10", "9", "8"]


def test_a_draw_depends_on_the_seed_the_name_and_how_often_it_was_seen():
    shares = dict.fromkeys(FAULT_NAMES, 1 / len(FAULT_NAMES))

    def drawn(seed, order):
        faults = Faults(shares, (), seed)
        met = {}
        for name in order:
            fault, by_script = faults.draw(name, 1, 0.0)
            faults.happened(name, by_script=by_script)
            met.setdefault(name, []).append(fault and fault.name)
        return met

    names = [f"k{number}" for number in range(1000)]
    first = drawn(1, names * 2)
    assert drawn(1, sorted(names) + names[::-1]) == first
    assert drawn(2, names * 2) != first
    assert {name for pair in first.values() for name in pair} >= set(FAULT_NAMES)
    assert any(one != other for one, other in first.values())


def test_after_the_quota_no_more_work_is_done_and_what_was_billed_is_replayed(start):
    with start("--quota", "2", "--rpm", "100", "--window", "sliding") as simulator:
        answers = [simulator.chat(text, key=text) for text in ("a", "b", "c", "d", "a")]
        bare = simulator.chat("a")
        ledger = simulator.ledger()
    assert [answer.status for answer in answers] == [200, 200, 429, 429, 200]
    assert answers[2].body["error"]["type"] == answers[2].code == "insufficient_quota"
    assert answers[4].raw == answers[0].raw
    assert answers[4].headers["x-ratelimit-remaining-requests"] == "98"
    assert "retry-after" not in answers[2].headers
    assert bare.code == "insufficient_quota"
    assert (ledger["billed"], ledger["replayed"], ledger["refused"]) == (2, 1, {"429": 3})
    assert ledger["faults"] == {}


def test_a_quota_of_nothing_bills_nothing_and_a_refusal_stays_what_it_is(start):
    with start("--quota", "0", "--fault", "503=50%") as simulator:
        statuses = {simulator.chat(str(number)).status for number in range(30)}
        ledger = simulator.ledger()
    assert statuses == {429, 503}
    assert ledger["billed"] == 0


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"faults": {"fire": 0.5}}, "no such fault: fire"),
        ({"faults": {"429": 0.6, "500": 0.6}}, "their sum"),
        ({"faults": {"refuse-connections": 0.1}}, "no such fault"),
        ({"quota": -1}, "quota"),
    ],
)
def test_a_wrong_setting_is_a_value_error(settings, reason):
    with pytest.raises(ValueError, match=reason):
        Config(**settings)


def test_the_list_of_faults_has_a_meaning_for_each_and_help_has_each_name():
    def said(option):
        command = [sys.executable, "-m", "batcher", "simulate", option]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)

    listed = said("--list-faults")
    rows = dict(line.split(None, 1) for line in listed.stdout.splitlines() if line.startswith("  "))
    assert set(rows) == {*FAULT_NAMES, "refuse-connections"}
    assert listed.stderr == ""
    words = said("--help").stdout.replace(",", " ").split()
    assert set(rows) <= set(words)
