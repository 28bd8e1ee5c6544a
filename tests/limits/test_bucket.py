from copy import deepcopy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batcher.limits.bucket import Bucket, Limit, Never, Took, Wait
from batcher.limits.pace import SLACK_S
from batcher.limits.window import DAY_S

PROBE = 1e-6
UNLIMITED = Limit()


def send(bucket, costs, now):
    fit = bucket.fit(costs, now)
    bucket.sent(costs[: fit.count], now)
    return fit


@pytest.mark.parametrize(
    ("limit", "burst_s", "steps"),
    [
        # (now, costs, expected); what is admitted is sent at once.
        pytest.param(UNLIMITED, 0.25, [(0.0, [10**9] * 500, Took(500))], id="no limit"),
        pytest.param(UNLIMITED, 0.25, [(0.0, [], Took(0))], id="nothing asked"),
        pytest.param(
            Limit(rpm=60),
            1.0,
            [(0.0, [9, 9], Took(1)), (0.0, [9], Wait(1.0)), (1.0, [9, 9], Took(1))],
            id="requests",
        ),
        pytest.param(
            Limit(tpm=6000),
            1.0,
            [(0.0, [60, 40, 1], Took(2)), (0.0, [100], Wait(1.0)), (0.5, [50, 1], Took(1))],
            id="tokens",
        ),
        pytest.param(
            Limit(rpm=60, tpm=6000),
            2.0,
            [
                (0.0, [100, 100], Took(2)),
                (0.0, [1], Wait(1.0)),
                (1.0, [200], Wait(2.0)),
                (1.0, [100], Took(1)),
            ],
            id="the later of both",
        ),
        pytest.param(
            Limit(tpm=6000),
            0.25,
            [(0.0, [3000], Took(1)), (0.0, [1], Wait(29.76)), (30.0, [3000], Took(1))],
            id="larger than the burst goes in its turn",
        ),
        pytest.param(
            Limit(rpm=1), 0.25, [(0.0, [1, 1], Took(1)), (0.0, [1], Wait(60.35))], id="one a minute"
        ),
        pytest.param(
            Limit(tpm=100),
            60.0,
            [(0.0, [100], Took(1)), (0.0, [100], Wait(60.35)), (60.35, [100], Took(1))],
            id="the whole limit in one, and again a minute later",
        ),
        pytest.param(
            Limit(rpm=4),
            60.0,
            [(0.0, [1] * 9, Took(4)), (59.0, [1], Wait(60.35)), (60.35, [1] * 9, Took(4))],
            id="the first burst counts",
        ),
        pytest.param(
            Limit(rpd=3),
            0.25,
            [(0.0, [1] * 9, Took(3)), (50_000.0, [1], Wait(86_544.25)), (86_544.25, [1] * 9, Took(3))],
            id="a day is one more window, without a pace",
        ),
        pytest.param(
            Limit(tpd=100),
            0.25,
            [(0.0, [60, 41], Took(1)), (300.0, [41, 1], Wait(86_544.25)), (300.0, [40, 1], Took(1))],
            id="tokens of a day",
        ),
        pytest.param(
            Limit(rpm=2, rpd=3),
            60.0,
            [
                (0.0, [1] * 9, Took(2)),
                (30.0, [1], Wait(60.35)),
                (61.0, [1] * 9, Took(1)),
                (130.0, [1], Wait(86_544.25)),
            ],
            id="a minute within a day",
        ),
    ],
)
def test_admission(limit, burst_s, steps):
    bucket = Bucket(limit, burst_s)
    for now, costs, expected in steps:
        got = bucket.fit(costs, now)
        if isinstance(expected, Wait):
            assert isinstance(got, Wait)
            assert got.until == pytest.approx(expected.until)
        else:
            assert got == expected
            bucket.sent(costs[: got.count], now)


