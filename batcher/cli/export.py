"""`batcher export`: parse, call the library, print."""

from pathlib import Path

import click

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("job")
@click.option("--store", type=_PATH, help="The job's store.  [default: JOB.db]")
@click.option("--output", type=_PATH, help="The results file.  [default: JOB.results.jsonl]")
@click.option("--errors", type=_PATH, help="The errors file.  [default: JOB.errors.jsonl]")
@click.option("--failed", type=_PATH, metavar="FILE", help="Write the failed rows as a job file instead.")
@click.option("--attempts", type=_PATH, metavar="FILE", help="Write every attempt instead: .csv or .jsonl.")
def command(
    *,
    job: str,
    store: Path | None,
    output: Path | None,
    errors: Path | None,
    failed: Path | None,
    attempts: Path | None,
) -> None:
    """Write JOB's results and errors again from its store; or its failed rows; or its attempts."""
    from batcher import results
    from batcher.options import Paths, check_export

    paths = Paths.of(job, store, output, errors)
    check_export(paths, job, failed, attempts)
    written: list[tuple[int, str, Path]] = []
    if failed is None and attempts is None:
        written.append((results.write_results(paths.store, paths.output), "results", paths.output))
        written.append((results.write_errors(paths.store, paths.errors), "errors", paths.errors))
    if failed is not None:
        count, left_out = results.write_failed(paths.store, failed)
        written.append((count, "rows to run again", failed))
        if left_out:
            click.echo(f"left out: {left_out:,} that can't run as they are, or are in doubt", err=True)
    if attempts is not None:
        written.append((results.write_attempts(paths.store, attempts), "attempts", attempts))
    for count, what, path in written:
        click.echo(f"{count:,} {what} in {path}", err=True)
