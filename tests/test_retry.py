import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.retry import BASE_S, CAP_S, MaxFailures, Outage, backoff_s


@pytest.mark.parametrize(
    ("failures", "longest_s"),
    [(1, 0.5), (2, 1.0), (3, 2.0), (7, 32.0), (8, 60.0), (9, 60.0), (1000, 60.0), (10**9, 60.0)],
)
def test_the_longest_backoff_doubles_up_to_a_cap(failures, longest_s):
    assert backoff_s(failures, 1.0) == longest_s


@given(st.integers(1, 10**6), st.floats(0, 1, exclude_max=True))
def test_the_jitter_is_full(failures, chance):
    longest = backoff_s(failures, 1.0)
    assert backoff_s(failures, 0.0) == 0.0
    assert 0.0 <= backoff_s(failures, chance) <= longest <= CAP_S
    assert backoff_s(failures, chance) == pytest.approx(chance * longest)
    assert longest >= BASE_S


@pytest.mark.parametrize(
    ("rule", "failed", "ended", "exceeded"),
    [
        (MaxFailures(), 10**6, 10**6, False),
        (MaxFailures(count=1), 0, 100, False),
        (MaxFailures(count=1), 1, 1, True),
        (MaxFailures(count=3), 2, 3, False),
        (MaxFailures(count=3), 3, 3, True),
        (MaxFailures(count=3), 4, 1000, True),
        (MaxFailures(share=0.5), 0, 0, False),
        (MaxFailures(share=0.5), 199, 199, False),
        (MaxFailures(share=0.5), 100, 200, False),
        (MaxFailures(share=0.5), 101, 200, True),
        (MaxFailures(share=0.5), 5000, 10_000, False),
        (MaxFailures(share=0.5), 5001, 10_000, True),
        (MaxFailures(share=0.0), 0, 200, False),
        (MaxFailures(share=0.0), 1, 200, True),
        (MaxFailures(share=1.0), 200, 200, False),
        (MaxFailures(count=10, share=0.5), 10, 20, True),
        (MaxFailures(count=1000, share=0.5), 150, 200, True),
    ],
)
def test_too_many_failures_stop_a_job(rule, failed, ended, exceeded):
    assert rule.exceeded(failed, ended) is exceeded


def test_an_outage_lasts_from_its_first_failure():
    outage = Outage(max_stall_s=100.0)
    assert not outage.too_long(1e9)
    outage.failed(until=11.0, now=10.0)
    outage.failed(until=60.0, now=50.0)
    assert not outage.too_long(109.9)
    assert outage.too_long(110.0)


def test_an_answer_ends_an_outage():
    outage = Outage(max_stall_s=100.0)
    outage.failed(until=1.0, now=0.0)
    outage.answered()
    assert not outage.too_long(1e9)
    assert outage.failures == 0
    outage.failed(until=201.0, now=200.0)
    assert not outage.too_long(299.0)
    assert outage.too_long(300.0)


def test_failures_under_way_when_a_hold_began_are_the_same_hold():
    outage = Outage(max_stall_s=100.0)
    for now in (0.0, 0.1, 4.9):
        outage.failed(until=5.0, now=now)
    assert outage.failures == 1
    outage.failed(until=9.0, now=5.0)
    assert outage.failures == 2


def test_no_patience_at_all_ends_at_the_first_failure():
    outage = Outage(max_stall_s=0.0)
    outage.failed(until=6.0, now=5.0)
    assert outage.too_long(5.0)
