"""Whether the disk has room for what a job will bring: estimated from the job file, before anything is sent.

A row takes its bookkeeping and its reply in the store, and the reply again in the results file; a line that
can't be a request takes itself in the store and in the errors file. How many rows there are follows from the
file's size and a sample of its lines. The constants were measured on finished stores of 500 to 5,000 rows.
The write-ahead log does not count: it is emptied at 4 MB, and is gone when the results are written.
"""

import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec
import orjson

from batcher.errors import StoreWriteError
from batcher.jobfile import BOM, UNREADABLE, open_job
from batcher.options import Paths
from batcher.parse import Draft, parse
from batcher.tokens import DEFAULT_OUTPUT

#: So much of a job file's beginning is looked at: of a compressed one more, to know how far it grows.
_HEAD_BYTES: Final = 1 << 20
_PACKED_HEAD_BYTES: Final = 1 << 22
#: If there is more, so much is looked at in each of so many places instead.
_PLACE_BYTES: Final = 1 << 17
_PLACES: Final = 8
#: So many lines of that are read: a fraction of a second.
_MOST_LINES: Final = 2_000

#: A store without rows, and the index of its write-ahead log.
_EMPTY_STORE_BYTES: Final = 28_672 + 32_768
#: What a row takes in the store besides its name, its model and its body: likely, and where the server sends
#: no request id; and what a refused line does.
_ROW_BYTES: Final = (310, 230)
_REFUSED_BYTES: Final = 120
#: What a line of the results, and of the errors, takes besides the name and the body or the line.
_RESULT_BYTES: Final = 170
_ERROR_BYTES: Final = 170
#: SQLite's pages are never quite full.
_PAGE_SHARE: Final = 1.05

#: Url -> what a reply takes besides its text: likely, and at the very least from any server.
_ENVELOPE_BYTES: Final = {
    "/v1/chat/completions": (620, 150),
    "/v1/responses": (900, 250),
    "/v1/completions": (330, 100),
    "/v1/embeddings": (120, 60),
    "/v1/moderations": (130, 60),
}
_TOKEN_BYTES: Final = 4
#: Many answers are shorter than their limit.
_LIKELY_TOKENS: Final = 128
#: What a response repeats of its request.
_ECHOED: Final = ("instructions", "text", "tools")
#: One moderated input: likely, and at the very least.
_MODERATION_BYTES: Final = (1_200, 300)
#: One vector besides its numbers.
_VECTOR_BYTES: Final = 45
#: A number of a vector: in base64, as text likely, and as text at the very least.
_BASE64_NUMBER_BYTES: Final = 16 / 3
_NUMBER_BYTES: Final = 21.0
_LEAST_NUMBER_BYTES: Final = 6.0
#: Where a request leaves it open: how long a vector likely is, and the least that any model gives.
_DIMENSIONS: Final = {"text-embedding-3-large": 3072}
_LIKELY_DIMENSIONS: Final = 1536
_LEAST_DIMENSIONS: Final = 8
#: What asks for more is refused by every server, and must not speak for the other rows.
_MOST_DIMENSIONS: Final = 16_384
_MOST_CHOICES: Final = 128
#: The sample may not speak for the rest of the file: only so much of the rows counts as certain.
_CERTAIN_SHARE: Final = 0.5

_UNITS: Final = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


class Need(msgspec.Struct, frozen=True):
    """Bytes on disk: what some rows take in each of the job's files."""

    store: float = 0.0
    results: float = 0.0
    errors: float = 0.0

    def __add__(self, other: "Need") -> "Need":
        return Need(self.store + other.store, self.results + other.results, self.errors + other.errors)

    def times(self, factor: float) -> "Need":
        """Return what so many times as many rows take."""
        return Need(self.store * factor, self.results * factor, self.errors * factor)


class Sample(msgspec.Struct, frozen=True):
    """Whole lines of a job file that are not blank."""

    lines: Sequence[bytes]
    #: How many such rows the file likely has.
    rows: float
    #: Whether the lines are all that there are.
    is_whole: bool


