"""How a right answer is spoiled: what becomes of its body, and the pieces in which it is sent."""

from collections.abc import Callable
from itertools import pairwise
from typing import TypeAlias

import orjson

#: (path, the right body) -> the body that is sent.
Change: TypeAlias = Callable[[str, bytes], bytes]
#: A whole reply -> the pieces in which it is sent.
Split: TypeAlias = Callable[[bytes], list[bytes]]

RESPONSES = "/v1/responses"
#: Pieces of an answer that drips; blank lines before one that is long in coming.
_DRIPS = 100
_BLANK_LINES = 20


def sound(path: str, body: bytes) -> bytes:  # noqa: ARG001  a Change
    """Leave the body as it is."""
    return body


def replaced_by(other: bytes) -> Change:
    """Send this in place of every body."""

    def change(path: str, body: bytes) -> bytes:  # noqa: ARG001  a Change
        return other

    return change


def after_blank_lines(path: str, body: bytes) -> bytes:  # noqa: ARG001  a Change
    """Put the blank lines before the body: they keep a connection alive, and are no error in JSON."""
    return b"\n" * _BLANK_LINES + body


def ended_for(finish_reason: str, incomplete_reason: str) -> Change:
    """Let an answer of words say that it ended early, in the way of its endpoint; its words stay."""

    def change(path: str, body: bytes) -> bytes:
        if path == RESPONSES:
            answer = orjson.loads(body)
            answer["status"] = "incomplete"
            answer["incomplete_details"] = {"reason": incomplete_reason}
            for item in answer["output"]:
                item["status"] = "incomplete"
        elif path in ("/v1/chat/completions", "/v1/completions"):
            answer = orjson.loads(body)
            for choice in answer["choices"]:
                choice["finish_reason"] = finish_reason
        else:
            return body
        return orjson.dumps(answer)

    return change


def response_with(fields: dict[str, object], otherwise: bytes) -> Change:
    """Give a response these fields and no output; endpoints without such a state send `otherwise`."""

    def change(path: str, body: bytes) -> bytes:
        if path != RESPONSES:
            return otherwise
        return orjson.dumps({**orjson.loads(body), "output": [], **fields})

    return change


def whole(answer: bytes) -> list[bytes]:
    """Send it in one piece."""
    return [answer]


def nothing(answer: bytes) -> list[bytes]:  # noqa: ARG001  a Split
    """Send none of it."""
    return []


def half(answer: bytes) -> list[bytes]:
    """Send the head and half of the body."""
    head = answer.index(b"\r\n\r\n") + 4
    return [answer[: (head + len(answer)) // 2]]


def drips(answer: bytes) -> list[bytes]:
    """Send a few bytes at a time."""
    size = -(-len(answer) // _DRIPS)
    return [answer[place : place + size] for place in range(0, len(answer), size)]


def line_by_line(answer: bytes) -> list[bytes]:
    """Send the head, then each blank line, then all the rest."""
    head = answer.index(b"\r\n\r\n") + 4
    places = [0, *range(head, head + _BLANK_LINES + 1), len(answer)]
    return [answer[start:end] for start, end in pairwise(places)]
