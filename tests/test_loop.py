"""The loop with all its real parts but the network, in virtual time.

The journal, the source, the pools, the verdicts and the queues are those of the product; a `MemoryTransport`
answers, and hours pass at once. What is asserted is what the server saw and what the store holds.
"""

import gzip
import math
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise

import anyio
import msgspec
import orjson
import pytest

from batcher import loop as loop_module
from batcher.health import Health
from batcher.limits.pool import SHARED, Limit, pools
from batcher.limits.slots import Slots
from batcher.loop import Loop, Parts
from batcher.money.prices import PriceBook
from batcher.request import Lost, Reply
from batcher.retry import MaxFailures
from batcher.source import Requests, Source
from batcher.stop import INTERRUPTED, Stop
from batcher.store import reader
from batcher.store.journal import Journal, Opening
from batcher.tally import Tally
from batcher.testing import (
    MemoryTransport,
    VirtualClock,
    answer,
    inline_connection,
    loss,
    refusal,
    run,
    script,
)
from batcher.tokens import Ratios
from batcher.verdict import Policy

URL = "http://localhost/v1"


@dataclass
class Setting:
    """A job and how it is run; the fields that a test does not name are the command's defaults."""

    path: object
    names: list[str] = field(default_factory=lambda: names(20))
    answer: Callable = answer
    clock: VirtualClock = field(default_factory=VirtualClock)
    model_of: Callable = lambda _name: "m"
    max_tokens: int = 10
    rpm: int | None = None
    tpm: int | None = None
    rpd: int | None = None
    tpm_counts: str = "auto"
    limits: dict = field(default_factory=dict)
    slots: int = 8
    max_attempts: int = 5
    timeout_s: float = 300.0
    at_most_once: bool = False
    reopen: frozenset = frozenset({"exhausted"})
    max_failures: MaxFailures = field(default_factory=MaxFailures)
    max_stall_s: float = 1800.0
    grace_s: float = 30.0
    connect: Callable = inline_connection
    #: Called with the loop and the transport; what it returns runs beside the loop.
    beside: Callable | None = None
    job_file: str = "job.jsonl"


@dataclass
class Ran:
    """What became of it."""

    stopped: Stop | None
    transport: MemoryTransport
    tally: Tally
    contents: reader.Contents
    clock: VirtualClock
    store: object

    def look(self, sql):
        with closing(sqlite3.connect(self.store)) as db:
            return db.execute(sql).fetchall()

    @property
    def states(self):
        sql = "SELECT custom_id, state FROM rows LEFT JOIN outcomes ON row = id WHERE seq > 0 ORDER BY seq"
        return dict(self.look(sql))

    @property
    def sent(self):
        """Names in the order in which their attempts left."""
        gone = [each for each in self.transport.exchanges if each.sent_at is not None]
        return [name_of(each.claimed) for each in sorted(gone, key=lambda each: each.sent_at)]

    def keys_of(self, name):
        """Return the keys of a row's attempts, in the order of their claims."""
        sql = (
            "SELECT attempts.key FROM attempts, json_each(attempts.rows) JOIN rows ON rows.id = value"
            f" WHERE custom_id = '{name}' ORDER BY attempts.id"
        )
        return [key for (key,) in self.look(sql)]

    @property
    def attempts(self):
        return self.look(
            "SELECT id, number, billed, status, error FROM attempts LEFT JOIN settlements ON attempt = id"
        )


def names(count):
    return [f"r{number}" for number in range(1, count + 1)]


def name_of(claimed):
    return claimed.request.rows[0].custom_id


def write_job(setting):
    path = setting.path / setting.job_file
    if not path.exists():
        lines = [
            orjson.dumps(
                {
                    "custom_id": name,
                    "url": "/v1/chat/completions",
                    "body": {
                        "model": setting.model_of(name),
                        "max_tokens": setting.max_tokens,
                        "messages": [{"role": "user", "content": "Hi!!"}],
                    },
                }
            )
            for name in setting.names
        ]
        path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def go(setting, **changes):
    """Run the job once; it ends by itself, or the deadlock is an error."""
    for name, value in changes.items():
        assert hasattr(setting, name)
        setattr(setting, name, value)
    path = write_job(setting)
    clock, tally = setting.clock, Tally()
    store = setting.path / "job.db"
    opening = Opening(path=store, base_url=URL, namespace="test", reopen=setting.reopen)
    retry_in_doubt = "in_doubt" in setting.reopen
    transport = MemoryTransport(setting.answer, clock)

    async def main():
        journal = await Journal.open(opening, clock, setting.connect)
        source = Source(str(path))
        prices = PriceBook(URL, clock.wall())
        try:
            loop = Loop(
                Parts(
                    source=source,
                    requests=Requests(
                        "test", {each: each for each in setting.limits}, SHARED, prices, Ratios()
                    ),
                    journal=journal,
                    transport=transport,
                    pools=pools(
                        Limit(setting.rpm, setting.tpm, setting.rpd), setting.limits, 0.25, setting.tpm_counts
                    ),
                    slots=Slots(setting.slots),
                    prices=prices,
                    policy=Policy(
                        setting.max_attempts, setting.at_most_once, retry_in_doubt, setting.timeout_s
                    ),
                    max_failures=setting.max_failures,
                    health=Health(setting.max_stall_s),
                    clock=clock,
                    tally=tally,
                    grace_s=setting.grace_s,
                )
            )
            async with anyio.create_task_group() as tasks:
                if setting.beside is not None:
                    tasks.start_soon(setting.beside, loop, transport)
                with anyio.fail_after(7 * 86_400):
                    await loop.run()
                tasks.cancel_scope.cancel()
            if loop.stopped is None:
                # everything that is counted up is counted down
                assert (loop._outstanding, loop._queued_bytes, loop._unsettled_bytes) == (0, 0, 0)
                assert (loop._slots.taken, tally.in_flight) == (0, 0)
                assert [lane.probe for lane in loop._lanes.values()] == [None] * len(loop._lanes)
            return loop.stopped
        finally:
            source.close()
            await transport.aclose()
            await journal.close()

    stopped = run(main, clock)
    return Ran(stopped, transport, tally, reader.read(store), clock, store)


@pytest.fixture
def setting(tmp_path):
    return Setting(tmp_path)


def windows(times_and_costs, period=60.0):
    """Return the largest sum of any window of a minute."""
    events = sorted(times_and_costs)
    worst = start = total = 0
    for time, cost in events:
        total += cost
        while events[start][0] <= time - period:
            total -= events[start][1]
            start += 1
        worst = max(worst, total)
    return worst


# --- all is well


def test_all_rows_are_done_each_once_each_with_its_own_answer(setting):
    ran = go(setting, names=names(1000))
    assert ran.stopped is None
    assert set(ran.states.values()) == {"done"}
    assert Counter(ran.sent) == dict.fromkeys(names(1000), 1)
    for _, name, _, _, body in reader.rows(ran.store, "results"):
        assert orjson.loads(body)["choices"][0]["message"]["content"] == name
    tally = ran.tally
    assert (tally.succeeded, tally.requests, tally.retries, tally.in_flight) == (1000, 1000, 0, 0)
    assert (tally.prompt_tokens, tally.completion_tokens) == (7000, 3000)
    bill = ran.contents.by_model["m"]
    assert (bill.requests, bill.prompt_tokens, bill.completion_tokens) == (1000, 7000, 3000)
    assert ran.contents.line_count == 1000


def test_a_finished_job_sends_nothing(setting):
    go(setting)
    ran = go(setting)
    assert (ran.stopped, ran.transport.exchanges, ran.tally.already_done) == (None, [], 20)


def test_slots_bound_what_is_in_flight_and_are_used(setting):
    ran = go(setting, names=names(300), slots=5, rpm=60_000)
    assert ran.transport.most_in_flight == 5
    # 300 of 250 ms through 5 slots: nothing idles between them
    assert ran.clock.now() == pytest.approx(15.0, abs=0.1)


