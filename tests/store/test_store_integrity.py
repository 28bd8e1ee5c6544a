"""What is left of a store when its files are torn, cut, garbled or half made, and what reading does to them.

The files are those of a process that died in the middle of a job: copied before it could close them.
"""

import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from hashlib import blake2b
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batcher.errors import BatcherError, StoreError, StoreLockedError, StoreWriteError
from batcher.request import Attempt, Outcome, Request, Row, Settlement, Try
from batcher.store import file, reader
from batcher.store.journal import Journal, Opening
from batcher.testing import VirtualClock, inline_connection, run

URL = "http://localhost/v1"
NAMES = [f"r{number}" for number in range(1, 61)]
GROUP = 6


def rows_of(names):
    return [
        Row(seq, blake2b(name.encode(), digest_size=16).digest(), name) for seq, name in enumerate(names, 1)
    ]


async def settle(journal, rows):
    """Claim and answer some rows: two commits."""
    tries = [
        Try(Request((row,), f"key-{row.custom_id}", "shared", "m", "/v1/embeddings", b"{}", 10, 100))
        for row in rows
    ]
    await journal.settle(
        [
            Settlement(
                Attempt(each.id, "yes", 2.0, 1.0, 200, None, "req", 7, 2, 3, 5),
                (Outcome(each.request.rows[0], "done", each.id, 200, "req", b'{"text":"%d"}' % each.id),),
            )
            for each in await journal.claim(tries)
        ]
    )


def live(path, names=NAMES, groups=None, at_end=lambda: None):
    """Run a job, or some groups of it; return what was fresh. `at_end` sees the files as a crash does."""

    async def main():
        journal = await Journal.open(Opening(path=path, base_url=URL), VirtualClock(), inline_connection)
        try:
            await journal.recent(60.0, 0.1)
            fresh = list(await journal.fresh(rows_of(names)))
            await journal.end_of_file(len(names))
            for start in range(0, len(fresh), GROUP)[:groups]:
                await settle(journal, fresh[start : start + GROUP])
            at_end()
        finally:
            await journal.close()
        return [row.custom_id for row in fresh]

    return run(main, VirtualClock())


def contents(folder):
    return {each.name: each.read_bytes() for each in sorted(folder.iterdir()) if each.suffix != ".lock"}


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """The files of a process that died when it had settled five groups and claimed nothing more."""
    folder = tmp_path_factory.mktemp("left")
    found = {}
    live(folder / "job.db", groups=5, at_end=lambda: found.update(contents(folder)))
    assert set(found) == {"job.db", "job.db-wal", "job.db-shm"}
    return found


@pytest.fixture(scope="module")
def closed(tmp_path_factory):
    """The file of a process that had settled as much, and closed it."""
    folder = tmp_path_factory.mktemp("closed")
    live(folder / "job.db", groups=5)
    found = contents(folder)
    assert set(found) == {"job.db"}
    return found


@pytest.fixture
def put(tmp_path_factory):
    """Return a function that writes such files into a folder of their own, and names the store."""

    def write(files):
        folder = tmp_path_factory.mktemp("store")
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return folder / "job.db"

    return write


def answered(path):
    return [row[1] for row in reader.rows(path, "results")]


examples = settings(max_examples=60, suppress_health_check=list(HealthCheck))


# --- a torn log


def finish(path):
    """Check that a store with a torn log is that of some moment; finish its job; return what was done."""
    before = answered(path)
    assert before == NAMES[: len(before)]
    assert len(before) % GROUP == 0
    assert live(path) == NAMES[len(before) :]
    assert answered(path) == NAMES
    assert reader.check(path) == []
    return len(before)


@pytest.mark.parametrize("index", [True, False], ids=["with its index", "without its index"])
def test_a_log_that_is_cut_anywhere_loses_only_what_follows(left, put, index):
    whole = len(left["job.db-wal"])
    kept = {}

    @given(st.integers(0, whole))
    @examples
    def check(cut):
        files = left if index else {name: left[name] for name in ("job.db", "job.db-wal")}
        kept[cut] = finish(put({**files, "job.db-wal": left["job.db-wal"][:cut]}))

    check()
    assert finish(put(left)) == 5 * GROUP
    cuts = sorted(kept)
    assert [kept[cut] for cut in cuts] == sorted(kept.values())
    assert kept[cuts[-1]] > 0 or cuts[-1] < whole


