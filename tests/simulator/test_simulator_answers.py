import base64
import math
import struct

import pytest

BODIES = {
    "/v1/chat/completions": {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
    "/v1/responses": {"model": "m", "input": "hi"},
    "/v1/embeddings": {"model": "m", "input": ["hi", "ho"]},
    "/v1/moderations": {"model": "m", "input": ["hi", "ho"]},
    "/v1/completions": {"model": "m", "prompt": "hi"},
}


@pytest.mark.parametrize("path", BODIES)
def test_the_same_request_gets_the_same_bytes_also_from_another_process(plain, start, path):
    first = plain.post(path, BODIES[path])
    assert first.status == 200
    with start("--seed", "7") as other:
        second = other.post(path, BODIES[path])
    assert (second.raw, second.headers) == (first.raw, first.headers)


def test_another_body_gets_another_id(plain):
    assert plain.chat("a").body["id"] != plain.chat("b").body["id"]


def test_usage_counts_a_token_for_four_characters_and_three_a_message(plain):
    usage = plain.chat("x" * 41).body["usage"]
    assert usage["prompt_tokens"] == 3 + 11
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_an_answer_is_cut_at_the_output_limit(plain, name):
    body = plain.chat(**{name: 2}).body
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 2
    assert len(body["choices"][0]["message"]["content"].split()) == 2


def test_a_response_that_is_cut_is_incomplete(plain):
    body = plain.post("/v1/responses", {"model": "m", "input": "hi", "max_output_tokens": 1}).body
    assert body["status"] == "incomplete"
    assert body["incomplete_details"] == {"reason": "max_output_tokens"}
    assert body["usage"]["output_tokens"] == 1


def test_embeddings_are_unit_vectors_of_the_text_whatever_the_pack(plain):
    ask = {"model": "m", "dimensions": 12}
    pack = plain.post("/v1/embeddings", {**ask, "input": ["one", "two"]}).body["data"]
    alone = plain.post("/v1/embeddings", {**ask, "input": "two", "encoding_format": "base64"}).body["data"]
    decoded = struct.unpack("<12f", base64.b64decode(alone[0]["embedding"]))
    assert list(decoded) == pack[1]["embedding"]
    assert math.hypot(*decoded) == pytest.approx(1, abs=1e-5)


def test_sentiment_is_one_word_about_the_last_user_text(start):
    with start("--answers", "sentiment") as simulator:
        answers = [
            simulator.chat(text, max_tokens=1).body["choices"][0]["message"]["content"]
            for text in ("I love this, it is wonderful!", "Terrible. I hate it.", "It is a table.")
        ]
    assert answers == ["positive", "negative", "neutral"]


def test_cached_share_is_told_in_usage_and_ledger(start):
    with start("--cached-share", "0.5") as simulator:
        usage = simulator.chat("x" * 68).body["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == 10
        assert simulator.ledger()["cached_tokens"] == 10


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", b"{not json", None),
        ("/v1/chat/completions", b"[]", None),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}, "model"),
        ("/v1/chat/completions", {"model": "m", "messages": []}, "messages"),
        ("/v1/chat/completions", {"model": "m", "messages": ["a"]}, "messages"),
        ("/v1/chat/completions", {"model": "m", "messages": [{"content": 5}]}, "messages"),
        ("/v1/chat/completions", {**BODIES["/v1/chat/completions"], "stream": True}, "stream"),
        ("/v1/chat/completions", {**BODIES["/v1/chat/completions"], "n": 2}, "n"),
        ("/v1/chat/completions", {**BODIES["/v1/chat/completions"], "max_tokens": 0}, "max_tokens"),
        ("/v1/chat/completions", {**BODIES["/v1/chat/completions"], "max_tokens": "9"}, "max_tokens"),
        ("/v1/responses", {"model": "m"}, "input"),
        ("/v1/responses", {"model": "m", "input": "a", "background": True}, "background"),
        ("/v1/embeddings", {"model": "m", "input": []}, "input"),
        ("/v1/embeddings", {"model": "m", "input": ["a", ""]}, "input"),
        ("/v1/embeddings", {"model": "m", "input": ["a"] * 2049}, "input"),
        ("/v1/embeddings", {"model": "m", "input": ["a" * 700_000, "b" * 700_000]}, "input"),
        ("/v1/moderations", {"model": "m", "input": [5, "a"]}, "input"),
    ],
)
def test_a_body_that_can_not_be_answered_is_400_and_says_which_field(plain, path, body, param):
    answer = plain.post(path, body)
    assert answer.status == 400
    assert answer.body["error"]["type"] == "invalid_request_error"
    assert answer.body["error"]["param"] == param


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/models", 200),
        ("GET", "/v1/models/any%2Fname", 200),
        ("GET", "/", 404),
        ("POST", "/v1/nothing", 404),
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/models", 405),
        ("POST", "/ledger", 405),
    ],
)
def test_paths_and_methods(plain, method, path, status):
    answer = plain.request(method, path)
    assert answer.status == status
    assert set(answer.body.get("error", {})) == (
        set() if status == 200 else {"message", "type", "param", "code"}
    )


def test_a_demanded_key_refuses_every_other(start):
    with start("--api-key", "sk-right") as simulator:
        assert simulator.chat().code == "invalid_api_key"
        wrong = simulator.request("GET", "/v1/models", Authorization="Bearer sk-wrong")
        right = simulator.request("GET", "/v1/models", Authorization="Bearer sk-right")
        assert (wrong.status, right.status) == (401, 200)
