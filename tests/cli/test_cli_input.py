"""Job files as they come: each ends in one clear line with its file and line number, and the rest runs."""

import gzip
import json
import os
import socket
import subprocess
import sys

import orjson
import pytest
import zstandard

CHAT = "/v1/chat/completions"
BOM = b"\xef\xbb\xbf"


def row(name, text="hi", url=CHAT, **body):
    body = {"model": "m", "messages": [{"role": "user", "content": text}], **body}
    return orjson.dumps({"custom_id": name, "method": "POST", "url": url, "body": body}) + b"\n"


GOOD = row("good-1") + row("good-2") + row("good-3")


@pytest.fixture
def run(batcher, server, tmp_path):
    """Return a function that runs a job of these bytes, or one that is there already."""

    def job(content=None, name="job.jsonl", *options, **settings):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        return batcher("run", name, "--base-url", server.base_url, "--json", "--quiet", *options, **settings)

    return job


def refusal(ended, code=2):
    """Check that a job ended before it began, with one line and one JSON object; return the line."""
    assert (ended.code, ended.json["stopped"] is None, ended.json["requests"]) == (code, False, 0), ended
    (line,) = ended.err.splitlines()
    assert line == f"batcher: {ended.json['stopped']}"
    return line


# --- no job at all: exit 2, nothing made


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("no.jsonl", None, "no.jsonl can't be read: No such file or directory"),
        ("job.jsonl", b"", "job.jsonl is empty: a job file has one request per line"),
        ("job.jsonl", b"\n \r\n\t\n", "job.jsonl holds no rows: a job file has one request per line"),
        ("job.jsonl.gz", gzip.compress(b"\n\n"), "job.jsonl.gz holds no rows"),
        ("job.jsonl.zst", zstandard.compress(b"\n\n"), "job.jsonl.zst holds no rows"),
        ("job.jsonl", GOOD.decode().encode("utf-16"), "job.jsonl is UTF-16, and a job file must be UTF-8"),
        ("job.jsonl.gz", GOOD, "job.jsonl.gz can't be read: it is not gzip"),
        (".", None, ". is a directory: name a job file"),
        ("/dev/null", None, "/dev/null is a device: name a job file (JSON Lines), or - for standard input"),
    ],
    ids=lambda value: value if type(value) is str else "",
)
def test_what_is_no_job_is_refused_before_anything_is_made(run, tmp_path, name, content, says):
    ended = run(content, name)
    assert refusal(ended).startswith(f"batcher: {says}")
    assert {path.name for path in tmp_path.iterdir()} <= {name}


