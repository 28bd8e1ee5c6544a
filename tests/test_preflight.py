"""What a job brings to the disk: the estimate beside stores that really ran, and what is made of it."""

import asyncio
import gzip
import random
from collections import namedtuple
from pathlib import Path

import orjson
import pytest
import zstandard

import batcher as library
from batcher import preflight as module
from batcher.errors import StoreWriteError
from batcher.options import Paths
from batcher.preflight import Need, Sample, estimate, preflight, reply_bytes

CHAT, RESPONSES, EMBEDDINGS = "/v1/chat/completions", "/v1/responses", "/v1/embeddings"
MODERATIONS, COMPLETIONS = "/v1/moderations", "/v1/completions"
EMPTY = module._EMPTY_STORE_BYTES
MESSAGES = [{"role": "user", "content": "How does the reviewer feel about the movie?"}]


def line(number, url=CHAT, **body):
    body = {"model": "m", **({"messages": MESSAGES} if url == CHAT else {}), **body}
    return orjson.dumps({"custom_id": f"review-{number}", "method": "POST", "url": url, "body": body})


def sample(*lines):
    return Sample(lines, len(lines), is_whole=True)


@pytest.fixture
def write(tmp_path):
    def job(lines, name="job.jsonl"):
        content = b"".join(each + b"\n" for each in lines)
        pack = {".gz": gzip.compress, ".zst": zstandard.compress}.get(Path(name).suffix, bytes)
        (tmp_path / name).write_bytes(pack(content))
        return str(tmp_path / name)

    return job


def paths(job):
    return Paths.of(job, None)


def looked_at(job, **options):
    return preflight(job, paths(job), **options)


# --- beside the truth


@pytest.mark.parametrize(
    ("count", "url", "body"),
    [
        pytest.param(2000, CHAT, {"max_completion_tokens": 16}, id="chat"),
        pytest.param(2000, CHAT, {}, id="chat without a limit"),
        pytest.param(2000, RESPONSES, {"input": "x" * 200, "max_output_tokens": 16}, id="responses"),
        pytest.param(2000, COMPLETIONS, {"prompt": "x" * 200}, id="completions"),
        pytest.param(1000, MODERATIONS, {"input": ["x" * 200, "y"]}, id="moderations"),
        pytest.param(200, EMBEDDINGS, {"input": "some text", "dimensions": 1536}, id="embeddings"),
        pytest.param(
            500,
            EMBEDDINGS,
            {"input": ["a", "b"], "dimensions": 256, "encoding_format": "base64"},
            id="embeddings in base64",
        ),
        pytest.param(2000, CHAT, {"model": None}, id="lines that are refused"),
    ],
)
def test_the_estimate_is_near_what_a_job_takes(server, write, monkeypatch, tmp_path, count, url, body):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    job = write([line(number, url, **body) for number in range(count)])
    guess = looked_at(job)
    asyncio.run(library.run(job, base_url=server.base_url, max_inflight=50))
    files = (paths(job).store, paths(job).output, paths(job).errors)
    real = sum(path.stat().st_size for path in files)
    assert guess.least_bytes <= real
    assert real / 2 <= guess.likely_bytes <= real * 2


# --- the estimate


def test_a_row_counts_in_the_store_and_in_the_results_and_a_bad_line_in_the_errors():
    least, likely = estimate(sample(line(1)))
    assert EMPTY < least.store < likely.store
    assert 0 < least.results < likely.results
    assert (least.errors, likely.errors) == (0, 0)
    least, likely = estimate(sample(b"x" * 5000))
    assert least.results == likely.results == 0
    assert 5000 <= least.errors <= likely.errors < 5500
    assert 5000 <= least.store - EMPTY <= likely.store - EMPTY < 5500


def test_rows_that_were_not_looked_at_count_as_those_that_were_but_only_some_of_them_for_certain():
    least, likely = estimate(sample(line(1)))
    most_least, most_likely = estimate(Sample([line(1)], 1_000_000, is_whole=False))
    assert most_least.results == pytest.approx(least.results * 500_000)
    assert most_likely.results == pytest.approx(likely.results * 1_000_000)