class Preflight(msgspec.Struct, frozen=True):
    """What a job will bring to the file system that is the tightest for it."""

    #: What it needs there beyond what it has already: certain, and likely.
    least_bytes: int
    likely_bytes: int
    free_bytes: int
    #: One line, where it is not certain that there is room.
    warning: str | None


def preflight(job: str, paths: Paths, limit_rows: int | None = None) -> Preflight | None:
    """Compare what a job will bring with what is free; None where nothing can be told, as of standard input.

    Raises:
        StoreWriteError: what is free is less than what the job is certain to need.
    """
    sample = None if job == "-" else _read_sample(Path(job))
    if sample is None or not sample.lines:
        return None
    least, likely = estimate(sample, limit_rows)
    looked_at = [
        _compare(job, folders, *(_missing_bytes(paths, folders, need) for need in (least, likely)))
        for folders in _by_device({path.parent for path in (paths.store, paths.output, paths.errors)})
    ]
    known = [each for each in looked_at if each is not None]
    return min(known, key=lambda each: each.free_bytes - each.likely_bytes, default=None)


def estimate(sample: Sample, limit_rows: int | None = None) -> tuple[Need, Need]:
    """Return what a job takes on disk when it has ended: at the very least, and likely."""
    rows = sample.rows if limit_rows is None else min(sample.rows, limit_rows)
    least = likely = Need()
    for line in sample.lines:
        at_least, probably = _row_needs(line)
        least, likely = least + at_least, likely + probably
    factor = rows / len(sample.lines)
    certain = factor if sample.is_whole else factor * _CERTAIN_SHARE
    empty = Need(store=_EMPTY_STORE_BYTES)
    return empty + least.times(certain), empty + likely.times(factor)


def _row_needs(line: bytes) -> tuple[Need, Need]:
    draft = parse(line, 1)
    if not isinstance(draft, Draft):
        size = len(line)
        return Need(_REFUSED_BYTES + size, 0, size), Need(_REFUSED_BYTES + size, 0, _ERROR_BYTES + size)
    name = len(draft.custom_id)
    least, likely = reply_bytes(draft.url, draft.model, draft.fields)
    names = name + len(draft.model)
    row, least_row = _ROW_BYTES
    return (
        Need(least_row + names + least, name + least, 0),
        Need((row + names + likely) * _PAGE_SHARE, _RESULT_BYTES + name + likely, 0),
    )


def reply_bytes(url: str, model: str, fields: dict[str, Any]) -> tuple[float, float]:
    """Return the size of the reply to a body: at the very least, and likely."""
    likely, least = _ENVELOPE_BYTES[url]
    if url == "/v1/embeddings":
        at_least, probably = _vector_bytes(model, fields)
        count = _inputs(fields.get("input"))
        return least + count * at_least, likely + count * probably
    if url == "/v1/moderations":
        probably, at_least = _MODERATION_BYTES
        count = _inputs(fields.get("input"))
        return least + count * at_least, likely + count * probably
    choices = fields.get("n")
    tokens = _likely_tokens(url, fields) * (min(choices, _MOST_CHOICES) if type(choices) is int else 1)
    if url == "/v1/completions":
        tokens *= _inputs(fields.get("prompt"))
    echoed = 0
    if url == "/v1/responses":
        echoed = sum(len(orjson.dumps(fields[name])) for name in _ECHOED if name in fields)
    return least, likely + echoed + tokens * _TOKEN_BYTES


def _likely_tokens(url: str, fields: dict[str, Any]) -> int:
    names = ("max_output_tokens",) if url == "/v1/responses" else ("max_completion_tokens", "max_tokens")
    limits: list[int] = [value for name in names if type(value := fields.get(name)) is int and value >= 0]
    if url == "/v1/completions" and not limits:
        return DEFAULT_OUTPUT
    return min([*limits, _LIKELY_TOKENS])


def _vector_bytes(model: str, fields: dict[str, Any]) -> tuple[float, float]:
    given = fields.get("dimensions")
    asked = min(given, _MOST_DIMENSIONS) if type(given) is int and given > 0 else None
    likely = asked or _DIMENSIONS.get(model, _LIKELY_DIMENSIONS)
    packed = fields.get("encoding_format") == "base64"
    number, least_number = (_BASE64_NUMBER_BYTES,) * 2 if packed else (_NUMBER_BYTES, _LEAST_NUMBER_BYTES)
    return (asked or _LEAST_DIMENSIONS) * least_number, _VECTOR_BYTES + likely * number


