import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batcher.store.seen import Seen


@pytest.fixture
def seen():
    with Seen() as made:
        yield made


def test_a_name_used_once_repeats_nothing(seen):
    assert seen.repeated([("a", 1), ("b", 2)]) == {}
    assert seen.repeated([("c", 3)]) == {}


def test_a_repeated_name_tells_the_line_that_used_it_first(seen):
    assert seen.repeated([("a", 1), ("b", 2), ("a", 3)]) == {3: 1}
    assert seen.repeated([("b", 10), ("c", 11), ("a", 12)]) == {10: 2, 12: 1}
    assert seen.repeated([("c", 20), ("c", 21)]) == {20: 11, 21: 11}


def test_names_are_compared_whole(seen):
    names = ["a", "A", "a ", "a\0", "a\0b", "ä", "a\u0308", "", "1", "1.0", "x" * 10_000, "x" * 10_001]
    assert seen.repeated([(name, seq) for seq, name in enumerate(names, 1)]) == {}
    assert seen.repeated([("a\0b", 99)]) == {99: 5}


@settings(max_examples=30)
@given(st.lists(st.lists(st.text(max_size=2), min_size=1, max_size=30), max_size=10))
def test_it_agrees_with_a_dictionary(groups):
    first, seq = {}, 0
    with Seen() as seen:
        for group in groups:
            names = [(name, seq + place) for place, name in enumerate(group, 1)]
            seq += len(group)
            expected = {}
            for name, line in names:
                if first.setdefault(name, line) != line:
                    expected[line] = first[name]
            assert seen.repeated(names) == expected


def test_bodies_are_counted(seen):
    assert [seen.occurrence(digest) for digest in (b"a", b"b", b"a", b"a", b"b")] == [1, 1, 2, 3, 2]


def test_two_passes_know_nothing_of_each_other():
    with Seen() as first, Seen() as second:
        first.repeated([("a", 1)])
        first.occurrence(b"d")
        assert second.repeated([("a", 5)]) == {}
        assert second.occurrence(b"d") == 1


def test_it_is_gone_when_it_is_closed():
    seen = Seen()
    seen.close()
    with pytest.raises(sqlite3.ProgrammingError):
        seen.occurrence(b"a")
