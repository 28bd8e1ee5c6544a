import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batcher.limits.pace import SLACK_S, Pace

PROBE = 1e-6


@pytest.mark.parametrize(
    ("per_minute", "burst_s", "steps"),
    [
        # (now, cost, earliest): what may go is taken.
        pytest.param(
            60, 0.0, [(0.0, 1, 0.0), (0.0, 1, 1.0), (1.0, 1, 1.0), (1.5, 1, 2.0)], id="no burst: even"
        ),
        pytest.param(60, 2.0, [(0.0, 1, 0.0), (0.0, 1, 0.0), (0.0, 1, 1.0)], id="a burst of two"),
        pytest.param(60, 2.0, [(0.0, 2, 0.0), (0.0, 1, 1.0)], id="the burst in one"),
        pytest.param(60, 2.0, [(0.0, 1, 0.0), (0.0, 2, 1.0)], id="the larger one waits longer"),
        pytest.param(60, 0.25, [(0.0, 1, 0.0), (0.0, 1, 1.0)], id="a burst below one request is no burst"),
        pytest.param(
            60, 0.25, [(0.0, 30, 0.0), (0.0, 1, 30.0), (30.0, 1, 30.0)], id="a debt of its own size"
        ),
        pytest.param(60, 2.0, [(0.0, 5, 0.0), (0.0, 1, 4.0), (4.0, 1, 4.0)], id="the burst shortens a debt"),
        pytest.param(
            60, 2.0, [(100.0, 1, 100.0), (100.0, 1, 100.0), (100.0, 1, 101.0)], id="idle saves nothing up"
        ),
        pytest.param(6000, 0.25, [(0.0, 25, 0.0), (0.0, 1, 0.01)], id="a quarter second of a fast rate"),
        pytest.param(math.inf, 0.0, [(5.0, 10**9, 5.0)] * 3, id="no limit"),
    ],
)
def test_the_flow_is_even_with_a_burst(per_minute, burst_s, steps):
    pace = Pace(per_minute / 60, burst_s)
    for now, cost, expected in steps:
        earliest = pace.earliest(cost, now)
        assert earliest == pytest.approx(expected)
        if earliest <= now:
            pace.take(cost, now)


def test_a_promise_that_floats_round_up_is_kept():
    pace = Pace(1.0, 0.0)
    pace.take(1, 0.0)
    assert pace.earliest(1, 1.0 - SLACK_S / 2) < 1.0
    assert pace.earliest(1, 1.0 - SLACK_S * 2) == 1.0


def test_what_is_given_back_may_be_taken_again():
    pace = Pace(1.0, 1.0)
    pace.take(1, 0.0)
    pace.give_back(1)
    assert pace.earliest(1, 0.0) == 0.0


@pytest.mark.parametrize(("per_s", "earliest"), [(4.0, 2.25), (0.5, 4.0), (math.inf, 2.0)])
def test_a_new_rate_holds_from_now_on_and_changes_no_debt(per_s, earliest):
    pace = Pace(1.0, 0.0)
    pace.take(2, 0.0)
    pace.set_rate(per_s)
    assert pace.earliest(1, 0.0) == 2.0
    pace.take(1, 2.0)
    assert pace.earliest(1, 2.0) == earliest


def test_after_a_rest_there_is_no_burst():
    pace = Pace(1.0, 5.0)
    pace.rest(100.0)
    sent = []
    now = 100.0
    while now < 110.0:
        now = pace.earliest(1, now)
        pace.take(1, now)
        sent.append(now)
    gaps = [later - earlier for earlier, later in pairwise(sent)]
    assert gaps == pytest.approx([1.0] * len(gaps))
    assert 100.0 <= sent[0] <= 101.0


def test_a_rest_forgives_no_debt():
    pace = Pace(1.0, 1.0)
    pace.take(100, 0.0)
    pace.rest(0.0)
    assert pace.earliest(1, 0.0) == 100.0


def test_without_a_limit_there_is_nothing_to_rest_from():
    pace = Pace(math.inf, 5.0)
    pace.rest(100.0)
    assert pace.earliest(10**9, 100.0) == 100.0


@settings(max_examples=60)
@given(
    st.integers(1, 10**7),
    st.floats(0, 10),
    st.lists(st.tuples(st.floats(0, 5), st.integers(1, 10**5)), min_size=1, max_size=50),
)
def test_the_flow_never_exceeds_its_rate_and_burst(per_minute, burst_s, steps):
    """In any stretch of time: at most the burst (or one larger cost), and the rate times its length."""
    pace, now, sent = Pace(per_minute / 60, burst_s), 1000.0, []
    for wait, cost in steps:
        now += wait
        earliest = pace.earliest(cost, now)
        if earliest > now:
            # Not before, and exactly at.
            assert pace.earliest(cost, max(now, earliest - PROBE)) == earliest
            assert pace.earliest(cost, earliest) <= earliest
            now = earliest
        pace.take(cost, now)
        sent.append((now, cost))
    rate = per_minute / 60
    for first in range(len(sent)):
        total = 0
        for at, cost in sent[first:]:
            total += cost
            allowed = max(rate * burst_s, cost) + rate * (at - sent[first][0])
            assert total <= allowed * (1 + 1e-9) + 1e-6 * rate
