from itertools import pairwise

import pytest

from batcher.limits.ramp import START, Ramp


class Driver:
    """A ramp, and the numbers of what is in flight on it."""

    def __init__(self):
        self.ramp = Ramp()
        self.newest = 0
        self.flight = []

    def take(self, count):
        self.flight += range(self.newest + 1, self.newest + 1 + count)
        self.newest += count
        self.ramp.take(count, newest=self.newest)

    def land(self, count=None, *, succeeded=True, refused=False):
        for number in self.flight[:count]:
            self.ramp.landed(number, succeeded=succeeded, refused=refused)
        del self.flight[:count]

    def succeed(self, rounds):
        """Keep it full: everything in flight succeeds and as much as is free goes again."""
        for _ in range(rounds):
            self.take(self.ramp.free)
            self.land()

    def hold(self, refused, of):
        """Have a flight of which some are refused, the first with a hold, and the probe get through."""
        self.take(of)
        self.land(1, succeeded=False, refused=True)
        self.ramp.cut()
        self.land(refused - 1, succeeded=False, refused=True)
        self.probe()

    def probe(self):
        self.take(1)
        self.ramp.landed(self.flight.pop(), succeeded=True)
        self.ramp.reopen()

    @property
    def free(self):
        return self.ramp.free


@pytest.fixture
def ramp():
    return Driver()


def test_it_begins_with_few(ramp):
    assert ramp.free == START


def test_what_is_in_flight_is_not_free(ramp):
    ramp.take(START - 1)
    assert ramp.free == 1
    ramp.land(1, succeeded=False)
    assert ramp.free == 2


def test_each_success_while_it_is_in_use_opens_it(ramp):
    ramp.take(START)
    ramp.land(1)
    assert ramp.free == 2


def test_a_failure_opens_nothing(ramp):
    ramp.take(START)
    ramp.land(succeeded=False)
    assert ramp.free == START


def test_it_does_not_grow_where_it_is_not_the_limit(ramp):
    for _ in range(1000):
        ramp.take(1)
        ramp.land()
    assert ramp.free == START


def test_a_hold_closes_it_to_one_whatever_was_in_flight(ramp):
    ramp.take(START)
    ramp.ramp.cut()
    assert ramp.free == 1
    ramp.take(1)
    assert ramp.free == 0
    ramp.land(START)  # those of before: they open nothing
    assert ramp.free == 0
    ramp.land()
    assert ramp.free >= 1


def test_after_a_hold_it_opens_fast_to_half_of_where_it_was_and_then_slowly(ramp):
    ramp.succeed(3)
    half = ramp.free // 2
    ramp.hold(ramp.free, ramp.free)
    assert ramp.free <= 2
    widths = []
    for _ in range(40):
        ramp.succeed(1)
        widths.append(ramp.free)
    fast = [width for width in widths if width < half]
    slow = widths[len(fast) :]
    assert len(fast) < 20
    assert all(width - previous <= 1 for previous, width in pairwise(slow))
    assert slow[-1] > slow[0]


def test_where_few_of_a_flight_were_refused_it_is_where_it_was(ramp):
    ramp.succeed(2)
    width = ramp.free
    ramp.hold(width // 8, width)
    assert ramp.free == width


def test_a_single_one_of_a_few_is_a_stray(ramp):
    ramp.hold(1, 3)
    assert ramp.free == START


def test_one_of_two_is_none(ramp):
    ramp.hold(1, 2)
    assert ramp.free <= 2


def test_a_probe_that_is_refused_is_no_stray(ramp):
    ramp.succeed(2)
    ramp.take(ramp.free)
    ramp.land(1, succeeded=False, refused=True)
    ramp.ramp.cut()
    ramp.take(1)
    ramp.ramp.landed(ramp.flight.pop(), succeeded=False, refused=True)
    ramp.ramp.cut()
    ramp.probe()
    assert ramp.free <= 2


def test_a_probe_without_a_hold_changes_nothing(ramp):
    ramp.ramp.reopen()
    assert ramp.free == START