def test_broken_lines_and_used_names_fail_and_the_rest_runs(setting):
    good = write_job(setting).read_bytes().splitlines()
    (setting.path / "job.jsonl").write_bytes(b"\n".join([good[0], b"{oops", b"", good[1], good[0]]) + b"\n")
    ran = go(setting)
    assert ran.stopped is None
    ends = ran.look("SELECT state FROM rows JOIN outcomes ON row = id ORDER BY seq")
    assert [state for (state,) in ends] == ["done", "refused", "done", "refused"]
    assert Counter(ran.sent) == {"r1": 1, "r2": 1}
    assert (ran.tally.failed, ran.tally.rejected, ran.contents.line_count) == (2, 2, 4)
    messages = [row[6] for row in reader.rows(ran.store, "errors")]
    assert [message.partition(":")[0] for message in messages] == ["line 2", "line 5"]


def test_the_same_seed_gives_the_same_order_of_events(tmp_path):
    def trace(seed, folder):
        (tmp_path / folder).mkdir()
        clock = VirtualClock(seed)
        faults = VirtualClock(99)

        def server(claimed, now):
            kind = faults.chance()
            if kind < 0.15:
                return refusal(429)(claimed, now)
            if kind < 0.3:
                return refusal(500)(claimed, now)
            if kind < 0.4:
                return loss("reset")(claimed, now)
            return answer(claimed, now)

        ran = go(Setting(tmp_path / folder, names(300), server, clock, max_attempts=50, rpm=6000))
        exchanges = [
            (each.claimed.id, name_of(each.claimed), each.sent_at) for each in ran.transport.exchanges
        ]
        return (
            exchanges,
            ran.look("SELECT * FROM attempts JOIN settlements ON attempt = id"),
            ran.look("SELECT * FROM outcomes"),
        )

    first = trace(1, "first")
    assert len(first[0]) > 350
    assert trace(1, "same") == first
    assert trace(2, "other") != first


