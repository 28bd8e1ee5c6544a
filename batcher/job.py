"""A job from its options to its summary: what the command and `await batcher.run(...)` both call."""

import os
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import anyio
import anyio.to_thread

from batcher.clock import Clock, SystemClock
from batcher.errors import ConfigurationError, StoreError, StoreWriteError
from batcher.health import Health
from batcher.jobfile import check_job
from batcher.limits.bucket import Limit
from batcher.limits.pool import SHARED, Pool, pools
from batcher.limits.slots import Slots
from batcher.limits.window import DAY_S, MINUTE_S, SKEW_S, SLOTS
from batcher.loop import Loop, Parts
from batcher.money.overrides import read_overrides
from batcher.money.prices import PriceBook
from batcher.options import KEY_TTL_S, Delivery, Options, Paths
from batcher.preflight import preflight
from batcher.request import State, Transport
from batcher.results import AbandonedError, check_writable, write_errors, write_results
from batcher.signals import Signals
from batcher.source import Requests, Source, count_rows
from batcher.stop import INTERRUPTED, Stop
from batcher.store import reader
from batcher.store.connection import Connect, connect
from batcher.store.journal import Journal, Opening
from batcher.summary import Summary, summarise
from batcher.tally import Tally
from batcher.tokens import Ratios
from batcher.transport.endpoint import Endpoint
from batcher.transport.files import raise_file_limit
from batcher.transport.wire import Wire
from batcher.verdict import Policy

#: Files that the process holds open besides its connections.
_OTHER_FILES: Final = 64
#: An interrupted run writes its files only if there are at most so many rows: some seconds of work.
_WRITE_ON_INTERRUPT: Final = 1_000_000
#: At most once, a connection that the server may be closing just now makes false doubt: keep it only briefly.
_IDLE_S: Final[Mapping[Delivery, float]] = {"at-least-once": 4.0, "at-most-once": 1.0}


#: Runs beside the loop, with its counters, and is cancelled when it has ended.
Watch: TypeAlias = Callable[[Loop, Tally], Coroutine[Any, Any, None]]


async def run(job: str | os.PathLike[str], **options: Any) -> Summary:  # noqa: ANN401  Options checks them
    """Run a job as `batcher run JOB` does, without its progress line; return how it stands.

    `options` are the fields of `batcher.Options`. Credentials come from the environment and `.env`, as for
    the command. In the main thread SIGINT and SIGTERM stop the run in order; cancelling it leaves what is in
    flight in doubt, and nothing that was settled is lost.

    Raises:
        BatcherError: the job can't begin (see `batcher.errors`). Once it runs, what stops it is in the
            summary: `stopped`.
    """
    return await run_job(Options(job=os.fspath(job), **options), environment())


def environment() -> Mapping[str, str]:
    """Return the environment, with what `.env` in this folder or above adds to it.

    Raises:
        ConfigurationError: that file can't be read.
    """
    from dotenv import dotenv_values, find_dotenv

    file = find_dotenv(usecwd=True)
    if not Path(file).is_file():
        return dict(os.environ)
    try:
        added = {name: value for name, value in dotenv_values(file).items() if value is not None}
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{file} can't be read: {error}: correct it, or move it away") from error
    return {**added, **os.environ}