def test_a_log_that_is_garbled_anywhere_loses_only_what_follows(left, put):
    log = left["job.db-wal"]

    @given(st.integers(0, len(log) - 1), st.integers(1, 255), st.booleans())
    @examples
    def check(at, flips, index):
        garbled = log[:at] + bytes([log[at] ^ flips]) + log[at + 1 :]
        files = left if index else {"job.db": left["job.db"]}
        finish(put({**files, "job.db-wal": garbled}))

    check()


@pytest.mark.parametrize("emptied", [True, False])
def test_a_log_whose_store_is_gone_is_not_thrown_away(left, put, emptied):
    files = {**left, "job.db": b""}
    if not emptied:
        del files["job.db"]
    path = put(files)
    for opener in (live, reader.read):
        with pytest.raises(StoreWriteError, match=r"something in its log .*job\.db-wal") as caught:
            opener(path)
        assert caught.value.exit_code == 3
    assert contents(path.parent) == files


# --- a damaged file


def readings(path):
    """Everything that only reads."""
    yield lambda: reader.read(path)
    yield lambda: reader.past_key_ttl(path, 1.0, 1.0)
    yield lambda: reader.check(path)
    for name in ("results", "errors", "attempts_log"):
        yield lambda name=name: list(reader.rows(path, name))


def meet(path):
    """Use a damaged store in every way: it works, or one line says why it does not."""
    before = contents(path.parent)
    for reading in readings(path):
        with suppress(StoreError):
            reading()
        assert contents(path.parent) == before
    try:
        live(path)
    except BatcherError as error:
        refused = error
    else:
        return
    if "can't be opened" in str(refused):
        # An index beside the log is nothing of the store's.
        after = {name: content for name, content in contents(path.parent).items() if name in before}
        assert {**after, "job.db-shm": b""} == {**before, "job.db-shm": b""}
        assert "is damaged: move it and job.db-wal away" in str(refused)
        assert refused.exit_code == 3


DAMAGED = pytest.mark.parametrize("kind", ["left", "closed"])


@DAMAGED
def test_a_file_that_is_cut_anywhere_works_or_is_refused_untouched(kind, put, request):
    files = request.getfixturevalue(kind)

    @given(st.integers(100, len(files["job.db"]) - 1))
    @examples
    def check(cut):
        path = put({**files, "job.db": files["job.db"][:cut]})
        meet(path)
        if kind == "closed":
            with pytest.raises(StoreWriteError, match="is damaged"):
                live(path)

    check()


@DAMAGED
def test_a_file_that_is_garbled_anywhere_works_or_is_refused_untouched(kind, put, request):
    files = request.getfixturevalue(kind)
    whole = files["job.db"]
    blocks = st.one_of(
        st.binary(min_size=1, max_size=1), st.binary(min_size=1, max_size=40), st.just(bytes(4096))
    )

    @given(st.integers(100, len(whole) - 1), blocks)
    @examples
    def check(at, block):
        meet(put({**files, "job.db": (whole[:at] + block + whole[at + len(block) :])[: len(whole)]}))

    check()


def zeroed(path, table):
    """Wipe the first page of a table."""
    with closing(sqlite3.connect(path)) as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,)).fetchone()
        (size,) = db.execute("PRAGMA page_size").fetchone()
    whole = path.read_bytes()
    path.write_bytes(whole[: (page - 1) * size] + bytes(size) + whole[page * size :])


def test_what_is_damaged_is_refused_and_the_rest_can_still_be_read(closed, put):
    path = put(closed)
    zeroed(path, "attempts")
    before = contents(path.parent)
    for opener in (live, reader.read, lambda path: list(reader.rows(path, "attempts_log"))):
        with pytest.raises(StoreWriteError, match="the store is damaged: move it and job"):
            opener(path)
    assert answered(path) == NAMES[: 5 * GROUP]
    assert reader.check(path) == ["the table attempts can't be read: database disk image is malformed"]
    assert contents(path.parent) == before


def test_types_that_do_not_fit_are_damage(closed, put):
    path = put(closed)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA writable_schema = ON")
        db.execute("UPDATE sqlite_schema SET sql = replace(sql, ') STRICT', ')')")
        db.execute("PRAGMA writable_schema = RESET")
        db.execute("UPDATE rows SET custom_id = x'00' WHERE id = 2")
        db.execute("UPDATE job SET namespace = x'00'")
    with pytest.raises(StoreWriteError, match=r"can't be read: Expected `str`, got `bytes`.* is damaged"):
        answered(path)
    for opener, what in ((reader.read, "read"), (live, "opened")):
        with pytest.raises(StoreWriteError, match=f"can't be {what}: Expected `str`, got `bytes`.*damaged"):
            opener(path)


