"""The job file: read in blocks, parsed in groups, never held in memory as a whole."""

import io
import os
import select
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import BinaryIO, cast

import anyio
import anyio.to_thread
import msgspec
import orjson

from batcher.errors import JobFileError
from batcher.jobfile import BOM, UNREADABLE, no_rows, open_job, refuse_utf16, why
from batcher.money.cost import worst_cost
from batcher.money.prices import PriceBook
from batcher.parse import Draft, parse, rejected
from batcher.request import Rejected, Request, Row
from batcher.store.seen import Seen
from batcher.tokens import Ratios, estimate

#: So much is read at a time, in bytes.
_BLOCK = 1 << 20
#: No request is as long: a file with such a line is something else, and memory would not hold it.
_LONGEST_LINE_BYTES = 1 << 28
_TOO_LONG = f"longer than {_LONGEST_LINE_BYTES >> 20} MB: a job file must be JSON Lines, one request per line"
#: So many lines are parsed and matched at a time: few enough not to hold the loop up.
_GROUP = 256
#: So often a reader that waits for standard input looks whether anybody still wants it, in seconds.
_STDIN_WAIT_S = 0.25


class Requests:
    """Makes requests of drafts: their keys, their pool, their reserve.

    Args:
        namespace: what idempotency keys are made with (`Journal.namespace`).
        pool_of: model -> the name of its pool, of the models that have one of their own.
        shared_pool: the pool of every other model.
        book: the prices that bound what each can cost.
        ratios: what is known of each model's tokens per byte.
    """

    def __init__(
        self,
        namespace: str,
        pool_of: Mapping[str, str],
        shared_pool: str,
        book: PriceBook,
        ratios: Ratios,
    ) -> None:
        self._namespace = blake2b(namespace.encode(), digest_size=16)
        self._pool_of = pool_of
        self._shared_pool = shared_pool
        self._book = book
        #: What answers say of the size of tokens: later estimates go by it.
        self.ratios = ratios

    def request(self, draft: Draft, row_key: bytes) -> Request:
        """Make the request of one row."""
        size = estimate(draft.url, draft.fields, self.ratios.of(draft.model))
        return Request(
            rows=(Row(draft.seq, row_key, draft.custom_id),),
            key=self._key(draft.url, row_key, draft.body),
            pool=self._pool_of.get(draft.model, self._shared_pool),
            model=draft.model,
            path=draft.url,
            body=draft.body,
            tokens=size.tokens,
            worst_cost_pico_usd=worst_cost(self._book, draft.model, draft.fields, len(draft.body), size),
            input_bytes=size.input_bytes,
        )

    def at_epoch(self, request: Request, epoch: int) -> Request:
        """Give a request another key, after so many of its keys have brought only a failure again."""
        key = self._key(request.path, b"".join(row.key for row in request.rows), request.body, epoch)
        return msgspec.structs.replace(request, key=key, epoch=epoch)

    def _key(self, path: str, row_keys: bytes, body: bytes, epoch: int = 0) -> str:
        keyed = self._namespace.copy()
        keyed.update(b"%b\0%b\0%b" % (path.encode(), row_keys, body))
        if epoch:
            keyed.update(b"\0%d" % epoch)
        return keyed.hexdigest()


class Source:
    """The rows of a job file, as groups of requests and rejected lines.

    Args:
        path: the job file (JSON Lines, also `.gz` and `.zst`), or `-` for standard input.
        limit: read no more than this many rows.
    """

    def __init__(self, path: str, limit: int | None = None) -> None:
        self._lines = Lines(path)
        self._limit = limit
        #: Rows read so far: lines that are not blank.
        self.count = 0
        #: The number of the last line read.
        self.last_seq = 0
        #: Whether the file has been read to its end.
        self.ended = False
        #: Why it could not be.
        self._broken: JobFileError | None = None

    async def groups(self, requests: Requests) -> AsyncGenerator[list[Request | Rejected], None]:
        """Yield every row, in the order of the file.

        Raises:
            JobFileError: the file can't be read, ends inside its compression, or holds no rows.
        """
        with Seen() as seen:
            try:
                async for lines in self._groups_of_lines():
                    if lines:
                        yield _identify([parse(line, seq) for seq, line in lines], lines, seen, requests)
            except JobFileError as error:
                self._broken = error
                raise

    async def _groups_of_lines(self) -> AsyncIterator[list[tuple[int, bytes]]]:
        async for block in self._lines.blocks():
            group: list[tuple[int, bytes]] = []
            for raw in block:
                if self._limit is not None and self.count >= self._limit:
                    yield group
                    return
                self.last_seq += 1
                line = raw.strip()
                if not line:
                    continue
                self.count += 1
                group.append((self.last_seq, line))
                if len(group) == _GROUP:
                    yield group
                    group = []
            # Not kept for the next block: it may break, or be long in coming from who writes to our input.
            yield group
        if not self.count:
            # Taken for a job of no rows, it would let every row of the store go.
            raise no_rows(self._lines.name)
        self.ended = True

    async def count_rest(self) -> int:
        """Count the rows of the whole file, reading on from where `groups` has stopped.

        Of standard input only what has been read counts: the rest may never come.

        Raises:
            JobFileError: what `groups` raised, if it came before any row: there was no job.
        """
        if self._broken is not None and not self.count:
            raise self._broken
        if self.ended or self._lines.is_stdin:
            return self.count
        try:
            return await anyio.to_thread.run_sync(count_rows, self._lines.path)
        except JobFileError:
            return self.count  # what can't be read can't be counted

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


