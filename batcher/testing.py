"""Hours of rate limits, retries and outages in milliseconds: virtual time, a network and a disk to match.

    clock = VirtualClock(seed=7)
    transport = MemoryTransport(answer, clock)
    journal = await Journal.open(opening, clock, connect=inline_connection)

Everything here is deterministic: the same seed gives the same events in the same order.

>>> from batcher.request import Claimed, Request, Row
>>> request = Request((Row(1, bytes(16), "row-1"),), "key", "shared", "m", CHAT, b"{}", 10, None)
>>> clock = VirtualClock(seed=7)
>>> transport = MemoryTransport(script(refusal(429, retry_after_s=3600), answer), clock)
>>> async def main():
...     busy = await transport.send(Claimed(1, request, 1, 0), lambda claimed: None)
...     await asyncio.sleep(float(busy.header(b"retry-after")))
...     return await transport.send(Claimed(2, request, 2, 0), lambda claimed: None)
>>> reply = run(main, clock)
>>> reply.status, round(reply.ended_at, 3)
(200, 3600.5)
"""

import asyncio
import inspect
import random
import selectors
import sqlite3
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar
from unittest import mock

import anyio.lowlevel
import anyio.to_thread
import msgspec
import orjson

from batcher.clock import Clock
from batcher.request import Claimed, Landed, Lost, Reply

T = TypeVar("T")

# --- time


class VirtualClock:
    """A `batcher.clock.Clock` whose time goes on only when it is told to, and whose randomness is seeded.

    `run` tells it to go on whenever nothing else is left to do. The one exception to the rule that only
    `batcher.clock` makes random numbers: these are no chance, they follow from the seed.

    >>> clock = VirtualClock(seed=7)
    >>> clock.advance(90.0)
    >>> clock.now(), clock.wall() - clock.epoch
    (90.0, 90.0)
    >>> clock.chance() == VirtualClock(seed=7).chance()
    True
    """

    def __init__(self, seed: int = 0, epoch: float = 1_800_000_000.0) -> None:
        self._now = 0.0
        self._random = random.Random(seed)  # noqa: S311  nothing secret depends on it
        #: What the wall clock showed at `now() == 0`: change it to set the wall clock.
        self.epoch = epoch

    def now(self) -> float:
        """See `Clock.now`. It begins at 0."""
        return self._now

    def wall(self) -> float:
        """See `Clock.wall`."""
        return self.epoch + self._now

    def chance(self) -> float:
        """See `Clock.chance`."""
        return self._random.random()

    def token(self) -> str:
        """See `Clock.token`."""
        return f"{self._random.getrandbits(128):032x}"

    def advance(self, seconds: float) -> None:
        """Let time go on; it never goes back (`ValueError`)."""
        if not seconds >= 0:
            message = f"time can't go on by {seconds} seconds"
            raise ValueError(message)
        self._now += seconds


class DeadlockError(RuntimeError):
    """Every task waits, and neither a timer nor another task will ever wake one: the message says where."""


def run(function: Callable[[], Coroutine[Any, Any, T]], clock: VirtualClock) -> T:
    """Run a coroutine function on an asyncio event loop whose time is the clock's; return what it returns.

    When every task waits, time jumps to the next timer: nothing ever sleeps. What would run in a thread
    (`anyio.to_thread`, `loop.run_in_executor`) runs at once, in no time; sockets are not waited for.
    A clock may be used for several runs, one after the other: time goes on where it stopped.

    Raises:
        DeadlockError: nothing is left that could wake a task.
    """
    with _threads_inline(), asyncio.Runner(loop_factory=lambda: _VirtualLoop(clock)) as runner:
        return runner.run(function())


