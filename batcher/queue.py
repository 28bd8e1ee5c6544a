"""What waits to be sent: new requests in the order of the file, and retries by their due time."""

import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain

from batcher.request import Try


class Queue:
    """First in, first out, plus a heap of retries. Pure: `now` is an argument.

    A retry that is due goes before what has never been sent: it is older. The order among retries is that of
    their due times, then of their arrival.
    """

    __slots__ = ("_arrivals", "_due", "_later", "_new")

    def __init__(self) -> None:
        self._new: deque[Try] = deque()
        self._due: deque[Try] = deque()
        self._later: list[tuple[float, int, Try]] = []
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._new) + len(self._due) + len(self._later)

    def add(self, tries: Iterable[Try]) -> None:
        """Put first tries at the end."""
        self._new.extend(tries)

    def again(self, tries: Iterable[tuple[Try, float]]) -> None:
        """Put retries where they belong: each waits until its due time."""
        for item, due in tries:
            self._arrivals += 1
            heapq.heappush(self._later, (due, self._arrivals, item))

    def ready(self, now: float, *, new_first: bool = False) -> Iterator[Try]:
        """Look at what may be sent at `now`, first to last, without taking it."""
        later = self._later
        while later and later[0][0] <= now:
            self._due.append(heapq.heappop(later)[2])
        return chain(self._new, self._due) if new_first else chain(self._due, self._new)

    def take(self, count: int, *, new_first: bool = False) -> list[Try]:
        """Take the first `count` of what `ready` showed, asked in the same way."""
        first, then = (self._new, self._due) if new_first else (self._due, self._new)
        return [first.popleft() if first else then.popleft() for _ in range(count)]

    @property
    def next_due(self) -> float | None:
        """When the next retry is due; None if none waits for a time."""
        return self._later[0][0] if self._later else None
