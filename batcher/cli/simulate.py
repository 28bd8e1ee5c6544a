"""`batcher simulate`: options in, a server out."""

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from batcher.errors import SimulatorError
from batcher.simulator import FAULT_NAMES, Config, StartError, read_script, run
from batcher.simulator.outcomes import GROUPS, SCRIPTABLE


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
    shares: dict[str, float] = {}
    for value in values:
        name, _, share = value.partition("=")
        if name not in FAULT_NAMES:
            raise click.BadParameter(f"{value!r} names no fault: --list-faults lists them")
        try:
            shares[name] = float(share[:-1]) / 100 if share.endswith("%") else float(share)
        except ValueError:
            shares[name] = -1.0
        if not 0 <= shares[name] <= 1:
            raise click.BadParameter(f"{value!r} has no share from 0 to 1: write {name}=1% or {name}=0.01")
    if sum(shares.values()) > 1 + 1e-9:
        raise click.BadParameter("all faults together have a share of more than 100%")
    return shares


def _list_faults(
    ctx: click.Context,
    param: click.Parameter,  # noqa: ARG001  click's signature
    value: bool,
) -> None:
    if not value or ctx.resilient_parsing:
        return
    width = max(map(len, SCRIPTABLE))
    for group, title in GROUPS.items():
        click.echo(f"{title}:")
        for fault in SCRIPTABLE.values():
            if fault.group == group:
                click.echo(f"  {fault.name:<{width}}  {fault.meaning}")
    ctx.exit()


def _names() -> Iterator[str]:
    """Yield the lines of the help that name every fault, which click would break at hyphens."""
    yield "\b"
    yield "Faults, which --list-faults explains:"
    for group, title in GROUPS.items():
        names = ", ".join(fault.name for fault in SCRIPTABLE.values() if fault.group == group)
        indent = "    "
        yield f"  {title}:"
        yield textwrap.fill(
            names, 76, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
        )


@click.command("simulate", epilog="\n".join(_names()))
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
    "--tpm-counts",
    type=click.Choice(["reserved", "actual"]),
    default="reserved",
    show_default=True,
    help="Count what a request reserves, or give back at its end what it did not use.",
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
    metavar="NAME=SHARE",
    multiple=True,
    callback=_faults,
    help="Give this share of the requests (1% or 0.01) the fault of this name."
    " May be repeated. Default: none.",
)
@click.option(
    "--faults",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help='A script of faults, which go before those shares, as JSON Lines: {"fault": "503", "at_s": 20,'
    ' "for_s": 10} from the 20th second after the first request on, or {"fault": "429", "after": 1000,'
    ' "count": 50} from the 1,000th request on. Each may have a "share" from 0 to 1.',
)
@click.option(
    "--list-faults",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_faults,
    help="Print every fault with its meaning, and exit.",
)
@click.option(
    "--quota",
    type=click.IntRange(0),
    help="Answer 429 insufficient_quota to all work after so many answers were billed. Default: no end.",
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
    type=click.Choice(["honour", "keep-failures", "ignore"]),
    default="honour",
    show_default=True,
    help="Replay what an Idempotency-Key was answered, and don't bill it again; replay refusals as well; "
    "or pay no heed to keys.",
)
def command(
    fault: dict[str, float],
    faults: Path | None,
    **settings: Any,  # noqa: ANN401  the other options are Config's fields, by name
) -> None:
    """Serve a local OpenAI-compatible API with limits, latency and faults.

    The same request gets the same answer. What was billed is at /ledger, by key at /ledger?entries=1.
    One line on standard output says when it is ready, and where; Ctrl-C or SIGTERM ends it.
    """
    try:
        script = read_script(faults) if faults else ()
        config = Config(faults=fault, script=script, **settings)
        run(config, ready=lambda url: click.echo(f"batcher simulate: {url}"))
    except StartError as error:
        raise SimulatorError(str(error)) from None
