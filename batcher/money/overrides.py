"""The user's own prices: `--prices FILE`.

JSON, or TOML where the name ends in `.toml`; dollars per million tokens, as strings or numbers:

    {"my-model": {"input": "0.15", "cached_input": "0.075", "output": 0.60,
                  "tiers": {"flex": {"input": "0.075", "output": "0.30"}}}}

A model listed here is priced by the file alone, by exactly this name. A part without a price is handled
as in `batcher.money.catalogue`: `cached_input` and `cache_write` are charged as input, and any other part
that is used makes the cost unknown, as does a tier that is not listed. Numbers are read as decimals,
never as floats.
"""

import json
import re
import tomllib
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Final, NoReturn, TypeAlias

from batcher.errors import ConfigurationError
from batcher.money.rates import Band, Price, compile_price

#: Per million tokens. The dearest model ever listed took 600; more is a price in the wrong unit. With at most
#: 10^8 tokens a side (`usage.MOST_TOKENS`), a cost stays under 2 x 10^18 and fits an SQLite integer.
MOST_USD: Final = 10_000
#: A price finer than a millionth of a millionth of a dollar per million tokens is a typing error.
_MOST_DECIMALS: Final = 12

_PARTS: Final = frozenset(Band.__struct_fields__[1:])
_NUMBER: Final = re.compile(r"\d+(?:\.\d+)?")

#: By model, then by tier; the standard price is under None.
Overrides: TypeAlias = Mapping[str, Mapping[str | None, Price]]


def read_overrides(path: Path) -> Overrides:
    """Read a prices file. Raises `ConfigurationError`, which names the file and the key."""
    try:
        content = path.read_bytes().decode()
        loaded = _loads_toml(content) if path.suffix == ".toml" else _loads_json(content)
    except OSError as error:
        raise ConfigurationError(f"can't read the prices file {path}: {error.strerror}") from error
    except (ValueError, InvalidOperation, RecursionError) as error:
        reason = " ".join(str(error).split()) or "nested too deeply"
        raise ConfigurationError(f"the prices file {path} can't be parsed: {reason}") from error
    return {model: _model(path, model, prices) for model, prices in _table(path, "", loaded).items()}


def _model(path: Path, model: str, loaded: object) -> Mapping[str | None, Price]:
    prices = _table(path, model, loaded)
    tiers = _table(path, f"{model}.tiers", prices.pop("tiers", {}))
    compiled: dict[str | None, Price] = {None: _price(path, model, prices)}
    for tier, entry in tiers.items():
        where = f"{model}.tiers.{tier}"
        compiled[tier] = _price(path, where, _table(path, where, entry))
    return compiled


def _price(path: Path, where: str, prices: dict[str, object]) -> Price:
    if unknown := sorted(prices.keys() - _PARTS):
        _refuse(path, f"{where}.{unknown[0]}", f"is not a price; known are {', '.join(sorted(_PARTS))}")
    parts = {part: _usd(path, f"{where}.{part}", value) for part, value in prices.items()}
    if "input" not in parts:
        _refuse(path, f"{where}.input", "is missing")
    parts.setdefault("cached_input", parts["input"])
    parts.setdefault("cache_write", parts["input"])
    return compile_price([Band(-1, **parts)])


def _usd(path: Path, where: str, value: object) -> Decimal:
    usd = None
    if isinstance(value, str):
        usd = Decimal(value) if _NUMBER.fullmatch(value) else None
    elif isinstance(value, (int, Decimal)) and not isinstance(value, bool):
        usd = Decimal(value)
    if usd is None or not usd.is_finite() or usd < 0:
        _refuse(path, where, 'must be dollars per million tokens, such as "0.15"')
    exponent = usd.as_tuple().exponent
    if usd > MOST_USD or not isinstance(exponent, int) or -exponent > _MOST_DECIMALS:
        _refuse(path, where, f"must be at most {MOST_USD} dollars, with at most {_MOST_DECIMALS} decimals")
    return usd


def _table(path: Path, where: str, value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        _refuse(path, where or "the whole", "must be an object")
    return dict(value)


def _refuse(path: Path, where: str, problem: str) -> NoReturn:
    raise ConfigurationError(f"the prices file {path}: {where} {problem}")


def _loads_toml(content: str) -> object:
    return tomllib.loads(content, parse_float=Decimal)


def _loads_json(content: str) -> object:
    return json.loads(
        content, parse_float=Decimal, parse_constant=_no_constant, object_pairs_hook=_without_duplicates
    )


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a price")


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table: dict[str, object] = {}
    for key, value in pairs:
        if key in table:
            raise ValueError(f"{key} is there twice")
        table[key] = value
    return table