def test_the_reader_stays_no_further_ahead_than_it_may(setting, monkeypatch):
    monkeypatch.setattr(loop_module, "LOOK_AHEAD_REQUESTS", 300)
    ahead = []

    async def watch(loop, transport):
        while True:
            tally = loop._parts.tally
            ahead.append(tally.rows_read - tally.ended - tally.in_flight)
            await anyio.sleep(0.1)

    ran = go(setting, names=names(3000), beside=watch)
    assert ran.stopped is None
    assert set(ran.states.values()) == {"done"}
    # a group is 256 rows, and is looked at as a whole
    assert 300 < max(ahead) < 300 + 256
    assert sorted(ahead)[len(ahead) // 2] > 100  # and it does not wait until all is sent


def test_the_reader_stays_no_more_bytes_ahead_than_it_may(setting, monkeypatch):
    monkeypatch.setattr(loop_module, "LOOK_AHEAD_BYTES", 1000)
    most = []

    def server(claimed, now):
        most.append(loops[0]._parts.tally.rows_read)
        return answer(claimed, now)

    loops = []

    async def watch(loop, transport):
        loops.append(loop)

    go(setting, names=names(1000), answer=server, beside=watch)
    assert most[0] == 256
    assert most[-1] == 1000
    assert most[250] <= 512


# --- retries


def test_a_failed_request_goes_again_at_its_due_time_and_others_meanwhile(setting):
    seen = Counter()

    def server(claimed, now):
        seen[name_of(claimed)] += 1
        if name_of(claimed) == "r1" and seen["r1"] < 4:
            return refusal(500, retry_after_s=10)(claimed, now)
        return answer(claimed, now)

    ran = go(setting, answer=server, slots=1)
    assert ran.stopped is None
    assert set(ran.states.values()) == {"done"}
    times = [each.sent_at for each in ran.transport.exchanges if name_of(each.claimed) == "r1"]
    assert len(times) == 4
    assert all(later - earlier >= 10.25 for earlier, later in pairwise(times))
    assert ran.tally.retries == 3
    # a row that waits holds no slot
    assert ran.sent[1:20] == names(20)[1:]
    numbers = [each.claimed.number for each in ran.transport.exchanges if name_of(each.claimed) == "r1"]
    assert numbers == [1, 2, 3, 4]


def test_a_request_that_always_fails_is_given_up_after_its_attempts(setting):
    def server(claimed, now):
        return (refusal(500) if name_of(claimed) == "r3" else answer)(claimed, now)

    ran = go(setting, answer=server, max_attempts=3)
    assert ran.stopped is None
    assert Counter(ran.states.values()) == {"done": 19, "exhausted": 1}
    assert Counter(ran.sent)["r3"] == 3
    # the next run tries again
    ran = go(setting, answer=answer)
    assert (ran.sent, set(ran.states.values())) == (["r3"], {"done"})


def test_what_the_server_refuses_is_not_tried_again_unless_asked(setting):
    def server(claimed, now):
        return (refusal(400) if name_of(claimed) == "r3" else answer)(claimed, now)

    assert Counter(go(setting, answer=server).sent)["r3"] == 1
    assert go(setting, answer=server).sent == []
    assert go(setting, answer=answer, reopen=frozenset({"refused"})).sent == ["r3"]


def test_each_attempt_of_a_request_has_the_same_key_and_body(setting):
    setting.answer = script(refusal(500), loss("reset"), refusal(429), refusal(503), answer)
    ran = go(setting, names=["a"])
    requests = [each.claimed.request for each in ran.transport.exchanges]
    assert len(requests) == 5
    assert len({(each.key, each.body) for each in requests}) == 1
    assert [row[2:] for row in ran.attempts] == [
        ("no", 500, "server_error"),
        ("maybe", None, "reset"),
        ("no", 429, "rate_limit"),
        ("no", 503, "unavailable"),
        ("yes", 200, None),
    ]


# --- a server that says no


def test_a_pause_stops_the_pool_and_one_request_goes_first(setting):
    calls = []

    def server(claimed, now):
        calls.append(now)
        if now < 1.0:
            return refusal(429, retry_after_s=120)(claimed, now)
        return answer(claimed, now)

    ran = go(setting, answer=server, names=names(40), rpm=60_000)
    assert ran.stopped is None
    assert set(ran.states.values()) == {"done"}
    first = [now for now in calls if now < 1.0]
    later = [now for now in calls if now >= 1.0]
    # a slot is free when the reply is in, and the pool is paused when that is written down: two flights
    assert 8 <= len(first) <= 16
    assert later[0] >= 120.25
    # the probe is alone until its answer is in
    assert later[1] >= later[0] + 0.25
    assert ran.tally.retries == len(first)
    # nobody was charged for it: it was the pool's affair
    assert all(each.claimed.charged == 0 for each in ran.transport.exchanges)


def test_a_request_that_is_always_refused_for_rate_fails_and_the_others_go_on(setting):
    def server(claimed, now):
        return (refusal(429) if name_of(claimed) == "r5" else answer)(claimed, now)

    ran = go(setting, answer=server, names=names(100))
    assert ran.stopped is None
    assert Counter(ran.states.values()) == {"done": 99, "exhausted": 1}
    assert ran.states["r5"] == "exhausted"


def test_with_one_slot_and_one_poisonous_row_the_rest_is_done(setting):
    def server(claimed, now):
        return (refusal(429, retry_after_s=1) if name_of(claimed) == "r1" else answer)(claimed, now)

    ran = go(setting, answer=server, slots=1, max_attempts=3)
    assert Counter(ran.states.values()) == {"done": 19, "exhausted": 1}


@pytest.mark.parametrize("code", ["insufficient_quota", "billing_not_active"])
def test_a_quota_that_is_used_up_stops_the_run_and_rows_stay_pending(setting, code):
    def server(claimed, now):
        return (answer if now < 1.0 else refusal(429, code))(claimed, now)

    ran = go(setting, answer=server, names=names(100), rpm=60_000)
    assert ran.stopped.kind == ("quota" if code == "insufficient_quota" else "billing")
    counts = Counter(ran.states.values())
    assert set(counts) == {"done", None}
    assert counts["done"] == 32
    assert len(ran.transport.exchanges) <= 48  # what was sent before the first refusal was written down
    assert {row[2] for row in ran.attempts} == {"yes", "no"}
    ran = go(setting, answer=answer)
    assert (ran.stopped, len(ran.sent), set(ran.states.values())) == (None, 68, {"done"})


def test_a_key_that_is_refused_stops_the_run(setting):
    ran = go(setting, answer=refusal(401))
    assert ran.stopped.kind == "authentication"
    assert set(ran.states.values()) == {None}


# --- a server that is not there


def test_an_outage_of_ten_minutes_costs_nothing_but_time(setting):
    def server(claimed, now):
        if 5 <= now < 605:
            return loss("connect", left=False, after_s=0.01)(claimed, now)
        return answer(claimed, now)

    ran = go(setting, answer=server, names=names(400), max_attempts=2)
    assert ran.stopped is None
    assert set(ran.states.values()) == {"done"}
    assert 605 < ran.clock.now() < 605 + 70 + 13
    assert all(each.claimed.charged == 0 for each in ran.transport.exchanges)
    assert Counter(row[2] for row in ran.attempts)["maybe"] == 0
    assert ran.contents.by_model["m"].in_doubt == 0
    # and the endpoint was left in peace meanwhile: backoffs up to a minute
    assert sum(each.sent_at is None for each in ran.transport.exchanges) < 80
    assert Counter(ran.sent) == dict.fromkeys(names(400), 1)


def test_what_never_left_does_not_count_against_the_limit(setting):
    def server(claimed, now):
        return (answer if now > 300 else loss("connect", left=False))(claimed, now)

    ran = go(setting, answer=server, names=names(5), rpm=5)
    assert sum(each.sent_at is None for each in ran.transport.exchanges) > 5
    assert set(ran.states.values()) == {"done"}
    assert ran.clock.now() < 300 + 60 + 5 * 12 + 1


def test_an_outage_that_does_not_end_stops_the_run(setting):
    ran = go(setting, answer=loss("connect", left=False), max_stall_s=1800.0)
    assert ran.stopped.kind == "stall"
    assert 1800 <= ran.clock.now() < 1800 + 60 + 31
    assert set(ran.states.values()) == {None}
    ran = go(setting, answer=answer)
    assert (ran.stopped, set(ran.states.values())) == (None, {"done"})


def test_a_stall_ends_with_a_row(setting):
    """Two outages that are longer together than the run may stall, and one row in between."""
    done = []

    def server(claimed, now):
        if (now > 1400 and not done) or now > 3000:
            done.append(now)
            return (refusal(400) if len(done) == 1 else answer)(claimed, now)
        return loss("connect", left=False)(claimed, now)

    ran = go(setting, answer=server)
    assert ran.stopped is None
    assert Counter(ran.states.values()) == {"refused": 1, "done": 19}


GONE = [loss("reset"), loss("timeout", after_s=30.0), refusal(502), refusal(503), refusal(504)]


@pytest.mark.parametrize("gone", GONE)
@pytest.mark.parametrize("slots", [1, 400])
def test_an_endpoint_that_is_down_costs_the_rows_nothing(setting, gone, slots):
    """Ten minutes of it, and two attempts: what was in flight at its start may spend one, and no more."""

    def server(claimed, now):
        return (gone if 1 <= now < 601 else answer)(claimed, now)

    ran = go(setting, answer=server, names=names(250), max_attempts=2, slots=slots)
    assert ran.stopped is None
    assert set(ran.states.values()) == {"done"}
    # and it is left in peace meanwhile: 16 in a row, or a second wave, and then one now and then
    tried = [each for each in ran.transport.exchanges if 1 <= each.sent_at < 601]
    assert len(tried) < 400 + 60
    late = [each for each in tried if each.sent_at > 100]
    assert len(late) < 40


@pytest.mark.parametrize("gone", [*GONE, refusal(429), refusal(503, retry_after_s=1)])
def test_where_nothing_gets_on_the_run_ends_after_max_stall(setting, gone):
    ran = go(setting, answer=gone, max_stall_s=600.0)
    assert ran.stopped.kind == "stall"
    assert "nothing has got on for longer than --max-stall" in ran.stopped.reason
    assert 600 <= ran.clock.now() < 600 + 30 + 31
    assert set(ran.states.values()) == {None}
    ran = go(setting, answer=answer)
    assert (ran.stopped, set(ran.states.values())) == (None, {"done"})


def test_a_server_that_asks_for_more_patience_than_there_is_ends_the_run(setting):
    ran = go(setting, answer=refusal(429, retry_after_s=7200), max_stall_s=600.0)
    assert ran.stopped.kind == "stall"
    assert ran.clock.now() == pytest.approx(600, abs=1)
    assert len(ran.sent) <= 16  # two flights


def test_at_most_once_an_outage_puts_few_rows_in_doubt(setting):
    def server(claimed, now):
        return (refusal(502) if 1 <= now < 601 else answer)(claimed, now)

    ran = go(setting, answer=server, names=names(250), at_most_once=True)
    assert ran.stopped is None
    counts = Counter(ran.states.values())
    assert set(counts) == {"done", "in_doubt"}
    assert counts["in_doubt"] < 60
    assert Counter(ran.sent) == dict.fromkeys(names(250), 1)


@pytest.mark.parametrize("fault", [refusal(500), refusal(502), refusal(503), loss("reset")])
def test_where_half_of_the_replies_fail_every_row_is_done_with_enough_attempts(setting, fault):
    faults = VirtualClock(7)

    def server(claimed, now):
        return (fault if faults.chance() < 0.5 else answer)(claimed, now)

    ran = go(setting, answer=server, names=names(200), max_attempts=20)
    assert ran.stopped is None
    assert set(ran.states.values()) == {"done"}
    assert 330 < len(ran.sent) < 470
    # it may be taken for an outage, but never for long
    assert ran.clock.now() < 600


@pytest.mark.parametrize("fault", [refusal(502), loss("reset")])
@pytest.mark.parametrize("slots", [1, 8])
@pytest.mark.parametrize("bad", [("r1",), ("r20",), ("r1", "r2"), ("r5", "r6", "r7", "r20")])
def test_rows_that_are_lost_each_time_fail_and_the_others_are_done(setting, fault, slots, bad):
    def server(claimed, now):
        return (fault if name_of(claimed) in bad else answer)(claimed, now)

    ran = go(setting, answer=server, slots=slots)
    assert ran.stopped is None
    assert {name for name, state in ran.states.items() if state == "exhausted"} == set(bad)
    assert set(ran.states.values()) == {"done", "exhausted"}
    # at the end nothing shows whether it is the rows or the server: they go one at a time, ever more rarely
    assert ran.clock.now() < 1800


@pytest.mark.parametrize("slots", [1, 8])
def test_two_last_rows_that_look_like_an_outage_fail_after_a_while(setting, slots):
    def server(claimed, now):
        return (refusal(502) if name_of(claimed) in ("r19", "r20") else answer)(claimed, now)

    ran = go(setting, answer=server, slots=slots)
    assert ran.stopped is None
    assert Counter(ran.states.values()) == {"done": 18, "exhausted": 2}
    assert ran.clock.now() < 120


@pytest.mark.parametrize("gone", [refusal(502), loss("reset")])
@pytest.mark.parametrize(("left", "for_s"), [(2, 25), (8, 600)])
def test_an_outage_at_the_end_costs_the_rows_nothing_either(setting, gone, left, for_s):
    def server(claimed, now):
        return (gone if 0.4 <= now < 0.4 + for_s else answer)(claimed, now)

    ran = go(setting, answer=server, names=names(16 + left), slots=8)
    assert ran.stopped is None
    assert set(ran.states.values()) == {"done"}


@pytest.mark.parametrize("fault", [refusal(429), refusal(503, retry_after_s=0.05)])
@pytest.mark.parametrize("slots", [1, 8, 400])
def test_rows_that_never_fit_do_not_keep_the_others_waiting(setting, fault, slots):
    bad = {f"r{number}" for number in range(1, 6)}

    def server(claimed, now):
        return (fault if name_of(claimed) in bad else answer)(claimed, now)

    ran = go(setting, answer=server, names=names(100), slots=slots)
    assert ran.stopped is None
    assert {name for name, state in ran.states.items() if state == "exhausted"} == bad
    done_at = max(
        each.landed.ended_at for each in ran.transport.exchanges if name_of(each.claimed) not in bad
    )
    assert done_at < 150
    assert ran.clock.now() < 300


def test_a_hold_that_is_longer_than_the_patience_ends_the_run_whatever_lands_after_it(setting):
    def server(claimed, now):
        if name_of(claimed) == "r3":
            return refusal(429, retry_after_s=3600)(claimed, now)
        return Reply(200, (), answer(claimed, now).body, now, now + 0.5)

    ran = go(setting, answer=server, max_stall_s=5.0)
    assert ran.stopped.kind == "stall"
    assert ran.clock.now() < 20


@pytest.mark.parametrize("slots", [1, 8])
@pytest.mark.parametrize("wait_s", [None, 0.02, 1])
@pytest.mark.parametrize("bad", [("r1",), ("r20",), ("r3", "r4"), ("r19", "r20")])
def test_rows_that_are_always_refused_for_rate_fail_and_the_others_are_done(setting, slots, wait_s, bad):
    def server(claimed, now):
        if name_of(claimed) in bad:
            return refusal(429, retry_after_s=wait_s)(claimed, now)
        return answer(claimed, now)

    ran = go(setting, answer=server, slots=slots)
    assert ran.stopped is None
    assert {name for name, state in ran.states.items() if state == "exhausted"} == set(bad)
    assert ran.clock.now() < 900


@pytest.mark.parametrize("slots", [1, 400])
@pytest.mark.parametrize("wait_s", [None, 0.02])
@pytest.mark.parametrize("fails_at", [0.0, 1.0])
def test_a_server_that_only_refuses_for_rate_for_a_while_fails_no_row(setting, slots, wait_s, fails_at):
    def server(claimed, now):
        if fails_at <= now < fails_at + 600:
            return refusal(429, retry_after_s=wait_s)(claimed, now)
        return answer(claimed, now)

    ran = go(setting, answer=server, names=names(100), slots=slots)
    assert ran.stopped is None
    assert set(ran.states.values()) == {"done"}


def test_after_a_hold_the_flow_ramps(setting):
    def server(claimed, now):
        return (refusal(429, retry_after_s=60) if 1 <= now < 1.2 else answer)(claimed, now)

    ran = go(setting, answer=server, names=names(4000), slots=400)
    later = [each.sent_at for each in ran.transport.exchanges if each.sent_at > 30]
    after = Counter(int((sent_at - later[0]) / 0.25) for sent_at in later)
    flights = [after[flight] for flight in sorted(after)][:14]
    assert flights[0] == 1
    assert all(later <= 2 * earlier + 1 for earlier, later in pairwise(flights))
    assert max(flights) > 30


# --- a wrong address


@pytest.mark.parametrize("count", [1, 3, 400])
def test_where_every_row_is_not_found_the_run_stops_and_the_rows_stay(setting, count):
    ran = go(setting, answer=refusal(404, "model_not_found"), names=names(count))
    assert ran.stopped.kind == "not_found"
    assert "check the model and --base-url" in ran.stopped.reason
    assert set(ran.states.values()) == {None}
    assert ran.clock.now() < 60
    assert go(setting, answer=answer).stopped is None


@pytest.mark.parametrize("slots", [1, 8])
def test_where_others_are_found_a_row_that_is_not_fails(setting, slots):
    def server(claimed, now):
        return (refusal(404) if int(name_of(claimed)[1:]) % 3 == 1 else answer)(claimed, now)

    ran = go(setting, answer=server, slots=slots)
    assert ran.stopped is None
    assert Counter(ran.states.values()) == {"done": 13, "refused": 7}


def test_the_server_knows_best_whether_to_try_again(setting):
    def server(claimed, now):
        refused = refusal(500 if name_of(claimed) == "r1" else 400)(claimed, now)
        again = b"false" if name_of(claimed) == "r1" else b"true"
        if name_of(claimed) in ("r1", "r2") and claimed.number < 3:
            return msgspec.structs.replace(refused, headers=((b"x-should-retry", again),))
        return answer(claimed, now)

    ran = go(setting, answer=server)
    assert Counter(ran.states.values()) == {"done": 19, "exhausted": 1}
    assert (Counter(ran.sent)["r1"], Counter(ran.sent)["r2"]) == (1, 3)


# --- stopping


def stopping(at, hurry_at=None):
    async def beside(loop, transport):
        await anyio.sleep(at)
        loop.stop(INTERRUPTED)
        if hurry_at is not None:
            await anyio.sleep(hurry_at - at)
            loop.hurry()

    return beside


def test_stop_lets_what_is_in_flight_land(setting):
    def server(claimed, now):
        return Reply(200, (), answer(claimed, now).body, now, now + 10)

    ran = go(setting, answer=server, names=names(100), rpm=60_000, beside=stopping(15))
    assert ran.stopped == INTERRUPTED
    assert ran.clock.now() == pytest.approx(20.0, abs=0.1)
    assert Counter(ran.states.values()) == {"done": 16, None: 84}
    assert len(ran.transport.exchanges) == 16
    assert {row[2] for row in ran.attempts} == {"yes"}
    ran = go(setting, answer=answer, beside=None)
    assert (len(ran.sent), set(ran.states.values())) == (84, {"done"})


@pytest.mark.parametrize(("hurry_at", "ends"), [(None, 1 + 30.0), (5, 5.0)])
def test_after_the_grace_what_is_in_flight_is_cut_off_and_may_have_been_billed(setting, hurry_at, ends):
    def server(claimed, now):
        return Reply(200, (), b"", now, math.inf)

    ran = go(setting, answer=server, rpm=60_000, beside=stopping(1, hurry_at))
    assert ran.stopped == INTERRUPTED
    assert ran.clock.now() == pytest.approx(ends, abs=0.1)
    assert [row[2:] for row in ran.attempts] == [("maybe", None, "cut_short")] * 8
    assert set(ran.states.values()) == {None}
    assert ran.contents.by_model["m"].in_doubt == 8
    ran = go(setting, answer=answer, beside=None)
    assert (len(ran.sent), set(ran.states.values())) == (20, {"done"})
    assert ran.contents.by_model["m"].in_doubt == 8


def test_the_first_reason_stays(setting):
    async def beside(loop, transport):
        await anyio.sleep(1)
        loop.stop(Stop("first", "x"))
        loop.stop(INTERRUPTED)

    ran = go(setting, names=names(100), beside=beside)
    assert ran.stopped.kind == "first"


def test_stopped_before_anything_is_read_it_ends(setting):
    ran = go(setting, beside=stopping(0))
    assert ran.stopped == INTERRUPTED
    assert ran.clock.now() < 1


def test_stopped_in_a_long_pause_it_ends_at_once(setting):
    ran = go(setting, answer=refusal(429, retry_after_s=3600), beside=stopping(10))
    assert ran.stopped == INTERRUPTED
    assert ran.clock.now() == pytest.approx(10)


def slow_commits(seconds):
    """Connect to a disk that takes so long for each commit."""

    class Slow:
        def __init__(self, db):
            self._db = db

        def __getattr__(self, name):
            return getattr(self._db, name)

        async def execute(self, sql, parameters=None):
            if sql == "COMMIT":
                await anyio.sleep(seconds)
            return await self._db.execute(sql, parameters)

    async def connect(path):
        return Slow(await inline_connection(path))

    return connect


def test_what_was_claimed_and_not_sent_is_settled_as_never_left(setting):
    ran = go(setting, connect=slow_commits(1.0), rpm=60_000, beside=stopping(0.5))  # while the claim commits
    assert ran.stopped == INTERRUPTED
    assert ran.transport.exchanges == []
    attempts = ran.attempts
    assert len(attempts) == 8
    assert {(number, billed, status) for _, number, billed, status, _ in attempts} == {(1, "no", None)}
    assert ran.contents.by_model["m"].in_doubt == 0
    assert ran.tally.requests == 0


def test_a_claim_comes_before_its_sending_and_a_settlement_before_it_counts(setting):
    claimed_at_send, counted = [], []

    def server(claimed, now):
        with closing(sqlite3.connect(setting.path / "job.db")) as db:
            ids = {row[0] for row in db.execute("SELECT id FROM attempts")}
            done = db.execute("SELECT count(*) FROM outcomes").fetchone()[0]
        claimed_at_send.append(claimed.id in ids)
        counted.append(loops[0]._parts.tally.succeeded <= done)
        return answer(claimed, now)

    loops = []

    async def beside(loop, transport):
        loops.append(loop)

    go(setting, answer=server, names=names(60), connect=slow_commits(0.1), beside=beside)
    assert all(claimed_at_send)
    assert all(counted)
    assert len(counted) == 60


# --- limits


@pytest.mark.parametrize("took_s", [0.25, 100.0])
def test_no_minute_holds_more_requests_than_the_limit(setting, took_s):
    def server(claimed, now):
        kind = faults.chance()
        if kind < 0.1:
            return refusal(500)(claimed, now)
        reply = answer(claimed, now)
        return Reply(200, (), reply.body, now + 3 * faults.chance(), now + 3 + took_s)

    faults = VirtualClock(5)
    ran = go(setting, answer=server, names=names(400), rpm=60, slots=200, max_attempts=20)
    assert ran.stopped is None
    assert set(ran.states.values()) == {"done"}
    sent = [(each.sent_at, 1) for each in ran.transport.exchanges]
    assert windows(sent) <= 60
    assert windows(sent) >= 54  # and the limit is used
    assert ran.clock.now() < len(sent) * 1.15 + 2 * took_s + 10


def test_no_minute_holds_more_tokens_than_the_limit(setting):
    ran = go(setting, names=names(300), tpm=6000, max_tokens=100, slots=100)
    assert ran.stopped is None
    tokens = {each.claimed.request.tokens for each in ran.transport.exchanges}
    assert len(tokens) == 1
    sent = [(each.sent_at, each.claimed.request.tokens) for each in ran.transport.exchanges]
    assert 5000 <= windows(sent) <= 6000


def test_no_day_holds_more_requests_than_the_limit(setting):
    told = []

    async def listen(loop, _transport):
        while True:
            await anyio.sleep(60)
            told.extend(loop.notices)
            loop.notices.clear()

    ran = go(setting, names=names(50), rpd=20, max_stall_s=60.0, beside=listen)
    assert set(ran.states.values()) == {"done"}
    sent = [(each.sent_at, 1) for each in ran.transport.exchanges]
    assert windows(sent, 86_400.0) == 20
    assert 2 * 86_400 < ran.clock.now() < 2 * 86_400 + 1200
    assert told[0].startswith("waiting for requests a day: the next request goes in 1 day, 0:0")
    assert len(told) == 2


def announcing(rpm, answers=answer):
    """Make a server that enforces a bucket of this size, and says so."""
    level, last = [float(rpm)], [0.0]

    def server(claimed, now):
        level[0] = min(level[0] + (now - last[0]) * rpm / 60, rpm)
        last[0] = now
        if level[0] < 1:
            return refusal(429, retry_after_s=(1 - level[0]) * 60 / rpm)(claimed, now)
        level[0] -= 1
        reply = answers(claimed, now)
        headers = (
            (b"x-ratelimit-limit-requests", b"%d" % rpm),
            (b"x-ratelimit-remaining-requests", b"%d" % level[0]),
            (b"x-ratelimit-reset-requests", b"%dms" % ((rpm - level[0]) * 60_000 / rpm + 1)),
        )
        return Reply(200, headers, reply.body, reply.sent_at, reply.ended_at)

    return server


def test_where_no_limit_is_given_one_goes_first_and_the_rest_keeps_to_what_it_tells(setting):
    told = []

    async def listen(loop, _transport):
        await anyio.sleep(30)
        told.extend(loop.notices)

    ran = go(setting, answer=announcing(600), names=names(700), slots=50, beside=listen)
    assert set(ran.states.values()) == {"done"}
    sent = sorted(each.sent_at for each in ran.transport.exchanges)
    assert len(sent) == 700  # nothing was refused
    assert sent[1] >= 0.25
    assert windows([(at, 1) for at in sent]) <= 600
    assert ran.clock.now() < 70 * 1.05
    assert told == ["keeping to the limits that the server announces: 600 requests a minute"]


def test_where_the_first_reply_is_long_in_coming_the_rest_does_not_wait_for_it(setting):
    def server(claimed, now):
        return Reply(200, (), answer(claimed, now).body, now, now + (120 if claimed.id == 1 else 1))

    ran = go(setting, answer=server, names=names(100))
    assert set(ran.states.values()) == {"done"}
    assert ran.clock.now() == pytest.approx(120.0, abs=0.1)
    sent = sorted(each.sent_at for each in ran.transport.exchanges)
    assert sent[0] < 0.1
    assert 5.0 <= sent[1] < 5.2


def test_a_first_request_that_is_refused_for_rate_is_charged_no_attempt(setting):
    ran = go(setting, answer=script(refusal(429, retry_after_s=1), answer), max_attempts=1)
    assert set(ran.states.values()) == {"done"}


def test_a_limit_that_is_given_goes_before_what_the_server_announces(setting):
    ran = go(setting, answer=announcing(6000), names=names(120), rpm=60, slots=100)
    assert set(ran.states.values()) == {"done"}
    assert windows([(each.sent_at, 1) for each in ran.transport.exchanges]) <= 60


@pytest.mark.parametrize(("counts", "minutes"), [("reserved", 5), ("actual", 1.3), ("auto", 5)])
def test_what_was_reserved_and_not_used_comes_back_where_the_limit_counts_what_was_used(
    setting, counts, minutes
):
    # Each reserves 101 tokens and uses 10: 60 a minute, or 600.
    ran = go(setting, names=names(300), tpm=6060, max_tokens=100, slots=100, tpm_counts=counts)
    assert set(ran.states.values()) == {"done"}
    assert minutes - 1.1 <= ran.clock.now() / 60 <= minutes + 0.1


def test_after_slow_down_the_traffic_grows_slowly(setting):
    """From two thirds of it, by half in a quarter of an hour, where it is above a million tokens a minute."""
    refused = []

    def server(claimed, now):
        if now > 60 and not refused:
            refused.append(now)
            return refusal(429, "slow_down")(claimed, now)
        return answer(claimed, now)

    # 20 a second of 50,001 tokens: 60 million a minute.
    ran = go(setting, answer=server, names=names(2400), tpm=60_001_200, max_tokens=50_000, slots=20)
    assert set(ran.states.values()) == {"done"}
    sent = [each.sent_at for each in ran.transport.exchanges]

    def per_s(since):
        return sum(since <= at < since + 10 for at in sent) / 10

    assert per_s(45) == pytest.approx(20, rel=0.02)
    assert per_s(70) == pytest.approx(20 / 1.5, rel=0.05)
    assert per_s(70) * 0.99 <= per_s(125) <= per_s(70) * 1.5 ** (60 / 900) * 1.05


def test_a_slow_answer_does_not_hold_up_a_limit_of_one(setting):
    """The window opens a minute after a request has left, not when it has landed."""

    def server(claimed, now):
        return Reply(200, (), answer(claimed, now).body, now, now + 200)

    ran = go(setting, answer=server, names=names(5), rpm=1)
    assert set(ran.states.values()) == {"done"}
    assert ran.clock.now() < 4 * 61 + 200 + 1


def test_what_is_larger_than_the_limit_fails_and_the_rest_runs(setting):
    path = write_job(setting)
    large = path.read_bytes().splitlines()[3].replace(b'"max_tokens":10', b'"max_tokens":5000')
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*lines[:3], large, *lines[4:]]) + b"\n")
    ran = go(setting, tpm=1000)
    assert ran.stopped is None
    assert Counter(ran.states.values()) == {"done": 19, "exhausted": 1}
    ((_, name, status, _, _, code, message, line, _),) = reader.rows(ran.store, "errors")
    assert (name, status, code) == ("r4", None, "exceeds_limit")
    assert "the limit is 1000 a minute: raise it" in message
    assert orjson.loads(line)["body"]["max_tokens"] == 5000
    # with room for it, it runs
    assert go(setting, tpm=None).sent == ["r4"]


