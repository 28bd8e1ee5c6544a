"""The doctor as a process: beside the simulator, and beside servers that treat keys in other ways."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from batcher.cli.doctor import command
from batcher.doctor import QUESTIONS
from tests.conftest import KEY, NOWHERE

LOCAL = ["python", "sqlite", "files", "credentials", "endpoint"]
CHOICE = {"index": 0, "message": {"role": "assistant", "content": "Yes"}, "finish_reason": "length"}
USAGE = {"prompt_tokens": 8, "completion_tokens": 1, "total_tokens": 9}


def found(ended, code=0):
    """Check that every line is of the form that is promised; return name -> (state, message)."""
    assert (ended.code, ended.err) == (code, ""), ended
    assert KEY not in ended.out
    lines = [line.split(maxsplit=2) for line in ended.out.splitlines()]
    assert {state for state, _, _ in lines} <= {"ok", "warn", "fail"}
    assert ("fail" in {state for state, _, _ in lines}) == (code == 1)
    return {name.removesuffix(":"): (state, message) for state, name, message in lines}


class Desk:
    """What a server is asked, and what it answers."""

    def __init__(self, answer):
        self.answer = answer
        self.asked = []


@contextmanager
def serving(answer):
    """Serve (status, body) = answer(number, key, headers) to every POST, and no list of models."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            key = self.headers["idempotency-key"]
            desk.asked.append((self.path, key, json.loads(body)))
            self.reply(*desk.answer(len(desk.asked), key, self.headers))

        def do_GET(self):
            self.reply(404, {"detail": "Not Found"})

        def reply(self, status, body):
            text = body if type(body) is bytes else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *args):
            pass

    desk = Desk(answer)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            desk.base_url = f"http://127.0.0.1:{server.server_port}/v1"
            yield desk
        finally:
            server.shutdown()
            thread.join()


def chat(name):
    return {"id": f"chatcmpl-{name}", "object": "chat.completion", "choices": [CHOICE], "usage": USAGE}


def error(message, code=None):
    return {"error": {"message": message, "type": "invalid_request_error", "code": code}}


# --- without a probe


def test_a_server_that_is_well(batcher, server):
    before = server.ledger()
    checks = found(batcher("doctor", "--base-url", server.base_url))
    assert list(checks) == [*LOCAL, "models"]
    assert {state for state, _ in checks.values()} == {"ok"}
    assert checks["credentials"][1] == "OPENAI_API_KEY from the environment"
    assert checks["endpoint"][1] == server.base_url
    assert checks["models"][1].startswith("the server lists 7; it answered in ")
    assert server.ledger()["billed"] == before["billed"]


def test_a_key_from_dotenv_is_named_and_not_shown(batcher, server, tmp_path):
    (tmp_path / ".env").write_text(f"OPENAI_API_KEY={KEY}\nOPENAI_BASE_URL={server.base_url}\n")
    checks = found(batcher("doctor", env={"OPENAI_API_KEY": None, "OPENAI_BASE_URL": None}))
    assert checks["credentials"] == ("ok", "OPENAI_API_KEY from .env")
    assert checks["endpoint"][1] == server.base_url


def test_json_is_one_object(batcher, server):
    ended = batcher("doctor", "--base-url", server.base_url, "--json")
    assert (ended.code, ended.err) == (0, "")
    assert set(ended.json) == {"checks", "idempotency"}
    assert [check["name"] for check in ended.json["checks"]] == [*LOCAL, "models"]
    assert all(set(check) == {"name", "state", "message"} for check in ended.json["checks"])
    assert ended.json["idempotency"] is None


def test_nothing_listens(batcher):
    checks = found(batcher("doctor"), code=1)
    state, message = checks["models"]
    assert state == "fail"
    assert message.startswith("can't connect to 127.0.0.1:1: Connection refused: check --base-url")


def test_nothing_listens_for_a_probe(batcher):
    ended = batcher("doctor", "--probe-idempotency", "--json")
    assert ended.code == 1
    assert {check["name"] for check in ended.json["checks"] if check["state"] == "fail"} == {
        "models",
        "idempotency",
    }
    assert ended.json["idempotency"] is None


