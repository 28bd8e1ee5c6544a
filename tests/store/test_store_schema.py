"""The catalogue of statements, and the states that the schema does not let in."""

import re
import sqlite3
from contextlib import closing
from importlib.resources import files

import pytest

from batcher.store.catalogue import MAX_VALUES, many, queries, query, script, width

TEXT = files("batcher.store").joinpath("queries.sql").read_text("utf-8")


@pytest.fixture
def db():
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        for statement in script("schema"):
            db.execute(statement)
        yield db


@pytest.mark.parametrize("name", queries())
def test_every_statement_prepares_against_the_schema(db, name):
    if name in ("rows_by_key", "index_keys_order"):
        db.execute(query("index_keys"))
    if name in ("meet_names", "who_met", "meet_body"):
        db.execute(query("seen_schema"))
        db.execute(query("seen_schema_bodies"))
    sql = query(name)
    db.execute(f"EXPLAIN {sql}", [None] * sql.count("?"))


@pytest.mark.parametrize("name", queries())
def test_every_statement_is_described(name):
    head = re.search(rf"^-- name: {name}\n((?:--.*\n)+)", TEXT, re.MULTILINE)
    description = head[1].replace("--", "").strip()
    assert len(description) > 15
    assert description[0].isupper()
    assert description[-1] in ".?:"


def test_names_are_unique_and_none_is_missed():
    names = re.findall(r"^-- name: (.*)$", TEXT, re.MULTILINE)
    assert names == list(queries())
    assert all(sqlite3.complete_statement(f"{sql};") for sql in queries().values())


def test_every_statement_is_used():
    sources = [path for path in files("batcher.store").iterdir() if path.name.endswith(".py")]
    used = "".join(path.read_text("utf-8") for path in sources)
    used += files("batcher").joinpath("results.py").read_text("utf-8")
    assert [name for name in queries() if f'"{name}"' not in used] == []


@pytest.mark.parametrize(
    ("name", "values", "ending"),
    [
        ("insert_rows", 4, "VALUES (?, ?, ?, ?), (?, ?, ?, ?), (?, ?, ?, ?)"),
        ("detach_rows", 1, "WHERE id IN (?, ?, ?)"),
        ("attach_rows", 3, None),
        ("insert_settlements", 12, None),
        ("insert_attempts", 8, None),
        ("insert_outcomes", 10, None),
    ],
)
def test_a_list_of_values_is_repeated(db, name, values, ending):
    sql = many(name, 3)
    assert sql.count("?") == 3 * values == 3 * width(name)
    assert ending is None or sql.endswith(ending)
    db.execute(f"EXPLAIN {sql}", [None] * sql.count("?"))


def test_a_statement_may_take_as_many_values_as_are_given_to_it(db):
    assert db.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER) >= MAX_VALUES


# --- states

ROW = {"id": 1, "seq": 1, "key": bytes(16), "custom_id": "a"}
ATTEMPT = {
    "id": 1,
    "rows": "[1]",
    "key": "k",
    "number": 1,
    "model": "m",
    "claimed_at": 1.0,
    "tokens": 10,
    "worst_cost_pico_usd": None,
}
ANSWER = {
    "attempt": 1,
    "billed": "yes",
    "sent_at": 1.0,
    "ended_at": 2.0,
    "status": 200,
    "error": None,
    "request_id": None,
    "prompt_tokens": 7,
    "cached_tokens": 7,
    "completion_tokens": 3,
    "cost_pico_usd": 5,
    "replayed": 0,
}
FAILURE = {
    **ANSWER,
    "billed": "maybe",
    "status": None,
    "error": "lost",
    "prompt_tokens": 0,
    "cached_tokens": 0,
    "completion_tokens": 0,
    "cost_pico_usd": 0,
}
DONE = {
    "row": 1,
    "state": "done",
    "attempt": 1,
    "status": 200,
    "request_id": None,
    "body": b"{}",
    "code": None,
    "message": None,
    "line": None,
    "finish": None,
}
REFUSED = {
    **DONE,
    "state": "refused",
    "attempt": None,
    "status": None,
    "body": None,
    "code": "c",
    "message": "m",
}
JOB = {"id": 1, "namespace": "n", "base_url": "u", "created_at": 1.0, "pid": None, "line_count": None}

