"""`batcher status`: parse, call the library, print."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from batcher.cli.run import key_ttl

if TYPE_CHECKING:
    from batcher.errors import StoreWriteError
    from batcher.summary import Summary
    from batcher.verify import Verified

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("job")
@click.option("--store", type=_PATH, help="The job's store.  [default: JOB.db]")
@key_ttl
@click.option(
    "--verify", "verifies", is_flag=True, help="Check the store too, and compare the files with it."
)
@click.option("--output", type=_PATH, help="The results file to compare.  [default: JOB.results.jsonl]")
@click.option("--errors", type=_PATH, help="The errors file to compare.  [default: JOB.errors.jsonl]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output instead.")
def command(
    *,
    job: str,
    store: Path | None,
    key_ttl_s: float,
    verifies: bool,
    output: Path | None,
    errors: Path | None,
    as_json: bool,
) -> None:
    """Show what JOB's store holds: rows done, failed, pending and in doubt; tokens and cost per model.

    It only reads, also while a run is going on.

    With --verify it looks for damage in the store, and lays JOB's results and errors beside it, line by
    line; what it finds is a line each.

    \b
    Exit codes: 0; 1 if --verify found something; 2 no such store; 3 the store can't be read.
    """  # noqa: D301  click takes the backspace for "leave these lines as they are"
    from batcher.errors import ConfigurationError, StoreWriteError
    from batcher.job import status
    from batcher.options import Paths
    from batcher.verify import verify

    if not 0 <= key_ttl_s < float("inf"):
        raise ConfigurationError(f"--key-ttl must be 0 seconds or more, not {key_ttl_s!r}")
    paths = Paths.of(job, store, output, errors)
    summary, damage = None, None
    try:
        summary = status(job, store, key_ttl_s)
    except StoreWriteError as error:
        if not verifies:
            raise
        damage = error
    verified = verify(job, paths) if verifies else None
    _print(summary, damage, verified, as_json=as_json)
    if damage is not None:
        sys.exit(damage.exit_code)
    sys.exit(1 if verified is not None and verified.findings else 0)


def _print(
    summary: "Summary | None", damage: "StoreWriteError | None", verified: "Verified | None", *, as_json: bool
) -> None:
    """Print what could be read, what was found, and why the rest could not be read."""
    from batcher.cli.report import describe, print_json
    from batcher.errors import one_line
    from batcher.summary import not_begun

    if as_json and verified is None:
        print_json(summary or not_begun(str(damage)))
    elif as_json and verified is not None:
        fields = (summary or not_begun(str(damage))).to_dict()
        click.echo(json.dumps({**fields, "verify": verified.findings}))
    else:
        for line in [] if summary is None else describe(summary):
            click.echo(line)
        for line in [] if verified is None else _describe(verified):
            click.echo(f"verify    {one_line(line)}")
    if damage is not None:
        click.echo(f"batcher: {one_line(str(damage))}", err=True)


def _describe(verified: "Verified") -> list[str]:
    running = "a run is going on: it writes the files when it ends, and they were not looked at"
    fine = "the store is whole" if verified.running else "the store is whole, and the files are what it holds"
    return [*([running] if verified.running else []), *(verified.findings or [fine])]
