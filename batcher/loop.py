"""The loop: a row's way from the job file to its settled outcome, top to bottom.

    feed    source groups -> rows not yet settled -> queues      stops reading when the look-ahead is full
    admit   one per pool: what fits -> claimed -> outbox         sleeps until the one time that matters
    send    a fixed number: claimed -> transport -> landed
    settle  one: everything landed -> judged -> settled -> queues and pools learn what became of it

Groups move, not single rows: while one group commits, the next one forms. Only a retry goes back, and it
goes back to the queue, with its due time: a row that waits holds no connection and no slot.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

import anyio

from batcher.bell import Bell
from batcher.clock import Clock
from batcher.errors import JobFileError, StoreWriteError
from batcher.health import Health
from batcher.lane import Lane, binding, share
from batcher.limits.bucket import Never, Took, Wait
from batcher.limits.pool import Pool
from batcher.limits.slots import Slots
from batcher.money.prices import PriceBook
from batcher.request import (
    Claimed,
    Landed,
    Lost,
    Rejected,
    Reply,
    Request,
    Settled,
    Settlement,
    Transport,
    Try,
)
from batcher.retry import MaxFailures
from batcher.settlement import answers, in_doubt, rejections, settlement, too_large
from batcher.source import Requests, Source
from batcher.stop import Stop
from batcher.store.journal import Journal
from batcher.tally import Tally
from batcher.verdict import Again, Done, Fail, Halt, Policy, Verdict, endpoint_hold, judge

#: The reader stops while so many requests, or so many bytes of them, wait to be sent.
LOOK_AHEAD_REQUESTS: Final = 10_000
LOOK_AHEAD_BYTES: Final = 32_000_000
#: Admission stops while so many bytes of replies wait for the disk.
UNSETTLED_BYTES: Final = 64_000_000
#: Within a pace's burst, admission waits this long for more to go together: a claim is a commit.
TICK_S: Final = 0.05
#: What the disk has refused is tried again so often, until the grace period ends.
RETRY_S: Final = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """What the loop works with: each behind its small interface."""

    source: Source
    requests: Requests
    journal: Journal
    transport: Transport
    pools: Mapping[str, Pool]
    slots: Slots
    prices: PriceBook
    policy: Policy
    max_failures: MaxFailures
    health: Health
    clock: Clock
    tally: Tally
    #: After a stop, how long what is in flight may take to land, in seconds.
    grace_s: float


class Loop:
    """One run of a job. `run` returns when every row is settled, or when `stop` has been obeyed."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        #: What whoever watches should know, a line each, oldest first: for the watcher to take.
        self.notices = parts.health.notices
        self._clock = parts.clock
        self._slots = parts.slots
        self._lanes = {name: Lane(pool, Slots(parts.slots.ceiling)) for name, pool in parts.pools.items()}
        self._outbox: asyncio.Queue[Claimed] = asyncio.Queue()
        self._landed: list[tuple[Claimed, Landed]] = []
        self._landing = Bell()
        self._room = Bell()
        self._stall = Bell()
        self._stopping = asyncio.Event()
        self._finished = asyncio.Event()
        self._fed = False
        #: Requests in the queues or on their way, and those of them of which no attempt has landed yet.
        self._outstanding = self._untried = 0
        #: Bytes of the requests in the queues, and of replies not settled.
        self._queued_bytes = 0
        self._unsettled_bytes = 0
        self.stopped: Stop | None = None
        #: When the grace period ends, once the run is stopping.
        self._grace_ends = float("inf")

    async def run(self) -> None:
        """Send what is not settled, until all is or something stops it (`stopped`)."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._guard, self._feed)
            tasks.start_soon(self._guard, self._settle)
            tasks.start_soon(self._drain)
            tasks.start_soon(self._watch_stall)
            for lane in self._lanes.values():
                tasks.start_soon(self._guard, self._admit, lane)
            for _ in range(self._slots.ceiling):
                tasks.start_soon(self._send)
            await self._finished.wait()
            tasks.cancel_scope.cancel()

    def stop(self, stop: Stop) -> None:
        """Admit nothing more; what is in flight has the grace period to land. The first reason stays."""
        # A job file that breaks off is a reason too, but lets what was read before go on.
        self.stopped = self.stopped or stop
        if not self.stopping:
            self._grace_ends = self._clock.now() + self._parts.grace_s
            self._stopping.set()
            self._ring()
        self._end_if_done()

    @property
    def stopping(self) -> bool:
        """Whether nothing more is admitted."""
        return self._stopping.is_set()

    def hurry(self) -> None:
        """End what is in flight at once: its attempts are in doubt."""
        self._grace_ends = self._clock.now()
        self._parts.transport.abort()

    async def _guard(self, stage: Callable[..., Awaitable[None]], *args: Lane) -> None:
        """Run a stage; what the disk or the job file refuses ends the run, and what is committed stays."""
        try:
            await stage(*args)
        except JobFileError as error:
            # What has been read is good, and runs; what follows can't be read.
            self._fed = True
            self.stopped = self.stopped or Stop("input", str(error))
            self._end_if_done()
        except StoreWriteError as error:
            # What can't be written down may not be sent. What is in flight lands, and may find room.
            self.stop(Stop("disk", str(error)))

    # --- feed

    async def _feed(self) -> None:
        source = self._parts.source
        async with aclosing(source.groups(self._parts.requests)) as groups:
            async for group in groups:
                await self._feed_group(group)
                while self._is_ahead() and not self.stopping:
                    await self._room.wait()
                if self.stopping:
                    break
        if source.ended:
            await self._parts.journal.end_of_file(source.count)
        self._fed = True
        self._end_if_done()

    async def _feed_group(self, group: list[Request | Rejected]) -> None:
        journal, tally = self._parts.journal, self._parts.tally
        rows = [item.row if isinstance(item, Rejected) else item.rows[0] for item in group]
        fresh = await journal.fresh(rows)
        tally.rows_read += len(rows)
        tally.already_done += len(rows) - len(fresh)
        if len(fresh) < len(rows):
            lines = {row.seq for row in fresh}
            group = [item for item, row in zip(group, rows, strict=True) if row.seq in lines]
        requests = [item for item in group if isinstance(item, Request)]
        doubted, epochs = journal.doubted(fresh), journal.epochs(fresh)
        if rejected := [item for item in group if isinstance(item, Rejected)]:
            await journal.reject(rejections(rejected))
            tally.reject(len(rejected))
        if doubted and self._parts.policy.withholds:
            ends = in_doubt([item for item in requests if item.rows[0].seq in doubted])
            await journal.reject(ends)
            tally.in_doubt += len(ends)
            requests = [item for item in requests if item.rows[0].seq not in doubted]
        for request in requests:
            line = request.rows[0].seq
            renewed = self._parts.requests.at_epoch(request, epochs[line]) if line in epochs else request
            self._wait_for_turn(Try(renewed, doubted=line in doubted))

    def _wait_for_turn(self, item: Try) -> None:
        self._outstanding += 1
        self._untried += 1
        self._queued_bytes += len(item.request.body)
        lane = self._lanes[item.request.pool]
        lane.queue.add((item,))
        lane.bell.ring()

    def _is_ahead(self) -> bool:
        waiting = sum(len(lane.queue) for lane in self._lanes.values())
        return waiting >= LOOK_AHEAD_REQUESTS or self._queued_bytes >= LOOK_AHEAD_BYTES

    # --- admit

    async def _admit(self, lane: Lane) -> None:
        while not self.stopping:
            now = self._clock.now()
            fit = lane.fit(self._share(lane), now)
            if isinstance(fit, Took) and fit.count:
                await self._claim(lane, fit)
            elif isinstance(fit, Never):
                await self._refuse(lane, fit)
            else:
                lane.bound, until = None, lane.queue.next_due
                if isinstance(fit, Wait):
                    until = fit.until
                    if notice := lane.wait(until, now):
                        self.notices.append(notice)
                await lane.bell.wait(None if until is None else max(until - now, TICK_S))

    def _share(self, lane: Lane) -> int:
        """Return how many this lane may admit now."""
        if self._unsettled_bytes >= UNSETTLED_BYTES:
            return 0
        return share(lane, self._lanes.values(), self._slots.free, self._clock.now())

    async def _claim(self, lane: Lane, took: Took) -> None:
        tries = lane.take(took.count)
        self._slots.take(took.count)
        lane.held.take(took.count)
        self._parts.tally.in_flight += took.count
        self._queued_bytes -= sum(len(item.request.body) for item in tries)
        try:
            claimed = await self._parts.journal.claim(tries)
        except StoreWriteError:
            self._parts.tally.in_flight -= took.count
            raise
        lane.claimed(claimed, probe=took.probe)
        for item in claimed:
            self._outbox.put_nowait(item)
        self._room.ring()

    async def _refuse(self, lane: Lane, never: Never) -> None:
        """End a request that no wait will let through."""
        (item,) = lane.take(1)
        self._queued_bytes -= len(item.request.body)
        outcomes = too_large(item.request, f"{lane.pool.whose(never)} is {never.maximum} a {never.period}")
        await self._parts.journal.reject(outcomes)
        self._parts.tally.reject(len(outcomes))
        self._outstanding -= 1
        self._untried -= item.number == 1
        self._room.ring()
        self._end_if_done()

    # --- send

    async def _send(self) -> None:
        transport, slots, clock = self._parts.transport, self._slots, self._clock
        while True:
            claimed = await self._outbox.get()
            if self.stopping:
                landed: Landed = Lost(False, "stopped", "the run was stopping", None, clock.now())
            else:
                landed = await transport.send(claimed, self._departs)
            lane = self._lanes[claimed.request.pool]
            slots.release(1)
            lane.held.release(1)
            if isinstance(landed, Reply):
                self._unsettled_bytes += len(landed.body)
                if limit := lane.hear(claimed, landed):
                    self.notices.append(f"keeping to the limits that the server announces: {limit}")
            self._landed.append((claimed, landed))
            self._landing.ring()
            self._ring()

    def _departs(self, claimed: Claimed) -> None:
        """Start the minute of a reservation: the request is on its way."""
        self._lanes[claimed.request.pool].departs(claimed, self._clock.now())

    # --- settle

    async def _settle(self) -> None:
        while True:
            await self._landing.wait()
            landed, self._landed = self._landed, []
            now = self._clock.now()
            judged = [(claimed, what, self._judge(claimed, what, now)) for claimed, what in landed]
            settled = await self._record([self._settlement(*each) for each in judged])
            if settled is None:
                self._finished.set()
                return
            for (claimed, what, verdict), ended in zip(judged, settled, strict=True):
                self._learn(claimed, what, verdict, ended, now)
            self._ring()
            self._end_if_done()

    async def _record(self, settlements: list[Settlement]) -> list[Settled] | None:
        """Settle; where the disk refuses, stop, and try again until the grace period ends: None."""
        while True:
            try:
                return await self._parts.journal.settle(settlements)
            except StoreWriteError as error:
                self.stop(Stop("disk", str(error)))
            if (left_s := self._grace_ends - self._clock.now()) <= 0:
                if self.stopped is not None and (lost := answers(settlements, self._landed)):
                    self.stopped = self.stopped.losing(lost)
                return None
            await anyio.sleep(min(RETRY_S, left_s))

    def _judge(self, claimed: Claimed, landed: Landed, now: float) -> Verdict:
        self._untried -= claimed.number == 1
        lane = self._lanes[claimed.request.pool]
        standing = self._parts.health.standing(
            claimed.request.key,
            landed,
            pool_holds=lane.pool.holds,
            probe=claimed.id == lane.probe and not lane.pool.is_looking,
            left=self._outstanding,
            all_tried=self._fed and self._untried == 0,
        )
        return judge(claimed, landed, now, self._clock.chance(), self._parts.policy, standing)

    def _settlement(self, claimed: Claimed, landed: Landed, verdict: Verdict) -> Settlement:
        model, prices = claimed.request.model, self._parts.prices
        cost = prices.cost(model, verdict.usage) if isinstance(verdict, Done) else None
        return settlement(claimed, landed, verdict, cost)

    def _learn(
        self, claimed: Claimed, landed: Landed, verdict: Verdict, settled: Settled, now: float
    ) -> None:
        """Let the queues and the pools know what became of an attempt."""
        request, lane = claimed.request, self._lanes[claimed.request.pool]
        self._parts.tally.add(settled, claimed.number)
        if isinstance(landed, Reply):
            self._unsettled_bytes -= len(landed.body)
        lane.learn(claimed, landed, verdict, now)
        if (until := endpoint_hold(verdict)) is not None:
            for each in self._lanes.values():
                each.pause(until, now)
        left = self._outstanding if self._fed else None
        if stop := self._parts.health.learn(verdict, claimed, left, now):
            self.stop(stop)
        if not isinstance(verdict, Done):
            self._stall.ring()
        if isinstance(verdict, Done | Fail):
            self._outstanding -= 1
            self._stop_if_failing()
            if isinstance(verdict, Done) and verdict.usage is not None:
                self._parts.requests.ratios.learn(request, verdict.usage.prompt_tokens)
            return
        charged, due = (False, now) if isinstance(verdict, Halt) else (verdict.charged, verdict.due)
        doubted = claimed.doubted or verdict.billed == "maybe"
        if isinstance(verdict, Again) and verdict.replayed:
            request, doubted = self._parts.requests.at_epoch(request, request.epoch + 1), False
        lane.queue.again([(Try(request, claimed.number + 1, claimed.charged + charged, doubted), due)])
        self._queued_bytes += len(request.body)

    async def _watch_stall(self) -> None:
        """Stop when nothing has got on for longer than the run may stall."""
        while not self.stopping:
            left_s = self._parts.health.stalls_in_s(self._clock.now())
            if left_s is not None and left_s <= 0:
                self.stop(self._parts.health.stall())
            await self._stall.wait(left_s)

    def _stop_if_failing(self) -> None:
        tally = self._parts.tally
        failed = tally.failed - tally.rejected
        if self._parts.max_failures.exceeded(failed, failed + tally.succeeded + tally.in_doubt):
            reason = f"{failed} rows have failed, more than --max-failures allows: see the errors file"
            self.stop(Stop("failures", reason))

    # --- the end

    def _end_if_done(self) -> None:
        in_flight = self._parts.tally.in_flight
        done = in_flight == 0 if self.stopping else self._fed and self._outstanding == 0
        if done:
            self._finished.set()

    async def _drain(self) -> None:
        """Once stopping: give what is in flight its grace, then end it."""
        await self._stopping.wait()
        await anyio.sleep(self._parts.grace_s)
        self.hurry()

    def _ring(self) -> None:
        for lane in self._lanes.values():
            lane.bell.ring()
        self._room.ring()

    def binding(self) -> str:
        """Name what keeps the flow from being faster now: `disk`, or see `batcher.lane.binding`."""
        if self._unsettled_bytes >= UNSETTLED_BYTES:
            return "disk"
        return binding(self._lanes.values(), fed=self._fed, free=self._slots.free)
