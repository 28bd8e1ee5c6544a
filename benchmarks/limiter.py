"""What does an admission cost, and is the limit kept?

Questions: (1) CPU per admission against requests and tokens per minute, with nothing and with much waiting;
(2) how much is admitted in the worst 60 seconds, and how much of the limit is used; (3) how long a large
request waits among small ones that keep coming.
Contenders: `batcher` (ours: a `fit` and a `sent` for each admission, from a queue with one timer, as in
`loop.py`; its default burst of 0.25 s), and three libraries, each as two limiters in sequence, requests and
then tokens, as none takes both or neither: `aiolimiter` (`AsyncLimiter(limit, 60)`); pyrate-limiter with its
default, a log (`InMemoryBucket`, leaked every 10 s as by its thread), and with GCRA (`StateBucket`), through
`try_acquire_async`; throttled-py's asyncio `Throttled` with its default, a token bucket, and with GCRA, in a
`MemoryStore`. In these a task waits for each row. They let a whole minute's limit go at once: their default.
Machine: printed with the tables. Contenders alternate, medians; the garbage collector is on, as in life.

    pip install -e '.[bench]' && python benchmarks/limiter.py [--quick] [--plot benchmarks/limiter.svg]

Waiting is done in virtual time (`batcher.testing`), which the libraries' clocks are patched to show; timers
end on whole milliseconds, as epoll's do: so a real wake, of some 100 us, is left out. Time is real where
nothing waits, and where a column says so. A row that was admitted is replaced by one of its size at once, so
that as many wait all the time.
"""
# long: the three questions share their contenders and the virtual time, a library each in a few lines

import argparse
import asyncio
import functools
import gc
import importlib.metadata
import math
import multiprocessing
import os
import random
import statistics
import time
from bisect import bisect_left, bisect_right
from collections import Counter, deque
from contextlib import ExitStack
from itertools import accumulate, islice, repeat
from pathlib import Path
from unittest import mock

import uvloop
from aiolimiter import AsyncLimiter
from prices import machine
from pyrate_limiter import InMemoryBucket, Limiter, Rate, SingleBucketFactory, StateBucket
from throttled.asyncio import MemoryStore, Throttled, rate_limiter

from batcher.limits.bucket import Took
from batcher.limits.pool import Limit, Pool
from batcher.loop import TICK_S
from batcher.testing import VirtualClock, run

MINUTE_S = 60.0
TPM = 200_000
#: Rows that wait in the second and the third question.
WAITING = 64
PACKAGES = ("aiolimiter", "pyrate-limiter", "throttled-py")
FORK = multiprocessing.get_context("fork")


# --- contenders: `admitted` is told the cost of each row, and answers with the next in its place, or None


class Ours:
    """A queue of costs and one timer; up to 64 are offered at a time."""

    def __init__(self, rpm, tpm, admitted):
        self.pool, self.admitted, self.waiting = Pool(Limit(rpm, tpm), 0.25), admitted, deque()
        self.task = asyncio.create_task(self.admit())

    def submit(self, cost):
        self.waiting.append(cost)

    async def spend(self):
        """Spend the burst of a minute: there is none."""

    async def admit(self):
        pool, waiting = self.pool, self.waiting
        now_s = asyncio.get_running_loop().time
        while waiting:
            now = now_s()
            fit = pool.fit(islice(waiting, 64), now)
            if isinstance(fit, Took):
                costs = [waiting.popleft() for _ in range(fit.count)]
                pool.sent(costs, now)
                waiting.extend(filter(None, map(self.admitted, costs)))
            else:
                await asyncio.sleep(max(fit.until - now, TICK_S))


class InSequence:
    """A task per row, which waits for a request and then for its tokens."""

    def __init__(self, rpm, tpm, admitted, make):
        self.rpm, self.admitted, self.tasks = rpm, admitted, []
        self.requests, self.tokens = make(rpm, "requests"), make(tpm, "tokens")

    def submit(self, cost):
        self.tasks.append(asyncio.create_task(self.row(cost)))

    async def spend(self):
        """Spend the burst of a minute, so that rows wait."""
        await self.requests(self.rpm)

    async def row(self, cost):
        requests, tokens, admitted = self.requests, self.tokens, self.admitted
        while cost is not None:
            await requests(1)
            await tokens(cost)
            cost = admitted(cost)


def aiolimiter(limit, _key):
    return AsyncLimiter(limit, MINUTE_S).acquire


