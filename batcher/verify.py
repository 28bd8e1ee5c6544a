"""Whether a store is whole, and whether the files beside it are what an export would write now."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import orjson

from batcher.errors import StoreError
from batcher.options import Paths
from batcher.results import error_lines, result_lines
from batcher.store import file, reader

#: The row's name, in the form in which a line of results or errors begins.
_NAME: Final = re.compile(rb'\{"id":"[^"]*","custom_id":("(?:[^"\\]|\\.)*")')


class Verified(msgspec.Struct, frozen=True):
    """What was found."""

    #: One sentence each, with what to do; none if all is well.
    findings: list[str]
    #: Whether a run has the store: it writes the files when it ends, so they were not looked at.
    running: bool


def verify(job: str, paths: Paths) -> Verified:
    """Check the store, and lay its results and errors beside the files, line by line.

    Memory does not grow with the rows. What can't be read is a finding, too.
    """
    store = paths.store
    findings = _check_store(job, store)
    of_files = [] if file.is_locked(store) else _check_files(job, paths)
    # Also a run that has begun since makes files older than the store.
    running = file.is_locked(store)
    return Verified([*findings, *([] if running else of_files)], running)


def _check_store(job: str, store: Path) -> list[str]:
    try:
        found = reader.check(store)
    except StoreError as error:
        return [str(error)]
    if not found:
        return []
    advice = (
        f"{store} is damaged: batcher export {job} saves what can be read; then move it and {store.name}-wal "
        "away, and restore a copy or begin anew"
    )
    return [advice, *(f"{store}: {line}" for line in found)]


def _check_files(job: str, paths: Paths) -> list[str]:
    store, advice = paths.store, f"batcher export {job} writes it anew"
    found = {
        paths.output: _check_file(paths.output, result_lines(store), store, advice),
        paths.errors: _check_file(paths.errors, error_lines(store), store, advice),
    }
    return [f"{path} {what}" for path, what in found.items() if what]


def _check_file(path: Path, lines: Iterator[bytes], store: Path, advice: str) -> str | None:
    """Say what is wrong with a file; None if it holds just these lines."""
    try:
        difference = _difference(path, lines)
        older = difference is not None and path.stat().st_mtime_ns < _written_ns(store)
    except FileNotFoundError:
        return f"is missing: {advice}"
    except OSError as error:
        return f"can't be read: {error.strerror}: {advice}"
    except StoreError as error:
        return f"can't be compared: in the store, {error.__cause__ or error}"
    if difference is None:
        return None
    what = "is older than the store" if older else "is not what the store holds"
    return f"{what}: {difference}: {advice}"


def _difference(path: Path, lines: Iterator[bytes]) -> str | None:
    """Say where a file first differs from these lines; None if it nowhere does."""
    number = 0
    with path.open("rb") as there:
        for number, line in enumerate(lines, 1):
            # No more than there should be: what is no file of lines may have one without an end.
            found = there.read(len(line))
            if found != line:
                return f"line {number} {_what_differs(found, line)}"
        if there.read(1):
            return f"it goes on after line {number}, its last"
    return None


def _what_differs(found: bytes, line: bytes) -> str:
    name, there = _name(line), _name(found)
    if not found:
        return f"({name}) is not there"
    if line.startswith(found):
        return f"({name}) is cut off"
    if there == name:
        return f"({name}) reads otherwise"
    return f"should be {name}, and is {there or 'none of a job'}"


def _name(line: bytes) -> str | None:
    match = _NAME.match(line)
    try:
        return None if match is None else str(orjson.loads(match[1]))
    except orjson.JSONDecodeError:
        return None


def _written_ns(store: Path) -> int:
    """Return when the store was last written: its log may be newer than the file."""
    parts = (file.beside(store, suffix) for suffix in ("", "-wal"))
    return max((part.stat().st_mtime_ns for part in parts if part.exists()), default=0)
