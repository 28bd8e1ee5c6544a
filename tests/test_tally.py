from batcher.request import Attempt, Outcome, Row, Settled, Settlement
from batcher.tally import Tally

ROW = Row(1, b"k" * 16, "a")


def settled(*states, sent_at=1.0, **attempt):
    made = Attempt(**{"id": 1, "billed": "yes", "ended_at": 2.0, "sent_at": sent_at, **attempt})
    return Settled(Settlement(made, tuple(Outcome(ROW, state) for state in states)))


def test_an_answer_counts_with_its_tokens_and_cost():
    tally = Tally(in_flight=1)
    tally.add(settled("done", prompt_tokens=10, completion_tokens=2, cost_pico_usd=7), number=1)
    assert tally == Tally(succeeded=1, requests=1, prompt_tokens=10, completion_tokens=2, cost_pico_usd=7)


def test_an_unknown_price_is_counted_and_not_taken_for_nothing():
    tally = Tally(in_flight=2)
    tally.add(settled("done", cost_pico_usd=None), number=1)
    tally.add(settled("done", cost_pico_usd=5), number=1)
    assert (tally.unpriced, tally.cost_pico_usd) == (1, 5)


def test_rows_count_by_their_end():
    tally = Tally(in_flight=1)
    tally.add(settled("done", "done", "refused", "exhausted", "in_doubt"), number=1)
    assert (tally.succeeded, tally.failed, tally.in_doubt, tally.ended) == (2, 2, 1, 5)


def test_an_attempt_that_ends_no_row_is_a_request_all_the_same():
    tally = Tally(in_flight=1)
    tally.add(settled(billed="no"), number=1)
    assert tally == Tally(requests=1)


def test_all_but_the_first_attempt_of_a_request_are_retries():
    tally = Tally(in_flight=3)
    for number in (1, 2, 3):
        tally.add(settled(), number)
    assert (tally.requests, tally.retries, tally.in_flight) == (3, 2, 0)


def test_what_never_left_is_no_request():
    tally = Tally(in_flight=1)
    tally.add(settled(sent_at=None, billed="no"), number=2)
    assert tally == Tally()


def test_a_rejected_line_is_a_failed_row():
    tally = Tally(already_done=4)
    tally.reject(3)
    assert (tally.failed, tally.rejected, tally.ended) == (3, 3, 7)
