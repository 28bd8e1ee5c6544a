"""Bills made by hand, prices that must stay unknown, and agreement with genai-prices to the pico-dollar."""

import decimal
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction

import pytest
from genai_prices import Usage as ListedUsage
from genai_prices.data_snapshot import get_snapshot
from hypothesis import given
from hypothesis import strategies as st

from batcher.money.catalogue import Catalogue
from batcher.money.prices import PriceBook
from batcher.money.rates import Band, compile_price
from batcher.money.usage import MOST_TOKENS, Usage

OPENAI = "https://api.openai.com/v1"
AT = datetime(2026, 11, 24, 12, tzinfo=UTC).timestamp()
BOOK = PriceBook(OPENAI, AT)

# model, tier, (prompt, cached, written, completion), pico-dollars
BILLS = [
    # $0.15 in, $0.075 cached, $0.60 out: 1,000 x 150,000 + 10 x 600,000
    ("gpt-4o-mini", None, (1000, 0, 0, 10), 156_000_000),
    ("gpt-4o-mini-2024-07-18", "default", (1000, 0, 0, 10), 156_000_000),
    ("gpt-4o-mini", "auto", (1000, 0, 0, 10), 156_000_000),
    # 80 x 150,000 + 1,920 x 75,000 + 300 x 600,000
    ("gpt-4o-mini", None, (2000, 1920, 0, 300), 336_000_000),
    ("gpt-4o-mini", "priority", (1000, 0, 0, 10), 260_000_000),  # $0.25, $1
    ("gpt-4o-mini", "batch", (1000, 0, 0, 10), 78_000_000),
    ("gpt-4o-mini", None, (0, 0, 0, 0), 0),
    # no price for cached input: no discount ($5, $15)
    ("gpt-4o-2024-05-13", None, (1000, 500, 0, 0), 5_000_000_000),
    ("gpt-5-mini", "flex", (1000, 600, 0, 100), 400 * 125_000 + 600 * 12_500 + 100 * 1_000_000),
    # $5 and $30 up to 272,000 tokens of input, $10 and $45 for all of a longer request
    ("gpt-5.5", None, (272_000, 0, 0, 1000), 272_000 * 5_000_000 + 1000 * 30_000_000),
    ("gpt-5.5", None, (272_001, 0, 0, 1000), 272_001 * 10_000_000 + 1000 * 45_000_000),
    ("gpt-5.5", None, (272_001, 272_000, 0, 0), 10_000_000 + 272_000 * 1_000_000),
    # cache writes at 1.25 times the input ($2, $0.2, $2.5, $10)
    (
        "gpt-6-sol",
        None,
        (1000, 100, 200, 50),
        700 * 2_000_000 + 100 * 200_000 + 200 * 2_500_000 + 500_000_000,
    ),
    ("text-embedding-3-small", None, (8, 0, 0, 0), 160_000),
    ("text-embedding-3-large", None, (8, 0, 0, 0), 1_040_000),
    ("text-embedding-ada-002", None, (8, 0, 0, 0), 800_000),
    ("omni-moderation-latest", None, (8, 0, 0, 0), 0),
    ("ft:gpt-4o-mini-2024-07-18:org::id", None, (1000, 0, 0, 10), 312_000_000),  # $0.30, $1.20
]

UNKNOWN = [
    *(
        (model, None)
        for model in ("gpt-99", "gpt-4o-mini-my-finetune", "my-gpt-4o", "", "gpt-4o-mini-2031-01-01")
    ),
    *((model, None) for model in ("ft:gpt-4o-mini:org::id", "ft:gpt-4-0613:org::id", "ft:gpt-99:org::id")),
    *((model, None) for model in ("my-moderation", "gpt-5-nano-mine", "gpt-3.5-turbo-instruct-mine")),
    *((model, None) for model in ("gpt-4o-search-preview", "o3-deep-research", "whisper-1", "gpt-image-1")),
    *((model, None) for model in ("gpt-oss-120b", "tts-1", "deepseek-chat")),
    ("gpt-4o-mini", "flex"),
    ("gpt-4o-mini", "scale"),
    ("gpt-4o-mini", "Priority"),
    ("text-embedding-3-small", "priority"),
]


