from copy import deepcopy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batcher.limits.bucket import Bucket, Never, Took, Wait

PROBE = 1e-6
UNLIMITED = {"rpm": None, "tpm": None, "burst_s": 0.25}


def send(bucket, costs, now):
    fit = bucket.fit(costs, now)
    bucket.sent(costs[: fit.count], now)
    return fit


@pytest.mark.parametrize(
    ("limits", "steps"),
    [
        # (now, costs, expected); what is admitted is sent at once.
        pytest.param(UNLIMITED, [(0.0, [10**9] * 500, Took(500))], id="no limit"),
        pytest.param(UNLIMITED, [(0.0, [], Took(0))], id="nothing asked"),
        pytest.param(
            {"rpm": 60, "tpm": None, "burst_s": 1.0},
            [(0.0, [9, 9], Took(1)), (0.0, [9], Wait(1.0)), (1.0, [9, 9], Took(1))],
            id="requests",
        ),
        pytest.param(
            {"rpm": None, "tpm": 6000, "burst_s": 1.0},
            [(0.0, [60, 40, 1], Took(2)), (0.0, [100], Wait(1.0)), (0.5, [50, 1], Took(1))],
            id="tokens",
        ),
        pytest.param(
            {"rpm": 60, "tpm": 6000, "burst_s": 2.0},
            [
                (0.0, [100, 100], Took(2)),
                (0.0, [1], Wait(1.0)),
                (1.0, [200], Wait(2.0)),
                (1.0, [100], Took(1)),
            ],
            id="the later of both",
        ),
        pytest.param(
            {"rpm": None, "tpm": 6000, "burst_s": 0.25},
            [(0.0, [3000], Took(1)), (0.0, [1], Wait(29.76)), (30.0, [3000], Took(1))],
            id="larger than the burst goes in its turn",
        ),
        pytest.param(
            {"rpm": 1, "tpm": None, "burst_s": 0.25},
            [(0.0, [1, 1], Took(1)), (0.0, [1], Wait(60.35))],
            id="one a minute",
        ),
        pytest.param(
            {"rpm": None, "tpm": 100, "burst_s": 60.0},
            [(0.0, [100], Took(1)), (0.0, [100], Wait(60.35)), (60.35, [100], Took(1))],
            id="the whole limit in one, and again a minute later",
        ),
        pytest.param(
            {"rpm": 4, "tpm": None, "burst_s": 60.0},
            [(0.0, [1] * 9, Took(4)), (59.0, [1], Wait(60.35)), (60.35, [1] * 9, Took(4))],
            id="the first burst counts",
        ),
    ],
)
def test_admission(limits, steps):
    bucket = Bucket(**limits)
    for now, costs, expected in steps:
        got = bucket.fit(costs, now)
        if isinstance(expected, Wait):
            assert isinstance(got, Wait)
            assert got.until == pytest.approx(expected.until)
        else:
            assert got == expected
            bucket.sent(costs[: got.count], now)


def test_larger_than_the_limit_never_goes():
    bucket = Bucket(rpm=None, tpm=10, burst_s=60.0)
    assert bucket.fit([11], 0.0) == Never(maximum=10)
    assert bucket.fit([10], 0.0) == Took(1)


def test_what_goes_before_one_that_never_goes_is_admitted_first():
    bucket = Bucket(rpm=None, tpm=10, burst_s=60.0)
    assert bucket.fit([5, 11, 1], 0.0) == Took(1)
    assert bucket.fit([11, 1], 0.0) == Never(10)


def test_small_ones_do_not_overtake():
    bucket = Bucket(rpm=None, tpm=6000, burst_s=1.0)
    send(bucket, [50], 0.0)
    assert isinstance(bucket.fit([60, 1], 0.0), Wait)


