"""The shapes a usage comes in, and the ones that can't be right."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.money.usage import MOST_TOKENS, Usage, WireUsage, read_usage

SHAPES = {
    "chat": (
        {
            "prompt_tokens": 2006,
            "completion_tokens": 300,
            "total_tokens": 2306,
            "prompt_tokens_details": {"cached_tokens": 1920, "audio_tokens": 0, "cache_write_tokens": 64},
            "completion_tokens_details": {"reasoning_tokens": 192, "audio_tokens": 0},
        },
        Usage(prompt_tokens=2006, cached_tokens=1920, cache_write_tokens=64, completion_tokens=300),
    ),
    "chat without details": (
        {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21, "prompt_tokens_details": None},
        Usage(prompt_tokens=9, completion_tokens=12),
    ),
    "chat with nulls": (
        {
            "prompt_tokens": 9,
            "completion_tokens": 12,
            "total_tokens": None,
            "prompt_tokens_details": {"cached_tokens": None, "audio_tokens": None},
            "completion_tokens_details": {},
        },
        Usage(prompt_tokens=9, completion_tokens=12),
    ),
    "audio": (
        {
            "prompt_tokens": 90,
            "completion_tokens": 40,
            "total_tokens": 130,
            "prompt_tokens_details": {"audio_tokens": 80},
            "completion_tokens_details": {"audio_tokens": 30},
        },
        Usage(prompt_tokens=90, completion_tokens=40, input_audio_tokens=80, output_audio_tokens=30),
    ),
    "responses": (
        {
            "input_tokens": 328,
            "input_tokens_details": {
                "cached_tokens": 100,
                "cache_write_tokens": 200,
                "cache_write_tokens_details": {"ttl_12h_tokens": 150, "ttl_30m_tokens": 50},
            },
            "output_tokens": 52,
            "output_tokens_details": {"reasoning_tokens": 10},
            "total_tokens": 380,
        },
        Usage(
            prompt_tokens=328,
            cached_tokens=100,
            cache_write_tokens=200,
            completion_tokens=52,
            long_cache_write_tokens=150,
        ),
    ),
    "embeddings": ({"prompt_tokens": 8, "total_tokens": 8}, Usage(prompt_tokens=8)),
    "both names": (
        {"prompt_tokens": 8, "input_tokens": 8, "completion_tokens": 2, "output_tokens": 2},
        Usage(prompt_tokens=8, completion_tokens=2),
    ),
}

ABSURD = {
    "nothing": {},
    "negative": {"prompt_tokens": -1, "completion_tokens": 1},
    "boolean": {"prompt_tokens": True, "completion_tokens": 1},
    "float": {"prompt_tokens": 9.0, "completion_tokens": 1},
    "text": {"prompt_tokens": "9", "completion_tokens": 1},
    "enormous": {"prompt_tokens": MOST_TOKENS + 1, "completion_tokens": 1},
    "total that is no sum": {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 200},
    "float total": {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10.0},
    "output not told": {"prompt_tokens": 9},
    "names disagree": {"prompt_tokens": 9, "input_tokens": 8, "completion_tokens": 1},
    "more cached than input": {
        "prompt_tokens": 9,
        "completion_tokens": 1,
        "prompt_tokens_details": {"cached_tokens": 10},
    },
    "read and written overlap": {
        "prompt_tokens": 9,
        "completion_tokens": 1,
        "prompt_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 5},
    },
    "negative part": {
        "prompt_tokens": 9,
        "completion_tokens": 1,
        "prompt_tokens_details": {"cached_tokens": -5},
    },
    "boolean part": {
        "prompt_tokens": 9,
        "completion_tokens": 1,
        "prompt_tokens_details": {"cached_tokens": True},
    },
    "more audio than output": {
        "prompt_tokens": 9,
        "completion_tokens": 1,
        "completion_tokens_details": {"audio_tokens": 2},
    },
    "more kept long than written": {
        "input_tokens": 9,
        "output_tokens": 1,
        "input_tokens_details": {
            "cache_write_tokens": 1,
            "cache_write_tokens_details": {"ttl_12h_tokens": 2},
        },
    },
    "unreadable lifetimes": {
        "input_tokens": 9,
        "output_tokens": 1,
        "input_tokens_details": {"cache_write_tokens_details": "?"},
    },
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_is_read(name):
    wire, usage = SHAPES[name]
    assert msgspec.json.decode(msgspec.json.encode(wire), type=WireUsage).normalise() == usage
    assert read_usage(wire) == usage


@pytest.mark.parametrize("name", ABSURD)
def test_an_absurd_usage_is_unknown(name):
    encoded = msgspec.json.encode(ABSURD[name])
    assert msgspec.json.decode(encoded, type=WireUsage).normalise() is None
    assert read_usage(ABSURD[name]) is None


@pytest.mark.parametrize("value", [None, [], "", 7, {"prompt_tokens": 1, "prompt_tokens_details": []}])
def test_what_is_no_object_is_unknown(value):
    assert read_usage(value) is None


@pytest.mark.parametrize(("tier", "kept"), [("flex", "flex"), (None, None), (7, None), ([], None)])
def test_the_tier_is_kept_if_it_is_a_word(tier, kept):
    usage = read_usage({"prompt_tokens": 1, "completion_tokens": 1}, tier)
    assert usage is not None
    assert usage.tier == kept


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
names = st.sampled_from(
    [*WireUsage.__struct_fields__, "cached_tokens", "cache_write_tokens", "audio_tokens", "other"]
)


@given(st.dictionaries(names, json_values | st.dictionaries(names, json_values)))
def test_anything_is_read_without_an_error_and_never_out_of_bounds(wire):
    usage = read_usage(wire, "default")
    if usage is not None:
        assert 0 <= usage.cached_tokens + usage.cache_write_tokens <= usage.prompt_tokens <= MOST_TOKENS
        assert 0 <= usage.output_audio_tokens <= usage.completion_tokens <= MOST_TOKENS