LEGAL = [
    ("job", JOB, {}),
    ("job", JOB, {"line_count": 0}),
    ("rows", ROW, {}),
    ("rows", ROW, {"seq": None}),
    ("attempts", ATTEMPT, {}),
    ("attempts", ATTEMPT, {"key": "k" * 64, "worst_cost_pico_usd": 0}),
    ("settlements", ANSWER, {}),
    ("settlements", ANSWER, {"cost_pico_usd": None}),
    ("settlements", FAILURE, {}),
    ("settlements", FAILURE, {"billed": "no"}),
    ("settlements", FAILURE, {"billed": "yes", "cost_pico_usd": 9}),
    ("settlements", ANSWER, {"replayed": 1}),
    ("settlements", FAILURE, {"replayed": 1}),
    ("outcomes", DONE, {}),
    ("outcomes", DONE, {"finish": "length"}),
    ("outcomes", DONE, {"finish": "content_filter"}),
    ("outcomes", REFUSED, {}),
    ("outcomes", REFUSED, {"state": "exhausted", "attempt": 1, "status": 500, "body": b"x", "line": b"y"}),
    ("outcomes", REFUSED, {"state": "in_doubt", "attempt": 1}),
]
ILLEGAL = [
    ("job", JOB, {"id": 2}),
    ("job", JOB, {"namespace": ""}),
    ("job", JOB, {"namespace": None}),
    ("job", JOB, {"line_count": -1}),
    ("rows", ROW, {"seq": 0}),
    ("rows", ROW, {"key": bytes(15)}),
    ("rows", ROW, {"key": None}),
    ("rows", ROW, {"custom_id": None}),
    ("attempts", ATTEMPT, {"key": ""}),
    ("attempts", ATTEMPT, {"key": "k" * 65}),
    ("attempts", ATTEMPT, {"number": 0}),
    ("attempts", ATTEMPT, {"tokens": -1}),
    ("attempts", ATTEMPT, {"rows": None}),
    ("attempts", ATTEMPT, {"worst_cost_pico_usd": -1}),
    ("settlements", ANSWER, {"billed": "perhaps"}),
    ("settlements", ANSWER, {"billed": "no", "cost_pico_usd": 0}),  # an answer is billed
    ("settlements", ANSWER, {"billed": "maybe", "cost_pico_usd": 0}),
    ("settlements", ANSWER, {"status": None}),  # an answer has a status
    ("settlements", ANSWER, {"prompt_tokens": -1}),
    ("settlements", ANSWER, {"cached_tokens": 8}),  # more than the prompt
    ("settlements", ANSWER, {"completion_tokens": -1}),
    ("settlements", ANSWER, {"cost_pico_usd": -1}),
    ("settlements", ANSWER, {"ended_at": None}),
    ("settlements", FAILURE, {"cost_pico_usd": 5}),  # what is not certain has no certain cost
    ("settlements", FAILURE, {"billed": "no", "cost_pico_usd": 5}),
    ("settlements", FAILURE, {"billed": "no", "cost_pico_usd": None}),
    ("settlements", ANSWER, {"replayed": 2}),
    ("settlements", ANSWER, {"replayed": None}),
    ("outcomes", DONE, {"state": "pending"}),
    ("outcomes", DONE, {"code": "c", "message": "m"}),  # an answer has no error
    ("outcomes", DONE, {"attempt": None}),
    ("outcomes", DONE, {"finish": "stop"}),
    ("outcomes", REFUSED, {"finish": "length"}),  # only an answer ends early
    ("outcomes", DONE, {"status": None}),
    ("outcomes", DONE, {"body": None}),
    ("outcomes", REFUSED, {"code": None, "message": None}),  # a failure has one
    ("outcomes", REFUSED, {"message": None}),
    ("outcomes", REFUSED, {"state": "in_doubt", "code": None}),
]


def insert(db, table, values):
    db.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(values))})", list(values.values()))


@pytest.mark.parametrize(("table", "base", "change"), LEGAL)
def test_legal_states_are_let_in(db, table, base, change):
    insert(db, table, base | change)


@pytest.mark.parametrize(("table", "base", "change"), ILLEGAL)
def test_illegal_states_are_refused(db, table, base, change):
    with pytest.raises(sqlite3.IntegrityError):
        insert(db, table, base | change)
    assert db.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


def test_no_two_rows_stand_on_a_line(db):
    insert(db, "rows", ROW)
    with pytest.raises(sqlite3.IntegrityError):
        insert(db, "rows", ROW | {"id": 2, "key": b"1" * 16})
    insert(db, "rows", ROW | {"id": 2, "seq": None, "key": b"1" * 16})
    insert(db, "rows", ROW | {"id": 3, "seq": None, "key": b"2" * 16})


@pytest.mark.parametrize(("table", "values"), [("settlements", ANSWER), ("outcomes", DONE)])
def test_nothing_ends_twice(db, table, values):
    insert(db, table, values)
    with pytest.raises(sqlite3.IntegrityError):
        insert(db, table, values)
