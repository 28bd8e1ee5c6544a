from dataclasses import astuple
from itertools import pairwise

import pytest

from batcher.limits.bucket import Limit, Never, Took, Wait
from batcher.limits.growth import EVERY_S, FACTOR
from batcher.limits.pool import LEAST_BURST_S, LOOK_S, SHARED, Pool, pools
from batcher.limits.window import DAY_S
from tests.limits.servers import said

PROBE = 1e-6
AMPLE = Limit(rpm=10**9)


def open_pool():
    """Return a pool whose limit is in nobody's way, and for which nobody has to ask."""
    return Pool(AMPLE, 0.25)


def send(pool, costs, now):
    """Send what goes, and have it answered at once."""
    fit = pool.fit(costs, now)
    assert isinstance(fit, Took)
    pool.sent(costs[: fit.count], now)
    for cost in costs[: fit.count]:
        pool.used(cost, None, now, now)
    if fit.probe:
        pool.probed()
    return fit.count


# --- pauses


def test_a_pause_ends_exactly_when_it_says():
    pool = open_pool()
    pool.pause(10.0, now=0.0)
    assert pool.fit([1, 1], 0.0) == Wait(10.0)
    assert pool.fit([1, 1], 10.0 - PROBE) == Wait(10.0)
    assert pool.fit([1, 1], 10.3) == Took(1, probe=True)


@pytest.mark.parametrize("limit", [Limit(rpm=60), Limit(tpm=6000)])
def test_a_pause_promises_when_the_probe_goes(limit):
    pool = Pool(limit, 0.25)
    pool.pause(10.0, now=0.0)
    promised = pool.fit([1], 0.0).until
    assert pool.fit([1], promised) == Took(1, probe=True)


@pytest.mark.parametrize("limit", [Limit(), Limit(rpm=1), Limit(rpm=60, tpm=600), Limit(rpm=6000)])
def test_after_a_pause_the_probe_goes_within_the_burst(limit):
    pool = Pool(limit, 0.25)
    pool.pause(10.0, now=0.0)
    again = pool.fit([1], 10.0)
    until = again.until if isinstance(again, Wait) else 10.0
    assert until <= 10.25
    if isinstance(again, Wait):
        assert pool.fit([1], until - PROBE) == again
        assert pool.fit([1], until) == Took(1, probe=True)


def test_after_a_pause_one_goes_alone_and_the_others_wait_for_what_becomes_of_it():
    pool = open_pool()
    pool.pause(10.0, now=0.0)
    assert pool.fit([1] * 5, 10.3) == Took(1, probe=True)
    pool.sent([1], 10.3)
    assert pool.fit([1] * 5, 10.3) == Wait(None)
    assert pool.fit([1] * 5, 1000.0) == Wait(None)
    assert pool.binding(1, 1000.0) == "server"
    pool.succeeded()
    pool.probed()
    assert pool.fit([1] * 5, 1000.0) == Took(5)


def test_a_refused_probe_is_followed_by_another():
    pool = open_pool()
    pool.pause(10.0, now=0.0)
    assert pool.fit([1], 10.3) == Took(1, probe=True)
    pool.pause(20.0, now=11.0)
    pool.probed()
    assert pool.fit([1, 1], 12.0) == Wait(20.0)
    assert pool.fit([1, 1], 20.3) == Took(1, probe=True)


def test_a_pause_while_the_probe_is_out_lets_nothing_else_go():
    pool = open_pool()
    pool.pause(10.0, now=0.0)
    assert pool.fit([1], 10.3) == Took(1, probe=True)
    pool.pause(20.0, now=11.0)
    assert pool.fit([1], 25.0) == Wait(None)


def test_there_is_no_probe_where_nothing_waits():
    pool = open_pool()
    pool.pause(10.0, now=0.0)
    assert pool.fit([], 10.3) == Took(0)
    assert pool.fit([1, 1], 10.3) == Took(1, probe=True)


def test_a_probe_reads_one():
    pool, read = open_pool(), []
    pool.pause(1.0, now=0.0)
    assert pool.fit((read.append(number) or 1 for number in range(9)), 1.3) == Took(1, probe=True)
    assert read == [0]


def test_one_that_never_goes_is_no_probe():
    pool = Pool(Limit(tpm=10), 60.0)
    pool.pause(1.0, now=0.0)
    assert pool.fit([11], 2.0) == Never(10)
    now = 70.0
    assert pool.fit([1, 1], now) == Took(1, probe=True)