def test_an_error_that_can_not_be_decoded_is_damage(closed, put):
    path = put({"job.db": closed["job.db"].replace(b"CREATE TABLE job (", b"CREATE TABLE \xc5\xff\xff (", 1)})
    for opener in (reader.read, live):
        with pytest.raises(StoreWriteError, match=r"malformed database schema.*is damaged"):
            opener(path)


def test_a_schema_that_only_a_writer_reads_is_looked_at_before_the_log_is_touched(left, put):
    files = {**left, "job.db": left["job.db"].replace(b"CHECK (id = 1)", b"CHECK (ix = 1)", 1)}
    assert files != left
    path = put(files)
    with pytest.raises(StoreWriteError, match="no such column: ix: the store is damaged"):
        live(path)
    after = contents(path.parent)
    assert (after["job.db"], after["job.db-wal"]) == (files["job.db"], files["job.db-wal"])


def error_of(code, message="it says why"):
    error = sqlite3.OperationalError(message)
    error.sqlite_errorcode = code
    return error


DISK = (StoreWriteError, 3, ": see to the disk and run the same command again")
RIGHTS = (StoreWriteError, 3, ": see to its permissions, and its folder's, and run the same command again")
DAMAGE = (
    StoreWriteError,
    3,
    ": the store is damaged: move it and job.db-wal away, and restore a copy or begin",
)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (error_of(sqlite3.SQLITE_FULL), DISK),
        (error_of(sqlite3.SQLITE_IOERR_WRITE), DISK),
        (OSError(28, "it says why"), DISK),
        (OSError(5, "it says why"), DISK),
        (OSError(116, "it says why"), DISK),
        (error_of(sqlite3.SQLITE_READONLY_DIRECTORY), RIGHTS),
        (error_of(sqlite3.SQLITE_CANTOPEN), RIGHTS),
        (PermissionError(13, "it says why"), RIGHTS),
        (OSError(30, "it says why"), RIGHTS),
        (error_of(sqlite3.SQLITE_CORRUPT_INDEX), DAMAGE),
        (error_of(sqlite3.SQLITE_NOTADB), DAMAGE),
        (error_of(sqlite3.SQLITE_CONSTRAINT_UNIQUE), DAMAGE),
        (sqlite3.OperationalError("it says why"), DAMAGE),
        (
            error_of(sqlite3.SQLITE_BUSY_SNAPSHOT),
            (StoreLockedError, 2, ": end what else has it open, and run"),
        ),
        (OSError(36, "it says why"), (StoreError, 2, ": name another --store")),
    ],
    ids=repr,
)
def test_what_keeps_a_store_from_being_used_says_whose_it_is_and_what_to_do(error, expected):
    found = file.unusable(Path("job.db"), "can't be opened", error)
    kind, code, advice = expected
    assert (type(found), found.exit_code) == (kind, code)
    assert str(found).startswith(f"job.db can't be opened: it says why{advice}")


# --- half made


def spilling(kept):
    """Return a connection that writes pages into the file before it commits, and keeps the files then."""

    class Spilling(sqlite3.Connection):
        def execute(self, sql, values=()):
            if sql.startswith("BEGIN"):
                super().execute("PRAGMA cache_size = 1")
            if sql == "COMMIT":
                (path,) = [row[2] for row in super().execute("PRAGMA database_list")]
                kept.update(contents(Path(path).parent))
            return super().execute(sql, values)

    return Spilling


