"""What was billed: per key, per model and in all, so that anyone can prove that nothing was paid twice."""

from array import array
from collections import Counter
from collections.abc import Iterator

import msgspec
import orjson

_DIGEST_BYTES = 16
#: The sums of one model, in the order in which they are kept.
_SUMS = ("billed", "prompt_tokens", "completion_tokens", "cached_tokens")


class Usage(msgspec.Struct, frozen=True, gc=False):
    """What one answer is billed for, in tokens."""

    prompt: int
    completion: int
    cached: int


class Ledger:
    """Counts requests, and remembers every key that was billed.

    A request is named by its idempotency key (`str`) or, where it sent none, by the digest of its path and
    body (`bytes`). Everything else about a name is kept in columns: about 300 bytes per name in all.
    """

    def __init__(self) -> None:
        self.requests = 0
        self.replayed = 0
        self.refused: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self._billed_twice = 0
        self._models: dict[str, list[int]] = {}
        self._model_names: list[str] = []
        self._place: dict[str | bytes, int] = {}
        self._digest = bytearray()
        self._times = array("I")
        self._prompt = array("Q")
        self._completion = array("Q")
        self._model = array("I")

    def bill(self, name: str | bytes, digest: bytes, model: str, usage: Usage) -> None:
        """Record that work was done, and has to be paid."""
        sums = self._models.get(model)
        if sums is None:
            sums = self._models[model] = [0, 0, 0, 0, len(self._model_names)]
            self._model_names.append(model)
        sums[0] += 1
        sums[1] += usage.prompt
        sums[2] += usage.completion
        sums[3] += usage.cached
        place = self._place.get(name)
        if place is None:
            self._place[name] = len(self._times)
            self._digest += digest
            self._times.append(1)
            self._prompt.append(usage.prompt)
            self._completion.append(usage.completion)
            self._model.append(sums[4])
            return
        if self._times[place] == 1:
            self._billed_twice += 1
        self._times[place] += 1
        self._prompt[place] += usage.prompt
        self._completion[place] += usage.completion

    @property
    def billed(self) -> int:
        """How many answers were billed, of all models."""
        return sum(sums[0] for sums in self._models.values())

    def billed_digest(self, name: str | bytes) -> bytes | None:
        """Return the digest of what was first billed under this name, or None if nothing was."""
        place = self._place.get(name)
        return None if place is None else self._digest_at(place)

    def _digest_at(self, place: int) -> bytes:
        return bytes(self._digest[place * _DIGEST_BYTES : (place + 1) * _DIGEST_BYTES])

    def as_json(self, *, entries: bool) -> bytes:
        """Return the answer to `GET /ledger`; with `entries`, one object per name that was billed."""
        totals = [sum(sums[i] for sums in self._models.values()) for i in range(len(_SUMS))]
        summary = {
            "requests": self.requests,
            "replayed": self.replayed,
            "refused": dict(sorted(self.refused.items())),
            "faults": dict(sorted(self.faults.items())),
            **dict(zip(_SUMS, totals, strict=True)),
            "by_model": {model: dict(zip(_SUMS, sums, strict=False)) for model, sums in self._models.items()},
            "keys": len(self._place),
            "billed_twice": self._billed_twice,
        }
        text = orjson.dumps(summary)
        if entries:
            text = text[:-1] + b',"entries":[' + b",".join(self._entries()) + b"]}"
        return text

    def _entries(self) -> Iterator[bytes]:
        for name, place in self._place.items():
            yield orjson.dumps(
                {
                    "key": name if isinstance(name, str) else None,
                    "body": self._digest_at(place).hex(),
                    "times": self._times[place],
                    "prompt_tokens": self._prompt[place],
                    "completion_tokens": self._completion[place],
                    "model": self._model_names[self._model[place]],
                }
            )
