import gzip
import math
import os
import random
import sys

import anyio
import msgspec
import orjson
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from batcher.errors import ConfigurationError, JobFileError
from batcher.jobfile import check_job
from batcher.money.prices import PriceBook
from batcher.parse import parse
from batcher.request import Rejected, Request
from batcher.source import Requests, Source, batch_line, count_rows
from batcher.tokens import Ratios

CHAT = "/v1/chat/completions"
BOM = b"\xef\xbb\xbf"


def requests(namespace="n", pool_of=None, ratios=None):
    book = PriceBook("http://localhost/v1", at=0.0)
    return Requests(namespace, pool_of or {}, "shared", book, ratios or Ratios())


def bare(text="hi", **more):
    return orjson.dumps({"model": "m", "messages": [{"role": "user", "content": text}], **more})


def named(name, text="hi", url=CHAT, **more):
    return b'{"custom_id":%b,"url":"%b","body":%b}' % (orjson.dumps(name), url.encode(), bare(text, **more))


async def read(source, made):
    """Read all groups; return them and the error that ended them, if one did."""
    groups, error = [], None
    try:
        async for group in source.groups(made):
            groups.append(group)  # noqa: PERF401  what came before an error counts
    except JobFileError as caught:
        error = caught
    source.close()
    return groups, error


def rows_of(path, limit=None, made=None):
    groups, error = anyio.run(read, Source(str(path), limit), made or requests())
    assert error is None, error
    return [item for group in groups for item in group]


@pytest.fixture
def job(tmp_path):
    def write(*lines, name="job.jsonl", end=b"\n"):
        path = tmp_path / name
        path.write_bytes(b"".join(line + end for line in lines))
        return path

    return write


def row(item):
    return item.row if isinstance(item, Rejected) else item.rows[0]


def keys(items):
    return [row(item).key for item in items]


# --- lines


def test_rows_come_in_the_order_of_the_file_with_their_line_numbers(job):
    items = rows_of(job(named("a"), bare(), named("c")))
    assert [(row(item).seq, row(item).custom_id) for item in items] == [(1, "a"), (2, "row-2"), (3, "c")]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"%b\n%b\n", id="plain"),
        pytest.param(b"%b\n%b", id="no last line break"),
        pytest.param(b"%b\r\n%b\r\n", id="CRLF"),
        pytest.param(b"%b\r\n%b", id="CRLF, no last line break"),
        pytest.param(BOM + b"%b\n%b\n", id="BOM"),
        pytest.param(BOM + b"%b\r\n%b\r\n", id="BOM and CRLF"),
        pytest.param(b"  %b\t\n\t%b \n", id="spaces around"),
    ],
)
def test_how_lines_end_does_not_matter(tmp_path, content):
    path = tmp_path / "job.jsonl"
    path.write_bytes(content % (named("a"), named("b")))
    items = rows_of(path)
    assert [row(item).custom_id for item in items] == ["a", "b"]
    assert all(isinstance(item, Request) for item in items)
    assert keys(items) == [parse(named(name), 1).digest() for name in "ab"]
    assert count_rows(str(path)) == 2


def test_blank_lines_are_no_rows_but_count_in_line_numbers(job):
    path = job(b"", named("a"), b" \t", b"\r", b"{", b"", name="gaps.jsonl")
    source = Source(str(path))
    (group,), error = anyio.run(read, source, requests())
    assert [row(item).seq for item in group] == [2, 5]
    assert group[1].reason.startswith("line 5: not valid JSON")
    assert (source.count, source.last_seq, source.ended, error) == (2, 6, True, None)
    assert count_rows(str(path)) == 2


@pytest.mark.parametrize("content", [b"", b"\n", b"\n \r\n\n", BOM, BOM + b"\n"])
def test_a_file_without_rows_is_no_job(tmp_path, content):
    path = tmp_path / "empty.jsonl"
    path.write_bytes(content)
    source = Source(str(path))
    groups, error = anyio.run(read, source, requests())
    assert groups == []
    assert str(error) == f"{path} holds no rows: a job file has one request per line"
    # Not read to its end: that would let every row of the store go.
    assert (source.count, source.ended, count_rows(str(path))) == (0, False, 0)
    with pytest.raises(JobFileError, match="holds no rows"):
        anyio.run(source.count_rest)
    with pytest.raises(JobFileError, match="is empty" if not content else "holds no rows"):
        check_job(str(path))


