"""The virtual clock, the in-memory transport and the inline connection keep what they promise."""

import asyncio
import doctest
import random
import sqlite3
import threading

import anyio
import anyio.to_thread
import orjson
import pytest

from batcher import testing
from batcher.request import Claimed, Lost, Reply, Request, Row
from batcher.testing import (
    DeadlockError,
    MemoryTransport,
    VirtualClock,
    answer,
    inline_connection,
    loss,
    refusal,
    run,
    script,
)
from batcher.verdict import Done, Policy, Standing, judge


def attempt(number=1, path="/v1/chat/completions"):
    row = Row(number, number.to_bytes(16), f"row-{number}")
    return Claimed(number, Request((row,), f"key-{number}", "shared", "m", path, b"{}", 10, None), 1, 0)


def nothing(_claimed):
    pass


def test_the_examples_run():
    assert doctest.testmod(testing).failed == 0


# --- time


def test_a_week_passes_at_once():
    clock = VirtualClock()

    async def main():
        await anyio.sleep(7 * 86_400)
        with anyio.move_on_after(3600) as scope:
            await anyio.sleep(float("inf"))
        return scope.cancelled_caught, asyncio.get_running_loop().time()

    assert run(main, clock) == (True, 7 * 86_400 + 3600)
    assert clock.now() == 7 * 86_400 + 3600
    assert clock.wall() == clock.epoch + clock.now()


def test_timers_fire_in_the_order_of_their_times_and_never_early():
    clock = VirtualClock()
    fired = []

    async def one(delay):
        began = clock.now()
        await asyncio.sleep(delay)
        fired.append((clock.now(), delay))
        assert clock.now() >= began + delay - 1e-9

    async def main():
        delays = [random.Random(1).uniform(0, 1e6) for _ in range(50)] + [0.1, 0.2, 0.1]
        async with asyncio.TaskGroup() as tasks:
            for delay in delays:
                tasks.create_task(one(delay))

    run(main, clock)
    assert fired == sorted(fired, key=lambda pair: pair[1])


def test_time_goes_on_only_when_nothing_is_ready():
    clock = VirtualClock()

    async def busy():
        for _ in range(1000):
            await asyncio.sleep(0)
        return clock.now()

    async def main():
        sleeper = asyncio.create_task(asyncio.sleep(5))
        assert await busy() == 0.0
        await sleeper
        return clock.now()

    assert run(main, clock) == 5.0


def test_the_time_goes_on_from_run_to_run():
    clock = VirtualClock()
    for _ in range(3):
        run(lambda: asyncio.sleep(10), clock)
    assert clock.now() == 30.0


def test_a_deadlock_says_who_waits_where():
    async def waits_for_ever():
        await asyncio.get_running_loop().create_future()

    async def main():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(waits_for_ever, name="the culprit")

    with pytest.raises(DeadlockError, match=r"the culprit at .*waits_for_ever \(test_testing.py:\d+\)"):
        run(main, VirtualClock())


def test_after_a_deadlock_another_run_is_undisturbed():
    with pytest.raises(DeadlockError):
        run(lambda: asyncio.Event().wait(), VirtualClock())
    run(lambda: asyncio.sleep(1), VirtualClock())


def test_an_exception_comes_out():
    async def main():
        raise KeyError("x")

    with pytest.raises(KeyError):
        run(main, VirtualClock())


def test_threads_are_run_at_once_and_in_no_time():
    clock = VirtualClock()
    idents = []

    def work(value):
        idents.append(asyncio.current_task())
        return value + 1

    async def main():
        sleeper = asyncio.create_task(asyncio.sleep(100))
        first = await anyio.to_thread.run_sync(work, 1)
        second = await asyncio.get_running_loop().run_in_executor(None, work, 2)
        third = await asyncio.to_thread(work, 3)
        with pytest.raises(ZeroDivisionError):
            await anyio.to_thread.run_sync(lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 / 0)
        assert clock.now() == 0.0
        await sleeper
        return first, second, third

    real = anyio.to_thread.run_sync
    assert run(main, clock) == (2, 3, 4)
    assert anyio.to_thread.run_sync is real
    assert None not in idents  # each ran inside its task: no other thread has one


def test_a_real_loop_keeps_its_threads_meanwhile():
    async def real():
        return await anyio.to_thread.run_sync(lambda: 5)

    async def main():
        results = []
        thread = threading.Thread(target=lambda: results.append(asyncio.run(real())))
        thread.start()
        thread.join()
        return results

    assert run(main, VirtualClock()) == [5]


def test_the_seed_decides_the_chance_and_the_tokens():
    first, same, other = VirtualClock(3), VirtualClock(3), VirtualClock(4)
    drawn = [(clock.chance(), clock.token(), clock.chance()) for clock in (first, same, other)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(0 <= chance < 1 and len(token) == 32 and int(token, 16) >= 0 for chance, token, _ in drawn)


def test_the_clock_never_goes_back():
    clock = VirtualClock()
    for seconds in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="can't go on"):
            clock.advance(seconds)
    assert clock.now() == 0.0


def test_the_wall_clock_can_be_set():
    clock = VirtualClock(epoch=1000.0)
    clock.advance(5)
    clock.epoch -= 3600
    assert (clock.now(), clock.wall()) == (5.0, -2595.0)


# --- the network


