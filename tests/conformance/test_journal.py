"""What the journal promises, over every way to reach SQLite.

A *driver* says how: the connection, and the event loop that goes with it. A test opens the journal through it
and looks at what is in the store with a connection of its own: what that sees is committed.
"""

import asyncio
import os
import shutil
import sqlite3
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batcher.errors import StoreError, StoreLockedError, StoreWriteError
from batcher.request import Attempt, Outcome, Request, Row, Settlement, Try
from batcher.store import reader
from batcher.store.connection import Connection, connect
from batcher.store.journal import Journal, Opening
from batcher.testing import VirtualClock, inline_connection, run

URL = "http://localhost/v1"


@dataclass
class Driver:
    """A way to reach SQLite, and one store."""

    name: str
    run: Callable[[Callable[[], Coroutine[Any, Any, Any]]], Any]
    connect: Callable[[Path], Awaitable[Connection]]
    path: Path
    clock: VirtualClock = field(default_factory=VirtualClock)

    @asynccontextmanager
    async def journal(self, **options):
        """Open the journal; what is not settled when this ends is as after a crash."""
        options = {"path": self.path, "base_url": URL, **options}
        opener = options.pop("connect", self.connect)
        journal = await Journal.open(Opening(**options), self.clock, connect=opener)
        try:
            yield journal
        finally:
            await journal.close()

    def look(self, sql):
        """Read what is committed."""
        with closing(sqlite3.connect(f"{self.path.as_uri()}?mode=ro", uri=True)) as db:
            return db.execute(sql).fetchall()

    def names(self, query="results"):
        return [row[1] for row in reader.rows(self.path, query)]

    def states(self):
        """Return name -> state of the rows that are in the file, in its order; None is pending."""
        return dict(
            self.look(
                "SELECT custom_id, state FROM rows LEFT JOIN outcomes ON row = id"
                " WHERE seq IS NOT NULL ORDER BY seq"
            )
        )


def make_driver(name, path, clock=None):
    clock = clock or VirtualClock()
    if name == "aiosqlite":
        return Driver(name, lambda main: asyncio.run(main()), connect, path, clock)
    return Driver(name, lambda main: run(main, clock), inline_connection, path, clock)


DRIVERS = ("aiosqlite", "inline")


@pytest.fixture(params=DRIVERS)
def driver(request, tmp_path):
    return make_driver(request.param, tmp_path / "job.db")


# --- a job file, as the source would give it


def file(*names):
    """Make the rows of a file with one name a line; None is a blank line."""
    return [
        Row(seq, blake2b(name.encode(), digest_size=16).digest(), name)
        for seq, name in enumerate(names, 1)
        if name is not None
    ]


def letters(count, prefix="r"):
    return [f"{prefix}{number}" for number in range(1, count + 1)]


def request_of(row, model="m", worst=100):
    return Request((row,), f"key-{row.custom_id}", "shared", model, "/v1/chat/completions", b"{}", 10, worst)


def done(claimed, cost=5):
    (row,) = claimed.request.rows
    attempt = Attempt(claimed.id, "yes", 2.0, 1.0, 200, None, "req", 7, 2, 3, cost)
    return Settlement(attempt, (Outcome(row, "done", claimed.id, 200, "req", row.custom_id.encode()),))


def failed(claimed, state="refused", billed="no"):
    (row,) = claimed.request.rows
    outcome = Outcome(row, state, claimed.id, 400, None, None, "bad_request", "no", b'{"line":1}')
    return Settlement(Attempt(claimed.id, billed, 2.0, 1.0, 400, "bad_request"), (outcome,))


def again(claimed, billed="maybe", sent_at=1.0, replayed=False):
    return Settlement(Attempt(claimed.id, billed, 2.0, sent_at, None, "lost", replayed=replayed))


async def walk(journal, names, group=256, end=True):
    """Walk a file as `feed` does; return the names that are fresh."""
    rows, fresh = file(*names), []
    for start in range(0, len(rows), group):
        fresh += await journal.fresh(rows[start : start + group])
    if end:
        await journal.end_of_file(len(rows))
    return [row.custom_id for row in fresh], {row.custom_id: row for row in fresh}


async def claim(journal, rows):
    return await journal.claim([Try(request_of(row)) for row in rows])


async def finish(driver, names, group=256, **options):
    """Run a whole job: everything that is fresh is answered. Return what was fresh."""
    async with driver.journal(**options) as journal:
        fresh, rows = await walk(journal, names, group)
        if rows:
            await journal.settle([done(each) for each in await claim(journal, rows.values())])
    return fresh


# --- what is fresh


def test_a_new_store_has_everything_fresh_and_a_finished_one_nothing(driver):
    async def main():
        assert await finish(driver, letters(600)) == letters(600)
        assert await finish(driver, letters(600)) == []

    driver.run(main)
    assert driver.names() == letters(600)