def test_rows_beyond_the_limit_do_not_count():
    many, few = Sample([line(1)] * 8, 1e9, is_whole=False), sample(*[line(1)] * 16)
    assert estimate(many, 16)[1].store == pytest.approx(estimate(few)[1].store)
    assert estimate(few, 50) == estimate(few)


@pytest.mark.parametrize(
    ("url", "small", "large"),
    [
        (CHAT, {"max_completion_tokens": 5}, {"max_completion_tokens": 50}),
        (CHAT, {"max_tokens": 5}, {}),
        (CHAT, {}, {"n": 3}),
        (CHAT, {"max_tokens": 5, "max_completion_tokens": 500}, {"max_completion_tokens": 500}),
        (RESPONSES, {"max_output_tokens": 5}, {}),
        (RESPONSES, {}, {"instructions": "x" * 50}),
        (COMPLETIONS, {}, {"max_tokens": 50}),
        (COMPLETIONS, {"prompt": "a"}, {"prompt": ["a", "b"]}),
        (EMBEDDINGS, {"input": "a"}, {"input": ["a", "b"]}),
        (EMBEDDINGS, {"input": [1, 2, 3]}, {"input": [[1, 2, 3], [4]]}),
        (EMBEDDINGS, {"dimensions": 64}, {}),
        (EMBEDDINGS, {"encoding_format": "base64"}, {"encoding_format": "float"}),
        (MODERATIONS, {"input": "a"}, {"input": ["a", "b"]}),
    ],
)
def test_what_makes_a_reply_longer(url, small, large):
    assert reply_bytes(url, "m", small)[1] < reply_bytes(url, "m", large)[1]


def test_a_limit_beyond_what_is_likely_changes_nothing():
    assert reply_bytes(CHAT, "m", {"max_tokens": 100_000}) == reply_bytes(CHAT, "m", {})
    assert reply_bytes(CHAT, "m", {"max_tokens": -1}) == reply_bytes(CHAT, "m", {})


def test_a_large_model_gives_long_vectors():
    small, large = (reply_bytes(EMBEDDINGS, f"text-embedding-3-{name}", {})[1] for name in ("small", "large"))
    assert small * 1.9 < large < small * 2.1


@pytest.mark.parametrize("value", [None, "x", 1.5, True, [], {}])
def test_wrong_types_raise_nothing(value):
    fields = dict.fromkeys(("n", "max_tokens", "dimensions", "input", "prompt", "encoding_format"), value)
    for url in (CHAT, RESPONSES, COMPLETIONS, EMBEDDINGS, MODERATIONS):
        assert all(0 <= size < 100_000 for size in reply_bytes(url, "m", fields))


# --- the sample


def near(value, factor=1.2):
    return pytest.approx(value, rel=factor - 1)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_rows_are_counted_by_size(write, name):
    chance = random.Random(1)
    job = write(
        [line(n, messages=[{"role": "user", "content": chance.randbytes(90).hex()}]) for n in range(30_000)],
        name,
    )
    found = module._read_sample(Path(job))
    assert not found.is_whole
    assert len(found.lines) < 30_000
    assert found.rows == near(30_000)


