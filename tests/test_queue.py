import heapq
from itertools import islice

from hypothesis import given, settings
from hypothesis import strategies as st

from batcher.queue import Queue
from batcher.request import Request, Row, Try


def a_try(name, number=1):
    row = Row(1, b"k" * 16, name)
    return Try(Request((row,), name, "shared", "m", "/v1/responses", b"{}", 1, None), number)


def names(tries):
    return [item.request.key for item in tries]


def filled(*keys):
    queue = Queue()
    queue.add(map(a_try, keys))
    return queue


def test_new_requests_go_in_the_order_they_came():
    queue = filled("a", "b")
    queue.add([a_try("c")])
    assert names(queue.ready(0.0)) == ["a", "b", "c"]
    assert names(queue.take(2)) == ["a", "b"]
    assert names(queue.ready(0.0)) == ["c"]


def test_a_retry_waits_for_its_due_time_and_no_longer():
    queue = Queue()
    queue.again([(a_try("r"), 10.0)])
    assert names(queue.ready(10.0 - 1e-6)) == []
    assert queue.next_due == 10.0
    assert names(queue.ready(10.0)) == ["r"]
    assert queue.next_due is None


def test_due_retries_go_before_new_ones_by_their_due_times():
    queue = filled("new")
    queue.again([(a_try("late"), 3.0), (a_try("early"), 1.0), (a_try("later"), 9.0), (a_try("middle"), 2.0)])
    assert names(queue.ready(5.0)) == ["early", "middle", "late", "new"]
    assert queue.next_due == 9.0


def test_retries_due_at_the_same_time_go_in_the_order_they_came():
    queue = Queue()
    queue.again([(a_try("a"), 1.0), (a_try("b"), 1.0)])
    queue.again([(a_try("c"), 1.0)])
    assert names(queue.ready(1.0)) == ["a", "b", "c"]


def test_looking_takes_nothing():
    queue = filled("a", "b")
    queue.again([(a_try("r"), 1.0)])
    for _ in range(3):
        assert names(queue.ready(1.0)) == ["r", "a", "b"]
        assert len(queue) == 3
    assert names(islice(queue.ready(1.0), 1)) == ["r"]
    assert names(queue.take(3)) == ["r", "a", "b"]


def test_it_counts_what_waits_due_or_not():
    queue = filled("a")
    assert len(queue) == 1
    queue.again([(a_try("r"), 100.0)])
    assert len(queue) == 2
    assert list(queue.ready(0.0))
    assert len(queue) == 2
    queue.take(1)
    assert len(queue) == 1
    assert not Queue()


def test_nothing_is_taken_of_nothing():
    assert Queue().take(0) == []
    assert list(Queue().ready(0.0)) == []
    assert Queue().next_due is None


def test_what_waits_to_be_tried_again_is_the_same_try():
    queue, again = Queue(), Try(a_try("r").request, number=3, charged=2)
    queue.again([(again, 0.0)])
    assert queue.take(len(list(queue.ready(0.0)))) == [again]


steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 5)),
        st.tuples(st.just("again"), st.lists(st.integers(-5, 20), min_size=1, max_size=4)),
        st.tuples(st.just("take"), st.integers(0, 6)),
        st.tuples(st.just("wait"), st.integers(0, 8)),
    ),
    max_size=40,
)


@settings(max_examples=100)
@given(steps)
def test_nothing_is_lost_or_doubled_or_early(steps):
    """Against a plain model: two lists and a heap."""
    queue, made, now = Queue(), 0, 0.0
    new, due, later = [], [], []
    for verb, argument in steps:
        if verb == "add":
            keys = [f"n{made + number}" for number in range(argument)]
            queue.add(map(a_try, keys))
            new += keys
            made += argument
        elif verb == "again":
            for wait in argument:
                made += 1
                queue.again([(a_try(f"r{made}", 2), now + wait)])
                heapq.heappush(later, (now + wait, made, f"r{made}"))
        elif verb == "wait":
            now += argument
        else:
            while later and later[0][0] <= now:
                due.append(heapq.heappop(later)[2])
            expected = due + new
            shown = names(queue.ready(now))
            assert shown == expected
            count = min(argument, len(shown))
            assert names(queue.take(count)) == expected[:count]
            new = new[max(count - len(due), 0) :]
            due = due[count:]
        assert len(queue) == len(new) + len(due) + len(later)
    assert sorted(names(queue.ready(1e9))) == sorted(new + due + [name for *_, name in later])


def test_new_ones_go_first_if_asked_for_and_then_those_that_are_due():
    queue = filled("new 1", "new 2")
    queue.again([(a_try(name), 1.0) for name in ("old 1", "old 2")])
    assert names(queue.ready(1.0)) == ["old 1", "old 2", "new 1", "new 2"]
    assert names(queue.ready(1.0, new_first=True)) == ["new 1", "new 2", "old 1", "old 2"]
    assert names(queue.take(3, new_first=True)) == ["new 1", "new 2", "old 1"]
    assert names(queue.ready(1.0)) == ["old 2"]