EDITS = {
    "an edited row": (["a", "b", "c"], ["a", "B", "c"], ["B"]),
    "rows at the end": (["a", "b"], ["a", "b", "c", "d"], ["c", "d"]),
    "a row at the front": (["a", "b"], ["x", "a", "b"], ["x"]),
    "a row in the middle": (letters(300), [*letters(300)[:100], "x", *letters(300)[100:]], ["x"]),
    "shuffled": (["a", "b", "c"], ["c", "a", "b"], []),
    "reversed over three groups": (letters(600), letters(600)[::-1], []),
    "two rows of a group swapped": (["a", "b", "c"], ["b", "a", "c"], []),
    "two rows of different groups swapped": (
        letters(600),
        ["r600", *letters(600)[1:599], "r1"],
        [],
    ),
    "groups swapped": (letters(512), letters(512)[256:] + letters(512)[:256], []),
    "the first row deleted": (letters(600), letters(600)[1:], []),
    "the last row deleted": (["a", "b", "c"], ["a", "b"], []),
    "a whole group deleted": (letters(600), letters(600)[256:], []),
    "blank lines between": (["a", "b"], [None, "a", None, None, "b", None], []),
    "a row made blank": (["a", "b", "c"], ["a", None, "c"], []),
    "the last row made blank": (["a", "b", "c"], ["a", "b", None], []),
    "blank lines taken out": (["a", None, "b", None, "c"], ["a", "b", "c"], []),
    "shuffled, edited, deleted, appended": (
        ["a", "b", "c", "d"],
        ["d", "x", "a", "y"],
        ["x", "y"],
    ),
    "another file": (letters(300), letters(300, "s"), letters(300, "s")),
    "shorter, then nothing of it moved": (letters(600), letters(10), []),
}


@pytest.mark.parametrize(("before", "after", "fresh"), EDITS.values(), ids=EDITS)
def test_only_what_is_new_or_edited_is_fresh_and_results_are_those_of_the_file(driver, before, after, fresh):
    first, here = ([name for name in names if name] for names in (before, after))

    async def main():
        await finish(driver, before)
        assert await finish(driver, after) == fresh
        assert driver.names() == here
        assert [row[4].decode() for row in reader.rows(driver.path, "results")] == here
        contents = reader.read(driver.path)
        assert (contents.line_count, contents.done) == (len(here), len(here))
        assert await finish(driver, after) == []
        # and back again: nothing that was ever paid for is paid for again
        assert await finish(driver, before) == []

    driver.run(main)
    assert driver.names() == first
    # what has left the file stays on the bill
    assert reader.read(driver.path).by_model["m"].requests == len({*first, *here})


def test_a_row_that_is_brought_back_comes_back_done(driver):
    async def main():
        await finish(driver, ["a", "b", "c"])
        await finish(driver, ["a", "c"])
        assert driver.names() == ["a", "c"]
        assert await finish(driver, ["c", "b", "a"]) == []

    driver.run(main)
    assert driver.names() == ["c", "b", "a"]


def test_a_row_goes_by_the_name_that_it_has_now(driver):
    key = bytes(16)

    async def main():
        async with driver.journal() as journal:
            (row,) = await journal.fresh([Row(1, key, "row-1")])
            await journal.settle([done(each) for each in await claim(journal, [row])])
            await journal.end_of_file(1)
        async with driver.journal() as journal:
            assert list(await journal.fresh([Row(3, key, "row-3")])) == []
            await journal.end_of_file(1)

    driver.run(main)
    assert driver.names() == ["row-3"]


def test_what_never_was_in_a_commit_is_fresh_again(driver):
    async def main():
        async with driver.journal() as journal:
            assert len((await walk(journal, letters(300), end=False))[0]) == 300
        assert driver.look("SELECT count(*) FROM rows") == [(0,)]
        assert len(await finish(driver, letters(300))) == 300

    driver.run(main)


def test_a_run_that_stops_early_leaves_the_rest_where_it_was(driver):
    async def main():
        await finish(driver, letters(600))
        async with driver.journal() as journal:
            assert (await walk(journal, letters(600)[:256], end=False))[0] == []
        assert driver.names() == letters(600)

    driver.run(main)


def test_settled_within_the_run_is_not_fresh_in_the_next(driver):
    async def main():
        async with driver.journal() as journal:
            _, rows = await walk(journal, ["a", "b", "c", "d"])
            claimed = await claim(journal, rows.values())
            await journal.settle([done(claimed[0]), failed(claimed[1]), again(claimed[2], "no")])
        assert driver.states() == {"a": "done", "b": "refused", "c": None, "d": None}
        async with driver.journal() as journal:
            assert (await walk(journal, ["a", "b", "c", "d"]))[0] == ["c", "d"]

    driver.run(main)


@pytest.mark.parametrize(
    ("reopen", "fresh"),
    [
        ({"exhausted"}, ["exhausted"]),
        ({"exhausted", "refused"}, ["refused", "exhausted"]),
        ({"exhausted", "in_doubt"}, ["exhausted", "in_doubt"]),
        (set(), []),
    ],
)
def test_ends_are_opened_again_as_asked(driver, reopen, fresh):
    names = ["refused", "exhausted", "in_doubt", "done"]

    async def main():
        async with driver.journal() as journal:
            _, rows = await walk(journal, names)
            claimed = await claim(journal, rows.values())
            ends = [failed(each, name) for each, name in zip(claimed[:3], names, strict=False)]
            await journal.settle([*ends, done(claimed[3])])
        async with driver.journal(reopen=frozenset(reopen)) as journal:
            assert (await walk(journal, names))[0] == fresh
            # an opened row is pending, and can be ended again
            assert [name for name, state in driver.states().items() if state is None] == fresh
        again = await finish(driver, names, reopen=frozenset(reopen))
        assert again == fresh

    driver.run(main)
    assert [name for name, state in driver.states().items() if state == "done"] == [
        name for name in names if name in fresh or name == "done"
    ]


def test_rows_opened_again_may_have_moved(driver):
    async def main():
        async with driver.journal() as journal:
            _, rows = await walk(journal, ["a", "b"])
            await journal.settle([failed(each, "exhausted") for each in await claim(journal, rows.values())])
        assert await finish(driver, ["b", "x", "a"]) == ["b", "x", "a"]

    driver.run(main)
    assert driver.names() == ["b", "x", "a"]
    assert driver.look("SELECT count(*) FROM rows") == [(3,)]


