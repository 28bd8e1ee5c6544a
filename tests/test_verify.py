"""Whether a store is whole, and the files are what it holds: every way in which they can be not."""

import sqlite3
import tracemalloc
from contextlib import closing

import pytest

from batcher.options import Paths
from batcher.results import write_errors, write_results
from batcher.store import file
from batcher.verify import verify

LINE = b'{"custom_id":"r%d","method":"POST","url":"/v1/embeddings","body":{"model":"m"}}'


def make(folder, count=6, size=20):
    """Make a finished job: every third row has failed."""
    paths = Paths.of(str(folder / "job.jsonl"), None)
    file.make(paths.store, "space", "http://localhost/v1", 1.0)
    with closing(sqlite3.connect(paths.store, isolation_level=None)) as db:
        db.execute("BEGIN")
        for number in range(1, count + 1):
            done = number % 3 != 0
            body = b'{"text":"%s"}' % (b"x" * size)
            db.execute(
                "INSERT INTO rows VALUES (?, ?, ?, ?)", (number, number, number.to_bytes(16), f"r{number}")
            )
            db.execute(
                "INSERT INTO attempts VALUES (?, ?, 'k', 1, 'm', 1.0, 10, 100)", (number, f"[{number}]")
            )
            db.execute(
                "INSERT INTO settlements (attempt, billed, ended_at, status, error, cost_pico_usd)"
                " VALUES (?, ?, 2.0, 200, ?, 0)",
                (number, "yes" if done else "no", None if done else "bad_request"),
            )
            db.execute(
                "INSERT INTO outcomes VALUES (?, ?, ?, 200, 'req', ?, ?, ?, ?, NULL)",
                (number, "done", number, body, None, None, None)
                if done
                else (number, "refused", number, body, "bad_request", "no", LINE % number),
            )
        db.execute("COMMIT")
    write_results(paths.store, paths.output)
    write_errors(paths.store, paths.errors)
    return paths


@pytest.fixture
def paths(tmp_path):
    return make(tmp_path)


def change(paths, *statements):
    with closing(sqlite3.connect(paths.store, isolation_level=None)) as db:
        for statement in statements:
            db.execute(statement)


def findings(paths):
    return verify("job.jsonl", paths).findings


def test_of_a_job_that_has_ended_nothing_is_found(paths):
    assert (verify("job.jsonl", paths).findings, verify("job.jsonl", paths).running) == ([], False)


# --- the files


@pytest.mark.parametrize("which", ["output", "errors"])
def test_a_missing_file_is_found(paths, which):
    path = getattr(paths, which)
    path.unlink()
    assert findings(paths) == [f"{path} is missing: batcher export job.jsonl writes it anew"]


def test_both_files_are_looked_at(paths):
    paths.output.unlink()
    paths.errors.unlink()
    assert len(findings(paths)) == 2


def replace(*pairs):
    def spoil(content):
        for old, new in pairs:
            assert content.count(old) == 1
            content = content.replace(old, new)
        return content

    return spoil


def without_line(number):
    return lambda content: b"".join(
        line for at, line in enumerate(content.splitlines(True), 1) if at != number
    )


SPOILED = {
    "another id": (replace((b'"r2"', b'"r9"')), "line 2 should be r2, and is r9"),
    "another answer": (
        replace((b'02","custom_id":"r2",', b'99","custom_id":"r2",')),
        "line 2 (r2) reads otherwise",
    ),
    "no lines": (lambda _: b"\x00" * 3000, "line 1 should be r1, and is none of a job"),
    "a half of a name": (
        lambda content: content[:60] + b"\x00" * 1000,
        "line 1 should be r1, and is none of a job",
    ),
    "emptied": (lambda _: b"", "line 1 (r1) is not there"),
    "cut within a line": (lambda content: content[:-10], "line 4 (r5) is cut off"),
    "cut before its last line end": (lambda content: content[:-1], "line 4 (r5) is cut off"),
    "its last line is gone": (without_line(4), "line 4 (r5) is not there"),
    "a line is gone": (without_line(2), "line 2 should be r2, and is r4"),
    "more": (lambda content: content + b"\n", "it goes on after line 4, its last"),
}


@pytest.mark.parametrize(("spoil", "says"), SPOILED.values(), ids=SPOILED)
def test_a_file_that_differs_is_found_with_the_first_line_that_does(paths, spoil, says):
    paths.output.write_bytes(spoil(paths.output.read_bytes()))
    assert findings(paths) == [
        f"{paths.output} is not what the store holds: {says}: batcher export job.jsonl writes it anew"
    ]


def test_a_file_from_before_the_store_was_written_last_is_older(paths):
    change(paths, "UPDATE rows SET seq = NULL WHERE id = 5")
    says = "it goes on after line 3, its last"
    assert findings(paths) == [
        f"{paths.output} is older than the store: {says}: batcher export job.jsonl writes it anew"
    ]
    write_results(paths.store, paths.output)
    assert findings(paths) == []