def test_a_store_whose_maker_died_is_made_anew(tmp_path, put, monkeypatch):
    kept = {}
    real = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **how: real(*args, **how, factory=spilling(kept)))
    file.make(tmp_path / "job.db", "space", URL, 1.0)
    monkeypatch.undo()
    # Pages are written in their order.
    whole = (tmp_path / "job.db").read_bytes()
    for pages in range(len(whole) // 4096 + 1):
        files = {"job.db": whole[: pages * 4096], "job.db-journal": kept["job.db-journal"]}
        path = put(files)
        with pytest.raises(StoreError, match="nothing of this job has run yet"):
            reader.read(path)
        assert contents(path.parent) == files
        assert live(path) == NAMES
        assert reader.check(path) == []


def test_a_store_that_a_process_died_in_before_it_had_a_log_is_whole_again(tmp_path, put):
    file.make(tmp_path / "job.db", "space", URL, 1.0)
    kept = {}
    with closing(sqlite3.connect(tmp_path / "job.db", isolation_level=None, factory=spilling(kept))) as db:
        db.execute("BEGIN")
        for number in range(200):
            db.execute(f"CREATE TABLE t{number} (x)")
        db.execute("COMMIT")
    assert len(kept["job.db-journal"]) > 512
    path = put(kept)
    assert live(path) == NAMES
    assert reader.read(path).namespace == "space"
    assert reader.check(path) == []


# --- reading


@pytest.mark.parametrize("missing", [(), ("job.db-shm",)])
def test_reading_what_a_crash_left_changes_nothing_of_it(left, put, missing):
    files = {name: content for name, content in left.items() if name not in missing}
    path = put(files)
    assert reader.read(path).done == 5 * GROUP
    assert answered(path) == NAMES[: 5 * GROUP]
    assert reader.check(path) == []
    assert contents(path.parent) == files


def test_reading_what_was_closed_makes_nothing_beside_it(closed, put):
    path = put(closed)
    assert reader.read(path).done == 5 * GROUP
    assert reader.check(path) == []
    assert contents(path.parent) == closed


@pytest.mark.parametrize("closed", [True, False])
def test_a_store_that_changes_while_it_is_read_is_read_anew(tmp_path, closed):
    path, names = tmp_path / "job.db", [f"r{number}" for number in range(1, 1201)]
    live(path, names, groups=100)
    rows = reader.rows(path, "results")
    read = [next(rows)[1]]
    # What is done since is seen by the next read: in the log, or when it has been moved to the file.
    fresh = live(path, names, at_end=lambda: None if closed else read.extend(row[1] for row in rows))
    read += [row[1] for row in rows]
    assert (len(fresh), read) == (600, names)


def test_a_log_without_its_index_that_has_no_room_for_a_copy_says_so(left, put, monkeypatch, tmp_path):
    path = put({name: left[name] for name in ("job.db", "job.db-wal")})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    says = "a log without its index, and can't be copied to a temporary folder to be read: No space left on"
    with pytest.raises(StoreWriteError, match=says):
        reader.read(path)
    assert list(tmp_path.iterdir()) == []


def test_a_log_can_be_emptied_while_an_export_is_half_way(tmp_path):
    path, names = tmp_path / "job.db", [f"r{number}" for number in range(1, 1201)]

    async def main():
        journal = await Journal.open(Opening(path=path, base_url=URL), VirtualClock(), inline_connection)
        fresh = await journal.fresh(rows_of(names))
        await settle(journal, fresh[:800])
        rows = reader.rows(path, "results")
        read = [next(rows)[1]]
        log = path.with_name("job.db-wal")
        with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as other:
            busy, frames, moved = other.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
        assert (busy, moved) == (0, frames)
        size = log.stat().st_size
        await settle(journal, fresh[800:1000])
        assert log.stat().st_size == size  # written from its beginning
        read += [row[1] for row in rows]
        await journal.close()
        return read

    assert run(main, VirtualClock()) == names[:1000]


READ = """
import sys
from pathlib import Path
from batcher.store import reader
print(reader.read(Path(sys.argv[1])).base_url)
"""


def test_a_run_that_has_committed_but_once_can_be_read_beside(closed, put):
    path = put(closed)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE job SET base_url = 'http://new/v1'")
        assert path.with_name("job.db-wal").stat().st_size
        read = subprocess.run(
            [sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=True
        )
    assert read.stdout == "http://new/v1\n"


def test_another_program_that_keeps_the_store_to_itself_is_told_from_damage(closed, put, monkeypatch):
    path = put(closed)
    real = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **how: real(*args, **{"timeout": 0, **how}))
    with closing(real(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="database is locked") as caught:
            live(path)
    assert "damaged" not in str(caught.value)
    live(path)


def test_who_has_the_lock_can_be_asked_without_taking_it(tmp_path):
    path = tmp_path / "job.db"
    assert not file.is_locked(path)
    assert list(tmp_path.iterdir()) == []
    held = file.lock(path)
    assert file.is_locked(path)
    held.release()
    assert not file.is_locked(path)
    file.lock(path).release()


def test_a_store_goes_by_the_name_of_its_file_wherever_it_is_linked(left, put, tmp_path):
    path = put(left)
    link = tmp_path / "link.db"
    link.symlink_to(path)
    assert file.has_log(link)
    assert reader.read(link).done == 5 * GROUP
    assert list(tmp_path.iterdir()) == [link]
