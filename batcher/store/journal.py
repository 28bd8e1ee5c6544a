"""What is about to be sent, and what became of it, durably: the store as the loop sees it."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import anyio.to_thread
import msgspec
from filelock import FileLock

from batcher.clock import Clock
from batcher.errors import StoreError
from batcher.request import Claimed, Outcome, Row, Settled, Settlement, State, Try
from batcher.store import file
from batcher.store.catalogue import query
from batcher.store.connection import Connect, Connection, connect
from batcher.store.walk import Walk
from batcher.store.writer import Values, Writer

#: Attempts that may have been sent in a second: more than any account's limit.
_MOST_PER_S: Final = 20_000


class Opening(msgspec.Struct, frozen=True, kw_only=True):
    """How a store is opened."""

    path: Path
    base_url: str
    #: What idempotency keys are made with; None takes the store's own, or makes one.
    namespace: str | None = None
    #: The ends after which a row is tried again in this run.
    reopen: frozenset[State] = frozenset({"exhausted"})


class Journal:
    """A job's store, opened for writing by this process alone.

    Raises, from every verb:
        StoreWriteError: the disk refused; what had been committed is kept, and nothing of the group is.
    """

    def __init__(self, db: Connection, lock: FileLock, opening: Opening, clock: Clock) -> None:
        self._db = db
        self._lock = lock
        self._opening = opening
        self._clock = clock
        self._writer = Writer(db, opening.path)

    @classmethod
    async def open(cls, opening: Opening, clock: Clock, connect: Connect = connect) -> Self:
        """Make or open the store, lock it, and settle what a dead process left in flight.

        Raises:
            StoreError: it is not a store of this job and endpoint; the file is untouched.
            StoreLockedError: another process has it.
            StoreWriteError: the disk is full.
        """
        path = opening.path
        # Before the lock, so that nothing is left beside a file that is not ours; and after it again.
        file.is_new(path)
        lock = file.lock(path)
        try:
            if file.is_new(path):
                file.make(path, opening.namespace or clock.token(), opening.base_url, clock.wall())
            await anyio.to_thread.run_sync(file.upgrade, path)
            db = await connect(path)
        except file.REFUSALS as error:
            lock.release()
            raise file.unusable(path, "can't be opened", error) from error
        except BaseException:
            lock.release()
            raise
        journal = cls(db, lock, opening, clock)
        try:
            await journal._begin()
        except file.REFUSALS as error:
            await journal.close()
            raise file.unusable(path, "can't be opened", error) from error
        except BaseException:
            await journal.close()
            raise
        return journal

    async def _begin(self) -> None:
        # FULL: what was committed survives a power loss too; commits of groups make it cheap.
        for pragma in (
            "journal_mode = WAL",
            "synchronous = FULL",
            "cache_size = -16000",
            "temp_store = FILE",
        ):
            await self._db.execute(f"PRAGMA {pragma}")
        self.namespace, base_url, _, _ = await self._one("read_job")
        self._refuse_others(base_url)
        take = (query("take_job"), (os.getpid(),))
        await self._writer.run(take, (query("settle_orphans"), (self._clock.wall(),)))
        #: rows.id of the rows without an answer of which an attempt may have been billed.
        self._doubted = {row for (row,) in await self._db.execute_fetchall(query("doubted_rows"))}
        #: rows.id -> how many of its keys have brought a failure again.
        self._epochs: dict[int, int] = dict(await self._db.execute_fetchall(query("spent_keys")))  # type: ignore[arg-type]
        last_row, self._last_attempt, last_seq, detached = await self._one("last_ids")
        self._walk = Walk(self._writer, self._opening.reopen, last_row, last_seq, detached)

    def _refuse_others(self, base_url: str) -> None:
        path, opening = self._opening.path, self._opening
        if base_url != opening.base_url:
            message = f"{path} is a store for {base_url}, not for {opening.base_url}: name another --store"
            raise StoreError(message)
        if opening.namespace not in (None, self.namespace):
            message = (
                f"{path} has the namespace {self.namespace}: leave --namespace out, or name another --store"
            )
            raise StoreError(message)

    async def recent(self, period_s: float, slot_s: float) -> list[tuple[str, float, int, int, int]]:
        """Return what was sent in the last `period_s`, in sums of slots of `slot_s`, oldest first.

        Each is (model, `Clock.now()` when the last of them was sent, requests, tokens reserved, tokens used).
        """
        wall = self._clock.wall()
        offset = wall - self._clock.now()
        most = int(_MOST_PER_S * period_s)
        rows = await self._writer.fetch(query("sent_since"), (most, wall - period_s, slot_s))
        # A wall clock that was set back makes records of the future: they count as of now.
        return [(model, min(at, wall) - offset, *sums) for model, at, *sums in rows]

    async def fresh(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Note where these lines of the file are, and return those that are not settled yet.

        Groups come in the order of the file.
        """
        return await self._walk.fresh(rows)

    def doubted(self, rows: Sequence[Row]) -> frozenset[int]:
        """Return the lines of those fresh rows of which an earlier run may have been billed."""
        if not self._doubted:
            return frozenset()
        return frozenset(row.seq for row in rows if self._walk.ids[row.seq] in self._doubted)

    def epochs(self, rows: Sequence[Row]) -> Mapping[int, int]:
        """Return line -> the epoch of its key, of those fresh rows whose first key brings only a failure."""
        if not self._epochs:
            return {}
        ids = self._walk.ids
        return {row.seq: self._epochs[ids[row.seq]] for row in rows if ids[row.seq] in self._epochs}

    async def claim(self, tries: Sequence[Try]) -> list[Claimed]:
        """Write down that these are about to be sent; each may be sent when this returns, and not before."""
        wall = self._clock.wall()
        values: Values = []
        claimed = []
        for item in tries:
            request = item.request
            self._last_attempt += 1
            claimed.append(Claimed(self._last_attempt, request, item.number, item.charged, item.doubted))
            values += (
                self._last_attempt,
                f"[{','.join(str(self._walk.ids[row.seq]) for row in request.rows)}]",
                request.key,
                item.number,
                request.model,
                wall,
                request.tokens,
                request.worst_cost_pico_usd,
            )
        await self._writer.commit({"insert_attempts": values})
        return claimed

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        """Write down what became of attempts, and how rows ended; they count when this returns."""
        offset = self._clock.wall() - self._clock.now()
        values: Values = []
        outcomes: Values = []
        for settlement in settlements:
            attempt = settlement.attempt
            values += (
                attempt.id,
                attempt.billed,
                None if attempt.sent_at is None else attempt.sent_at + offset,
                attempt.ended_at + offset,
                attempt.status,
                attempt.error,
                attempt.request_id,
                attempt.prompt_tokens,
                attempt.cached_tokens,
                attempt.completion_tokens,
                attempt.cost_pico_usd,
                attempt.replayed,
            )
            for outcome in settlement.outcomes:
                outcomes += self._outcome_values(outcome)
        await self._writer.commit({"insert_settlements": values, "insert_outcomes": outcomes})
        self._forget(outcome for settlement in settlements for outcome in settlement.outcomes)
        return [Settled(settlement) for settlement in settlements]

    async def reject(self, outcomes: Sequence[Outcome]) -> None:
        """Write down the ends of rows that were never sent."""
        await self._writer.commit({"insert_outcomes": [v for o in outcomes for v in self._outcome_values(o)]})
        self._forget(outcomes)

    def _outcome_values(self, outcome: Outcome) -> tuple[Any, ...]:
        return (
            self._walk.ids[outcome.row.seq],
            outcome.state,
            outcome.attempt,
            outcome.status,
            outcome.request_id,
            outcome.body,
            outcome.code,
            outcome.message,
            outcome.line,
            outcome.finish,
        )

    def _forget(self, outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            del self._walk.ids[outcome.row.seq]

    async def end_of_file(self, line_count: int) -> None:
        """Note that the whole file has been walked: what was on later lines is no longer in it."""
        await self._writer.commit({})
        # What follows the last row is blank, whether or not it is counted as lines.
        detach = (query("detach_rest"), (self._walk.walked,))
        await self._writer.run(detach, (query("set_line_count"), (line_count,)))

    async def set_line_count(self, line_count: int) -> None:
        """Note how many rows the file has, where it was counted but not walked to its end."""
        await self._writer.run((query("set_line_count"), (line_count,)))

    async def close(self) -> None:
        """Close the connection and give the store back."""
        try:
            await self._writer.close()
        finally:
            self._lock.release()

    async def _one(self, name: str) -> tuple[Any, ...]:
        for row in await self._db.execute_fetchall(query(name)):
            return tuple(row)
        message = f"{self._opening.path} holds no job: move the file away and run again"
        raise StoreError(message)