def test_a_probe_that_never_left_opens_the_pool():
    pool = Pool(Limit(rpm=1), 60.0)
    pool.pause(1.0, now=0.0)
    assert pool.fit([1], 70.0) == Took(1, probe=True)
    pool.give_back([1])
    pool.probed()
    assert pool.fit([1], 70.0) == Took(1)


@pytest.mark.parametrize(
    ("pauses", "holds", "until"),
    [
        # (until, now, sent_at)
        pytest.param([(10.0, 0.0, None)], 1, 10.0, id="one"),
        pytest.param(
            [(10.0, 0.0, None), (12.0, 1.0, None), (11.0, 9.9, None)], 1, 12.0, id="refused in the same hold"
        ),
        pytest.param([(10.0, 0.0, None), (2.0, 1.0, None)], 1, 10.0, id="the longest holds"),
        pytest.param([(10.0, 0.0, None), (30.0, 10.0, None)], 2, 30.0, id="exactly at its end it is another"),
        pytest.param(
            [(10.0, 0.0, None), (30.0, 20.0, None), (70.0, 50.0, None)], 3, 70.0, id="three of the endpoint"
        ),
        pytest.param([(15.0, 5.0, 4.0), (30.0, 20.0, 4.9)], 1, 15.0, id="in flight when it began: the same"),
        pytest.param([(15.0, 5.0, 4.0), (17.0, 6.0, 4.9)], 1, 17.0, id="the same, while it lasts: longer"),
        pytest.param([(15.0, 5.0, 4.0), (30.0, 20.0, 5.0)], 2, 30.0, id="sent when it began: another"),
        pytest.param([(15.0, 5.0, 4.0), (30.0, 20.0, 16.0)], 2, 30.0, id="the probe itself: another"),
        pytest.param(
            [(15.0, 5.0, 4.0), (30.0, 20.0, 16.0), (90.0, 40.0, 19.0), (90.0, 41.0, 4.9)],
            2,
            30.0,
            id="in flight when the second began: the same as that",
        ),
    ],
)
def test_holds_are_counted_once_per_pause(pauses, holds, until):
    pool = open_pool()
    known = 0
    for end, now, sent_at in pauses:
        new = pool.pause(end, now, sent_at)
        assert pool.holds == known + new
        known = pool.holds
    assert pool.holds == holds
    assert pool.fit([1], until - PROBE) == Wait(until)
    assert pool.fit([1], until + 0.25) == Took(1, probe=True)


def test_a_late_refusal_of_the_same_hold_does_not_close_what_has_reopened():
    pool = open_pool()
    pool.pause(10.0, now=5.0, sent_at=4.0)
    assert pool.fit([1], 10.3) == Took(1, probe=True)
    pool.succeeded()
    pool.probed()
    assert not pool.pause(60.0, now=11.0, sent_at=4.9)
    assert pool.holds == 0
    assert pool.fit([1] * 9, 11.0) == Took(9)


def test_a_success_makes_the_next_pause_a_first_one():
    pool = open_pool()
    pool.pause(10.0, now=0.0)
    pool.pause(30.0, now=20.0)
    pool.succeeded()
    assert pool.holds == 0
    pool.pause(60.0, now=40.0)
    assert pool.holds == 1


def test_after_a_pause_the_flow_starts_without_a_burst():
    pool = Pool(Limit(rpm=60), burst_s=5.0)
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
    pool = Pool(Limit(rpm=60), burst_s=1.0)
    assert pool.binding(1, 0.0) is None
    assert pool.fit([1, 1], 0.0) == Took(1)
    assert pool.binding(1, 0.0) == "requests"
    pool.pause(10.0, now=0.0)
    assert pool.binding(1, 0.0) == "server"


# --- endings


def test_a_reservation_given_back_is_as_if_it_never_was():
    pool = Pool(Limit(rpm=1, tpm=10), burst_s=60.0)
    assert pool.fit([10], 0.0) == Took(1)
    assert pool.fit([10], 0.0) == Wait(None)
    pool.give_back([10])
    assert pool.fit([10], 0.0) == Took(1)


@pytest.mark.parametrize("counts", ["reserved", "actual"])
def test_what_was_dropped_counts_all_the_same(counts):
    pool = Pool(Limit(rpm=1, tpm=10), 60.0, counts)
    assert pool.fit([10], 0.0) == Took(1)
    pool.sent([10], 0.0)
    pool.dropped()
    assert pool.fit([1], 1.0) == Wait(pytest.approx(60.35))


