"""The files: exact bytes, the order of the input, whole or not at all."""

import csv
import errno
import io
import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import anyio
import orjson
import pytest

from batcher.errors import ConfigurationError, StoreError, StoreWriteError
from batcher.money.prices import PriceBook
from batcher.request import REJECTED
from batcher.results import (
    ATTEMPT_FIELDS,
    check_writable,
    write_attempts,
    write_errors,
    write_failed,
    write_results,
)
from batcher.source import Requests, Source, batch_line
from batcher.store import file
from batcher.tokens import Ratios

BODY = b'{"choices":[ {"x":1} ],"\xc3\xa9":"\\u00e9"}'


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "job.db"
    file.make(path, "space", "http://localhost/v1", 1.0)
    return path


def write(path, *statements):
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN")
        for sql, *values in statements:
            db.execute(f"INSERT INTO {sql} VALUES ({', '.join('?' * len(values))})", values)
        db.execute("COMMIT")


def row(number, seq, name=None, key=None):
    return "rows", number, seq, key or number.to_bytes(16), name or f"row-{seq}"


def done(number, body=BODY, request_id="req-1", status=200):
    return "outcomes", number, "done", 1, status, request_id, body, None, None, None, None


def failed(number, code="bad_request", message="no", line=b'{"custom_id":"a"}', body=None, status=None):
    return "outcomes", number, "refused", None, status, None, body, code, message, line, None


# --- results


def test_a_result_has_the_batch_form_with_the_servers_own_bytes(store, tmp_path):
    write(store, row(1, 1, 'ä"\\'), done(1), row(2, 2), done(2, b"{}", None, 201))
    assert write_results(store, tmp_path / "out.jsonl") == 2
    assert (tmp_path / "out.jsonl").read_bytes() == (
        b'{"id":"batch_req_00000000000000000000000000000001","custom_id":"\xc3\xa4\\"\\\\",'
        b'"response":{"status_code":200,"request_id":"req-1","body":' + BODY + b'},"error":null}\n'
        b'{"id":"batch_req_00000000000000000000000000000002","custom_id":"row-2",'
        b'"response":{"status_code":201,"request_id":null,"body":{}},"error":null}\n'
    )


def test_results_are_in_the_order_of_the_file_and_only_of_it(store, tmp_path):
    rows = [row(1, 30), row(2, 10), row(3, None, "gone"), row(4, 20)]
    write(store, *rows, *(done(number) for number in (1, 2, 3, 4)))
    assert write_results(store, tmp_path / "out.jsonl") == 3
    names = [orjson.loads(line)["custom_id"] for line in (tmp_path / "out.jsonl").read_bytes().splitlines()]
    assert names == ["row-10", "row-20", "row-30"]


def test_no_results_are_an_empty_file(store, tmp_path):
    assert write_results(store, tmp_path / "out.jsonl") == 0
    assert write_errors(store, tmp_path / "err.jsonl") == 0
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "err.jsonl").read_bytes() == b""


# --- errors


def test_an_error_carries_the_request_and_what_the_server_said(store, tmp_path):
    write(
        store,
        row(1, 2, "b"),
        failed(1, "bad_request", 'says "no"', b'{"custom_id":"b"}', b'{"error":{}}', 400),
        row(2, 1, "a"),
        failed(2, "lost", "reset", b'{"custom_id":"a"}'),
        row(3, 3, "c"),
        done(3),
    )
    assert write_errors(store, tmp_path / "err.jsonl") == 2
    assert (tmp_path / "err.jsonl").read_bytes() == (
        b'{"id":"batch_req_00000000000000000000000000000002","custom_id":"a","response":null,'
        b'"error":{"code":"lost","message":"reset"},"request":{"custom_id":"a"}}\n'
        b'{"id":"batch_req_00000000000000000000000000000001","custom_id":"b",'
        b'"response":{"status_code":400,"request_id":null,"body":{"error":{}}},'
        b'"error":{"code":"bad_request","message":"says \\"no\\""},"request":{"custom_id":"b"}}\n'
    )


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (b'{"model": 5,  "a":1e3}', b'{"model": 5,  "a":1e3}'),
        (b"[1, 2]", b"[1, 2]"),
        (b'{"model": ', b'"{\\"model\\": "'),
        (b"\xff\xfe", '"\ufffd\ufffd"'.encode()),
        (b'"tab\there"', b'"\\"tab\\there\\""'),
    ],
)
def test_a_rejected_line_is_shown_as_the_json_that_it_is_or_as_a_string(store, tmp_path, line, shown):
    write(store, row(1, 1), failed(1, REJECTED, "line 1: no", line))
    write_errors(store, tmp_path / "err.jsonl")
    written = (tmp_path / "err.jsonl").read_bytes()
    assert written.endswith(b',"request":' + shown + b"}\n")
    assert written.count(b"\n") == 1
    assert orjson.loads(written)["error"]["code"] == REJECTED


