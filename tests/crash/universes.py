"""Simulated universes: one job, one server, and every way to die in between. One seed is one universe.

    python -m tests.crash.universes --count 20000      # seeds 0 to 19,999, on all cores
    python -m tests.crash.universes --seed 4711        # that one again, told process by process

The whole of a run is real (`run_job`: the file, the queues, the pools, the verdicts, the journal, SQLite);
only time, the network and the thread of SQLite are of `batcher.testing`. A process dies at any step (see
`mortal.py`). What is in the files at that moment stays, all else is gone, and what the server has in hand
goes on. Then the same command runs again, until the job is done. What must hold then is in `promises.py`.
"""

import os
import random
import sqlite3
import tempfile
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import Pool
from pathlib import Path

import orjson

from batcher.errors import BatcherError
from batcher.job import World, run_job
from batcher.options import Options
from batcher.request import Lost
from batcher.retry import MaxFailures
from batcher.testing import MemoryTransport, VirtualClock, run
from tests.crash.mortal import Died, Disk, Life, MortalClock, MortalConnection
from tests.crash.promises import BrokenError, check
from tests.crash.reports import Report, main, mode
from tests.crash.server import MODEL, PRICES, TIMEOUT_S, Server

URL = "http://127.0.0.1:1/v1"
ENVIRON = {"OPENAI_API_KEY": "sk-universe"}
#: No universe needs as many lives: what does not end by then never will.
MOST_LIVES = 80
#: Where files cost no disk, if there is such a place.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


# --- the job


def make_job(chance, clean):
    """Make the lines of a job: named and bare ones, some that are refused, and some that are none.

    A `clean` one looks the same in any order: the names of bare lines, and what is said of those that are no
    requests, have the line's number in them.
    """
    lines = []
    for number in range(chance.randint(1, 14)):
        what = "refuse" if chance.random() < 0.1 else "row"
        body = {
            "model": MODEL,
            "max_tokens": 20,
            "messages": [{"role": "user", "content": f"{what} {number}"}],
        }
        if chance.random() < 0.2 and not clean:
            lines.append(orjson.dumps(body))
        else:
            lines.append(
                orjson.dumps({"custom_id": f"r{number}", "url": "/v1/chat/completions", "body": body})
            )
        if chance.random() < 0.05 and not clean:
            lines.append(chance.choice([b"{oops", b"", b'{"model": 1}', lines[0]]))
    return lines


# --- a universe


@dataclass
class Plan:
    """What a universe is made of: all of it follows from the seed."""

    seed: int
    honours: bool
    delivery: str
    options: dict
    server: dict
    deaths: int
    interrupts: int
    full_disks: int
    jumps: bool
    shuffles: bool

    @property
    def mode(self):
        return mode(self.delivery == "at-most-once", self.honours)


def make_plan(seed, chance):
    honours = chance.random() < 0.5
    delivery = "at-most-once" if chance.random() < 0.4 else "at-least-once"
    limit = chance.random()
    faults = chance.choice([0.0, 0.1, 0.3, 0.6])
    return Plan(
        seed=seed,
        honours=honours,
        delivery=delivery,
        options={
            "max_inflight": chance.choice([1, 2, 4, 8]),
            "max_attempts": chance.choice([2, 5]),
            "rpm": chance.randint(2, 20) if limit < 0.4 else None,
            "tpm": chance.randint(60, 300) if 0.3 < limit < 0.5 else None,
        },
        server={
            "honours": honours,
            "forgetful": not honours and chance.random() < 0.4,
            "keeps_failures": honours and chance.random() < 0.3,
            "marks": chance.random() < 0.7,
            "faults": faults,
            "budget": chance.randint(0, 40),
        },
        deaths=chance.randint(0, 5),
        interrupts=chance.randint(0, 1),
        full_disks=chance.choice([0, 0, 0, 1, 2]),
        jumps=chance.random() < 0.2,
        shuffles=chance.random() < 0.2,
    )


