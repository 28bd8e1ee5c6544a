import math

import pytest

from batcher.limits.window import PERIOD_S, SKEW_S, SLOT_S, Window

PROBE = 1e-6


def test_what_was_sent_counts_for_a_minute_and_no_longer_than_a_slot_and_a_skew_more():
    window = Window(10)
    window.hold(10)
    window.sent(10, 5.03)
    until = window.earliest(1, 5.03)
    assert 5.03 + PERIOD_S + SKEW_S <= until <= 5.03 + PERIOD_S + SKEW_S + SLOT_S
    assert window.earliest(1, until - PROBE) == until
    assert window.earliest(1, until) == until


def test_a_minute_begins_when_it_is_sent_not_when_it_is_granted():
    window = Window(1)
    window.hold(1)
    assert window.earliest(1, 0.0) == math.inf
    assert window.earliest(1, 500.0) == math.inf
    window.sent(1, 500.0)
    assert window.earliest(1, 500.0) >= 560.0


@pytest.mark.parametrize(
    ("cost", "slots_that_must_leave"), [(1, 0), (4, 0), (5, 1), (6, 1), (7, 2), (9, 2), (10, 3)]
)
def test_as_many_slots_leave_as_the_cost_needs(cost, slots_that_must_leave):
    window = Window(10)  # 6 of 10 are used: 2, 3 and 1
    for at, amount in ((0.05, 2), (10.05, 3), (20.05, 1)):
        window.hold(amount)
        window.sent(amount, at)
    leaves = [30.0, *(at + SLOT_S / 2 + PERIOD_S + SKEW_S for at in (0.05, 10.05, 20.05))]
    assert window.earliest(cost, 30.0) == pytest.approx(leaves[slots_that_must_leave])


def test_what_is_given_back_leaves_at_once():
    window = Window(1)
    window.hold(1)
    window.give_back(1)
    assert window.earliest(1, 0.0) == 0.0


def test_what_an_earlier_process_sent_counts():
    window = Window(10)
    window.seed(4, -30.0)
    window.seed(6, -10.0)
    assert window.earliest(1, 0.0) == pytest.approx(30.0 + SLOT_S + SKEW_S)
    assert window.earliest(5, 0.0) == pytest.approx(50.0 + SLOT_S + SKEW_S)


def test_more_than_the_limit_may_have_been_sent_before():
    window = Window(10)
    window.seed(100, -30.0)
    window.seed(3, -10.0)
    assert window.earliest(1, 0.0) == pytest.approx(30.0 + SLOT_S + SKEW_S)
    assert window.earliest(8, 0.0) == pytest.approx(50.0 + SLOT_S + SKEW_S)


def test_a_seed_out_of_order_leaves_late_rather_than_early():
    window = Window(1)
    window.seed(1, 10.0)
    window.seed(1, 5.0)
    assert window.earliest(1, 11.0) >= 70.0