def test_an_error_without_a_line_has_no_request(store, tmp_path):
    # a crash under at-most-once leaves rows in doubt whose request the store does not know
    write(store, row(1, 1), failed(1, "in_doubt", "lost", None))
    assert write_errors(store, tmp_path / "err.jsonl") == 1
    assert orjson.loads((tmp_path / "err.jsonl").read_bytes())["request"] is None


# --- failed rows as a job


def requests_of(path):
    async def read():
        source = Source(str(path))
        made = Requests("space", {}, "shared", PriceBook("http://localhost/v1", 0.0), Ratios())
        groups = [group async for group in source.groups(made)]
        source.close()
        return [item for group in groups for item in group]

    return anyio.run(read)


def test_failed_rows_are_a_job_of_the_same_rows(store, tmp_path):
    job = tmp_path / "job.jsonl"
    bodies = ['"messages":[{"role":"user","content":"é \\u00e9"}]', '"messages":[{}],"temperature":5.0']
    job.write_text(
        "".join(
            f'{{"custom_id":"n-{number}","method":"POST","url":"/v1/chat/completions",'
            f'"body":{{"model":"m",{body}}}}}\n'
            for number, body in enumerate(bodies)
        )
        + '{"model":"m","input":"bare"}\n'
        + "broken\n"
    )
    *made, _rejected = requests_of(job)
    rows = [request.rows[0] for request in made]
    write(
        store,
        *(row(each.seq, each.seq, each.custom_id, each.key) for each in rows),
        *(failed(each.seq, line=batch_line(request, each)) for request, each in zip(made, rows, strict=True)),
        row(4, 4),
        failed(4, REJECTED, "line 4: no", b"broken"),
    )
    assert write_failed(store, tmp_path / "failed.jsonl") == (3, 1)
    again = requests_of(tmp_path / "failed.jsonl")
    # named rows keep their keys; a bare one goes by its name from now on
    assert [each.rows[0].key for each in again][:2] == [each.key for each in rows][:2]
    assert [each.key for each in again][:2] == [each.key for each in made][:2]
    assert [each.body for each in again] == [each.body for each in made]
    assert [each.rows[0].custom_id for each in again] == ["n-0", "n-1", "row-3"]
    assert [each.path for each in again] == [each.path for each in made]


def test_failed_rows_without_a_line_are_left_out(store, tmp_path):
    write(store, row(1, 1), failed(1, "in_doubt", "lost", None), row(2, 2), failed(2))
    assert write_failed(store, tmp_path / "failed.jsonl") == (1, 1)


