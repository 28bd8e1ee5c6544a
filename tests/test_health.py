"""One lost attempt says little; several tell that the endpoint is down, and that it is not the rows."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.health import ALL_ABSENT, FEW, IN_A_ROW, TAIL_PATIENCE_S, Health
from batcher.request import Claimed, Lost, Reply, Request, Row
from batcher.verdict import Again, Done, Fail, Halt, Hold, Policy, judge

DONE = Done(200, None, (b"{}",), None)
FAIL = Fail("refused", "bad_request", "bad", "no", 400)


def claimed(key):
    request = Request((Row(1, b"k" * 16, "a"),), key, "shared", "m", "/v1/responses", b"{}", 1, None)
    return Claimed(1, request, 1, 0)


def lost(sent_at, ended_at):
    return Lost(True, "reset", "r", sent_at, ended_at)


def unreachable(now):
    return Lost(False, "connect", "refused", None, now)


def answered(now, status=200):
    return Reply(status, (), b"{}", now, now)


def standing(health, landed, pool_holds=0, all_tried=False, key="a", left=9):
    return health.standing(key, landed, pool_holds=pool_holds, probe=False, left=left, all_tried=all_tried)


def stuck(message="m"):
    return Again(0.0, True, "server_error", message, "no", 500)


def again(now, error="not_found"):
    return Again(now, False, error, "nothing there", "no", 404)


def hold(until, scope="endpoint"):
    return Hold(scope, until, until, False, "reset", "it is lost", "maybe")


def test_one_lost_attempt_says_nothing():
    health = Health(1800.0)
    assert not standing(health, lost(0.0, 1.0)).down
    # nor do others that had left before it was known
    assert not standing(health, lost(0.5, 2.0)).down


def test_a_second_that_was_sent_after_the_first_was_lost_tells_an_outage():
    health = Health(1800.0)
    standing(health, lost(0.0, 1.0))
    assert standing(health, lost(1.0, 2.0)).down
    assert standing(health, lost(0.0, 3.0)).down


def test_an_answer_of_any_kind_in_between_clears_it():
    for status in (200, 400, 429, 500):
        health = Health(1800.0)
        standing(health, lost(0.0, 1.0))
        standing(health, answered(1.5, status))
        assert not standing(health, lost(2.0, 3.0)).down
        assert standing(health, lost(3.0, 4.0)).down
        assert not standing(health, answered(5.0, status)).down


def test_so_many_in_a_row_need_no_second_wave():
    health = Health(1800.0)
    downs = [standing(health, lost(0.0, 1.0)).down for number in range(IN_A_ROW)]
    assert downs == [False] * (IN_A_ROW - 1) + [True]


def test_what_can_not_leave_tells_it_at_once():
    assert standing(Health(1800.0), unreachable(1.0)).down


def test_the_tail_begins_when_all_that_is_left_has_failed_before_and_others_have_not():
    health = Health(1800.0)
    assert not standing(health, lost(0.0, 1.0), all_tried=True).tail
    health.learn(DONE, claimed("x"), None, 1.0)
    assert standing(health, lost(0.0, 1.0), all_tried=True).tail
    assert not standing(health, lost(0.0, 1.0)).tail


def test_in_the_tail_rows_that_were_lost_where_others_were_answered_are_suspect():
    health = Health(1800.0)
    health.learn(DONE, claimed("x"), None, 0.0)
    standing(health, lost(0.0, 1.0), key="bad")
    standing(health, lost(0.0, 1.1), key="worse")
    standing(health, answered(2.0), key="x")
    assert standing(health, lost(2.0, 3.0), key="bad", all_tried=True, left=2).suspect
    assert not standing(health, lost(2.0, 3.0), key="bad", left=2).suspect
    # another that is left was not: then it is the endpoint
    assert not standing(health, lost(2.0, 3.0), key="bad", all_tried=True, left=3).suspect
    health.learn(FAIL, claimed("worse"), None, 4.0)
    assert not standing(health, lost(4.0, 5.0), key="bad", all_tried=True, left=2).suspect
    assert standing(health, lost(4.0, 5.0), key="bad", all_tried=True, left=1).suspect


def test_what_an_outage_has_lost_is_not_suspect_after_it():
    health = Health(1800.0)
    health.learn(DONE, claimed("x"), None, 0.0)
    for key, landed in (("a", lost(0.0, 1.0)), ("b", lost(1.0, 2.0)), ("c", unreachable(3.0))):
        standing(health, landed, key=key)
    standing(health, answered(4.0), key="x")
    assert not standing(health, lost(4.0, 5.0), key="a", all_tried=True, left=2).suspect


def test_a_row_that_has_ended_is_no_suspect_that_is_left():
    health = Health(1800.0)
    health.learn(DONE, claimed("x"), None, 0.0)
    standing(health, lost(0.0, 1.0), key="ended")
    health.learn(FAIL, claimed("ended"), None, 1.0)
    standing(health, answered(2.0), key="x")
    assert not standing(health, lost(2.0, 3.0), key="good", all_tried=True, left=1).suspect


def test_where_nothing_is_answered_for_long_and_few_are_left_they_are_suspect():
    health = Health(1800.0)
    health.learn(DONE, claimed("x"), None, 0.0)
    for end, suspect in ((1.0, False), (1.0 + TAIL_PATIENCE_S, False), (1.1 + TAIL_PATIENCE_S, True)):
        assert standing(health, lost(0.5, end), all_tried=True, left=FEW).suspect is suspect
        assert not standing(health, lost(0.5, end), all_tried=True, left=FEW + 1).suspect


def test_a_row_that_ends_while_all_others_are_held_does_not_end_the_stall():
    health = Health(100.0)
    health.learn(hold(3600.0, "pool"), claimed("a"), None, 0.0)
    health.learn(DONE, claimed("x"), None, 10.0)
    assert health.stalls_in_s(10.0) == 100.0
    health.learn(DONE, claimed("x"), None, 3600.0)
    assert health.stalls_in_s(3600.0) is None


def test_our_own_stop_says_nothing():
    health = Health(1800.0)
    for time in range(100):
        assert not standing(health, Lost(True, "closed", "r", time, time)).down
        assert not standing(health, Lost(False, "stopped", "r", None, time)).down


def test_the_backoff_grows_with_the_holds_of_the_endpoint_and_not_within_one():
    health = Health(1800.0)
    for now, until, holds in ((0.0, 5.0, 1), (1.0, 5.5, 1), (4.9, 6.0, 1), (6.0, 9.0, 2), (9.0, 20.0, 3)):
        assert standing(health, unreachable(now)).holds >= 0
        health.learn(hold(until), claimed("a"), None, now)
        assert standing(health, unreachable(now)).holds == holds
    # a refusal of the pool counts its own
    assert standing(health, answered(21.0, 429), 7).holds == 7
    assert standing(health, unreachable(22.0)).holds == 0


def test_nothing_gets_on_from_the_first_failure_to_the_end_of_a_row():
    health = Health(100.0)
    assert health.stalls_in_s(1e9) is None
    for now, verdict in ((10.0, stuck()), (50.0, stuck()), (60.0, hold(70.0)), (65.0, hold(70.0, "pool"))):
        assert health.learn(verdict, claimed("a"), None, now) is None
        assert health.stalls_in_s(now) == 110.0 - now
    for end in (DONE, FAIL):
        health.learn(stuck(), claimed("a"), None, 70.0)
        health.learn(end, claimed("a"), None, 80.0)
        assert health.stalls_in_s(1e9) is None


def test_a_row_that_ends_in_doubt_for_an_outage_is_no_progress():
    health = Health(100.0)
    verdict = Fail("in_doubt", "reset", "lost", "maybe", hold_until=5.0)
    health.learn(verdict, claimed("a"), None, 4.0)
    assert health.stalls_in_s(4.0) == 100.0


def test_a_stall_says_what_stood_in_the_way():
    health = Health(100.0)
    health.learn(stuck("the door is closed"), claimed("a"), None, 0.0)
    assert health.stall().kind == "stall"
    assert health.stall().reason.startswith("the door is closed; nothing has got on for longer")


def test_a_halt_stops_the_run():
    stop = Health(1.0).learn(Halt("quota", "no credit", "no", 429), claimed("a"), None, 0.0)
    assert (stop.kind, stop.reason) == ("quota", "no credit")


def absent(health, count, left=None):
    return [health.learn(again(1.0), claimed(str(number)), left, 0.0) for number in range(count)]


def test_where_nothing_is_ever_found_the_run_stops():
    stops = absent(Health(1.0), ALL_ABSENT)
    assert stops[:-1] == [None] * (ALL_ABSENT - 1)
    assert stops[-1].kind == "not_found"


def test_or_as_soon_as_it_is_true_of_all_that_are_left():
    assert [stop and stop.kind for stop in absent(Health(1.0), 3, left=3)] == [None, None, "not_found"]


def test_the_same_request_counts_once():
    health = Health(1.0)
    for _ in range(2 * ALL_ABSENT):
        assert health.learn(again(1.0), claimed("a"), 2, 0.0) is None


def test_once_something_was_found_it_is_the_rows():
    health = Health(1.0)
    absent(health, ALL_ABSENT - 1)
    assert not standing(health, answered(1.0)).found
    health.learn(DONE, claimed("x"), None, 1.0)
    assert standing(health, answered(1.0)).found


def test_an_outage_is_told_when_it_goes_on_and_when_it_ends():
    health = Health(1800.0)
    for now in (0.0, 10.0, 20.0):
        standing(health, unreachable(now))
        health.learn(hold(now + 5.0), claimed("a"), None, now)
    standing(health, answered(30.0))
    assert list(health.notices) == [
        "it is lost; all rows wait, and one request goes first now and then",
        "the server answers again",
    ]


def test_a_short_one_is_not_told():
    health = Health(1800.0)
    standing(health, unreachable(0.0))
    health.learn(hold(5.0), claimed("a"), None, 0.0)
    standing(health, answered(6.0))
    assert not health.notices


@pytest.mark.parametrize(
    ("max_stall_s", "more"),
    [(3600.0, ""), (1800.0, ", which is longer than --max-stall: the run stops before that")],
)
def test_a_long_pause_of_a_pool_is_told(max_stall_s, more):
    health = Health(max_stall_s)
    health.learn(hold(3600.0, "pool"), claimed("a"), None, 0.0)
    health.learn(hold(10.0, "pool"), claimed("a"), None, 0.0)
    assert list(health.notices) == ["it is lost; the next request goes in 1:00:00" + more]


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(["answer", "lose", "refuse"])), max_size=60)
)
def test_nothing_is_held_free_of_charge_while_the_endpoint_answers(events):
    """Whatever comes: right after an answer a single loss is charged, and what is down ends by an answer."""
    health, policy = Health(1800.0), Policy()
    for now, (key, event) in enumerate(events):
        landed = {"answer": answered(now), "lose": lost(now - 0.5, now), "refuse": unreachable(now)}[event]
        state = standing(health, landed)
        verdict = judge(claimed(key), landed, now, 0.5, policy, state)
        assert health.learn(verdict, claimed(key), None, now) is None
        if event == "answer":
            assert not state.down
        previous = events[now - 1][1] if now else "answer"
        if event == "lose" and previous == "answer" and now:
            assert not state.down
        assert state.down or event != "refuse"


def test_what_a_server_only_says_again_tells_nothing_of_how_it_is_now():
    health = Health(1800)
    said_again = msgspec.structs.replace(again(0.0), replayed=True)
    assert [health.learn(said_again, claimed(str(each)), 1, 0.0) for each in range(200)] == [None] * 200
    old = msgspec.structs.replace(answered(1.0, 502), headers=((b"idempotent-replayed", b"true"),))
    for _ in range(50):
        assert not standing(health, old).down
