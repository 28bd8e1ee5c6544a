"""A rate budget with what waits for it."""

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import islice
from typing import Final

from batcher.bell import Bell
from batcher.limits.bucket import Fit, Limit
from batcher.limits.period import LEFT
from batcher.limits.pool import Pool
from batcher.limits.ramp import Ramp
from batcher.limits.slots import Slots
from batcher.queue import Queue
from batcher.request import Claimed, Landed, Reply, Try
from batcher.verdict import Done, Hold, Verdict

#: The headers of a reply are read if it came so much later than the last of which they were, in seconds: at
#: a thousand replies a second a sample tells as much.
HEAR_S: Final = 0.002

#: A wait for a daily limit that is longer than this is told, and no more often than this, in seconds.
LONG_WAIT_S: Final = 60.0
TOLD_EVERY_S: Final = 3600.0


@dataclass(slots=True)
class Lane:
    """A pool, its queue, how far it is open, and the bell of its admission."""

    pool: Pool
    #: Those of the endpoint's slots that it holds.
    held: Slots
    queue: Queue = field(default_factory=Queue)
    ramp: Ramp = field(default_factory=Ramp)
    bell: Bell = field(default_factory=Bell)
    #: What its admission waits for, if for a time: see `Pool.binding`.
    bound: str | None = None
    #: The attempt that went first after a pause, until it has landed.
    probe: int | None = None
    #: When it was last told that it waits for a daily limit.
    _told_at: float = -math.inf
    #: When the last reply came whose headers were read.
    _heard_at: float = -math.inf
    #: Tokens of what has left and the pool does not know of yet, and when the last of it did.
    _departed: list[int] = field(default_factory=list)
    _departed_at: float = -math.inf

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

    def claimed(self, claimed: Sequence[Claimed], *, probe: bool) -> None:
        """Count attempts that are about to be sent; `probe` says that it is one, which goes first."""
        self.ramp.take(len(claimed), newest=claimed[-1].id)
        if probe:
            self.probe = claimed[0].id

    def departs(self, claimed: Claimed, now: float) -> None:
        """Start the minute of a reservation: the request is on its way."""
        self._departed.append(claimed.request.tokens)
        self._departed_at = now
        self.bell.ring()  # a window that was full of what had not left yet knows now when it opens

    def fit(self, count: int, now: float) -> Fit:
        """Admit what the pool lets go at `now`, of the first `count` that are ready."""
        self._count_departed()
        return self.pool.fit((item.request.tokens for item in islice(self.ready(now), count)), now)

    def _count_departed(self) -> None:
        """Tell the pool what has left since it was last asked: it costs less for a group."""
        if self._departed:
            self.pool.sent(self._departed, self._departed_at)
            self._departed = []

    def hear(self, claimed: Claimed, reply: Reply) -> Limit | None:
        """Read what a reply says of the limits; return what is announced if that is news."""
        refused = reply.status == 429
        if reply.ended_at < self._heard_at + HEAR_S and not refused:
            return None
        self._heard_at = reply.ended_at
        self._count_departed()
        pool = self.pool
        request = claimed.request
        served = request.tokens if 200 <= reply.status < 300 else 0
        is_news = pool.hear(request.model, reply.headers, reply.sent_at, refused=refused, served=served)
        return pool.announced if is_news else None

    def learn(self, claimed: Claimed, landed: Landed, verdict: Verdict, now: float) -> None:
        """Let the pool and the ramp know what became of an attempt."""
        self._count_departed()
        pool, tokens = self.pool, claimed.request.tokens
        held = isinstance(verdict, Hold)
        self.ramp.landed(claimed.id, succeeded=isinstance(verdict, Done), refused=held)
        if landed.sent_at is None:
            pool.give_back((tokens,))
        elif isinstance(verdict, Hold) and verdict.scope == "pool":
            pool.dropped()
            self.pause(verdict.until, now, landed.sent_at)
            if verdict.error == "slow_down":
                pool.slow_down(now)
        else:
            usage = verdict.usage if isinstance(verdict, Done) else None
            used = None if usage is None else usage.prompt_tokens + usage.completion_tokens
            pool.used(tokens, used, landed.sent_at, now)
        if isinstance(verdict, Done):
            pool.succeeded()
        if claimed.id == self.probe:
            self.probe = None
            pool.probed()
            if not held:
                self.ramp.reopen()

    def pause(self, until: float, now: float, sent_at: float | None = None) -> None:
        """Admit nothing before `until`, then a probe, and then open up again (see `Pool.pause`)."""
        if self.pool.pause(until, now, sent_at):
            self.ramp.cut()

    def wait(self, until: float | None, now: float) -> str | None:
        """Note which limit its first request waits for; return a line to tell if that takes hours."""
        head = next(self.ready(now), None)
        self.bound = None if head is None else self.pool.binding(head.request.tokens, now)
        # What is on its way may bring better news.
        takes_hours = self.bound is not None and self.bound.endswith((" a day", LEFT)) and not self.held.taken
        if (
            not takes_hours
            or until is None
            or until < now + LONG_WAIT_S
            or now < self._told_at + TOLD_EVERY_S
        ):
            return None
        self._told_at = now
        return (
            f"waiting for {self.bound}: the next request goes in {timedelta(seconds=round(until - now))}; "
            "interrupted and run again, it goes on"
        )


def share(lane: Lane, lanes: Iterable[Lane], free: int, now: float) -> int:
    """Return how many of the endpoint's free slots a lane may take: who holds the fewest goes first."""
    rivals = [each.held.taken for each in lanes if each is not lane and each.could_go(now)]
    if rivals:
        # One that answers slowly gives few slots back: without this it would end up with all of them.
        free = 0 if lane.held.taken > min(rivals) else min(free, max(1, free // (len(rivals) + 1)))
    return min(free, lane.ramp.free)


def binding(lanes: Collection[Lane], *, fed: bool, free: int) -> str:
    """Name what keeps the flow from being faster now, where `free` of the endpoint's slots are left.

    `requests` or `tokens` (a rate limit), `slots`, `server` (a pause, or slow answers), `disk`, `input`.
    """
    if bound := next((lane.bound for lane in lanes if lane.bound), None):
        return bound
    if not any(lane.queue for lane in lanes):
        return "server" if fed else "input"
    return "disk" if free and all(lane.ramp.free for lane in lanes) else "slots"
