"""The store as a file: made, recognised, locked, opened, and what is wrong with one that can't be."""

import errno
import fcntl
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final, Literal

import msgspec
from filelock import FileLock, Timeout

from batcher.errors import StoreError, StoreLockedError, StoreWriteError
from batcher.store.catalogue import APPLICATION_ID, OLDEST_VERSION, SCHEMA_VERSION, query, script

_MAGIC = b"SQLite format 3\x00"

#: What the system says of a name that leads nowhere: the disk has no fault in it.
_NAMES: Final = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL)
#: What the system says, and SQLite, where the user may not.
_FORBIDDEN: Final = (errno.EACCES, errno.EPERM, errno.EROFS)
_CLOSED: Final = (
    *(sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN),
    *(sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH),
)
#: What SQLite says of a disk that is full or fails (the log's index on a full one is an I/O error), and of
#: another program that has the store.
_DISK: Final = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM)
_BUSY: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)

#: What SQLite raises; the latter where damage has got into the text of what it raises.
REFUSALS: Final = (sqlite3.Error, UnicodeDecodeError)

#: What a run reads of the store before it writes, and of which types it must be: SQLite takes the types of
#: what stands in a file for granted.
_READ_FIRST: Final[dict[str, object]] = {
    "read_job": list[tuple[str, str, int | None, int | None]],
    "doubted_rows": list[tuple[int]],
    "spent_keys": list[tuple[int, int]],
    "last_ids": list[tuple[int, int, int, int]],
    "orphaned_rows": list[tuple[int, int | None]],
}


def is_new(path: Path) -> bool:
    """Say whether there is no store yet: no file, or an empty one. Refuse, untouched, what is not a store.

    Raises:
        StoreError: it is a directory, not ours, of another version, or can't be found there.
        StoreWriteError: it can't be read, or only its log is left.
    """
    try:
        if path.exists() and not path.is_file():
            what = "a directory" if path.is_dir() else "no regular file"
            raise StoreError(f"{path} is {what}: --store needs a file")
        with path.open("rb") as file:
            header = file.read(100)
    except FileNotFoundError:
        if not path.parent.is_dir():
            message = f"the folder {path.parent} does not exist: make it, or name another --store"
            raise StoreError(message) from None
        header = b""
    except OSError as error:
        raise unusable(path, "can't be read", error) from error
    if not header:
        if _size(beside(path, "-wal")):
            raise damaged(path, "can't be opened", f"nothing is in it, and something in its log {path}-wal")
        return True
    # Read from the header as bytes (its layout: sqlite.org/fileformat2.html), so that nothing is touched.
    version, application = (int.from_bytes(header[at : at + 4]) for at in (60, 68))
    if not header.startswith(_MAGIC) or application != APPLICATION_ID:
        message = f"{path} is not a batcher store: name another --store, or move this file away"
        raise StoreError(message)
    if version > SCHEMA_VERSION:
        message = f"{path} was written by a newer batcher (store version {version}): upgrade batcher-openai"
        raise StoreError(message)
    if version < OLDEST_VERSION:
        message = f"{path} was written by an older batcher (store version {version}): name another --store"
        raise StoreError(message)
    # Whoever made it died before it was whole: its rollback journal has nothing to go back to.
    return _size(beside(path, "-journal")) > 0


def beside(path: Path, suffix: str) -> Path:
    """Return where SQLite and the lock keep what belongs to a store, by whatever name the store is called."""
    return Path(f"{os.path.realpath(path)}{suffix}")