def test_a_pipe_is_not_waited_for(run, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    line = refusal(run(name="pipe"))
    assert "pipe is a pipe, which can be read only once" in line
    assert "batcher run - --store JOB.db" in line


def test_process_substitution_is_told_of_standard_input(server, tmp_path):
    command = [sys.executable, "-m", "batcher", "run", "/dev/fd/0", "--quiet", "--store", "job.db"]
    environ = {"OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": server.base_url}
    done = subprocess.run(command, input=GOOD, capture_output=True, env=environ, cwd=tmp_path, timeout=60)
    assert done.returncode == 2
    assert b"send it to standard input instead" in done.stderr


def test_a_socket_is_no_job(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("job.sock")
        assert "job.sock is a socket" in refusal(run(name="job.sock"))


def test_a_file_that_may_not_be_read(run, tmp_path):
    (tmp_path / "job.jsonl").write_bytes(GOOD)
    (tmp_path / "job.jsonl").chmod(0)
    assert "job.jsonl can't be read: Permission denied" in refusal(run())


def test_a_zst_file_without_the_extra(run, tmp_path):
    (tmp_path / "zstandard.py").write_text("raise ImportError\n")
    ended = run(zstandard.compress(GOOD), "job.jsonl.zst", env={"PYTHONPATH": str(tmp_path)})
    assert "job.jsonl.zst needs the zst extra: pip install 'batcher-openai[zst]'" in refusal(ended)


def test_standard_input_without_rows_is_no_job_and_takes_nothing_from_one_that_ran(run, tmp_path):
    line = refusal(run(None, "-", "--store", "job.db", stdin="\n" * 70_000))
    assert line.startswith("batcher: standard input holds no rows")
    assert run(None, "-", "--store", "job.db", stdin=GOOD.decode()).json["succeeded"] == 3
    before = (tmp_path / "job.results.jsonl").read_bytes()
    refusal(run(None, "-", "--store", "job.db", stdin=""))
    assert (tmp_path / "job.results.jsonl").read_bytes() == before


# --- bad lines: each in the errors file with its number, the rest runs


BAD_LINES = [
    (b'{"custom_id": "x"', "not valid JSON: unexpected end of data at column 18"),
    (b'{"model": "m", "input": NaN}', "not valid JSON: unexpected character, expected a JSON value at col"),
    (b'[{"model": "m"}]', "an array where a request object is expected"),
    (b'"text"', "a string where a request object is expected"),
    (b'{"a":' * 100_000, "not valid JSON: depth limit exceeded"),
    (b"[" * 100_000 + b"]" * 100_000, "not valid JSON: depth limit exceeded"),
    (b'{"model": "m", "input": "\xff"}', "not valid JSON: it is not UTF-8 at byte 26"),
    (b'{"model": "m", "input": "\xed\xa0\x80"}', "not valid JSON: it is not UTF-8 at byte 26"),
    (b'{"model": "m", "input": "\\ud800"}', "not valid JSON: no low surrogate in string at column 26"),
    (b"\xff\xfe" + "{}".encode("utf-16-le"), "not valid JSON: it is not UTF-8 at byte 1"),
    (BOM + row("bom"), "not valid JSON: "),
    (b'{"messages": [{}]}', "model is missing"),
    (row("m", model=4), "model must be a string, and not empty"),
    (row(5), "custom_id must be a string, and not empty"),
    (row("m").replace(b"POST", b"GET"), 'method must be POST, not "GET"'),
    (row("u", url=7), "url must be one of"),
    (row("u", url="/v1/batches"), "url must be one of"),
    (row("u", url="/chat/completions"), "url must be one of"),
    (row("u", url=f"{CHAT}/"), "url must be one of"),
    (b'{"custom_id": "b", "url": "/v1/embeddings", "body": []}', "body must be an object, not an array"),
    (row("t", messages="hi"), "messages must be an array of objects, not a string"),
    (row("t", messages=[]), "messages must be an array of objects, not an empty one"),
    (row("t", messages=["hi"]), "messages must be an array of objects, and holds a string"),
    (b'{"model": "text-embedding-3-small", "input": 5}', "input must be a string or an array, not a number"),
    (row("t", max_tokens="16"), 'max_tokens must be a whole number, at least 1, not "16"'),
    (row("t", max_completion_tokens=0), "max_completion_tokens must be a whole number, at least 1, not 0"),
    (row("t", n=0), "n must be a whole number, at least 1, not 0"),
    (row("t", stream=True), '"stream": true has no place in a batch'),
    (row("t", background=True), '"background": true has no place in a batch'),
    (row("good-1", "again"), "custom_id 'good-1' is used by line 1 already"),
]


def test_each_bad_line_is_told_with_its_number_and_the_others_run(run, server, tmp_path, lines):
    before = server.ledger()["requests"]
    ended = run(
        b"\n".join(
            [row("good-1").strip(), *(raw.strip() for raw, _ in BAD_LINES), GOOD[len(row("good-1")) :]]
        )
    )
    assert (ended.code, ended.err, ended.json["stopped"]) == (1, "", None)
    assert (ended.json["succeeded"], ended.json["failed"]) == (3, len(BAD_LINES))
    told = [error["error"]["message"] for error in lines(tmp_path / "job.errors.jsonl")]
    for (_, says), message, number in zip(BAD_LINES, told, range(2, 1000), strict=False):
        assert message.startswith(f"line {number}: {says}")
    assert server.ledger()["requests"] - before == 3
    hints = [message for message in told if message.endswith(f": did you mean {CHAT}?")]
    assert len(hints) == 2


@pytest.mark.parametrize(
    ("content", "looks_like"),
    [
        (json.dumps([json.loads(row("a")), json.loads(row("b"))], indent=2).encode(), "one JSON array"),
        (b"id,text\n1,hello\n2,world\n", "something else, such as CSV"),
    ],
    ids=lambda value: value if type(value) is str else "",
)
def test_a_file_of_another_kind_is_told_by_its_first_line(run, tmp_path, lines, content, looks_like):
    ended = run(content)
    assert (ended.code, ended.err, ended.json["succeeded"]) == (1, "", 0)
    first = lines(tmp_path / "job.errors.jsonl")[0]["error"]["message"]
    assert first.startswith("line 1: ")
    assert f"must be JSON Lines in UTF-8, one object per line, and this looks like {looks_like}" in first


# --- what is fine


def test_a_byte_order_mark_crlf_blank_lines_and_no_last_line_break_do_not_matter(run):
    ended = run(BOM + b"\r\n" + GOOD.replace(b"\n", b"\r\n")[:-2])
    assert (ended.code, ended.err, ended.json["succeeded"]) == (0, "", 3)


def test_a_zst_file_runs(run):
    ended = run(zstandard.compress(GOOD), "job.jsonl.zst")
    assert (ended.code, ended.err, ended.json["succeeded"]) == (0, "", 3)


def test_a_line_of_20_megabytes_runs(run):
    ended = run(GOOD + row("long", "x" * 20_000_000))
    assert (ended.code, ended.json["succeeded"]) == (0, 4)


# --- what breaks off: the rows before the break run, exit 3


def noisy(count):
    """Rows that do not compress to nothing: what is cut off is a part of them."""
    return b"".join(row(f"n{number}", os.urandom(60).hex()) for number in range(count))


def cut(data):
    return data[: len(data) // 2]


def damaged(data):
    middle = len(data) // 2
    return data[:middle] + bytes(byte ^ 0x55 for byte in data[middle : middle + 40]) + data[middle + 40 :]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("job.jsonl.gz", cut(gzip.compress(noisy(1000))), "it is cut off: its compression has no end"),
        ("job.jsonl.zst", cut(zstandard.compress(noisy(3000))), "it is cut off: its compression has no end"),
        ("job.jsonl.gz", damaged(gzip.compress(noisy(1000))), "its compression is damaged"),
    ],
    ids=lambda value: value if type(value) is str else "",
)
def test_the_rows_before_a_break_run(run, name, content, says):
    ended = run(content, name)
    assert ended.code == 3
    assert ended.json["succeeded"] > 0
    (line,) = ended.err.splitlines()
    assert line == f"batcher: stopped: {ended.json['stopped']}"
    assert f"{name} can't be read on after line " in line
    assert f": {says}" in line
    assert line.endswith("; the rows before are kept")


def test_a_job_that_no_disk_has_room_for_is_refused_before_anything_is_sent(run, tmp_path):
    with (tmp_path / "job.jsonl").open("wb") as file:
        file.write(GOOD * 1000)
        file.truncate(10 * 10**12)  # a hole: it takes nothing on disk
    line = refusal(run(), code=3)
    assert f"{tmp_path} has " in line
    assert "the store and the results of job.jsonl need at least " in line
    assert line.endswith("or name --store, --output and --errors on a larger disk")
    assert [path.name for path in tmp_path.iterdir()] == ["job.jsonl"]