def test_a_file_of_nothing_but_too_large_rows_comes_to_its_end(setting, monkeypatch):
    monkeypatch.setattr(loop_module, "LOOK_AHEAD_REQUESTS", 100)
    ran = go(setting, names=names(1000), tpm=1000, max_tokens=5000)
    assert ran.stopped is None
    assert Counter(ran.states.values()) == {"exhausted": 1000}


def test_pools_share_slots_and_each_has_its_own_limit(setting):
    limits = {"a": Limit(rpm=60), "b": Limit(rpm=600)}
    ran = go(setting, names=names(200), model_of=lambda name: "ab"[int(name[1:]) % 2], limits=limits)
    assert set(ran.states.values()) == {"done"}
    for model, rpm in (("a", 60), ("b", 600)):
        sent = [(each.sent_at, 1) for each in ran.transport.exchanges if each.claimed.request.model == model]
        assert len(sent) == 100
        assert windows(sent) <= rpm
    assert ran.transport.most_in_flight <= 8
    last = max(each.sent_at for each in ran.transport.exchanges if each.claimed.request.model == "b")
    assert last < 12  # b did not wait for a, which takes 100 s


def last_of_b(setting, server):
    """Run a job of two models, with a pool for each; return when the last request of `b` left."""
    ran = go(
        setting,
        answer=server,
        names=names(400),
        model_of=lambda name: "ab"[int(name[1:]) % 2],
        limits={"a": Limit(), "b": Limit()},
    )
    assert set(ran.states.values()) == {"done"}
    return max(each.sent_at for each in ran.transport.exchanges if each.claimed.request.model == "b")