def pyrate(bucket_class):
    def make(limit, key):
        bucket = bucket_class([Rate(limit, 60_000)])
        limiter = Limiter(SingleBucketFactory(bucket, schedule_leak=False))

        async def leak():
            while True:
                await asyncio.sleep(10)
                bucket.leak(bucket.now())

        limiter.leaking = asyncio.create_task(leak())
        return functools.partial(limiter.try_acquire_async, key)

    return make


def throttled(using):
    def make(limit, key):
        limiter = Throttled(quota=rate_limiter.per_min(limit), using=using, store=MemoryStore(), timeout=1e9)
        return functools.partial(limiter.limit, key)

    return make


LIBRARIES = {
    "aiolimiter": aiolimiter,
    "pyrate-limiter, log": pyrate(InMemoryBucket),
    "pyrate-limiter, GCRA": pyrate(StateBucket),
    "throttled-py, bucket": throttled("token_bucket"),
    "throttled-py, GCRA": throttled("gcra"),
}
THEIRS = {name: functools.partial(InSequence, make=make) for name, make in LIBRARIES.items()}
ALL = {"batcher": Ours, **THEIRS}


# --- virtual time


class Epoll(VirtualClock):
    """Its waits end on whole milliseconds and a moment later, as those of a real event loop do."""

    def advance(self, seconds):
        super().advance(math.ceil(seconds * 1e3) * 1e-3 + 1e-6)


def virtual(main):
    """Run a coroutine in virtual time, which the clocks of the contenders show too."""
    clock = Epoll()
    clocks = {
        "pyrate_limiter.clocks.monotonic_ns": lambda: int(clock.now() * 1e9),
        "throttled.utils.now_mono_f": clock.now,
        "throttled.utils.now_sec": lambda: int(clock.wall()),
    }
    with ExitStack() as stack:
        for name, read in clocks.items():
            stack.enter_context(mock.patch(name, read))
        return run(lambda: main, clock)


def admissions(contender, rpm, tpm, costs, seconds):
    """Return (time, cost) of what it admits when more than enough rows wait all the time."""
    log = []

    async def main():
        now_s = asyncio.get_running_loop().time

        def admitted(cost):
            log.append((now_s(), cost))
            return next(costs)

        rows = contender(rpm, tpm, admitted)
        for cost in islice(costs, WAITING):
            rows.submit(cost)
        await asyncio.sleep(seconds)

    virtual(main())
    return [(at, cost) for at, cost in log if at < seconds]


# --- 1: CPU


def measure(pipe, contender, start, waiting, warm, count):
    """Send the CPU time of an admission, in microseconds."""
    marks, done, chance = [], 0, random.Random(1)
    rpm, tpm = (180_000, 36_000_000) if waiting else (60_000_000, 10**10)

    async def main():
        finished = asyncio.Event()

        def admitted(cost):
            nonlocal done
            done += 1
            if done == warm or done == warm + count:
                marks.append(time.process_time())
                if len(marks) == 2:
                    finished.set()
            return cost if done < warm + count else None

        rows = contender(rpm, tpm, admitted)
        if waiting:
            await rows.spend()
        for _ in range(waiting or WAITING):
            rows.submit(chance.randrange(20, 180))
        gc.collect()
        await finished.wait()
        pipe.send((marks[1] - marks[0]) / count * 1e6)
        os._exit(0)  # some of the libraries take minutes to cancel 100,000 tasks

    start(main())


def cost_us(measuring, *args):
    """Measure in a process of its own."""
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=measuring, args=(theirs, *args))
    process.start()
    figure = ours.recv()
    process.join()
    return figure


def measure_free(pipe, admit, group):
    """Send the CPU time of an admission where the limits are far away, in microseconds."""
    costs, count = [470] * group, 40_000 // group

    async def main():
        admitting = admit(60_000_000, 10**10)
        await admitting(costs, count)  # warm
        began = time.process_time()
        await admitting(costs, count)
        pipe.send((time.process_time() - began) / count / group * 1e6)
        os._exit(0)

    asyncio.run(main())


def ours_free(rpm, tpm):
    pool = Pool(Limit(rpm, tpm), 0.25)

    async def admit(costs, count):
        now_s = asyncio.get_running_loop().time
        for _ in range(count):
            now = now_s()
            pool.fit(costs, now)
            pool.sent(costs, now)

    return admit


def in_sequence_free(make, rpm, tpm):
    requests, tokens = make(rpm, "requests"), make(tpm, "tokens")

    async def admit(costs, count):
        for _ in range(count):
            for cost in costs:
                await requests(1)
                await tokens(cost)

    return admit


