"""`batcher simulate`: options in, a server out."""

from typing import Any

import click

from batcher.errors import SimulatorError


def _latency(
    ctx: click.Context,  # noqa: ARG001  click's signature
    param: click.Parameter,  # noqa: ARG001
    value: str,
) -> tuple[float, float]:
    least, dash, most = value.partition("-")
    try:
        low, high = float(least), float(most if dash else least)
    except ValueError:
        low, high = 1.0, 0.0
    if not 0 <= low <= high < 1e9:
        raise click.BadParameter(f"{value!r} is no latency: write milliseconds as 20, or as 10-30")
    return low, high


def _faults(
    ctx: click.Context,  # noqa: ARG001  click's signature
    param: click.Parameter,  # noqa: ARG001
    values: tuple[str, ...],
) -> dict[str, float]:
    from batcher.simulator.config import FAULT_NAMES

    shares: dict[str, float] = {}
    for value in values:
        name, _, share = value.partition("=")
        if name not in FAULT_NAMES:
            raise click.BadParameter(f"{value!r} names no fault: there are {', '.join(FAULT_NAMES)}")
        try:
            shares[name] = float(share[:-1]) / 100 if share.endswith("%") else float(share)
        except ValueError:
            shares[name] = -1.0
        if not 0 <= shares[name] <= 1:
            raise click.BadParameter(f"{value!r} has no share from 0 to 1: write {name}=1% or {name}=0.01")
    if sum(shares.values()) > 1 + 1e-9:
        raise click.BadParameter("all faults together have a share of more than 100%")
    return shares


@click.command("simulate")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port to listen on; 0 takes any free one.",
)
@click.option(
    "--api-key", metavar="KEY", help="Demand this key, else answer 401. Default: anything is taken."
)
@click.option(
    "--answers",
    type=click.Choice(["text", "sentiment"]),
    default="text",
    show_default=True,
    help="A short sentence made from the request's hash, or one word: the sentiment of the last user text.",
)
@click.option(
    "--embedding-dimensions",
    type=click.IntRange(1, 4096),
    default=8,
    show_default=True,
    help="Numbers in an embedding, where the request does not say.",
)
@click.option(
    "--cached-share",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Share of the prompt tokens, from 0 to 1, that usage calls cached.",
)
@click.option("--rpm", type=click.IntRange(1), help="Requests per minute, for each model. Default: no limit.")
@click.option("--tpm", type=click.IntRange(1), help="Tokens per minute, for each model. Default: no limit.")
@click.option(
    "--window",
    type=click.Choice(["bucket", "sliding"]),
    default="bucket",
    show_default=True,
    help="A bucket that holds one minute and refills continuously, or a limit that is exact in every 60 s.",
)
@click.option(
    "--latency",
    "--latency-before",
    "latency_before_ms",
    metavar="MS|MIN-MAX",
    callback=_latency,
    default="0",
    show_default=True,
    help="Milliseconds, or a range of them, before a request counts against the limits.",
)
@click.option(
    "--latency-after",
    "latency_after_ms",
    metavar="MS|MIN-MAX",
    callback=_latency,
    default="0",
    show_default=True,
    help="Milliseconds, or a range of them, between counting and the answer.",
)
@click.option(
    "--fault",
    "faults",
    metavar="NAME=SHARE",
    multiple=True,
    callback=_faults,
    help="Give this share of the requests (1% or 0.01) a fault: 429, 500, reset-before (connection reset, no"
    " work done), reset-after (done and billed, then reset), cut-off (done and billed, half the body sent)."
    " May be repeated. Default: none.",
)
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="Changes which requests meet faults, and their latencies.",
)
@click.option(
    "--idempotency",
    type=click.Choice(["honour", "ignore"]),
    default="honour",
    show_default=True,
    help="Replay what an Idempotency-Key was answered, and don't bill it again; or pay no heed to keys.",
)
def command(**settings: Any) -> None:  # noqa: ANN401  the options are Config's fields, by name
    """Serve a local OpenAI-compatible API with limits, latency and faults.

    The same request gets the same answer. What was billed is at /ledger, by key at /ledger?entries=1.
    One line on standard output says when it is ready, and where; Ctrl-C or SIGTERM ends it.
    """
    from batcher.simulator import Config, StartError, run

    try:
        run(Config(**settings), ready=lambda url: click.echo(f"batcher simulate: {url}"))
    except StartError as error:
        raise SimulatorError(str(error)) from None