def test_a_wrong_key(batcher, serve):
    with serve("--api-key", "sk-another-one-entirely") as server:
        checks = found(batcher("doctor", "--base-url", server.base_url, "--probe-idempotency"), code=1)
        told = "HTTP 401: Incorrect API key provided: the key is refused: check OPENAI_API_KEY"
        assert checks["models"] == checks["idempotency"] == ("fail", told)
        assert "cost" not in checks
        assert server.ledger()["billed"] == 0


def test_a_model_that_is_not_listed(batcher, server):
    checks = found(batcher("doctor", "--base-url", server.base_url, "--model", "gpt-5-maxi"))
    assert checks["models"][0] == "warn"
    assert checks["models"][1].startswith("gpt-5-maxi is not among the 7 that are listed")


def test_a_server_that_speaks_no_tls(batcher, server):
    wrong = server.base_url.replace("http://", "https://")
    state, message = found(batcher("doctor", "--base-url", wrong), code=1)["models"]
    assert state == "fail"
    assert message.startswith("no TLS connection to 127.0.0.1:")


def test_too_many_files(batcher, server):
    ended = batcher("doctor", "--base-url", server.base_url, "--max-inflight", 100_000_000)
    assert found(ended, code=1)["files"][0] == "fail"
    assert "ulimit -n" in ended.out


# --- the probe


def test_a_server_that_honours_keys(batcher, serve):
    with serve() as server:
        checks = found(batcher("doctor", "--base-url", server.base_url, "--probe-idempotency"))
        told = "sent twice under one key, answered from the first: a row in doubt is paid once here"
        assert checks["idempotency"] == ("ok", told)
        assert checks["cost"] == ("ok", "2 x 6 tokens, at most $0.0000027")
        ledger = server.ledger("/ledger")
        assert (ledger["requests"], ledger["replayed"]) == (3, 1)


@pytest.mark.parametrize("url", QUESTIONS)
def test_every_url_can_be_probed(batcher, server, url):
    ended = batcher("doctor", "--base-url", server.base_url, "--probe-idempotency", "--url", url, "--json")
    assert (ended.code, ended.json["idempotency"]) == (0, "replays")


def test_a_server_that_answers_the_same_bytes_to_any_key(batcher, serve):
    with serve("--idempotency", "ignore") as server:
        ended = batcher("doctor", "--base-url", server.base_url, "--probe-idempotency", "--json")
        assert (ended.code, ended.json["idempotency"]) == (0, "unknown")
        states = {check["name"]: check for check in ended.json["checks"]}
        assert states["idempotency"]["state"] == "warn"
        assert "under any key" in states["idempotency"]["message"]
        assert states["cost"]["message"].startswith("3 x 6 tokens, ")
        assert server.requests() == 4


def test_a_server_that_bills_again(batcher):
    with serving(lambda number, *_: (200, chat(number))) as desk:
        checks = found(batcher("doctor", "--base-url", desk.base_url, "--probe-idempotency"))
    assert checks["models"][0] == "warn"
    state, message = checks["idempotency"]
    assert state == "warn"
    assert "this endpoint bills again: at-least-once may pay twice" in message
    assert "--delivery at-most-once never does" in message
    assert checks["cost"] == ("ok", "2 x 9 tokens, at most $0.0000036")
    (path, key, body), second = desk.asked
    assert second == (path, key, body)
    assert (path, body["model"], body["max_completion_tokens"]) == (
        "/v1/chat/completions",
        "gpt-4o-mini",
        1,
    )


def test_a_server_that_replays_without_a_mark(batcher):
    with serving(lambda _, key, __: (200, chat(key))) as desk:
        ended = batcher("doctor", "--base-url", desk.base_url, "--probe-idempotency", "--json")
    assert (ended.code, ended.json["idempotency"]) == (0, "replays")
    first, second, control = (key for _, key, _ in desk.asked)
    assert first == second != control