def _wire(options: Options, endpoint: Endpoint, clock: Clock) -> Transport:
    return Wire(
        endpoint,
        clock,
        max_connections=options.max_inflight,
        timeout_s=options.timeout_s,
        idle_s=_IDLE_S[options.delivery],
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """What a job meets: time, the disk, the network. `batcher.testing` has others of each."""

    clock: Clock = field(default_factory=SystemClock)
    #: Opens the store.
    connect: Connect = connect
    #: Makes the way to the server.
    transport: Callable[[Options, Endpoint, Clock], Transport] = _wire


async def run_job(
    options: Options, environ: Mapping[str, str], *, world: World | None = None, watch: Watch | None = None
) -> Summary:
    """Send every row that is not settled yet; write the results and the errors; return how the job stands.

    Raises:
        BatcherError: the job can't begin (see `batcher.errors`). Once it runs, what stops it is in the
            summary: `stopped`.
    """
    with Signals() as signals:
        return await _run_job(options, environ, world or World(), watch, signals)


async def _run_job(
    options: Options, environ: Mapping[str, str], world: World, watch: Watch | None, signals: Signals
) -> Summary:
    clock = world.clock
    began = clock.now()
    endpoint = Endpoint.from_environment(options.base_url, environ)
    paths = options.paths()
    if options.job != "-":
        check_job(options.job)
    for path in (paths.output, paths.errors):
        check_writable(path)
    notices = await anyio.to_thread.run_sync(_look_ahead, options, clock.wall())
    check_file_limit(options.max_inflight)
    overrides = None if options.prices is None else read_overrides(options.prices)
    prices = PriceBook(endpoint.base_url, clock.wall(), overrides)
    tally = Tally()
    source = Source(options.job, options.limit_rows)
    journal = await Journal.open(_opening(options, paths.store, endpoint.base_url), clock, world.connect)
    stopped = None
    try:
        transport = world.transport(options, endpoint, clock)
        async with _loop(options, transport, journal, source, prices, tally, clock) as loop:
            loop.notices.extend(notices)
            signals.stop(loop)
            await _run_watched(loop, tally, watch)
            signals.stop(None)
        stopped = loop.stopped
        rows = await source.count_rest()
        if not source.ended:
            await journal.set_line_count(rows)
    except StoreWriteError as error:
        # What stopped the run before is what to see to first.
        rows, stopped = source.count, stopped or Stop("disk", str(error))
    finally:
        source.close()
        await journal.close()
    ended = Ended(rows, source.ended, stopped, clock.now() - began, clock.wall())
    return await anyio.to_thread.run_sync(_finish, options, ended, tally, lambda: signals.asked)


def _look_ahead(options: Options, wall: float) -> list[str]:
    """Say, before anything is sent, for what there may be no room and what may be paid for again.

    Raises:
        StoreWriteError: there is no room.
    """
    paths = options.paths()
    disk = preflight(options.job, paths, options.limit_rows)
    notices = [] if disk is None or disk.warning is None else [disk.warning]
    if not paths.store.exists():
        written = [path for path in (paths.output, paths.errors) if path.is_file() and path.stat().st_size]
        if written:
            what = f"an earlier run has written {written[0]}, and its store {paths.store} is gone"
            notices.append(f"{what}: all rows are sent, and paid for, anew")
    elif options.delivery == "at-least-once" and (past := _past_key_ttl(options, wall)):
        notices.append(
            f"{past:,} attempts in doubt are no longer covered by their keys (--key-ttl): rows that are "
            "sent again may be billed twice; --delivery at-most-once does not send them"
        )
    return notices


def _past_key_ttl(options: Options, wall: float) -> int:
    try:
        return reader.past_key_ttl(options.paths().store, wall, options.key_ttl_s)
    except StoreError:
        return 0  # whoever opens it says what is wrong


def _opening(options: Options, store: Path, base_url: str) -> Opening:
    reopen: set[State] = {"exhausted"}
    if options.retry_failed:
        reopen.add("refused")
    if options.retry_in_doubt:
        reopen.add("in_doubt")
    return Opening(
        path=store,
        base_url=base_url,
        namespace=options.namespace,
        reopen=frozenset(reopen),
    )


@asynccontextmanager
async def _loop(
    options: Options,
    transport: Transport,
    journal: Journal,
    source: Source,
    prices: PriceBook,
    tally: Tally,
    clock: Clock,
) -> AsyncIterator[Loop]:
    """Put the loop together; close its connections at the end."""
    pool_of = {name: name for name in options.limits}
    try:
        yield Loop(
            Parts(
                source=source,
                requests=Requests(journal.namespace, pool_of, SHARED, prices, Ratios()),
                journal=journal,
                transport=transport,
                pools=await _pools(options, journal),
                slots=Slots(options.max_inflight),
                prices=prices,
                policy=Policy(
                    options.max_attempts,
                    options.delivery == "at-most-once",
                    options.retry_in_doubt,
                    options.timeout_s,
                ),
                max_failures=options.max_failures,
                health=Health(options.max_stall_s),
                clock=clock,
                tally=tally,
                grace_s=options.grace_s,
            )
        )
    finally:
        with anyio.CancelScope(shield=True):
            await transport.aclose()


async def _pools(options: Options, journal: Journal) -> dict[str, Pool]:
    """Make the pools; what earlier processes sent within the last minute, or day, counts in them."""
    shared = Limit(options.rpm, options.tpm, options.rpd, options.tpd)
    by_name = pools(shared, options.limits, options.burst_s, options.tpm_counts)
    a_day = any(limit.rpd or limit.tpd for limit in (shared, *options.limits.values()))
    for period_s in (MINUTE_S, DAY_S) if a_day else (MINUTE_S,):
        for model, at, requests, reserved, used in await journal.recent(period_s + SKEW_S, period_s / SLOTS):
            tokens = used if options.tpm_counts == "actual" else reserved
            by_name[model if model in options.limits else SHARED].seed(at, requests, tokens, period_s)
    return by_name


async def _run_watched(loop: Loop, tally: Tally, watch: Watch | None) -> None:
    async with anyio.create_task_group() as tasks:
        if watch is not None:
            tasks.start_soon(watch, loop, tally)
        await loop.run()
        tasks.cancel_scope.cancel()


class Ended(NamedTuple):
    """How a run has ended."""

    rows: int
    #: Whether the file was read to its end.
    complete: bool
    stopped: Stop | None
    elapsed_s: float
    #: When: seconds since 1970.
    wall: float


def _finish(options: Options, ended: Ended, tally: Tally, abandon: Callable[[], bool]) -> Summary:
    """Write the files from the store, and say how the job stands."""
    paths, stopped = options.paths(), ended.stopped
    try:
        contents = reader.read(paths.store)
        past_key_ttl = reader.past_key_ttl(paths.store, ended.wall, options.key_ttl_s)
    except StoreError as error:
        # The disk that stopped the run may be gone altogether.
        raise (error if stopped is None else StoreWriteError(stopped.reason)) from error
    if stopped == INTERRUPTED and ended.complete and contents.ended >= ended.rows:
        stopped = None  # it came when all was done
    if stopped is None or contents.ended <= _WRITE_ON_INTERRUPT:
        try:
            write_results(paths.store, paths.output, abandon)
            write_errors(paths.store, paths.errors, abandon)
        except AbandonedError:
            stopped = stopped or INTERRUPTED
        except StoreWriteError as error:
            # What stopped the run before is what to see to first.
            stopped = stopped or Stop("disk", str(error))
    reason = None if stopped is None else stopped.reason
    return summarise(contents, past_key_ttl, ended.rows, tally, ended.elapsed_s, reason)


def check_file_limit(max_inflight: int) -> None:
    """Make sure that so many connections can be open at once; raise the process's own limit if it must be.

    Raises:
        ConfigurationError: the system allows fewer.
    """
    needed = max_inflight + _OTHER_FILES
    allowed = raise_file_limit(needed)
    if allowed < needed:
        raise ConfigurationError(
            f"--max-inflight {max_inflight} needs {needed} open files and the system allows {allowed}: "
            f"raise it (ulimit -n), or use --max-inflight {max(allowed - _OTHER_FILES, 1)}"
        )


def status(job: str | os.PathLike[str], store: Path | None = None, key_ttl_s: float = KEY_TTL_S) -> Summary:
    """Say how a job stands, from its store alone: also beside a run that is going on.

    `key_ttl_s` is how long the server remembers a key, in seconds.

    Raises:
        StoreError: there is no store, or it can't be read.
    """
    job = os.fspath(job)
    store = Paths.of(job, store).store
    contents = reader.read(store)
    past_key_ttl = reader.past_key_ttl(store, SystemClock().wall(), key_ttl_s)
    rows = contents.line_count
    if rows is None:
        # Its first run has not come to the end of the file.
        rows = contents.ended if job == "-" or not Path(job).is_file() else count_rows(job)
    return summarise(contents, past_key_ttl, rows, Tally(already_done=contents.ended), 0.0, None)
