"""What can be got wrong, and the one line that says so: exit 2, nothing on standard output, no traceback."""

import gzip
import os

import pytest


@pytest.fixture
def job(write, reviews):
    return write(reviews(3))


def one_line(ended, code=2):
    """Check that a command ended with one line of advice; return it."""
    assert (ended.code, ended.out) == (code, "")
    (line,) = ended.err.splitlines()
    assert line.startswith("batcher: ")
    return line


def one_line_and_json(ended, code=2):
    """Check the same of a command with `--json`: its one object on standard output says why it stopped."""
    (line,) = ended.err.splitlines()
    assert ended.code == code
    assert line == f"batcher: {ended.json['stopped']}"
    assert (ended.json["rows"], ended.json["requests"], ended.json["cost_usd"]) == (0, 0, "0.00")
    return line


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--base-url", "nonsense"], "does not begin with http"),
        (["--base-url", "http://user:pass@h"], "credentials belong in the environment"),
        (["--rpm", "-5"], "--rpm must be at least 1, not -5"),
        (["--max-inflight", "0"], "--max-inflight must be at least 1, not 0"),
        (["--max-inflight", "100000000"], "ulimit -n"),
        (["--tpm", "0"], "--tpm must be at least 1, not 0"),
        (["--limit-rows", "0"], "--limit-rows must be at least 1, not 0"),
        (["--store", "job.jsonl"], "must be four different files"),
        (["--limit", "m=0/5"], "--limit m must be at least 1, not 0"),
        (["--timeout", "0"], "--timeout must be"),
        (["--store", "."], ". is a directory"),
        (["--store", "x" * 300], "File name too long"),
        (["--output", "job.db-wal"], "must be four different files"),
        (["--errors", "job.db.lock"], "must be four different files"),
        (["--store", "notes.txt"], "notes.txt is not a batcher store"),
        (["--store", "no/job.db"], "no does not exist"),
        (["--output", "."], ". is a directory"),
        (["--output", "no/results.jsonl"], "no does not exist"),
        (["--errors", "no/errors.jsonl"], "no does not exist"),
        (["--prices", "no.json"], "no.json"),
        (["--prices", "notes.txt"], "notes.txt"),
    ],
)
def test_a_wrong_setting(batcher, server, job, tmp_path, options, says):
    (tmp_path / "notes.txt").write_text("not a store, and not prices\n")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    ended = batcher("run", job, "--base-url", server.base_url, "--json", *options)
    assert says in one_line_and_json(ended)
    # Nothing was made, and what was there is as it was.
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--rpm", "x"),
        ("--limit", "garbage"),
        ("--timeout", "abc"),
        ("--max-failures", "0"),
        ("--max-failures", "²"),
        ("--limit", "m=²/5"),
        ("--delivery", "exactly-once"),
    ],
)
def test_a_value_that_cannot_be_read(batcher, server, job, option, value):
    ended = batcher("run", job, "--base-url", server.base_url, option, value)
    assert (ended.code, ended.out) == (2, "")
    last = ended.err.splitlines()[-1]
    assert f"'{option}'" in last or f"{option} " in last
    assert repr(value) in last
    assert "Traceback" not in ended.err


def test_every_mistake_is_a_json_object_too(batcher, job):
    for args in (["run", job, "--rpm", "x"], ["run"], ["status", "no.jsonl"], ["run", "caf\udce8.jsonl"]):
        ended = batcher(*args, "--json")
        assert (ended.code, ended.json["rows"], bool(ended.json["stopped"])) == (2, 0, True)
        assert len(ended.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("BATCHER_RUN_RPM", "-5", "--rpm must be at least 1"),
        ("BATCHER_RUN_TIMEOUT", "0", "--timeout must be more than 0"),
        ("BATCHER_RUN_LIMIT", "m=0/5", "--limit m must be at least 1"),
        ("BATCHER_RUN_MAX_STALL", "x", "'x' is not a time"),
    ],
)
def test_an_option_from_the_environment_goes_by_its_own_name(batcher, job, name, value, says):
    assert says in one_line(batcher("run", job, env={name: value}))