def situations(name, quick):
    """Yield (heading, how to run the loop, rows waiting, admissions to warm up, and to measure)."""
    # Ours after a minute and more, so that its window is full; a second's worth of the others.
    size = (200_000, 30_000) if name == "batcher" else (600, 3_000)
    for waiting in (100, 1_000, 10_000) if quick else (100, 1_000, 10_000, 100_000):
        yield f"{waiting:,}", virtual, waiting, *size
    if name != "pyrate-limiter, log":  # it would let nothing go for a minute, and then all at once
        for waiting in (100, 10_000):
            yield f"{waiting:,}, real time, uvloop", uvloop.run, waiting, 600, 3_000


def ask_cpu(quick):
    free = {"batcher": ours_free} | {
        name: functools.partial(in_sequence_free, make) for name, make in LIBRARIES.items()
    }
    figures = {}
    for _ in range(3 if quick else 5):
        for name, admit in free.items():
            for heading, group in (("free, one by one", 1), ("free, groups of 64", 64)):
                figures.setdefault((name, heading), []).append(cost_us(measure_free, admit, group))
    for _ in range(3):
        for name, make in ALL.items():
            for heading, *situation in situations(name, quick):
                figures.setdefault((name, heading), []).append(cost_us(measure, make, *situation))
    us = {which: statistics.median(values) for which, values in figures.items()}
    headings = list(dict.fromkeys(heading for _, heading in us))
    print("CPU us of an admission, free and while so many rows wait (x: beside ours):\n")
    print(f"| contender | {' | '.join(headings)} |\n|{'---|' * (1 + len(headings))}")
    for name in ALL:
        cells = []
        for each in headings:
            value, base = us.get((name, each)), us["batcher", each]
            cells.append("" if value is None else f"{value:.2f} ({value / base:.1f} x)")
        print(f"| {name} | {' | '.join(cells)} |")


# --- 2: the bound and the use

