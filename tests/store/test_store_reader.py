"""What a store says of its job: totals of the rows in the file, and a bill of every attempt ever made."""

import sqlite3
from contextlib import closing

import pytest

from batcher.errors import StoreError
from batcher.store import file, reader
from batcher.store.reader import ModelBill


@pytest.fixture
def path(tmp_path):
    file.make(tmp_path / "job.db", "space", "http://localhost/v1", 1.0)
    return tmp_path / "job.db"


def write(path, *statements):
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN")
        for sql, values in statements:
            db.execute(sql, values)
        db.execute("COMMIT")


def row(number, seq):
    return "INSERT INTO rows VALUES (?, ?, ?, ?)", (number, seq, number.to_bytes(16), f"r{number}")


def attempt(number, model="m", worst=100, key="k", claimed_at=1.0):
    return (
        "INSERT INTO attempts VALUES (?, '[1]', ?, 1, ?, ?, 10, ?)",
        (number, key, model, claimed_at, worst),
    )


def settled(number, billed, cost=0, tokens=(0, 0, 0), status=200, replayed=0, sent_at=1.0):
    error = None if billed == "yes" else "lost"
    return (
        "INSERT INTO settlements VALUES (?, ?, ?, 2.0, ?, ?, NULL, ?, ?, ?, ?, ?)",
        (number, billed, sent_at, status, error, *tokens, cost, replayed),
    )


def ended(number, state, code="c", finish=None):
    done = state == "done"
    return (
        "INSERT INTO outcomes VALUES (?, ?, 1, 200, NULL, x'7b7d', ?, ?, NULL, ?)",
        (number, state, None if done else code, None if done else "m", finish),
    )


def test_a_new_store_holds_nothing(path):
    contents = reader.read(path)
    assert (contents.namespace, contents.base_url, contents.line_count) == (
        "space",
        "http://localhost/v1",
        None,
    )
    assert (contents.done, contents.ended, contents.by_model) == (0, 0, {})


def test_rows_are_counted_by_their_end_as_long_as_they_are_in_the_file(path):
    states = ["done", "done", "done", "refused", "refused", "exhausted", "in_doubt"]
    rows = [row(number, number) for number in range(1, 10)]
    write(path, *rows, *(ended(number, state) for number, state in enumerate(states, 1)))
    write(path, ("UPDATE rows SET seq = NULL WHERE id IN (3, 5)", ()))
    contents = reader.read(path)
    assert (contents.done, contents.refused, contents.exhausted, contents.in_doubt) == (2, 1, 1, 1)
    assert contents.ended == 5


def test_failures_are_counted_by_their_code_and_answers_that_ended_early_by_why(path):
    rows = [row(number, number) for number in range(1, 10)]
    ends = [
        ended(1, "done"),
        ended(2, "done", finish="length"),
        ended(3, "done", finish="content_filter"),
        ended(4, "done", finish="length"),
        ended(5, "refused", "content_filter"),
        ended(6, "exhausted", "server_error"),
        ended(7, "in_doubt", "server_error"),
        ended(8, "refused", "length"),
    ]
    write(path, *rows, *ends)
    contents = reader.read(path)
    assert (contents.done, contents.truncated, contents.filtered) == (4, 2, 1)
    assert contents.by_error == {"server_error": 2, "content_filter": 1, "length": 1}
    assert next(iter(contents.by_error)) == "server_error"


def test_the_bill_adds_up_per_model(path):
    write(
        path,
        *(attempt(number) for number in (1, 2, 3)),
        attempt(4, "other", 7),
        settled(1, "yes", 50, (10, 4, 2)),
        settled(2, "no"),
        settled(3, "yes", 60, (20, 0, 3)),
        settled(4, "yes", 1, (1, 1, 1)),
    )
    assert reader.read(path).by_model == {
        "m": ModelBill(
            requests=3,
            answered=2,
            prompt_tokens=30,
            cached_tokens=4,
            completion_tokens=5,
            cost_pico_usd=110,
            in_doubt=0,
            in_doubt_pico_usd_max=0,
        ),
        "other": ModelBill(
            requests=1,
            answered=1,
            prompt_tokens=1,
            cached_tokens=1,
            completion_tokens=1,
            cost_pico_usd=1,
            in_doubt=0,
            in_doubt_pico_usd_max=0,
        ),
    }


def test_an_unknown_price_makes_the_cost_unknown_and_not_zero(path):
    write(path, attempt(1), attempt(2), settled(1, "yes", 50), settled(2, "yes", None))
    assert reader.read(path).by_model["m"].cost_pico_usd is None


