"""What a store holds, read beside a running job or after it: never writes, never holds a checkpoint back."""

import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self, TypeAlias, get_args

import msgspec

from batcher.errors import StoreError, StoreWriteError
from batcher.request import State
from batcher.store import file
from batcher.store.catalogue import query

#: So many lines, or attempts, are looked at in one read.
_FETCH = 500

#: A store that changes just as it is opened is opened so often at most.
_MOST_TRIES: Final = 10

#: What can't be done where there is no room for it (TMPDIR).
_UNCOPIED: Final = "has a log without its index, and can't be copied to a temporary folder to be read"

#: A named query and its values.
Asked: TypeAlias = tuple[str, Sequence[Any]]

_Int: TypeAlias = int | None
_Time: TypeAlias = float | None
_Text: TypeAlias = str | None
_Blob: TypeAlias = bytes | None
_Answer: TypeAlias = tuple[bytes, str, int, _Text, bytes]
_Error: TypeAlias = tuple[bytes, str, _Int, _Text, _Blob, str, str, _Blob, str]
_Claim: TypeAlias = tuple[
    int, str, str, int, str, float, _Time, _Time, str, _Int, _Text, _Text, _Int, _Int, _Int, _Int
]
#: What can be read row by row: what says how far it goes, and of which types a row is. SQLite takes the types
#: of what stands in a file for granted.
_ROWS: Final[dict[str, tuple[str, object]]] = {
    "results": ("last_line", list[_Answer]),
    "errors": ("last_line", list[_Error]),
    "attempts_log": ("last_attempt", list[_Claim]),
}


#: What must hold between the tables: the query that counts what does not, and what that is.
_MUST_HOLD: Final = {
    "check_answers": "rows that count as done by an attempt that was not answered",
    "check_packs": "attempts of rows that there are not",
    "check_ends": "rows that ended by an attempt of others",
}
#: What the file has pages for.
_TABLES: Final = ("job", "rows", "attempts", "settlements", "outcomes")
#: So many references that lead nowhere are named.
_MOST_REFERENCES: Final = 20


class ModelBill(msgspec.Struct, frozen=True, kw_only=True):
    """What one model was asked and what it cost, over every run of the job."""

    #: Attempts made.
    requests: int
    #: Attempts that were answered.
    answered: int
    prompt_tokens: int
    #: The part of the prompt tokens that was read from the server's cache.
    cached_tokens: int
    completion_tokens: int
    #: What is certain, in 10^-12 dollar; None where the price of an answer is unknown.
    cost_pico_usd: int | None
    #: Attempts that may have been billed.
    in_doubt: int
    #: The most that those can have cost; None where one of them has no bound.
    in_doubt_pico_usd_max: int | None


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """How far a job is."""

    namespace: str
    base_url: str
    #: Rows in the file when it was last counted; None if it never was.
    line_count: int | None
    #: Rows of the file by how they ended; a row in none of them is pending.
    done: int
    refused: int
    exhausted: int
    in_doubt: int
    #: Of the done: answers that ended at their output limit, and by the server's content filter.
    truncated: int
    filtered: int
    #: Of the others: how many by the error's code, the most frequent first.
    by_error: dict[str, int]
    by_model: dict[str, ModelBill]

    @property
    def ended(self) -> int:
        """Rows that are not pending."""
        return self.done + self.refused + self.exhausted + self.in_doubt


def read(path: Path) -> Contents:
    """Read what the store says of the job.

    Raises:
        StoreError: there is no store, or it can't be read.
    """
    with Reading(path) as store:
        job, ends, bills = store.read(("read_job", ()), ("count_rows", ()), ("bill", ()))
    if not job:
        raise file.damaged(path, "can't be read", "it holds no job")
    namespace, base_url, _, line_count = job[0]
    try:
        return msgspec.convert(
            {
                "namespace": namespace,
                "base_url": base_url,
                "line_count": line_count,
                "by_model": {model: _bill(sums) for model, *sums in bills},
                "truncated": sum(count for *end, count in ends if end == ["done", "length"]),
                "filtered": sum(count for *end, count in ends if end == ["done", "content_filter"]),
                "by_error": _by_error(ends),
                **{name: sum(count for state, _, count in ends if state == name) for name in get_args(State)},
            },
            Contents,
        )
    except msgspec.ValidationError as error:
        raise file.damaged(path, "can't be read", error) from error