def test_a_server_that_says_that_the_first_is_under_way(batcher):
    def answer(number, *_):
        return (200, chat(number)) if number == 1 else (409, error("Still at it.", "request_in_progress"))

    with serving(answer) as desk:
        ended = batcher("doctor", "--base-url", desk.base_url, "--probe-idempotency", "--json")
    assert (ended.code, ended.json["idempotency"]) == (0, "unknown")
    message = {check["name"]: check["message"] for check in ended.json["checks"]}["idempotency"]
    assert message.startswith("can't tell: the second was not answered as the first: HTTP 409: Still at it; ")


def test_an_answer_that_takes_too_long(batcher, serve):
    with serve("--latency-after", "20000") as server:
        ended = batcher("doctor", "--base-url", server.base_url, "--probe-idempotency", "--timeout", "0.5s")
    checks = found(ended, code=1)
    assert checks["models"][0] == "ok"
    assert checks["idempotency"][0] == "fail"
    assert "within 0.5 s: run it again later" in checks["idempotency"][1]
    assert checks["cost"] == ("warn", "unknown: what was not answered may be billed")


def test_a_model_that_there_is_not(batcher):
    with serving(lambda *_: (404, error("The model `x` does\nnot exist.", "model_not_found"))) as desk:
        ended = batcher("doctor", "--base-url", desk.base_url, "--probe-idempotency", "--model", "x")
    state, message = found(ended, code=1)["idempotency"]
    assert state == "fail"
    assert message.startswith(
        "HTTP 404: The model `x` does not exist: nothing is found there: check the model"
    )
    assert len(desk.asked) == 1


def test_a_server_that_echoes_the_key(batcher):
    with serving(lambda _, __, headers: (200, headers["authorization"].encode())) as desk:
        ended = batcher("doctor", "--base-url", desk.base_url, "--probe-idempotency")
    assert "it begins: Bearer ***" in found(ended, code=1)["idempotency"][1]


# --- what can be got wrong


@pytest.mark.parametrize(
    ("options", "env", "says"),
    [
        ([], {"OPENAI_API_KEY": None}, "no API key: set OPENAI_API_KEY"),
        (["--url", "/v1/images"], {}, "'/v1/images' is not one of '/v1/chat/completions'"),
        (["--timeout", "abc"], {}, "'abc' is not a time"),
        (["--timeout", "0"], {}, "--timeout must be more than 0"),
        (["--timeout", "nan"], {}, "--timeout must be 0 seconds or more"),
        (["--max-inflight", "0"], {}, "--max-inflight must be at least 1"),
        (["--base-url", "nonsense"], {}, "does not begin with http"),
        ([], {"OPENAI_BASE_URL": "http://user:pass@h"}, "credentials belong in the environment"),
        (["--nonsense"], {}, "No such option"),
        (["job.jsonl"], {}, "unexpected extra argument"),
    ],
)
def test_one_line_and_exit_2(batcher, options, env, says):
    ended = batcher("doctor", *options, env=env)
    assert (ended.code, ended.out) == (2, "")
    (line,) = ended.err.splitlines()
    assert line.startswith("batcher: ")
    assert says in line
    assert batcher("doctor", *options, "--json", env=env).json["stopped"] in line


def test_an_option_from_the_environment(batcher, server):
    env = {"BATCHER_DOCTOR_BASE_URL": server.base_url, "BATCHER_DOCTOR_TIMEOUT": "0"}
    assert "--timeout must be more than 0" in batcher("doctor", env=env).err
    assert batcher("doctor", env={**env, "BATCHER_DOCTOR_TIMEOUT": "1m"}).code == 0


def test_the_urls_are_those_that_there_is_a_question_for():
    (url,) = (param for param in command.params if param.name == "url")
    assert tuple(url.type.choices) == tuple(QUESTIONS)


def test_no_test_reaches_a_real_server(batcher):
    assert f"endpoint: {NOWHERE}" in batcher("doctor").out
