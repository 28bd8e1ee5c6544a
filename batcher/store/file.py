"""The store as a file: made, recognised, locked, opened."""

import errno
import os
import sqlite3
from contextlib import closing
from pathlib import Path

from filelock import FileLock, Timeout

from batcher.errors import StoreError, StoreLockedError, StoreWriteError
from batcher.store.catalogue import APPLICATION_ID, SCHEMA_VERSION, query, schema

_MAGIC = b"SQLite format 3\x00"
#: What the system says when a disk, or the user's share of it, is full.
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_new(path: Path) -> bool:
    """Say whether there is no store yet: no file, or an empty one. Refuse, untouched, what is not a store.

    Raises:
        StoreError: it is a directory, not ours, of another version, or can't be read.
    """
    if path.exists() and not path.is_file():
        what = "a directory" if path.is_dir() else "no regular file"
        raise StoreError(f"{path} is {what}: --store needs a file")
    try:
        with path.open("rb") as file:
            header = file.read(100)
    except FileNotFoundError:
        if not path.parent.is_dir():
            message = f"the folder {path.parent} does not exist: make it, or name another --store"
            raise StoreError(message) from None
        return True
    except OSError as error:
        message = f"{path} can't be read: {error.strerror}"
        raise StoreError(message) from error
    if not header:
        return True
    # Read from the header as bytes (its layout: sqlite.org/fileformat2.html), so that nothing is touched.
    version, application = (int.from_bytes(header[at : at + 4]) for at in (60, 68))
    if not header.startswith(_MAGIC) or application != APPLICATION_ID:
        message = f"{path} is not a batcher store: name another --store, or move this file away"
        raise StoreError(message)
    if version > SCHEMA_VERSION:
        message = f"{path} was written by a newer batcher (store version {version}): upgrade batcher-openai"
        raise StoreError(message)
    if version < SCHEMA_VERSION:
        message = f"{path} was written by an older batcher (store version {version}): name another --store"
        raise StoreError(message)
    return False


def make(path: Path, namespace: str, base_url: str, created_at: float) -> None:
    """Make an empty store that only its owner may read (mode 0600), complete or not at all.

    Raises:
        StoreError: the folder can't be written.
        StoreWriteError: the disk is full.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        # The rollback journal, not yet the WAL: the header that names the file as ours must be in the file
        # itself as soon as there is anything in it.
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("BEGIN EXCLUSIVE")
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            for statement in _statements(schema()):
                db.execute(statement)
            db.execute(query("make_job"), (namespace, base_url, created_at))
            db.execute("COMMIT")
    except (OSError, sqlite3.Error) as error:
        raise unusable(path, "can't be made", error) from error


def unusable(path: Path, what: str, error: OSError | sqlite3.Error) -> StoreError:
    """Make the error of a store that can't be made or opened: the disk's where it is full, or its own."""
    if isinstance(error, OSError):
        is_full, why = error.errno in _DISK_FULL, error.strerror
    else:
        # Extended codes have the kind of error in their lowest byte. The WAL's index on a full disk is an
        # I/O error.
        kind = getattr(error, "sqlite_errorcode", 0) & 0xFF
        is_full, why = kind in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR), str(error)
    if is_full:
        return StoreWriteError(f"{path} {what}: {why}: see to the disk and run the same command again")
    return StoreError(f"{path} {what}: {why}")


def _statements(script: str) -> list[str]:
    """Split a script: `executescript` would end the transaction that makes it all or nothing."""
    statements, start = [], 0
    for end, character in enumerate(script, 1):
        if character == ";" and sqlite3.complete_statement(script[start:end]):
            statements.append(script[start:end])
            start = end
    return statements


def lock(path: Path) -> FileLock:
    """Take the store for this process; the kernel gives it back when the process ends, however it ends.

    Raises:
        StoreLockedError: another process has it.
        StoreError: the lock file can't be written.
        StoreWriteError: the disk is full.
    """
    # By whatever name it is called: two locks on one store would be none.
    held = FileLock(f"{os.path.realpath(path)}.lock", blocking=False, mode=0o600)
    try:
        held.acquire()
    except Timeout:
        pid = _pid(path)
        message = f"{path} is in use by process {pid}: wait until it ends, or stop it (kill -INT {pid})"
        raise StoreLockedError(message) from None
    except OSError as error:
        raise unusable(Path(f"{path}.lock"), "can't be written", error) from error
    return held


def _pid(path: Path) -> object:
    try:
        with closing(open_reader(path)) as db:
            return db.execute(query("read_job")).fetchone()[2]
    except (sqlite3.Error, StoreError, TypeError):
        return "(unknown)"


def open_reader(path: Path) -> sqlite3.Connection:
    """Open a store for reading only, also beside a running job.

    Raises:
        StoreError: there is none, or it is not ours.
    """
    if is_new(path):
        message = f"{path} does not exist: nothing of this job has run yet"
        raise StoreError(message)
    try:
        return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
    except sqlite3.Error as error:
        message = f"{path} can't be opened: {error}"
        raise StoreError(message) from error
