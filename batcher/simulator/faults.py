"""Which request meets which fault, and how long each one takes."""

from collections.abc import Mapping, Sequence

from batcher.simulator.chance import chance
from batcher.simulator.config import Scheduled
from batcher.simulator.outcomes import FAULTS, SCRIPTABLE, Fault


class Faults:
    """Draws a fault for a request by its name and by how often that name has been seen.

    Of the shares the draw depends on nothing else, so the same requests meet the same faults in whatever
    order, and over however many connections, they come. A script also looks at when a request comes; what it
    decides is no occurrence for the shares, which so stay the same whatever the script catches.
    """

    def __init__(self, shares: Mapping[str, float], script: Sequence[Scheduled], seed: int) -> None:
        self._steps: list[tuple[float, Fault]] = []
        total = 0.0
        for name, fault in FAULTS.items():
            if shares.get(name):
                total += shares[name]
                self._steps.append((total, fault))
        self._script = script
        self._seed = seed
        # By the 64-bit hash of the name: the names would be most of the memory of a long run.
        self._seen_by_shares: dict[int, int] = {}
        self._seen_by_script: dict[int, int] = {}

    def draw(self, name: str | bytes, number: int, passed_s: float) -> tuple[Fault | None, bool]:
        """Return what the next occurrence of this request meets, and whether the script decides it.

        It is the server's `number`th request, `passed_s` after the first. `happened` moves on to the next.
        """
        text = name.encode() if isinstance(name, str) else name
        seen = self._seen_by_script.get(hash(name), 0)
        for place, line in enumerate(self._script):
            # Each line has a draw of its own: two with half of the requests are not the same half.
            if _is_on(line, number, passed_s) and (
                line.share == 1 or chance(self._seed, b"script %d" % place, text, seen) < line.share
            ):
                return SCRIPTABLE[line.fault], True
        if self._steps:
            drawn = chance(self._seed, b"fault", text, self._seen_by_shares.get(hash(name), 0))
            for total, fault in self._steps:
                if drawn < total:
                    return fault, False
        return None, False

    def happened(self, name: str | bytes, *, by_script: bool) -> None:
        """Count one occurrence of this request."""
        number = hash(name)
        if self._script:
            self._seen_by_script[number] = self._seen_by_script.get(number, 0) + 1
        if not by_script:
            self._seen_by_shares[number] = self._seen_by_shares.get(number, 0) + 1


def _is_on(line: Scheduled, number: int, passed_s: float) -> bool:
    if line.at_s is not None:
        return line.at_s <= passed_s < line.end_s
    first = line.after or 1
    return first <= number and (line.count is None or number < first + line.count)


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