def test_what_is_in_doubt_is_bound_by_the_worst_of_each(path):
    write(
        path,
        *(attempt(number, worst=number * 100) for number in (1, 2, 3, 4)),
        settled(1, "maybe"),
        settled(2, "no"),
        settled(3, "yes", 5),
        # the fourth is claimed and not settled: as much in doubt
    )
    bill = reader.read(path).by_model["m"]
    assert (bill.in_doubt, bill.in_doubt_pico_usd_max, bill.cost_pico_usd) == (2, 500, 5)


@pytest.mark.parametrize("settlement", [[], [settled(1, "maybe")]])
def test_a_doubt_without_a_bound_makes_the_bound_unknown(path, settlement):
    write(path, attempt(1, worst=None), attempt(2, worst=5), *settlement, settled(2, "maybe"))
    bill = reader.read(path).by_model["m"]
    assert (bill.in_doubt, bill.in_doubt_pico_usd_max) == (2, None)


def test_no_bound_is_no_matter_where_there_is_no_doubt(path):
    write(path, attempt(1, worst=None), attempt(2, worst=None), settled(1, "yes", 5), settled(2, "no"))
    bill = reader.read(path).by_model["m"]
    assert (bill.in_doubt, bill.in_doubt_pico_usd_max) == (0, 0)


def test_only_claims_are_a_bill_of_nothing_certain(path):
    write(path, attempt(1))
    bill = reader.read(path).by_model["m"]
    assert (bill.requests, bill.answered, bill.prompt_tokens, bill.cost_pico_usd) == (1, 0, 0, 0)


# --- what the server has said again


def test_an_answer_that_came_again_settles_one_doubt_of_its_key(path):
    write(
        path,
        *(attempt(number, key="a") for number in (1, 2, 3)),
        attempt(4, key="b"),
        settled(1, "maybe"),
        settled(2, "maybe"),
        settled(3, "yes", 50, (10, 4, 2), replayed=1),
        settled(4, "maybe"),
    )
    bill = reader.read(path).by_model["m"]
    assert (bill.requests, bill.answered, bill.cost_pico_usd) == (4, 1, 50)
    # another attempt may have been worked on beside it, and the other key has brought nothing yet
    assert (bill.in_doubt, bill.in_doubt_pico_usd_max) == (2, 200)
    assert [each[8] for each in reader.rows(path, "attempts_log")] == ["replayed", "maybe", "yes", "maybe"]


def test_a_failure_that_came_again_settles_the_doubts_of_its_key_unless_it_is_one_itself(path):
    write(
        path,
        attempt(1, key="a"),
        settled(1, "maybe"),
        attempt(2, key="a"),
        settled(2, "no", replayed=1, status=500),
        attempt(3, key="b"),
        settled(3, "maybe"),
        attempt(4, key="b"),
        settled(4, "maybe", replayed=1, status=504),
    )
    bill = reader.read(path).by_model["m"]
    assert (bill.in_doubt, bill.in_doubt_pico_usd_max) == (2, 200)
    assert [each[8] for each in reader.rows(path, "attempts_log")] == ["replayed", "no", "maybe", "maybe"]


def test_an_answer_that_is_no_replay_leaves_the_doubts_of_its_key(path):
    write(path, attempt(1), settled(1, "maybe"), attempt(2), settled(2, "yes", 50))
    assert reader.read(path).by_model["m"].in_doubt == 1
    assert [each[8] for each in reader.rows(path, "attempts_log")] == ["maybe", "yes"]


def test_what_was_in_flight_at_a_crash_is_in_doubt_no_longer_once_its_answer_came_again(path):
    write(path, attempt(1), settled(1, "maybe"), attempt(2), settled(2, "yes", 50, replayed=1))
    bill = reader.read(path).by_model["m"]
    assert (bill.requests, bill.in_doubt, bill.in_doubt_pico_usd_max) == (2, 0, 0)


# --- how long a key covers what is in doubt

TTL_S = 100.0


def doubt(number, key, sent_at):
    return [attempt(number, key=key, claimed_at=sent_at - 1), settled(number, "maybe", sent_at=sent_at)]


@pytest.mark.parametrize(("again_at", "count"), [(1000 + TTL_S, 0), (1000 + TTL_S + 1, 1)])
def test_a_doubt_that_was_sent_again_later_than_its_key_lasts_is_past_it(path, again_at, count):
    write(path, *doubt(1, "a", 1000.0), attempt(2, key="a", claimed_at=again_at), settled(2, "yes", 5))
    for wall in (again_at + 1, again_at + 1e6):
        assert reader.past_key_ttl(path, wall, TTL_S) == count