@pytest.mark.parametrize(
    ("limit", "largest", "never"),
    [
        pytest.param(Limit(tpm=10), 10, Never(10, "minute"), id="a minute's"),
        pytest.param(Limit(tpd=10), 10, Never(10, "day"), id="a day's"),
        pytest.param(Limit(tpm=10, tpd=9), 9, Never(9, "day"), id="the day's is less"),
        pytest.param(Limit(tpm=10, tpd=11), 10, Never(10, "minute"), id="the minute's is less"),
    ],
)
def test_larger_than_the_whole_limit_never_goes(limit, largest, never):
    bucket = Bucket(limit, 60.0)
    assert bucket.fit([largest + 1], 0.0) == never
    assert bucket.fit([largest], 0.0) == Took(1)
    assert bucket.fit([largest + 1], 0.0) == never


def test_what_goes_before_one_that_never_goes_is_admitted_first():
    bucket = Bucket(Limit(tpm=10), 60.0)
    assert bucket.fit([5, 11, 1], 0.0) == Took(1)
    assert bucket.fit([11, 1], 0.0) == Never(10)


def test_small_ones_do_not_overtake():
    bucket = Bucket(Limit(tpm=6000), 1.0)
    send(bucket, [50], 0.0)
    assert isinstance(bucket.fit([60, 1], 0.0), Wait)


@pytest.mark.parametrize(
    ("limit", "spent", "held"),
    [
        pytest.param(Limit(rpm=60, tpm=1000), [1], "requests", id="the pace of requests"),
        pytest.param(Limit(rpm=6000, tpm=60), [1], "tokens", id="the pace of tokens"),
        pytest.param(Limit(rpm=600, tpm=60_000, rpd=1), [1], "requests a day", id="requests of a day"),
        pytest.param(Limit(rpm=600, tpm=60_000, tpd=9), [9], "tokens a day", id="tokens of a day"),
    ],
)
def test_a_refusal_reserves_nothing_of_either(limit, spent, held):
    bucket = Bucket(limit, 1.0)
    send(bucket, spent, 0.0)
    assert bucket.binding(1, 0.0) == held
    first = bucket.fit([1], 0.0)
    assert isinstance(first, Wait)
    for _ in range(1000):
        assert bucket.fit([1], 0.0) == first
    assert bucket.fit([1], first.until) == Took(1)


def test_both_or_neither():
    """What was refused for want of the one has taken nothing of the other."""
    bucket = Bucket(Limit(rpm=10, tpm=100), 60.0)
    assert bucket.fit([50, 51, 1], 0.0) == Took(1)
    for _ in range(20):
        assert bucket.fit([51], 0.0) == Wait(None)
    assert bucket.fit([0] * 20, 0.0) == Took(9)
    for _ in range(20):
        assert bucket.fit([50], 0.0) == Wait(None)
    bucket.set_limit(Limit(tpm=100))
    assert bucket.fit([50, 1], 0.0) == Took(1)


def test_no_time_is_promised_while_only_what_is_unsent_is_in_the_way():
    bucket = Bucket(Limit(rpm=2), 60.0)
    assert bucket.fit([1, 1], 0.0) == Took(2)
    assert bucket.fit([1], 100.0) == Wait(None)
    bucket.sent([1], 100.0)
    assert bucket.fit([1], 100.0) == Wait(pytest.approx(160.35))
    bucket.give_back([1])
    assert bucket.fit([1], 100.0) == Took(1)


def test_what_is_sent_late_counts_from_when_it_was_sent():
    bucket = Bucket(Limit(rpm=2, rpd=3), 60.0)
    assert bucket.fit([1, 1], 0.0) == Took(2)
    bucket.sent([1], 5.0)
    bucket.sent([1], 50.0)
    assert bucket.fit([1, 1], 70.0) == Took(1)
    bucket.sent([1], 70.0)
    assert bucket.fit([1], 70.0) == Wait(pytest.approx(86_544.25))


