"""The command: one thin module per subcommand, imported only when that subcommand is asked for."""

import importlib
import signal
import sys
from types import FrameType
from typing import NoReturn

import click

from batcher.errors import BatcherError, one_line

#: Subcommand -> the one line that `batcher --help` shows: kept here so that help imports none of them.
COMMANDS = {
    "run": "Send every row of a job file that is not done yet; write results, errors and the bill.",
    "status": "Show what a job's store holds: rows, tokens and cost per model.",
    "export": "Write a job's results again, its failed rows as a job, or its attempts as a log.",
    "simulate": "Serve a local OpenAI-compatible API with limits, latency and faults.",
    "demo": "Run the sentiment job on real data against the simulator: no key, no network.",
    "doctor": "Say whether this machine, key and endpoint are fit for a run.",
}


class _LazyGroup(click.Group):
    """A group that knows its subcommands' names and imports the one that is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"batcher.cli.{cmd_name}").command
        for param in command.params:
            if isinstance(param, click.Option):
                # After the option's own name, which is not always that of the parameter.
                option = param.opts[0].lstrip("-").replace("-", "_")
                param.envvar = f"BATCHER_{cmd_name}_{option}".upper()
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="batcher-openai", prog_name="batcher")
def cli() -> None:
    """Push a file of requests through the OpenAI API as fast as your limits allow.

    Each row is paid for once, any crash is survived, results come in the input's order with an exact bill.
    Every option can come from the environment: BATCHER_RUN_RPM=500 is --rpm 500 of `batcher run`.
    """


def main() -> None:
    """Run the command; whatever was wrong with it is one line on standard error, and an exit code."""
    # Until a run takes the signals, and once it is over, there is nothing to bring to an end.
    signal.signal(signal.SIGTERM, _end)
    try:
        sys.exit(cli.main(prog_name="batcher", standalone_mode=False))
    except BatcherError as error:
        _fail(str(error), error.exit_code)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context is not None else ""
        _fail(f"{error.format_message().rstrip('.')}{hint}", error.exit_code)
    except OSError as error:
        # A name that is too long, or whatever else the system has against a path.
        _fail(f"{error.filename or 'the command'} can't be used: {error.strerror}: name another", 2)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted: run the same command again to go on", 130)


def _end(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _fail(message: str, code: int) -> NoReturn:
    """Say what was wrong, as one line and, where the command was to print JSON, as an object too."""
    click.echo(f"batcher: {one_line(message)}", err=True)
    if "--json" in sys.argv:
        from batcher.cli.report import print_json
        from batcher.summary import not_begun

        print_json(not_begun(message))
    sys.exit(code)