@pytest.mark.parametrize(("wall", "count"), [(1000 + TTL_S, 0), (1000 + TTL_S + 1, 1)])
def test_a_doubt_that_was_not_sent_again_is_past_it_once_it_is_that_old(path, wall, count):
    # what was sent under other keys, or before it, is nothing to it
    write(path, attempt(1, key="a", claimed_at=900.0), settled(1, "no"), *doubt(2, "a", 1000.0))
    write(path, attempt(3, key="b", claimed_at=1050.0), settled(3, "yes", 5))
    assert reader.past_key_ttl(path, wall, TTL_S) == count


def test_what_was_sent_again_in_time_is_covered_for_good_and_the_next_doubt_begins_anew(path):
    write(path, *doubt(1, "a", 1000.0), *doubt(2, "a", 1050.0), *doubt(3, "a", 1150.0))
    # the first two were followed in time: only the last is open
    assert reader.past_key_ttl(path, 1150.0 + TTL_S, TTL_S) == 0
    assert reader.past_key_ttl(path, 1150.0 + TTL_S + 1, TTL_S) == 1


def test_a_doubt_that_has_no_time_of_leaving_counts_from_its_claim(path):
    write(path, attempt(1, claimed_at=1000.0), settled(1, "maybe", sent_at=None))
    assert reader.past_key_ttl(path, 1000.0 + TTL_S, TTL_S) == 0
    assert reader.past_key_ttl(path, 1000.0 + TTL_S + 1, TTL_S) == 1


def test_what_is_certain_or_was_said_again_is_never_past_it(path):
    write(
        path,
        attempt(1, key="a"),
        settled(1, "yes", 5),
        attempt(2, key="b"),
        settled(2, "no"),
        *doubt(3, "c", 1000.0),
        attempt(4, key="c", claimed_at=5000.0),
        settled(4, "yes", 5, replayed=1),
    )
    assert reader.past_key_ttl(path, 1e9, TTL_S) == 0


# --- rows


@pytest.mark.parametrize("count", [0, 1, 499, 500, 501, 1000, 1001])
def test_attempts_come_in_the_order_of_their_claims_however_many(path, count):
    write(path, row(1, 1), *(attempt(number) for number in range(1, count + 1)))
    assert [each[0] for each in reader.rows(path, "attempts_log")] == list(range(1, count + 1))


def test_an_attempt_goes_by_the_names_of_its_rows(path):
    pack = ("INSERT INTO attempts VALUES (2, '[3,1]', 'k', 1, 'm', 1.0, 10, NULL)", ())
    write(path, row(1, 1), row(2, 2), row(3, 3), attempt(1), pack)
    assert [each[2] for each in reader.rows(path, "attempts_log")] == ['["r1"]', '["r3","r1"]']


def test_a_reader_that_takes_its_time_holds_no_checkpoint_back(path):
    write(path, *(row(number, number) for number in range(1, 1001)))
    write(path, *(ended(number, "done") for number in range(1, 1001)))
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL").fetchall()
        db.execute("UPDATE job SET pid = 7")
        rows = reader.rows(path, "results")
        assert next(rows)[1] == "r1"
        db.execute("UPDATE job SET pid = 8")
        # Was it held back, how long is the log, how much of it is in the file?
        assert db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)
        assert len(list(rows)) == 999


def test_rows_come_in_the_order_of_the_file_however_many(path):
    count = 1234
    write(
        path,
        *(row(number, count + 1 - number) for number in range(1, count + 1)),
        *(ended(number, "done") for number in range(1, count + 1)),
    )
    assert [each[1] for each in reader.rows(path, "results")] == [f"r{n}" for n in range(count, 0, -1)]


def test_a_reader_that_stops_in_between_closes_its_connection(path):
    write(path, row(1, 1), row(2, 2), ended(1, "done"), ended(2, "done"))
    rows = reader.rows(path, "results")
    assert next(rows)[1] == "r1"
    rows.close()  # an unclosed connection would be a warning, and so an error


def test_reading_writes_nothing(path):
    before = path.read_bytes(), path.stat().st_mtime_ns
    reader.read(path)
    list(reader.rows(path, "attempts_log"))
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_a_store_without_its_job_is_refused(path):
    write(path, ("DELETE FROM job", ()))
    with pytest.raises(StoreError, match="can't be read"):
        reader.read(path)


def test_a_store_that_lost_its_tables_is_refused(path):
    write(path, row(1, 1), ("DROP TABLE outcomes", ()))
    for opener in (reader.read, lambda path: list(reader.rows(path, "results"))):
        with pytest.raises(StoreError, match="can't be read: no such table"):
            opener(path)
