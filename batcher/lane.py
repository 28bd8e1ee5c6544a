"""A rate budget with what waits for it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from batcher.bell import Bell
from batcher.limits.pool import Pool
from batcher.limits.ramp import Ramp
from batcher.limits.slots import Slots
from batcher.queue import Queue
from batcher.request import Try


@dataclass(slots=True)
class Lane:
    """A pool, its queue, how far it is open, and the bell of its admission."""

    pool: Pool
    #: Those of the endpoint's slots that it holds.
    held: Slots
    queue: Queue = field(default_factory=Queue)
    ramp: Ramp = field(default_factory=Ramp)
    bell: Bell = field(default_factory=Bell)
    #: What its admission waits for, if for a time: `requests`, `tokens` or `server`.
    bound: str | None = None

    def ready(self, now: float) -> Iterator[Try]:
        """Look at what may be sent at `now`, first to last.

        Retries are older. But once a probe was refused what has never been sent goes first: those that were
        refused may be requests that never fit, and must not keep the others waiting.
        """
        return self.queue.ready(now, new_first=self._new_first)

    def take(self, count: int) -> list[Try]:
        """Take the first `count` of what `ready` showed."""
        return self.queue.take(count, new_first=self._new_first)

    @property
    def _new_first(self) -> bool:
        return self.pool.holds > 1

    def could_go(self, now: float) -> bool:
        """Say whether it would take a slot at `now` if it got one."""
        return self.bound is None and self.ramp.free > 0 and next(self.ready(now), None) is not None

    def pause(self, until: float, now: float) -> None:
        """Admit nothing before `until`, then a probe, and then open up again."""
        if self.pool.pause(until, now):
            self.ramp.cut()

    def probed(self, *, opened: bool) -> None:
        """Note that the probe has landed, and open up if it got through."""
        self.pool.probed()
        if opened:
            self.ramp.reopen()

    def note_bound(self, now: float) -> None:
        """Note which limit its first request waits for."""
        head = next(self.ready(now), None)
        self.bound = None if head is None else self.pool.binding(head.request.tokens, now)


def share(lane: Lane, lanes: Iterable[Lane], free: int, now: float) -> int:
    """Return how many of the endpoint's free slots a lane may take: who holds the fewest goes first."""
    rivals = [each.held.taken for each in lanes if each is not lane and each.could_go(now)]
    if rivals:
        # One that answers slowly gives few slots back: without this it would end up with all of them.
        free = 0 if lane.held.taken > min(rivals) else min(free, max(1, free // (len(rivals) + 1)))
    return min(free, lane.ramp.free)
