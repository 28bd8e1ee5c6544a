"""The seam between the journal and SQLite."""

import sqlite3
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import aiosqlite


class Connection(Protocol):
    """What the journal needs of aiosqlite: the seam at which tests run its statements without a thread."""

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        ...

    async def execute(self, sql: str, parameters: Iterable[Any] | None = None) -> object:
        """Run one statement."""
        ...

    async def execute_fetchall(
        self, sql: str, parameters: Iterable[Any] | None = None
    ) -> Iterable[sqlite3.Row]:
        """Run one statement and return its rows."""
        ...

    async def rollback(self) -> None:
        """End the open transaction without its changes."""
        ...

    async def close(self) -> None:
        """Close the file."""
        ...


#: Opens a store that exists, in autocommit mode.
Connect: TypeAlias = Callable[[Path], Awaitable[Connection]]


async def connect(path: Path) -> Connection:
    """Open a store through aiosqlite: SQLite runs in a thread of its own."""
    return await aiosqlite.connect(path, isolation_level=None, cached_statements=16)