def _identify(
    parsed: Sequence[Draft | Rejected], lines: Sequence[tuple[int, bytes]], seen: Seen, requests: Requests
) -> list[Request | Rejected]:
    """Give each row its key, and reject names that are used twice."""
    names = [(draft.custom_id, draft.seq) for draft in parsed if isinstance(draft, Draft)]
    repeated = seen.repeated(names) if names else {}
    group: list[Request | Rejected] = []
    for item, (seq, line) in zip(parsed, lines, strict=True):
        if isinstance(item, Rejected):
            group.append(item)
        elif seq in repeated:
            why = (
                f"custom_id {item.custom_id!r} is used by line {repeated[seq]} already: names must be unique"
            )
            group.append(rejected(line, seq, why, {"custom_id": item.custom_id}))
        else:
            group.append(requests.request(item, _key(item, seen)))
    return group


def _key(draft: Draft, seen: Seen) -> bytes:
    """Return the row's key: of its name and what it asks for, or, without a name, of that and how often."""
    digest = draft.digest()
    if draft.named:
        return digest
    occurrence = seen.occurrence(digest)
    return blake2b(b"%b %d" % (digest, occurrence), digest_size=16).digest()


def batch_line(request: Request, row: Row) -> bytes:
    """Return a row of a request in the Batch input form: a line that runs again as the same row."""
    head = orjson.dumps({"custom_id": row.custom_id, "method": "POST", "url": request.path})
    return b'%b,"body":%b}' % (head[:-1], request.body)


class Lines:
    """The lines of a file, a block of them at a time; reading happens in a thread."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.is_stdin = path == "-"
        self.name = "standard input" if self.is_stdin else path
        #: Lines that have been read to their ends, and bytes of the one after them.
        self._count = 0
        self._rest_bytes = 0
        self._file: BinaryIO | None = None
        self._broken: Exception | None = None
        self._closed = False
        self._rest: list[bytes] = []

    async def blocks(self) -> AsyncIterator[list[bytes]]:
        """Yield the lines of each block read, without their ends."""
        self._file = await anyio.to_thread.run_sync(self._open)
        first = True
        while data := await anyio.to_thread.run_sync(self._read, abandon_on_cancel=self.is_stdin):
            if first:
                refuse_utf16(self.name, data)
                data, first = data.removeprefix(BOM), False
            yield self._split(data)
        if rest := b"".join(self._rest):
            yield [rest]
            self._rest = []

    def _split(self, data: bytes) -> list[bytes]:
        """Cut a block into lines; what follows the last line break waits for the next block."""
        lines = data.split(b"\n")
        self._rest.append(lines[0])
        if len(lines) == 1:
            self._rest_bytes += len(data)
            if self._rest_bytes > _LONGEST_LINE_BYTES:
                raise JobFileError(f"{self.name}: line {self._count + 1} is {_TOO_LONG}")
            return []
        lines[0] = b"".join(self._rest)
        self._rest = [lines.pop()]
        self._rest_bytes = len(self._rest[0])
        self._count += len(lines)
        return lines

    def _open(self) -> BinaryIO:
        try:
            return sys.stdin.buffer if self.is_stdin else open_job(Path(self.path))
        except OSError as error:
            message = f"{self.name} can't be read: {error.strerror}"
            raise JobFileError(message) from error

    def _read(self) -> bytes:
        """Read a block: of standard input what is there, of a broken file what comes before the break."""
        pieces: list[bytes] = []
        missing = _BLOCK
        try:
            if self.is_stdin:
                return self._read_stdin()
            reader = cast("io.BufferedReader", self._file)
            while self._broken is None and missing and (piece := reader.read1(missing)):
                pieces.append(piece)
                missing -= len(piece)
        except UNREADABLE as error:
            self._broken = error
        if self._broken is not None and not pieces:
            message = f"{self.name} can't be read: {why(self._broken)}"
            if self._count:
                message = (
                    f"{self.name} can't be read on after line {self._count}: {why(self._broken)}; "
                    "the rows before are kept"
                )
            raise JobFileError(message) from self._broken
        return b"".join(pieces)

    def _read_stdin(self) -> bytes:
        """Wait for input and take what is there; a run that has ended meanwhile is not held up by it."""
        descriptor = cast("BinaryIO", self._file).fileno()
        while not self._closed:
            if select.select([descriptor], [], [], _STDIN_WAIT_S)[0]:
                return os.read(descriptor, _BLOCK)
        return b""

    def close(self) -> None:
        """Close the file; standard input is left to the process."""
        self._closed = True
        if self._file is not None and not self.is_stdin:
            self._file.close()


def count_rows(path: str) -> int:
    """Count the rows of a job file: the lines that are not blank.

    Raises:
        JobFileError: it can't be read to its end.
    """
    try:
        with open_job(Path(path)) as file:
            first = file.readline(_LONGEST_LINE_BYTES).removeprefix(BOM)
            rest = iter(partial(file.readline, _LONGEST_LINE_BYTES), b"")
            return sum(1 for line in chain((first,), rest) if line and not line.isspace())
    except UNREADABLE as error:
        raise JobFileError(f"{path} can't be read to its end: {why(error)}") from error
