"""What the server says of its limits, in the headers of its replies.

`x-ratelimit-{limit,remaining,reset}-{requests,tokens,project-tokens}`, as OpenAI sends them (rate-limits
guide, "Rate limits in headers") and many others do. A reset is a duration: `12ms`, `1s`, `1m30s`, `6m0s`,
`8.64s`. What is missing, malformed or absurd counts for nothing.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Final, Literal, NamedTuple

from batcher.limits.bucket import Limit
from batcher.limits.window import DAY_S, MINUTE_S

Kind = Literal["requests", "tokens"]

#: No account has such a limit.
_ABSURD: Final = 10**12
#: Clocks and roundings leave so much between two figures that are meant to be the same.
_NEARLY: Final = 1.1
_EXACTLY: Final = 1.03
_MOST_DECIMALS: Final = 18
_PREFIX: Final = b"x-ratelimit-"
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(d|h|ms|m|s)")
_UNITS: Final[Mapping[str, float]] = {"d": DAY_S, "h": 3600.0, "m": MINUTE_S, "s": 1.0, "ms": 0.001}


class Announced(NamedTuple):
    """One limit, as a reply announces it."""

    limit: int
    #: None where the reply does not say it.
    remaining: int | None = None
    #: Until it is whole again, in seconds: more than `reset_s - rounding_s`, and no more than `reset_s`.
    reset_s: float | None = None
    rounding_s: float = 0.0

    def period_s(self) -> float | None:
        """Tell the period of the limit, which no header does; None where it can't be told.

        A bucket that refills continuously, as OpenAI's look like, is whole again after
        (limit - remaining) / rate. Other servers say when the last request leaves their window, or when their
        window ends; with a limit per minute that is never more than a minute away.
        """
        if self.remaining is None or self.reset_s is None:
            return None
        if self.is_far:
            return DAY_S
        used = self.limit - self.remaining
        if used == 0 or self.reset_s == 0.0:
            return None
        least = self.limit * (self.reset_s - self.rounding_s) / used
        most = self.limit * (self.reset_s + self.rounding_s) / used
        # What remains is rounded down, so a little less may be used than it seems.
        may_be_day = least <= DAY_S * _NEARLY and most * used / max(used - 1, 0.5) >= DAY_S / _NEARLY
        if least <= MINUTE_S * _NEARLY or MINUTE_S - self.reset_s <= 1.0:
            # What is below its own rounding may be either.
            return None if may_be_day and least == 0.0 else MINUTE_S
        if least <= DAY_S * _EXACTLY and most >= DAY_S / _EXACTLY:
            return DAY_S
        return None if may_be_day else MINUTE_S

    @property
    def is_far(self) -> bool:
        """Whether it is whole again only after more than a minute."""
        return self.reset_s is not None and self.reset_s - self.rounding_s > MINUTE_S


def read(headers: Iterable[tuple[bytes, bytes]]) -> dict[Kind, Announced]:
    """Read the limits that a reply's headers announce; of a project's and the account's, the tighter.

    `headers` are pairs of a name in lower case and a value.
    """
    found = {name[len(_PREFIX) :]: value for name, value in headers if name.startswith(_PREFIX)}
    limits: dict[Kind, Announced] = {}
    if not found:
        return limits
    for name, kind in _NAMES:
        limit = _announced(found, name)
        if limit is not None and (kind not in limits or _left(limit) < _left(limits[kind])):
            limits[kind] = limit
    return limits


_NAMES: Final[tuple[tuple[bytes, Kind], ...]] = (
    (b"requests", "requests"),
    (b"tokens", "tokens"),
    (b"project-tokens", "tokens"),
)


def _left(limit: Announced) -> int:
    return limit.limit if limit.remaining is None else limit.remaining


def _announced(found: Mapping[bytes, bytes], name: bytes) -> Announced | None:
    limit = _count(found.get(b"limit-" + name))
    if not limit:
        return None  # -1 and 0 are Azure's for none
    remaining = _count(found.get(b"remaining-" + name))
    if remaining is not None and remaining > limit:
        remaining = None
    return Announced(limit, remaining, *_duration(found.get(b"reset-" + name)))


def _count(value: bytes | None) -> int | None:
    """Read a whole number; None where it is none that can be meant."""
    try:
        number = float(value or b"")
    except ValueError:
        return None
    return int(number) if 0 <= number <= _ABSURD and number == int(number) else None


def _duration(value: bytes | None) -> tuple[float | None, float]:
    """Read a duration in seconds, and to how much of a second it is rounded."""
    text = (value or b"").decode("latin-1").strip()
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        # Plain seconds, as some say them.
        if not re.fullmatch(r"\d{1,9}(\.\d+)?", text):
            return None, 0.0
        parts = [(text, "s")]
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    number, unit = parts[-1]
    decimals = len(number.partition(".")[2])
    if seconds > DAY_S * _NEARLY or decimals > _MOST_DECIMALS:
        return None, 0.0
    return seconds, (_UNITS[unit] if unit in ("s", "ms") else 1.0) / 10**decimals


class Word(NamedTuple):
    """What the server says remains of a limit."""

    kind: Kind
    limit: int
    period_s: float
    #: None where it does not say.
    remaining: int | None
    reset_s: float | None


class _Known:
    """A limit, and its period as one word after the other tells it."""

    __slots__ = ("_contrary", "_far", "_is_sure", "_told_s", "limit")

    def __init__(self) -> None:
        self.limit = 0
        self._told_s: float | None = None
        #: How many words in a row told a minute where a day was told before; and how many were far.
        self._contrary = self._far = 0
        self._is_sure = False

    @property
    def period_s(self) -> float:
        """A minute, unless a day was told."""
        return self._told_s or MINUTE_S

    def hear(self, said: Announced) -> None:
        """Take a word: one alone does not change what is known.

        The first that tells something may mislead: a fixed window looks like a day's bucket for a while, or
        like a minute's at the end of its day. What is whole again only after more than a minute is certain.
        """
        self.limit = said.limit
        told = said.period_s()
        self._far = self._far + 1 if said.is_far else 0
        if self._far >= _SURE:
            self._told_s, self._is_sure = DAY_S, True
        if told is None or self._is_sure:
            return
        self._contrary = self._contrary + 1 if (self._told_s, told) == (DAY_S, MINUTE_S) else 0
        if self._told_s is None or self._contrary >= _SURE:
            self._told_s = told


#: So many words in a row make certain.
_SURE: Final = 2


class Feedback:
    """The limits of a pool as the server announces them, of every model in it."""

    __slots__ = ("_disbelieved", "_known")

    def __init__(self) -> None:
        self._disbelieved: set[str] = set()
        self._known: dict[tuple[Kind, str], _Known] = {}

    def disbelieve(self, model: str) -> None:
        """Take no token limit from a model's replies any more: one request was served that had more."""
        self._disbelieved.add(model)
        self._known.pop(("tokens", model), None)

    def hear(self, model: str, announced: Mapping[Kind, Announced]) -> list[Word]:
        """Take what a reply announces, and return what remains of the limits that bind the pool.

        Where models in one pool have different limits, the tightest speaks for all.
        """
        words = []
        for kind, said in announced.items():
            if kind == "tokens" and model in self._disbelieved:
                continue
            known = self._known.setdefault((kind, model), _Known())
            known.hear(said)
            words.append(Word(kind, said.limit, known.period_s, said.remaining, said.reset_s))
        least = self._least()
        return [word for word in words if word.limit == least[word.kind, word.period_s]]

    def _least(self) -> dict[tuple[Kind, float], int]:
        least: dict[tuple[Kind, float], int] = {}
        for (kind, _), known in self._known.items():
            key = kind, known.period_s
            least[key] = min(known.limit, least.get(key, known.limit))
        return least

    @property
    def limit(self) -> Limit:
        """What is known of the pool's limits."""
        least = self._least()
        return Limit(
            rpm=least.get(("requests", MINUTE_S)),
            tpm=least.get(("tokens", MINUTE_S)),
            rpd=least.get(("requests", DAY_S)),
            tpd=least.get(("tokens", DAY_S)),
        )
