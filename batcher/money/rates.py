"""A price, compiled: from dollars per million tokens to a function of usage in whole pico-dollars.

    cost = (fresh x input + cached x cached + written x cache_write + completion x output) / denominator
    where fresh = prompt - cached - written

A dollar per million tokens is 10^6 pico-dollars (10^-12 dollar) per token, so every price with up to six
decimals is a whole number of them. Others keep an exact common denominator, and the cost of an attempt is
rounded once, half up. No float and no Decimal takes part.

Beyond a context threshold the whole request is priced anew, output included (openai.com/api/pricing, and
`TieredPrices` in genai-prices 0.2.3): each threshold begins another *band*, chosen by prompt_tokens.
"""

import sys
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction
from math import lcm
from typing import Final, NamedTuple, TypeAlias

import msgspec

from batcher.money.usage import Usage

#: One dollar per million tokens, in pico-dollars per token.
PICO_PER_USD_PER_MILLION: Final = 10**6

#: From what a reply used (None where it does not say) to its cost in pico-dollars, None where unknown.
Cost: TypeAlias = Callable[[Usage | None], int | None]

#: From the most prompt and completion tokens there can be to the most that they can cost, in pico-dollars.
WorstCost: TypeAlias = Callable[[int, int], int | None]


class Band(msgspec.Struct, frozen=True):
    """Dollars per million tokens, for requests with more than `above` input tokens; None is unknown."""

    above: int = -1
    input: Decimal | None = None
    cached_input: Decimal | None = None
    cache_write: Decimal | None = None
    output: Decimal | None = None
    input_audio: Decimal | None = None
    output_audio: Decimal | None = None


class Rates(msgspec.Struct, frozen=True):
    """A band in integers: pico-dollars per token, times the price's denominator; None is unknown."""

    above: int
    input: int | None
    cached_input: int | None
    cache_write: int | None
    output: int | None
    input_audio: int | None
    output_audio: int | None


class Price(msgspec.Struct, frozen=True):
    """The price of one model at one tier."""

    #: What a usage costs.
    cost: Cost
    #: The prices that it is made from, lowest threshold first.
    bands: tuple[Band, ...]


def _free(usage: Usage | None) -> int | None:  # noqa: ARG001  whatever it used
    return 0


#: For what costs nothing, whether it reports a usage or not (moderations do not).
FREE: Final = Price(
    _free, (Band(input=Decimal(0), cached_input=Decimal(0), cache_write=Decimal(0), output=Decimal(0)),)
)


def compile_price(bands: Sequence[Band]) -> Price:
    """Compile bands, of which the first is for any length (`above=-1`) and the others rise."""
    fields = Band.__struct_fields__[1:]
    exact = [
        [None if (usd := getattr(band, name)) is None else _pico_per_token(usd) for name in fields]
        for band in bands
    ]
    denominator = lcm(*(price.denominator for band in exact for price in band if price is not None))
    rates = [
        Rates(band.above, *(None if price is None else int(price * denominator) for price in prices))
        for band, prices in zip(bands, exact, strict=True)
    ]
    costs = [(band.above, _cost_of(band, denominator)) for band in rates]
    return Price(costs[0][1] if len(costs) == 1 else _by_length(costs), tuple(bands))


def _pico_per_token(usd_per_million: Decimal) -> Fraction:
    return Fraction(usd_per_million) * PICO_PER_USD_PER_MILLION


def _round_half_up(total: int, denominator: int) -> int:
    return total if denominator == 1 else (2 * total + denominator) // (2 * denominator)


def _by_length(costs: Sequence[tuple[int, Cost]]) -> Cost:
    """Choose the band by the input's length: the last whose threshold it exceeds."""
    base = costs[0][1]
    first = costs[1][0]
    falling = tuple(reversed(costs))

    def cost(usage: Usage | None) -> int | None:
        if usage is None:
            return None
        prompt = usage.prompt_tokens
        if prompt <= first:
            return base(usage)
        return next(band(usage) for above, band in falling if prompt > above)

    return cost