# --- rejected lines


def test_rejected_lines_end_without_an_attempt_and_are_not_fresh(driver):
    async def main():
        async with driver.journal() as journal:
            _, rows = await walk(journal, ["a", "b"])
            end = Outcome(rows["b"], "refused", code="invalid_line", message="line 2: no", line=b"{")
            await journal.reject([end])
            assert driver.states() == {"a": None, "b": "refused"}
        async with driver.journal() as journal:
            assert (await walk(journal, ["a", "b"]))[0] == ["a"]

    driver.run(main)
    assert driver.names("errors") == ["b"]


def test_a_group_of_none_is_no_harm(driver):
    async def main():
        async with driver.journal() as journal:
            assert await journal.claim([]) == []
            assert await journal.settle([]) == []
            await journal.reject([])
            await journal.end_of_file(0)

    driver.run(main)
    assert reader.read(driver.path).line_count == 0


def test_an_emptied_file_has_no_results(driver):
    async def main():
        await finish(driver, ["a", "b"])
        await finish(driver, [None, None, None])

    driver.run(main)
    assert driver.names() == []


# --- durability


def test_a_claim_is_on_disk_when_it_returns(driver):
    async def main():
        async with driver.journal() as journal:
            _, rows = await walk(journal, ["a", "b"], end=False)
            claimed = await claim(journal, rows.values())
            assert driver.look("SELECT id, rows, key, number, tokens, worst_cost_pico_usd FROM attempts") == [
                (1, "[1]", "key-a", 1, 10, 100),
                (2, "[2]", "key-b", 1, 10, 100),
            ]
            assert driver.look("SELECT seq, custom_id FROM rows") == [(1, "a"), (2, "b")]
            assert [each.id for each in claimed] == [1, 2]

    driver.run(main)


def test_a_settlement_is_on_disk_when_it_returns_with_the_ends_of_its_rows(driver):
    driver.clock.advance(100)

    async def main():
        async with driver.journal() as journal:
            _, rows = await walk(journal, ["a", "b"], end=False)
            claimed = await claim(journal, rows.values())
            settled = await journal.settle([done(claimed[0]), again(claimed[1])])
            assert [each.settlement.attempt.id for each in settled] == [1, 2]
            epoch = driver.clock.epoch
            assert driver.look(
                "SELECT attempt, billed, sent_at, ended_at, cost_pico_usd FROM settlements"
            ) == [
                (1, "yes", epoch + 1, epoch + 2, 5),
                (2, "maybe", epoch + 1, epoch + 2, 0),
            ]
            assert driver.states() == {"a": "done", "b": None}

    driver.run(main)


def test_a_pack_is_claimed_with_all_its_rows(driver):
    async def main():
        async with driver.journal() as journal:
            _, rows = await walk(journal, ["a", "b"], end=False)
            one = request_of(rows["a"])
            pack = Request(tuple(rows.values()), "pack", one.pool, one.model, one.path, one.body, 20, None)
            (claimed,) = await journal.claim([Try(pack, 3, 2)])
            assert (claimed.number, claimed.charged) == (3, 2)
            assert driver.look("SELECT rows, number, worst_cost_pico_usd FROM attempts") == [
                ("[1,2]", 3, None)
            ]

    driver.run(main)


@pytest.mark.parametrize("copied", [False, True])
def test_what_was_in_flight_at_a_crash_is_in_doubt(driver, tmp_path, copied):
    async def main():
        async with driver.journal() as journal:
            _, rows = await walk(journal, ["a", "b", "c", "d", "e"])
            some = await claim(journal, [rows["a"], rows["b"], rows["e"]])
            await journal.settle([done(some[0]), again(some[2], "no")])
            (b, d) = await claim(journal, [rows["b"], rows["d"]])
            if copied:
                # as the disk is while the process still runs: the log not yet in the database
                (tmp_path / "copy").mkdir()
                for path in tmp_path.glob("job.db*"):
                    shutil.copy(path, tmp_path / "copy")
        if copied:
            driver.path = tmp_path / "copy" / "job.db"
        driver.clock.advance(50)
        async with driver.journal() as journal:
            crashed = driver.look(
                "SELECT attempt, billed, error, ended_at FROM settlements WHERE error = 'crashed'"
            )
            wall = driver.clock.wall()
            assert crashed == [
                (2, "maybe", "crashed", wall),
                (b.id, "maybe", "crashed", wall),
                (d.id, "maybe", "crashed", wall),
            ]
            fresh, rows = await walk(journal, ["a", "b", "c", "d", "e"])
            assert driver.states() == {"a": "done", "b": None, "c": None, "d": None, "e": None}
            assert fresh == ["b", "c", "d", "e"]
            # lines 2 and 4; whoever asks ends them, since only the job file knows what they ask for
            assert journal.doubted(list(rows.values())) == {2, 4}
        bill = reader.read(driver.path).by_model["m"]
        assert (bill.in_doubt, bill.in_doubt_pico_usd_max, bill.requests) == (3, 300, 5)

    driver.run(main)


def test_every_row_of_a_pack_in_flight_is_in_doubt(driver):
    async def main():
        async with driver.journal() as journal:
            _, rows = await walk(journal, ["a", "b", "c"])
            one = request_of(rows["a"])
            pack = Request((rows["a"], rows["c"]), "pack", one.pool, one.model, one.path, one.body, 20, None)
            await journal.claim([Try(pack)])
        async with driver.journal() as journal:
            _, rows = await walk(journal, ["a", "b", "c"])
            assert journal.doubted(list(rows.values())) == {1, 3}

    driver.run(main)


