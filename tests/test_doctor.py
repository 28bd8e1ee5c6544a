"""What the doctor makes of what it finds; what it sends, in virtual time."""

import re
import tempfile
import tomllib
from pathlib import Path

import msgspec
import orjson
import pytest

from batcher.doctor import (
    OLDEST_PYTHON,
    QUESTIONS,
    Check,
    Report,
    check_cost,
    check_credentials,
    check_endpoint,
    check_files,
    check_models,
    check_version,
    decide,
    examine,
    read,
)
from batcher.errors import ConfigurationError
from batcher.job import World
from batcher.money.prices import PriceBook
from batcher.options import Options
from batcher.parse import Draft, parse
from batcher.request import Lost, Reply, Request, Row
from batcher.testing import (
    CHAT,
    MemoryTransport,
    VirtualClock,
    answer,
    inline_connection,
    loss,
    refusal,
    run,
    script,
)
from batcher.transport.endpoint import Endpoint

KEY = "sk-test-0123456789"
ENVIRON = {"OPENAI_API_KEY": KEY}
URL = "https://api.example.com/v1"
MARK = ((b"idempotent-replayed", b"true"),)
REQUEST = Request((Row(1, bytes(16), "doctor"),), "key", "", "gpt-4o-mini", CHAT, b"{}", 0, None)
CHOICE = {"message": {"role": "assistant", "content": "Yes"}, "finish_reason": "length"}


def reply(status=200, body=b"", headers=(), at=0.0):
    text = body if type(body) is bytes else orjson.dumps(body)
    return Reply(status, headers, text, at, at + 0.25)


def said(name, headers=()):
    """Make an answer that is known by its id."""
    usage = {"prompt_tokens": 8, "completion_tokens": 1, "total_tokens": 9}
    return reply(200, {"id": name, "choices": [CHOICE], "usage": usage}, headers)


def error(status, message="No.", code=None, headers=()):
    return reply(status, {"error": {"message": message, "type": "error", "code": code}}, headers)


def lost(kind="reset", *, left=True):
    return Lost(left, kind, "it went away", 0.0 if left else None, 0.25)


# --- the machine, and what it was told


@pytest.mark.parametrize(
    ("found", "oldest", "state"),
    [
        ((3, 37, 0), (3, 37), "ok"),
        ((3, 37), (3, 37), "ok"),
        ((3, 36, 99), (3, 37), "fail"),
        ((4, 0, 0), (3, 37), "ok"),
        ((3, 9, 1), (3, 11), "fail"),
    ],
)
def test_a_version(found, oldest, state):
    check = check_version("sqlite", found, oldest)
    assert (check.name, check.state) == ("sqlite", state)
    assert check.message.startswith(".".join(map(str, found)))
    assert ("or newer is needed" in check.message) == (state == "fail")


def test_the_oldest_python_is_that_of_the_distribution():
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=" + ".".join(map(str, OLDEST_PYTHON))


def test_open_files():
    assert check_files(10).state == "ok"
    check = check_files(10**8)
    assert check.state == "fail"
    assert "ulimit -n" in check.message


@pytest.mark.parametrize(
    ("own", "dotenv", "message"),
    [
        (ENVIRON, {}, "OPENAI_API_KEY from the environment"),
        ({}, ENVIRON, "OPENAI_API_KEY from .env"),
        (
            {"OPENAI_ORG_ID": "org-1", "OPENAI_PROJECT_ID": " "},
            ENVIRON,
            "OPENAI_API_KEY from .env, OPENAI_ORG_ID from the environment",
        ),
    ],
)
def test_credentials_are_named_and_never_shown(own, dotenv, message):
    assert check_credentials({**dotenv, **own}, own) == Check("credentials", "ok", message)


@pytest.mark.parametrize(
    ("url", "state"),
    [
        (URL, "ok"),
        ("http://127.0.0.1:8000/v1", "ok"),
        ("http://[::1]:8000/v1", "ok"),
        ("http://localhost/v1", "ok"),
        ("http://10.0.0.7/v1", "warn"),
        ("http://api.example.com/v1", "warn"),
    ],
)
def test_an_endpoint(url, state):
    check = check_endpoint(Endpoint.parse(url))
    assert check.state == state
    assert check.message.startswith(url)
    assert ("unencrypted" in check.message) == (state == "warn")


# --- the list of models

LISTED = {"object": "list", "data": [{"id": "gpt-4o-mini"}, {"id": "gpt-4.1"}]}