def test_a_name_with_control_characters_is_still_one_line(batcher):
    assert "a\\nb\\x1b[1m.jsonl can't be read" in one_line(batcher("run", "a\nb\x1b[1m.jsonl"))


def test_a_loop_of_links_is_no_job(batcher, tmp_path):
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    assert "Too many levels of symbolic links" in one_line(batcher("run", "loop.jsonl"))


@pytest.mark.parametrize("text", [b"\xff\xfe", b"OPENAI_API_KEY=caf\xe9"])
def test_a_dotenv_that_is_no_text(batcher, job, tmp_path, text):
    (tmp_path / ".env").write_bytes(text)
    assert ".env can't be read" in one_line(batcher("run", job))


def test_a_dotenv_that_is_a_pipe_is_none(batcher, job, tmp_path, server):
    os.mkfifo(tmp_path / ".env")
    assert batcher("run", job, "--base-url", server.base_url).code == 0


def test_a_compressed_file_without_the_name_of_one(batcher, job, tmp_path):
    (tmp_path / "packed.jsonl").write_bytes(gzip.compress(job.read_bytes()))
    assert "give it a name that ends in .gz" in one_line(batcher("run", "packed.jsonl"))


def test_one_row_that_asks_for_too_much_does_not_stop_the_job(batcher, server, reviews, write):
    large = {"model": "m", "input": "x", "dimensions": 10**18}
    job = write([*reviews(3), {"custom_id": "large", "url": "/v1/embeddings", "body": large}])
    ended = batcher("run", job, "--base-url", server.base_url, "--json")
    assert (ended.code, ended.json["succeeded"], ended.json["failed"]) == (1, 3, 1)


def test_a_store_is_one_by_whatever_name_it_is_called(batcher, launch, serve, job, tmp_path):
    with serve("--latency-after", "1500") as slow:
        with launch("run", job, "--base-url", slow.base_url) as running:
            slow.wait_for(3, running)
            (tmp_path / "other.db").symlink_to("job.db")
            ended = batcher("run", job, "--base-url", slow.base_url, "--store", "other.db")
            assert "is in use by process" in one_line(ended)
            assert running.finish().code == 0
        assert slow.ledger()["requests"] == 3


def test_no_job_file(batcher):
    assert "no.jsonl can't be read: No such file" in one_line(batcher("run", "no.jsonl"))


def test_an_empty_job_file(batcher, tmp_path):
    (tmp_path / "job.jsonl").touch()
    assert "job.jsonl is empty" in one_line(batcher("run", "job.jsonl"))


def test_a_folder_as_the_job_file(batcher, tmp_path):
    (tmp_path / "jobs").mkdir()
    assert "jobs is a directory" in one_line(batcher("run", "jobs"))


@pytest.mark.parametrize("key", [None, "  "])
def test_no_key(batcher, job, key):
    assert "set OPENAI_API_KEY" in one_line(batcher("run", job, env={"OPENAI_API_KEY": key}))


def test_no_key_as_json(batcher, job):
    ended = batcher("run", job, "--json", env={"OPENAI_API_KEY": None})
    assert "set OPENAI_API_KEY" in one_line_and_json(ended)


def test_a_base_url_may_leave_out_v1_or_end_with_a_slash(batcher, server, job, tmp_path):
    bare = server.base_url.removesuffix("/v1")
    for number, base_url in enumerate((bare, f"{server.base_url}/")):
        ended = batcher("run", job, "--base-url", base_url, "--store", f"{number}.db", "--json", "--quiet")
        assert (ended.code, ended.json["succeeded"]) == (0, 3)


@pytest.mark.parametrize("option", ["--store", "--output", "--errors"])
def test_a_folder_that_may_not_be_written(batcher, server, job, tmp_path, option):
    (tmp_path / "closed").mkdir(mode=0o500)
    ended = batcher("run", job, "--base-url", server.base_url, "--json", option, "closed/file")
    assert "closed" in one_line_and_json(ended, code=3)


