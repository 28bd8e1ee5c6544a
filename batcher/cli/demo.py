"""`batcher demo`: parse, call the library, print."""

import sys
from pathlib import Path

import click


@click.command()
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo"),
    show_default=True,
    help="Where the job, its store and its results go.",
)
@click.option(
    "--rpm",
    type=click.IntRange(1),
    default=12_000,
    show_default=True,
    help="The rate limit of the demo.",
)
def command(*, folder: Path, rpm: int) -> None:
    """Run the sentiment job on 3,708 real review sentences against the simulator.

    The simulator reads them with vaderSentiment, so the answers mean something. It needs no key and no
    network, starts anew each time, and takes about 20 seconds.
    """
    from batcher.cli.report import print_summary, run_with_progress
    from batcher.demo import MODEL, agreement, simulator, write_job
    from batcher.errors import ConfigurationError
    from batcher.options import Options, Paths

    job = folder / "sentiment.jsonl"
    paths = Paths.of(str(job), None)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in (paths.store, paths.output, paths.errors):
            path.unlink(missing_ok=True)
        write_job(job)
    except OSError as error:
        raise ConfigurationError(
            f"{folder} can't be written: {error.strerror}; name another --dir"
        ) from error
    limits = ("--rpm", str(rpm), "--latency-before", "20-80", "--latency-after", "20-80")
    with simulator("--answers", "sentiment", *limits) as base_url:
        options = Options(job=str(job), base_url=base_url, rpm=rpm, limits={})
        click.echo(f"batcher: {MODEL} at {base_url} (a simulator), {rpm:,} requests a minute", err=True)
        summary = run_with_progress(options, quiet=False, environ={"OPENAI_API_KEY": "demo"})
    print_summary(summary, paths, as_json=False, quiet=False)
    if summary.succeeded:
        agreeing, total = agreement(paths.output)
        click.echo(
            f"accuracy  {agreeing / total:.1%} of {total:,} answers agree with the human label", err=True
        )
    click.echo(
        f"\nNext, with a real key:\n  export OPENAI_API_KEY=sk-...\n"
        f"  batcher run {job} --store {folder}/openai.db --output {folder}/openai.results.jsonl "
        "--rpm 500 --tpm 200000 --limit-rows 50",
        err=True,
    )
    sys.exit(summary.exit_code)
