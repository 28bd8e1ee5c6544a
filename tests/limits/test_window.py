import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from batcher.limits.window import DAY_S, MINUTE_S, SKEW_S, SLOTS, Window

PROBE = 1e-6
SLOT_S = MINUTE_S / SLOTS
NOTHING = (0, 0)


def send(window, requests, tokens, now):
    window.take(requests, tokens)
    window.sent(requests, tokens, now)


@pytest.mark.parametrize("period_s", [MINUTE_S, DAY_S], ids=["a minute", "a day"])
def test_what_was_sent_counts_for_the_period_and_no_longer_than_a_slot_and_a_skew_more(period_s):
    window = Window(10, 1000, period_s)
    send(window, 10, 1000, 5.03)
    until, by_tokens = window.earliest(1, 1, 5.03)
    assert until == by_tokens == window.leaves
    assert 5.03 + period_s + SKEW_S <= until <= 5.03 + period_s + SKEW_S + period_s / SLOTS
    assert window.earliest(1, 1, until - PROBE) == (until, until)
    assert window.earliest(1, 1, until) == (until, until)
    assert (window.requests, window.tokens) == NOTHING


def test_a_minute_begins_when_it_is_sent_not_when_it_is_granted():
    window = Window(1, 1)
    window.take(1, 1)
    assert window.earliest(1, 1, 0.0) == (math.inf, math.inf)
    assert window.earliest(1, 1, 500.0) == (math.inf, math.inf)
    window.sent(1, 1, 500.0)
    assert min(window.earliest(1, 1, 500.0)) >= 560.0


def test_what_is_sent_is_held_no_longer():
    window = Window(1, 1)
    window.take(1, 1)
    window.sent(1, 1, 0.0)
    assert (window.requests, window.tokens) == (1, 1)
    assert window.earliest(1, 1, 100.0) == (100.0, 100.0)


def test_each_of_the_two_has_its_own_time():
    window = Window(2, 100)
    send(window, 1, 10, 0.0)
    send(window, 1, 90, 20.0)
    assert window.earliest(1, 10, 30.0) == pytest.approx((60.35, 60.35))
    assert window.earliest(1, 11, 30.0) == pytest.approx((60.35, 80.35))
    assert window.earliest(2, 0, 30.0) == (pytest.approx(80.35), 30.0)
    assert window.earliest(0, 1, 30.0) == (30.0, pytest.approx(60.35))


@pytest.mark.parametrize(
    ("cost", "slots_that_must_leave"), [(1, 0), (4, 0), (5, 1), (6, 1), (7, 2), (9, 2), (10, 3)]
)
def test_as_many_slots_leave_as_the_cost_needs(cost, slots_that_must_leave):
    window = Window(max_tokens=10)  # 6 of 10 are used: 2, 3 and 1
    for at, amount in ((0.05, 2), (10.05, 3), (20.05, 1)):
        send(window, 1, amount, at)
    leaves = [30.0, *(at + SLOT_S / 2 + MINUTE_S + SKEW_S for at in (0.05, 10.05, 20.05))]
    assert window.earliest(1, cost, 30.0) == (30.0, pytest.approx(leaves[slots_that_must_leave]))


@pytest.mark.parametrize(
    ("amount", "leave_at"), [(1, 60.35), (2, 60.35), (3, 70.35), (3.5, 80.35), (4, 80.35), (5, math.inf)]
)
def test_when_so_much_will_have_left(amount, leave_at):
    window = Window()
    for at, requests in ((0.0, 2), (10.0, 1), (20.0, 1)):
        send(window, requests, requests * 10, at)
    window.take(9, 90)  # what is held has no time
    assert window.requests_freed(amount) == pytest.approx(leave_at)
    assert window.tokens_freed(amount * 10) == pytest.approx(leave_at)


def test_what_is_given_back_leaves_at_once():
    window = Window(1, 5)
    window.take(1, 5)
    window.give_back(1, 5)
    assert window.earliest(1, 5, 0.0) == (0.0, 0.0)
    assert window.granted() == NOTHING


def test_what_was_granted_is_all_that_was_ever_sent_or_is_held():
    window = Window()
    send(window, 2, 20, 0.0)
    window.take(3, 30)
    window.roll(100.0)
    assert (window.requests, window.counted()) == (3, NOTHING)
    assert window.granted() == (5, 50)
    window.give_back(1, 10)
    window.sent(2, 20, 100.0)
    assert window.counted() == (2, 20)
    assert window.granted() == (4, 40)


def test_without_a_limit_it_counts_for_the_one_that_may_be_learned():
    window = Window()
    send(window, 5, 500, 0.0)
    assert window.earliest(10**9, 10**9, 0.0) == (0.0, 0.0)
    window.max_requests, window.max_tokens = 5, 600
    assert window.earliest(1, 100, 0.0) == (pytest.approx(60.35), 0.0)


def test_a_lower_limit_than_what_was_sent_waits_until_enough_has_left():
    window = Window(10)
    send(window, 6, 0, 0.0)
    send(window, 4, 0, 10.0)
    window.max_requests = 4
    assert window.earliest(1, 0, 20.0)[0] == pytest.approx(70.35)


# --- an earlier process


def test_what_an_earlier_process_sent_counts():
    window = Window(10, 100)
    window.seed(4, 40, 70.0)
    window.seed(6, 60, 90.0)
    assert window.earliest(1, 1, 100.0) == pytest.approx((130.35, 130.35))
    assert window.earliest(5, 50, 100.0) == pytest.approx((150.35, 150.35))