#: Name, size of a request, mean size.
WORKLOADS = (
    ("up to 0.5% of the TPM", lambda chance: chance.randint(1, TPM // 200), TPM / 400),
    ("up to 2% of the TPM", lambda chance: chance.randint(1, TPM // 50), TPM / 100),
    ("20 to 20,000 tokens", lambda chance: int(20 * 1000 ** chance.random()), 19_980 / math.log(1000)),
)


def sizes(draw):
    """Yield sizes without end, always the same ones."""
    chance = random.Random(7)
    while True:
        yield draw(chance)


def worst(log, weigh, window_s=MINUTE_S, since=0.0):
    """Return the most in any window, both its ends included, that begins at `since` or later."""
    times = [at for at, _ in log]
    sums = [0, *accumulate(weigh(cost) for _, cost in log)]
    firsts = range(bisect_left(times, since), len(times))
    return max(sums[bisect_right(times, times[first] + window_s)] - sums[first] for first in firsts)


def bound_and_use(contender, rpm, draw, *, requests):
    """Return the worst 60 s, the worst after the first, the mean minute after it, and the worst second."""
    log = admissions(contender, rpm, TPM, sizes(draw), 11 * MINUTE_S)
    limit, weigh = (rpm, lambda _: 1) if requests else (TPM, lambda cost: cost)
    used = sum(weigh(cost) for at, cost in log if at >= MINUTE_S) / 10
    most = worst(log, weigh), worst(log, weigh, since=MINUTE_S), used, worst(log, weigh, 1.0)
    return [f"{amount / limit:.1%}" for amount in most]


def ask_bound():
    print(f"\nShares of the limit, of {TPM:,} TPM or of what RPM binds, in 11 minutes:\n")
    columns = [
        f"{which} {what}" for which in ("TPM", "RPM") for what in ("worst 60 s", "later", "used", "1 s")
    ]
    print(f"| requests | contender | {' | '.join(columns)} |\n|{'---|' * 10}")
    for heading, draw, mean in WORKLOADS:
        for name, contender in ALL.items():
            cells = bound_and_use(contender, int(TPM / mean * 1.5), draw, requests=False)
            cells += bound_and_use(contender, int(TPM / mean / 1.5), draw, requests=True)
            print(f"| {heading} | {name} | {' | '.join(cells)} |")


# --- 3: a large one among small ones

SMALL, AT_MOST_S = TPM // 1000, 600.0


def longest_wait_s(contender, large):
    """Return the longest wait of five large requests, each of which comes a while after the one before."""
    waits = []

    async def main():
        loop, landed = asyncio.get_running_loop(), asyncio.Event()
        rows = contender(2 * TPM // SMALL, TPM, lambda cost: cost if cost == SMALL else landed.set())
        for _ in range(WAITING):
            rows.submit(SMALL)
        await asyncio.sleep(133)
        while len(waits) < 5 and math.inf not in waits:
            await asyncio.sleep(17.3)
            landed.clear()
            arrived = loop.time()
            rows.submit(large)
            try:
                await asyncio.wait_for(landed.wait(), AT_MOST_S)
                waits.append(loop.time() - arrived)
            except TimeoutError:
                waits.append(math.inf)

    virtual(main())
    return max(waits)


def ask_wait():
    shares, ours = (0.02, 0.1, 0.5), {}
    print(f"\nLongest wait of a large request while {WAITING} of 0.1% of the TPM wait all the time:\n")
    print(f"| contender | {' | '.join(f'{share:.0%} of the TPM' for share in shares)} |\n|{'---|' * 4}")
    for name, contender in ALL.items():
        cells = []
        for share in shares:
            wait_s = longest_wait_s(contender, int(TPM * share))
            base = ours.setdefault(share, wait_s)
            sign, wait_s = ("> ", AT_MOST_S) if wait_s == math.inf else ("", wait_s)
            cells.append(f"{sign}{wait_s:.1f} s ({sign}{wait_s / base:.1f} x)")
        print(f"| {name} | {' | '.join(cells)} |")


# --- the picture

WIDTH, PANEL, LEFT, RIGHT, TOP, SECONDS, PLOT_RPM = 760, 92, 60, 740, 64, 180, 6_000
GRID, DASHES = 'stroke="#ddd"', 'stroke="#111" stroke-width="1.4" stroke-dasharray="6 4"'


def text(x, y, words, more=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" {more}>{words}</text>'


def height(rate):
    """Return how far a rate is above the bottom of its panel: 1 to 10,000 a second, by logarithm."""
    return math.log10(max(rate, 1)) / 4 * (PANEL - 28)


def across(second):
    return LEFT + (RIGHT - LEFT) * second / SECONDS


def panel(y, name, log, colour):
    """Draw what one contender admits in each second; `y` is the bottom."""
    rates = Counter(int(at) for at, _ in log)
    tops = "".join(f"V{y - height(rates[second]):.1f}H{across(second + 1):.1f}" for second in range(SECONDS))
    yield f'<path d="M{LEFT} {y}{tops}V{y}z" fill="{colour}"/>'
    for rate, stroke in ((1, GRID), (PLOT_RPM // 60, DASHES), (10_000, GRID)):
        yield f'<path d="M{LEFT} {y - height(rate):.1f}H{RIGHT}" {stroke}/>'
        yield text(LEFT - 6, y - height(rate) + 4, f"{rate:,}", 'text-anchor="end"')
    words = f"{name}: worst 60 s {worst(log, lambda _: 1) / PLOT_RPM:.0%} of the limit"
    yield text(LEFT + 12, y - PANEL + 24, words, f'font-weight="bold" fill="{colour}"')


def plot(path):
    """Draw admissions per second over the first three minutes."""
    bottom = TOP + PANEL * len(ALL) - 14
    lines = [
        text(LEFT, 22, f"Admissions per second at {PLOT_RPM:,} RPM while rows wait", 'font-size="15"'),
        text(LEFT + 34, 42, "the limit as an even rate; the scale is logarithmic"),
        f'<path d="M{LEFT} 38h28" {DASHES}/>',
        text((LEFT + RIGHT) / 2, bottom + 34, "seconds since the start", 'text-anchor="middle"'),
    ]
    ticks = range(0, SECONDS + 1, 30)
    lines += (text(across(second), bottom + 17, second, 'text-anchor="middle"') for second in ticks)
    colours = ("#0b6e4f", "#a8480f", "#5a4fcf", "#8478e8", "#a61c5d", "#cf5a92")
    for index, ((name, contender), colour) in enumerate(zip(ALL.items(), colours, strict=True)):
        log = admissions(contender, PLOT_RPM, 1_000 * PLOT_RPM, repeat(500), SECONDS)
        lines += panel(TOP + PANEL * (index + 1) - 14, name, log, colour)
    box = f'width="{WIDTH}" height="{bottom + 46}"'
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {box} font-size="12" font-family="sans-serif" fill="#222">'
    )
    Path(path).write_text("\n".join([head, f'<rect {box} fill="#fff"/>', *lines, "</svg>\n"]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="without 100,000 rows waiting")
    parser.add_argument("--plot", metavar="PATH", help="draw the first three minutes as well")
    options = parser.parse_args()
    versions = (f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    print(f"Machine: {machine()}; {', '.join(versions)}\n")
    ask_cpu(options.quick)
    ask_bound()
    ask_wait()
    if options.plot:
        plot(options.plot)


if __name__ == "__main__":
    main()