@pytest.mark.parametrize(("model", "tier", "counts", "pico"), BILLS)
def test_a_bill_made_by_hand(model, tier, counts, pico):
    prompt, cached, written, completion = counts
    usage = Usage(prompt, cached, written, completion, tier=tier)
    assert BOOK.cost(model, usage) == pico
    price = BOOK.price(model, tier)
    assert price is not None
    assert price(usage) == pico


@pytest.mark.parametrize(("model", "tier"), UNKNOWN)
def test_what_is_not_listed_is_unknown(model, tier):
    assert BOOK.price(model, tier) is None
    assert BOOK.worst(model, tier or "default") is None
    assert BOOK.cost(model, Usage(prompt_tokens=1000, tier=tier)) is None


@pytest.mark.parametrize(
    ("model", "usage"),
    [
        ("text-embedding-3-small", Usage(prompt_tokens=8, completion_tokens=1)),
        ("gpt-4o-mini", Usage(prompt_tokens=8, input_audio_tokens=1)),
        ("gpt-4o-audio-preview", Usage(prompt_tokens=8, completion_tokens=8, output_audio_tokens=1)),
        ("gpt-6.1-terra", Usage(prompt_tokens=8, cache_write_tokens=8, long_cache_write_tokens=8)),
        ("gpt-audio", Usage(prompt_tokens=8, input_audio_tokens=4, cached_tokens=4)),
        ("ft:gpt-4o-mini-2024-07-18:org::id", Usage(prompt_tokens=8, cached_tokens=4)),
        ("gpt-4o-mini", Usage(prompt_tokens=8, cached_tokens=9)),
        ("gpt-4o-mini", None),
    ],
)
def test_a_part_without_a_price_makes_the_cost_unknown(model, usage):
    assert BOOK.price(model, None) is not None
    assert BOOK.cost(model, usage) is None


def test_audio_has_its_own_price():
    usage = Usage(prompt_tokens=100, completion_tokens=50, input_audio_tokens=80, output_audio_tokens=40)
    text = 20 * 2_500_000 + 10 * 10_000_000
    assert BOOK.cost("gpt-audio", usage) == text + 80 * 32_000_000 + 40 * 64_000_000


def test_what_is_free_needs_no_usage():
    assert BOOK.cost("omni-moderation-latest", None) == 0


@pytest.mark.parametrize(
    ("url", "model", "pico"),
    [
        ("http://localhost:8000/v1", "gpt-4o-mini", 150_000_000),
        ("https://gateway.example/v1", "gpt-4o-mini", 150_000_000),
        ("https://API.OpenAI.com/v1", "gpt-4o-mini", 150_000_000),
        ("https://us.api.openai.com/v1", "gpt-4o-mini", None),  # 10% more for many models
        ("https://me.openai.azure.com/openai", "gpt-4o-mini", 150_000_000),
        ("https://api.groq.com/openai/v1", "gpt-4o-mini", None),
        ("https://openrouter.ai/api/v1", "openai/gpt-4o-mini", 150_000_000),
        ("https://api.anthropic.com/v1", "claude-sonnet-4-5", 3_000_000_000),
        ("https://api.deepseek.com", "deepseek-chat", None),  # by the time of day
    ],
)
def test_the_provider_follows_from_the_base_url(url, model, pico):
    assert PriceBook(url, AT).cost(model, Usage(prompt_tokens=1000)) == pico


def test_a_tier_of_the_model_s_owner_is_not_that_of_who_sells_it_on():
    assert PriceBook("https://me.openai.azure.com", AT).price("gpt-5", "flex") is None


def test_prices_are_those_of_the_given_moment():
    before, after = (datetime(2025, 6, day, tzinfo=UTC).timestamp() for day in (9, 10))
    usage = Usage(prompt_tokens=1000)
    assert PriceBook(OPENAI, before).cost("o3", usage) == 10_000_000_000
    assert PriceBook(OPENAI, after).cost("o3", usage) == 2_000_000_000
    assert PriceBook(OPENAI, after).price("o3", "flex") is None  # nobody noted what it was then


def test_the_ambient_decimal_context_changes_nothing():
    with decimal.localcontext(decimal.Context(prec=1, traps=[decimal.Inexact, decimal.Rounded])):
        price = Catalogue(OPENAI, AT).price("gpt-4o-mini", None)
        assert price is not None
        assert price.cost(Usage(prompt_tokens=1234, cached_tokens=1000)) == 110_100_000