def test_what_was_cut_off_is_in_doubt_wherever_it_is_now(driver):
    async def main():
        async with driver.journal() as journal:
            _, rows = await walk(journal, ["a"])
            await journal.settle([again(each) for each in await claim(journal, rows.values())])
        async with driver.journal() as journal:
            fresh, rows = await walk(journal, ["x", "a"])
            assert fresh == ["x", "a"]
            assert journal.doubted(list(rows.values())) == {2}

    driver.run(main)


@pytest.mark.parametrize("state", ["exhausted", "refused", "in_doubt"])
def test_a_row_that_is_tried_again_after_its_end_is_in_doubt_as_before(driver, state):
    async def main():
        async with driver.journal() as journal:
            _, rows = await walk(journal, ["a", "b"])
            cut_off, unsent = await claim(journal, rows.values())
            await journal.settle([again(cut_off), again(unsent, "no", sent_at=None)])
            claimed = await claim(journal, rows.values())
            await journal.settle([failed(each, state) for each in claimed])
        async with driver.journal(reopen=frozenset({state})) as journal:
            fresh, rows = await walk(journal, ["a", "b"])
            assert (fresh, journal.doubted(list(rows.values()))) == (["a", "b"], {1})

    driver.run(main)


def test_what_the_server_has_said_again_is_in_doubt_no_longer(driver):
    async def main():
        async with driver.journal() as journal:
            _, rows = await walk(journal, ["a", "b"])
            await journal.settle([again(each) for each in await claim(journal, rows.values())])
            a, b = await claim(journal, rows.values())
            await journal.settle([again(a, "no", replayed=True), again(b, "no")])
        async with driver.journal() as journal:
            _, rows = await walk(journal, ["a", "b"])
            assert journal.doubted(list(rows.values())) == {2}

    driver.run(main)


@pytest.mark.parametrize("later", ["done", "refused", "in_doubt"])
def test_a_row_that_has_ended_is_not_doubted(driver, later):
    async def main():
        async with driver.journal() as journal:
            _, rows = await walk(journal, ["a"])
            await journal.settle([again(each) for each in await claim(journal, rows.values())])
            (claimed,) = await claim(journal, rows.values())
            await journal.settle([done(claimed) if later == "done" else failed(claimed, later)])
        async with driver.journal() as journal:
            fresh, rows = await walk(journal, ["a"])
            assert (fresh, journal.doubted(list(rows.values()))) == ([], set())

    driver.run(main)


# --- keys that bring only a failure again


def request_with(key, *rows):
    return Request(rows, key, "shared", "m", "/v1/chat/completions", b"{}", 10, None)


async def epochs(driver, *names, **options):
    """Return name -> the epoch that a new run is told."""
    async with driver.journal(**options) as journal:
        _, rows = await walk(journal, names)
        by_line = journal.epochs(list(rows.values()))
    return {row.custom_id: by_line[row.seq] for row in rows.values() if row.seq in by_line}


def test_a_row_whose_key_brought_a_failure_again_needs_another_one(driver):
    async def main():
        async with driver.journal() as journal:
            _, rows = await walk(journal, ["a", "b", "c"])
            assert journal.epochs(list(rows.values())) == {}
            first = await claim(journal, rows.values())
            await journal.settle([again(each, "no") for each in first])
            second = await claim(journal, rows.values())
            await journal.settle([again(second[0], "no", replayed=True), again(second[1], "no")])
        assert await epochs(driver, "a", "b", "c") == {"a": 1}
        # on whichever line it is now
        assert await epochs(driver, "x", "b", None, "a") == {"a": 1}

    driver.run(main)


def test_an_epoch_is_how_many_keys_did_so(driver):
    async def main():
        async with driver.journal() as journal:
            _, rows = await walk(journal, ["a", "b"])
            for key in ("one", "one", "two", "one", "three"):
                (claimed,) = await journal.claim([Try(request_with(key, rows["a"]))])
                await journal.settle([again(claimed, "maybe", replayed=key != "three")])
        assert await epochs(driver, "a", "b") == {"a": 2}

    driver.run(main)


def test_every_row_of_a_pack_needs_another_key(driver):
    async def main():
        async with driver.journal() as journal:
            _, rows = await walk(journal, ["a", "b", "c"])
            (claimed,) = await journal.claim([Try(request_with("pack", rows["a"], rows["c"]))])
            await journal.settle([again(claimed, "no", replayed=True)])
        assert await epochs(driver, "a", "b", "c") == {"a": 1, "c": 1}

    driver.run(main)


@pytest.mark.parametrize("state", ["refused", "exhausted", "in_doubt"])
def test_a_row_that_ended_so_needs_another_key_when_it_is_opened_again(driver, state):
    async def main():
        async with driver.journal() as journal:
            _, rows = await walk(journal, ["a", "b"])
            (claimed,) = await claim(journal, [rows["a"]])
            end = failed(claimed, state)
            attempt = Attempt(claimed.id, "no", 2.0, 1.0, 500, "server_error", replayed=True)
            await journal.settle([Settlement(attempt, end.outcomes)])
        assert await epochs(driver, "a", "b", reopen=frozenset()) == {}
        assert await epochs(driver, "a", "b", reopen=frozenset({state})) == {"a": 1}

    driver.run(main)


