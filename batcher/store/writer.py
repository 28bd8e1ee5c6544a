"""The one writing connection: groups of values in, durable when they return.

While one group commits, the next one forms: whatever waits when a commit ends goes into the next one
together, whoever it came from.
"""

import os
import sqlite3
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeAlias

import anyio

from batcher.errors import StoreWriteError
from batcher.store import file
from batcher.store.catalogue import MAX_VALUES, many, width
from batcher.store.connection import Connection

#: The order in which a group is written: what is referred to comes first.
_TABLES: Final = ("insert_rows", "insert_attempts", "insert_settlements", "insert_outcomes")

#: The columns of rows, one after the other.
Values: TypeAlias = list[Any]


class Writer:
    """Commits what others hand in, all of a group or nothing of it.

    Raises, from every verb:
        StoreWriteError: the disk refused, or the file is no longer there; what had been committed is kept.
    """

    def __init__(self, db: Connection, path: Path) -> None:
        self._db = db
        self._path = path
        #: Which file it is, and its size in bytes: it never shrinks while a run is going on.
        self._identity, self._size = _look(path)
        self._lock = anyio.Lock()
        self._waiting = _Group()

    def add(self, table: str, values: Iterable[Any]) -> None:
        """Let these go with the next commit: before what refers to them, which comes later."""
        self._waiting.values[table] += values

    async def commit(self, values: Mapping[str, Values]) -> None:
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

    async def run(self, *statements: tuple[str, Sequence[Any]]) -> None:
        """Run statements as one transaction, beside the groups."""
        async with self._shielded():
            await self._transact(statements)

    async def fetch(self, sql: str, values: Sequence[Any] = ()) -> Iterable[Sequence[Any]]:
        """Run one statement that reads, and return its rows."""
        try:
            return await self._db.execute_fetchall(sql, values)
        except file.REFUSALS as error:
            raise self._refused(error) from error

    async def close(self) -> None:
        """Close the connection; what waits is not written."""
        with anyio.CancelScope(shield=True):
            await self._db.close()

    @asynccontextmanager
    async def _shielded(self) -> AsyncIterator[None]:
        """Have the connection alone, and to the end: a cancelled write would leave its transaction open."""
        with anyio.CancelScope(shield=True):
            async with self._lock:
                yield

    async def _write(self, group: "_Group") -> None:
        try:
            await self._transact(group.statements())
        except Exception as error:  # noqa: BLE001  nobody in the group may take it for committed
            group.error = error
            # Rows are handed in once: they go with whatever is written next.
            self._waiting.values["insert_rows"][:0] = group.values["insert_rows"]

    async def _transact(self, statements: Iterable[tuple[str, Sequence[Any]]]) -> None:
        try:
            await self._db.execute("BEGIN IMMEDIATE", ())
            for sql, values in statements:
                await self._db.execute(sql, values)
            self._check_identity()
            await self._db.execute("COMMIT", ())
        except Exception as error:
            await self._rollback()
            if isinstance(error, file.REFUSALS):
                raise self._refused(error) from error
            raise

    async def _rollback(self) -> None:
        # A disk that fails may fail here too; what is left open then is never committed.
        with suppress(sqlite3.Error):
            if self._db.in_transaction:
                await self._db.rollback()

    def _check_identity(self) -> None:
        """Refuse to commit to a file that nobody will find again, or read: SQLite would, without a word."""
        identity, size = _look(self._path)
        if identity != self._identity:
            raise StoreWriteError(
                f"{self._path} was removed, replaced or unmounted while the job ran: "
                "put it back and run the same command again"
            )
        if size < self._size:
            raise file.damaged(self._path, "can't be written", "it was cut off while the job ran")
        self._size = size

    def _refused(self, error: sqlite3.Error | UnicodeDecodeError) -> StoreWriteError:
        if isinstance(error, sqlite3.IntegrityError):
            return StoreWriteError(
                f"{self._path} can't be written: {error}: another process has written to it: "
                "let only one run, and run the same command again"
            )
        if file.is_damage(error):
            return file.damaged(self._path, "can't be written", error)
        return StoreWriteError(
            f"{self._path} can't be written: {error}; what was committed is kept: "
            "see to the disk and run the same command again"
        )


def _look(path: Path) -> tuple[tuple[int, int] | None, int]:
    try:
        found = os.stat(path)  # noqa: PTH116  runs with every commit
    except OSError:
        return None, 0
    return (found.st_dev, found.st_ino), found.st_size


class _Group:
    """What goes into one commit, and whether it failed."""

    __slots__ = ("error", "values")

    def __init__(self) -> None:
        self.values: dict[str, Values] = {table: [] for table in _TABLES}
        self.error: Exception | None = None

    def statements(self) -> Iterable[tuple[str, Sequence[Any]]]:
        for table in _TABLES:
            values, step = self.values[table], width(table)
            chunk = MAX_VALUES // step * step
            for start in range(0, len(values), chunk):
                part = values[start : start + chunk]
                yield many(table, len(part) // step), part