def test_a_file_that_is_sorted_by_length_is_looked_at_all_over(write):
    lines = [line(n, messages=[{"role": "user", "content": "x" * (n // 5)}]) for n in range(20_000)]
    assert module._read_sample(Path(write(lines))).rows == near(20_000, 1.3)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
@pytest.mark.parametrize("end", [b"", b"\n \n\n"])
def test_a_small_file_is_known_as_a_whole(tmp_path, write, name, end):
    job = write([b"\xef\xbb\xbf" + line(1), b"", line(2) + end], name)
    assert module._read_sample(Path(job)) == Sample([line(1), line(2)], 2, is_whole=True)


@pytest.mark.parametrize(
    "content", [b"", b"\n\n", b"x" * 3_000_000, b"\0" * 3_000_000], ids=["empty", "blank", "long", "zeros"]
)
def test_of_a_file_without_whole_lines_nothing_can_be_told(tmp_path, content):
    (tmp_path / "job.jsonl").write_bytes(content)
    assert looked_at(str(tmp_path / "job.jsonl")) is None


def test_of_standard_input_and_of_what_can_not_be_read_nothing_can_be_told(tmp_path):
    assert preflight("-", Paths.of("-", tmp_path / "job.db")) is None
    assert looked_at(str(tmp_path / "no.jsonl")) is None
    (tmp_path / "job.jsonl.gz").write_bytes(gzip.compress(line(1))[:40])
    assert looked_at(str(tmp_path / "job.jsonl.gz")) is None


# --- what is free


Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def free(monkeypatch):
    """Return a function that says how much of each folder's file system is free."""

    def disks(free_bytes, total=10**15):
        monkeypatch.setattr(
            module.shutil, "disk_usage", lambda _: Usage(total, total - free_bytes, free_bytes)
        )

    return disks


def test_with_room_there_is_nothing_to_say(write, free):
    free(10**12)
    found = looked_at(write([line(1)]))
    assert found.warning is None
    assert 0 < found.least_bytes < found.likely_bytes < found.free_bytes == 10**12


def test_too_little_for_what_is_certain_is_refused(write, free, tmp_path):
    job = write([line(number) for number in range(1500)])
    least = looked_at(job).least_bytes
    free(least)
    looked_at(job)
    free(least - 1)
    with pytest.raises(StoreWriteError) as caught:
        looked_at(job)
    assert caught.value.exit_code == 3
    text = str(caught.value)
    assert text.startswith(
        f"{tmp_path} has {(least - 1) / 1e3:.1f} kB free, and the store and the results of"
    )
    assert f"at least {least / 1e3:.1f} kB there, likely " in text
    assert text.endswith("make room, or name --store, --output and --errors on a larger disk")


def test_between_certain_and_likely_there_is_a_warning(write, free, tmp_path):
    job = write([line(number) for number in range(3000)])
    found = looked_at(job)
    free(found.likely_bytes - 1)
    warning = looked_at(job).warning
    assert warning.startswith(f"{tmp_path} has ")
    assert "\n" not in warning
    free(found.likely_bytes)
    assert looked_at(job).warning is None


def test_what_the_store_holds_is_there_already(write, tmp_path):
    job = write([line(number) for number in range(3000)])
    before = looked_at(job)
    paths(job).store.write_bytes(bytes(1_000_000))
    Path(f"{paths(job).store}-wal").write_bytes(bytes(1000))
    assert before.likely_bytes - looked_at(job).likely_bytes == near(1_001_000, 1.001)
    paths(job).store.write_bytes(bytes(100_000_000))
    # The results are written anew.
    assert 0 < looked_at(job).least_bytes < before.least_bytes


def test_each_file_system_has_its_own_share(write, tmp_path, monkeypatch):
    job = write([line(number) for number in range(3000)])
    (tmp_path / "other").mkdir()
    apart = Paths.of(job, None, tmp_path / "other" / "results.jsonl")
    together = looked_at(job).likely_bytes
    groups = [frozenset([tmp_path]), frozenset([tmp_path / "other"])]
    monkeypatch.setattr(module, "_by_device", lambda _: groups)
    free_bytes = {tmp_path: 10**9, tmp_path / "other": 10**8}
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: Usage(10**15, 0, free_bytes[folder]))
    results = preflight(job, apart)
    free_bytes[tmp_path / "other"] = 10**10
    store = preflight(job, apart)
    assert (results.free_bytes, store.free_bytes) == (10**8, 10**9)
    assert results.likely_bytes + store.likely_bytes == near(together, 1.001)


def test_folders_of_one_file_system_are_one(tmp_path):
    (tmp_path / "a").mkdir()
    found = module._by_device([tmp_path, tmp_path / "a", tmp_path / "missing"])
    assert found == [frozenset([tmp_path, tmp_path / "a"])]


def test_a_file_system_that_does_not_say_is_not_believed(write, free):
    free(0, total=0)
    assert looked_at(write([line(1)])) is None


def test_of_many_short_lines_some_are_read(write):
    found = module._read_sample(Path(write([b"{}"] * 50_000)))
    assert (len(found.lines) <= 2000, found.rows, found.is_whole) == (True, 50_000, False)


@pytest.mark.parametrize(
    ("count_bytes", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (2.5e9, "2.5 GB"), (3.21e15, "3,210.0 TB")],
)
def test_sizes_read_well(count_bytes, text):
    assert module._size(count_bytes) == text


def test_needs_add_up():
    assert Need(1, 2, 3) + Need(10, 20, 30).times(2) == Need(21, 42, 63)
