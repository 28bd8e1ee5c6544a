"""The files: results and errors in the order of the input, in the OpenAI Batch output form.

A file is there whole or not at all.
"""

import csv
import io
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from batcher.errors import ConfigurationError, StoreWriteError
from batcher.money.cost import usd_string
from batcher.request import REJECTED
from batcher.store import reader

#: The columns of the attempts log; times are seconds since 1970.
ATTEMPT_FIELDS = (
    "attempt",
    "key",
    "custom_ids",
    "number",
    "model",
    "claimed_at",
    "sent_at",
    "ended_at",
    "billed",
    "status",
    "error",
    "request_id",
    "latency_ms",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "cost_usd",
)

#: Those of them that the store holds as they are.
_STORED_FIELDS = tuple(name for name in ATTEMPT_FIELDS if name not in ("latency_ms", "cost_usd"))

_BUFFER = 1 << 20


class AbandonedError(Exception):
    """Whoever wanted the file wants it no longer: one that was there before is untouched."""


def _never() -> bool:
    return False


def result_lines(store: Path) -> Iterator[bytes]:
    """Make the lines of the results file, one by one.

    Raises:
        StoreError: the store can't be read (on).
    """
    return map(_result_line, reader.rows(store, "results"))


def error_lines(store: Path) -> Iterator[bytes]:
    """Make the lines of the errors file, one by one; see `result_lines`."""
    return map(_error_line, reader.rows(store, "errors"))


def write_results(store: Path, output: Path, abandon: Callable[[], bool] = _never) -> int:
    """Write the answers; return how many. Between any two of them `abandon` is asked whether to go on.

    Raises:
        AbandonedError: `abandon` said so.
        StoreError: the store can't be read.
        StoreWriteError: the file can't be written; one that was there before is untouched.
    """
    return _write(output, _unless(abandon, result_lines(store)))


def write_errors(store: Path, errors: Path, abandon: Callable[[], bool] = _never) -> int:
    """Write the rows that ended without an answer, each with its request; return how many.

    See `write_results`.
    """
    return _write(errors, _unless(abandon, error_lines(store)))


def _unless(abandon: Callable[[], bool], lines: Iterable[bytes]) -> Iterator[bytes]:
    for line in lines:
        if abandon():
            raise AbandonedError
        yield line


def write_failed(store: Path, job: Path) -> tuple[int, int]:
    """Write the rows that failed as a job file; return how many, and how many were left out.

    Left out are lines that never were requests, which can't run, and rows in doubt: as another job they
    would be sent under another key, and may be paid twice. See `write_results`.
    """
    left_out = 0

    def lines() -> Iterator[bytes]:
        nonlocal left_out
        for *_, code, _message, line, state in reader.rows(store, "errors"):
            if code == REJECTED or state == "in_doubt" or line is None:
                left_out += 1
            else:
                yield line + b"\n"

    return _write(job, lines()), left_out


def write_attempts(store: Path, log: Path) -> int:
    """Write every attempt, as CSV where the file is named so and as JSON Lines elsewhere; return how many.

    See `write_results`.
    """
    rows = (_attempt_fields(row) for row in reader.rows(store, "attempts_log"))
    if log.suffix == ".csv":
        return _write(log, _csv_lines(row.values() for row in rows)) - 1
    return _write(log, (_attempt_line(row) for row in rows))


def _attempt_fields(row: tuple[Any, ...]) -> dict[str, Any]:
    *facts, cost_pico_usd = row
    fields = dict(zip(_STORED_FIELDS, facts, strict=True))
    sent_at, ended_at = fields["sent_at"], fields["ended_at"]
    if sent_at is not None and ended_at is not None:
        fields["latency_ms"] = round((ended_at - sent_at) * 1000, 1)
    if cost_pico_usd is not None:
        fields["cost_usd"] = usd_string(cost_pico_usd)
    return {name: fields.get(name) for name in ATTEMPT_FIELDS}


def _attempt_line(fields: dict[str, Any]) -> bytes:
    return orjson.dumps({**fields, "custom_ids": orjson.Fragment(fields["custom_ids"])}) + b"\n"


def check_writable(path: Path) -> None:
    """Make sure, before anything is paid for, that a file can be written here.

    Raises:
        ConfigurationError: the folder is missing, or the path is a folder.
        StoreWriteError: the folder can't be written.
    """
    _check_regular(path)
    if not path.parent.is_dir():
        message = f"the folder {path.parent} does not exist: make it, or name another file"
        raise ConfigurationError(message)
    if not os.access(path.parent, os.W_OK):
        message = f"{path.parent} can't be written: make it writable, or name a file elsewhere"
        raise StoreWriteError(message)


def _check_regular(path: Path) -> None:
    if path.exists() and not path.is_file():
        what = "a directory" if path.is_dir() else "no regular file, and would be replaced by one"
        raise ConfigurationError(f"{path} is {what}: name a file")


def _result_line(row: tuple[Any, ...]) -> bytes:
    key, custom_id, status, request_id, body = row
    return b'{"id":"batch_req_%b","custom_id":%b,"response":%b,"error":null}\n' % (
        key.hex().encode(),
        orjson.dumps(custom_id),
        _response(status, request_id, body),
    )


def _error_line(row: tuple[Any, ...]) -> bytes:
    key, custom_id, status, request_id, body, code, message, line, _ = row
    return b'{"id":"batch_req_%b","custom_id":%b,"response":%b,"error":%b,"request":%b}\n' % (
        key.hex().encode(),
        orjson.dumps(custom_id),
        b"null" if status is None else _response(status, request_id, body or b"null"),
        orjson.dumps({"code": code, "message": message}),
        _rejected_line(line) if code == REJECTED else line or b"null",
    )


def _response(status: int, request_id: str | None, body: bytes) -> bytes:
    return b'{"status_code":%d,"request_id":%b,"body":%b}' % (status, orjson.dumps(request_id), body)


def _rejected_line(line: bytes) -> bytes:
    """Show a line as the JSON that it is, or, where it is none, as a string."""
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return orjson.dumps(line.decode("utf-8", "replace"))
    return line


def _csv_lines(rows: Iterable[Iterable[Any]]) -> Iterator[bytes]:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(ATTEMPT_FIELDS)
    yield buffer.getvalue().encode()
    for row in rows:
        buffer.seek(0)
        buffer.truncate()
        writer.writerow(row)
        yield buffer.getvalue().encode()


def _write(path: Path, lines: Iterable[bytes]) -> int:
    """Write a file so that it is there whole or as it was before: temporary file, fsync, rename."""
    _check_regular(path)
    count = 0
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", delete=False, buffering=_BUFFER
        ) as file:
            temporary = Path(file.name)
            for line in lines:
                file.write(line)
                count += 1
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        message = f"{path} can't be written: {error.strerror}; the rows are safe in the store: batcher export"
        raise StoreWriteError(message) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return count


def _umask() -> int:
    """Return the process's mask: it can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
