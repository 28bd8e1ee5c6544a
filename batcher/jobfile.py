"""The job file as bytes: whether it can be one, how it is opened, and why it can't be read on."""

import codecs
import gzip
import io
import os
import stat
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, cast

from batcher.errors import ConfigurationError, JobFileError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

#: What some editors put before a file's first line.
BOM: Final = codecs.BOM_UTF8
#: So much is read at a time, in bytes.
_BLOCK_BYTES: Final = 1 << 20
#: What a file begins with that is compressed.
_PACKED: Final = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd"}
#: What reading a file raises when it can't be read on.
UNREADABLE: Final = (OSError, EOFError, ValueError, zlib.error)
#: So much of a `.zst` file is uncompressed at a time, in bytes: little, since it may grow many times over.
_PIECE_BYTES: Final = 1 << 14


def check_job(name: str) -> None:
    """Make sure, before anything is made or sent, that a file is one to read rows from.

    Raises:
        JobFileError: there is none, it can't be read, or it holds no rows; the message says what to do.
        ConfigurationError: it is compressed in a way that needs an extra that is not installed.
    """
    path = Path(name)
    try:
        _check_kind(name, path.stat())
        with open_job(path) as file:
            _check_rows(name, cast("io.BufferedReader", file))
    except UNREADABLE as error:
        raise JobFileError(f"{name} can't be read: {why(error)}") from error


def _check_kind(name: str, status: os.stat_result) -> None:
    """Refuse what is no regular file: reading it may wait for ever, or give its rows only once."""
    mode = status.st_mode
    if stat.S_ISDIR(mode):
        raise JobFileError(f"{name} is a directory: name a job file (JSON Lines)")
    if stat.S_ISFIFO(mode):
        raise JobFileError(
            f"{name} is a pipe, which can be read only once: "
            "send it to standard input instead (batcher run - --store JOB.db)"
        )
    if not stat.S_ISREG(mode):
        what = "a socket" if stat.S_ISSOCK(mode) else "a device"
        raise JobFileError(f"{name} is {what}: name a job file (JSON Lines), or - for standard input")
    if not status.st_size:
        raise JobFileError(f"{name} is empty: a job file has one request per line")


def _check_rows(name: str, file: io.BufferedReader) -> None:
    """Read as far as the first line that is not blank: of most files one block."""
    # `read1` gives what comes before a break, where `read` would give nothing of it.
    block = file.read1(_BLOCK_BYTES)
    refuse_utf16(name, block)
    for suffix, magic in _PACKED.items():
        if block.startswith(magic):
            raise JobFileError(f"{name} is compressed: give it a name that ends in {suffix}")
    block = block.removeprefix(BOM)
    while not block.strip():
        block = file.read1(_BLOCK_BYTES)
        if not block:
            raise no_rows(name)


def no_rows(name: str) -> JobFileError:
    """Make the error of a file in which every line is blank."""
    return JobFileError(f"{name} holds no rows: a job file has one request per line")


def refuse_utf16(name: str, start: bytes) -> None:
    """Look at the first bytes of a file.

    Raises:
        JobFileError: they say that it is UTF-16.
    """
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise JobFileError(
            f"{name} is UTF-16, and a job file must be UTF-8: convert it (iconv -f UTF-16 -t UTF-8)"
        )


def why(error: Exception) -> str:
    """Say in a few words why a file can't be read (on)."""
    if isinstance(error, EOFError):
        return "it is cut off: its compression has no end"
    if isinstance(error, gzip.BadGzipFile) and "Not a gzipped file" in str(error):
        return "it is not gzip, or not all of it"
    if isinstance(error, zlib.error | gzip.BadGzipFile):
        return f"its compression is damaged ({error})"
    return getattr(error, "strerror", None) or str(error)


def open_job(path: Path) -> BinaryIO:
    """Open a job file for reading bytes, uncompressed.

    Raises:
        ConfigurationError: it is compressed in a way that needs an extra that is not installed.
        OSError: it can't be opened.
    """
    if path.suffix == ".gz":
        return cast("BinaryIO", gzip.open(path, "rb"))
    if path.suffix == ".zst":
        try:
            import zstandard  # noqa: F401
        except ImportError:
            message = f"{path} needs the zst extra: pip install 'batcher-openai[zst]'"
            raise ConfigurationError(message) from None
        return io.BufferedReader(_Zstandard(path.open("rb")), _BLOCK_BYTES)
    return path.open("rb")


class _Zstandard(io.RawIOBase):
    """A file of zstd frames, uncompressed. zstandard's own reader takes a file that is cut off for whole."""

    def __init__(self, file: BinaryIO) -> None:
        import zstandard

        self._zstandard = zstandard
        self._file = file
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._compressed = b""
        self._text = memoryview(b"")

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._file.fileno()

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        while not self._text:
            self._compressed = self._compressed or self._file.read(_PIECE_BYTES)
            if not self._compressed:
                if self._frame is not None:
                    raise EOFError
                return 0
            self._text = memoryview(self._uncompress())
        view = memoryview(buffer).cast("B")
        count = min(len(view), len(self._text))
        view[:count], self._text = self._text[:count], self._text[count:]
        return count

    def _uncompress(self) -> bytes:
        frame = self._frame or self._zstandard.ZstdDecompressor().decompressobj()
        try:
            text = frame.decompress(self._compressed)
        except self._zstandard.ZstdError as error:
            message = f"it is not zstd, or its compression is damaged ({error})"
            raise OSError(message) from error
        self._frame = None if frame.eof else frame
        self._compressed = frame.unused_data
        return text

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
