import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.retry import BASE_S, CAP_S, MaxFailures, backoff_s


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
