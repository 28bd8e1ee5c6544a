"""Help and options: everything that is promised is there."""

import re

import pytest

COMMANDS = ("run", "status", "export", "simulate", "demo", "doctor")
OPTIONS = {
    "run": (
        *("--base-url", "--store", "--output", "--errors", "--rpm", "--tpm", "--limit", "--burst"),
        *(
            "--max-inflight",
            "--max-attempts",
            "--timeout",
            "--delivery",
            "--retry-failed",
            "--retry-in-doubt",
        ),
        *("--max-failures", "--max-stall", "--grace", "--namespace", "--limit-rows", "--prices", "--json"),
        *("--key-ttl", "--quiet"),
    ),
    "status": ("--store", "--json", "--key-ttl", "--verify", "--output", "--errors"),
    "export": ("--store", "--output", "--errors", "--failed", "--attempts"),
    "simulate": (
        *("--port", "--api-key", "--rpm", "--tpm", "--latency-after", "--fault", "--faults", "--list-faults"),
        *("--quota", "--idempotency"),
    ),
    "demo": ("--dir", "--rpm"),
    "doctor": ("--base-url", "--probe-idempotency"),
}


def test_help_names_every_command(batcher):
    shown = batcher("--help")
    assert (shown.code, shown.err) == (0, "")
    named = re.findall(r"^  (\w+)  ", shown.out.split("Commands:")[1], re.MULTILINE)
    assert named == list(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_names_its_options(batcher, command):
    shown = batcher(command, "--help")
    assert (shown.code, shown.err) == (0, "")
    named = re.findall(r"--[a-z-]+", shown.out)
    assert set(OPTIONS[command]) <= set(named)


def test_the_version_is_that_of_the_distribution(batcher):
    from importlib.metadata import version

    assert batcher("--version").out == f"batcher, version {version('batcher-openai')}\n"


def test_every_field_of_options_is_an_option_of_run():
    from batcher.cli.run import command
    from batcher.options import Options

    given = {parameter.name for parameter in command.params} - {"as_json", "quiet"}
    assert given == set(Options.__struct_fields__)


def test_the_defaults_of_run_are_those_of_options():
    import click

    from batcher.cli.run import command
    from batcher.options import Options

    parsed = command.make_context("run", ["job.jsonl"]).params
    told = Options(job="job.jsonl")
    for name in Options.__struct_fields__:
        assert parsed[name] == getattr(told, name), name
    assert isinstance(command, click.Command)