@pytest.mark.parametrize(
    ("counts", "actual", "left"),
    [
        pytest.param("reserved", 30, 20, id="reserved: what was used does not matter"),
        pytest.param("actual", 30, 70, id="actual: the difference is there again"),
        pytest.param("actual", None, 20, id="not known: it was what it reserved"),
        pytest.param("actual", 80, 20, id="as reserved"),
        pytest.param("actual", 95, 5, id="more than reserved"),
        pytest.param("actual", 1, 99, id="hardly anything"),
    ],
)
def test_what_was_used_counts_as_the_server_counts(counts, actual, left):
    pool = Pool(Limit(tpm=100), 60.0, counts)
    assert pool.fit([80], 0.0) == Took(1)
    pool.sent([80], 0.0)
    pool.used(80, actual, sent_at=0.0, now=5.0)
    assert isinstance(pool.fit([left + 1], 15.0), Wait)
    assert pool.fit([left], 15.0) == Took(1)


# --- limits that nobody gave


def test_without_a_limit_one_goes_first():
    pool = Pool(Limit(), 0.25)
    assert pool.fit([1] * 5, 0.0) == Took(1, probe=True)
    assert pool.is_looking
    assert isinstance(pool.fit([1] * 4, 1.0), Wait)
    assert pool.binding(1, 1.0) == "server"
    pool.sent([1], 1.0)
    assert isinstance(pool.fit([1] * 4, 2.0), Wait)
    pool.used(1, None, 1.0, 2.0)
    pool.probed()
    assert not pool.is_looking
    assert pool.fit([1] * 4, 2.0) == Took(4)


def test_the_first_one_is_not_waited_for_for_ever():
    pool = Pool(Limit(), 0.25)
    assert pool.fit([1], 100.0) == Took(1, probe=True)
    assert pool.fit([1], 101.0) == Wait(100.0 + LOOK_S)
    assert pool.fit([1], 100.0 + LOOK_S - PROBE) == Wait(100.0 + LOOK_S)
    assert pool.fit([1] * 9, 100.0 + LOOK_S) == Took(9)
    assert pool.binding(1, 100.0 + LOOK_S) is None


def test_a_pause_while_the_first_one_is_out_is_a_pause_like_any():
    pool = Pool(Limit(), 0.25)
    assert pool.fit([1], 0.0) == Took(1, probe=True)
    assert pool.fit([1] * 2, LOOK_S) == Took(2)
    pool.pause(50.0, now=6.0, sent_at=5.0)
    assert not pool.is_looking
    assert pool.fit([1] * 2, 49.0) == Wait(50.0)
    assert pool.fit([1] * 2, 50.0) == Took(1, probe=True)
    assert pool.fit([1] * 2, 1000.0) == Wait(None)


@pytest.mark.parametrize("limit", [Limit(rpm=600), Limit(tpm=1000), Limit(rpd=10), Limit(tpd=1000)])
def test_with_one_there_is_nothing_to_ask(limit):
    assert Pool(limit, 60.0).fit([1] * 3, 0.0) == Took(3)


@pytest.mark.parametrize(
    ("given", "headers", "kept"),
    [
        pytest.param(Limit(), [], Limit(), id="nothing said"),
        pytest.param(Limit(), said(500, 499, b"120ms"), Limit(rpm=500), id="learned"),
        pytest.param(Limit(), said(10_000, 9_999, b"8.64s"), Limit(rpd=10_000), id="a limit of a day"),
        pytest.param(
            Limit(),
            said(500, 499, b"120ms") + said(30_000, 29_000, b"2s", b"tokens"),
            Limit(rpm=500, tpm=30_000),
            id="both",
        ),
        pytest.param(Limit(rpm=60), said(500, 499, b"120ms"), Limit(rpm=60), id="given: it wins"),
        pytest.param(Limit(rpm=900), said(500, 499, b"120ms"), Limit(rpm=900), id="given: also if more"),
        pytest.param(Limit(tpm=9), said(500, 499, b"120ms"), Limit(rpm=500, tpm=9), id="the other is given"),
        pytest.param(Limit(), said(0, 0, b"0s"), Limit(), id="Azure's 0"),
        pytest.param(Limit(), said(-1, -1, b"0s"), Limit(), id="Azure's -1"),
    ],
)
def test_what_the_server_says_is_kept_where_nothing_was_given(given, headers, kept):
    pool = Pool(given, 0.25)
    pool.fit([1], 0.0)
    pool.sent([1], 0.0)
    assert pool.hear("m", headers, 0.0, refused=False) == (kept != given)
    assert pool.limit == kept
    both = zip(astuple(kept), astuple(given), astuple(pool.announced), strict=True)
    assert all(announced == (mine if wanted is None else None) for mine, wanted, announced in both)
    assert not pool.hear("m", headers, 0.0, refused=False)


