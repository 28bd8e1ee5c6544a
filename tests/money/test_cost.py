"""The most that a request can cost, and how money is written."""

import subprocess
import sys

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.money.cost import usd_string, worst_cost
from batcher.money.prices import PriceBook
from batcher.money.usage import Usage
from batcher.tokens import estimate

BOOK = PriceBook("https://api.openai.com/v1", at=1_795_000_000.0)
CHAT, RESPONSES, EMBEDDINGS = "/v1/chat/completions", "/v1/responses", "/v1/embeddings"


def worst(path, body):
    return worst_cost(BOOK, str(body.get("model")), body, len(orjson.dumps(body)), estimate(path, body))


def chat(**more):
    return {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}], **more}


def test_the_bytes_of_the_body_bound_the_input():
    body = chat(max_tokens=100, service_tier="default")
    size = len(orjson.dumps(body))
    assert worst(CHAT, body) == (size + 500) * 150_000 + 100 * 600_000


def test_an_open_tier_is_taken_at_its_dearest():
    size = len(orjson.dumps(chat(max_tokens=100)))
    assert worst(CHAT, chat(max_tokens=100)) == (size + 500) * 250_000 + 100 * 1_000_000


def test_a_cheap_tier_is_taken_at_its_word():
    body = chat(max_tokens=100, service_tier="flex") | {"model": "gpt-5-mini"}
    assert worst(CHAT, body) == (len(orjson.dumps(body)) + 500) * 125_000 + 100 * 1_000_000


def test_all_choices_are_paid_for():
    one, three = (worst(CHAT, chat(max_tokens=100, n=n, service_tier="default")) for n in (1, 3))
    assert three - one == 200 * 600_000


def test_a_long_request_is_bound_by_the_dearer_band():
    body = {"model": "gpt-6-sol", "input": "x" * 300_000, "max_output_tokens": 10, "service_tier": "default"}
    # cache writes are the dearest input: $5 above the threshold; output $15
    assert worst(RESPONSES, body) == (len(orjson.dumps(body)) + 500) * 5_000_000 + 10 * 15_000_000


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat()),
        (CHAT, chat(max_tokens="5")),
        (CHAT, chat(max_tokens=5) | {"model": "gpt-99"}),
        (CHAT, chat(max_tokens=5, service_tier="flex")),
        (CHAT, chat(max_tokens=5, service_tier="scale")),
        (CHAT, chat(max_tokens=5, web_search_options={})),
        (CHAT, chat(max_tokens=5, prediction={"type": "content", "content": "x"})),
        (CHAT, chat(max_tokens=5, prompt_cache_options={"ttl": "12h"})),
        (CHAT, chat(max_tokens=5, prompt_cache_options=["ttl"])),
        (CHAT, chat(max_tokens=2**63)),
        (RESPONSES, {"model": "gpt-5", "input": "x", "max_output_tokens": 5, "previous_response_id": "r"}),
        (RESPONSES, {"model": "gpt-5", "input": "x", "max_output_tokens": 5, "prompt": {"id": "p"}}),
        (
            RESPONSES,
            {"model": "gpt-5", "input": "x", "max_output_tokens": 5, "tools": [{"type": "web_search"}]},
        ),
        ("/v1/other", chat(max_tokens=5)),
    ],
)
def test_what_has_no_bound_or_no_price_is_unknown(path, body):
    assert worst(path, body) is None


def test_the_usual_cache_lifetime_is_priced():
    assert worst(CHAT, chat(max_tokens=5, prompt_cache_options={"ttl": "30m"})) is not None


def test_embeddings_and_moderations_need_no_output_limit():
    body = {"model": "text-embedding-3-small", "input": ["a", "b"]}
    assert worst(EMBEDDINGS, body) == (len(orjson.dumps(body)) + 500) * 20_000
    assert worst("/v1/moderations", {"model": "omni-moderation-latest", "input": "x"}) == 0


@given(
    st.sampled_from(["gpt-4o-mini", "gpt-5.5", "gpt-6-luna", "o3"]),
    st.text(max_size=200),
    st.integers(0, 5000),
    st.integers(1, 4),
    st.sampled_from([None, "default", "priority", "auto"]),
    st.data(),
)
def test_no_reply_within_its_bounds_costs_more(model, text, limit, n, asked, data):
    body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": limit, "n": n}
    if asked is not None:
        body["service_tier"] = asked
    bound = worst(CHAT, body)
    assert bound is not None
    prompt = data.draw(st.integers(0, len(text.encode()) + 8))
    cached = data.draw(st.integers(0, prompt))
    written = data.draw(st.integers(0, prompt - cached))
    tier = data.draw(st.sampled_from(["default"] if asked == "default" else ["default", "priority"]))
    cost = BOOK.cost(model, Usage(prompt, cached, written, limit * n, tier=tier))
    assert cost is not None
    assert cost <= bound


@pytest.mark.parametrize(
    ("pico", "text"),
    [
        (0, "0.00"),
        (1, "0.000000000001"),
        (750_000, "0.00000075"),
        (41_270_000_000_000, "41.27"),
        (41_200_000_000_000, "41.20"),
        (10**12, "1.00"),
        (10**18 + 1, "1000000.000000000001"),
        (-(10**11), "-0.10"),
    ],
)
def test_money_is_written_exactly(pico, text):
    assert usd_string(pico) == text


def test_no_heavy_import_before_a_price_is_asked_for():
    code = (
        "import sys; from batcher.money.cost import worst_cost; from batcher.money.prices import PriceBook;"
        "PriceBook('https://api.openai.com/v1', 0.0); assert 'genai_prices' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
