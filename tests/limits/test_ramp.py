from itertools import pairwise

from batcher.limits.ramp import START, Ramp


def succeed(ramp, rounds):
    """Keep it full: everything in flight succeeds and as much as is free goes again."""
    for _ in range(rounds):
        count = ramp.free
        ramp.take(count)
        for _ in range(count):
            ramp.landed(succeeded=True)


def test_it_begins_with_few():
    assert Ramp().free == START


def test_what_is_in_flight_is_not_free():
    ramp = Ramp()
    ramp.take(START - 1)
    assert ramp.free == 1
    ramp.landed(succeeded=False)
    assert ramp.free == 2


def test_each_success_while_it_is_in_use_opens_it():
    ramp = Ramp()
    ramp.take(START)
    ramp.landed(succeeded=True)
    assert ramp.free == 2


def test_a_failure_opens_nothing():
    ramp = Ramp()
    ramp.take(START)
    for _ in range(START):
        ramp.landed(succeeded=False)
    assert ramp.free == START


def test_it_does_not_grow_where_it_is_not_the_limit():
    ramp = Ramp()
    for _ in range(1000):
        ramp.take(1)
        ramp.landed(succeeded=True)
    assert ramp.free == START


def test_a_hold_closes_it_to_one_and_what_is_in_flight_counts():
    ramp = Ramp()
    ramp.take(START)
    ramp.cut()
    assert ramp.free == 0
    for _ in range(START):
        ramp.landed(succeeded=False)
    assert ramp.free == 1


def test_after_a_hold_it_opens_fast_to_half_of_where_it_was_and_then_slowly():
    ramp = Ramp()
    succeed(ramp, 3)
    half = ramp.free // 2
    ramp.cut()
    widths = []
    for _ in range(40):
        succeed(ramp, 1)
        widths.append(ramp.free)
    fast = [width for width in widths if width < half]
    slow = widths[len(fast) :]
    assert len(fast) < 20
    assert all(width - previous <= 1 for previous, width in pairwise(slow))
    assert slow[-1] > slow[0]
