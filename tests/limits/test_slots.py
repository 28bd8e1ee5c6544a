import pytest

from batcher.limits.slots import Slots


def test_what_is_taken_is_not_free_until_it_is_released():
    slots = Slots(3)
    assert (slots.free, slots.taken) == (3, 0)
    slots.take(2)
    assert (slots.free, slots.taken) == (1, 2)
    slots.release(1)
    assert (slots.free, slots.taken) == (2, 1)


@pytest.mark.parametrize("verb", ["take", "release"])
def test_none_is_always_possible(verb):
    slots = Slots(1)
    getattr(slots, verb)(0)
    assert slots.free == 1


def test_more_than_are_free_are_refused_and_nothing_changes():
    slots = Slots(2)
    slots.take(1)
    with pytest.raises(ValueError, match="2 slots taken where 1 are free"):
        slots.take(2)
    assert (slots.free, slots.taken) == (1, 1)


def test_more_than_are_taken_are_not_released_and_nothing_changes():
    slots = Slots(2)
    slots.take(1)
    with pytest.raises(ValueError, match="2 slots released where 1 are taken"):
        slots.release(2)
    assert (slots.free, slots.taken) == (1, 1)
