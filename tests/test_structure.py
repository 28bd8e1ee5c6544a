"""The rules that no linter knows: who may read time, who may make which type, how long things may be."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "batcher"
MODULES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}

#: Modules besides `clock.py` that may read time or chance, and why.
READ_TIME = {
    "simulator/server.py": "a program of its own: its event loop's time, and chance from a seed",
    "testing.py": "the virtual clock itself: seeded",
}
CLOCKS = {"time", "random", "secrets", "uuid"}
#: Attributes that read time or chance wherever they come from.
READS = {"monotonic", "perf_counter", "time_ns", "monotonic_ns", "now", "utcnow", "today", "urandom", "uuid4"}
#: Objects that may be asked for `now()`: a `Clock`.
CLOCK_NAMES = {"clock", "_clock"}

#: Who makes each type whose existence is a promise.
MADE_ONLY_IN = {"Claimed": {"store/journal.py", "testing.py"}, "Settled": {"store/journal.py", "testing.py"}}

MOST_LINES = 400
MOST_FUNCTION_LINES = 40
LONG = re.compile(r"# long: \S")
SQL = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|REPLACE|CREATE|DROP|ALTER|WITH)\s+[A-Z(*a-z]")
SQL_WORDS = re.compile(r"\b(FROM|INTO|SET|TABLE|INDEX|VALUES|WHERE)\b")

each = pytest.mark.parametrize("name", MODULES)


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


def owner(node):
    """Name the object whose attribute this is: `clock` of `parts.clock.now`."""
    value = node.value
    return (
        value.attr if isinstance(value, ast.Attribute) else value.id if isinstance(value, ast.Name) else None
    )


@each
def test_only_the_clock_reads_time_and_chance(name):
    if name == "clock.py" or name in READ_TIME:
        return
    assert not CLOCKS & set(imported(TREES[name]))
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in READS:
            assert owner(node.func) in CLOCK_NAMES, f"{name}:{node.lineno} reads time"
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("loop.time"):
            raise AssertionError(f"{name}:{node.lineno} reads the event loop's time")


def test_the_exceptions_are_still_there():
    assert set(READ_TIME) <= set(MODULES)


@pytest.mark.parametrize("kind", MADE_ONLY_IN)
def test_a_promise_is_made_in_one_place(kind):
    makers = {
        name
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == kind
    }
    assert "store/journal.py" in makers
    assert makers <= MADE_ONLY_IN[kind]


@each
def test_a_module_is_short_or_says_why_not(name):
    text = MODULES[name].read_text()
    count = text.count("\n")
    assert count <= MOST_LINES or LONG.search(text.split("\nimport ")[0]), f"{name} has {count} lines"


def test_a_function_is_short_or_says_why_not():
    long = []
    for name, tree in TREES.items():
        lines = MODULES[name].read_text().splitlines()
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                # Its decorators are declarations: the options of a command.
                count = node.end_lineno - node.lineno + 1
                if count > MOST_FUNCTION_LINES and not LONG.search(
                    "\n".join(lines[node.lineno - 2 : node.end_lineno])
                ):
                    long.append(f"{name}:{node.lineno} {node.name} has {count} lines")
    assert not long


@each
def test_no_bare_exception_is_raised(name):
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Raise) and node.exc is not None:
            raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            assert ast.unparse(raised) not in {"Exception", "BaseException"}, f"{name}:{node.lineno}"


@each
def test_who_catches_everything_says_why(name):
    """Ruff refuses such a handler without its `noqa`, and this one a `noqa` without a reason."""
    text = MODULES[name].read_text()
    assert text.count("noqa: BLE001") == len(re.findall(r"# noqa: BLE001  \S", text))


def statements(tree):
    """Yield the string constants of a module that read as SQL."""
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
        if SQL.match(text) and SQL_WORDS.search(text):
            yield node


@each
def test_sql_lives_in_sql_files(name):
    assert not [f"{name}:{node.lineno} {node.value[:40]!r}" for node in statements(TREES[name])]


def test_every_query_is_named_described_and_used():
    text = (PACKAGE / "store" / "queries.sql").read_text()
    named = re.findall(r"^-- name: (\w+)\n-- \S", text, re.MULTILINE)
    assert len(named) == text.count("-- name: ") == len(set(named))
    source = "\n".join(path.read_text() for path in MODULES.values())
    unused = [name for name in named if f'"{name}"' not in source]
    assert not unused
