"""`batcher doctor`: parse, call the library, print."""

import sys

import click

from batcher.cli.run import seconds


@click.command()
@click.option("--base-url", metavar="URL", help="The API's address.  [default: OPENAI_BASE_URL, or OpenAI's]")
@click.option(
    "--max-inflight",
    type=int,
    default=1000,
    show_default=True,
    metavar="N",
    help="Requests on the wire at once in the run to come: each needs an open file.",
)
@click.option(
    "--timeout",
    "timeout_s",
    callback=seconds,
    metavar="SECONDS",
    default="30",
    show_default=True,
    help="A request's total time.",
)
@click.option(
    "--probe-idempotency",
    is_flag=True,
    help="Send one cheap request twice under one Idempotency-Key, and say whether this endpoint answers the "
    "second from the first or bills it again. It costs two requests, or three.",
)
@click.option(
    "--model",
    metavar="NAME",
    help="A model that must be listed, and that the probe asks.  [default: a cheap one of OpenAI's]",
)
@click.option(
    "--url",
    type=click.Choice(["/v1/chat/completions", "/v1/responses", "/v1/completions", "/v1/embeddings"]),
    default="/v1/chat/completions",
    show_default=True,
    help="Where the probe asks.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output instead.")
def command(
    *,
    base_url: str | None,
    max_inflight: int,
    timeout_s: float,
    probe_idempotency: bool,
    model: str | None,
    url: str,
    as_json: bool,
) -> None:
    """Say whether this machine, key and endpoint are fit for a run, one line for each check.

    Unless the probe is asked for, nothing that costs is sent: only GET /models.

    \b
    Exit codes: 0 nothing failed; 1 something did; 2 wrong usage or configuration.
    """  # noqa: D301  click takes the backspace for "leave these lines as they are"
    import anyio
    import orjson

    from batcher.doctor import Check, Report, examine
    from batcher.job import environment
    from batcher.options import Options

    # It has no job: the name is that of no file.
    options = Options(job="doctor", base_url=base_url, max_inflight=max_inflight, timeout_s=timeout_s)

    def tell(check: Check) -> None:
        if not as_json:
            click.echo(f"{check.state:<4}  {check.name}: {check.message}")

    async def run() -> Report:
        probe = url if probe_idempotency else None
        return await examine(options, environment(), tell, model=model, probe=probe)

    report = anyio.run(run)
    if as_json:
        click.echo(orjson.dumps(report.to_dict()))
    sys.exit(report.exit_code)