def _by_error(ends: Sequence[tuple[State, str, int]]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for state, code, count in ends:
        if state != "done":
            counts[code] += count
    return dict(counts.most_common())


def _bill(sums: Sequence[int | None]) -> dict[str, int | None]:
    requests, answered, prompt, cached, completion, cost, unpriced, doubts, most, unbounded = sums
    return {
        "requests": requests or 0,
        "answered": answered or 0,
        "prompt_tokens": prompt or 0,
        "cached_tokens": cached or 0,
        "completion_tokens": completion or 0,
        "cost_pico_usd": None if unpriced else cost or 0,
        "in_doubt": doubts or 0,
        "in_doubt_pico_usd_max": None if unbounded else most,
    }


def past_key_ttl(path: Path, wall: float, key_ttl_s: float) -> int:
    """Count the attempts in doubt that their key covers no longer, where keys last for `key_ttl_s` seconds.

    Their request was sent again later than that, or was not and it is later now (`wall`, seconds since 1970).

    Raises:
        StoreError: there is no store, or it can't be read.
    """
    with Reading(path) as store:
        (((count,),),) = store.read(("past_key_ttl", (wall, key_ttl_s)))
    return int(count)


def rows(path: Path, name: str) -> Iterator[tuple[Any, ...]]:
    """Read the rows of one query of the catalogue (`results`, `errors` or `attempts_log`), a few at a time.

    Each few are a read of their own: one that goes on would hold back the checkpoints of a job that runs.

    Raises:
        StoreError: there is no store, or it can't be read.
    """
    reach, kind = _ROWS[name]
    with Reading(path) as store:
        (((last,),),) = store.read((reach, ()))
        for first in range(1, last + 1, _FETCH):
            (some,) = store.read((name, (first, first + _FETCH - 1)))
            try:
                yield from msgspec.convert(some, kind)
            except msgspec.ValidationError as error:
                raise file.damaged(path, "can't be read", error) from error


def check(path: Path) -> list[str]:
    """Look for what is wrong in a store: by SQLite's own checks, and by what must hold between its tables.

    The CHECKs of the schema are not among them: a connection that only reads has none.

    Returns:
        A line for each thing that is; none if nothing is.

    Raises:
        StoreError: there is no store, or it can't be read.
    """
    with Reading(path) as store:
        # The other checks take whole pages for granted.
        if found := _damage(store):
            return found
        references, *counts = store.read(("check_references", ()), *((name, ()) for name in _MUST_HOLD))
    for table, row, other, _ in references[:_MOST_REFERENCES]:
        found.append(f"row {row} of {table} refers to a row of {other} that there is not")
    for what, ((count, which),) in zip(_MUST_HOLD.values(), counts, strict=True):
        if count:
            found.append(f"{what}: {count:,}, among them {which}")
    return found


def _damage(store: "Reading") -> list[str]:
    try:
        return _said(store, "check_pages")
    except StoreWriteError:
        found = []
    # It came to a page that it could make nothing of: each table for itself says which ones are whole.
    for table in _TABLES:
        try:
            found += [f"{table}: {line}" for line in _said(store, "check_table", table)]
        except StoreWriteError as error:
            found.append(f"the table {table} can't be read: {error.__cause__}")
    return found


def _said(store: "Reading", name: str, *values: str) -> list[str]:
    (rows,) = store.read((name, values))
    lines = [line for (text,) in rows for line in str(text).splitlines()]
    return [line for line in lines if line != "ok" and not line.startswith("***")]


class Reading:
    """A store that is only read: nothing of it, or beside it, is made, changed or kept from others.

        with Reading(path) as store:
            (job, ends) = store.read(("read_job", ()), ("count_rows", ()))

    How depends on what is beside the file (sqlite.org/wal.html, "Read-only databases"):

    - No log: nobody writes it. Even to read, SQLite would make a log, and leave it behind; `immutable` keeps
      it from that, and from locking. A read during which the file has changed is done again.
    - A log and its index: a run is going on, and shares the index; or was killed, and then SQLite makes an
      index in its own memory (`readonly_shm`).
    - A log without its index, as where somebody copied the two files: SQLite would have to write one. A copy
      of both is read, in a folder of its own.

    Raises, from the start and every read:
        StoreError: there is no store.
        StoreLockedError: another program keeps it from being read.
        StoreWriteError: it is damaged, or the disk or the user's rights keep it from being read.
    """

    def __init__(self, path: Path) -> None:
        if file.is_new(path):
            message = f"{path} does not exist: nothing of this job has run yet"
            raise StoreError(message)
        self._path = path
        self._db: sqlite3.Connection | None = None
        self._copies: tempfile.TemporaryDirectory[str] | None = None
        #: What the store looked like when it was opened, and whether its index says what has changed since.
        self._looks: list[tuple[int, ...]] = []
        self._shares_index = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def read(self, *asked: Asked) -> list[list[tuple[Any, ...]]]:
        """Return the rows of each query; all of them see the store as it was at one moment."""
        tries = 0
        while True:
            tries += 1
            try:
                found = self._read(asked)
            except (*file.REFUSALS, OSError) as error:
                # A run that begins or ends makes and removes the log and its index, one after the other.
                if tries == _MOST_TRIES or self._looks == self._look():
                    what = _UNCOPIED if isinstance(error, OSError) else "can't be read"
                    raise file.unusable(self._path, what, error) from error
            else:
                if self._shares_index or self._looks == self._look():
                    return found
            self._close()

    def _read(self, asked: Sequence[Asked]) -> list[list[tuple[Any, ...]]]:
        if self._db is None:
            self._db = self._open()
            file.see_older(self._db)
        self._db.execute("BEGIN")
        try:
            return [self._db.execute(query(name), values).fetchall() for name, values in asked]
        finally:
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")

    def _look(self) -> list[tuple[int, ...]]:
        looks: list[tuple[int, ...]] = []
        for part in (file.beside(self._path, suffix) for suffix in ("", "-wal", "-shm")):
            with suppress(OSError):
                found = part.stat()
                looks.append((found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns))
        return looks

    def _open(self) -> sqlite3.Connection:
        self._looks, self._shares_index = self._look(), False
        if not file.has_log(self._path):
            return file.connect(self._path, "mode=ro&immutable=1")
        if not file.beside(self._path, "-shm").exists():
            return file.connect(self._copied(), "mode=ro")
        self._shares_index = True
        return file.connect(self._path, "mode=ro&readonly_shm=1")

    def _copied(self) -> Path:
        """Copy the file and its log, as one that nobody else sees."""
        self._copies = tempfile.TemporaryDirectory(prefix="batcher-")
        copy = Path(self._copies.name, "store.db")
        for suffix in ("", "-wal"):
            shutil.copyfile(file.beside(self._path, suffix), f"{copy}{suffix}")
        return copy

    def _close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None
        if self._copies is not None:
            self._copies.cleanup()
            self._copies = None
