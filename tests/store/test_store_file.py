"""The store as a file: made with care, recognised, locked; what is not one stays byte for byte as it was."""

import errno
import os
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing

import pytest

from batcher.errors import StoreError, StoreLockedError, StoreWriteError
from batcher.store import file, reader
from batcher.store.catalogue import APPLICATION_ID, OLDEST_VERSION, SCHEMA_VERSION
from batcher.store.journal import Journal, Opening
from batcher.testing import VirtualClock, inline_connection, run

URL = "http://localhost/v1"


def open_journal(path):
    async def main():
        journal = await Journal.open(Opening(path=path, base_url=URL), VirtualClock(), inline_connection)
        await journal.close()

    run(main, VirtualClock())


def text(path):
    path.write_text('{"custom_id": "a"}\n' * 20)


def short(path):
    path.write_bytes(b"x")


def other_database(path):
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE theirs (x)")


def other_application(path):
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA application_id = 7")
        db.execute("CREATE TABLE theirs (x)")


def newer(path):
    file.make(path, "space", URL, 1.0)
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")


def older(path):
    file.make(path, "space", URL, 1.0)
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {OLDEST_VERSION - 1}")


def truncated_header(path):
    path.write_bytes(b"SQLite format 3\x00")


FOREIGN = {
    text: "is not a batcher store: name another --store, or move this file away",
    short: "is not a batcher store",
    other_database: "is not a batcher store",
    other_application: "is not a batcher store",
    truncated_header: "is not a batcher store",
    older: rf"written by an older batcher \(store version {OLDEST_VERSION - 1}\): name another --store",
    newer: rf"written by a newer batcher \(store version {SCHEMA_VERSION + 1}\): upgrade batcher-openai",
}


def folder_of(path):
    return {each.name: each.read_bytes() for each in path.parent.iterdir()}


@pytest.mark.parametrize("make", FOREIGN, ids=lambda make: make.__name__)
def test_what_is_not_our_store_is_refused_and_untouched(tmp_path, make):
    path = tmp_path / "job.db"
    make(path)
    path.chmod(0o644)
    before, modified = folder_of(path), path.stat().st_mtime_ns
    for opener in (open_journal, reader.read, lambda path: list(reader.rows(path, "results"))):
        with pytest.raises(StoreError, match=FOREIGN[make]) as caught:
            opener(path)
        assert str(path) in str(caught.value)
        assert caught.value.exit_code == 2
    assert folder_of(path) == before
    assert path.stat().st_mtime_ns == modified
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_directory_is_refused(tmp_path):
    for opener in (open_journal, reader.read):
        with pytest.raises(StoreError, match="is a directory: --store needs a file"):
            opener(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_refused_and_not_made(tmp_path):
    with pytest.raises(StoreError, match="does not exist: make it, or name another --store"):
        open_journal(tmp_path / "missing" / "job.db")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_fails_to_be_read_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "job.db"
    text(path)
    before = folder_of(path)

    def refuse(*_args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(StoreError, match=r"job\.db can't be read: Permission denied"):
        open_journal(path)
    monkeypatch.undo()
    assert folder_of(path) == before


def test_a_folder_that_can_not_be_written_is_refused(tmp_path, monkeypatch):
    def refuse(*_args, **_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(
        StoreError, match=r"job\.db(\.lock can't be written|can't be made): Permission denied"
    ):
        open_journal(tmp_path / "job.db")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_no_fault_of_the_store(tmp_path, monkeypatch, number):
    def refuse(*_args, **_options):
        raise OSError(number, os.strerror(number))

    path = tmp_path / "job.db"
    monkeypatch.setattr(os, "open", refuse)
    for make, name in (
        (lambda: file.make(path, "space", URL, 1.0), path),
        (lambda: file.lock(path), f"{path}.lock"),
    ):
        with pytest.raises(StoreWriteError) as caught:
            make()
        assert caught.value.exit_code == 3
        assert str(caught.value).startswith(f"{name} can't be ")
        assert str(caught.value).endswith(": see to the disk and run the same command again")


def test_a_disk_that_fills_while_the_store_is_made_leaves_none(tmp_path, monkeypatch):
    path = tmp_path / "job.db"

    def small(*args, **options):
        db = sqlite3.Connection(*args, **options)
        db.execute("PRAGMA max_page_count = 2")  # then SQLite says what it says of a full disk
        return db

    monkeypatch.setattr(sqlite3, "connect", small)
    with pytest.raises(StoreWriteError, match="can't be made: database or disk is full: see to the disk"):
        file.make(path, "space", URL, 1.0)
    monkeypatch.undo()
    assert file.is_new(path)
    open_journal(path)


def sqlite_error(code, text):
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("error", "kind", "advice"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), StoreWriteError, "see to its permissions"),
        (OSError(errno.EROFS, "Read-only file system"), StoreWriteError, "see to its permissions"),
        (OSError(errno.EIO, "Input/output error"), StoreWriteError, "see to the disk"),
        (OSError(errno.ENAMETOOLONG, "File name too long"), StoreError, "name another --store"),
        (OSError(errno.ELOOP, "Too many levels"), StoreError, "name another --store"),
        (sqlite_error(sqlite3.SQLITE_FULL, "full"), StoreWriteError, "see to the disk"),
        (sqlite_error(sqlite3.SQLITE_IOERR_WRITE, "disk I/O error"), StoreWriteError, "see to the disk"),
        (sqlite_error(sqlite3.SQLITE_CANTOPEN, "unable"), StoreWriteError, "see to its permissions"),
        (sqlite_error(sqlite3.SQLITE_READONLY_DBMOVED, "readonly"), StoreWriteError, "its permissions"),
        (sqlite_error(sqlite3.SQLITE_BUSY_SNAPSHOT, "locked"), StoreLockedError, "end what else has it open"),
        (sqlite_error(sqlite3.SQLITE_CORRUPT, "malformed"), StoreWriteError, "the store is damaged: move"),
        (sqlite_error(sqlite3.SQLITE_ERROR, "no such table: job"), StoreWriteError, "the store is damaged"),
        (sqlite3.DatabaseError("malformed"), StoreWriteError, "the store is damaged"),
    ],
    ids=str,
)
def test_what_is_wrong_says_what_to_do(tmp_path, error, kind, advice):
    found = file.unusable(tmp_path / "job.db", "can't be opened", error)
    assert (type(found), found.exit_code) == (kind, 3 if kind is StoreWriteError else 2)
    assert str(found).startswith(
        f"{tmp_path / 'job.db'} can't be opened: {getattr(error, 'strerror', error)}: "
    )
    assert advice in str(found)


