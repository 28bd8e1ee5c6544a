"""What admission counts of a body, whatever is in it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.tokens import Estimate, estimate

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
COMPLETIONS, EMBEDDINGS, MODERATIONS = "/v1/completions", "/v1/embeddings", "/v1/moderations"


def user(content, **more):
    return {"role": "user", "content": content, **more}


IMAGE = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
TEXT = {"type": "text", "text": "x" * 40}

# path, body without model, tokens, output limit, bounded
BODIES = [
    (CHAT, {"messages": [user("x" * 40)], "max_tokens": 5}, 15, 5, True),
    (CHAT, {"messages": [user("x" * 41)], "max_completion_tokens": 5}, 16, 5, True),
    (CHAT, {"messages": [user("x" * 39), user("x")], "max_tokens": 5}, 15, 5, True),
    (CHAT, {"messages": [user("é" * 40)], "max_tokens": 0}, 10, 0, True),
    (CHAT, {"messages": [user("x" * 40)]}, 26, None, True),
    (CHAT, {"messages": [user("x" * 40)], "n": 3}, 58, None, True),
    (CHAT, {"messages": [user("x" * 40)], "max_tokens": 5, "n": 3}, 25, 15, True),
    (CHAT, {"messages": [user("x" * 40)], "max_tokens": 5, "max_completion_tokens": 7}, 17, 7, True),
    (CHAT, {"messages": [user("x" * 40, name="y" * 4)], "max_tokens": 5}, 16, 5, True),
    (CHAT, {"messages": [user([TEXT, TEXT])], "max_tokens": 5}, 25, 5, True),
    (CHAT, {"messages": [user([TEXT, IMAGE])], "max_tokens": 5}, 15, 5, False),
    (CHAT, {"messages": [{"role": "assistant", "refusal": "x" * 40}], "max_tokens": 5}, 15, 5, True),
    (CHAT, {"messages": [{"role": "assistant", "tool_calls": ["x" * 40]}], "max_tokens": 5}, 15, 5, True),
    (CHAT, {"messages": [user("x" * 40, audio={"id": "a"})], "max_tokens": 5}, 15, 5, False),
    (CHAT, {"messages": [], "max_tokens": 5, "modalities": ["text"]}, 5, 5, True),
    (CHAT, {"messages": [], "max_tokens": 5, "modalities": ["text", "audio"]}, 5, 5, False),
    (CHAT, {"messages": [], "max_tokens": 5, "audio": None, "prediction": None}, 5, 5, True),
    (
        CHAT,
        {"messages": [], "max_tokens": 5, "tools": [{"type": "function", "function": {"name": "abcd"}}]},
        12,
        5,
        True,
    ),
    (CHAT, {"messages": [], "max_tokens": 5, "tools": [{"type": "web_search"}]}, 9, 5, False),
    (CHAT, {"messages": [], "max_tokens": 5, "response_format": {"type": "json_object"}}, 9, 5, True),
    (RESPONSES, {"input": "x" * 40, "max_output_tokens": 20}, 30, 20, True),
    (RESPONSES, {"input": "x" * 40, "instructions": "y" * 8}, 28, None, True),
    (RESPONSES, {"input": [user("x" * 40)], "max_output_tokens": 20}, 30, 20, True),
    (
        RESPONSES,
        {"input": [user([{"type": "input_text", "text": "x" * 40}])], "max_output_tokens": 20},
        30,
        20,
        True,
    ),
    (
        RESPONSES,
        {"input": [user([{"type": "input_file", "file_id": "f"}])], "max_output_tokens": 20},
        20,
        20,
        False,
    ),
    (
        RESPONSES,
        {"input": [{"type": "function_call_output", "output": "x" * 40}], "max_output_tokens": 20},
        30,
        20,
        True,
    ),
    (RESPONSES, {"input": [{"type": "item_reference", "id": "i"}], "max_output_tokens": 20}, 20, 20, False),
    (RESPONSES, {"input": [{"id": "i"}], "max_output_tokens": 20}, 20, 20, False),
    (RESPONSES, {"input": "", "previous_response_id": "r", "max_output_tokens": 20}, 20, 20, False),
    (RESPONSES, {"input": "", "reasoning": {"effort": "low"}, "max_output_tokens": 20}, 20, 20, True),
    (RESPONSES, {"input": "", "reasoning": {"mode": "pro"}, "max_output_tokens": 20}, 20, 20, False),
    (COMPLETIONS, {"prompt": "x" * 40}, 26, 16, True),
    (
        COMPLETIONS,
        {"prompt": "x" * 40, "suffix": "yyyy", "max_tokens": 5, "n": 2, "best_of": 3},
        26,
        15,
        True,
    ),
    (COMPLETIONS, {"prompt": ["x" * 40, "y" * 40], "max_tokens": 5}, 30, 10, True),
    (COMPLETIONS, {"prompt": [1, 2, 3], "max_tokens": 5}, 8, 5, True),
    (COMPLETIONS, {"prompt": [[1, 2, 3], [4]], "max_tokens": 5}, 14, 10, True),
    (EMBEDDINGS, {"input": "x" * 40}, 10, 0, True),
    (EMBEDDINGS, {"input": ["x" * 39, "y"]}, 10, 0, True),
    (EMBEDDINGS, {"input": [1, 2, 3]}, 3, 0, True),
    (EMBEDDINGS, {"input": [[1, 2, 3], [4]]}, 4, 0, True),
    (EMBEDDINGS, {"input": []}, 0, 0, True),
    (MODERATIONS, {"input": "x" * 40}, 10, 0, True),
    (MODERATIONS, {"input": [TEXT, IMAGE]}, 10, 0, False),
    ("/v1/other", {"input": "x" * 35}, 26, None, False),
]


@pytest.mark.parametrize(("path", "body", "tokens", "limit", "bounded"), BODIES)
def test_a_body_is_estimated(path, body, tokens, limit, bounded):
    assert estimate(path, body) == Estimate(tokens, limit, bounded)


@pytest.mark.parametrize("wrong", [None, True, 3, -1, 1.5, "x", [], {}, [None], [[]], [{}], {"a": 1}])
@pytest.mark.parametrize(
    "key",
    [
        "messages",
        "max_tokens",
        "max_completion_tokens",
        "n",
        "input",
        "prompt",
        "instructions",
        "best_of",
        "suffix",
        "max_output_tokens",
        "tools",
        "text",
        "reasoning",
        "modalities",
    ],
)
@pytest.mark.parametrize("path", [CHAT, RESPONSES, COMPLETIONS, EMBEDDINGS, MODERATIONS])
def test_a_wrong_type_raises_nothing(path, key, wrong):
    found = estimate(path, {"model": "m", key: wrong})
    assert 0 <= found.tokens < 100


def test_a_boolean_is_no_limit():
    assert estimate(CHAT, {"messages": [], "max_tokens": True}).output_limit is None


def test_an_absurd_limit_still_fits_64_bits():
    found = estimate(CHAT, {"messages": [], "max_tokens": 2**64, "n": 2**64})
    assert found.output_limit == 2**53
    assert estimate(CHAT, {"messages": [], "n": 2**64}).tokens == 2**53


def test_deep_nesting_is_no_danger():
    deep: object = "x" * 40
    for _ in range(100_000):
        deep = [deep]
    assert estimate(CHAT, {"messages": [], "tools": deep, "max_tokens": 5}).tokens == 15


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "type", "text", "name", "output", "tool_calls", "id", "audio", "ttl"]
            )
            | st.text(max_size=3),
            inner | st.sampled_from(["text", "message", "function_call", "function"]),
            max_size=3,
        )
    ),
    max_leaves=8,
)
keys = st.sampled_from(
    [
        "messages",
        "input",
        "prompt",
        "tools",
        "text",
        "n",
        "max_tokens",
        "max_output_tokens",
        "best_of",
        "modalities",
    ]
)


@given(
    st.sampled_from([CHAT, RESPONSES, COMPLETIONS, EMBEDDINGS, MODERATIONS, "/other"]),
    st.dictionaries(keys, json_values),
)
def test_any_json_is_estimated(path, body):
    found = estimate(path, body)
    assert found.tokens >= (found.output_limit or 0) >= 0
