"""Whole replies as bytes, and errors written as OpenAI does."""

from http import HTTPStatus

import orjson

JSON = b"application/json"
HTML = b"text/html; charset=utf-8"

_STATUS_LINES = {
    **{status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus},
    # No RFC's, but what overloaded providers answer.
    529: b"HTTP/1.1 529 Site is overloaded\r\n",
}
_HEAD = b"%bcontent-type: %b\r\nx-request-id: req_%b\r\n%bcontent-length: %d\r\n\r\n"


def reply(
    status: int,
    digest: bytes,
    body: bytes,
    lines: bytes = b"",
    content_type: bytes = JSON,
    missing_bytes: int = 0,
) -> bytes:
    """Write a whole reply; `lines` are more header lines, each with its line break.

    Its length claims `missing_bytes` more than the body has.
    """
    length = len(body) + missing_bytes
    return _HEAD % (_STATUS_LINES[status], content_type, digest.hex().encode(), lines, length) + body


def error(message: str, type_: str, param: str | None = None, code: str | None = None) -> bytes:
    """Write an error as OpenAI does."""
    return orjson.dumps({"error": {"message": message, "type": type_, "param": param, "code": code}})


def wait_lines(ms: int) -> bytes:
    """Return the header lines that ask to wait: OpenAI's in milliseconds, the standard's in seconds."""
    return b"retry-after-ms: %d\r\nretry-after: %d\r\n" % (ms, -(-ms // 1000))
