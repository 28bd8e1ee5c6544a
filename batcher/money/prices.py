"""What a model costs at a tier: looked up and compiled once, then a dictionary away.

Example::

    book = PriceBook("https://api.openai.com/v1", at=clock.wall())
    book.cost("gpt-4o-mini", Usage(prompt_tokens=1000, completion_tokens=10))  # 156_000_000 pico-dollars
"""

from typing import Final

from batcher.money.catalogue import STANDARD_TIERS, Catalogue
from batcher.money.overrides import Overrides
from batcher.money.rates import Cost, Price, WorstCost, compile_worst
from batcher.money.usage import Usage

#: Tiers are the server's and the file's words: ever new ones must not fill the memory.
_MOST_COMPILED: Final = 10_000

#: Tiers that a request without a `service_tier`, or with `auto`, can be served at: its project's setting
#: decides (openai 3.57, `completion_create_params.py`, `service_tier`). `fast` is another name of `priority`;
#: `scale` is one more, but paid for beforehand.
_AUTO: Final[tuple[str | None, ...]] = (None, "priority")


class PriceBook:
    """The prices of one endpoint at one moment (`at`, seconds since 1970): a run keeps those it began with.

    Overrides come first, from `read_overrides`; the rest is `Catalogue`'s. None always means unknown. Nothing
    is read from genai-prices, nor is it imported, before a model is asked for that the overrides do not list.
    """

    def __init__(self, base_url: str, at: float, overrides: Overrides | None = None) -> None:
        self._base_url = base_url
        self._at = at
        self._overrides: Overrides = overrides or {}
        self._catalogue: Catalogue | None = None
        self._compiled: dict[tuple[str, str | None], Price | None] = {}
        self._bounds: dict[tuple[str, str | None], WorstCost | None] = {}

    def cost(self, model: str, usage: Usage | None) -> int | None:
        """Return the cost of one reply, in pico-dollars; `usage.tier` says at which tier.

        `model` is the request's. Without a usage only what is free has a known cost.
        """
        price = self._price(model, None if usage is None else usage.tier)
        return None if price is None else price.cost(usage)

    def price(self, model: str, tier: str | None) -> Cost | None:
        """Return the function from usage to pico-dollars for a model at a tier."""
        price = self._price(model, tier)
        return None if price is None else price.cost

    def worst(self, model: str, tier: object) -> WorstCost | None:
        """Return the function from bounds on a text request to the most that it can cost, in pico-dollars.

        `tier` is the request's `service_tier`. One that asks for a faster tier may be served, and charged, at
        the standard one; one that leaves it open is taken at the dearest that it may get.
        """
        wanted = tier if type(tier) is str else None
        key = (model, wanted)
        if key not in self._bounds:
            if len(self._bounds) >= _MOST_COMPILED:
                self._bounds.clear()
            self._bounds[key] = self._compile_worst(model, wanted)
        return self._bounds[key]

    def _compile_worst(self, model: str, tier: str | None) -> WorstCost | None:
        tiers: tuple[str | None, ...]
        if tier is None or tier in {"", "auto"}:
            tiers = _AUTO
        elif tier in STANDARD_TIERS:
            tiers = (None,)
        elif tier in {"priority", "fast"}:
            tiers = ("priority", None)
        else:
            tiers = (tier,)
        if self._price(model, tiers[0]) is None:
            return None
        prices = [price for price in (self._price(model, each) for each in tiers) if price is not None]
        return compile_worst(prices)

    def _price(self, model: str, tier: str | None) -> Price | None:
        key = (model, tier)
        if key in self._compiled:
            return self._compiled[key]
        if len(self._compiled) >= _MOST_COMPILED:
            self._compiled.clear()
        price = self._compiled[key] = self._compile(model, tier)
        return price

    def _compile(self, model: str, tier: str | None) -> Price | None:
        listed = self._overrides.get(model)
        if listed is not None:
            return listed.get(tier, listed[None] if tier is None or tier in STANDARD_TIERS else None)
        if self._catalogue is None:
            self._catalogue = Catalogue(self._base_url, self._at)
        return self._catalogue.price(model, tier)