def test_what_is_given_back_is_as_if_it_never_was():
    bucket = Bucket(Limit(rpm=3, tpm=30, rpd=3, tpd=30), 60.0)
    assert bucket.fit([10, 10, 10], 0.0) == Took(3)
    bucket.give_back([10, 10])
    assert bucket.fit([5, 15, 1], 0.0) == Took(2)
    bucket.give_back([5, 15])
    assert bucket.fit([20], 0.0) == Took(1)


def test_what_is_given_back_may_go_again_at_once_at_any_time():
    bucket, now = Bucket(Limit(rpm=1), 0.25), 131071.36418471466  # floats beside 2**17 are not as dense
    assert bucket.fit([1], now) == Took(1)
    bucket.give_back([1])
    assert bucket.fit([1], now) == Took(1)


def test_no_promise_is_for_now():
    bucket = Bucket(Limit(rpm=600), 0.0)
    assert bucket.fit([0, 0], 16.0) == Took(1)
    assert isinstance(first := bucket.fit([0] * 5, 17.0), Took)
    assert first.count > 1  # it has saved up a little
    fit = bucket.fit([0], 17.0)
    assert fit == Took(1) or fit.until > 17.0


def test_it_reads_no_further_than_the_first_refused():
    bucket = Bucket(Limit(rpm=60), 3.0)
    read = []

    def costs():
        for number in range(100):
            read.append(number)
            yield 1

    assert bucket.fit(costs(), 0.0) == Took(3)
    assert read == [0, 1, 2, 3]


# --- an earlier process


def test_an_earlier_process_counts_against_both():
    bucket = Bucket(Limit(rpm=3, tpm=100), 60.0)
    bucket.seed(70.0, 1, 60)
    bucket.seed(80.0, 1, 10)
    assert bucket.fit([31], 100.0) == Wait(pytest.approx(130.35))
    assert bucket.fit([30, 0], 100.0) == Took(1)


def test_what_earlier_processes_sent_within_the_day_counts_in_the_day_alone():
    bucket, now = Bucket(Limit(rpm=10, tpm=1000, rpd=100, tpd=500), 60.0), 200_000.0
    bucket.seed(now - 80_000.0, 97, 300, DAY_S)
    bucket.seed(now - 40_000.0, 1, 100, DAY_S)
    assert bucket.fit([101], now) == Wait(pytest.approx(now + 6_500, abs=150))
    assert bucket.fit([1] * 9, now) == Took(2)


def test_where_there_is_no_limit_of_a_day_its_seeds_count_for_nothing():
    bucket = Bucket(Limit(rpm=2), 60.0)
    bucket.seed(100.0, 50, 50, DAY_S)
    assert bucket.fit([1] * 9, 100.0) == Took(2)


# --- what it was in the end


def test_what_was_less_than_reserved_may_be_used_at_once():
    bucket = Bucket(Limit(tpm=100, tpd=150), 60.0)
    send(bucket, [80], 0.0)
    bucket.correct(-60, sent_at=0.0, now=1.0)
    assert bucket.fit([81], 1.0) == Wait(pytest.approx(60.35))
    assert send(bucket, [80], 1.0) == Took(1)
    assert bucket.fit([51], 100.0) == Wait(pytest.approx(86_544.25))
    assert bucket.fit([50], 100.0) == Took(1)


def test_what_was_less_than_reserved_leaves_its_place_in_the_pace():
    bucket = Bucket(Limit(tpm=6000), 0.0)
    send(bucket, [100], 0.0)
    assert bucket.fit([1], 0.0) == Wait(1.0)
    bucket.correct(-60, sent_at=0.0, now=0.0)
    assert bucket.fit([1], 0.0) == Wait(pytest.approx(0.4))