@pytest.mark.parametrize(("tokens", "pico"), [(1, 0), (2, 1), (3, 1), (4, 1), (6, 2)])
def test_a_price_finer_than_a_pico_dollar_is_rounded_once_half_up(tokens, pico):
    price = compile_price([Band(input=Decimal("0.00000025"), cached_input=Decimal(0))])
    assert price.cost(Usage(prompt_tokens=tokens)) == pico


def test_many_tiers_do_not_fill_the_memory():
    book = PriceBook(OPENAI, AT)
    for number in range(10_050):
        book.price("gpt-4o-mini", f"tier-{number}")
    assert len(book._compiled) <= 10_000


def _names(match):
    if hasattr(match, "equals"):
        yield match.equals
    for clause in getattr(match, "or_", ()):
        yield from _names(clause)


SNAPSHOT = get_snapshot()
MODELS = sorted(
    name
    for provider in SNAPSHOT.providers
    if provider.id == "openai"
    for model in provider.models
    for name in _names(model.match)
)
TIERS = [None, "default", "flex", "priority", "fast", "batch"]
PRICED = [(model, tier) for model in MODELS for tier in TIERS if BOOK.price(model, tier) is not None]


def test_most_listed_models_have_a_price():
    assert len({model for model, _ in PRICED}) > 100


@st.composite
def usages(draw, most=3_000_000):
    prompt = draw(st.integers(0, most) | st.integers(min(most, 271_990), min(most, 272_010)))
    cached = draw(st.integers(0, prompt))
    written = draw(st.just(0) | st.integers(0, prompt - cached))
    return Usage(prompt, cached, written, draw(st.integers(0, most)))


@given(st.sampled_from(PRICED), usages())
def test_a_compiled_price_is_the_listed_one(which, usage):
    model, tier = which
    cost = BOOK.price(model, tier)(usage)
    context = {"processing": "batch"} if tier == "batch" else {"service_tier": tier} if tier else None
    listed = SNAPSHOT.calc(
        ListedUsage(
            input_tokens=usage.prompt_tokens,
            cache_read_tokens=usage.cached_tokens,
            cache_write_tokens=usage.cache_write_tokens,
            output_tokens=usage.completion_tokens,
        ),
        model,
        "openai",
        None,
        datetime.fromtimestamp(AT, UTC),
        context,
    )
    if cost is None:
        assert usage.completion_tokens  # an embedding model's output, which genai-prices gives away
        assert "embedding" in model
    else:
        assert cost == Fraction(listed.total_price) * 10**12


@given(st.sampled_from(PRICED), usages(most=100_000), usages(most=100_000))
def test_below_every_threshold_costs_add_up_and_rise_with_use(which, one, other):
    price = BOOK.price(*which)
    costs = [price(one), price(other), price(_sum(one, other))]
    if None not in costs:
        assert costs[0] + costs[1] == costs[2]
        assert costs[2] >= max(costs[:2]) >= 0


def _sum(one, other):
    fields = ("prompt_tokens", "cached_tokens", "cache_write_tokens", "completion_tokens")
    return Usage(**{field: getattr(one, field) + getattr(other, field) for field in fields})


@given(st.sampled_from(PRICED), usages(), st.integers(0, 10**6), st.integers(0, 10**6))
def test_no_usage_within_the_bounds_costs_more_than_the_worst(which, usage, more_input, more_output):
    model, tier = which
    for asked in (tier, None) if tier in {None, "default", "priority", "fast"} else (tier,):
        worst = BOOK.worst(model, asked)
        cost = BOOK.price(model, tier)(usage)
        bound = worst(usage.prompt_tokens + more_input, usage.completion_tokens + more_output)
        assert bound is None or cost is None or cost <= bound


def test_the_dearest_possible_bill_fits_an_sqlite_integer():
    most = Band(
        input=Decimal(10_000), cached_input=Decimal(0), cache_write=Decimal(0), output=Decimal(10_000)
    )
    cost = compile_price([most]).cost(Usage(prompt_tokens=MOST_TOKENS, completion_tokens=MOST_TOKENS))
    assert cost is not None
    assert cost < 2**63