def test_a_limit_that_was_learned_is_kept_like_one_that_was_given():
    pool = Pool(Limit(), 60.0)
    assert send(pool, [1] * 5, 100.0) == 1
    pool.hear("m", said(3, 2, b"20s"), 100.0, refused=False)
    # Of what it says, one takes hold first, to hear how things stand.
    assert pool.fit([1] * 9, 150.0) == Took(1)
    pool.sent([1], 150.0)
    assert pool.fit([1] * 9, 150.0) == Took(1)
    pool.sent([1], 150.0)
    assert pool.fit([1] * 9, 150.0) == Wait(pytest.approx(160.35))
    assert pool.fit([1] * 9, 160.36) == Took(1)


def test_the_tightest_of_the_models_in_a_pool_binds_it():
    pool = Pool(Limit(), 0.25)
    send(pool, [1], 0.0)
    assert pool.hear("large", said(500, 499, b"120ms"), 0.0, refused=False)
    assert pool.hear("small", said(200, 199, b"300ms"), 0.0, refused=False)
    assert not pool.hear("large", said(500, 498, b"240ms"), 0.0, refused=False)
    assert pool.limit == Limit(rpm=200)


def test_a_limit_that_changes_is_news():
    pool = Pool(Limit(), 0.25)
    send(pool, [1], 0.0)
    assert pool.hear("m", said(500, 499, b"120ms"), 0.0, refused=False)
    assert pool.hear("m", said(1000, 999, b"60ms"), 0.0, refused=False)
    assert pool.limit == Limit(rpm=1000)


@pytest.mark.parametrize("ending", ["sent", "given back"])
def test_a_limit_of_a_day_that_is_learned_counts_what_is_on_its_way(ending):
    pool = Pool(Limit(rpm=600), 60.0)
    assert pool.fit([1] * 6, 0.0) == Took(6)
    pool.sent([1], 0.0)
    pool.hear("m", said(10, 9, b"2h24m"), 0.0, refused=False)
    if ending == "sent":
        pool.sent([1] * 5, 1.0)
    else:
        pool.give_back([1] * 5)
    assert pool.fit([1] * 50, 2.0).count <= (5 if ending == "sent" else 10)


def test_a_first_word_that_misleads_leaves_nothing_behind():
    """As from a fixed window: 43 s before its end it looks like one of a day."""
    pool, limit = Pool(Limit(), 0.25), 10_000
    send(pool, [1], 0.0)
    pool.hear("m", said(limit, limit - 5, b"43s"), 0.0, refused=False)
    assert pool.limit == Limit(rpd=limit)
    assert send(pool, [1], 0.0) == 1
    pool.ended(-1)  # one is always on its way
    for number in range(1, 20):
        now = number * 0.1
        assert send(pool, [1] * 10, now) == 10
        pool.hear(
            "m", said(limit, limit - 100 * number, b"%dms" % (43_000 - 100 * number)), now, refused=False
        )
    assert pool.limit == Limit(rpm=limit)
    sent, now = 0, 60.0
    while now < 300.0:
        fit = pool.fit([1] * 100, now)
        if isinstance(fit, Took):
            pool.sent([1] * fit.count, now)
            pool.ended(fit.count)
            pool.hear("m", said(limit, limit, b"0s"), now, refused=False)
            sent += fit.count
        now += 0.1
    assert sent > 0.9 * 4 * limit


def test_a_token_limit_that_is_smaller_than_what_was_served_is_forgotten():
    pool = Pool(Limit(tpm=500_000), 0.25)
    assert send(pool, [20], 0.0) == 1
    small = said(1000, 1000, b"0s", b"tokens")
    pool.hear("m", small, 0.0, refused=False, served=20)
    later = pool.fit([3000], 1.0).until
    assert send(pool, [3000], later) == 1
    pool.hear("m", small, later, refused=False, served=3000)
    assert send(pool, [3000], later + 1.0) == 1


def test_it_says_whose_a_limit_is():
    pool = Pool(Limit(tpm=500, rpd=5), 0.25)
    assert pool.whose(pool.fit([501], 0.0)) == "the limit"
    assert pool.whose(Never(9, "day")) == "the limit that the server announces"