def test_a_key_that_no_header_can_hold_is_not_shown(batcher, job):
    line = one_line(batcher("run", job, env={"OPENAI_API_KEY": "sk-secret\nx"}))
    assert "OPENAI_API_KEY" in line
    assert "secret" not in line


def test_standard_input_without_a_store(batcher):
    assert "--store" in one_line(batcher("run", "-"))


def test_the_store_of_another_endpoint(batcher, server, job):
    assert batcher("run", job, "--base-url", server.base_url).code == 0
    line = one_line_and_json(batcher("run", job, "--base-url", "http://127.0.0.1:2/v1", "--json"))
    assert server.base_url in line
    assert "http://127.0.0.1:2/v1" in line
    assert "--store" in line


def test_another_namespace_than_the_stores(batcher, server, job):
    assert batcher("run", job, "--base-url", server.base_url, "--namespace", "mine").code == 0
    line = one_line(batcher("run", job, "--base-url", server.base_url, "--namespace", "other"))
    assert "--namespace" in line


@pytest.mark.parametrize("command", ["status", "export"])
def test_before_any_run(batcher, job, command):
    line = one_line(batcher(command, job))
    assert "job.db does not exist: nothing of this job has run yet" in line


@pytest.mark.parametrize("command", ["status", "export"])
def test_what_is_not_a_store(batcher, job, tmp_path, command):
    (tmp_path / "notes.txt").write_text("not a store\n")
    assert "not a batcher store" in one_line(batcher(command, job, "--store", "notes.txt"))


@pytest.mark.parametrize("command", ["status", "export"])
def test_standard_input_has_no_store_of_its_own(batcher, command):
    line = one_line(batcher(command, "-"))
    assert "--store" in line
    assert "None" not in line


def test_a_job_that_is_cut_off_keeps_what_was_before(batcher, server, write, reviews, tmp_path):
    whole = gzip.compress(write(reviews(2000)).read_bytes())
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    ended = batcher("run", "cut.jsonl.gz", "--base-url", server.base_url, "--json", "--quiet")
    assert "cut.jsonl.gz can't be read" in ended.err
    assert len(ended.err.splitlines()) == 1
    assert ended.code == 3
    assert ended.json["succeeded"] > 0


@pytest.mark.parametrize(
    "args",
    [
        ["simulate", "--port", "99999"],
        ["simulate", "--fault", "fire=1%"],
        ["simulate", "--latency-after", "x"],
        ["demo", "--rpm", "0"],
        ["demo", "--dir", "notes.txt"],
    ],
)
def test_other_commands(batcher, tmp_path, args):
    (tmp_path / "notes.txt").write_text("a file\n")
    line = one_line(batcher(*args))
    assert f"'{args[1]}'" in line
    assert f"batcher {args[0]} --help" in line


def test_a_port_that_is_taken(batcher, server):
    line = one_line(batcher("simulate", "--port", server.port))
    assert str(server.port) in line


@pytest.mark.parametrize("option", ["--failed", "--attempts"])
@pytest.mark.parametrize("name", ["job.jsonl", "job.db", "job.results.jsonl"])
def test_an_export_replaces_no_file_of_its_job(batcher, server, job, tmp_path, option, name):
    assert batcher("run", job, "--base-url", server.base_url).code == 0
    before = (tmp_path / name).read_bytes()
    assert "is a file of this job" in one_line(batcher("export", job, option, name))
    assert (tmp_path / name).read_bytes() == before


def test_a_plain_file_that_is_named_gz(batcher, server, job, tmp_path):
    (tmp_path / "fake.jsonl.gz").write_bytes((tmp_path / "job.jsonl").read_bytes())
    assert "can't be read" in one_line(batcher("run", "fake.jsonl.gz", "--base-url", server.base_url))