def test_what_was_more_than_reserved_is_owed():
    bucket = Bucket(Limit(tpm=100, tpd=500), 60.0)
    send(bucket, [50], 0.0)
    bucket.correct(100, sent_at=0.0, now=30.0)
    assert bucket.fit([1], 61.0) == Wait(pytest.approx(90.35))
    assert bucket.fit([1], 90.36) == Took(1)


# --- limits that change


def test_a_lower_limit_holds_for_what_was_sent_before():
    bucket = Bucket(UNLIMITED, 60.0)
    send(bucket, [10] * 5, 0.0)
    bucket.set_limit(Limit(rpm=3, tpm=100))
    assert bucket.fit([10], 10.0) == Wait(pytest.approx(60.35))
    assert bucket.fit([10] * 9, 60.36) == Took(3)


def test_a_limit_that_is_gone_is_in_nobodys_way():
    bucket = Bucket(Limit(rpm=1, rpd=1), 0.25)
    send(bucket, [1], 0.0)
    assert isinstance(bucket.fit([1], 1.0), Wait)
    bucket.set_limit(UNLIMITED)
    assert bucket.fit([1] * 500, 61.0) == Took(500)


@pytest.mark.parametrize(
    ("limit", "sent", "cost", "expected"),
    [
        (UNLIMITED, [], 5, None),
        (Limit(rpm=60, tpm=6000), [], 5, None),
        (Limit(rpm=60, tpm=6000), [5], 5, "requests"),
        (Limit(rpm=60, tpm=60), [5], 5, "tokens"),
        (Limit(tpm=6000), [100], 5, "tokens"),
        (Limit(tpm=10), [], 11, "tokens"),
        (Limit(rpm=60, rpd=1), [5], 5, "requests a day"),
        (Limit(tpm=6000, tpd=9), [5], 5, "tokens a day"),
    ],
)
def test_binding_names_the_later_limit(limit, sent, cost, expected):
    bucket = Bucket(limit, 1.0)
    send(bucket, sent, 0.0)
    assert bucket.binding(cost, 0.0) == expected


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (UNLIMITED, "none"),
        (Limit(rpm=500), "500 requests a minute"),
        (Limit(tpd=2_000_000), "2,000,000 tokens a day"),
        (Limit(500, 200_000, 10_000), "500 requests and 200,000 tokens a minute, 10,000 requests a day"),
    ],
)
def test_a_limit_says_itself_in_words(limit, words):
    assert str(limit) == words


LIMIT = st.none() | st.integers(1, 2000)


@settings(max_examples=60)
@given(
    st.builds(Limit, LIMIT, LIMIT, st.none() | st.integers(1, 60), st.none() | st.integers(1, 2000)),
    st.floats(0, 3),
    st.lists(
        st.tuples(st.floats(0, 20), st.lists(st.integers(0, 300), min_size=1, max_size=12)), max_size=12
    ),
)
def test_the_longest_prefix_goes_and_not_before_its_time(limit, burst_s, groups):
    bucket, now = Bucket(limit, burst_s), 7.0
    for pause, costs in groups:
        now += pause
        goes = max(
            count
            for count in range(len(costs) + 1)
            if deepcopy(bucket).fit(costs[:count], now) == Took(count)
        )
        fit = bucket.fit(costs, now)
        if isinstance(fit, Never):
            assert costs[0] > fit.maximum == min(limit.tpm or fit.maximum, limit.tpd or fit.maximum)
            continue
        if isinstance(fit, Wait):
            assert goes == 0
            assert fit.until > now
            assert isinstance(deepcopy(bucket).fit(costs, max(now, fit.until - PROBE)), Wait)
            hair_before = deepcopy(bucket).fit(costs, fit.until - SLACK_S)
            assert isinstance(hair_before, Took) or hair_before.until > fit.until - SLACK_S
            now = fit.until
            fit = bucket.fit(costs, now)
            assert isinstance(fit, Took)
            assert fit.count >= 1
        else:
            assert fit.count == goes
        bucket.sent(costs[: fit.count], now)