def test_a_bom_in_the_middle_is_no_bom(job):
    items = rows_of(job(named("a"), BOM + named("b")))
    assert [type(item) for item in items] == [Request, Rejected]


def test_many_rows_come_in_groups_that_lose_none(job):
    path = job(*(named(f"n{number}", "x" * (number % 97)) for number in range(3000)))
    groups, _ = anyio.run(read, Source(str(path)), requests())
    assert len(groups) > 5
    assert all(groups)
    assert [row(item).seq for group in groups for item in group] == list(range(1, 3001))
    assert all(isinstance(item, Request) for group in groups for item in group)


def test_a_line_longer_than_many_blocks_is_one_row(job):
    text = "x" * 20_000_000
    items = rows_of(job(named("a"), named("big", text), named("c")))
    assert [row(item).custom_id for item in items] == ["a", "big", "c"]
    assert items[1].body == bare(text)


def test_a_line_without_an_end_is_not_waited_for(tmp_path, monkeypatch):
    path = tmp_path / "job.jsonl"
    with path.open("wb") as file:
        file.write(named("a") + b"\n[")
        file.truncate(10**13)
    monkeypatch.setattr("batcher.source._LONGEST_LINE_BYTES", 3_000_000)
    groups, error = anyio.run(read, Source(str(path)), requests())
    assert [row(item).custom_id for group in groups for item in group] == ["a"]
    assert str(error).startswith(f"{path}: line 2 is longer than ")


def test_line_breaks_at_the_edges_of_a_block_cut_nothing(job):
    block = 1 << 20
    first = named("a")
    for shift in (-2, -1, 0, 1):
        padding = block - len(first) - 1 - len(named("p", "")) + shift
        path = job(first, named("p", "x" * padding), named("b"), end=b"\n")
        assert [row(item).custom_id for item in rows_of(path)] == ["a", "p", "b"]


@settings(max_examples=60)
@given(st.lists(st.sampled_from([b"\n", b"\r", b" ", b"{", b"}", b"1", b'"', BOM, b"\0", b"\x0b", b"\xff"])))
def test_any_bytes_are_rows_and_their_count_is_known_beforehand(tmp_path_factory, pieces):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(b"".join(pieces))
    groups, error = anyio.run(read, Source(str(path)), requests())
    count = sum(map(len, groups))
    assert count == count_rows(str(path))
    # Both ways of looking at a file agree whether there is a job in it.
    try:
        check_job(str(path))
    except JobFileError:
        assert (count, type(error)) == (0, JobFileError)
    else:
        assert (count > 0, error) == (True, None)


# --- compression


@settings(max_examples=60)
@given(st.sampled_from([".gz", ".zst"]), st.integers(0, 400), st.binary(max_size=4), st.integers(0, 4))
def test_whatever_became_of_a_compressed_file_it_is_rows_or_one_error(tmp_path_factory, suffix, at, put, cut):
    """What comes before the damage is rows, and what was put in makes none of them up."""
    whole = b"\n".join(named(f"r{number}") for number in range(200))
    packed = gzip.compress(whole, mtime=0) if suffix == ".gz" else zstandard.compress(whole)
    at = min(at, len(packed))
    path = tmp_path_factory.getbasetemp() / f"any.jsonl{suffix}"
    path.write_bytes(packed[:at] + put + packed[at + cut :])
    groups, error = anyio.run(read, Source(str(path)), requests())
    rows = [item for group in groups for item in group]
    assert error is not None or rows
    if packed == path.read_bytes():
        assert (len(rows), error) == (200, None)
    if error is not None:
        assert str(path) in str(error)
        assert "\n" not in str(error)


def gz(data, path):
    path.write_bytes(gzip.compress(data))


def zst(data, path):
    path.write_bytes(zstandard.ZstdCompressor(write_checksum=True).compress(data))


