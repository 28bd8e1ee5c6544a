"""The promise: in every window of 60 s, counted where requests are sent, neither limit is exceeded.

Nor in any of 24 hours, where there is a limit of a day; whatever becomes of what was granted, whatever the
clock does, the first minute and restarts included.
"""

import heapq
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batcher.limits.bucket import Limit, Never, Took, Wait
from batcher.limits.pool import Pool
from batcher.limits.window import DAY_S, MINUTE_S, SKEW_S, SLOTS
from tests.limits.accounts import Account


def journal(sent, now, period_s):
    """Return what a journal remembers of (time, tokens): sums by slot, in order."""
    slots = {}
    for at, tokens in sorted(sent):
        if at >= now - period_s - SKEW_S:
            _, requests, so_far = slots.get(int(at // (period_s / SLOTS)), (at, 0, 0))
            slots[int(at // (period_s / SLOTS))] = (at, requests + 1, so_far + tokens)
    return sorted(slots.values())


class Process:
    """One process that sends on the account, with the habits that a chance gives it.

    Its clock shows 0 at `origin` of the account's time. Events are (time, order, what, ...).
    """

    def __init__(self, account, recorded, limit, burst_s, chance, now):
        choice = chance.choice
        self.account, self.chance = account, chance
        self.origin = choice([0.0, 0.0, now, now - 500.0])
        self.now = now - self.origin
        self.counts = choice(["reserved", "actual"])
        self.pool = Pool(limit, burst_s, self.counts)
        for period_s in (MINUTE_S, DAY_S):
            for at, requests, tokens in journal(recorded, now, period_s):
                self.pool.seed(at - self.origin, requests, tokens, period_s)
        #: What it has written down: (time sent, tokens) as the account counts time.
        self.recorded = recorded
        self.events, self.orders = [], 0
        self.held = 0
        self.largest = choice([1, 20, 400])
        self.slowest_s = choice([0.0, 0.0, 0.5, 20.0, 90.0])
        self.answers_in_s = choice([0.1, 30.0, 100.0])
        self.gives_back = choice([0.0, 0.0, 0.2])
        self.drops = choice([0.0, 0.1])
        self.pauses = choice([0.0, 0.0, 0.02])
        self.sleeps = choice([0.0, 0.01])
        self.goes_back = choice([0.0, 0.01])

    def run(self, seconds, steps):
        end = self.now + seconds
        while self.now < end and steps > 0:
            steps -= 1
            self.pass_to(self.now)
            if self.chance.random() < self.pauses:
                sent_at = self.chance.choice([None, self.now - self.chance.uniform(0, 20)])
                self.pool.pause(self.now + self.chance.uniform(0, 30), self.now, sent_at)
            if self.chance.random() < self.sleeps:
                self.now += self.chance.choice([3.0, 45.0, 3000.0])
            if self.chance.random() < self.goes_back:
                lost_s = self.chance.choice([0.01, 0.3, 20.0])
                self.now, self.origin = self.now - lost_s, self.origin + lost_s
            self.admit()

    def admit(self):
        costs = [self.chance.randint(0, self.largest) for _ in range(self.chance.randint(1, 30))]
        fit = self.pool.fit(costs, self.now)
        assert fit != Took(0)
        if isinstance(fit, Took):
            self.held += fit.count
            for cost in costs[: fit.count]:
                self.expect(self.chance.uniform(0, self.slowest_s), self.leave, cost, fit.probe)
            self.now += self.chance.choice([0.0, 0.0, 0.001, 0.3, 5.0])
        elif isinstance(fit, Wait) and fit.until is not None:
            assert fit.until > self.now
            self.pass_to(self.chance.choice([fit.until, fit.until, self.now + 0.7]))
        elif isinstance(fit, Wait):
            assert self.events, "it waits for a landing, and nothing is under way"
            self.pass_to(max(self.events[0][0], self.now))
        else:
            assert isinstance(fit, Never)
            assert costs[0] > fit.maximum
            self.now += 0.1

    def expect(self, in_s, what, *args):
        self.orders += 1
        heapq.heappush(self.events, (self.now + in_s, self.orders, what, args))

    def pass_to(self, now):
        while self.events and self.events[0][0] <= now:
            at, _, what, args = heapq.heappop(self.events)
            self.now = max(self.now, at)
            what(*args)
        self.now = max(self.now, now)

    def leave(self, cost, probe):
        self.held -= 1
        if self.chance.random() < self.gives_back:
            self.pool.give_back([cost])
            if probe:
                self.pool.probed()
            return
        self.pool.sent([cost], self.now)
        self.recorded.append((self.now + self.origin, cost))
        entry = self.account.send(cost, self.now + self.origin)
        self.expect(self.chance.uniform(0, self.answers_in_s), self.land, entry, self.now, probe)

    def land(self, entry, sent_at, probe):
        reserved = entry.tokens
        if self.chance.random() < self.drops:
            self.pool.dropped()
        else:
            actual = self.chance.choice([None, reserved, self.chance.randint(0, reserved)])
            self.pool.used(reserved, actual, sent_at, self.now)
            if self.counts == "actual" and actual is not None:
                self.account.settle(entry, actual)
        if probe:
            self.pool.probed()

    def crash(self):
        """End; some of what it had in flight left just now, and nothing says which."""
        now = self.now + self.origin
        for _, _, what, args in self.events:
            if what == self.leave:
                cost = args[0]
                self.recorded.append((now, cost))
                if self.chance.random() < 0.7:
                    self.account.send(cost, now)
        return now


REQUESTS = st.none() | st.integers(1, 300) | st.integers(1, 5)
TOKENS = st.none() | st.integers(1, 20_000)
A_MINUTE = st.builds(Limit, rpm=REQUESTS, tpm=TOKENS)
A_DAY = st.builds(
    Limit, rpm=REQUESTS, tpm=TOKENS, rpd=st.integers(1, 500), tpd=st.none() | st.integers(1, 50_000)
)
BURST_S = st.sampled_from([0.0, 0.25, 1.0, 60.0])


def runs(limit, burst_s, chance, restarts, seconds):
    account, recorded, now = Account(), [], 1000.0
    for _ in range(restarts + 1):
        process = Process(account, recorded, limit, burst_s, chance, now)
        process.run(chance.uniform(*seconds), steps=400)
        now = process.crash() + chance.choice([0.0, 1.0, 20.0])
    return account


@settings(max_examples=100)
@given(A_MINUTE, BURST_S, st.integers(0, 2**32), st.integers(0, 2))
def test_no_minute_exceeds_either_limit(limit, burst_s, seed, restarts):
    if limit == Limit():
        limit = Limit(rpm=100)
    assert runs(limit, burst_s, Random(seed), restarts, (20, 150)).keeps(limit)


@settings(max_examples=40)
@given(A_DAY, BURST_S, st.integers(0, 2**32), st.integers(0, 2))
def test_no_day_exceeds_either_limit(limit, burst_s, seed, restarts):
    assert runs(limit, burst_s, Random(seed), restarts, (1000, 300_000)).keeps(limit)


def test_a_stalled_commit_between_grant_and_send_does_not_break_it():
    pool, account = Pool(limit := Limit(rpm=100), 60.0), Account()
    now = 0.0
    for stall_s in (0.0, 59.0, 61.0, 200.0, 0.0):
        fit = pool.fit([0] * 1000, now)
        if isinstance(fit, Wait):
            now = fit.until
            fit = pool.fit([0] * 1000, now)
        assert pool.fit([0], now + stall_s) == Wait(None)
        now += stall_s
        for _ in range(fit.count):
            pool.sent([0], now)
            account.send(0, now)
    assert account.keeps(limit)
    assert account.minute.worst == (100, 0)


@pytest.mark.parametrize("asleep_s", [1.0, 59.0, 60.1, 61.0, 86_400.0])
def test_a_machine_that_sleeps_between_grant_and_send_does_not_break_it(asleep_s):
    pool, account = Pool(limit := Limit(rpm=10, tpm=100), 60.0), Account()
    assert pool.fit([10] * 20, 100.0) == Took(10)
    now = 100.0 + asleep_s
    for _ in range(10):
        pool.sent([10], now)
        account.send(10, now)
    while now < 400.0 + asleep_s:
        fit = pool.fit([10] * 20, now)
        if isinstance(fit, Wait):
            now = fit.until
            continue
        pool.sent([10] * fit.count, now)
        for _ in range(fit.count):
            account.send(10, now)
    assert account.keeps(limit)
    assert account.minute.worst == (10, 100)


def test_requests_that_take_longer_to_arrive_than_those_of_the_next_minute_do_not_break_it():
    pool, now, arrived, sent = Pool(limit := Limit(rpm=5), 60.0), 0.0, Account(), 0
    for late_s in (SKEW_S, 0.0) * 5:
        while isinstance(fit := pool.fit([0] * 9, now), Wait):
            now = fit.until
        pool.sent([0] * fit.count, now)
        sent += fit.count
        for _ in range(fit.count):
            arrived.send(0, now + late_s)
    assert sent == 50
    assert arrived.keeps(limit)
