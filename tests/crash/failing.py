"""Run a command that is sent a signal at a chosen moment.

    python -m tests.crash.failing NAME POINT NTH run JOB ...

The moments are in the seams, and are put there from outside: the program knows nothing of them. `NAME` is
`SIGKILL`, `SIGTERM` or `SIGINT`; the `NTH` time that the `POINT` is passed is when it is sent.
"""

import os
import signal
import sys
import threading
from functools import wraps
from pathlib import Path

import aiosqlite

from batcher import results
from batcher.request import Reply
from batcher.store.journal import Journal
from batcher.transport.wire import Wire

#: Into a commit, in seconds: some of them are over by then.
INSIDE_S = 0.0003


def around(owner, name, hit, *, after=False):
    """Pass the point before, or after, each call of a coroutine function."""
    whole = getattr(owner, name)
    call = getattr(whole, "__func__", whole)

    @wraps(call)
    async def called(*args, **options):
        if not after:
            hit()
        result = await call(*args, **options)
        if after:
            hit()
        return result

    setattr(owner, name, classmethod(called) if isinstance(owner.__dict__[name], classmethod) else called)


def at_commits(hit, *, when):
    """Pass the point `before`, `inside` or `after` each commit."""
    execute = aiosqlite.Connection.execute

    async def called(self, sql, parameters=None):
        if sql == "COMMIT" and when == "before":
            hit()
        if sql == "COMMIT" and when == "inside":
            threading.Timer(INSIDE_S, hit).start()
        done = await execute(self, sql, parameters)
        if sql == "COMMIT" and when == "after":
            hit()
        return done

    aiosqlite.Connection.execute = called


def at_departures(hit):
    """Pass the point whenever a request is about to leave."""
    send = Wire.send

    async def called(self, claimed, sent):
        def departs(one):
            sent(one)
            hit()

        return await send(self, claimed, departs)

    Wire.send = called


def at_replies(hit):
    """Pass the point whenever a reply is in and nobody knows of it."""
    send = Wire.send

    async def called(self, claimed, sent):
        landed = await send(self, claimed, sent)
        if isinstance(landed, Reply):
            hit()
        return landed

    Wire.send = called


def at_files(hit, *, after):
    """Pass the point before, or after, a file of results or errors is put in its place."""
    replace = Path.replace

    def called(self, target):
        if not after:
            hit()
        replace(self, target)
        if after:
            hit()

    Path.replace = called


def at_lines(hit):
    """Pass the point at every line of the results."""
    line = results._result_line

    def called(row):
        hit()
        return line(row)

    results._result_line = called


POINTS = {
    "opened": lambda hit: around(Journal, "open", hit, after=True),
    "read": lambda hit: around(Journal, "fresh", hit),
    "claiming": lambda hit: around(Journal, "claim", hit),
    "claimed": lambda hit: around(Journal, "claim", hit, after=True),
    "departs": at_departures,
    "replied": at_replies,
    "settling": lambda hit: around(Journal, "settle", hit),
    "settled": lambda hit: around(Journal, "settle", hit, after=True),
    "before-commit": lambda hit: at_commits(hit, when="before"),
    "inside-commit": lambda hit: at_commits(hit, when="inside"),
    "after-commit": lambda hit: at_commits(hit, when="after"),
    "closing": lambda hit: around(Journal, "close", hit),
    "closed": lambda hit: around(Journal, "close", hit, after=True),
    "writing": at_lines,
    "written": lambda hit: at_files(hit, after=False),
    "replaced": lambda hit: at_files(hit, after=True),
}

#: How often a job of some hundred rows passes each point, about.
TIMES = {
    **dict.fromkeys(POINTS, 1),
    **dict.fromkeys(("departs", "replied", "writing"), 150),
    **dict.fromkeys(("claiming", "claimed", "settling", "settled"), 15),
    **dict.fromkeys(("before-commit", "inside-commit", "after-commit"), 30),
    "written": 2,
    "replaced": 2,
}


def main():
    name, point, nth, *command = sys.argv[1:]
    passed = 0

    def hit():
        nonlocal passed
        passed += 1
        if passed == int(nth):
            os.kill(os.getpid(), signal.Signals[name])

    POINTS[point](hit)
    sys.argv = ["batcher", *command]
    from batcher.cli import main as batcher

    batcher()


if __name__ == "__main__":
    main()