def has_log(path: Path) -> bool:
    """Say whether a store has a write-ahead log; without one, all that it holds is in the file itself.

    One without a whole header is none: SQLite passes it over (sqlite.org/fileformat2.html, "WAL file").

    Raises:
        StoreWriteError: there is one, and it can't be read.
    """
    log = beside(path, "-wal")
    if not _size(log):
        return False
    try:
        with log.open("rb") as file:
            header = file.read(32)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise unusable(log, "can't be read", error) from error
    order: Literal["big", "little"] = "big" if header[3:4] == b"\x83" else "little"
    first = second = 0
    for at in range(0, 24, 8):
        first = (first + int.from_bytes(header[at : at + 4], order) + second) % 2**32
        second = (second + int.from_bytes(header[at + 4 : at + 8], order) + first) % 2**32
    checksum = first.to_bytes(4) + second.to_bytes(4)
    return header.startswith((b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83")) and header[24:] == checksum


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def make(path: Path, namespace: str, base_url: str, created_at: float) -> None:
    """Make an empty store that only its owner may read (mode 0600), complete or not at all.

    Raises:
        StoreWriteError: the folder can't be written, or the disk is full.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        # The rollback journal, not yet the WAL: the header that names the file as ours must be in the file
        # itself as soon as there is anything in it.
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("BEGIN EXCLUSIVE")
            # Where it was made, and a process died that changed it before it had a log, it is whole again.
            if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
                db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
                for statement in script("schema"):
                    db.execute(statement)
                db.execute(query("make_job"), (namespace, base_url, created_at))
            db.execute("COMMIT")
    except (OSError, sqlite3.Error) as error:
        raise unusable(path, "can't be made", error) from error


def upgrade(path: Path) -> None:
    """Make sure that a store can be used, and bring one of an older version up to this one; locked by us.

    One that is damaged, or can't be written, is refused before anything of it is.

    Raises:
        StoreWriteError: it is damaged, or can't be written.
        StoreLockedError: another program has it.
    """
    _check_writable(path)
    if not has_log(path) and path.stat().st_size < _pages_bytes(path):
        raise damaged(path, "can't be opened", "it is cut off")
    try:
        # As long as the first one is open, the second is not the last to close, which would empty the log.
        with closing(_connect_beside(path)) as reading:
            _check_contents(path, reading)
            with closing(sqlite3.connect(path, isolation_level=None)) as db:
                _bring_up_to_date(db)
    except REFUSALS as error:
        raise unusable(path, "can't be opened", error) from error


def _bring_up_to_date(db: sqlite3.Connection) -> None:
    # A connection that only reads makes nothing of the CHECKs of a damaged schema.
    db.execute(query("read_job"))
    # Not by the header: the version may be in the write-ahead log yet.
    if db.execute("PRAGMA user_version").fetchone()[0] < SCHEMA_VERSION:
        db.execute("BEGIN IMMEDIATE")
        for statement in script("upgrade"):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        db.execute("COMMIT")


def _check_writable(path: Path) -> None:
    """SQLite would make its log read-only too, and leave it behind for when the store is writable again."""
    parts = [beside(path, suffix) for suffix in ("", "-wal", "-shm")]
    for each in (*parts, parts[0].parent):
        if each.exists() and not os.access(each, os.W_OK):
            raise unusable(each, "can't be written", OSError(errno.EACCES, "it is read-only"))


def _check_contents(path: Path, db: sqlite3.Connection) -> None:
    """Read what a run begins with through a connection that can't write: another would, even to close."""
    see_older(db)
    try:
        for name, kind in _READ_FIRST.items():
            found = msgspec.convert(db.execute(query(name)).fetchall(), kind)
            if name == "read_job" and not found:
                raise damaged(path, "can't be opened", "it holds no job")
    except msgspec.ValidationError as error:
        raise damaged(path, "can't be opened", error) from error


def _pages_bytes(path: Path) -> int:
    """Return the size that a store's header says it has; 0 where it does not say (as above)."""
    with path.open("rb") as file:
        header = file.read(100)
    page_bytes, pages = (int.from_bytes(header[at : at + size]) for at, size in ((16, 2), (28, 4)))
    # 1 is 65,536; and who wrote the file last may have been too old to say how many pages there are.
    return (page_bytes if page_bytes > 1 else 65_536) * pages if header[24:28] == header[92:96] else 0


def _connect_beside(path: Path) -> sqlite3.Connection:
    """Open a store that nobody else writes, for reading only; without a log nothing is made or locked."""
    return connect(path, "mode=ro" if has_log(path) else "mode=ro&immutable=1")


def connect(path: Path, how: str) -> sqlite3.Connection:
    """Open a file as SQLite's URI parameters say (sqlite.org/uri.html), in autocommit mode.

    Raises:
        sqlite3.Error: it can't be opened.
    """
    return sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True, isolation_level=None)


def see_older(db: sqlite3.Connection) -> None:
    """Let a connection that reads see a store of an older version as one of this version.

    Raises:
        sqlite3.Error: it can't be read.
    """
    if db.execute("PRAGMA user_version").fetchone()[0] < SCHEMA_VERSION:
        db.execute(query("see_version_2"))
        db.execute(query("see_told_again"))


# --- what is wrong


def unusable(path: Path, what: str, error: OSError | sqlite3.Error | UnicodeDecodeError) -> StoreError:
    """Make the error of a store that can't be made, opened or read (`what`), with what to do about it.

    A name that leads nowhere and a store that another program has are for the user to change; what else
    keeps a store from being used is its own state, or the disk's: a `StoreWriteError`.
    """
    if isinstance(error, OSError):
        why = error.strerror or str(error)
        if error.errno in _NAMES:
            return StoreError(f"{path} {what}: {why}: name another --store")
        return _of_the_disk(path, what, why, forbidden=error.errno in _FORBIDDEN)
    if is_damage(error):
        return damaged(path, what, error)
    kind = _kind(error)
    if kind in _BUSY:
        advice = "end what else has it open, and run the same command again"
        return StoreLockedError(f"{path} {what}: {error}: {advice}")
    return _of_the_disk(path, what, str(error), forbidden=kind in _CLOSED)


def is_damage(error: sqlite3.Error | UnicodeDecodeError) -> bool:
    """Say whether SQLite is at odds with what stands in the store, and not with the disk or the user."""
    return _kind(error) not in (*_BUSY, *_DISK, *_CLOSED)


def damaged(path: Path, what: str, why: str | Exception) -> StoreWriteError:
    """Make the error of a store whose contents are not what was written."""
    if isinstance(why, UnicodeDecodeError):
        why = why.object.decode(errors="replace")
    return StoreWriteError(
        f"{path} {what}: {why}: the store is damaged: move it and {path.name}-wal away, and restore a copy "
        "or begin anew (batcher status JOB --verify says what is damaged)"
    )


def _of_the_disk(path: Path, what: str, why: str, *, forbidden: bool) -> StoreWriteError:
    see_to = "its permissions, and its folder's," if forbidden else "the disk"
    return StoreWriteError(f"{path} {what}: {why}: see to {see_to} and run the same command again")


def _kind(error: Exception) -> int:
    """Return the primary code; extended ones have it in their lowest byte. What Python says has none: 0."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


# --- the lock


def lock(path: Path) -> FileLock:
    """Take the store for this process; the kernel gives it back when the process ends, however it ends.

    Raises:
        StoreLockedError: another process has it.
        StoreWriteError: the lock file can't be written.
    """
    held = FileLock(beside(path, ".lock"), blocking=False, mode=0o600)
    try:
        held.acquire()
    except Timeout:
        pid = _pid(path)
        message = f"{path} is in use by process {pid}: wait until it ends, or stop it (kill -INT {pid})"
        raise StoreLockedError(message) from None
    except OSError as error:
        raise unusable(Path(f"{path}.lock"), "can't be written", error) from error
    return held


def is_locked(path: Path) -> bool:
    """Say whether a run has the store; nothing is made or changed."""
    try:
        with beside(path, ".lock").open("rb") as file:
            # Shared, and given back at once: a run that takes it within these microseconds is refused.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _pid(path: Path) -> object:
    try:
        with closing(connect(path, "mode=ro")) as db:
            return db.execute(query("read_job")).fetchone()[2]
    except (sqlite3.Error, TypeError):
        return "(unknown)"