def test_what_is_no_regular_file_is_not_replaced(store, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigurationError, match="no regular file"):
        write_results(store, tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


# --- the attempts


@pytest.fixture
def attempts(store):
    write(
        store,
        row(1, 1, "a"),
        row(2, 2, 'b "é",'),
        ("attempts", 1, "[1]", "key", 1, "m", 1.5, 10, 100),
        ("settlements", 1, "yes", 2.0, 3.25, 200, None, "req,1", 7, 2, 3, 1_500_000_000_000, 0),
        ("attempts", 2, "[1,2]", "key", 2, "m", 4.0, 10, 100),
        ("settlements", 2, "yes", 2.0, 3.2504, 200, None, None, 7, 0, 3, None, 0),
        ("attempts", 3, "[2]", "key", 3, "m", 5.0, 10, 100),
        ("attempts", 4, "[2]", "key", 4, "m", 5.0, 10, 100),
        ("settlements", 4, "no", None, 6.0, None, "unreachable", None, 0, 0, 0, 0, 0),
    )
    return store


def test_the_attempts_log_is_csv_where_the_file_is_named_so(attempts, tmp_path):
    assert write_attempts(attempts, tmp_path / "log.csv") == 4
    content = (tmp_path / "log.csv").read_bytes()
    head, *rows = csv.reader(io.StringIO(content.decode()))
    assert tuple(head) == ATTEMPT_FIELDS
    a, b = '["a"]', '["b \\"é\\","]'
    both = f"{a[:-1]},{b[1:]}"
    done = ("yes", "200", "")
    assert rows == [
        ["1", "key", a, "1", "m", "1.5", "2.0", "3.25", *done, "req,1", "1250.0", "7", "2", "3", "1.50"],
        ["2", "key", both, "2", "m", "4.0", "2.0", "3.2504", *done, "", "1250.4", "7", "0", "3", ""],
        ["3", "key", b, "3", "m", "5.0", "", "", "maybe", "", "", "", "", "", "", "", ""],
        ["4", "key", b, "4", "m", "5.0", "", "6.0", "no", "", "unreachable", "", "", "0", "0", "0", "0.00"],
    ]


def test_the_attempts_log_is_json_lines_elsewhere(attempts, tmp_path):
    assert write_attempts(attempts, tmp_path / "log.jsonl") == 4
    rows = [orjson.loads(line) for line in (tmp_path / "log.jsonl").read_bytes().splitlines()]
    assert all(tuple(each) == ATTEMPT_FIELDS for each in rows)
    assert [each["cost_usd"] for each in rows] == ["1.50", None, None, "0.00"]
    assert [each["latency_ms"] for each in rows] == [1250.0, 1250.4, None, None]
    assert [each["custom_ids"] for each in rows] == [["a"], ["a", 'b "é",'], ['b "é",'], ['b "é",']]
    assert [(each["attempt"], each["billed"], each["ended_at"]) for each in rows] == [
        (1, "yes", 3.25),
        (2, "yes", 3.2504),
        (3, "maybe", None),
        (4, "no", 6.0),
    ]


# --- whole or not at all


def fails_while_writing(monkeypatch):
    def refuse(_fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)


def fails_while_renaming(monkeypatch):
    def refuse(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)


@pytest.mark.parametrize("break_it", [fails_while_writing, fails_while_renaming])
@pytest.mark.parametrize("there", [b"the old results\n", None])
def test_a_failing_write_leaves_what_was_there_and_nothing_else(
    store, tmp_path, monkeypatch, break_it, there
):
    output = tmp_path / "out.jsonl"
    write(store, row(1, 1), done(1))
    if there is not None:
        output.write_bytes(there)
    before = {path.name for path in tmp_path.iterdir()}
    break_it(monkeypatch)
    with pytest.raises(StoreWriteError, match=r"out\.jsonl can't be written: No space left .*batcher export"):
        write_results(store, output)
    assert {path.name for path in tmp_path.iterdir()} == before
    assert there is None or output.read_bytes() == there


def test_a_store_that_breaks_in_the_middle_leaves_what_was_there(store, tmp_path):
    output = tmp_path / "out.jsonl"
    output.write_bytes(b"old")
    write(store, row(1, 1))
    with closing(sqlite3.connect(store)) as db:
        db.execute("DROP TABLE outcomes")
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(StoreError, match="can't be read"):
        write_results(store, output)
    assert output.read_bytes() == b"old"
    assert {path.name for path in tmp_path.iterdir()} == before


def test_a_missing_folder_is_told(store, tmp_path):
    with pytest.raises(StoreWriteError, match="can't be written: No such file or directory"):
        write_results(store, tmp_path / "missing" / "out.jsonl")


def test_a_file_is_readable_as_the_umask_has_it(store, tmp_path):
    mask = os.umask(0o027)
    try:
        write_results(store, tmp_path / "out.jsonl")
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "out.jsonl").stat().st_mode) == 0o640


def test_a_path_that_can_not_be_written_is_refused_beforehand(tmp_path, monkeypatch):
    check_writable(tmp_path / "new.jsonl")
    with pytest.raises(ConfigurationError, match="is a directory: name a file"):
        check_writable(tmp_path)
    with pytest.raises(ConfigurationError, match="does not exist"):
        check_writable(tmp_path / "missing" / "out.jsonl")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(StoreWriteError, match="can't be written: make it writable, or name a file elsewhere"):
        check_writable(tmp_path / "new.jsonl")
    assert list(tmp_path.iterdir()) == []
