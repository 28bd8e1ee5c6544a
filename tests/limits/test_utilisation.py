"""How much of the limits is used, and whose turn it is: whole hours of virtual time, where both are exact."""

import math
from collections import deque
from random import Random

import pytest

from batcher.limits.bucket import Limit, Took, Wait
from batcher.limits.pool import Pool
from batcher.limits.window import MINUTE_S, SKEW_S, SLOTS
from tests.limits.accounts import Account

HOUR_S = 3600.0
WARM_S = 300.0
BURST_S = 0.25
SLOT_S = MINUTE_S / SLOTS
#: What was sent stands in the window for no longer.
KEPT_S = MINUTE_S + SLOT_S + SKEW_S
TPM = 200_000
GROUP = 64


def constant(size):
    return lambda _: size


def uniform(most):
    return lambda chance: chance.randint(1, most)


def log_uniform(least, most):
    return lambda chance: round(least * (most / least) ** chance.random())


class Line:
    """Requests in line at a pool; whatever goes is sent `delay_s` later. Time is the pool's own."""

    def __init__(self, limit, draw, *, delay_s=0.0, tick_s=0.0):
        self.pool = Pool(limit, BURST_S)
        self.account = Account()
        self.draw, self.chance = draw, Random(7)
        self.delay_s, self.tick_s = delay_s, tick_s
        self.now = 0.0
        self.waiting, self.under_way = deque(), deque()
        #: (when it went, what it costs), in that order.
        self.went = []

    def run(self, until):
        while self.now < until:
            while len(self.waiting) < GROUP:
                self.waiting.append(self.draw(self.chance))
            fit = self.pool.fit(self.waiting, self.now)
            if isinstance(fit, Took):
                for _ in range(fit.count):
                    self.under_way.append((self.now + self.delay_s, self.waiting[0]))
                    self.went.append((self.now, self.waiting.popleft()))
                self.send()
                continue
            at = math.inf if fit.until is None else max(fit.until, self.now + self.tick_s)
            self.now = min(at, self.under_way[0][0] if self.under_way else math.inf)
            self.send()

    def send(self):
        while self.under_way and self.under_way[0][0] <= self.now:
            _, cost = self.under_way.popleft()
            self.pool.sent([cost], self.now)
            self.account.send(cost, self.now)