def test_an_answer_that_came_again_spends_no_key(driver):
    async def main():
        async with driver.journal() as journal:
            _, rows = await walk(journal, ["a", "b"])
            (claimed,) = await journal.claim([Try(request_with("pack", rows["a"], rows["b"]))])
            attempt = Attempt(claimed.id, "yes", 2.0, 1.0, 200, replayed=True)
            outcome = Outcome(rows["a"], "done", claimed.id, 200, None, b"{}")
            await journal.settle([Settlement(attempt, (outcome,))])
        assert await epochs(driver, "a", "b") == {}

    driver.run(main)


def test_what_the_server_has_said_again_is_on_the_bill_once(driver):
    async def main():
        async with driver.journal() as journal:
            _, rows = await walk(journal, ["a", "b"])
            lost = await claim(journal, rows.values())
            await journal.settle([again(lost[0])])
            # the other one is in flight when the process dies
        async with driver.journal() as journal:
            _, rows = await walk(journal, ["a", "b"])
            bill = reader.read(driver.path).by_model["m"]
            assert (bill.in_doubt, bill.in_doubt_pico_usd_max) == (2, 200)
            claimed = await claim(journal, rows.values())
            settled = [done(each) for each in claimed]
            replayed = msgspec.structs.replace(settled[1].attempt, replayed=True)
            await journal.settle([settled[0], Settlement(replayed, settled[1].outcomes)])
        bill = reader.read(driver.path).by_model["m"]
        assert (bill.requests, bill.cost_pico_usd) == (4, 10)
        assert (bill.in_doubt, bill.in_doubt_pico_usd_max) == (1, 100)
        assert [row[8] for row in reader.rows(driver.path, "attempts_log")] == [
            *("maybe", "replayed", "yes", "yes")
        ]

    driver.run(main)


# --- numbers


def test_numbers_go_on(driver):
    async def main():
        async with driver.journal() as journal:
            _, rows = await walk(journal, ["a", "b"])
            await claim(journal, rows.values())
        async with driver.journal() as journal:
            _, rows = await walk(journal, ["a", "b", "c"])
            claimed = await claim(journal, rows.values())
            assert [each.id for each in claimed] == [3, 4, 5]
            assert driver.look("SELECT id, custom_id FROM rows") == [(1, "a"), (2, "b"), (3, "c")]

    driver.run(main)


# --- the last minute


def test_recent_tells_what_was_sent_within_the_period_by_this_clock(driver):
    async def main():
        async with driver.journal() as journal:
            _, rows = await walk(journal, ["a", "b", "c", "d", "e"])
            old, sent, answered, unsent = await claim(journal, [rows[name] for name in "abcd"])
            driver.clock.advance(100)
            await claim(journal, [rows["e"]])
            settled = [
                Settlement(Attempt(old.id, "no", 3.0, 2.0, 500, "server_error")),
                Settlement(Attempt(sent.id, "no", 99.0, 90.0, 500, "server_error")),
                Settlement(
                    Attempt(answered.id, "yes", 96.0, 95.0, 200, prompt_tokens=3, completion_tokens=1)
                ),
                Settlement(Attempt(unsent.id, "no", 97.0, None, None, "unreachable")),
            ]
            await journal.settle(settled)
        driver.clock.advance(20)
        async with driver.journal() as journal:
            recent = await journal.recent(60.0, 0.1)
            assert [(model, round(at, 3), *sums) for model, at, *sums in recent] == [
                # Requests, tokens reserved and tokens used.
                ("m", 90.0, 1, 10, 10),
                ("m", 95.0, 1, 10, 4),
                ("m", 120.0, 1, 10, 10),  # in flight at the crash: it may have left until it was seen dead
            ]
        driver.clock.advance(31)
        async with driver.journal() as journal:
            assert len(await journal.recent(60.0, 0.1)) == 2

    driver.run(main)


def test_after_the_wall_clock_was_set_back_nothing_recent_lies_in_the_future(driver):
    async def main():
        async with driver.journal() as journal:
            _, rows = await walk(journal, ["a"])
            await claim(journal, rows.values())
        driver.clock.advance(1)
        driver.clock.epoch -= 3600
        async with driver.journal() as journal:
            assert [at for _, at, *_ in await journal.recent(60.0, 0.1)] == [driver.clock.now()]

    driver.run(main)


# --- opening


def test_the_namespace_is_the_stores(driver):
    async def main():
        async with driver.journal() as journal:
            made = journal.namespace
            assert len(made) == 32
        for asked in (None, made):
            async with driver.journal(namespace=asked) as journal:
                assert journal.namespace == made
        with pytest.raises(StoreError, match=f"has the namespace {made}: leave --namespace out"):
            async with driver.journal(namespace="other"):
                pass

    driver.run(main)


def test_a_given_namespace_is_kept(driver):
    async def main():
        async with driver.journal(namespace="mine"):
            pass
        async with driver.journal() as journal:
            assert journal.namespace == "mine"

    driver.run(main)


def test_a_store_answers_for_one_base_url(driver):
    async def main():
        await finish(driver, ["a"])
        with pytest.raises(StoreError, match="is a store for http://localhost/v1, not for http://other/v1"):
            async with driver.journal(base_url="http://other/v1"):
                pass
        # and the refused opening has given the store back
        assert await finish(driver, ["a"]) == []

    driver.run(main)


def test_one_journal_at_a_time(driver):
    async def main():
        async with driver.journal():
            with pytest.raises(StoreLockedError, match=f"is in use by process {os.getpid()}: "):
                async with driver.journal():
                    pass
        async with driver.journal():
            pass

    driver.run(main)


