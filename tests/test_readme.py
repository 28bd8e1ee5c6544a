"""The README is held to what the program does."""

import re
import shlex
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import batcher
from batcher.cli import cli
from batcher.limits.pool import LOOK_S
from batcher.limits.window import MINUTE_S, SKEW_S, SLOTS
from batcher.options import Options
from batcher.parse import Draft, parse
from batcher.rules import TABLE

README = Path(__file__).parent.parent.joinpath("README.md").read_text("utf-8")
ROOT = Path(__file__).parent.parent
OPTION = re.compile(r"`?(--[a-z][a-z-]+)")
#: A script of the tests, and what follows its name.
SCRIPT = re.compile(r"python -m (tests[\w.]*)(.*)")


def commands() -> list[str]:
    """Every `batcher ...` line of an indented block."""
    return [
        line.strip().split("  #")[0].strip()
        for line in README.splitlines()
        if line.startswith("    batcher ")
    ]


def test_there_are_commands_to_check():
    assert len([each for each in commands() if " run " in each]) >= 2


@pytest.mark.parametrize("line", [each for each in commands() if ":" not in each and "/" not in each])
def test_every_command_names_a_subcommand_and_options_that_exist(line):
    _, subcommand, *words = shlex.split(line)
    context = click.Context(cli)
    command = cli.get_command(context, subcommand)
    assert command is not None
    known = {option for param in command.params for option in param.opts}
    assert {word for word in words if word.startswith("--")} <= known


def test_every_option_named_in_the_text_exists_somewhere():
    context = click.Context(cli)
    known = {
        option
        for name in cli.list_commands(context)
        for param in cli.get_command(context, name).params
        for option in param.opts
    }
    named = set(OPTION.findall(SCRIPT.sub("", README)))
    assert named <= known | {"--help"}


def test_every_script_of_the_tests_has_the_options_that_are_named():
    for module, rest in SCRIPT.findall(README):
        if named := OPTION.findall(rest):
            command = [sys.executable, "-m", module, "--help"]
            told = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
            assert all(option in told for option in named), module


def test_the_public_names_are_the_ones_listed():
    start = README.index("The public names:")
    listed = re.findall(r"`(\w+)`", README[start : README.index("\n\n", start)])
    assert sorted(listed) == sorted(batcher.__all__)
    assert all(hasattr(batcher, name) for name in batcher.__all__)


def test_the_job_lines_are_requests():
    block = README[README.index("```json") + 7 :]
    for number, line in enumerate(block[: block.index("```")].strip().splitlines(), 1):
        assert isinstance(parse(line.encode(), number), Draft)


def test_every_file_of_the_tree_exists():
    start = README.index("    batcher/\n")
    tree = README[start : README.index("\n\n", start)]
    for line in tree.splitlines()[1:]:
        within = ROOT / "batcher" if line.startswith("      ") else ROOT
        for word in re.split(r" {3,}", line.strip())[0].split():
            assert (within / word).exists(), word


def test_the_make_targets_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^    make (\w+)", README, re.MULTILINE)) <= targets


HAPPENS = {
    ("fail", "row"): "the row fails",
    ("find", "row"): "the row fails; where nothing is ever found, the job stops",
    ("again", "row"): "the row goes again",
    ("again", "endpoint"): "the row goes again; while nothing is answered, all wait",
    ("wait", "row"): "the row goes again, free of charge as long as an answer may take",
    ("hold", "pool"): "the pool waits",
    ("hold", "endpoint"): "all wait",
    ("hold", "job"): "nothing: the run is stopping",
    ("halt", "job"): "the job stops",
}
WORDS = {
    "unreachable": "it never left",
    "reset": "connection lost before a reply",
    "timeout": "no reply in time",
    "cut_off": "connection lost within a reply",
    "lost": "no HTTP",
    "stopped": "not sent before a stop",
    "closed": "cut short by a stop",
    "invalid": "2xx, no answer in it",
    "error": "2xx, an error in it",
    "failed": "2xx, status failed or cancelled",
    "unfinished": "2xx, status queued or in_progress",
    "other": "any other status",
}


def verdict_table():
    """Print the table of `rules.py`; codes, and statuses, that mean the same share a line."""
    lines = {}
    for rule in TABLE:
        came = WORDS.get(rule.status, str(rule.status))
        came += " with a time to wait" * rule.asks + ", not in the API's form" * rule.bare
        came += " after an attempt in doubt" * rule.doubted
        rest = (rule.scope, HAPPENS[rule.action, rule.scope], rule.billed, f"`{rule.error}`: {rule.meaning}")
        codes = lines.setdefault((came, rule.code is None, rest), [])
        if rule.code is not None:
            codes.append(f"`{rule.code}`")
    yield "| what came | scope | what happens | billed | error |"
    yield "|---|---|---|---|---|"
    for (codes, rest), same in groupby(lines.items(), lambda line: (line[1], line[0][2])):
        came = ", ".join(came for (came, *_), _ in same)
        yield f"| {' '.join([came, ', '.join(codes)]).strip()} | {' | '.join(rest)} |"


def test_the_table_of_verdicts_is_the_programs():
    table = "\n".join(verdict_table())
    assert table in README, f"put this into README.md:\n{table}"


def test_help_names_every_command():
    result = CliRunner().invoke(cli, ["--help"])
    assert result.exit_code == 0
    for name in cli.list_commands(click.Context(cli)):
        assert re.search(rf"^  {name}\b", result.output, re.MULTILINE)


def test_the_numbers_of_the_limits_are_the_programs():
    start = README.index("## How the limits are kept")
    text = " ".join(README[start : README.index("\n## ", start)].split())
    slot_s = MINUTE_S / SLOTS
    assert f"{MINUTE_S:g} s after it was *sent*, and {SKEW_S + slot_s:g} s more" in text
    assert f"in steps of {slot_s:g} s, and one request may be {SKEW_S:g} s longer" in text
    assert f"a burst of {Options(job='x').burst_s:g} s" in text
    assert f"one request goes first, for at most {LOOK_S:g} s" in text