def noisy(count):
    """Rows that do not compress to nothing."""
    chance = random.Random(1)
    return b"".join(named(f"n{number}", chance.randbytes(40).hex()) + b"\n" for number in range(count))


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gz), (".zst", zst)])
class TestCompressed:
    def test_it_reads_as_the_file_inside(self, tmp_path, suffix, compress):
        data = noisy(5000)
        plain, packed = tmp_path / "a.jsonl", tmp_path / f"a.jsonl{suffix}"
        plain.write_bytes(data)
        compress(data, packed)
        assert rows_of(packed) == rows_of(plain)
        assert count_rows(str(packed)) == 5000

    def test_parts_that_were_packed_one_by_one_are_one_file(self, tmp_path, suffix, compress):
        parts = [BOM + noisy(10), named("x") + b"\n" + named("y")[:9], named("y")[9:] + b"\n", b""]
        packed = tmp_path / f"a.jsonl{suffix}"
        whole = b""
        for part in parts:
            compress(part, packed)
            whole += packed.read_bytes()
        packed.write_bytes(whole)
        assert [row(item).custom_id for item in rows_of(packed)][-3:] == ["n9", "x", "y"]
        assert count_rows(str(packed)) == 12

    @pytest.mark.parametrize("rows", [100, 20_000])
    def test_one_that_is_cut_off_gives_what_is_there_and_says_so(self, tmp_path, suffix, compress, rows):
        packed = tmp_path / f"a.jsonl{suffix}"
        data = noisy(rows)
        compress(data, packed)
        packed.write_bytes(packed.read_bytes()[:-200])
        source = Source(str(packed))
        groups, error = anyio.run(read, source, requests())
        items = [item for group in groups for item in group]
        after = f" on after line {len(items)}: it is cut off: " if items else ": it is cut off: "
        assert str(error).startswith(f"{packed} can't be read{after}")
        assert error.exit_code == 2
        assert not source.ended
        assert source.count == len(items)
        assert all(isinstance(item, Request) for item in items)
        assert [row(item).seq for item in items] == list(range(1, len(items) + 1))
        if suffix == ".gz" or rows > 10_000:  # zstd gives whole blocks of 128 KiB
            assert len(items) > 0.4 * rows
        with pytest.raises(JobFileError, match="can't be read to its end"):
            count_rows(str(packed))

    def test_one_that_is_damaged_is_an_error_of_the_file(self, tmp_path, suffix, compress):
        packed = tmp_path / f"a.jsonl{suffix}"
        compress(noisy(3000), packed)
        content = bytearray(packed.read_bytes())
        middle = len(content) // 2
        content[middle : middle + 2000] = b"\xaa" * 2000
        packed.write_bytes(content)
        _, error = anyio.run(read, Source(str(packed)), requests())
        assert str(packed) in str(error)
        with pytest.raises(JobFileError):
            count_rows(str(packed))

    def test_what_only_has_the_suffix_is_an_error_of_the_file(self, tmp_path, suffix, compress):
        path = tmp_path / f"a.jsonl{suffix}"
        compress(b"", path)
        path.write_bytes(named("a") + b"\n" + path.read_bytes())
        groups, error = anyio.run(read, Source(str(path)), requests())
        assert groups == []
        assert str(path) in str(error)
        with pytest.raises(JobFileError):
            count_rows(str(path))

    def test_nothing_at_all_is_no_rows(self, tmp_path, suffix, compress):
        path = tmp_path / f"a.jsonl{suffix}"
        compress(b"", path)
        _, error = anyio.run(read, Source(str(path)), requests())
        assert str(error).startswith(f"{path} holds no rows")
        assert count_rows(str(path)) == 0


def test_a_gz_file_that_makes_no_sense_inside_is_an_error_of_the_file(tmp_path):
    path = tmp_path / "a.gz"
    good = gzip.compress(named("a") + b"\n", mtime=0)
    path.write_bytes(good + good[:10] + b"\x07" + good[11:])  # a deflate block of the kind that is reserved
    groups, error = anyio.run(read, Source(str(path)), requests())
    assert [row(item).custom_id for group in groups for item in group] == ["a"]
    assert str(error).startswith(f"{path} can't be read on after line 1: its compression is damaged (")
    with pytest.raises(JobFileError, match="can't be read to its end"):
        count_rows(str(path))


def test_frames_to_be_skipped_are_skipped(tmp_path):
    path = tmp_path / "a.zst"
    skippable = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"abcd"
    frames = [zstandard.compress(named(name) + b"\n") for name in "ab"]
    path.write_bytes(skippable + frames[0] + skippable + frames[1] + skippable)
    assert [row(item).custom_id for item in rows_of(path)] == ["a", "b"]