def test_reading_what_does_not_exist_is_refused_and_makes_nothing(tmp_path):
    for opener in (reader.read, lambda path: list(reader.rows(path, "errors"))):
        with pytest.raises(StoreError, match="does not exist: nothing of this job has run yet"):
            opener(tmp_path / "job.db")
    assert list(tmp_path.iterdir()) == []


def test_a_store_is_its_owners_alone(tmp_path):
    path = tmp_path / "job.db"
    mask = os.umask(0)
    try:
        open_journal(path)
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "job.db.lock").stat().st_mode) == 0o600


def test_a_store_says_what_it_is_in_its_own_header(tmp_path):
    path = tmp_path / "job.db"
    open_journal(path)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
        assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_an_empty_file_becomes_a_store(tmp_path):
    path = tmp_path / "job.db"
    path.touch()
    with pytest.raises(StoreError, match="nothing of this job has run yet"):
        reader.read(path)
    open_journal(path)
    assert reader.read(path).base_url == URL


def test_a_store_is_made_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "job.db"
    monkeypatch.setattr(file, "script", lambda _: ["CREATE TABLE job (id);", "CREATE TABLE broken (;"])
    with pytest.raises(StoreError, match="can't be made"):
        open_journal(path)
    monkeypatch.undo()
    open_journal(path)
    assert reader.read(path).done == 0


def test_a_damaged_store_is_refused(tmp_path):
    path = tmp_path / "job.db"
    open_journal(path)
    content = path.read_bytes()
    path.write_bytes(content[:100] + b"\xff" * (len(content) - 100))
    with pytest.raises(StoreError, match=r"job\.db can't be opened: "):
        open_journal(path)
    with pytest.raises(StoreError, match=r"job\.db can't be read: "):
        reader.read(path)


HOLDER = """
import sys
from pathlib import Path
from batcher.store.journal import Journal, Opening
from batcher.testing import VirtualClock, inline_connection, run

async def main():
    opening = Opening(path=Path(sys.argv[1]), base_url="http://localhost/v1")
    journal = await Journal.open(opening, VirtualClock(), inline_connection)
    print("open", flush=True)
    sys.stdin.read()
    await journal.close()

run(main, VirtualClock())
"""


def test_a_second_process_is_refused_with_the_first_ones_pid_and_the_kernel_gives_the_lock_back(tmp_path):
    path = tmp_path / "job.db"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        try:
            assert holder.stdout.readline() == b"open\n"
            with pytest.raises(
                StoreLockedError, match=f"is in use by process {holder.pid}: wait .*kill -INT"
            ):
                open_journal(path)
            # reading goes on beside it
            assert reader.read(path).done == 0
        finally:
            holder.kill()
    open_journal(path)