@pytest.mark.parametrize(
    ("landed", "state", "says"),
    [
        (reply(200, LISTED), "ok", "the server lists 2; it answered in 250.0 ms"),
        (reply(200, {"data": []}), "warn", "gpt-4o-mini is not among the 0 that are listed"),
        (reply(200, b"<html>"), "warn", "no list of models: check --base-url"),
        (reply(200, b"\xff\xfe"), "warn", "no list of models: check --base-url"),
        (reply(200, b"[" * 100_000), "warn", "no list of models: check --base-url"),
        (
            error(401, "Bad key.", "invalid_api_key"),
            "fail",
            "HTTP 401: Bad key: the key is refused: check OPENAI_API_KEY",
        ),
        (error(403), "warn", "no list of models: HTTP 403: No: check --base-url"),
        (reply(404, b"<h1>nothing</h1>"), "warn", "HTTP 404: nothing: check --base-url"),
        (error(429), "warn", "HTTP 429: No: run it again later"),
        (error(429, code="insufficient_quota"), "fail", "add credit"),
        (reply(503, b""), "warn", "HTTP 503: no body: run it again later"),
        (reply(301, b"", ((b"location", b"https://x/v1"),)), "fail", "to https://x/v1: no body: the server"),
        (lost(), "fail", "it went away: check --base-url"),
        (lost("connect", left=False), "fail", "it went away: check --base-url"),
    ],
)
def test_the_list_of_models(landed, state, says):
    check = check_models(landed, "gpt-4o-mini")
    assert (check.name, check.state) == ("models", state)
    assert says in check.message


def test_no_model_is_looked_for_if_none_is_named():
    assert check_models(reply(200, {"data": []}), None).state == "ok"


# --- what the replies show

A, B, C = said("a"), said("b"), said("c")
REPLAYED = said("a", MARK)

DECISIONS = [
    pytest.param((A,), None, id="one says nothing yet"),
    pytest.param((A, A), None, id="the same bytes need the control"),
    pytest.param((A, REPLAYED), ("replays", "ok", "a row in doubt is paid once here"), id="marked"),
    pytest.param(
        (A, said("b", MARK)), ("replays", "ok", "answered from the first"), id="marked, written anew"
    ),
    pytest.param((A, said("a", ((b"idempotent-replayed", b"false"),))), None, id="marked as no replay"),
    pytest.param((A, B), ("bills again", "warn", "--delivery at-most-once never does"), id="answered anew"),
    pytest.param((A, A, B), ("replays", "ok", "but no header says so"), id="the same by key alone"),
    pytest.param((A, A, A), ("unknown", "warn", "under any key"), id="the same under any key"),
    pytest.param((REPLAYED, REPLAYED), None, id="everything is marked, the same bytes"),
    pytest.param((REPLAYED, said("b", MARK)), ("bills again", "warn", ""), id="everything is marked, anew"),
    pytest.param((REPLAYED, REPLAYED, A), ("unknown", "warn", ""), id="everything is marked, under any key"),
    # The first was no answer.
    pytest.param((lost("connect", left=False),), (None, "fail", "it went away: check --base-url"), id="down"),
    pytest.param((lost("timeout"),), (None, "fail", "it went away: run it again later"), id="no reply"),
    pytest.param((error(401),), (None, "fail", "HTTP 401: No: the key is refused: check"), id="401"),
    pytest.param((error(404),), (None, "fail", "HTTP 404: No: nothing is found there: check the"), id="404"),
    pytest.param((error(400),), (None, "fail", "HTTP 400: No: name another --model"), id="400"),
    pytest.param((error(409),), (None, "fail", "HTTP 409: No: run it again later"), id="409"),
    pytest.param((error(429),), (None, "fail", "HTTP 429: No: run it again later"), id="429"),
    pytest.param((reply(502, b"<p>Bad"),), (None, "fail", "HTTP 502: Bad: run it again later"), id="502"),
    pytest.param((reply(307),), (None, "fail", "the server redirects: correct --base-url"), id="307"),
    pytest.param(
        (reply(200, b"<html>"),), (None, "fail", "check --base-url, and that"), id="200, a web page"
    ),
    pytest.param(
        (reply(200, {"id": "a"}),), (None, "fail", "a success without a whole answer"), id="200, half"
    ),
    # The first was, and the second or the third was not.
    pytest.param(
        (A, error(409)), ("unknown", "warn", "can't tell: the second was.*HTTP 409: No"), id="then 409"
    ),
    pytest.param((A, error(429)), ("unknown", "warn", "HTTP 429: No"), id="then 429"),
    pytest.param((A, reply(503)), ("unknown", "warn", "HTTP 503"), id="then 503"),
    pytest.param((A, lost()), ("unknown", "warn", "it went away"), id="then nothing"),
    pytest.param(
        (A, error(422, "Used before.", "idempotency_key_reused")),
        ("unknown", "fail", "HTTP 422: Used before; if it bills again"),
        id="then 422",
    ),
    pytest.param((A, error(401)), ("unknown", "fail", "HTTP 401: No"), id="then 401"),
    pytest.param((A, A, error(429)), ("unknown", "warn", "the third, under another key,"), id="no control"),
    pytest.param((A, A, lost()), ("unknown", "warn", "the third, under another key,"), id="a lost control"),
]