class Universe:
    """A folder, a server, and one process after the other."""

    def __init__(self, seed, folder, tell=lambda *_, **__: None):
        self._chance = random.Random(seed)
        self.plan = make_plan(seed, self._chance)
        self.folder = folder
        self.lines = make_job(self._chance, clean=self.plan.shuffles)
        self.clock = VirtualClock(seed)
        self.server = Server(self._chance, **self.plan.server)
        self.store = folder / "job.db"
        self.full_disks = [
            Disk(self._chance.randint(1, 40), self._chance.choice([1, 3, 10_000]))
            for _ in range(self.plan.full_disks)
        ]
        self.lives = 0
        self.deaths = 0
        #: Key -> its attempts that the end of a process found under way.
        self.cut_down = Counter()
        self._image = None
        self._tell = tell

    def live_until_done(self):
        """Run the command until there is nothing left to do; return its last summary."""
        (self.folder / "prices.json").write_bytes(PRICES)
        plan, chance = self.plan, self._chance
        steps = undisturbed(tuple(self.lines), plan.delivery).steps
        while self.lives < MOST_LIVES:
            self._write_job()
            life = Life(self.lives, on_death=self._keep_image)
            disk = Disk()
            if self.deaths < plan.deaths:
                life.dies_at = chance.randint(1, chance.choice([steps, 2 * steps, 60]))
            elif plan.interrupts:
                plan.interrupts -= 1
                life.stops_at = chance.randint(1, steps)
            elif self.full_disks:
                disk = self.full_disks.pop()
            summary = self._live(life, disk)
            if summary is not None and summary.stopped is None and not self._is_left(summary):
                return summary
            self._pause()
        raise BrokenError(f"not done after {self.lives} lives")

    def _write_job(self):
        if self.plan.shuffles and self.lives:
            self._chance.shuffle(self.lines)
        (self.folder / "job.jsonl").write_bytes(b"\n".join(self.lines) + b"\n")

    def _is_left(self, summary):
        """Say whether another run has something to do: rows that ran out of attempts."""
        with closing(sqlite3.connect(self.store)) as db:
            exhausted = db.execute("SELECT count(*) FROM outcomes WHERE state = 'exhausted'").fetchone()[0]
        return summary.pending or exhausted

    def _pause(self):
        """Let time pass between two processes; a wall clock may be set meanwhile."""
        self.clock.advance(self._chance.choice([0.0, 0.5, self._chance.uniform(0, 90)]))
        if self.plan.jumps:
            self.clock.epoch += self._chance.choice([-3600.0, -30.0, 0.0])
        self.server.catch_up(self.clock.now())

    def _live(self, life, disk):
        """Run the command once, as far as it gets; return its summary: None if it died or could not begin."""
        self.lives += 1
        transports = []

        async def connect(path):
            life.step()
            return MortalConnection(sqlite3.connect(path, isolation_level=None), life, disk)

        def transport(_options, _endpoint, clock):
            transports.append(MemoryTransport(self.server.answers(life), clock))
            return transports[0]

        async def watch(loop, _tally):
            life.loop = loop

        world = World(clock=MortalClock(self.clock, life), connect=connect, transport=transport)
        options = self._options()

        async def main():
            return await run_job(options, ENVIRON, world=world, watch=watch)

        summary, said = None, ""
        try:
            summary = run(main, self.clock)
        except BatcherError as problem:
            said = str(problem)
            if problem.exit_code != 3:
                raise BrokenError(f"exit {problem.exit_code}: {said}") from problem
        except BaseException as end:
            if not only_died(end):
                raise
            self._bury()
        self._take_stock(transports)
        self._tell(life, summary, said, disk=disk)
        return summary

    def _options(self):
        return Options(
            job=str(self.folder / "job.jsonl"),
            base_url=URL,
            namespace="universe",
            delivery=self.plan.delivery,
            prices=self.folder / "prices.json",
            timeout_s=TIMEOUT_S,
            grace_s=5.0,
            max_failures=MaxFailures(),
            **self.plan.options,
        )

    def _keep_image(self):
        """Keep what the disk holds now: it is what the next process finds."""
        names = ("job.db", "job.db-wal")
        self._image = {
            name: (self.folder / name).read_bytes() for name in names if (self.folder / name).exists()
        }

    def _bury(self):
        self.deaths += 1
        for name in ("job.db", "job.db-wal", "job.db-shm"):
            (self.folder / name).unlink(missing_ok=True)
        for name, content in self._image.items():
            (self.folder / name).write_bytes(content)

    def _take_stock(self, transports):
        """Note what was under way when a process ended, however it did."""
        settled = self._settled()
        for exchange in transports[0].exchanges if transports else ():
            landed = exchange.landed
            was_closed = isinstance(landed, Lost) and landed.kind == "closed"
            if was_closed or exchange.claimed.id not in settled:
                self.cut_down[exchange.claimed.request.key] += 1

    def _settled(self):
        if not self.store.exists():
            return set()
        with closing(sqlite3.connect(f"file:{self.store}?mode=ro", uri=True)) as db:
            return {attempt for (attempt,) in db.execute("SELECT attempt FROM settlements")}