def test_an_answer_lands_at_its_time_and_is_told_when_it_leaves():
    clock, events = VirtualClock(), []

    def server(claimed, now):
        events.append(("asked", claimed.id, now))
        return Reply(200, (), b"x", now + 1, now + 3)

    async def main():
        transport = MemoryTransport(server, clock)
        reply = await transport.send(attempt(), lambda each: events.append(("sent", each.id, clock.now())))
        return reply, transport

    reply, transport = run(main, clock)
    assert events == [("asked", 1, 0.0), ("sent", 1, 1.0)]
    assert reply == Reply(200, (), b"x", 1.0, 3.0)
    (exchange,) = transport.exchanges
    assert (exchange.sent_at, exchange.landed) == (1.0, reply)
    assert (transport.in_flight, transport.most_in_flight) == (0, 1)


def test_what_never_leaves_is_not_told():
    clock = VirtualClock()

    async def main():
        transport = MemoryTransport(loss("connect", left=False, after_s=2), clock)
        return await transport.send(attempt(), pytest.fail), transport.most_in_flight

    lost, most = run(main, clock)
    assert (lost.left, lost.kind, lost.sent_at, lost.ended_at, most) == (False, "connect", None, 2.0, 0)


@pytest.mark.parametrize(
    "impossible", [Lost(True, "reset", "x", None, 1.0), Lost(False, "reset", "x", 0.5, 1.0)]
)
def test_a_loss_that_contradicts_itself_is_refused(impossible):
    async def main():
        await MemoryTransport(lambda *_: impossible, VirtualClock()).send(attempt(), nothing)

    with pytest.raises(ValueError, match="what leaves"):
        run(main, VirtualClock())


def test_abort_ends_what_is_under_way_before_and_after_it_left():
    clock = VirtualClock()

    def server(claimed, now):
        leaves = now + (claimed.id == 2) * 10.0
        return Reply(200, (), b"", leaves, float("inf"))

    async def main():
        transport = MemoryTransport(server, clock)
        async with asyncio.TaskGroup() as tasks:
            sends = [tasks.create_task(transport.send(attempt(number), nothing)) for number in (1, 2)]
            await asyncio.sleep(5)
            transport.abort()
        return [send.result() for send in sends], transport

    (left, unsent), transport = run(main, clock)
    assert (left.left, left.kind, left.sent_at, left.ended_at) == (True, "closed", 0.0, 5.0)
    assert (unsent.left, unsent.kind, unsent.sent_at, unsent.ended_at) == (False, "closed", None, 5.0)
    assert transport.in_flight == 0


def test_a_cancelled_send_leaves_nothing_behind():
    clock = VirtualClock()

    async def main():
        transport = MemoryTransport(
            script(lambda _, now: Reply(200, (), b"", now, float("inf")), answer), clock
        )
        with anyio.move_on_after(1):
            await transport.send(attempt(1), nothing)
        assert transport.exchanges[0].landed is None
        assert transport.in_flight == 0
        return await transport.send(attempt(2), nothing)

    assert run(main, clock).status == 200


def test_a_script_is_played_in_order_and_its_last_goes_on():
    clock = VirtualClock()
    server = script(refusal(429, "rate_limit_exceeded", 2.5), loss("reset"), answer)

    async def main():
        transport = MemoryTransport(server, clock)
        return [await transport.send(attempt(number), nothing) for number in range(1, 5)]

    first, second, *rest = run(main, clock)
    assert (first.status, first.header(b"retry-after")) == (429, "2.5")
    assert orjson.loads(first.body)["error"]["code"] == "rate_limit_exceeded"
    assert isinstance(second, Lost)
    assert [reply.status for reply in rest] == [200, 200]


@pytest.mark.parametrize(
    "path",
    ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/moderations"],
)
def test_its_answers_are_answers(path):
    claimed = attempt(3, path)
    verdict = judge(claimed, answer(claimed, 1.0), 2.0, 0.5, Policy(), Standing())
    assert isinstance(verdict, Done), verdict
    assert verdict.request_id == "req-3"
    tokens = verdict.usage.prompt_tokens + verdict.usage.completion_tokens
    assert tokens == (0 if path == "/v1/moderations" else 10)
    if "completions" in path or "responses" in path:
        assert b'"row-3"' in verdict.answers[0]


# --- the disk


def test_a_statement_is_carried_out_even_if_its_caller_is_cancelled(tmp_path):
    async def main():
        db = await inline_connection(tmp_path / "x.db")
        await db.execute("CREATE TABLE t (x)")
        with anyio.CancelScope() as scope:
            scope.cancel()
            await db.execute("INSERT INTO t VALUES (?)", [1])
        assert scope.cancelled_caught
        rows = await db.execute_fetchall("SELECT x FROM t")
        await db.close()
        return list(rows)

    assert run(main, VirtualClock()) == [(1,)]


def test_other_tasks_come_in_between_statements_and_errors_come_out(tmp_path):
    async def main():
        db = await inline_connection(tmp_path / "x.db")
        turns = []

        async def other():
            turns.append("other")

        task = asyncio.create_task(other())
        await db.execute("BEGIN")
        turns.append("after")
        await task
        assert db.in_transaction
        with pytest.raises(sqlite3.OperationalError):
            await db.execute("nonsense")
        await db.rollback()
        assert not db.in_transaction
        await db.close()
        with pytest.raises(sqlite3.ProgrammingError):
            await db.execute("SELECT 1")
        return turns

    assert run(main, VirtualClock()) == ["other", "after"]
