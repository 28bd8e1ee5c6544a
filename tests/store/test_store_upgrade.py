"""A store of an older version: read as it is, brought up to date once, and finished.

`stores/version-2.db` is what a batcher of store version 2 (commit eaa2cea) left of `stores/version-2.jsonl`.
It ran at most once, with one attempt a row and one request at a time, against its own simulator, which met
requests 2 to 5 with a 400, a 500, a lost answer and silence; in that silence it was killed. Then what was in
the log was moved into the file.
"""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import orjson
import pytest

import batcher as library
from batcher import results
from batcher.errors import StoreWriteError
from batcher.job import World, run_job
from batcher.options import Options
from batcher.store import file, reader
from batcher.store.catalogue import OLDEST_VERSION, SCHEMA_VERSION, script
from batcher.store.journal import Journal, Opening
from batcher.testing import MemoryTransport, VirtualClock, answer, inline_connection, run

STORES = Path(__file__).parent / "stores"
URL = "http://127.0.0.1:8351/v1"
TABLES = ("job", "rows", "attempts", "settlements", "outcomes")
NAMES = [
    *("done", "refused", "row-3", "exhausted", "in-doubt", "in-flight", "pending", "pending-too", "row-9")
]


#: What is beside the file: nothing, a log as after a kill, or a log that was copied without its index.
BESIDE = {"closed": (), "killed": ("-wal", "-shm"), "copied": ("-wal",)}


@pytest.fixture(params=BESIDE)
def job(request, tmp_path):
    """Return the job file, with its store beside it."""
    job = tmp_path / "job.jsonl"
    shutil.copy(STORES / "version-2.jsonl", job)
    shutil.copy(STORES / "version-2.db", store_of(job))
    if beside := BESIDE[request.param]:
        with closing(sqlite3.connect(store_of(job), isolation_level=None)) as db:
            db.execute("UPDATE job SET pid = 7")
            left = folder_of(job)
        write(job, {name: left[name] for name in (job.name, "job.db", *(f"job.db{each}" for each in beside))})
    return job


def store_of(job):
    return job.with_suffix(".db")


def look(job, sql):
    with closing(file.connect(store_of(job), "mode=ro")) as db:
        return db.execute(sql).fetchall()


def version(job):
    return look(job, "PRAGMA user_version")[0][0]


def tables(job):
    return {name: look(job, f"SELECT * FROM {name}") for name in TABLES}


def folder_of(job):
    return {path.name: path.read_bytes() for path in job.parent.iterdir()}


def write(job, files):
    """Let these files be in the job's folder, and nothing else."""
    for path in job.parent.iterdir():
        path.unlink()
    for name, content in files.items():
        (job.parent / name).write_bytes(content)


def upgraded(job):
    """Open the journal and close it."""
    clock = VirtualClock()

    async def main():
        opening = Opening(path=store_of(job), base_url=URL)
        await (await Journal.open(opening, clock, inline_connection)).close()

    run(main, clock)


def go(job, **options):
    """Run the job against a server that answers everything; return the summary and what was sent."""
    clock, transports = VirtualClock(), []

    def transport(*_):
        transports.append(MemoryTransport(answer, clock))
        return transports[0]

    world = World(clock=clock, connect=inline_connection, transport=transport)
    given = Options(job=str(job), base_url=URL, max_inflight=10, **options)
    summary = run(lambda: run_job(given, {"OPENAI_API_KEY": "key"}, world=world), clock)
    sent = {
        each.claimed.request.rows[0].custom_id: each.claimed.request.key for each in transports[0].exchanges
    }
    return summary, sent


def keys(job):
    """Return name -> the key of its attempts."""
    sql = (
        "SELECT custom_id, attempts.key FROM attempts, json_each(attempts.rows) JOIN rows ON rows.id = value"
    )
    return dict(look(job, sql))


def lines(path):
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


# --- to read


def test_status_and_export_read_it_and_leave_it_as_it_is(job, tmp_path_factory):
    before, to = folder_of(job), tmp_path_factory.mktemp("exported")
    status = library.status(job)
    assert (status.rows, status.succeeded, status.failed, status.in_doubt, status.pending) == (9, 1, 3, 1, 4)
    assert status.by_error == {"bad_request": 1, "invalid_line": 1, "reset": 1, "server_error": 1}
    assert (status.cost_usd, status.in_doubt_cost_usd_max) == ("0.00000375", "0.00032425")
    assert status.by_model["gpt-4o-mini"].in_doubt == 2
    store = store_of(job)
    assert results.write_results(store, to / "results.jsonl") == 1
    assert results.write_errors(store, to / "errors.jsonl") == 4
    assert results.write_failed(store, to / "failed.jsonl") == (2, 2)
    assert results.write_attempts(store, to / "log.jsonl") == 5
    assert [line["custom_id"] for line in lines(to / "errors.jsonl")] == NAMES[1:5]
    log = lines(to / "log.jsonl")
    assert [each["custom_ids"] for each in log] == [[name] for name in (NAMES[0], NAMES[1], *NAMES[3:6])]
    assert [each["billed"] for each in log] == ["yes", "no", "no", "maybe", "maybe"]
    assert folder_of(job) == before


def test_what_its_keys_cover_no_longer_is_told(job):
    store = store_of(job)
    ((at,),) = look(job, "SELECT sent_at FROM settlements WHERE billed = 'maybe'")
    assert reader.past_key_ttl(store, at + 10, 10) == 0
    # with what was in flight when its process died
    assert reader.past_key_ttl(store, at + 11, 10) == 2


# --- to upgrade