def test_what_is_in_the_log_counts_as_written(paths):
    with closing(sqlite3.connect(paths.store, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        write_results(paths.store, paths.output)
        written = paths.store.stat().st_mtime_ns
        db.execute("UPDATE rows SET seq = NULL WHERE id = 1")
        assert paths.store.stat().st_mtime_ns == written
        (found,) = findings(paths)
    assert "is older than the store: line 1 should be r2, and is r1" in found


def test_files_that_are_the_same_are_fine_however_old(paths):
    paths.store.touch()
    assert findings(paths) == []


def test_a_job_without_a_row_that_ended_has_empty_files(tmp_path):
    paths = make(tmp_path, count=0)
    assert findings(paths) == []
    paths.output.write_bytes(b"{}\n")
    assert "it goes on after line 0, its last" in findings(paths)[0]


def test_a_file_that_can_not_be_read_is_found(paths):
    paths.output.unlink()
    paths.output.mkdir()
    assert findings(paths) == [
        f"{paths.output} can't be read: Is a directory: batcher export job.jsonl writes it anew"
    ]


def test_the_files_of_a_run_that_is_going_on_are_left_alone(paths):
    paths.output.unlink()
    held = file.lock(paths.store)
    verified = verify("job.jsonl", paths)
    held.release()
    assert (verified.findings, verified.running) == ([], True)
    assert len(findings(paths)) == 1


def test_a_run_that_begins_while_they_are_compared_makes_no_finding(paths, monkeypatch):
    paths.output.unlink()
    asked = iter([False, True])
    monkeypatch.setattr(file, "is_locked", lambda _: next(asked))
    verified = verify("job.jsonl", paths)
    assert (verified.findings, verified.running) == ([], True)


def test_memory_does_not_grow_with_the_rows_nor_with_a_file_that_has_no_lines(tmp_path):
    peaks = []
    for count in (2000, 12_000):
        folder = tmp_path / str(count)
        folder.mkdir()
        paths = make(folder, count, size=1000)
        paths.errors.write_bytes(b"x" * (count * 2000))
        tracemalloc.start()
        assert len(findings(paths)) == 1
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


# --- the store


def test_damage_is_told_with_what_can_be_saved(paths):
    with closing(sqlite3.connect(paths.store)) as db:
        ((page,),) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'settlements_in_doubt'")
        ((size,),) = db.execute("PRAGMA page_size")
    whole = paths.store.read_bytes()
    paths.store.write_bytes(whole[: (page - 1) * size] + bytes(size) + whole[page * size :])
    first, *rest = findings(paths)
    assert first == (
        f"{paths.store} is damaged: batcher export job.jsonl saves what can be read; then move it and "
        "job.db-wal away, and restore a copy or begin anew"
    )
    assert rest == [f"{paths.store}: the table settlements can't be read: database disk image is malformed"]


BROKEN = {
    "a row counts as done by an attempt that failed": (
        ["UPDATE outcomes SET attempt = 3 WHERE row = 1", "UPDATE attempts SET rows = '[1,3]' WHERE id = 3"],
        ["rows that count as done by an attempt that was not answered: 1, among them r1"],
    ),
    "a row counts as done by an attempt that is not settled": (
        ["DELETE FROM settlements WHERE attempt IN (1, 2)"],
        ["rows that count as done by an attempt that was not answered: 2, among them r1"],
    ),
    "an attempt of a row that there is not": (
        ["UPDATE attempts SET rows = '[1,77]' WHERE id = 1"],
        ["attempts of rows that there are not: 1, among them 1"],
    ),
    "attempts of no rows": (
        ["UPDATE attempts SET rows = '[]' WHERE id = 3", "UPDATE outcomes SET attempt = NULL WHERE row = 3"],
        ["attempts of rows that there are not: 1, among them 3"],
    ),
    "no list of rows": (
        ["UPDATE attempts SET rows = '[1' WHERE id = 1"],
        [
            "attempts of rows that there are not: 1, among them 1",
            "rows that ended by an attempt of others: 1, among them r1",
        ],
    ),
    "a row that ended by another's attempt": (
        ["UPDATE outcomes SET attempt = 2 WHERE row = 1"],
        ["rows that ended by an attempt of others: 1, among them r1"],
    ),
    "an outcome of no row": (
        ["DELETE FROM rows WHERE id = 6", "UPDATE attempts SET rows = '[5]' WHERE id = 6"],
        [
            "row 6 of outcomes refers to a row of rows that there is not",
            "rows that ended by an attempt of others: 1, among them None",
        ],
    ),
}


@pytest.mark.parametrize(("statements", "says"), BROKEN.values(), ids=BROKEN)
def test_what_must_hold_between_the_tables_is_checked(paths, statements, says):
    change(paths, *statements)
    write_results(paths.store, paths.output)
    write_errors(paths.store, paths.errors)
    _, *found = findings(paths)
    assert found == [f"{paths.store}: {line}" for line in says]


def test_a_store_that_can_not_be_read_at_all_is_a_finding(paths):
    content = paths.store.read_bytes()
    paths.store.write_bytes(content[:100] + b"\xff" * (len(content) - 100))
    found = findings(paths)
    assert any("is damaged" in line for line in found)
    assert f"{paths.output} can't be compared: in the store, database disk image is malformed" in found
