"""Which names and bodies this pass over the job file has already met."""

import sqlite3
from collections.abc import Sequence
from typing import Self

from batcher.store.catalogue import many, query


class Seen:
    """A scratch SQLite database in a temporary file of SQLite's own: memory does not grow with the job file.

    It is exact: it compares whole names, not hashes of them. It starts in memory and spills to disk.
    """

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None)
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -16000"):
            self._db.execute(f"PRAGMA {pragma}")
        self._db.execute(query("seen_schema"))
        self._db.execute(query("seen_schema_bodies"))

    def repeated(self, names: Sequence[tuple[str, int]]) -> dict[int, int]:
        """Note who uses each (custom_id, line); return line -> the line that used its name first."""
        flat = [value for pair in names for value in pair]
        if self._db.execute(many("meet_names", len(names)), flat).rowcount == len(names):
            return {}
        first: dict[str, int] = dict(
            self._db.execute(many("who_met", len(names)), [name for name, _ in names]).fetchall()
        )
        return {seq: first[name] for name, seq in names if first[name] != seq}

    def occurrence(self, digest: bytes) -> int:
        """Count one more bare body of this digest; return how many there are now."""
        times: int = self._db.execute(query("meet_body"), (digest,)).fetchone()[0]
        return times

    def close(self) -> None:
        """Forget everything."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