def test_a_paused_pool_does_not_idle_another(setting):
    def server(claimed, now):
        if claimed.request.model == "a" and now < 600:
            return refusal(429, retry_after_s=600)(claimed, now)
        return answer(claimed, now)

    assert last_of_b(setting, server) < 200 * 0.25 / 8 * 1.5 + 1


def test_a_pool_of_slow_answers_does_not_take_every_slot(setting):
    def server(claimed, now):
        took = 300 if claimed.request.model == "a" else 0.25
        return Reply(200, (), answer(claimed, now).body, now, now + took)

    assert last_of_b(setting, server) < 100


# --- failures that stop the run


def test_too_many_failures_stop_the_run(setting):
    def server(claimed, now):
        return (refusal(400) if int(name_of(claimed)[1:]) % 2 else answer)(claimed, now)

    ran = go(setting, answer=server, names=names(1000), max_failures=MaxFailures(count=10))
    assert ran.stopped.kind == "failures"
    failed = Counter(ran.states.values())["refused"]
    assert 10 <= failed <= 10 + 8
    assert Counter(ran.states.values())[None] > 900


def test_a_share_of_failures_is_looked_at_after_enough_rows(setting):
    def server(claimed, now):
        return (refusal(400) if int(name_of(claimed)[1:]) <= 150 else answer)(claimed, now)

    ran = go(setting, answer=server, names=names(1000), max_failures=MaxFailures(share=0.5))
    assert ran.stopped.kind == "failures"
    assert 200 <= ran.tally.ended <= 200 + 8


