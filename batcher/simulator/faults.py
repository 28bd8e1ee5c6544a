"""Which request meets which fault, and how long each one takes."""

from collections.abc import Mapping

from batcher.simulator.chance import chance
from batcher.simulator.config import FAULT_NAMES


class Faults:
    """Draws a fault for a request by its name and by how often that name has been seen.

    The draw depends on nothing else, so the same requests meet the same faults in whatever order, and
    over however many connections, they come.
    """

    def __init__(self, shares: Mapping[str, float], seed: int) -> None:
        self._steps: list[tuple[float, str]] = []
        total = 0.0
        for name in FAULT_NAMES:
            if shares.get(name):
                total += shares[name]
                self._steps.append((total, name))
        self._seed = seed
        # By the 64-bit hash of the name: the names would be most of the memory of a long run.
        self._seen: dict[int, int] = {}

    def draw(self, name: str | bytes) -> str | None:
        """Return what the next occurrence of this request meets; `happened` moves on to the one after."""
        text = name.encode() if isinstance(name, str) else name
        drawn = chance(self._seed, b"fault", text, self._seen.get(hash(name), 0))
        for total, fault in self._steps:
            if drawn < total:
                return fault
        return None

    def happened(self, name: str | bytes) -> None:
        """Count one occurrence of this request."""
        number = hash(name)
        self._seen[number] = self._seen.get(number, 0) + 1


class Latency:
    """Draws how long a request takes: even between the least and the most, the same for the same request."""

    def __init__(self, purpose: bytes, range_ms: tuple[float, float], seed: int) -> None:
        self._purpose = purpose
        self._least_s = range_ms[0] / 1000
        self._spread_s = (range_ms[1] - range_ms[0]) / 1000
        self._seed = seed

    def draw_s(self, digest: bytes) -> float:
        """Return the seconds that the request with this digest takes."""
        if not self._spread_s:
            return self._least_s
        return self._least_s + self._spread_s * chance(self._seed, self._purpose, digest)