def test_a_store_whose_job_is_missing_is_refused(driver):
    async def main():
        await finish(driver, ["a"])
        with closing(sqlite3.connect(driver.path, isolation_level=None)) as db:
            db.execute("DELETE FROM job")
        with pytest.raises(StoreError, match="holds no job"):
            async with driver.journal():
                pass

    driver.run(main)


# --- commits


def full():
    """Make the error that SQLite makes when there is no room."""
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    return error


class Watched:
    """A connection that notes its statements, and fails at the one that is told."""

    def __init__(self, db, fail_at=None):
        self._db = db
        self._fail_at = fail_at
        self.statements = []
        #: Clear it to hold commits up.
        self.commits = asyncio.Event()
        self.commits.set()
        self.committing = asyncio.Event()

    @property
    def in_transaction(self):
        return self._db.in_transaction

    def _note(self, sql):
        self.statements.append(sql.split()[0])
        if len(self.statements) == self._fail_at:
            raise full()

    async def execute(self, sql, parameters=None):
        self._note(sql)
        if sql == "COMMIT":
            self.committing.set()
            await self.commits.wait()
        return await self._db.execute(sql, parameters)

    async def execute_fetchall(self, sql, parameters=None):
        self._note(sql)
        return await self._db.execute_fetchall(sql, parameters)

    async def rollback(self):
        await self._db.rollback()

    async def close(self):
        await self._db.close()


def watching(driver, made, fail_at=None):
    async def connect(path):
        made.append(Watched(await driver.connect(path), fail_at))
        return made[-1]

    return connect


def test_what_waits_goes_into_one_commit_whichever_verb_it_came_by(driver):
    made = []

    async def main():
        async with driver.journal(connect=watching(driver, made)) as journal:
            _, rows = await walk(journal, letters(61), end=False)
            claimed = await claim(journal, list(rows.values())[:30])
            (db,) = made
            db.statements.clear()
            async with anyio.create_task_group() as tasks:
                db.commits.clear()
                db.committing.clear()
                tasks.start_soon(claim, journal, [rows["r61"]])
                await db.committing.wait()
                # all that comes while one group commits is the next group
                for start in range(0, 30, 3):
                    tasks.start_soon(journal.settle, [done(each) for each in claimed[start : start + 3]])
                for start in range(30, 60, 3):
                    tasks.start_soon(claim, journal, list(rows.values())[start : start + 3])
                await anyio.lowlevel.checkpoint()
                db.commits.set()
        # begin, rows or attempts, settlements, outcomes, commit
        assert db.statements == ["BEGIN", "INSERT", "COMMIT", "BEGIN", "INSERT", "INSERT", "INSERT", "COMMIT"]

    driver.run(main)
    assert driver.look("SELECT count(*) FROM attempts") == [(61,)]
    assert len(driver.names()) == 30


def test_a_large_group_is_written_whole(driver):
    count = 5_000  # 8 values each: more than one statement takes

    async def main():
        async with driver.journal() as journal:
            _, rows = await walk(journal, letters(count))
            claimed = await claim(journal, rows.values())
            await journal.settle([done(each) for each in claimed])

    driver.run(main)
    assert driver.names() == letters(count)


def test_a_cancelled_verb_is_carried_out_and_the_next_one_is_undisturbed(driver):
    async def main():
        async with driver.journal() as journal:
            _, rows = await walk(journal, ["a", "b"], end=False)
            with anyio.CancelScope() as scope:
                scope.cancel()
                await claim(journal, [rows["a"]])
            assert driver.look("SELECT key FROM attempts") == [("key-a",)]
            await claim(journal, [rows["b"]])
            assert driver.look("SELECT key FROM attempts") == [("key-a",), ("key-b",)]

    driver.run(main)


async def eventful(driver, connect):
    """Use every statement of the journal: rows that moved, left, came, are opened again, claimed, ended."""
    async with driver.journal(connect=connect, reopen=frozenset({"refused", "exhausted"})) as journal:
        await journal.recent(60, 0.1)
        _, rows = await walk(journal, ["b", "new", "a", "c", "d"], group=3, end=False)
        claimed = await claim(journal, rows.values())
        await journal.settle([done(claimed[0]), failed(claimed[1])])
        await journal.settle([again(claimed[2])])
        await journal.end_of_file(5)
        await journal.set_line_count(5)


def prepared(driver):
    """Make the store that `eventful` finds."""

    async def main():
        async with driver.journal() as journal:
            _, rows = await walk(journal, ["a", "b", "c", "left", "d"])
            claimed = await claim(journal, rows.values())
            await journal.settle([failed(claimed[0]), done(claimed[1]), failed(claimed[2], "exhausted")])

    driver.run(main)


TABLES = ("job", "rows", "attempts", "settlements", "outcomes")


def test_a_failing_disk_at_any_statement_keeps_what_was_committed_and_no_half_of_a_group(driver, tmp_path):
    prepared(driver)
    driver.run(lambda: keep_snapshots(driver))
    before = driver.path
    made = []
    snapshots = Snapshots(driver, made)
    driver.path = copy_of(before, tmp_path / "good")
    driver.run(lambda: eventful(driver, snapshots.connect))
    total = len(made[0].statements)
    assert total > 30
    for at in range(1, total + 1):
        driver.path = copy_of(before, tmp_path / f"bad{at}")
        with pytest.raises(StoreWriteError, match=r"disk is full.*: see to the disk and run the same"):
            driver.run(lambda at=at: eventful(driver, watching(driver, [], at)))
        assert snapshots.dump() == snapshots.seen[at - 1], at
        # with room on the disk, it goes on
        driver.run(
            lambda: finish(driver, ["b", "new", "a", "c", "d"], reopen=frozenset({"refused", "exhausted"}))
        )
        assert driver.names() == ["b", "new", "a", "c", "d"], at