def test_it_is_brought_up_to_date_once_and_nothing_of_it_is_lost(job):
    before = tables(job)
    upgraded(job)
    assert (version(job), look(job, "PRAGMA integrity_check")) == (SCHEMA_VERSION, [("ok",)])
    after = tables(job)
    *settled, orphan = after["settlements"]
    assert settled == [(*each, 0) for each in before["settlements"]]
    assert orphan[:2] == (5, "maybe")
    for name in ("rows", "attempts", "outcomes"):
        assert after[name] == before[name]
    assert after["job"][0][:4] == before["job"][0][:4]
    upgraded(job)
    assert tables(job) == after


def test_it_is_then_as_one_that_was_made_so(job, tmp_path):
    upgraded(job)
    new = tmp_path / "new.jsonl"
    file.make(store_of(new), "space", URL, 1.0)
    for name in TABLES:
        assert look(job, f"PRAGMA table_xinfo({name})") == look(new, f"PRAGMA table_xinfo({name})")
    others = "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE type <> 'table' ORDER BY name"
    assert look(job, others) == look(new, others)
    with (
        closing(sqlite3.connect(store_of(job))) as db,
        pytest.raises(sqlite3.IntegrityError, match="CHECK constraint failed: replayed"),
    ):
        db.execute("UPDATE settlements SET replayed = 2")


def test_the_next_run_finishes_it_under_the_same_keys(job):
    before = keys(job)
    summary, sent = go(job)
    assert list(sent) == ["exhausted", "in-flight", "pending", "pending-too", "row-9"]
    assert {name: sent[name] for name in ("exhausted", "in-flight")} == {
        name: before[name] for name in ("exhausted", "in-flight")
    }
    assert (summary.stopped, summary.exit_code, summary.already_done) == (None, 1, 4)
    assert (summary.succeeded, summary.failed, summary.in_doubt, summary.pending) == (6, 2, 1, 0)
    assert summary.by_model["gpt-4o-mini"].in_doubt == 2
    summary, sent = go(job, retry_failed=True, retry_in_doubt=True)
    assert sent == {name: before[name] for name in ("refused", "in-doubt")}
    assert (summary.succeeded, summary.failed, summary.in_doubt) == (8, 1, 0)
    done = [line["custom_id"] for line in lines(job.with_suffix(".results.jsonl"))]
    assert done == [name for name in NAMES if name != "row-3"]
    assert go(job)[1] == {}


def test_at_most_once_what_was_in_flight_is_in_doubt(job):
    summary, sent = go(job, delivery="at-most-once")
    assert list(sent) == ["exhausted", "pending", "pending-too", "row-9"]
    assert (summary.succeeded, summary.failed, summary.in_doubt) == (5, 2, 2)


# --- where that fails


class Counted(sqlite3.Connection):
    """Counts the statements of all its like, and does something before one of them."""

    statements = ()
    at = 0

    def execute(self, sql, *values):
        Counted.statements.append(sql)
        if len(Counted.statements) == Counted.at:
            self.before()
        return super().execute(sql, *values)

    def before(self):
        raise NotImplementedError


def upgrading(job, monkeypatch, at=0, before=None):
    """Upgrade, and before statement `at` do this; return the statements."""
    real = sqlite3.connect
    with monkeypatch.context() as patch:
        for name, value in (("statements", []), ("at", at), ("before", before)):
            patch.setattr(Counted, name, value)
        patch.setattr(sqlite3, "connect", lambda *args, **how: real(*args, **how, factory=Counted))
        upgraded(job)
        return Counted.statements


def statements_of(job, monkeypatch):
    """Count the statements up to the end of the upgrade; the job stays as it is."""
    before = folder_of(job)
    statements = upgrading(job, monkeypatch)
    write(job, before)
    count = statements.index("COMMIT") + 1
    assert count > len(script("upgrade")) + 2
    return count


def test_a_disk_that_is_full_at_any_statement_leaves_it_as_it_was(job, monkeypatch):
    def full(_db):
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    before = tables(job)
    for at in range(1, statements_of(job, monkeypatch) + 1):
        with pytest.raises(StoreWriteError, match="disk is full: see to the disk and run the same command"):
            upgrading(job, monkeypatch, at, full)
        assert (version(job), tables(job)) == (OLDEST_VERSION, before)
        assert library.status(job).pending == 4
    assert go(job)[0].succeeded == 6


def test_a_disk_without_room_for_it_leaves_it_as_it_was(job, monkeypatch):
    before, real = tables(job), sqlite3.connect

    def small(*args, **how):
        db = real(*args, **how)
        if not how.get("uri"):
            pages = db.execute("PRAGMA page_count").fetchone()[0]
            db.execute(f"PRAGMA max_page_count = {pages}")  # then SQLite says what it says of a full disk
        return db

    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", small)
        with pytest.raises(
            StoreWriteError, match="can't be opened: database or disk is full: see to the disk"
        ):
            upgraded(job)
    assert (version(job), tables(job)) == (OLDEST_VERSION, before)
    assert go(job)[0].succeeded == 6


def test_a_process_that_dies_at_any_statement_of_it_leaves_it_as_it_was(job, monkeypatch):
    before, left = tables(job), []
    whole, count = folder_of(job), statements_of(job, monkeypatch)
    for at in range(1, count + 1):
        write(job, whole)
        upgrading(job, monkeypatch, at, lambda _db: left.append(folder_of(job)))
    assert len(left) == count
    for files in left:
        write(job, files)
        assert library.status(job).pending == 4
        assert (version(job), tables(job)) == (OLDEST_VERSION, before)
        summary, sent = go(job)
        assert (summary.succeeded, len(sent)) == (6, 5)
