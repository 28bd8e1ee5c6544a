"""A store after a crash, on a read-only disk, or damaged: what goes on, and what is refused untouched."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing, contextmanager

import pytest

from batcher.store import reader
from tests.conftest import ended, environment, review_lines, simulator

ROWS = 600
OPTIONS = ("--max-inflight", "50", "--quiet", "--json")


@contextmanager
def read_only(*paths):
    """Take away the right to write."""
    modes = [path.stat().st_mode for path in paths]
    for path, mode in zip(paths, modes, strict=True):
        path.chmod(mode & 0o555)
    try:
        yield
    finally:
        for path, mode in zip(paths, modes, strict=True):
            path.chmod(mode)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def crash(tmp_path_factory):
    """The folder of a run that was killed when half of its rows were done, and the server that it asked."""
    folder = tmp_path_factory.mktemp("crash")
    (folder / "job.jsonl").write_text("".join(json.dumps(row) + "\n" for row in review_lines(ROWS)))
    with simulator("--latency-after", "5-20") as server:
        command = [sys.executable, "-m", "batcher", "run", "job.jsonl", "--base-url", server.base_url]
        process = subprocess.Popen(
            [*command, *OPTIONS], stdout=subprocess.DEVNULL, env=environment(), cwd=folder
        )
        with ended(process):
            server.wait_for(ROWS // 2)
            process.kill()
            process.wait()
        assert (folder / "job.db-wal").stat().st_size > 100_000
        yield folder, server


@pytest.fixture
def left(crash, tmp_path):
    """A copy of that folder for this test."""
    return shutil.copytree(crash[0], tmp_path / "left")


@pytest.fixture
def go_on(crash, batcher):
    """Return a function that runs the job in a folder again."""
    server = crash[1]
    return lambda folder, *more: batcher(
        "run", folder / "job.jsonl", "--base-url", server.base_url, *OPTIONS, *more
    )


def one_line(finished):
    """Check that a run was refused with one sentence, on standard error and in its object; return it."""
    (line,) = finished.err.splitlines()
    assert (finished.code, line) == (3, f"batcher: {finished.json['stopped']}")
    assert (finished.json["rows"], finished.json["requests"]) == (0, 0)
    return line


# --- a torn log

#: Where the log is cut, and where a byte of it is garbled: shares of its length.
CUT = [0.0, 0.4, 0.9999]
GARBLED = [0.00001, 0.6]


def test_a_run_goes_on_from_a_torn_log_and_pays_for_nothing_twice(crash, go_on, tmp_path):
    folder, server = crash
    kept = []
    for number, share in enumerate([*CUT, *GARBLED]):
        copy = shutil.copytree(folder, tmp_path / f"copy{number}")
        log = bytearray((copy / "job.db-wal").read_bytes())
        at = int(share * len(log))
        if number < len(CUT):
            del log[at:]
        else:
            log[at] ^= 0xFF
        (copy / "job.db-wal").write_bytes(log)
        kept.append(reader.read(copy / "job.db").done)

        finished = go_on(copy)
        assert (finished.code, finished.err) == (0, "")
        assert (finished.json["succeeded"], finished.json["already_done"]) == (ROWS, kept[-1])
        assert reader.check(copy / "job.db") == []
    assert kept[0] == kept[3] == 0 < kept[1] < kept[4] < kept[2] < ROWS
    ledger = server.ledger()
    assert (ledger["billed"], ledger["billed_twice"]) == (ROWS, 0)


# --- reading what a crash left


@pytest.mark.parametrize("place", ["a writable folder", "a read-only folder", "a read-only file"])
@pytest.mark.parametrize("missing", ["nothing", "the index", "the log"])
def test_what_a_crash_left_is_read_wherever_it_is_and_nothing_of_it_changes(
    left, batcher, tmp_path, place, missing
):
    store, job = left / "job.db", left / "job.jsonl"
    if missing == "the index":
        (left / "job.db-shm").unlink()
    elif missing == "the log":
        with closing(sqlite3.connect(store)) as db:  # the last to close it empties the log into it
            db.execute("SELECT count(*) FROM rows").fetchall()
        assert not (left / "job.db-wal").exists()
    done, before = reader.read(store).done, contents(left)
    files = ("--output", tmp_path / "out.jsonl", "--errors", tmp_path / "err.jsonl")
    with read_only(*{"a read-only folder": [left], "a read-only file": [store]}.get(place, [])):
        exported = batcher("export", job, *files)
        status = batcher("status", job, "--verify", "--json", *files)
    assert exported.code == 0
    assert len((tmp_path / "out.jsonl").read_bytes().splitlines()) == done > 0
    assert (status.code, status.err) == (0, "")
    assert (status.json["succeeded"], status.json["verify"]) == (done, [])
    assert contents(left) == before


def test_a_run_that_begins_while_what_a_crash_left_is_read_is_seen(left, go_on):
    done = reader.read(left / "job.db").done
    rows = reader.rows(left / "job.db", "results")
    read = [next(rows)[1]]
    assert go_on(left).json["already_done"] == done
    read += [row[1] for row in rows]
    # The lines that were read before, and those that are read now.
    assert read[-100:] == [f"review-{number}" for number in range(500, 600)]
    assert len(read) < ROWS
    assert reader.read(left / "job.db").done == ROWS


def test_a_run_that_is_going_on_is_read_beside_it_also_by_who_may_only_read(
    serve, launch, batcher, write, reviews, tmp_path
):
    folder = tmp_path / "live"
    folder.mkdir()
    job = write(reviews(8000), "live/job.jsonl")  # more than can be done meanwhile
    with (
        serve("--latency-after", "20-40") as server,
        launch("run", job, "--base-url", server.base_url, "--max-inflight", 10) as running,
    ):
        server.wait_for(100, running)
        with read_only(folder, *folder.glob("job.db*")):
            done = []
            for name in ("first.jsonl", "second.jsonl"):
                done.append(batcher("status", job, "--json").json["succeeded"])
                assert batcher("export", job, "--output", name, "--errors", "errors.jsonl").code == 0
                done.append(len((tmp_path / name).read_bytes().splitlines()))
        assert running.is_running
    assert 0 < done[0] < done[-1] < 8000
    assert done == sorted(done)


# --- a store that can't be written


@pytest.mark.parametrize("what", ["the store", "its log", "its folder"])
def test_a_read_only_store_is_refused_untouched_and_runs_when_it_is_writable(left, go_on, tmp_path, what):
    path = {"the store": left / "job.db", "its log": left / "job.db-wal", "its folder": left}[what]
    before = contents(left)
    files = ("--output", tmp_path / "out.jsonl", "--errors", tmp_path / "err.jsonl")
    with read_only(path):
        line = one_line(go_on(left, *files))
        assert line == (
            f"batcher: {path} can't be written: it is read-only: "
            "see to its permissions, and its folder's, and run the same command again"
        )
    assert contents(left) == before
    assert go_on(left, *files).code == 0


def test_a_folder_that_has_no_store_yet_and_can_not_be_written_is_refused(crash, go_on, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(crash[0] / "job.jsonl", folder)
    files = ("--output", tmp_path / "out.jsonl", "--errors", tmp_path / "err.jsonl")
    with read_only(folder):
        line = one_line(go_on(folder, *files))
    assert f"{folder / 'job.db'}.lock can't be written: Permission denied: see to its permissions" in line
    assert [path.name for path in folder.iterdir()] == ["job.jsonl"]


def test_a_store_that_may_not_be_read_is_told_from_one_that_is_none(left, go_on, batcher):
    store = left / "job.db"
    store.chmod(0)
    status = batcher("status", left / "job.jsonl")
    for line in (one_line(go_on(left)), status.err):
        assert f"{store} can't be read: Permission denied: see to its permissions" in line
    assert (status.code, status.out) == (3, "")


# --- a damaged store


def cut_in_half(store):
    os.truncate(store, store.stat().st_size // 2)


def garble(store):
    """Wipe the root of the attempts, and leave the rows and their answers alone."""
    with closing(sqlite3.connect(store)) as db:
        ((page,),) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'attempts'")
        ((size,),) = db.execute("PRAGMA page_size")
    whole = store.read_bytes()
    store.write_bytes(whole[: (page - 1) * size] + bytes(size) + whole[page * size :])


@pytest.mark.parametrize("damage", [cut_in_half, garble])
def test_a_damaged_store_is_refused_in_one_sentence_and_untouched(left, go_on, batcher, damage):
    store, job = left / "job.db", left / "job.jsonl"
    assert go_on(left).code == 0
    results = (left / "job.results.jsonl").read_bytes()
    damage(store)
    before = contents(left)

    line = one_line(go_on(left))
    assert line.startswith(f"batcher: {store} can't be opened: ")
    assert line.endswith(
        ": the store is damaged: move it and job.db-wal away, and restore a copy or begin anew "
        "(batcher status JOB --verify says what is damaged)"
    )
    status = batcher("status", job, "--verify")
    assert status.code == 3
    assert "is damaged" in status.err
    assert len(status.err.splitlines()) == 1
    assert status.out.startswith(f"verify    {store} is damaged: batcher export {job} saves what can be read")
    assert contents(left) == before

    exported = batcher("export", job, "--output", "again.jsonl", "--errors", "errors.jsonl")
    log = batcher("export", job, "--attempts", "log.csv")
    assert (log.code, "is damaged" in log.err) == (3, True)
    if damage is garble:
        assert exported.code == 0
        assert (left.parent / "again.jsonl").read_bytes() == results
        assert "the table attempts can't be read" in status.out
        assert "the table rows" not in status.out
    else:
        assert (exported.code, "is damaged" in exported.err) == (3, True)
    assert contents(left) == before


def test_a_store_that_is_restored_as_the_message_says_goes_on(left, go_on, tmp_path):
    copy = shutil.copytree(left, tmp_path / "backup")
    assert go_on(left).code == 0
    garble(left / "job.db")
    assert "restore a copy" in one_line(go_on(left))
    (left / "job.db").rename(tmp_path / "moved.db")
    for name in ("job.db", "job.db-wal"):
        shutil.copy(copy / name, left)
    finished = go_on(left)
    assert (finished.code, finished.json["already_done"]) == (0, reader.read(copy / "job.db").done)