class _Selector(selectors.SelectSelector):
    """Where an event loop would sleep, this one moves the clock."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        # What the loop tells itself (signals, calls from other threads) still comes through a pipe.
        events = super().select(0)
        if events or timeout == 0:
            return events
        if timeout is None:
            raise DeadlockError(_describe_deadlock())
        self._clock.advance(timeout)
        return events


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(_Selector(clock))
        self._clock = clock

    def time(self) -> float:
        return self._clock.now()

    def run_in_executor(
        self, _executor: Executor | None, func: Callable[..., T], *args: object
    ) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001  whoever awaits it gets it
            future.set_exception(error)
        return future


@contextmanager
def _threads_inline() -> Iterator[None]:
    """Let `anyio.to_thread.run_sync` call its function at once where the loop is virtual.

    A thread takes real time, in which virtual time would fly, and ends at a moment that no seed decides.
    """
    threaded = anyio.to_thread.run_sync

    async def run_sync(function: Callable[..., T], *args: object, **options: Any) -> T:  # noqa: ANN401
        if not isinstance(asyncio.get_running_loop(), _VirtualLoop):
            return await threaded(function, *args, **options)
        await anyio.lowlevel.checkpoint()
        return function(*args)

    with mock.patch.object(anyio.to_thread, "run_sync", run_sync):
        yield


def _describe_deadlock() -> str:
    tasks = sorted(asyncio.all_tasks(asyncio.get_running_loop()), key=lambda task: task.get_name())
    waits = "; ".join(f"{task.get_name()} at {_place(task)}" for task in tasks)
    return (
        "every task waits for another one, or for a real thread or socket, which virtual time can't: " + waits
    )


def _place(task: asyncio.Task[Any]) -> str:
    """Name the innermost of our own functions that a task waits in."""
    waiting: Any = task.get_coro()
    place = "its start"
    while inspect.iscoroutine(waiting) and waiting.cr_frame is not None:
        frame = waiting.cr_frame
        name = f"{waiting.__qualname__} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})"
        if place == "its start" or not {"asyncio", "anyio"} & set(Path(frame.f_code.co_filename).parts):
            place = name
        waiting = waiting.cr_await
    return place


# --- the network

#: What a server makes of an attempt that comes at `now`: a reply or a loss that says itself when the request
#: leaves (`sent_at`, not before `now`) and when it ends (`ended_at`; infinity: never, until it is aborted).
Answer: TypeAlias = Callable[[Claimed, float], Landed]


@dataclass(slots=True)
class Exchange:
    """What a `MemoryTransport` was given to send, and what became of it."""

    claimed: Claimed
    #: `Clock.now()` when it left; None if it has not.
    sent_at: float | None = None
    #: None while it is under way, and if its `send` was cancelled.
    landed: Landed | None = None


class MemoryTransport:
    """A `Transport` without a network: a function answers, and virtual time passes until its answer lands.

    The function is called when an attempt is given to `send`, once for each, in that order.
    """

    def __init__(self, answer: Answer, clock: Clock) -> None:
        self._answer = answer
        self._now = clock.now
        self._aborts: set[asyncio.Event] = set()
        self._closed = False
        #: Every attempt that it was given, in that order.
        self.exchanges: list[Exchange] = []
        #: Attempts that have left and not landed, now and at the most.
        self.in_flight = 0
        self.most_in_flight = 0

    async def send(self, claimed: Claimed, sent: Callable[[Claimed], None]) -> Landed:
        """See `Transport.send`."""
        exchange = Exchange(claimed)
        abort = asyncio.Event()
        self._aborts.add(abort)
        try:
            await anyio.lowlevel.checkpoint()
            if self._closed or abort.is_set():
                landed: Landed = self._closed_at(None)
            else:
                self.exchanges.append(exchange)
                landed = await self._exchange(exchange, sent, abort)
        finally:
            self._aborts.discard(abort)
        exchange.landed = landed
        return landed

    async def _exchange(
        self, exchange: Exchange, sent: Callable[[Claimed], None], abort: asyncio.Event
    ) -> Landed:
        landed = self._answer(exchange.claimed, self._now())
        leaves = isinstance(landed, Reply) or landed.left
        if leaves != (landed.sent_at is not None):
            message = f"what leaves has a time when it left, and what does not has none: {landed}"
            raise ValueError(message)
        if landed.sent_at is not None:
            if await self._wait(landed.sent_at, abort):
                return self._closed_at(None)
            exchange.sent_at = self._now()
            sent(exchange.claimed)
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if await self._wait(landed.ended_at, abort):
                return self._closed_at(exchange.sent_at)
        finally:
            self.in_flight -= exchange.sent_at is not None
        return msgspec.structs.replace(landed, sent_at=exchange.sent_at, ended_at=self._now())

    async def _wait(self, until: float, abort: asyncio.Event) -> bool:
        """Wait for a time; say whether `abort` came first."""
        if until > self._now():
            with anyio.move_on_after(until - self._now()):
                await abort.wait()
        return abort.is_set()

    def _closed_at(self, sent_at: float | None) -> Lost:
        reason = "the run was stopped before the reply came"
        return Lost(sent_at is not None, "closed", reason, sent_at, self._now())

    def abort(self) -> None:
        """See `Transport.abort`."""
        for abort in self._aborts:
            abort.set()

    async def aclose(self) -> None:
        """See `Transport.aclose`. Whatever is sent afterwards is `Lost`, kind `closed`."""
        self._closed = True
        self.abort()


CHAT: Final = "/v1/chat/completions"


def answer(claimed: Claimed, now: float) -> Reply:
    """Answer as a model would, after 250 ms: the text is the name of the request's first row.

    The usage is 7 tokens in and 3 out, but for moderations, which have none.
    """
    request = claimed.request
    text, model = request.rows[0].custom_id, request.model
    used = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    message = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    output = [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}]
    bodies: Mapping[str, dict[str, Any]] = {
        CHAT: {"choices": [message], "usage": used},
        "/v1/completions": {"choices": [{"index": 0, "text": text, "finish_reason": "stop"}], "usage": used},
        "/v1/responses": {
            "output": output,
            "status": "completed",
            "usage": {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10},
        },
        "/v1/embeddings": {
            "data": [{"index": index, "embedding": [0.5]} for index in range(len(request.rows))],
            "usage": {"prompt_tokens": 10, "total_tokens": 10},
        },
        "/v1/moderations": {"results": [{"flagged": False}]},
    }
    body = orjson.dumps({"id": f"answer-{request.key}", "model": model, **bodies[request.path]})
    return Reply(200, ((b"x-request-id", b"req-%d" % claimed.id),), body, now, now + 0.25)


def refusal(status: int, code: str | None = None, retry_after_s: float | None = None) -> Answer:
    """Make a server that answers this status after 250 ms, with the API's own error body."""
    error = {"message": "no", "type": "error", "param": None, "code": code}
    headers = () if retry_after_s is None else ((b"retry-after", b"%a" % retry_after_s),)

    def refuse(_claimed: Claimed, now: float) -> Reply:
        return Reply(status, headers, orjson.dumps({"error": error}), now, now + 0.25)

    return refuse