def test_what_earlier_processes_sent_brings_no_word():
    """Where nothing says how things stand, what remained fills up again evenly."""
    pool = Pool(Limit(rpm=600), 60.0)
    pool.seed(0.0, 100, 100)
    assert send(pool, [1], 10.0) == 1
    pool.hear("m", said(600, 0, b"1s"), 10.0, refused=False)
    assert isinstance(pool.fit([1], 10.0), Wait)
    assert pool.fit([1], 11.0) == Took(1)


# --- slow_down


def test_after_a_slow_down_the_tokens_grow_by_half_in_15_minutes_at_the_most():
    tpm = 6_000_000
    pool, now = Pool(Limit(tpm=tpm), 0.25), 0.0
    cost, minutes = 20_000, []
    slowed_at = 180.0
    while now < slowed_at:
        now = _send_or_wait(pool, cost, now)[1]
    before = pool.tokens_in_a_minute
    assert before >= 0.98 * tpm
    pool.slow_down(now)
    end = now + 1800.0
    while now < end:
        minute_ends, sent = now + 60.0, 0
        while now < minute_ends:
            tokens, now = _send_or_wait(pool, cost, now)
            sent += tokens
        grown = before / FACTOR * FACTOR ** ((now - slowed_at) / EVERY_S)
        assert sent <= min(grown, tpm) * (1 + 0.25 / 60) + cost
        minutes.append(sent)
    assert minutes[1] >= 0.97 * before / FACTOR
    assert minutes[14] >= 0.97 * before
    assert minutes[-1] >= 0.97 * tpm


def _send_or_wait(pool, cost, now):
    fit = pool.fit([cost] * 100, now)
    if isinstance(fit, Wait):
        return 0, fit.until
    pool.sent([cost] * fit.count, now)
    return cost * fit.count, now


def test_a_slow_down_is_over_when_it_has_grown_to_the_limit():
    pool = Pool(Limit(tpm=1_200_000), 0.25)
    send(pool, [10_000], 0.0)
    pool.slow_down(0.0)
    assert pool.fit([], EVERY_S * 0.4) == Took(0)
    assert pool.slow_to(1e9) is False
    assert pool.fit([10_000] * 3, EVERY_S) == Took(1)


def test_a_slow_down_keeps_to_its_rate_when_a_limit_is_learned():
    pool = Pool(Limit(tpm=10**9), 0.0)
    send(pool, [100_000], 0.0)
    pool.slow_down(10.0)
    pool.hear("m", said(500, 499, b"120ms"), 0.0, refused=False)
    assert pool.fit([100_000], 10.0) == Took(1)
    until = pool.fit([1], 10.0).until
    assert until == pytest.approx(10.0 + 100_000 / (1_000_000 / 60), rel=1e-3)


# --- the pools of a job


def test_each_model_with_a_limit_has_a_pool_of_its_own():
    made = pools(Limit(rpm=60), {"big": Limit(tpm=5)}, 1.0)
    assert set(made) == {SHARED, "big"}
    assert made[SHARED].fit([9, 9], 0.0) == Took(1)
    assert made["big"].fit([9], 0.0) == Never(5)


def test_no_model_can_have_the_name_of_the_shared_one():
    made = pools(Limit(rpm=60), {"shared": Limit(tpm=5)}, 1.0)
    assert made[SHARED].fit([9], 0.0) == Took(1)
    assert made["shared"].fit([9], 0.0) == Never(5)


def test_a_pool_without_a_limit_asks_beside_one_with():
    made = pools(Limit(), {"big": Limit(tpm=5)}, 1.0)
    assert made[SHARED].fit([1, 1], 0.0) == Took(1, probe=True)
    assert made["big"].fit([1], 0.0) == Took(1)


def test_no_burst_is_smaller_than_what_groups_need():
    made = pools(Limit(rpm=6000), {}, 0.0)
    assert made[SHARED].fit([1] * 99, 0.0) == Took(round(LEAST_BURST_S * 100))


@pytest.mark.parametrize("counts", ["reserved", "actual"])
def test_all_of_them_count_as_the_server_does(counts):
    made = pools(Limit(tpm=100), {"m": Limit(tpm=100)}, 60.0, counts)
    for pool in made.values():
        send(pool, [100], 0.0)
        pool.used(100, 10, 0.0, 1.0)
        fit = pool.fit([50], 61.0 if counts == "reserved" else 30.0)
        assert fit == Took(1)


def test_what_earlier_processes_sent_within_a_day_counts():
    pool = Pool(Limit(rpd=100), 60.0)
    pool.seed(100.0, 60, 600, DAY_S)
    pool.seed(50_000.0, 40, 400, DAY_S)
    assert pool.fit([1], 60_000.0) == Wait(pytest.approx(86_500, abs=150))