async def keep_snapshots(driver):
    """Let the log of the prepared store be in its database."""
    async with driver.journal():
        pass


def copy_of(path, folder):
    folder.mkdir()
    shutil.copy(path, folder)
    return folder / path.name


class Snapshots:
    """What was committed when each statement of a good run began."""

    def __init__(self, driver, made):
        self._driver = driver
        self._made = made
        self.seen = []

    async def connect(self, path):
        watched = Watched(await self._driver.connect(path))
        watched._note = lambda sql: self._note(watched, sql)
        self._made.append(watched)
        return watched

    def _note(self, watched, sql):
        self.seen.append(self.dump())
        watched.statements.append(sql.split()[0])

    def dump(self):
        return [self._driver.look(f"SELECT * FROM {table}") for table in TABLES]


def test_a_group_that_failed_fails_for_everyone_in_it(driver):
    made = []

    async def main():
        async with driver.journal(connect=watching(driver, made)) as journal:
            _, rows = await walk(journal, letters(9), end=False)
            made[0]._fail_at = len(made[0].statements) + 3
            failures = []

            async def one(row):
                try:
                    await claim(journal, [row])
                except StoreWriteError as error:
                    failures.append(str(error))

            async with anyio.create_task_group() as tasks:
                for row in rows.values():
                    tasks.start_soon(one, row)
            assert len(failures) == 9
            assert driver.look("SELECT count(*) FROM attempts") == [(0,)]
            assert not made[0].in_transaction

    driver.run(main)


def test_even_an_error_that_nobody_foresaw_fails_for_everyone_in_the_group(driver):
    made = []

    async def main():
        async with driver.journal(connect=watching(driver, made)) as journal:
            _, rows = await walk(journal, ["a", "b", "c"], end=False)
            errors = []

            async def one(row, worst):
                try:
                    await journal.claim([Try(request_of(row, worst=worst))])
                except Exception as error:  # noqa: BLE001  any is good
                    errors.append(error)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(one, rows["a"], 1)
                tasks.start_soon(one, rows["b"], 1)
                tasks.start_soon(one, rows["c"], 2**70)  # what SQLite can't hold
            assert len(errors) == 3
            assert driver.look("SELECT count(*) FROM attempts") == [(0,)]
            assert not made[0].in_transaction

    driver.run(main)


async def refused(journal, made, verb, *args):
    """Use a verb whose commit the disk refuses, once."""
    (db,) = made
    db._fail_at = len(db.statements) + 2
    with pytest.raises(StoreWriteError):
        await verb(*args)
    assert not db.in_transaction


def test_rows_of_a_group_that_failed_go_with_the_next_one(driver):
    made = []

    async def main():
        async with driver.journal(connect=watching(driver, made)) as journal:
            _, rows = await walk(journal, letters(4), end=False)
            tries = [Try(request_of(row)) for row in rows.values()]
            await refused(journal, made, journal.claim, tries[:2])
            assert driver.look("SELECT count(*) FROM rows") == [(0,)]
            await refused(journal, made, journal.claim, tries[2:])
            # whoever comes next, and what was refused when it comes again
            claimed = await journal.claim([tries[3]])
            assert driver.look("SELECT id, seq, custom_id FROM rows") == [
                (number, number, f"r{number}") for number in range(1, 5)
            ]
            claimed += await journal.claim(tries[:3])
            await journal.settle([done(each) for each in claimed])

    driver.run(main)
    assert driver.names() == letters(4)
    assert driver.look("SELECT count(*) FROM attempts") == [(4,)]


@pytest.mark.parametrize("next_verb", ["end_of_file", "reject", "settle", "fresh"])
def test_rows_of_a_group_that_failed_are_not_lost_whichever_verb_comes_next(driver, next_verb):
    made = []

    async def main():
        async with driver.journal(connect=watching(driver, made)) as journal:
            (old,) = await journal.fresh(file("a"))
            claimed = await claim(journal, [old])
            rest = await journal.fresh(file("a", "b", "c")[1:])
            await refused(journal, made, claim, journal, rest)
            if next_verb == "end_of_file":
                await journal.end_of_file(3)
            elif next_verb == "reject":
                await journal.reject(
                    [Outcome(rest[1], "refused", code="invalid_line", message="no", line=b"{")]
                )
            elif next_verb == "settle":
                await journal.settle([done(claimed[0])])
            else:
                await journal.fresh(file("a", "b", "c", "d")[3:])
                await journal.claim([])
            assert list(driver.states())[:3] == ["a", "b", "c"]

    driver.run(main)


def test_what_was_refused_can_be_settled_when_there_is_room_again(driver):
    made = []

    async def main():
        async with driver.journal(connect=watching(driver, made)) as journal:
            _, rows = await walk(journal, ["a", "b"], end=False)
            claimed = await claim(journal, rows.values())
            ends = [done(claimed[0]), failed(claimed[1])]
            for _ in range(3):
                await refused(journal, made, journal.settle, ends)
                assert driver.states() == {"a": None, "b": None}
            assert len(await journal.settle(ends)) == 2
            assert driver.states() == {"a": "done", "b": "refused"}

    driver.run(main)


# --- a file that is no longer there