@pytest.mark.parametrize(
    ("limits", "held"),
    [
        ({"rpm": 60, "tpm": 1000, "burst_s": 1.0}, "requests"),
        ({"rpm": 6000, "tpm": 60, "burst_s": 1.0}, "tokens"),
    ],
)
def test_a_refusal_reserves_nothing_of_either(limits, held):
    bucket = Bucket(**limits)
    send(bucket, [1], 0.0)
    assert bucket.binding(1, 0.0) == held
    first = bucket.fit([1], 0.0)
    assert isinstance(first, Wait)
    for _ in range(1000):
        assert bucket.fit([1], 0.0) == first
    assert bucket.fit([1], first.until) == Took(1)


def test_no_time_is_promised_while_only_what_is_unsent_is_in_the_way():
    bucket = Bucket(rpm=2, tpm=None, burst_s=60.0)
    assert bucket.fit([1, 1], 0.0) == Took(2)
    assert bucket.fit([1], 100.0) == Wait(None)
    bucket.sent([1], 100.0)
    assert bucket.fit([1], 100.0) == Wait(pytest.approx(160.35))
    bucket.give_back([1])
    assert bucket.fit([1], 100.0) == Took(1)


def test_it_reads_no_further_than_the_first_refused():
    bucket = Bucket(rpm=60, tpm=None, burst_s=3.0)
    read = []

    def costs():
        for number in range(100):
            read.append(number)
            yield 1

    assert bucket.fit(costs(), 0.0) == Took(3)
    assert read == [0, 1, 2, 3]


def test_an_earlier_process_counts_against_both():
    bucket = Bucket(rpm=3, tpm=100, burst_s=60.0)
    bucket.seed([(-30.0, 60), (-20.0, 10)])
    assert bucket.fit([31], 0.0) == Wait(pytest.approx(30.35))
    assert bucket.fit([30, 0], 0.0) == Took(1)


@pytest.mark.parametrize(
    ("limits", "sent", "cost", "expected"),
    [
        (UNLIMITED, [], 5, None),
        ({"rpm": 60, "tpm": 6000, "burst_s": 1.0}, [], 5, None),
        ({"rpm": 60, "tpm": 6000, "burst_s": 1.0}, [5], 5, "requests"),
        ({"rpm": 60, "tpm": 60, "burst_s": 1.0}, [5], 5, "tokens"),
        ({"rpm": None, "tpm": 6000, "burst_s": 1.0}, [100], 5, "tokens"),
        ({"rpm": None, "tpm": 10, "burst_s": 1.0}, [], 11, "tokens"),
    ],
)
def test_binding_names_the_later_limit(limits, sent, cost, expected):
    bucket = Bucket(**limits)
    send(bucket, sent, 0.0)
    assert bucket.binding(cost, 0.0) == expected


limit = st.one_of(st.none(), st.integers(1, 2000))


@settings(max_examples=60)
@given(
    limit,
    limit,
    st.floats(0, 3),
    st.lists(
        st.tuples(st.floats(0, 20), st.lists(st.integers(0, 300), min_size=1, max_size=12)), max_size=12
    ),
)
def test_the_longest_prefix_goes_and_not_before_its_time(rpm, tpm, burst_s, groups):
    bucket, now = Bucket(rpm, tpm, burst_s), 7.0
    for pause, costs in groups:
        now += pause
        one_by_one = deepcopy(bucket)
        alone = 0
        for cost in costs:
            if one_by_one.fit([cost], now) != Took(1):
                break
            alone += 1
        fit = bucket.fit(costs, now)
        if isinstance(fit, Never):
            assert costs[0] > tpm == fit.maximum
            continue
        if isinstance(fit, Wait):
            assert alone == 0
            assert fit.until > now
            assert deepcopy(bucket).fit(costs, max(now, fit.until - PROBE)) == fit
            now = fit.until
            fit = bucket.fit(costs, now)
            assert isinstance(fit, Took)
            assert fit.count >= 1
        else:
            assert fit.count == alone
        bucket.sent(costs[: fit.count], now)
