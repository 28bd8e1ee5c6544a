from itertools import pairwise

import pytest

from batcher.limits.bucket import Never, Took, Wait
from batcher.limits.pool import SHARED, Limit, Pool, pools

PROBE = 1e-6


def open_pool():
    return Pool("p", Limit(), 0.25)


def test_a_pause_ends_exactly_when_it_says():
    pool = open_pool()
    pool.pause(10.0, now=0.0)
    assert pool.fit([1, 1], 0.0) == Wait(10.0)
    assert pool.fit([1, 1], 10.0 - PROBE) == Wait(10.0)
    assert pool.fit([1, 1], 10.0) == Took(1, probe=True)


def test_after_a_pause_one_goes_alone_and_the_others_wait_for_what_becomes_of_it():
    pool = open_pool()
    pool.pause(10.0, now=0.0)
    assert pool.fit([1] * 5, 10.0) == Took(1, probe=True)
    pool.sent([1], 10.0)
    assert pool.fit([1] * 5, 10.0) == Wait(None)
    assert pool.fit([1] * 5, 1000.0) == Wait(None)
    assert pool.binding(1, 1000.0) == "server"
    pool.succeeded()
    pool.probed()
    assert pool.fit([1] * 5, 1000.0) == Took(5)


def test_a_refused_probe_is_followed_by_another():
    pool = open_pool()
    pool.pause(10.0, now=0.0)
    assert pool.fit([1], 10.0) == Took(1, probe=True)
    pool.pause(20.0, now=11.0)
    pool.probed()
    assert pool.fit([1, 1], 12.0) == Wait(20.0)
    assert pool.fit([1, 1], 20.0) == Took(1, probe=True)


def test_a_pause_while_the_probe_is_out_lets_nothing_else_go():
    pool = open_pool()
    pool.pause(10.0, now=0.0)
    assert pool.fit([1], 10.0) == Took(1, probe=True)
    pool.pause(20.0, now=11.0)
    assert pool.fit([1], 25.0) == Wait(None)


def test_there_is_no_probe_where_nothing_waits():
    pool = open_pool()
    pool.pause(10.0, now=0.0)
    assert pool.fit([], 10.0) == Took(0)
    assert pool.fit([1, 1], 10.0) == Took(1, probe=True)


def test_a_probe_reads_one():
    pool, read = open_pool(), []
    pool.pause(1.0, now=0.0)
    assert pool.fit((read.append(number) or 1 for number in range(9)), 1.0) == Took(1, probe=True)
    assert read == [0]


def test_one_that_never_goes_is_no_probe():
    pool = Pool("p", Limit(tpm=10), 60.0)
    pool.pause(1.0, now=0.0)
    assert pool.fit([11], 2.0) == Never(10)
    now = 70.0
    assert pool.fit([1, 1], now) == Took(1, probe=True)


@pytest.mark.parametrize(
    ("pauses", "holds", "until"),
    [
        # (until, now)
        pytest.param([(10.0, 0.0)], 1, 10.0, id="one"),
        pytest.param([(10.0, 0.0), (12.0, 1.0), (11.0, 9.9)], 1, 12.0, id="refused in the same hold"),
        pytest.param([(10.0, 0.0), (2.0, 1.0)], 1, 10.0, id="the longest holds"),
        pytest.param([(10.0, 0.0), (30.0, 10.0)], 2, 30.0, id="exactly at its end it is another"),
        pytest.param([(10.0, 0.0), (30.0, 20.0), (70.0, 50.0)], 3, 70.0, id="three"),
    ],
)
def test_holds_are_counted_once_per_pause(pauses, holds, until):
    pool = open_pool()
    for end, now in pauses:
        pool.pause(end, now)
    assert pool.holds == holds
    assert pool.fit([1], until - PROBE) == Wait(until)
    assert pool.fit([1], until) == Took(1, probe=True)


def test_a_success_makes_the_next_pause_a_first_one():
    pool = open_pool()
    pool.pause(10.0, now=0.0)
    pool.pause(30.0, now=20.0)
    pool.succeeded()
    assert pool.holds == 0
    pool.pause(60.0, now=40.0)
    assert pool.holds == 1


def test_after_a_pause_the_flow_starts_without_a_burst():
    pool = Pool("p", Limit(rpm=60), burst_s=5.0)
    pool.pause(100.0, now=0.0)
    now, sent = 100.0, []
    while len(sent) < 6:
        fit = pool.fit([1] * 10, now)
        if isinstance(fit, Wait):
            now = fit.until
            continue
        pool.sent([1] * fit.count, now)
        sent += [now] * fit.count
        if fit.probe:
            pool.probed()
    assert 100.0 <= sent[0] <= 105.0
    assert [b - a for a, b in pairwise(sent)] == pytest.approx([1.0] * 5)


def test_binding_names_the_server_during_a_pause_and_then_the_limit():
    pool = Pool("p", Limit(rpm=60), burst_s=1.0)
    assert pool.binding(1, 0.0) is None
    assert pool.fit([1, 1], 0.0) == Took(1)
    assert pool.binding(1, 0.0) == "requests"
    pool.pause(10.0, now=0.0)
    assert pool.binding(1, 0.0) == "server"


def test_a_reservation_given_back_is_as_if_it_never_was():
    pool = Pool("p", Limit(rpm=1, tpm=10), burst_s=60.0)
    assert pool.fit([10], 0.0) == Took(1)
    assert pool.fit([10], 0.0) == Wait(None)
    pool.give_back([10])
    assert pool.fit([10], 0.0) == Took(1)


def test_each_model_with_a_limit_has_a_pool_of_its_own():
    made = pools(Limit(rpm=60), {"big": Limit(tpm=5)}, 1.0)
    assert {name: pool.name for name, pool in made.items()} == {SHARED: SHARED, "big": "big"}
    assert made[SHARED].fit([9, 9], 0.0) == Took(1)
    assert made["big"].fit([9], 0.0) == Never(5)