def test_rejected_lines_are_no_failures_of_the_server(setting):
    path = setting.path / "job.jsonl"
    path.write_bytes(b"broken\n" * 400 + write_job(setting).read_bytes())
    ran = go(setting, max_failures=MaxFailures(count=5))
    assert ran.stopped is None
    assert Counter(ran.states.values()) == {"refused": 400, "done": 20}


@pytest.mark.parametrize("cut", [loss("reset"), loss("timeout"), refusal(504)])
def test_at_most_once_what_may_have_been_billed_is_not_sent_again(setting, cut):
    def server(claimed, now):
        return (cut if name_of(claimed) in ("r2", "r9") else answer)(claimed, now)

    ran = go(setting, answer=server, at_most_once=True)
    assert ran.stopped is None
    assert Counter(ran.states.values()) == {"done": 18, "in_doubt": 2}
    assert Counter(ran.sent) == dict.fromkeys(names(20), 1)
    assert ran.contents.by_model["m"].in_doubt == 2
    assert [orjson.loads(row[7])["custom_id"] for row in reader.rows(ran.store, "errors")] == ["r2", "r9"]
    assert go(setting, answer=answer).sent == []
    assert go(setting, reopen=frozenset({"in_doubt"})).sent == ["r2", "r9"]


def test_at_most_once_what_was_in_flight_at_a_crash_is_in_doubt_with_its_request(setting):
    async def crash(loop, transport):
        await anyio.sleep(1.1)
        raise RuntimeError("the end")

    with pytest.raises(ExceptionGroup):
        go(setting, names=names(100), at_most_once=True, beside=crash)
    ran = go(setting, beside=None)
    assert ran.stopped is None
    assert Counter(ran.states.values()) == {"done": 92, "in_doubt": 8}
    assert (ran.tally.in_doubt, ran.contents.by_model["m"].in_doubt) == (8, 8)
    in_doubt = [name for name, state in ran.states.items() if state == "in_doubt"]
    assert [orjson.loads(row[7])["custom_id"] for row in reader.rows(ran.store, "errors")] == in_doubt
    assert not set(ran.sent) & set(in_doubt)


def test_a_row_that_was_cut_off_before_it_failed_is_not_sent_again_once_it_is_at_most_once(setting):
    ran = go(setting, answer=loss("reset"), names=["r1"], max_attempts=1)
    assert ran.states == {"r1": "exhausted"}
    ran = go(setting, answer=answer, at_most_once=True)
    assert (ran.states, ran.sent) == ({"r1": "in_doubt"}, [])


def test_at_most_once_cut_off_by_the_grace_is_in_doubt(setting):
    def server(claimed, now):
        return Reply(200, (), b"", now, math.inf)

    ran = go(setting, answer=server, at_most_once=True, rpm=60_000, beside=stopping(1))
    assert Counter(ran.states.values()) == {"in_doubt": 8, None: 12}


def test_what_is_left_in_doubt_by_a_crash_goes_again_where_that_is_asked_for(setting):
    crash_at(setting, 1.1, names=names(100), at_most_once=True)
    ran = go(setting, beside=None, reopen=frozenset({"exhausted", "in_doubt"}))
    assert (ran.stopped, set(ran.states.values())) == (None, {"done"})
    assert len(ran.sent) == 100 - ran.tally.already_done
    assert len(ran.attempts) == 100 + 8 == 100 + ran.contents.by_model["m"].in_doubt


# --- what the server remembers of a key


def crash_at(setting, at_s, **changes):
    """Run the job to a crash, and not to its end."""

    async def crash(loop, transport):
        await anyio.sleep(at_s)
        raise RuntimeError("the end")

    with pytest.raises(ExceptionGroup):
        go(setting, beside=crash, **changes)


class Gateway:
    """Keeps what it has answered under a key, failures too, and says so when it says it again.

    It gives the first key of these rows a failure, and answers every other one.
    """

    def __init__(self, failure, fails):
        self._failure = failure
        self._fails = set(fails)
        self._kept = {}

    def __call__(self, claimed, now):
        name, key = name_of(claimed), claimed.request.key
        if key in self._kept:
            said = self._kept[key](claimed, now)
            return msgspec.structs.replace(said, headers=(*said.headers, (b"idempotent-replayed", b"true")))
        failing = name in self._fails
        self._fails.discard(name)
        self._kept[key] = self._failure if failing else answer
        return self._kept[key](claimed, now)


@pytest.mark.parametrize("failure", [refusal(500), refusal(429), refusal(503), refusal(504), refusal(409)])
@pytest.mark.parametrize("slots", [1, 8])
def test_a_failure_that_a_key_brings_again_is_cured_by_another_key(setting, failure, slots):
    ran = go(setting, answer=Gateway(failure, ["r5", "r9"]), slots=slots)
    assert (ran.stopped, set(ran.states.values())) == (None, {"done"})
    for name in ran.states:
        keys = ran.keys_of(name)
        if name in ("r5", "r9"):
            assert (len(keys), keys[0], keys[2]) == (3, keys[1], keys[2])
            assert len(set(keys)) == 2
        else:
            assert len(keys) == 1
    assert ran.look("SELECT count(*) FROM settlements WHERE replayed = 1") == [(2,)]


@pytest.mark.parametrize("failure", [refusal(400), refusal(413)])
def test_what_was_refused_and_is_to_go_again_goes_with_another_key(setting, failure):
    setting.answer = Gateway(failure, ["r5"])
    assert go(setting).states["r5"] == "refused"
    ran = go(setting, reopen=frozenset({"exhausted", "refused"}))
    assert (ran.stopped, set(ran.states.values())) == (None, {"done"})
    first, second, third = ran.keys_of("r5")
    assert first == second != third


def test_an_account_that_was_put_right_is_not_held_to_what_it_was_told_before(setting):
    setting.answer = Gateway(refusal(429, "insufficient_quota"), names(20))
    stopped = 0
    while (ran := go(setting)).stopped is not None:
        assert ran.stopped.kind == "quota"
        stopped += 1
        assert stopped < 20
    assert set(ran.states.values()) == {"done"}