SMALL = uniform(TPM // 200)
LIMITS = [
    # What is expected is a share of the limit that binds.
    pytest.param(Limit(tpm=TPM), constant(100), 0.99, id="tokens, all of one size"),
    pytest.param(Limit(tpm=TPM), SMALL, 0.99, id="tokens, up to 0.5%"),
    pytest.param(Limit(tpm=TPM), uniform(TPM // 50), 0.98, id="tokens, up to 2%"),
    pytest.param(Limit(tpm=TPM), log_uniform(20, 20_000), 0.93, id="tokens, 20 to 20,000"),
    pytest.param(Limit(rpm=600), SMALL, 0.99, id="600 RPM"),
    pytest.param(Limit(rpm=2_400), SMALL, 0.99, id="2,400 RPM"),
    pytest.param(Limit(rpm=600, tpm=TPM), SMALL, 0.99, id="both, tokens bind"),
    pytest.param(Limit(rpm=250, tpm=TPM), SMALL, 0.99, id="both, requests bind"),
    pytest.param(Limit(rpm=400, tpm=TPM), SMALL, 0.95, id="both, by turns"),
]


def use(line, limit, since):
    """Return the share of the limit that binds which was used."""
    minutes = (line.now - since) / MINUTE_S
    requests, tokens = line.account.used_since(since)
    return max(
        requests / minutes / limit.rpm if limit.rpm else 0.0,
        tokens / minutes / limit.tpm if limit.tpm else 0.0,
    )


@pytest.mark.parametrize(("limit", "draw", "expected"), LIMITS)
def test_an_hour_uses_the_limit_and_no_minute_more_than_all_of_it(limit, draw, expected):
    line = Line(limit, draw)
    line.run(WARM_S + HOUR_S)
    assert use(line, limit, WARM_S) >= expected
    assert line.account.keeps(limit)


@pytest.mark.parametrize(
    ("delay_s", "tick_s"),
    [
        pytest.param(0.003, 0.0, id="a commit in between"),
        pytest.param(0.0, 0.01, id="at the loop's ticks"),
        pytest.param(0.05, 0.01, id="both, and slow"),
    ],
)
@pytest.mark.parametrize(
    ("draw", "expected"), [(SMALL, 0.99), (log_uniform(20, 20_000), 0.93)], ids=["small", "large"]
)
def test_so_it_does_where_admission_is_not_instant(draw, expected, delay_s, tick_s):
    line = Line(limit := Limit(tpm=TPM), draw, delay_s=delay_s, tick_s=tick_s)
    line.run(WARM_S + HOUR_S / 2)
    assert use(line, limit, WARM_S) >= expected
    assert line.account.keeps(limit)


def test_a_day_uses_its_limit_and_no_day_more_than_all_of_it():
    line = Line(limit := Limit(rpm=60, rpd=5_000), constant(1))
    line.run(3 * 86_400.0)
    assert line.account.keeps(limit)
    assert len(line.went) == 3 * 5_000


# --- fairness


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("delay_s", [0.0, 0.05])
def test_a_large_one_among_an_endless_stream_of_small_ones_waits_for_its_own_turn_only(share, delay_s):
    """Where a full window flows evenly, so much leaves it in its share of the time that things are kept.

    Beside that it waits for a slot to end, for the burst by which the others ran ahead, and for what was
    granted before and has not left yet.
    """
    large, small = round(TPM * share), TPM // 1000
    line = Line(Limit(rpm=10 * TPM // small, tpm=TPM), constant(small), delay_s=delay_s)
    for _ in range(4):
        line.run(line.now + 130.0)
        arrived, before = line.now, len(line.went)
        ahead = len(line.waiting)
        line.waiting.append(large)
        line.run(arrived + 2 * KEPT_S)
        order = [cost for _, cost in line.went[before:]]
        place = order.index(large)
        assert place == ahead
        turn_s = (ahead * small + large) / TPM * KEPT_S
        assert line.went[before + place][0] - arrived <= turn_s + SLOT_S + BURST_S + delay_s


def test_in_whatever_order_they_come_they_go():
    """Even where a small one would have room and the large one before it has none."""
    chance, asked = Random(3), []

    def draw(_):
        asked.append(chance.choice([1, 1, 1, 10, 50_000, 150_000]))
        return asked[-1]

    line = Line(limit := Limit(rpm=100, tpm=TPM), draw)
    line.run(1800.0)
    assert [cost for _, cost in line.went] == asked[: len(line.went)]
    assert line.account.keeps(limit)


@pytest.mark.parametrize("large", [TPM // 2, TPM])
def test_no_large_one_waits_longer_than_everything_is_kept(large):
    """However unevenly others went before: when they have left, it goes."""
    line = Line(limit := Limit(tpm=TPM), log_uniform(20, 20_000))
    line.run(300.0)
    for _ in range(20):
        line.waiting.clear()
        line.waiting.append(large)
        arrived, before = line.now, len(line.went)
        line.run(arrived + 61.0)
        assert line.went[before][1] == large
        assert line.went[before][0] - arrived <= KEPT_S
        line.run(line.now + line.chance.uniform(0, 20))
    assert line.account.keeps(limit)


def test_while_the_first_waits_nothing_goes_and_nothing_is_reserved():
    pool, now = Pool(Limit(rpm=100, tpm=1000), 60.0), 0.0
    assert pool.fit([1, 900], now) == Took(2)
    pool.sent([1, 900], now)
    first = pool.fit([200, 1, 1], now)
    assert isinstance(first, Wait)
    for step in range(600):
        assert pool.fit([200, 1, 1], now + step * 0.1) == first
    assert pool.fit([200, 1, 1], first.until) == Took(3)