def only_died(end):
    if isinstance(end, BaseExceptionGroup):
        return all(map(only_died, end.exceptions))
    return isinstance(end, Died)


@dataclass(frozen=True)
class Undisturbed:
    """What a job comes to where nothing goes wrong."""

    results: bytes
    errors: bytes
    steps: int


@lru_cache(maxsize=1000)
def undisturbed(lines, delivery):
    """Run a job in peace."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        calm = Universe(0, Path(folder))
        calm.lines = list(lines)
        calm.server = Server(random.Random(0))
        calm.plan.options = {"max_inflight": 4}
        calm.plan.shuffles = False
        calm.plan.delivery = delivery
        (calm.folder / "prices.json").write_bytes(PRICES)
        calm._write_job()
        life = Life(0)
        summary = calm._live(life, Disk())
        assert summary is not None
        assert summary.stopped is None
        files = [(calm.folder / f"job.{name}.jsonl").read_bytes() for name in ("results", "errors")]
        return Undisturbed(*files, life.steps)


# --- many of them


def explore(seed, tell=lambda *_, **__: None):
    """Live through one universe; its report says what is broken, if anything is."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        return see_through(Universe(seed, Path(folder), tell))


def explore_full_disk(statement, count):
    """Live through one where nothing goes wrong but the disk: from this statement of the first process on."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        universe = Universe(0, Path(folder))
        plan = universe.plan
        plan.deaths = plan.interrupts = 0
        plan.jumps = plan.shuffles = False
        universe.full_disks = [Disk(statement, count)]
        return see_through(universe)


def see_through(universe):
    try:
        summary = universe.live_until_done()
        return check(universe, summary, undisturbed(tuple(universe.lines), universe.plan.delivery))
    except Exception as problem:  # noqa: BLE001  whatever it is, it is told with its seed
        broken = f"{type(problem).__name__}: {problem}"
        return Report(universe.plan.seed, universe.plan.mode, universe.lives, universe.deaths, broken=broken)


def explore_many(count, first, processes):
    """Live through many, on so many cores; yield their reports."""
    with Pool(processes) as pool:
        yield from pool.imap_unordered(explore, range(first, first + count), chunksize=20)


def tell(life, summary, said, *, disk):
    """Print what became of one process."""
    if life.dead:
        end = f"died at step {life.dies_at}"
    elif summary is None:
        end = f"could not go on: {said}"
    else:
        end = (
            f"ended: {summary.succeeded} succeeded, {summary.failed} failed, {summary.in_doubt} in doubt, "
            f"{summary.pending} pending, stopped: {summary.stopped}"
        )
    print(f"life {life.number}: {life.steps} steps, {disk.statements} statements, {end}")


if __name__ == "__main__":
    main("count", 20_000, lambda seed: explore(seed, tell), explore_many)