def test_a_key_that_brings_only_a_failure_is_not_used_again_after_a_crash_either(setting):
    gateway = Gateway(refusal(500), ["r5"])

    def server(claimed, now):
        said = gateway(claimed, now)
        # the answer that the new key brings is long in coming
        late = name_of(claimed) == "r5" and said.status == 200
        return msgspec.structs.replace(said, ended_at=now + 60) if late else said

    crash_at(setting, 30, answer=server, names=names(8))
    ran = go(setting, beside=None)
    assert (ran.stopped, set(ran.states.values())) == (None, {"done"})
    first, second, *others = ran.keys_of("r5")
    assert first == second
    assert len(others) == 2
    assert len(set(others)) == 1
    assert others[0] != first
    # the server had done it for the attempt that the crash lost, and says so
    assert ran.contents.by_model["m"].in_doubt == 0


def test_a_row_whose_attempts_are_spent_begins_with_another_key_in_the_next_run(setting):
    ran = go(setting, answer=Gateway(refusal(500), ["r5"]), max_attempts=2)
    assert ran.states["r5"] == "exhausted"
    ran = go(setting)
    assert (ran.sent, set(ran.states.values())) == (["r5"], {"done"})
    assert ran.keys_of("r5")[2] not in ran.keys_of("r5")[:2]


def test_each_key_that_brings_only_a_failure_is_followed_by_yet_another(setting):
    def server(claimed, now):
        said = refusal(500)(claimed, now)
        return msgspec.structs.replace(said, headers=((b"idempotency-replayed", b"1"),))

    ran = go(setting, answer=server, names=["a"], max_attempts=4)
    assert ran.states == {"a": "exhausted"}
    assert len(set(ran.keys_of("a"))) == 4
    ran = go(setting)
    assert len(set(ran.keys_of("a"))) == 8
    assert [row[2:] for row in ran.attempts] == [("no", 500, "server_error")] * 8


class Slow:
    """Answers a row after so many seconds, whatever becomes of the connection, and meanwhile says `busy`."""

    def __init__(self, busy, names, works_s):
        self._busy = busy
        self._names = set(names)
        self._works_s = works_s
        self._done_at = {}

    def __call__(self, claimed, now):
        key = claimed.request.key
        if name_of(claimed) not in self._names:
            return answer(claimed, now)
        if key not in self._done_at:
            self._done_at[key] = now + self._works_s
            return loss("reset", after_s=1.0)(claimed, now)
        if now < self._done_at[key]:
            return self._busy(claimed, now)
        said = answer(claimed, now)
        return msgspec.structs.replace(said, headers=((b"idempotent-replayed", b"true"),))


BUSY = [refusal(409), refusal(409, "idempotency_key_in_progress"), refusal(409, retry_after_s=5)]


@pytest.mark.parametrize("busy", BUSY)
def test_an_answer_that_is_still_being_made_for_a_lost_attempt_is_waited_for(setting, busy):
    ran = go(setting, answer=Slow(busy, ["r3", "r7"], works_s=200), max_attempts=2)
    assert (ran.stopped, set(ran.states.values())) == (None, {"done"})
    for name in ("r3", "r7"):
        exchanges = [each for each in ran.transport.exchanges if name_of(each.claimed) == name]
        assert [each.claimed.charged for each in exchanges] == [0] + [1] * (len(exchanges) - 1)
        assert len(set(ran.keys_of(name))) == 1
    words = Counter(row[4] for row in ran.attempts)
    assert words["reset"] == 2
    assert words["in_progress"] > 4
    assert words[None] == 20
    # what was lost is what was answered in the end
    assert ran.contents.by_model["m"].in_doubt == 0


@pytest.mark.parametrize("busy", BUSY)
def test_what_was_in_flight_at_a_crash_is_waited_for_by_the_next_run(setting, busy):
    def never(claimed, now):
        return Reply(200, (), b"", now, math.inf)

    crash_at(setting, 1.0, answer=never, names=names(8), rpm=60_000)
    began = setting.clock.now()

    def server(claimed, now):
        return (busy if now < began + 100 else answer)(claimed, now)

    ran = go(setting, answer=server, beside=None, max_attempts=1)
    assert (ran.stopped, set(ran.states.values())) == (None, {"done"})
    assert {row[4] for row in ran.attempts} == {"crashed", "in_progress", None}


def test_a_conflict_without_an_attempt_in_doubt_is_charged(setting):
    ran = go(setting, answer=refusal(409), names=["a"], max_attempts=3)
    assert ran.states == {"a": "exhausted"}
    assert [row[4] for row in ran.attempts] == ["conflict"] * 3


def test_a_new_key_has_no_attempt_in_doubt(setting):
    def again(claimed, now):
        said = refusal(504)(claimed, now)
        return msgspec.structs.replace(said, headers=((b"idempotent-replayed", b"true"),))

    # What the lost attempt did is known now, and a conflict is no longer its.
    setting.answer = script(loss("reset"), refusal(409), again, refusal(409), answer)
    ran = go(setting, names=["a"])
    assert [row[4] for row in ran.attempts] == [
        *("reset", "in_progress", "gateway_timeout", "conflict", None)
    ]


def test_a_key_that_stays_in_progress_is_given_up_when_no_answer_can_take_so_long(setting):
    ran = go(setting, answer=refusal(409, "idempotency_key_in_progress"), names=["a"], max_attempts=2)
    assert ran.states == {"a": "exhausted"}
    assert len(ran.attempts) == 8 + 300 / 30 + 2
    assert ran.clock.now() > 120
    setting.clock = VirtualClock()
    ran = go(setting, timeout_s=30.0)
    assert len(ran.transport.exchanges) == 8 + 30 / 30 + 2


# --- the disk, and the job file


#: Statements that opening the store takes.
OPENING = 8


def failing_disk(statement, clock=None, for_s=math.inf):
    """Connect to a disk that fails at the n-th statement, for good or for so long."""

    class Failing:
        def __init__(self, db):
            self._db = db
            self._count = 0
            self._until = math.inf

        def __getattr__(self, name):
            return getattr(self._db, name)

        async def execute(self, sql, parameters=None):
            self._count += 1
            if self._count == statement and clock is not None:
                self._until = clock.now() + for_s
            if self._count >= statement and (clock is None or clock.now() < self._until):
                raise sqlite3.OperationalError("database or disk is full")
            return await self._db.execute(sql, parameters)

        async def execute_fetchall(self, sql, parameters=None):
            return await self._db.execute_fetchall(sql, parameters)

    async def connect(path):
        return Failing(await inline_connection(path))

    return connect


def refusing(setting, since, until=math.inf, table="settlements"):
    """Connect to a disk that has no room for a table's rows from one time to another."""

    class Refusing:
        def __init__(self, db):
            self._db = db

        def __getattr__(self, name):
            return getattr(self._db, name)

        async def execute(self, sql, parameters=None):
            if sql.startswith(f"INSERT INTO {table} ") and since <= setting.clock.now() < until:
                raise sqlite3.OperationalError("database or disk is full")
            return await self._db.execute(sql, parameters)

    async def connect(path):
        return Refusing(await inline_connection(path))

    return connect


def after(seconds):
    """Make a server that answers after so long."""
    return lambda claimed, now: msgspec.structs.replace(answer(claimed, now), ended_at=now + seconds)


@pytest.mark.parametrize("for_s", [1.5, 3, 29])
@pytest.mark.parametrize("slots", [1, 8])
def test_a_disk_that_has_room_again_within_the_grace_loses_no_answer(setting, for_s, slots):
    disk = refusing(setting, since=9, until=9 + for_s)
    ran = go(setting, names=names(60), answer=after(2), slots=slots, rpm=60_000, connect=disk)
    assert ran.stopped.kind == "disk"
    assert "disk is full" in ran.stopped.reason
    assert "answers came" not in ran.stopped.reason
    assert ran.clock.now() < 9 + for_s + 3
    # all that was sent is answered, and written down
    assert len(ran.sent) == Counter(ran.states.values())["done"] == ran.tally.succeeded > 3
    assert ran.contents.by_model["m"].in_doubt == 0
    again = go(setting, connect=inline_connection)
    assert (again.stopped, set(again.states.values())) == (None, {"done"})
    assert Counter(ran.sent + again.sent) == dict.fromkeys(names(60), 1)


