"""The promise: in every window of 60 s, counted where requests are sent, neither limit is exceeded."""

import heapq
from bisect import bisect_right
from itertools import accumulate
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batcher.limits.bucket import Never, Took, Wait
from batcher.limits.pool import Limit, Pool

MINUTE_S = 60.0


class Account:
    """Everything that was ever sent on it, by brute force."""

    def __init__(self):
        self.sent = []

    def worst_minute(self):
        times = [at for at, _ in self.sent]
        assert times == sorted(times)
        tokens = [0, *accumulate(cost for _, cost in self.sent)]
        ends = [bisect_right(times, at + MINUTE_S) for at in times]
        requests = max((end - first for first, end in enumerate(ends)), default=0)
        return requests, max((tokens[end] - tokens[first] for first, end in enumerate(ends)), default=0)

    def last_minute(self, now):
        return [(at, cost) for at, cost in self.sent if at > now - MINUTE_S - 1]


class Process:
    """One process that sends on the account, with the habits that a chance gives it."""

    def __init__(self, account, limit, burst_s, chance, now):
        self.account, self.chance, self.now = account, chance, now
        self.pool = Pool("p", limit, burst_s)
        self.pool.seed(account.last_minute(now))
        self.under_way = []  # (time, order, cost, probe, leaves)
        self.orders = 0
        self.largest = chance.choice([1, 20, 400])
        self.slowest_s = chance.choice([0.0, 0.0, 0.5, 20.0, 90.0])
        self.gives_back = chance.choice([0.0, 0.0, 0.2])
        self.pauses = chance.choice([0.0, 0.0, 0.02])

    def run(self, until):
        while self.now < until:
            self.land()
            if self.chance.random() < self.pauses:
                self.pool.pause(self.now + self.chance.uniform(0, 30), self.now)
            self.admit()

    def admit(self):
        costs = [self.chance.randint(0, self.largest) for _ in range(self.chance.randint(1, 30))]
        fit = self.pool.fit(costs, self.now)
        assert fit != Took(0)
        if isinstance(fit, Took):
            for cost in costs[: fit.count]:
                self.orders += 1
                due = self.now + self.chance.uniform(0, self.slowest_s)
                leaves = self.chance.random() >= self.gives_back
                heapq.heappush(self.under_way, (due, self.orders, cost, fit.probe, leaves))
            self.now += self.chance.choice([0.0, 0.0, 0.001, 0.3, 5.0])
        elif isinstance(fit, Wait) and fit.until is not None:
            assert fit.until > self.now
            self.advance(self.chance.choice([fit.until, fit.until, self.now + 0.7]))
        elif isinstance(fit, Wait):
            assert self.under_way, "it waits for a landing, and nothing is under way"
            self.advance(self.under_way[0][0])
        else:
            assert isinstance(fit, Never)
            assert costs[0] > fit.maximum
            self.now += 0.1

    def advance(self, now):
        self.land(now)
        self.now = max(self.now, now)

    def land(self, now=None):
        now = self.now if now is None else now
        while self.under_way and self.under_way[0][0] <= now:
            at, _, cost, probe, leaves = heapq.heappop(self.under_way)
            if leaves:
                at = max(at, self.now)
                self.pool.sent([cost], at)
                self.account.sent.append((at, cost))
                self.now = at
            else:
                self.pool.give_back([cost])
            if probe:
                self.pool.probed()


limits = st.builds(
    Limit, rpm=st.none() | st.integers(1, 300) | st.integers(1, 5), tpm=st.none() | st.integers(1, 20_000)
)


@settings(max_examples=100)
@given(limits, st.sampled_from([0.0, 0.25, 1.0, 60.0]), st.integers(0, 2**32), st.integers(0, 2))
def test_no_minute_exceeds_either_limit_restarts_included(limit, burst_s, seed, restarts):
    if limit == Limit():
        limit = Limit(rpm=100)
    account, chance, now = Account(), Random(seed), 1000.0
    for _ in range(restarts + 1):
        process = Process(account, limit, burst_s, chance, now)
        process.run(now + chance.uniform(20, 150))
        now = process.now + chance.choice([0.0, 1.0, 20.0])
    requests, tokens = account.worst_minute()
    assert limit.rpm is None or requests <= limit.rpm
    assert limit.tpm is None or tokens <= limit.tpm


@pytest.mark.parametrize(
    ("limit", "cost"),
    [
        pytest.param(Limit(rpm=600), 0, id="600 RPM"),
        pytest.param(Limit(rpm=2400), 0, id="2,400 RPM"),
        pytest.param(Limit(tpm=60_000), 60, id="tokens"),
        pytest.param(Limit(rpm=1500, tpm=60_000), 60, id="both, tokens bind"),
        pytest.param(Limit(rpm=500, tpm=200_000), 100, id="both, requests bind"),
    ],
)
def test_an_hour_uses_95_percent_of_the_limit_and_no_minute_more_than_all_of_it(limit, cost):
    account, now = Account(), 0.0
    pool = Pool("p", limit, 0.25)
    while now < 3600.0:
        fit = pool.fit([cost] * 50, now)
        if isinstance(fit, Wait):
            now = fit.until
            continue
        pool.sent([cost] * fit.count, now)
        account.sent += [(now, cost)] * fit.count
    rates = [limit.rpm or float("inf"), limit.tpm / cost if limit.tpm else float("inf")]
    assert len(account.sent) >= 0.95 * 60 * min(rates)
    requests, tokens = account.worst_minute()
    assert limit.rpm is None or requests <= limit.rpm
    assert limit.tpm is None or tokens <= limit.tpm
