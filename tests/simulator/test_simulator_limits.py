import math

import pytest

from batcher.simulator.limits import Bucket, ModelLimits, SlidingWindow, duration

# (seconds, amount, the wait that is answered): taken where it is 0.
BUCKET = {
    "a full minute at once, then the rate": [(0, 60, 0), (0, 1, 1), (0.999, 1, 0.001), (1, 1, 0), (1, 1, 1)],
    "never more than one minute is saved up": [(0, 60, 0), (600, 60, 0), (600, 1, 1)],
    "what is larger than the limit never fits": [(0, 61, math.inf), (600, 61, math.inf)],
    "a refusal takes nothing": [(0, 59, 0), (0, 2, 1), (0, 1, 0), (0, 1, 1)],
}
SLIDING = {
    "what was taken is free at 60 s, not before": [(0, 60, 0), (59.999, 1, 0.001), (60, 60, 0), (60, 1, 60)],
    "the wait is for just so many as are missing": [(0, 30, 0), (10, 30, 0), (20, 30, 40), (20, 31, 50)],
    "what is larger than the limit never fits": [(0, 61, math.inf)],
    "the same moment is one entry": [(5, 30, 0), (5, 30, 0), (5, 1, 60), (65, 60, 0)],
}


def play(budget, steps):
    for now, amount, wait_s in steps:
        budget.pass_to(now)
        assert budget.wait_s(amount) == pytest.approx(wait_s)
        if not wait_s:
            budget.take(amount)


@pytest.mark.parametrize("steps", BUCKET.values(), ids=BUCKET)
def test_bucket(steps):
    play(Bucket(60), steps)


@pytest.mark.parametrize("steps", SLIDING.values(), ids=SLIDING)
def test_sliding_window(steps):
    play(SlidingWindow(60), steps)


@pytest.mark.parametrize("window", ["bucket", "sliding"])
def test_who_waits_as_told_is_taken_and_not_a_millisecond_earlier(window):
    limits = ModelLimits(7, 1000, window)
    now = 100.0
    for step in range(200):
        over = limits.take(step % 90 + 1, now)
        if over is None:
            continue
        assert limits.take(step % 90 + 1, now + over.wait_s - 0.001) is not None
        now += over.wait_s + 1e-9
        assert limits.take(step % 90 + 1, now) is None


def test_sliding_window_never_grants_more_than_its_limit_in_any_minute():
    limits = ModelLimits(None, 100, "sliding")
    taken = []
    for tick in range(4000):
        now, amount = tick * 0.1, tick * 7 % 23 + 1
        if limits.take(amount, now) is None:
            taken.append((now, amount))
    worst = max(sum(a for at, a in taken if end - 60 < at <= end) for end, _ in taken)
    assert 90 <= worst <= 100


def test_a_request_takes_from_both_budgets_or_from_neither():
    limits = ModelLimits(60, 100, "bucket")
    assert limits.take(80, 0.0) is None
    over = limits.take(80, 0.0)
    assert over.kind == "tokens"
    assert b"remaining-requests: 59\r\n" in limits.headers(0.0)
    assert b"remaining-tokens: 20\r\n" in limits.headers(0.0)


def test_headers_name_only_the_budgets_that_there_are():
    lines = ModelLimits(60, None, "bucket").headers(0.0)
    assert lines == (
        b"x-ratelimit-limit-requests: 60\r\n"
        b"x-ratelimit-remaining-requests: 60\r\n"
        b"x-ratelimit-reset-requests: 0s\r\n"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, b"0s"),
        (0.012, b"12ms"),
        (0.0001, b"1ms"),
        (1, b"1s"),
        (1.5, b"1.5s"),
        (8.64, b"8.64s"),
        (90, b"1m30s"),
        (360, b"6m0s"),
        (59.9999, b"1m0s"),
        (61.25, b"1m1.25s"),
    ],
)
def test_durations_are_written_as_openai_does(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize("window", ["bucket", "sliding"])
def test_what_is_given_back_can_be_taken_again(window):
    limits = ModelLimits(None, 100, window)
    assert limits.take(60, 0.0) is None
    assert limits.take(40, 1.0) is None
    assert limits.take(50, 1.0) is not None
    limits.give_back(50, 0.0)
    assert limits.take(50, 1.0) is None
    assert limits.take(2, 1.0) is not None


def test_what_is_given_back_does_not_come_free_twice():
    limits = ModelLimits(None, 100, "sliding")
    limits.take(100, 0.0)
    limits.give_back(60, 0.0)
    assert limits.take(60, 1.0) is None
    assert limits.take(41, 60.0).wait_s == pytest.approx(1.0)
    limits.give_back(60, 0.0)  # it has left
    assert limits.take(41, 60.0) is not None
    assert limits.take(40, 60.0) is None