@pytest.mark.parametrize(("landed", "finding"), DECISIONS)
def test_what_the_replies_show(landed, finding):
    found = decide([read(REQUEST, each) for each in landed])
    if finding is None:
        assert found is None
        return
    idempotency, state, says = finding
    assert (found.idempotency, found.state) == (idempotency, state)
    assert re.search(says, found.message)
    assert "\n" not in found.message


BOOK = PriceBook("https://api.openai.com/v1", at=1_800_000_000)


@pytest.mark.parametrize(
    ("landed", "model", "cost"),
    [
        ((A,), "gpt-4o-mini", ("ok", "1 x 9 tokens, at most $0.0000018")),
        ((A, REPLAYED), "gpt-4o-mini", ("ok", "2 x 9 tokens, at most $0.0000036")),
        ((A, A, B), "gpt-4o-mini", ("ok", "3 x 9 tokens, at most $0.0000054")),
        ((A, B), "my-model", ("ok", "2 x 9 tokens, at an unknown price")),
        ((A, reply(200, {"choices": [CHOICE]})), "gpt-4o-mini", ("ok", "9 + unknown tokens, at an unknown")),
        ((A, lost()), "gpt-4o-mini", ("ok", "1 x 9 tokens, at most $0.0000018; what was not answered may")),
        ((A, error(409)), "gpt-4o-mini", ("ok", "1 x 9 tokens, at most $0.0000018")),
        ((lost("timeout"),), "gpt-4o-mini", ("warn", "unknown: what was not answered may be billed")),
        ((error(401),), "gpt-4o-mini", None),
        ((lost("connect", left=False),), "gpt-4o-mini", None),
    ],
)
def test_what_it_cost(landed, model, cost):
    check = check_cost([read(REQUEST, each) for each in landed], model, BOOK)
    if cost is None:
        assert check is None
    else:
        assert (check.state, check.message[: len(cost[1])]) == cost


@pytest.mark.parametrize("url", QUESTIONS)
def test_each_question_is_a_request_of_its_url(url):
    model, fields = QUESTIONS[url]
    line = {"custom_id": "a", "url": url, "body": {"model": model, **fields}}
    assert isinstance(parse(orjson.dumps(line), 1), Draft)


# --- asking


class Network:
    """Answers each transport's attempts; the first transport asks for the models."""

    def __init__(self, clock, models, others):
        self.clock = clock
        self.answers = [models, others]
        self.transports = []
        self.endpoints = []

    def transport(self, _options, endpoint, clock):
        made = MemoryTransport(self.answers[len(self.transports)], clock)
        self.transports.append(made)
        self.endpoints.append(endpoint)
        return made

    def sent(self, number):
        return [each.claimed.request for each in self.transports[number].exchanges]


def models(_claimed, now):
    return reply(200, LISTED, at=now)


def answers(*replies):
    """Answer with these, one after the other."""
    return script(*(lambda _claimed, now, each=each: moved(each, now) for each in replies))


def moved(landed, now):
    sent_at = None if landed.sent_at is None else now
    return msgspec.structs.replace(landed, sent_at=sent_at, ended_at=now + 0.25)