def test_without_the_extra_a_zst_file_says_what_to_install(job, monkeypatch):
    path = job(named("a"), name="a.zst")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'batcher-openai\[zst\]'"):
        anyio.run(read, Source(str(path)), requests())


# --- files that can't be read


UTF16 = named("a").decode().encode("utf-16")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b"", "is empty: a job file has one request per line"),
        ("a.jsonl", UTF16, "is UTF-16, and a job file must be UTF-8"),
        ("a.jsonl", b"\xfe\xff\0{", "is UTF-16, and a job file must be UTF-8"),
        ("a.gz", gzip.compress(UTF16), "is UTF-16, and a job file must be UTF-8"),
        ("a.gz", gzip.compress(b"\n" * 3_000_000), "holds no rows"),
        ("a.gz", named("a"), "can't be read: it is not gzip"),
        ("a.gz", gzip.compress(noisy(9))[:40], "can't be read: it is cut off"),
        ("a.gz", gzip.compress(noisy(9))[:5], "can't be read: it is cut off"),
        ("a.zst", zstandard.compress(b"\n\n"), "holds no rows"),
        ("a.zst", named("a"), "can't be read: it is not zstd"),
        ("a.zst", zstandard.compress(noisy(9))[:40], "can't be read: it is cut off"),
    ],
    ids=lambda value: value if type(value) is str else "",
)
def test_a_file_without_a_job_in_it_is_refused_beforehand(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(JobFileError) as caught:
        check_job(str(path))
    assert str(caught.value).startswith(f"{path} {says}")
    assert "\n" not in str(caught.value)


def test_a_file_that_may_not_be_read_says_so(job, monkeypatch):
    path = job(named("a"))

    def refuse(*_args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(JobFileError, match=r"job\.jsonl can't be read: Permission denied"):
        check_job(str(path))


@pytest.mark.parametrize(
    "content",
    [named("a"), b"\n\n" + named("a"), b"{", b"\n" * 2_000_000 + b"x", b"\xff"],
    ids=["a row", "blank lines first", "no JSON", "blank blocks first", "no UTF-8"],
)
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_file_with_a_line_in_it_is_a_job(tmp_path, content, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    {"": lambda data, path: path.write_bytes(data), ".gz": gz, ".zst": zst}[suffix](content, path)
    check_job(str(path))


def test_a_file_that_is_not_there_is_named(tmp_path):
    for name in ("none.jsonl", "none.gz", "none.zst"):
        path = tmp_path / name
        _, error = anyio.run(read, Source(str(path)), requests())
        assert str(error) == f"{path} can't be read: No such file or directory"


def test_a_folder_is_no_job(tmp_path):
    _, error = anyio.run(read, Source(str(tmp_path)), requests())
    assert str(error) == f"{tmp_path} can't be read: Is a directory"
    with pytest.raises(JobFileError):
        count_rows(str(tmp_path))


def test_standard_input_is_read_as_it_comes(monkeypatch):
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stdin, os.fdopen(writing, "wb") as out:
        monkeypatch.setattr(sys, "stdin", type("Stdin", (), {"buffer": stdin}))
        out.write(named("a") + b"\n" + named("b"))
        out.close()
        source = Source("-")
        groups, error = anyio.run(read, source, requests())
        assert not stdin.closed
    assert [row(item).custom_id for group in groups for item in group] == ["a", "b"]
    assert error is None
    assert anyio.run(source.count_rest) == 2


# --- a limit


@pytest.mark.parametrize(("limit", "count"), [(1, 1), (2, 2), (3, 3), (4, 3), (None, 3)])
def test_no_more_rows_are_read_than_asked_for(job, limit, count):
    path = job(named("a"), b"", b"{", named("c"))
    source = Source(str(path), limit)
    groups, _ = anyio.run(read, source, requests())
    assert sum(map(len, groups)) == source.count == count
    assert anyio.run(source.count_rest) == 3


@pytest.mark.parametrize("limit", [255, 256, 257, 512])
def test_a_limit_at_the_edge_of_a_group_is_exact(job, limit):
    path = job(*(named(f"n{number}") for number in range(600)))
    source = Source(str(path), limit)
    groups, _ = anyio.run(read, source, requests())
    assert all(groups)
    assert sum(map(len, groups)) == source.count == limit
    assert not source.ended
    assert anyio.run(source.count_rest) == 600


# --- requests


def test_a_request_is_what_its_line_asks_for(job):
    body = {"model": "own-model", "messages": [{"role": "user", "content": "x" * 400}], "max_tokens": 7}
    line = orjson.dumps({"custom_id": "a", "method": "POST", "url": CHAT, "body": body})
    (item,) = rows_of(job(line))
    assert (item.path, item.model, item.pool) == (CHAT, "own-model", "shared")
    assert item.body == orjson.dumps(body)
    assert (item.tokens, item.input_bytes) == (107, 400)
    assert item.worst_cost_pico_usd is None  # nobody has told its price
    assert row(item).key == parse(line, 1).digest()


def test_the_tokens_of_a_request_follow_what_its_model_has_shown(job):
    ratios = Ratios()
    path = job(bare("x" * 400, max_tokens=7), bare("x" * 400, max_tokens=7, model="other"))
    for item in rows_of(path, made=requests(ratios=ratios)):
        ratios.learn(item, 207 if item.model == "other" else 0)
    learned, guessed = (math.ceil(400 * ratios.of(model)) for model in ("other", "m"))
    assert learned > guessed == 100
    assert [item.tokens for item in rows_of(path, made=requests(ratios=ratios))] == [107, learned + 7]


def test_a_model_with_a_limit_of_its_own_goes_to_its_pool(job):
    made = requests(pool_of={"m": "pool-of-m"})
    items = rows_of(job(named("a"), named("b", model="other")), made=made)
    assert [item.pool for item in items] == ["pool-of-m", "shared"]


def test_the_idempotency_key_is_the_same_each_time_and_fits_a_header(job):
    path = job(named("a"), named("b"), bare())
    first, second = rows_of(path), rows_of(path)
    assert [item.key for item in first] == [item.key for item in second]
    assert len({item.key for item in first}) == 3
    assert all(0 < len(item.key) <= 64 and item.key.isascii() and item.key.isalnum() for item in first)


def test_the_idempotency_key_differs_by_namespace_url_body_and_row(job):
    lines = [
        named("a", n=1),
        named("b", n=1),
        named("a2", n=2),
        b'{"custom_id":"a3","url":"/v1/responses","body":{"model":"m","input":"x"}}',
        b'{"custom_id":"a4","url":"/v1/embeddings","body":{"model":"m","input":"x"}}',
    ]
    path = job(*lines)
    made = {item.key for namespace in ("n", "other", "") for item in rows_of(path, made=requests(namespace))}
    assert len(made) == 3 * len(lines)


def test_the_idempotency_key_is_the_same_whatever_is_around_the_row(job):
    (alone,) = rows_of(job(named("a")))
    among = rows_of(job(bare(), b"", named("z"), b' {"body": %b, "custom_id": "a"}' % bare(), name="b.jsonl"))
    assert among[2].key == alone.key
    assert row(among[2]).key == row(alone).key


def test_each_epoch_of_a_request_has_a_key_of_its_own_the_same_each_time(job):
    (request,) = rows_of(job(named("a")))
    later = [requests().at_epoch(request, epoch) for epoch in range(1, 50)]
    assert len({request.key, *(each.key for each in later)}) == 50
    assert [requests().at_epoch(request, epoch) for epoch in range(1, 50)] == later
    # whichever epoch it comes from
    assert [requests().at_epoch(each, each.epoch + 1) for each in later[:-1]] == later[1:]
    assert all(len(each.key) <= 64 and each.key.isascii() for each in later)


def test_another_epoch_changes_nothing_else_of_a_request(job):
    (request,) = rows_of(job(named("a", max_tokens=7)))
    later = requests().at_epoch(request, 3)
    assert (request.epoch, later.epoch) == (0, 3)
    assert msgspec.structs.replace(later, key=request.key, epoch=0) == request


def test_the_keys_of_an_epoch_differ_by_namespace_url_body_and_row(job):
    rows = [named("a"), named("b"), named("a", "ho")]
    keys_at = [
        made.at_epoch(item, 1).key
        for made in (requests(), requests("other"))
        for line in rows
        for item in rows_of(job(line))
    ]
    assert len(set(keys_at)) == 6


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.text(max_size=5), st.text(max_size=5))
def test_no_two_epochs_of_any_requests_share_a_key(one, other, text, words):
    made = requests()
    drafts = [parse(named("a", each), 1) for each in (text, words)]
    (first, second) = (made.request(draft, draft.digest()) for draft in drafts)
    same = (one, text) == (other, words)
    assert (made.at_epoch(first, one).key == made.at_epoch(second, other).key) == same


# --- keys


def test_equal_bare_bodies_are_told_apart_by_their_occurrence_and_not_their_place(job):
    first = rows_of(job(bare("x"), bare("y"), bare("x"), bare("x")))
    assert len(set(keys(first))) == 4
    assert {len(key) for key in keys(first)} == {16}
    shuffled = rows_of(job(bare("x"), b"", named("n"), bare("x"), bare("y"), bare("x"), name="b.jsonl"))
    assert keys(shuffled) == [keys(first)[0], row(shuffled[1]).key, *(keys(first)[at] for at in (2, 1, 3))]


def test_a_bare_body_counts_as_the_same_however_it_is_written(job):
    spaced = bare("x").replace(b":", b" : ")
    first, second = rows_of(job(bare("x"), bare("x"))), rows_of(job(spaced, spaced, name="b.jsonl"))
    assert keys(first) == keys(second)


def test_occurrences_are_counted_across_groups(job):
    items = rows_of(job(*[bare("x")] * 700))
    assert len(set(keys(items))) == 700


def test_a_bare_body_and_a_named_row_of_it_are_two_rows(job):
    items = rows_of(job(bare("x"), named("row-9", "x")))
    assert len(set(keys(items))) == 2


def test_a_name_is_used_once(job):
    items = rows_of(job(named("a"), named("b"), named("a", "other"), named("c"), named("a")))
    assert [type(item) for item in items] == [Request, Request, Rejected, Request, Rejected]
    for item, seq in ((items[2], 3), (items[4], 5)):
        assert item.reason == f"line {seq}: custom_id 'a' is used by line 1 already: names must be unique"
        assert (item.row.seq, item.row.custom_id) == (seq, "a")
    assert items[2].line == named("a", "other")
    assert len(set(keys(items))) == 5


def test_a_name_is_used_once_however_far_apart(job):
    lines = [named(f"n{number}") for number in range(1000)]
    items = rows_of(job(*lines, named("n3"), named("n700"), named("new"), named("new")))
    assert [item.reason.split(":")[1] for item in items if isinstance(item, Rejected)] == [
        " custom_id 'n3' is used by line 4 already",
        " custom_id 'n700' is used by line 701 already",
        " custom_id 'new' is used by line 1003 already",
    ]


def test_a_name_is_used_once_even_hundreds_of_thousands_of_rows_apart(tmp_path):
    path = tmp_path / "job.jsonl"
    with path.open("wb") as file:
        file.write(named("first") + b"\n")
        body = b'{"custom_id":"n%d","body":{"model":"m","prompt":""}}\n'
        file.writelines(body % number for number in range(300_000))
        file.write(named("first", "other") + b"\n")

    class Unmade:
        """Makes no requests: only names matter here."""

        def request(self, *_draft_and_key):
            return None

    source = Source(str(path))

    async def rejected():
        return [item async for group in source.groups(Unmade()) for item in group if item]

    (last,) = anyio.run(rejected)
    source.close()
    assert last.reason == "line 300002: custom_id 'first' is used by line 1 already: names must be unique"


def test_a_bare_row_has_the_name_of_its_line(job):
    items = rows_of(job(named("row-2"), bare(), named("row-4"), bare("x")))
    assert [type(item) for item in items] == [Request, Rejected, Request, Rejected]


def test_a_line_that_is_refused_uses_no_name(job):
    items = rows_of(job(named("a", stream=True), named("a")))
    assert [type(item) for item in items] == [Rejected, Request]


# --- the line of a request


@pytest.mark.parametrize("name", ["a", 'quote " back \\ line \n é 😀', "x" * 5000])
def test_a_request_written_as_a_line_is_the_same_row_again(job, name):
    (item,) = rows_of(job(named(name, "é\u2028")))
    line = batch_line(item, item.rows[0])
    assert b"\n" not in line
    assert list(orjson.loads(line)) == ["custom_id", "method", "url", "body"]
    (again,) = rows_of(job(line, name="again.jsonl"))
    assert again == item
