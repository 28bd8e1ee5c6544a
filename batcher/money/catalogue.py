"""Finds prices in genai-prices, and takes only those that are surely meant for the model that is asked for.

genai-prices (0.2.3) is made to guess well; a bill must not guess. So, of what it offers:

- A model is found by a name that it lists, or by a dated snapshot (`-2025-08-07`, `-0914`) of a prefix
  that it lists. Its own matching goes further: any name that begins with, ends in, or contains a listed
  word.
- A fine-tuned model (`ft:BASE:org:suffix:id`) has a price only where its base is listed as fine-tuned.
  None of these entries has a price for cached input, though OpenAI charges less for it: with cached
  tokens in the usage, the cost is unknown.
- A tier that the model is not priced for is unknown. `get_prices` would quietly give the standard price.
- `scale` is paid for beforehand, not by the token: unknown.
- A price that changes with the time of day is unknown: a run lasts longer than an hour.
- A price in other units than tokens is unknown, as are models that search the web in every request: the
  fee for each search is not in the usage.
- Audio read from the cache, and cache writes of several lifetimes, can't be told apart in a usage.

Elsewhere it is followed: cached input without a price of its own is charged as input (OpenAI lists none
where it gives no discount), and so are cache writes ("models before gpt-5.6 don't charge extra", Azure's
guide on prompt caching); in a tier, what has no price of its own keeps the standard one; Azure is priced
as Global deployments.
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Context, Decimal, localcontext
from typing import TYPE_CHECKING, Final

from batcher.money.rates import FREE, Band, Price, compile_price

if TYPE_CHECKING:
    from genai_prices.types import MatchLogic, ModelInfo, ModelPrice, PriceContext, Provider, TieredPrices

#: Moderation is free (`FACTS.md`, "Usage and prices"; 2026-11-24); genai-prices has no price for it.
_FREE_OPENAI_MODELS: Final = frozenset(
    {
        "omni-moderation-latest",
        "omni-moderation-2024-09-26",
        "text-moderation-latest",
        "text-moderation-stable",
        "text-moderation-007",
    }
)

#: Tiers that are charged at the standard price: what OpenAI, Anthropic and Groq call it in a reply.
STANDARD_TIERS: Final = frozenset({"", "default", "auto", "standard", "on_demand"})

#: Hosts of OpenAI's with data residency, where many models cost 10% more, which genai-prices does not list
#: (developers.openai.com/api/docs/pricing, "regional processing").
_REGIONAL_OPENAI: Final = re.compile(r"https?://[a-z0-9-]+\.api\.openai\.com(?:[:/]|$)")

_SNAPSHOT: Final = re.compile(r"(?:-preview)?(?:-?\d{4}-\d{2}-\d{2}|-\d{8}|-\d{4})?")
_FINE_TUNED: Final = re.compile(r"(ft:[^:]+):[^:]*:[^:]*:[^:]+(?::ckpt-step-\d+)?")
_SEARCHES: Final = re.compile(r"search|deep-research")

#: How genai-prices names the parts of a usage that we can tell apart.
_PARTS: Final = {
    "input_mtok": "input",
    "cache_read_mtok": "cached_input",
    "cache_write_mtok": "cache_write",
    "output_mtok": "output",
    "input_audio_mtok": "input_audio",
    "output_audio_mtok": "output_audio",
}
#: Prices that no usage calls for: fees of hosted tools, and of parts that already make a cost unknown.
_IGNORED: Final = frozenset(
    {
        "web_searches_kcount",
        "storage_searches_kcount",
        "cache_audio_read_mtok",
        "cache_write_1h_mtok",
        "cache_write_5m_mtok",
    }
)


class Catalogue:
    """The listed prices of whoever answers at a base URL, at one moment.

    A host that genai-prices does not know (a gateway, localhost) is taken to pass OpenAI's models on at
    OpenAI's prices. Importing genai-prices costs a third of a second: it happens here, not above.
    """

    def __init__(self, base_url: str, at: float) -> None:
        with localcontext(Context()):  # its data are Decimals; the caller's precision is not ours
            from genai_prices.data_snapshot import get_snapshot

            providers = get_snapshot().providers
        self._when = datetime.fromtimestamp(at, UTC)
        self._provider = _provider_at(base_url.lower(), providers)
        self._models = list(_models_of(self._provider, providers)) if self._provider else []

    def price(self, model: str, tier: str | None) -> Price | None:
        """Compile the price of a model at a tier, or return None if it is not known."""
        if self._provider is None:
            return None
        if self._provider.id == "openai" and model in _FREE_OPENAI_MODELS:
            return FREE
        name = model.lower()
        info = _find(self._models, name)
        if info is None or _SEARCHES.search(name) or not self._at_all_hours(info):
            return None
        if tier is None or tier in STANDARD_TIERS:
            return _compile(info.get_prices(self._when), name)
        if not any(info is own for own in self._provider.models):
            return None  # sold on by another, whose tiers these are not
        context = {"processing": "batch"} if tier == "batch" else {"service_tier": tier}
        if not self._has_variant(info, context):
            return None
        return _compile(info.get_prices(self._when, context), name)

    def _at_all_hours(self, model: "ModelInfo") -> bool:
        """Tell whether the model has one price now, the same at any time of day."""
        if not isinstance(model.prices, list):
            return True
        constraints = [conditional.constraint for conditional in model.prices]
        if any(hasattr(constraint, "start_time") for constraint in constraints):
            return False
        return any(constraint is None or constraint.active(self._when) for constraint in constraints)

    def _has_variant(self, model: "ModelInfo", context: "PriceContext") -> bool:
        return any(
            variant.when == context and (variant.constraint is None or variant.constraint.active(self._when))
            for variant in model.price_variants or ()
        )


def _provider_at(base_url: str, providers: "list[Provider]") -> "Provider | None":
    if _REGIONAL_OPENAI.match(base_url):
        return None
    for provider in providers:
        if re.match(provider.api_pattern, base_url):
            return provider
    return next(provider for provider in providers if provider.id == "openai")


def _models_of(provider: "Provider", providers: "list[Provider]") -> "Iterator[ModelInfo]":
    """Yield its own models, then those that it sells for others (Azure sells OpenAI's)."""
    yield from provider.models
    for other in provider.fallback_model_providers or ():
        for found in providers:
            if found.id == other:
                yield from found.models


def _find(models: "list[ModelInfo]", name: str) -> "ModelInfo | None":
    """Find by listed name, or else by snapshot of one and only one listed prefix."""
    for model in models:
        if any(name == equals for equals in _listed_names(model.match)):
            # OpenAI does not sell its open weights: such an entry is a reseller's price.
            return None if name.startswith("gpt-oss") else model
    found = [model for model in models if _is_snapshot(model.match, name)]
    return found[0] if len(found) == 1 else None


def _listed_names(match: "MatchLogic") -> "Iterator[str]":
    if hasattr(match, "equals"):
        yield match.equals.lower()
    for clause in getattr(match, "or_", ()):
        yield from _listed_names(clause)


def _is_snapshot(match: "MatchLogic", name: str) -> bool:
    if hasattr(match, "or_"):
        return any(_is_snapshot(clause, name) for clause in match.or_)
    if hasattr(match, "regex"):
        return match.regex.startswith("^") and match.regex.endswith("$") and match.is_match(name)
    prefix: str | None = getattr(match, "starts_with", None)
    if prefix is None:
        return False
    if tuned := _FINE_TUNED.fullmatch(name):
        base = tuned[1]
        # `ft:gpt-4-0` is listed under plain GPT-4, at the price of the untuned model: not believed.
        return (
            base.startswith(prefix) and not prefix.startswith("ft:gpt-4-") and _is_date(base[len(prefix) :])
        )
    if name.startswith("ft:") or not name.startswith(prefix):
        return False
    return _SNAPSHOT.fullmatch(name[len(prefix) :]) is not None


def _is_date(text: str) -> bool:
    return not text.strip("-0123456789")


def _compile(prices: "ModelPrice", name: str) -> Price | None:
    listed = {key: value for key, value in vars(prices).items() if value is not None}
    if listed.keys() - _PARTS.keys() - _IGNORED or "input_mtok" not in listed:
        return None
    thresholds = {tier.start for value in listed.values() for tier in getattr(value, "tiers", ())}
    return compile_price([_band(above, listed, name) for above in (-1, *sorted(thresholds))])


def _band(above: int, listed: "dict[str, Decimal | TieredPrices]", name: str) -> Band:
    """Collect the prices that hold for requests of more than `above` input tokens."""
    parts = {_PARTS[key]: _price_above(above, value) for key, value in listed.items() if key in _PARTS}
    if not name.startswith("ft:"):
        parts.setdefault("cached_input", parts["input"])
    if "cache_write_1h_mtok" not in listed:
        parts.setdefault("cache_write", parts["input"])
    else:
        parts.pop("cache_write", None)
    return Band(above, **parts)


def _price_above(above: int, value: "Decimal | TieredPrices") -> Decimal:
    if isinstance(value, Decimal):
        return value
    price = value.base
    for tier in value.tiers:  # in rising order
        if tier.start <= above:
            price = tier.price
    return price