@pytest.fixture
def doctor(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def look(listing, others=answer, environ=ENVIRON, **asked):
        clock = VirtualClock(seed=1)
        network = Network(clock, listing, others)
        world = World(clock=clock, connect=inline_connection, transport=network.transport)
        options = Options(job="doctor", base_url=URL, max_inflight=10)
        told = []
        report = run(lambda: examine(options, environ, told.append, world=world, **asked), clock)
        assert told == report.checks
        assert list(tmp_path.iterdir()) == []
        return report, network

    return look


def states(report):
    return {check.name: check.state for check in report.checks}


MACHINE = {"python": "ok", "sqlite": "ok", "files": "ok", "credentials": "ok", "endpoint": "ok"}


def test_without_a_probe_nothing_is_asked_but_the_models(doctor):
    report, network = doctor(models)
    assert states(report) == {**MACHINE, "models": "ok"}
    assert (report.exit_code, report.idempotency, len(network.transports)) == (0, None, 1)
    (asked,) = network.sent(0)
    head = network.endpoints[0].head(asked.path)
    assert head.startswith(b"GET /v1/models HTTP/1.1\r\nHost: api.example.com\r\n")
    assert asked.body == b""


def test_a_replay_needs_two_requests_under_one_key(doctor):
    report, network = doctor(models, answers(A, REPLAYED), probe=CHAT)
    assert states(report) == {**MACHINE, "models": "ok", "idempotency": "ok", "cost": "ok"}
    assert (report.exit_code, report.idempotency) == (0, "replays")
    first, second = network.sent(1)
    assert first == second
    assert (first.path, first.model, len(first.key)) == (CHAT, "gpt-4o-mini", 32)
    assert orjson.loads(first.body)["max_completion_tokens"] == 1
    assert network.endpoints[1].head(CHAT).startswith(b"POST ")


def test_the_control_has_another_key_and_the_same_body(doctor):
    report, network = doctor(models, answers(A, A, B), probe=CHAT)
    assert report.idempotency == "replays"
    first, second, control = network.sent(1)
    assert first == second
    assert control.key != first.key
    assert msgspec.structs.replace(control, key=first.key) == first


@pytest.mark.parametrize("url", QUESTIONS)
def test_every_url_has_its_question(doctor, url):
    report, network = doctor(models, answer, model="my-model", probe=url)
    # The answers of `batcher.testing` hold the key: the control differs.
    assert report.idempotency == "replays"
    assert {(each.path, each.model) for each in network.sent(1)} == {(url, "my-model")}


def test_a_refused_key_is_a_failure_and_a_key_that_is_quoted_is_masked(doctor):
    quoting = answers(error(401, f"Incorrect\nAPI key: {KEY}\x1b[1m."))
    report, network = doctor(quoting, quoting, probe=CHAT)
    assert report.exit_code == 1
    assert report.idempotency is None
    assert states(report) == {**MACHINE, "models": "fail", "idempotency": "fail"}
    assert len(network.sent(1)) == 1
    for check in report.checks[-2:]:
        assert check.message.startswith("HTTP 401: Incorrect API key: ***\\x1b[1m: the key is refused")
    assert KEY not in str(report.to_dict())


def test_nothing_is_probed_where_no_request_gets(doctor):
    report, network = doctor(loss("connect", left=False), probe=CHAT)
    assert states(report) == {**MACHINE, "models": "fail", "idempotency": "fail"}
    assert len(network.transports) == 1


def test_a_server_without_a_list_is_probed(doctor):
    report, _ = doctor(refusal(404), answers(A, B), probe=CHAT)
    assert (report.exit_code, report.idempotency) == (0, "bills again")
    assert states(report)["models"] == "warn"


def test_no_key(doctor):
    with pytest.raises(ConfigurationError, match="set OPENAI_API_KEY"):
        doctor(models, environ={})


def test_no_room_for_a_store(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "no"))
    clock = VirtualClock()
    world = World(clock=clock, connect=inline_connection)
    options = Options(job="doctor", base_url=URL, max_inflight=10)
    report = run(lambda: examine(options, ENVIRON, lambda _: None, world=world), clock)
    assert states(report) == {**MACHINE, "store": "fail"}
    assert "No such file or directory" in report.checks[-1].message
    assert "TMPDIR" in report.checks[-1].message


def test_what_json_prints():
    told = []
    report = Report(told.append, bytes)
    assert report.exit_code == 0
    report.add(Check("a", "warn", "x\ny"))
    assert report.exit_code == 0
    report.add(Check("b", "fail", "z"))
    assert report.exit_code == 1
    a, b = (
        {"name": "a", "state": "warn", "message": "x\\ny"},
        {"name": "b", "state": "fail", "message": "z"},
    )
    assert report.to_dict() == {"checks": [a, b], "idempotency": None}
    assert told == report.checks
