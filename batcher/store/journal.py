"""The one writing connection: what is about to be sent, and what became of it, durably.

Verbs take groups. While one group commits, the next one forms: whatever waits when a commit ends goes
into the next one together, whichever verb it came by.
"""

import os
import sqlite3
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, Self

import anyio
import msgspec
from filelock import FileLock

from batcher.clock import Clock
from batcher.errors import StoreError, StoreWriteError
from batcher.request import Claimed, Outcome, Row, Settled, Settlement, State, Try
from batcher.store import file
from batcher.store.catalogue import MAX_VALUES, many, query, width
from batcher.store.connection import Connect, Connection, connect

#: The order in which a group is written: what is referred to comes first.
_TABLES: Final = ("insert_rows", "insert_attempts", "insert_settlements", "insert_outcomes")

#: Attempts that may have been sent in a second: more than any account's limit.
_MOST_PER_S: Final = 20_000

_Values = list[Any]


class Opening(msgspec.Struct, frozen=True, kw_only=True):
    """How a store is opened."""

    path: Path
    base_url: str
    #: What idempotency keys are made with; None takes the store's own, or makes one.
    namespace: str | None = None
    #: Rows that may have been billed are not sent again.
    at_most_once: bool = False
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
        self._commit_lock = anyio.Lock()
        self._waiting = _Group()
        #: line -> rows.id, of the rows that were handed out as fresh and have not ended.
        self._ids: dict[int, int] = {}
        #: Pending rows that may have been billed and must not be sent again.
        self._doubted: set[int] = set()
        self._has_keys = False
        #: The last line that was matched with the store.
        self._walked = 0

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
            db = await connect(path)
        except sqlite3.Error as error:
            lock.release()
            raise file.unusable(path, "can't be opened", error) from error
        except BaseException:
            lock.release()
            raise
        journal = cls(db, lock, opening, clock)
        try:
            await journal._begin()
        except sqlite3.Error as error:
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
        await self._db.execute("BEGIN IMMEDIATE")
        await self._db.execute(query("take_job"), (os.getpid(),))
        await self._db.execute(query("settle_orphans"), (self._clock.wall(),))
        await self._db.execute("COMMIT")
        if self._opening.at_most_once and "in_doubt" not in self._opening.reopen:
            self._doubted = {row for (row,) in await self._db.execute_fetchall(query("doubted_rows"))}
        self._last_row, self._last_attempt, self._last_seq, self._detached = await self._one("last_ids")

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
        rows = await self._fetch(query("sent_since"), (most, wall - period_s, slot_s))
        # A wall clock that was set back makes records of the future: they count as of now.
        return [(model, min(at, wall) - offset, *sums) for model, at, *sums in rows]

    async def fresh(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Note where these lines of the file are, and return those that are not settled yet.

        Groups come in the order of the file. As long as store and file agree they are walked side by side;
        keys are looked up only from a line on which they differ.
        """
        # Blank lines belong to no group; a row that stood on one has left.
        start, self._walked = self._walked + 1, rows[-1].seq
        if start > self._last_seq and not self._detached:
            self._insert(rows)
            return rows
        return await self._place(rows, await self._known(start, rows[-1].seq))

    async def _known(self, first: int, last: int) -> dict[int, tuple[int, bytes, State | None]]:
        """Return line -> (rows.id, key, state) of what stood on these lines at the last run."""
        found = await self._fetch(query("rows_between"), (first, last))
        return {seq: (row, key, state) for seq, row, key, state in found}

    async def _place(
        self, rows: Sequence[Row], there: Mapping[int, tuple[int, bytes, State | None]]
    ) -> Sequence[Row]:
        """Match each row with what the store knows of it; write down those that moved, came or went."""
        lines = {row.seq: row for row in rows}
        strangers = [row for row in rows if row.seq not in there or there[row.seq][1] != row.key]
        displaced = [row for seq, (row, key, _) in there.items() if seq not in lines or lines[seq].key != key]
        states: dict[int, State | None] = {}
        for seq, (row, key, state) in there.items():
            if seq in lines and lines[seq].key == key:
                self._ids[seq], states[seq] = row, state
        moved = await self._look_up(strangers) if strangers and self._may_have_moved(rows, displaced) else {}
        for line in strangers:
            if line.key in moved:
                self._ids[line.seq], states[line.seq] = moved[line.key]
        if displaced or moved:
            await self._move(displaced, [line for line in strangers if line.key in moved])
            self._detached += len(displaced)
        self._insert([line for line in strangers if line.key not in moved])
        return await self._unsettled(rows, states)

    def _may_have_moved(self, rows: Sequence[Row], displaced: Collection[int]) -> bool:
        """Say whether the store knows rows that the walk has not met on their lines."""
        return bool(displaced or self._detached or rows[-1].seq < self._last_seq)

    async def _look_up(self, rows: Sequence[Row]) -> dict[bytes, tuple[int, State | None]]:
        if not self._has_keys:
            await self._fetch(query("index_keys"), ())
            await self._fetch(query("index_keys_order"), ())
            self._has_keys = True
        keys = [row.key for row in rows]
        found = await self._fetch(many("rows_by_key", len(keys)), keys)
        return {key: (row, state) for key, row, state in found}

    async def _move(self, displaced: Sequence[int], arrived: Sequence[Row]) -> None:
        # A row that arrives here may still stand on a later line: it leaves that one first.
        leaving = [*displaced, *(self._ids[row.seq] for row in arrived)]
        async with self._shielded():
            await self._execute("BEGIN IMMEDIATE", ())
            await self._execute(many("detach_rows", len(leaving)), leaving)
            if arrived:
                places = [value for row in arrived for value in (self._ids[row.seq], row.seq, row.custom_id)]
                await self._execute(many("attach_rows", len(arrived)), places)
            await self._execute("COMMIT", ())

    def _insert(self, rows: Sequence[Row]) -> None:
        """Let new rows be written with the next group: before their claims, which come later."""
        values = self._waiting.values["insert_rows"]
        for row in rows:
            self._last_row += 1
            self._ids[row.seq] = self._last_row
            values += (self._last_row, row.seq, row.key, row.custom_id)

    async def _unsettled(self, rows: Sequence[Row], states: Mapping[int, State | None]) -> Sequence[Row]:
        reopened = [seq for seq, state in states.items() if state in self._opening.reopen]
        if reopened:
            ids = [self._ids[seq] for seq in reopened]
            async with self._shielded():
                await self._execute(many("reopen_rows", len(ids)), ids)
        settled = {seq for seq, state in states.items() if state is not None}.difference(reopened)
        for seq in settled:
            del self._ids[seq]
        return [row for row in rows if row.seq not in settled]

    def doubted(self, rows: Sequence[Row]) -> frozenset[int]:
        """Return the lines of those fresh rows that may have been billed: at most once, they are not sent."""
        if not self._doubted:
            return frozenset()
        return frozenset(row.seq for row in rows if self._ids[row.seq] in self._doubted)

    async def claim(self, tries: Sequence[Try]) -> list[Claimed]:
        """Write down that these are about to be sent; each may be sent when this returns, and not before."""
        wall = self._clock.wall()
        values: _Values = []
        claimed = []
        for item in tries:
            request = item.request
            self._last_attempt += 1
            claimed.append(Claimed(self._last_attempt, request, item.number, item.charged))
            values += (
                self._last_attempt,
                f"[{','.join(str(self._ids[row.seq]) for row in request.rows)}]",
                request.key,
                item.number,
                request.model,
                wall,
                request.tokens,
                request.worst_cost_pico_usd,
            )
        await self._commit({"insert_attempts": values})
        return claimed

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        """Write down what became of attempts, and how rows ended; they count when this returns."""
        offset = self._clock.wall() - self._clock.now()
        values: _Values = []
        outcomes: _Values = []
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
            )
            for outcome in settlement.outcomes:
                outcomes += self._outcome_values(outcome)
        await self._commit({"insert_settlements": values, "insert_outcomes": outcomes})
        self._forget(outcome for settlement in settlements for outcome in settlement.outcomes)
        return [Settled(settlement) for settlement in settlements]

    async def reject(self, outcomes: Sequence[Outcome]) -> None:
        """Write down the ends of rows that were never sent."""
        await self._commit({"insert_outcomes": [v for o in outcomes for v in self._outcome_values(o)]})
        self._forget(outcomes)

    def _outcome_values(self, outcome: Outcome) -> tuple[Any, ...]:
        return (
            self._ids[outcome.row.seq],
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
            del self._ids[outcome.row.seq]

    async def end_of_file(self, line_count: int) -> None:
        """Note that the whole file has been walked: what was on later lines is no longer in it."""
        await self._commit({})
        async with self._shielded():
            # What follows the last row is blank, whether or not it is counted as lines.
            await self._execute(query("detach_rest"), (self._walked,))
            await self._execute(query("set_line_count"), (line_count,))

    async def set_line_count(self, line_count: int) -> None:
        """Note how many rows the file has, where it was counted but not walked to its end."""
        async with self._shielded():
            await self._execute(query("set_line_count"), (line_count,))

    async def close(self) -> None:
        """Close the connection and give the store back."""
        try:
            with anyio.CancelScope(shield=True):
                await self._db.close()
        finally:
            self._lock.release()

    async def _commit(self, values: Mapping[str, _Values]) -> None:
        """Write these with everything else that waits; return when they are durable."""
        group = self._waiting
        for table, more in values.items():
            group.values[table] += more
        async with self._shielded():
            if self._waiting is group:
                self._waiting = _Group()
                await self._write(group)
        if group.error is not None:
            raise group.error

    @asynccontextmanager
    async def _shielded(self) -> AsyncIterator[None]:
        """Have the connection alone, and to the end: a cancelled write would leave its transaction open."""
        with anyio.CancelScope(shield=True):
            async with self._commit_lock:
                yield

    async def _write(self, group: "_Group") -> None:
        try:
            await self._execute("BEGIN IMMEDIATE", ())
            for table in _TABLES:
                values, step = group.values[table], width(table)
                chunk = MAX_VALUES // step * step
                for start in range(0, len(values), chunk):
                    part = values[start : start + chunk]
                    await self._execute(many(table, len(part) // step), part)
            await self._execute("COMMIT", ())
        except Exception as error:  # noqa: BLE001  nobody in the group may take it for committed
            group.error = error

    async def _execute(self, sql: str, values: Sequence[Any]) -> None:
        try:
            await self._db.execute(sql, values)
        except Exception as error:
            await self._rollback()
            if not isinstance(error, sqlite3.Error):
                raise
            raise self._refused(error) from error

    async def _rollback(self) -> None:
        # A disk that fails may fail here too; what is left open then is never committed.
        with suppress(sqlite3.Error):
            if self._db.in_transaction:
                await self._db.rollback()

    async def _fetch(self, sql: str, values: Sequence[Any]) -> Iterable[Sequence[Any]]:
        """Run one statement outside of a group's transaction, and return its rows."""
        try:
            return await self._db.execute_fetchall(sql, values)
        except sqlite3.Error as error:
            raise self._refused(error) from error

    def _refused(self, error: sqlite3.Error) -> StoreWriteError:
        return StoreWriteError(
            f"{self._opening.path} can't be written: {error}; what was committed is kept: "
            "see to the disk and run the same command again"
        )

    async def _one(self, name: str) -> tuple[Any, ...]:
        for row in await self._db.execute_fetchall(query(name)):
            return tuple(row)
        message = f"{self._opening.path} holds no job: move the file away and run again"
        raise StoreError(message)


class _Group:
    """What goes into one commit, and whether it failed."""

    __slots__ = ("error", "values")

    def __init__(self) -> None:
        self.values: dict[str, _Values] = {table: [] for table in _TABLES}
        self.error: Exception | None = None