@pytest.mark.parametrize("grace_s", [0, 0.5, 5, 30])
def test_a_disk_that_has_no_room_any_more_loses_what_it_says_and_no_more(setting, grace_s):
    def server(claimed, now):
        return after(2 + claimed.id % 5 / 2)(claimed, now)

    disk = refusing(setting, since=9)
    ran = go(setting, names=names(60), answer=server, rpm=60_000, connect=disk, grace_s=grace_s)
    assert ran.stopped.kind == "disk"
    assert ran.clock.now() < 13 + grace_s + 1
    done = Counter(ran.states.values())["done"]
    came = sum(isinstance(each.landed, Reply) for each in ran.transport.exchanges)
    lost = f"; {came - done} answers came that could not be written down: their attempts are in doubt"
    assert came > done
    assert ran.stopped.reason.endswith(lost)
    assert ran.contents.by_model["m"].in_doubt == len(ran.sent) - done
    settled = {name for name, state in ran.states.items() if state == "done"}
    again = go(setting, connect=inline_connection)
    assert (again.stopped, set(again.states.values())) == (None, {"done"})
    assert not settled & set(again.sent)
    assert len(ran.sent) + len(again.sent) == 60 + len(ran.sent) - done


def test_answers_of_refusals_are_not_told_as_lost(setting):
    """What costs nothing is not worth a word."""
    setting.answer = lambda claimed, now: (answer if name_of(claimed) == "r1" else refusal(400))(claimed, now)
    ran = go(setting, slots=1, connect=refusing(setting, since=0.3), grace_s=2)
    assert (ran.stopped.kind, ran.sent) == ("disk", ["r1", "r2"])
    assert "answers came" not in ran.stopped.reason


def test_in_the_grace_of_an_interruption_a_disk_is_tried_again_too(setting):
    disk = refusing(setting, since=1.5, until=10)
    ran = go(setting, names=names(60), answer=after(2), rpm=60_000, connect=disk, beside=stopping(1))
    assert ran.stopped == INTERRUPTED
    assert len(ran.sent) == Counter(ran.states.values())["done"] == 8


def test_a_second_signal_ends_the_trying(setting):
    disk = refusing(setting, since=1.5)
    ran = go(setting, names=names(60), answer=after(2), rpm=60_000, connect=disk, beside=stopping(1, 10))
    assert ran.clock.now() == pytest.approx(10, abs=loop_module.RETRY_S)
    assert ran.stopped.kind == "interrupted"
    assert ran.stopped.reason.startswith(f"{INTERRUPTED.reason}; 8 answers came")
    assert ran.contents.by_model["m"].in_doubt == 8


def test_a_claim_that_is_refused_sends_nothing(setting):
    ran = go(setting, connect=refusing(setting, since=0, table="attempts"))
    assert ran.stopped.kind == "disk"
    assert ran.transport.exchanges == []
    assert ran.clock.now() < 1
    assert ran.tally.in_flight == 0
    assert len(go(setting, connect=inline_connection).sent) == 20


@pytest.mark.parametrize("slots", [1, 8])
def test_what_is_in_flight_when_a_claim_is_refused_lands_and_counts(setting, slots):
    disk = refusing(setting, since=9, table="attempts")
    ran = go(setting, names=names(60), answer=after(2), slots=slots, rpm=60_000, connect=disk)
    assert ran.stopped.kind == "disk"
    assert "answers came" not in ran.stopped.reason
    assert len(ran.sent) == Counter(ran.states.values())["done"] > 0
    assert {row[2] for row in ran.attempts} == {"yes"}
    again = go(setting, connect=inline_connection)
    assert Counter(ran.sent + again.sent) == dict.fromkeys(names(60), 1)


def test_a_disk_that_fails_for_a_while_at_any_statement_loses_no_answer(tmp_path):
    for statement in range(OPENING + 1, 200):
        (tmp_path / str(statement)).mkdir()
        setting = Setting(tmp_path / str(statement), names(60))
        ran = go(setting, connect=failing_disk(statement, setting.clock, for_s=5))
        if ran.stopped is None:
            break
        assert ran.stopped.kind == "disk"
        assert "answers came" not in ran.stopped.reason
        assert Counter(ran.sent) == {name: 1 for name, state in ran.states.items() if state == "done"}
        again = go(setting, connect=inline_connection)
        assert (again.stopped, set(again.states.values())) == (None, {"done"})
        assert Counter(ran.sent + again.sent) == dict.fromkeys(names(60), 1)
        assert again.contents.by_model["m"].in_doubt == 0
    assert statement > 30


def test_a_full_disk_at_any_statement_stops_the_run_and_what_was_committed_stays(tmp_path):
    for statement in range(OPENING + 1, 200):
        (tmp_path / str(statement)).mkdir()
        setting = Setting(tmp_path / str(statement), names(60))
        ran = go(setting, connect=failing_disk(statement))
        if ran.stopped is None:
            break
        assert ran.stopped.kind == "disk"
        assert "disk is full" in ran.stopped.reason
        assert ran.clock.now() < 60
        done_before = {name for name, state in ran.states.items() if state == "done"}
        came = sum(isinstance(each.landed, Reply) for each in ran.transport.exchanges)
        lost = came - len(done_before)
        assert (f"; {lost} answers came" in ran.stopped.reason) == (lost > 0)
        again = go(setting, connect=inline_connection)
        assert (again.stopped, set(again.states.values())) == (None, {"done"})
        assert not done_before & set(again.sent)
        # what was answered and could not be written down is in doubt: at most one flight
        assert len(ran.sent) + len(again.sent) <= 60 + 8
        assert again.contents.by_model["m"].in_doubt <= 8
    assert statement > 30


def broken_file(setting, count=1000):
    """Make a compressed job file that ends too soon."""
    setting.names = names(count)
    whole = write_job(setting)
    content = gzip.compress(whole.read_bytes(), 1)
    whole.unlink()
    setting.job_file = "job.jsonl.gz"
    (setting.path / "job.jsonl.gz").write_bytes(content[: len(content) * 3 // 4])


def test_a_file_that_breaks_off_is_run_up_to_there(setting, monkeypatch):
    monkeypatch.setattr("batcher.jobfile._BLOCK_BYTES", 10_000)
    broken_file(setting)
    ran = go(setting)
    assert ran.stopped.kind == "input"
    assert "can't be read on" in ran.stopped.reason
    assert set(ran.states.values()) == {"done"}
    assert len(ran.sent) == len(ran.states) > 256
    assert ran.contents.line_count is None


def test_after_a_broken_file_a_stop_still_stops(setting, monkeypatch):
    monkeypatch.setattr("batcher.jobfile._BLOCK_BYTES", 10_000)
    broken_file(setting)
    ran = go(setting, slots=1, beside=stopping(5))
    assert ran.stopped.kind == "input"
    assert ran.clock.now() < 6


def test_after_a_broken_file_a_used_up_quota_still_stops(setting, monkeypatch):
    monkeypatch.setattr("batcher.jobfile._BLOCK_BYTES", 10_000)
    broken_file(setting)
    ran = go(
        setting,
        answer=lambda claimed, now: (answer if now < 5 else refusal(429, "insufficient_quota"))(claimed, now),
        slots=1,
    )
    assert ran.stopped.kind == "input"
    assert len(ran.transport.exchanges) < 25


def test_an_error_in_the_loop_itself_is_not_swallowed(setting):
    def server(claimed, now):
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as caught:
        go(setting, answer=server)
    assert caught.group_contains(ZeroDivisionError)


# --- the last minute


def test_a_restart_does_not_double_the_minute(setting):
    """The caller seeds the pools; what the journal tells of the last minute is what the server saw."""
    go(setting, names=names(20), rpm=600)
    sent = []

    async def main():
        opening = Opening(path=setting.path / "job.db", base_url=URL)
        journal = await Journal.open(opening, setting.clock, inline_connection)
        sent.extend(await journal.recent(60.25, 0.1))
        await journal.close()

    run(main, setting.clock)
    assert sum(requests for _, _, requests, *_ in sent) == 20
    assert all(at <= setting.clock.now() for _, at, *_ in sent)


def test_lost_attempts_are_never_left_only_if_they_never_left(setting):
    """The word `left` alone decides what may have been billed."""
    setting.answer = script(
        lambda _, now: Lost(False, "reset", "before it left", None, now + 1),
        lambda _, now: Lost(True, "connect", "after it left", now, now + 1),
        answer,
    )
    ran = go(setting, names=["a"])
    assert [row[2] for row in ran.attempts] == ["no", "maybe", "yes"]
