"""The named statements of `queries.sql`."""

import re
import sqlite3
from functools import cache
from importlib.resources import files
from typing import Final

#: Marks a SQLite file as ours: "btcr" (`PRAGMA application_id`).
APPLICATION_ID: Final = 0x62746372
#: The version of `schema.sql` (`PRAGMA user_version`).
SCHEMA_VERSION: Final = 3
#: The oldest version that `upgrade.sql` brings up to it.
OLDEST_VERSION: Final = 2

#: One statement takes so many values at most: SQLite's own bound is 32,766 since 3.32.
MAX_VALUES: Final = 30_000

_NAME = re.compile(r"^-- name: (\w+)\n((?:--.*\n)+)", re.MULTILINE)


def script(name: str) -> list[str]:
    """Return the statements of `schema`, which make a store, or of `upgrade`, which bring one up to date.

    One by one: `executescript` would end the transaction that makes them all or nothing.
    """
    text = files("batcher.store").joinpath(f"{name}.sql").read_text("utf-8")
    statements, start = [], 0
    for end, character in enumerate(text, 1):
        if character == ";" and sqlite3.complete_statement(text[start:end]):
            statements.append(text[start:end])
            start = end
    return statements


@cache
def queries() -> dict[str, str]:
    """Return every statement by its name."""
    text = files("batcher.store").joinpath("queries.sql").read_text("utf-8")
    parts = _NAME.split(text)[1:]
    return {name: sql.strip().rstrip(";") for name, sql in zip(parts[::3], parts[2::3], strict=True)}


def query(name: str) -> str:
    """Return one statement."""
    return queries()[name]


def many(name: str, count: int) -> str:
    """Return the statement with its list of values, `(?, ?)` or `(?)`, repeated for `count` of them.

    One statement that writes a group runs without the interpreter's lock; a group of statements would ask
    for the lock between any two of them.
    """
    sql = query(name)
    start = sql.rindex("(?")
    end = sql.index(")", start) + 1
    values = sql[start:end]
    if sql[:start].endswith(" IN "):
        return f"{sql[:start]}({', '.join('?' * count)}){sql[end:]}"
    return sql[:start] + ", ".join([values] * count) + sql[end:]


@cache
def width(name: str) -> int:
    """Return how many values one row of the statement's list takes."""
    sql = query(name)
    return sql[sql.rindex("(?") :].split(")", 1)[0].count("?")