def _cost_of(rates: Rates, denominator: int) -> Cost:
    """Make the cost function of one band. A part that was used and has no rate makes the cost unknown."""
    input_rate, cached_rate, write_rate, output_rate = (
        rates.input,
        rates.cached_input,
        rates.cache_write,
        rates.output,
    )

    def cost(usage: Usage | None) -> int | None:
        if usage is None:
            return None
        if usage.input_audio_tokens or usage.output_audio_tokens or usage.long_cache_write_tokens:
            return _audio_cost(rates, denominator, usage)
        cached, written, completion = usage.cached_tokens, usage.cache_write_tokens, usage.completion_tokens
        fresh = usage.prompt_tokens - cached - written
        if fresh < 0 or (fresh and input_rate is None) or (completion and output_rate is None):
            return None
        total = fresh * (input_rate or 0) + completion * (output_rate or 0)
        if cached:
            if cached_rate is None:
                return None
            total += cached * cached_rate
        if written:
            if write_rate is None:
                return None
            total += written * write_rate
        return total if denominator == 1 else _round_half_up(total, denominator)

    return cost


def _audio_cost(rates: Rates, denominator: int, usage: Usage) -> int | None:
    """Price a usage with audio in it, or with 12-hour cache writes, which nobody lists a price for.

    How much of the audio was in the cache is not reported, so audio together with the cache is unknown.
    """
    if usage.long_cache_write_tokens or (
        usage.input_audio_tokens and (usage.cached_tokens or usage.cache_write_tokens)
    ):
        return None
    total = 0
    for tokens, rate in (
        (
            usage.prompt_tokens - usage.input_audio_tokens - usage.cached_tokens - usage.cache_write_tokens,
            rates.input,
        ),
        (usage.cached_tokens, rates.cached_input),
        (usage.cache_write_tokens, rates.cache_write),
        (usage.input_audio_tokens, rates.input_audio),
        (usage.completion_tokens - usage.output_audio_tokens, rates.output),
        (usage.output_audio_tokens, rates.output_audio),
    ):
        if tokens < 0 or (tokens and rate is None):
            return None
        total += tokens * (rate or 0)
    return _round_half_up(total, denominator)


class _Bound(NamedTuple):
    """The dearest that a stretch of input lengths can be: pico-dollars per token, and where it holds."""

    above: int
    end: int
    input: Fraction
    output: Fraction

    def covers(self, other: "_Bound") -> bool:
        """Tell whether nothing that falls under `other` can cost more than under this."""
        return (
            self.above <= other.above
            and self.end >= other.end
            and self.input >= other.input
            and self.output >= other.output
        )


def compile_worst(prices: Sequence[Price]) -> WorstCost | None:
    """Compile the most that a text request can cost at whichever of these prices it is charged.

    Each band is taken at its dearest kind of input: a prompt may be read from the cache, written to it, or
    neither, and may be shorter than its bound. An unknown rate for reading the cache leaves the bound known,
    since reading is never dearer than the input itself; without another rate there is none.
    """
    bounds: list[_Bound] = []
    output_is_known = True
    for price in prices:
        ends = [*(band.above for band in price.bands[1:]), sys.maxsize]
        for band, end in zip(price.bands, ends, strict=True):
            if band.input is None or band.cache_write is None:
                return None
            dearest = max(band.input, band.cache_write, band.cached_input or band.input)
            output_is_known &= band.output is not None
            output = _pico_per_token(band.output or Decimal(0))
            bounds.append(_Bound(band.above, end, _pico_per_token(dearest), output))
    needed: list[_Bound] = []
    for bound in sorted(
        set(bounds), key=lambda bound: (bound.above, -bound.end, -bound.input, -bound.output)
    ):
        needed = [other for other in needed if not bound.covers(other)]
        if not any(other.covers(bound) for other in needed):
            needed.append(bound)
    return _worst_of(needed, output_is_known)


def _worst_of(bounds: Sequence[_Bound], output_is_known: bool) -> WorstCost:
    denominator = lcm(*(rate.denominator for bound in bounds for rate in (bound.input, bound.output)))
    reach = [
        (bound.above, bound.end, int(bound.input * denominator), int(bound.output * denominator))
        for bound in bounds
    ]
    _, _, input_rate, output_rate = reach[0]

    def linear(prompt_tokens: int, completion_tokens: int) -> int | None:
        return prompt_tokens * input_rate + completion_tokens * output_rate

    def worst(prompt_tokens: int, completion_tokens: int) -> int | None:
        if completion_tokens and not output_is_known:
            return None
        dearest = max(
            min(prompt_tokens, end) * per_input + completion_tokens * per_output
            for above, end, per_input, per_output in reach
            if prompt_tokens > above
        )
        return _round_half_up(dearest, denominator)

    return linear if len(reach) == 1 and denominator == 1 and output_is_known else worst
