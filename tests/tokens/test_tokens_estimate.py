"""What admission counts of a body, whatever is in it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.tokens import estimate

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
COMPLETIONS, EMBEDDINGS, MODERATIONS = "/v1/completions", "/v1/embeddings", "/v1/moderations"


def user(content, **more):
    return {"role": "user", "content": content, **more}


IMAGE = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
TEXT = {"type": "text", "text": "x" * 40}
#: What an image of unknown size costs with a model that nobody knows: these bodies name none.
UNSEEN = 12_000

# path, body without model, tokens, output limit, bounded
BODIES = [
    (CHAT, {"messages": [user("x" * 40)], "max_tokens": 5}, 15, 5, True),
    (CHAT, {"messages": [user("x" * 41)], "max_completion_tokens": 5}, 16, 5, True),
    (CHAT, {"messages": [user("x" * 39), user("x")], "max_tokens": 5}, 15, 5, True),
    (CHAT, {"messages": [user("é" * 40)], "max_tokens": 0}, 20, 0, True),
    (CHAT, {"messages": [user("好" * 40), user("x" * 3)], "max_tokens": 0}, 31, 0, True),
    (CHAT, {"messages": [user("x" * 40)]}, 26, None, True),
    (CHAT, {"messages": [user("x" * 40)], "n": 3}, 58, None, True),
    (CHAT, {"messages": [user("x" * 40)], "max_tokens": 5, "n": 3}, 25, 15, True),
    (CHAT, {"messages": [user("x" * 40)], "max_tokens": 5, "max_completion_tokens": 7}, 17, 7, True),
    (CHAT, {"messages": [user("x" * 40, name="y" * 4)], "max_tokens": 5}, 16, 5, True),
    (CHAT, {"messages": [user([TEXT, TEXT])], "max_tokens": 5}, 25, 5, True),
    (CHAT, {"messages": [user([TEXT, IMAGE])], "max_tokens": 5}, 15 + UNSEEN, 5, False),
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
    found = estimate(path, body)
    assert (found.tokens, found.output_limit, found.bounded_input) == (tokens, limit, bounded)


# --- the ratio

# ratio, text, tokens
RATIOS = [
    (0.25, "x" * 41, 11),
    (0.26, "x" * 400, 104),
    (0.5, "x" * 41, 21),
    (0.2, "x" * 41, 11),  # never below characters / 4
    (0.3, "好" * 40, 36),
    (0.1, "好" * 40, 12),
    (0.01, "好" * 40, 10),
    (0.25, "", 0),
]


@pytest.mark.parametrize(("ratio", "text", "tokens"), RATIOS)
def test_text_is_the_larger_of_a_quarter_of_its_characters_and_its_bytes_by_the_ratio(ratio, text, tokens):
    chat = {"messages": [user(text)], "max_tokens": 5}
    parts = {"messages": [user([{"type": "text", "text": text}])], "max_tokens": 5}
    assert estimate(CHAT, chat, ratio).tokens == tokens + 5
    assert estimate(CHAT, parts, ratio).tokens == tokens + 5
    assert estimate(RESPONSES, {"input": text, "max_output_tokens": 5}, ratio).tokens == tokens + 5
    assert estimate(COMPLETIONS, {"prompt": text, "max_tokens": 5}, ratio).tokens == tokens + 5
    assert estimate(EMBEDDINGS, {"input": text}, ratio).tokens == tokens


def test_token_ids_and_images_are_not_multiplied():
    assert estimate(EMBEDDINGS, {"input": [1, 2, 3]}, 0.5).tokens == 3
    image = {"model": "gpt-4o", "messages": [user([IMAGE])], "max_tokens": 0}
    assert estimate(CHAT, image, 0.5).tokens == estimate(CHAT, image, 0.25).tokens == 85 + 8 * 170


TOOL = {"type": "function", "function": {"name": "abcd"}}
#: path, body, bytes to learn from
SIZES = [
    (CHAT, {"messages": [user("x" * 41)], "max_tokens": 5}, 41),
    (CHAT, {"messages": [user("é"), user("好")]}, 5),
    (CHAT, {"messages": [user("x", name="yy")], "n": 2, "tools": [TOOL]}, 1 + 2 + 28),
    (CHAT, {"messages": [user([TEXT, TEXT])]}, 80),
    (CHAT, {"messages": [user([TEXT, IMAGE])]}, 0),
    (CHAT, {"messages": [user("x")], "tools": [{"type": "web_search"}]}, 0),
    (CHAT, {"messages": [user("x", audio={"id": "a"})]}, 0),
    (RESPONSES, {"input": "é", "instructions": "xyz"}, 5),
    (RESPONSES, {"input": "x", "previous_response_id": "r"}, 0),
    (RESPONSES, {"input": [user([{"type": "input_file", "file_id": "f"}])]}, 0),
    (COMPLETIONS, {"prompt": ["abc", "de"], "suffix": "f"}, 6),
    (COMPLETIONS, {"prompt": ["abc", [1, 2]]}, 0),
    (EMBEDDINGS, {"input": "好"}, 3),
    (EMBEDDINGS, {"input": [1, 2, 3]}, 0),
    (MODERATIONS, {"input": [TEXT, IMAGE]}, 0),
    ("/v1/other", {"input": "x"}, 0),
]


@pytest.mark.parametrize(("path", "body", "size"), SIZES)
def test_only_of_text_alone_there_are_bytes_to_learn_from(path, body, size):
    assert estimate(path, body).input_bytes == size


@given(st.lists(st.text(), max_size=4), st.floats(0, 1), st.integers(0, 100))
def test_no_text_is_charged_less_than_openai_does(texts, ratio, limit):
    characters = sum(len(text) for text in texts)
    least = math.ceil(characters / 4) + limit
    chat = {"messages": [user(text) for text in texts], "max_tokens": limit}
    parts = {"input": [user([{"type": "input_text", "text": text} for text in texts])]}
    for found in (
        estimate(CHAT, chat, ratio),
        estimate(RESPONSES, {**parts, "max_output_tokens": limit}, ratio),
    ):
        size = len("".join(texts).encode("utf-8", "surrogatepass"))
        assert found.tokens == max(least, math.ceil(size * ratio) + limit)
        assert found.input_bytes == size


def test_half_a_surrogate_pair_raises_nothing():
    text = "\ud83d" * 8
    assert estimate(CHAT, {"messages": [user(text)], "max_tokens": 0}).tokens == 6
    assert estimate(EMBEDDINGS, {"input": [text]}).input_bytes == 24


# --- images

IN_CHAT = {"type": "image_url", "image_url": {"url": "https://example.org/a.png", "detail": "low"}}
IN_RESPONSE = {"type": "input_image", "image_url": "https://example.org/a.png", "detail": "low"}
OUTPUT = {"type": "function_call_output", "output": [IN_RESPONSE]}


@pytest.mark.parametrize(
    ("path", "body", "tokens"),
    [
        (CHAT, {"messages": [user([IN_CHAT])]}, 85),
        (CHAT, {"messages": [user([IN_CHAT, TEXT, IN_CHAT])]}, 85 + 10 + 85),
        (RESPONSES, {"input": [user([IN_RESPONSE])]}, 85),
        (RESPONSES, {"input": [user([{"type": "input_image", "file_id": "f"}])]}, 85 + 8 * 170),
        (RESPONSES, {"input": [OUTPUT]}, 85),
        # no formula is published for these
        (MODERATIONS, {"input": [IN_CHAT]}, 0),
    ],
)
def test_an_image_is_charged_where_it_stands(path, body, tokens):
    found = estimate(path, {"model": "gpt-4o", "max_tokens": 0, "max_output_tokens": 0, **body})
    assert found.tokens == tokens
    assert not found.bounded_input


# --- whatever comes


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


NESTED = ["role", "content", "type", "text", "name", "output", "tool_calls", "id", "audio", "ttl"]
NESTED += ["image_url", "url", "detail"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(NESTED) | st.text(max_size=3),
            inner | st.sampled_from(["text", "message", "function_call", "function", "image_url"]),
            max_size=3,
        )
    ),
    max_leaves=8,
)
keys = st.sampled_from(
    [
        "model",
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
