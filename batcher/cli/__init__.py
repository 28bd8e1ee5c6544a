"""The command: one thin module per subcommand, imported only when that subcommand is asked for."""

import importlib
import sys

import click

from batcher.errors import BatcherError

#: Subcommand -> the one line that `batcher --help` shows: kept here so that help imports none of them.
COMMANDS = {
    "run": "Send every row of a job file that is not done yet; write results, errors and the bill.",
    "status": "Show what a job's store holds: rows, tokens and cost per model.",
    "export": "Write a job's results again, its failed rows as a job, or its attempts as a log.",
    "simulate": "Serve a local OpenAI-compatible API with limits, latency and faults.",
    "demo": "Run the sentiment job on real data against the simulator: no key, no network.",
}


class _LazyGroup(click.Group):
    """A group that knows its subcommands' names and imports the one that is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"batcher.cli.{cmd_name}").command
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
    try:
        sys.exit(cli.main(prog_name="batcher", auto_envvar_prefix="BATCHER", standalone_mode=False))
    except BatcherError as error:
        click.echo(f"batcher: {error}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context is not None else ""
        click.echo(f"batcher: {error.format_message().rstrip('.')}{hint}", err=True)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
