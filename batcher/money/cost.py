"""The most that a request can cost before it is sent, and how an amount of money is written."""

from typing import Final

from batcher.money.prices import PriceBook
from batcher.tokens import Estimate

PICO_PER_USD: Final = 10**12

#: What the server may add around the text: the header that it renders tools under, the instruction for a
#: response format. There is no published formula (`FACTS.md`, "Tokens"); seen are some tens.
_UNSEEN_TOKENS: Final = 500

_LARGEST: Final = 2**63 - 1


def worst_cost(
    book: PriceBook, model: str, body: dict[str, object], size: int, estimate: Estimate
) -> int | None:
    """Return the most that the request can cost, in pico-dollars; None where there is no bound or no price.

    `size` is the length of the JSON body in bytes. A token is made from at least one byte of text, and the
    JSON around the text is longer than the 3 or 4 tokens that each message costs on top, so the input has at
    most `size` tokens, and some for what can't be seen from here. The output has at most its limit, for each
    of the choices asked for; reasoning counts towards it. Prompts that are kept in the cache for longer than
    usual have no listed price.
    """
    if not estimate.bounded_input or estimate.output_limit is None:
        return None
    cache = body.get("prompt_cache_options")
    if cache is not None and (type(cache) is not dict or cache.get("ttl") not in (None, "30m")):
        return None
    worst = book.worst(model, body.get("service_tier"))
    cost = None if worst is None else worst(size + _UNSEEN_TOKENS, estimate.output_limit)
    return None if cost is None or cost > _LARGEST else cost


def usd_string(cost_pico_usd: int) -> str:
    """Write an amount exactly, in dollars, with at least two decimals: `0.00000075`, `41.27`."""
    sign = "-" if cost_pico_usd < 0 else ""
    dollars, pico = divmod(abs(cost_pico_usd), PICO_PER_USD)
    decimals = f"{pico:012d}".rstrip("0").ljust(2, "0")
    return f"{sign}{dollars}.{decimals}"
