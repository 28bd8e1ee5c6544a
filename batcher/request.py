"""The nouns: a row, the request that rows become, and what each stage of its way makes of it.

They are immutable and know nothing of files, sockets or SQL. `gc=False` because none can be part of a
reference cycle: a million of them cost the collector nothing.
"""

from collections.abc import Callable
from typing import Final, Literal, Protocol, TypeAlias

import msgspec


class Row(msgspec.Struct, frozen=True, gc=False):
    """One line of the job file: what resume matches and results export."""

    #: The line number in the job file, from 1: the order of the results.
    seq: int
    #: 16 bytes that are the same as long as the row asks for the same thing (see `batcher.source`).
    key: bytes
    #: The user's name for the row, or `row-<line number>`.
    custom_id: str


class Request(msgspec.Struct, frozen=True, gc=False):
    """One HTTP request, for one or several rows."""

    rows: tuple[Row, ...]
    #: The idempotency key: at most 64 characters, the same in every attempt, run and machine.
    key: str
    #: The name of the rate budget that it is charged to.
    pool: str
    model: str
    #: As in the job file: `/v1/chat/completions`.
    path: str
    body: bytes
    #: Tokens to admit: the estimated input and the output limit, as the server counts them.
    tokens: int
    #: The most that it can cost, in 10^-12 dollar; None where there is no bound or no price.
    worst_cost_pico_usd: int | None
    #: Bytes of its text, to learn tokens per byte from; 0 where its prompt tokens pay for more than text.
    input_bytes: int = 0
    #: How many of its keys have brought only a failure again and again: the key is made with it.
    epoch: int = 0


#: The error code of a line that never became a request.
REJECTED: Final = "invalid_line"


class Rejected(msgspec.Struct, frozen=True, gc=False):
    """A line of the job file that can't be a request."""

    row: Row
    #: One sentence; it begins with `line <number>: `.
    reason: str
    #: The line itself, so that the errors file can show it.
    line: bytes


class Try(msgspec.Struct, frozen=True, gc=False):
    """A request that waits for its next attempt."""

    request: Request
    #: Which attempt it will be, from 1.
    number: int = 1
    #: How many of the earlier attempts count against `--max-attempts`.
    charged: int = 0
    #: Whether an earlier attempt, of this run or another, may have been billed.
    doubted: bool = False


class Claimed(msgspec.Struct, frozen=True, gc=False):
    """An attempt that is durably recorded as about to be sent. Only `Journal.claim` makes one."""

    #: The attempt's number in the store.
    id: int
    request: Request
    number: int
    charged: int
    #: Whether an earlier attempt, of this run or another, may have been billed: it may be under way yet.
    doubted: bool = False


class Reply(msgspec.Struct, frozen=True, gc=False):
    """What the server answered, as bytes: nobody has judged it yet."""

    status: int
    #: Names in lower case, in the order received.
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    #: `Clock.now()` when the first byte was written, and when the last one was read.
    sent_at: float
    ended_at: float

    def header(self, name: bytes) -> str | None:
        """Return the first header of this (lower-case) name, or None."""
        for key, value in self.headers:
            if key == name:
                return value.decode("latin-1")
        return None


class Lost(msgspec.Struct, frozen=True, gc=False):
    """No whole reply came."""

    #: False only if no byte of the request can have reached the server.
    left: bool
    #: `connect`, `dns`, `tls`, `timeout`, `reset`, `cut_off`, `protocol`; our doing: `closed`, `stopped`.
    kind: str
    #: One sentence for people. Never holds a credential.
    reason: str
    #: `Clock.now()` when the first byte was written (None if none was), and when it was given up.
    sent_at: float | None
    ended_at: float


Landed: TypeAlias = Reply | Lost


#: Whether an attempt is on the bill: `maybe` is what *in doubt* means.
Billed: TypeAlias = Literal["no", "maybe", "yes"]

#: How a row ended. `refused`: the server said no to what it says, again is in vain. `exhausted`: it ran out
#: of attempts, a later run may succeed. `in_doubt`: it may have been billed and is not sent again.
State: TypeAlias = Literal["done", "refused", "exhausted", "in_doubt"]


#: Why an answer ended before the model was done: at its output limit, or by the server's content filter.
Finish: TypeAlias = Literal["length", "content_filter"]


class Attempt(msgspec.Struct, frozen=True, gc=False):
    """What became of one claimed attempt: money and doubt belong to attempts."""

    id: int
    billed: Billed
    ended_at: float
    sent_at: float | None = None
    #: None where no reply came.
    status: int | None = None
    #: A word of the verdict table; None for an answer.
    error: str | None = None
    request_id: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    #: In 10^-12 dollar; None where the price is unknown.
    cost_pico_usd: int | None = 0
    #: Whether the server has said again what an earlier attempt with this key had brought.
    replayed: bool = False


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """How a row ended, with what the results or the errors file shows of it."""

    row: Row
    state: State
    #: The attempt that ended it; None for a line that never became a request.
    attempt: int | None = None
    status: int | None = None
    request_id: str | None = None
    #: The reply's body as the server sent it, without raw line breaks.
    body: bytes | None = None
    #: The error's code and one sentence; None for an answer.
    code: str | None = None
    message: str | None = None
    #: The row in the Batch input form, to run again; None for an answer.
    line: bytes | None = None
    #: Of an answer that ended early: why.
    finish: Finish | None = None


class Settlement(msgspec.Struct, frozen=True, gc=False):
    """An attempt's end, and the ends of those of its rows that go no further."""

    attempt: Attempt
    outcomes: tuple[Outcome, ...] = ()


class Settled(msgspec.Struct, frozen=True, gc=False):
    """What is durably recorded as ended. Only `Journal.settle` makes one."""

    settlement: Settlement


class Transport(Protocol):
    """The only way to the network. It moves bytes and never judges; it raises only cancellation."""

    async def send(self, claimed: Claimed, sent: Callable[[Claimed], None]) -> Landed:
        """Send one claimed attempt and wait for what comes of it.

        `sent(claimed)` is called once, immediately before the first byte is handed to the operating
        system, and not at all for an attempt that never leaves.
        """
        ...

    def abort(self) -> None:
        """End every `send` under way at once: each returns a `Lost`."""
        ...

    async def aclose(self) -> None:
        """Abort, and close every connection."""
        ...
