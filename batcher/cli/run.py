"""`batcher run`: parse, call the library, print."""

import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from batcher.limits.bucket import Limit
    from batcher.retry import MaxFailures

_PATH = click.Path(path_type=Path)
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def _limits(_: click.Context, param: click.Parameter, values: tuple[str, ...]) -> "dict[str, Limit]":
    """Read `MODEL=RPM/TPM`; either number may be left out."""
    from batcher.limits.bucket import Limit

    limits = {}
    for value in values:
        model, equals, numbers = value.rpartition("=")
        rpm, _slash, tpm = numbers.partition("/")
        given = [part for part in (rpm, tpm) if part]
        if not equals or not model or not given or not all(map(_is_number, given)):
            message = f"{value!r} is not MODEL=RPM/TPM, such as gpt-4o-mini=500/200000"
            raise click.BadParameter(message, param=param)
        limits[model] = Limit(int(rpm) if rpm else None, int(tpm) if tpm else None)
    return limits


def _max_failures(_: click.Context, param: click.Parameter, value: str) -> "MaxFailures":
    """Read a number of rows, or a share of them."""
    from batcher.retry import MaxFailures

    number = value.removesuffix("%")
    if _is_number(number) and int(number) > 0:
        if number == value:
            return MaxFailures(count=int(number))
        if int(number) <= 100:
            return MaxFailures(share=int(number) / 100)
    message = f"{value!r} is neither a number of rows (10) nor a share of them (5%)"
    raise click.BadParameter(message, param=param)


def seconds(_: click.Context, param: click.Parameter, value: str) -> float:
    """Read a time: `90` or `90s`, `30m`, `2h`."""
    unit = _UNITS.get(value[-1:])
    try:
        return float(value if unit is None else value[:-1]) * (unit or 1.0)
    except ValueError:
        message = f"{value!r} is not a time: give seconds, or 30m, or 2h"
        raise click.BadParameter(message, param=param) from None


#: An option of every command that says what is in doubt.
key_ttl = click.option(
    "--key-ttl",
    "key_ttl_s",
    callback=seconds,
    metavar="SECONDS",
    default="24h",
    show_default=True,
    help="How long the server remembers an idempotency key: the bill says which attempts in doubt are older.",
)


@click.command()
@click.argument("job")
@click.option("--base-url", metavar="URL", help="The API's address.  [default: OPENAI_BASE_URL, or OpenAI's]")
@click.option("--store", type=_PATH, help="The job's store.  [default: JOB.db]")
@click.option("--output", type=_PATH, help="The results file.  [default: JOB.results.jsonl]")
@click.option("--errors", type=_PATH, help="The errors file.  [default: JOB.errors.jsonl]")
@click.option(
    "--rpm",
    type=int,
    metavar="N",
    help="Requests per minute, never exceeded in any minute, of all models without a --limit together.  "
    "[default: what the server announces]",
)
@click.option(
    "--tpm",
    type=int,
    metavar="N",
    help="Tokens per minute, likewise: input and output limit.  [default: what the server announces]",
)
@click.option("--rpd", type=int, metavar="N", help="Requests per day, never exceeded in any 24 hours.")
@click.option("--tpd", type=int, metavar="N", help="Tokens per day, never exceeded in any 24 hours.")
@click.option(
    "--tpm-counts",
    type=click.Choice(["auto", "reserved", "actual"]),
    default="auto",
    show_default=True,
    help="What the server's limit counts: what a request reserves, or what it has used in the end. auto: "
    "reserved, unless its headers show that it gives tokens back.",
)
@click.option(
    "--limit",
    "limits",
    callback=_limits,
    metavar="MODEL=RPM/TPM",
    multiple=True,
    help="Give a model limits of its own. May be repeated.",
)
@click.option(
    "--burst",
    "burst_s",
    callback=seconds,
    metavar="SECONDS",
    default="0.25",
    show_default=True,
    help="How far ahead of its even rate the flow may run, 0.1 s at least. Requests that had to wait for "
    "another limit may catch up more, up to 6 s of them.",
)
@click.option(
    "--max-inflight",
    type=int,
    default=1000,
    show_default=True,
    metavar="N",
    help="Requests on the wire at once.",
)
@click.option(
    "--max-attempts", type=int, default=5, show_default=True, metavar="N", help="Attempts before a row fails."
)
@click.option(
    "--timeout",
    "timeout_s",
    callback=seconds,
    metavar="SECONDS",
    default="300",
    show_default=True,
    help="A request's total time.",
)
@click.option(
    "--delivery",
    type=click.Choice(["at-least-once", "at-most-once"]),
    default="at-least-once",
    show_default=True,
    help="What becomes of a row whose answer was lost: sent again with the same key, or never.",
)
@click.option("--retry-failed", is_flag=True, help="Run the rows again that the server refused.")
@click.option("--retry-in-doubt", is_flag=True, help="Run the rows again that ended in doubt.")
@key_ttl
@click.option(
    "--max-failures",
    callback=_max_failures,
    metavar="N|P%",
    default="50%",
    show_default=True,
    help="Stop when so many rows have failed; a share is looked at after 200.",
)
@click.option(
    "--max-stall",
    "max_stall_s",
    callback=seconds,
    metavar="SECONDS",
    default="30m",
    show_default=True,
    help="Stop when no row has ended for so long, and something stands in the way.",
)
@click.option(
    "--grace",
    "grace_s",
    callback=seconds,
    metavar="SECONDS",
    default="30",
    show_default=True,
    help="How long what is in flight may take to land when the run is stopped.",
)
@click.option(
    "--namespace", metavar="NAME", help="What idempotency keys are made with.  [default: the store's own]"
)
@click.option("--limit-rows", type=int, metavar="N", help="Run only the first N rows of the file.")
@click.option("--prices", type=_PATH, help="A JSON file of prices that go before the known ones.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the summary as one JSON object on standard output."
)
@click.option("--quiet", is_flag=True, help="Show no progress and no summary.")
def command(
    *,
    job: str,
    as_json: bool,
    quiet: bool,
    **options: Any,  # noqa: ANN401  the fields of Options, as declared above
) -> None:
    """Send every row of JOB that is not settled yet; write the results, the errors and the bill.

    JOB is a file of JSON Lines in the OpenAI Batch input form, or of bare request bodies; `.gz` and `.zst`
    are read too, and `-` is standard input. Run the same command again to go on after a stop or a crash.

    \b
    Exit codes: 0 all rows succeeded; 1 finished, some rows failed or are in doubt; 2 wrong usage or
    configuration; 3 stopped early and 130 interrupted: safe to run again.
    """  # noqa: D301  click takes the backspace for "leave these lines as they are"
    from batcher.cli.report import print_summary, run_with_progress
    from batcher.options import Options

    given = Options(job=job, **options)
    summary = run_with_progress(given, quiet=quiet)
    with suppress(OSError):  # nobody reads it any more: that changes nothing of how the run ended
        print_summary(summary, given.paths(), as_json=as_json, quiet=quiet)
    sys.exit(summary.exit_code)