def _inputs(given: object) -> int:
    """Count the inputs, or the prompts, of one request: a list of token ids is one, and so are its parts."""
    return len(given) if type(given) is list and given and type(given[0]) in (str, list) else 1


# --- looking


def _read_sample(path: Path) -> Sample | None:
    """Read some lines of a job file; None where it has none that is whole, or can't be read."""
    is_plain = path.suffix not in (".gz", ".zst")
    try:
        size = path.stat().st_size
        with open_job(path) as file:
            head = file.read(_HEAD_BYTES if is_plain else _PACKED_HEAD_BYTES).removeprefix(BOM)
            read = os.lseek(file.fileno(), 0, os.SEEK_CUR)
            ended = not file.read(1)
            places = [] if ended or not is_plain else _read_places(file, size)
    except UNREADABLE:
        return None
    # Places speak for equal parts of the file, of which the beginning is not one more.
    lines = places or (head.split(b"\n") if ended else _whole_lines(head[:_HEAD_BYTES]))
    taken_bytes = sum(map(len, lines)) + len(lines)
    lines = [line for line in lines if line.strip()]
    if not lines:
        return None
    text_bytes = size if is_plain else size / read * len(head)
    rows = len(lines) if ended else text_bytes / taken_bytes * len(lines)
    some = lines[:: -(-len(lines) // _MOST_LINES)]
    return Sample(some, rows, is_whole=ended and len(some) == len(lines))


def _read_places(file: BinaryIO, size_bytes: int) -> list[bytes]:
    """Read lines in the middle of equal parts of a file: it may be sorted by how long they are."""
    lines: list[bytes] = []
    for place in range(_PLACES):
        file.seek(size_bytes * (2 * place + 1) // (2 * _PLACES))
        _, _, rest = file.read(_PLACE_BYTES).partition(b"\n")
        lines += _whole_lines(rest)
    return lines


def _whole_lines(block: bytes) -> list[bytes]:
    return block.split(b"\n")[:-1]


def _by_device(folders: Iterable[Path]) -> list[frozenset[Path]]:
    """Group folders by the file system that they are on; one that is not there is left to who opens it."""
    groups: dict[int, set[Path]] = {}
    for folder in folders:
        if folder.is_dir():
            groups.setdefault(folder.stat().st_dev, set()).add(folder)
    return [frozenset(group) for group in groups.values()]


def _missing_bytes(paths: Paths, folders: frozenset[Path], need: Need) -> int:
    """Return what these folders must take up; what the store holds already is there."""
    there = sum(path.stat().st_size for path in (paths.store, Path(f"{paths.store}-wal")) if path.is_file())
    parts = (
        (paths.store, max(need.store - there, 0)),
        (paths.output, need.results),
        (paths.errors, need.errors),
    )
    return int(sum(part for path, part in parts if path.parent in folders))


def _compare(job: str, folders: frozenset[Path], least_bytes: int, likely_bytes: int) -> Preflight | None:
    folder = min(folders).resolve()
    usage = shutil.disk_usage(folder)
    if not usage.total:
        return None  # a file system that does not say
    free = f"{folder} has {_size(usage.free)} free, and the store and the results of {job}"
    advice = "make room, or name --store, --output and --errors on a larger disk"
    if usage.free < least_bytes:
        raise StoreWriteError(
            f"{free} need at least {_size(least_bytes)} there, likely {_size(likely_bytes)}: {advice}"
        )
    warning = None
    if usage.free < likely_bytes:
        warning = f"{free} are likely to need {_size(likely_bytes)} there: {advice}"
    return Preflight(least_bytes, likely_bytes, usage.free, warning)


def _size(count_bytes: float) -> str:
    for unit_bytes, unit in _UNITS:
        if count_bytes >= unit_bytes:
            return f"{count_bytes / unit_bytes:,.1f} {unit}"
    return f"{count_bytes:.0f} bytes"
