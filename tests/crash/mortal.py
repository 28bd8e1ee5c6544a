"""A process that can die: its clock, its connection to the store, and the disk under it.

It dies at a *step*: at any look at the clock, before or after any statement, before or after a request
leaves.
"""

import sqlite3

from batcher.stop import INTERRUPTED
from batcher.testing import InlineConnection


class Died(BaseException):
    """The process is no more. Not an `Exception`: nothing may handle it."""


class Life:
    """One process: it counts its steps, and dies or is asked to stop at one of them."""

    def __init__(self, number, dies_at=None, stops_at=None, on_death=lambda: None):
        self.number = number
        self.dies_at = dies_at
        self.stops_at = stops_at
        self.on_death = on_death
        self.steps = 0
        self.dead = False
        self.loop = None

    def step(self):
        if self.dead:
            raise Died
        self.steps += 1
        if self.steps == self.stops_at and self.loop is not None:
            self.loop.stop(INTERRUPTED)
        if self.steps == self.dies_at:
            self.dead = True
            self.on_death()
            raise Died


class MortalClock:
    """The clock as a process sees it: the same time for all that ever live."""

    def __init__(self, clock, life):
        self._clock = clock
        self._life = life

    def __getattr__(self, name):
        self._life.step()
        return getattr(self._clock, name)


class MortalConnection(InlineConnection):
    """A connection that a death cuts off, and that a full disk refuses now and then."""

    def __init__(self, db, life, disk):
        super().__init__(db)
        self._life = life
        self._disk = disk

    async def _done(self, operation):
        self._life.step()
        done = await super()._done(operation)
        self._life.step()
        return done

    async def execute(self, sql, parameters=None):
        self._disk.write()
        return await super().execute(sql, parameters)

    async def close(self):
        # Closing commits nothing, and a dead process's files are put back as they were.
        self._db.close()
        if self._life.dead:
            raise Died


class Disk:
    """Refuses some statements in a row, the `first`-th of a process and those that follow."""

    def __init__(self, first=None, count=0):
        self.first = first
        self.count = count
        self.statements = 0

    def write(self):
        self.statements += 1
        if self.first is not None and self.first <= self.statements < self.first + self.count:
            refusal = sqlite3.OperationalError("database or disk is full")
            refusal.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise refusal