def move(path, folder):
    """Move a store, with what is beside it."""
    folder.mkdir(exist_ok=True)
    for each in path.parent.glob(f"{path.name}*"):
        if not each.name.endswith(".lock"):
            each.rename(folder / each.name)
    return folder / path.name


GONE = "was removed, replaced or unmounted while the job ran: put it back"


@pytest.mark.parametrize("replaced", [False, True])
def test_nothing_is_committed_to_a_store_that_nobody_will_find_again(driver, tmp_path, replaced):
    here = driver.path

    async def main():
        async with driver.journal() as journal:
            _, rows = await walk(journal, ["a", "b"], end=False)
            claimed = await claim(journal, [rows["a"]])
            driver.path = move(here, tmp_path / "away")
            if replaced:
                here.write_bytes(b"something else")
            for verb in (
                lambda: claim(journal, [rows["b"]]),
                lambda: journal.settle([done(claimed[0])]),
                lambda: journal.end_of_file(2),
                lambda: journal.set_line_count(2),
            ):
                with pytest.raises(StoreWriteError, match=GONE) as caught:
                    await verb()
                assert str(here) in str(caught.value)
        if replaced:
            assert here.read_bytes() == b"something else"
        # what was committed is where the file is, and nothing since
        assert driver.look("SELECT key FROM attempts") == [("key-a",)]
        assert driver.look("SELECT count(*) FROM settlements") == [(0,)]

    driver.run(main)
    assert here.exists() == replaced


def test_a_store_that_is_put_back_goes_on(driver, tmp_path):
    here = driver.path

    async def main():
        async with driver.journal() as journal:
            _, rows = await walk(journal, ["a", "b"], end=False)
            claimed = await claim(journal, [rows["a"]])
            away = move(here, tmp_path / "away")
            for ends in ([done(claimed[0])], []):
                with pytest.raises(StoreWriteError, match=GONE):
                    await journal.settle(ends)
            move(away, here.parent)
            await journal.settle([done(claimed[0])])
            await journal.settle([done(each) for each in await claim(journal, [rows["b"]])])
            await journal.end_of_file(2)
        assert await finish(driver, ["a", "b"]) == []

    driver.run(main)
    assert driver.names() == ["a", "b"]


# --- against a model


NAMES = st.sampled_from([f"n{number}" for number in range(12)])
FILES = st.lists(st.one_of(NAMES, st.none()), max_size=12).map(
    lambda names: [name for at, name in enumerate(names) if name is None or name not in names[:at]]
)
RUNS = st.lists(
    st.tuples(
        FILES,
        st.integers(1, 5),  # rows in a group
        st.booleans(),  # whether the run comes to the end of the file
        st.lists(st.sampled_from(["done", "refused", "exhausted", "lost", "crash", "unclaimed"]), min_size=1),
    ),
    min_size=1,
    max_size=5,
)


@pytest.mark.parametrize("name", DRIVERS)
def test_any_history_of_edits_agrees_with_the_model(name, tmp_path_factory):
    examples = 15 if name == "aiosqlite" else 100

    @given(RUNS)
    @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
    def check(runs):
        driver = make_driver(name, tmp_path_factory.mktemp("model") / "job.db")
        driver.run(lambda: live(driver, runs))

    check()


async def live(driver, runs):
    """Run a job again and again; the model is how each row ended."""
    ended = {}
    for names, group, whole, ends in runs:
        if not whole:
            names = names[: len(names) // 2 + 1]
        expected = [name for name in names if name and ended.get(name, "exhausted") == "exhausted"]
        async with driver.journal() as journal:
            fresh, rows = await walk(journal, names, group, end=whole)
            assert fresh == expected
            pending = []
            for at, row in enumerate(rows.values()):
                ended.pop(row.custom_id, None)
                how = ends[at % len(ends)]
                if how == "unclaimed":
                    continue
                (claimed,) = await claim(journal, [row])
                if how == "crash":
                    continue
                pending.append(
                    done(claimed)
                    if how == "done"
                    else again(claimed)
                    if how == "lost"
                    else failed(claimed, how)
                )
                if how != "lost":
                    ended[row.custom_id] = how
            if pending:
                await journal.settle(pending)
        if whole:
            here = [name for name in names if name]
            assert driver.names() == [name for name in here if ended.get(name) == "done"]
            assert driver.names("errors") == [
                name for name in here if ended.get(name) in ("refused", "exhausted")
            ]
            contents = reader.read(driver.path)
            assert contents.ended == sum(name in ended for name in here)
            assert contents.line_count == len(here)


def test_a_store_that_is_cut_off_under_it_takes_no_commit(driver):
    async def main():
        async with driver.journal() as journal:
            _, rows = await walk(journal, letters(3))
            os.truncate(driver.path, 4096)
            with pytest.raises(
                StoreWriteError, match="it was cut off while the job ran: the store is damaged"
            ):
                await claim(journal, rows.values())

    driver.run(main)


def test_a_store_that_another_process_writes_to_is_not_called_damaged(driver):
    async def main():
        async with driver.journal() as journal:
            _, rows = await walk(journal, letters(3))
            with closing(sqlite3.connect(driver.path, isolation_level=None)) as other:
                other.execute(
                    "INSERT INTO attempts (id, rows, key, number, model, claimed_at, tokens)"
                    " VALUES (1, '[1]', 'k', 1, 'm', 0, 0)"
                )
            with pytest.raises(StoreWriteError, match="another process has written to it: let only one run"):
                await claim(journal, rows.values())

    driver.run(main)