@pytest.mark.parametrize(
    ("period_s", "at", "leaves"), [(MINUTE_S, -30.0, 30.35), (DAY_S, -72_000.0, 14_544.25)]
)
def test_an_earlier_process_may_have_sent_before_the_clock_began(period_s, at, leaves):
    window = Window(1, period_s=period_s)
    window.seed(1, 0, at)
    assert window.earliest(1, 0, 0.0)[0] == pytest.approx(leaves)


def test_more_than_the_limit_may_have_been_sent_before():
    window = Window(10)
    window.seed(100, 0, 70.0)
    window.seed(3, 0, 90.0)
    assert window.earliest(1, 0, 100.0)[0] == pytest.approx(130.35)
    assert window.earliest(8, 0, 100.0)[0] == pytest.approx(150.35)


def test_a_seed_out_of_order_leaves_late_rather_than_early():
    window = Window(1)
    window.seed(1, 0, 10.0)
    window.seed(1, 0, 5.0)
    assert window.earliest(1, 0, 11.0)[0] >= 70.0


# --- the clock


def test_on_a_clock_that_went_back_it_counts_from_the_latest_time():
    window = Window(2)
    window.take(2, 0)
    window.sent(1, 0, 100.0)
    window.sent(1, 0, 70.0)
    assert window.earliest(1, 0, 131.0)[0] >= 160.0
    assert window.earliest(2, 0, 131.0)[0] == pytest.approx(160.35)


def test_on_a_clock_that_went_back_by_more_than_the_period_it_leaves_all_the_same():
    window = Window(1)
    send(window, 1, 0, 100.0)
    window.roll(200.0)
    send(window, 1, 0, 50.0)
    assert window.earliest(1, 0, 300.0)[0] <= 300.0


@pytest.mark.parametrize("now", [161.0, 1e6, 1e9])
def test_after_a_sleep_everything_has_left_and_the_ring_is_clean(now):
    window = Window(3)
    for at in (100.0, 100.5, 100.9):
        send(window, 1, 7, at)
    assert window.earliest(3, 0, now + 1)[0] == now + 1
    send(window, 3, 21, now + 1)
    assert window.earliest(1, 0, now + 2)[0] == pytest.approx(now + 61.3, abs=0.06)
    assert window.counted() == (3, 21)
    window.roll(now + 100)
    assert window.counted() == NOTHING


# --- what it was in the end


def test_what_was_less_than_reserved_leaves_at_once():
    window = Window(max_tokens=100)
    send(window, 1, 80, 0.0)
    window.correct(-50, 0.0, now=1.0)
    assert window.earliest(1, 70, 1.0)[1] == 1.0
    assert window.earliest(1, 71, 1.0)[1] == pytest.approx(60.35)
    assert (window.requests, window.counted()) == (1, (1, 30))
    window.roll(100.0)
    assert (window.tokens, window.counted()[1]) == NOTHING


def test_what_was_more_counts_from_when_that_is_known():
    window = Window(max_tokens=100)
    send(window, 1, 80, 0.0)
    window.correct(15, 0.0, now=30.0)
    assert (window.requests, window.tokens) == (1, 95)
    assert window.earliest(1, 6, 30.0)[1] == pytest.approx(60.35)
    assert window.earliest(1, 86, 61.0)[1] == pytest.approx(90.35)


@pytest.mark.parametrize("now", [60.35, 60.65, 61.0, 130.0])
def test_what_has_left_is_not_taken_off_what_came_later(now):
    window = Window(max_tokens=100)
    window.take(2, 100)
    window.sent(1, 80, 0.0)
    window.sent(1, 20, now)
    window.correct(-50, 0.0, now)
    assert window.tokens == 20


def test_nothing_becomes_less_than_nothing():
    """A reply's own time may fall into the slot beside the one in which it was counted."""
    window = Window(max_tokens=100)
    send(window, 1, 10, 0.05)
    send(window, 1, 90, 0.15)
    window.correct(-80, 0.09, now=1.0)
    assert window.tokens == 90
    window.roll(60.35)
    assert window.tokens == 90
    window.roll(61.0)
    assert (window.tokens, window.counted()[1]) == NOTHING


def test_a_correction_changes_nothing_of_what_was_granted():
    window = Window()
    send(window, 1, 80, 0.0)
    window.correct(-50, 0.0, now=1.0)
    assert window.granted() == (1, 80)


@settings(max_examples=50)
@given(
    st.sampled_from([MINUTE_S, DAY_S]),
    st.lists(
        st.tuples(st.floats(0, 1.2), st.integers(0, 3), st.integers(0, 500), st.floats(0, 1)), max_size=60
    ),
)
# 1061.8 is the end of a slot, and by floats a part of it.
@example(MINUTE_S, [(1.03, 0, 0, 1.0), (0.0, 0, 1, 0.0)])
def test_the_ring_holds_what_a_log_of_slots_would(period_s, steps):
    """Exactly: each slot leaves when all of it is a period and a skew old."""
    window, now, log, slot_s = Window(period_s=period_s), 1000.0, [], period_s / SLOTS
    for wait, requests, tokens, share in steps:
        now += wait * (period_s if share > 0.9 else slot_s)
        log = [entry for entry in log if (entry[0] + 1) * slot_s + (period_s + SKEW_S) > now]
        window.roll(now)
        send(window, requests, tokens, now)
        log.append([math.floor(now / slot_s), requests, tokens])
        if share < 0.5:
            number = int(share * 2 * len(log))
            off = log[number][2] // 2
            window.correct(-off, (log[number][0] + 0.5) * slot_s, now)
            log[number][2] -= off
        in_log = sum(entry[1] for entry in log), sum(entry[2] for entry in log)
        assert window.counted() == (window.requests, window.tokens) == in_log