def loss(kind: str, *, left: bool = True, after_s: float = 0.25) -> Answer:
    """Make a server, or the lack of one, that loses what it is sent after so many seconds."""

    def lose(_claimed: Claimed, now: float) -> Lost:
        return Lost(left, kind, f"lost on purpose ({kind})", now if left else None, now + after_s)

    return lose


def script(*answers: Answer) -> Answer:
    """Make a server that meets each attempt with the next of these; the last one goes on for ever."""
    left = list(answers)

    def play(claimed: Claimed, now: float) -> Landed:
        return (left.pop(0) if len(left) > 1 else left[0])(claimed, now)

    return play


# --- the disk


class InlineConnection:
    """A `batcher.store.connection.Connection` that runs each statement at once, in the event loop's thread.

    As through aiosqlite, a statement is carried out even if whoever awaits it is cancelled, and other tasks
    come in between any two statements.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    @property
    def in_transaction(self) -> bool:
        """See `Connection.in_transaction`."""
        return self._db.in_transaction

    async def execute(self, sql: str, parameters: Iterable[Any] | None = None) -> object:
        """See `Connection.execute`."""
        return await self._done(lambda: self._db.execute(sql, tuple(parameters or ())))

    async def execute_fetchall(self, sql: str, parameters: Iterable[Any] | None = None) -> list[sqlite3.Row]:
        """See `Connection.execute_fetchall`."""
        return await self._done(lambda: self._db.execute(sql, tuple(parameters or ())).fetchall())

    async def rollback(self) -> None:
        """See `Connection.rollback`."""
        await self._done(self._db.rollback)

    async def close(self) -> None:
        """See `Connection.close`."""
        await self._done(self._db.close)

    async def _done(self, operation: Callable[[], T]) -> T:
        try:
            return operation()
        finally:
            await asyncio.sleep(0)


async def inline_connection(path: Path) -> InlineConnection:
    """Open a store without a thread: pass it to `Journal.open(..., connect=inline_connection)`."""
    return InlineConnection(sqlite3.connect(path, isolation_level=None))
