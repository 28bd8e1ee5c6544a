"""`batcher status`: parse, call the library, print."""

from pathlib import Path

import click

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("job")
@click.option("--store", type=_PATH, help="The job's store.  [default: JOB.db]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output instead.")
def command(*, job: str, store: Path | None, as_json: bool) -> None:
    """Show what JOB's store holds: rows done, failed, pending and in doubt; tokens and cost per model.

    It only reads, also while a run is going on.
    """
    from batcher.cli.report import describe, print_json
    from batcher.job import status

    summary = status(job, store)
    if as_json:
        print_json(summary)
    else:
        for line in describe(summary):
            click.echo(line)
