"""What the commands share: running a job under a progress line, and printing how it stands."""

import json
import sys
from collections.abc import Mapping
from importlib.util import find_spec

import anyio
import click
import orjson

from batcher.clock import SystemClock
from batcher.errors import JobFileError, one_line
from batcher.job import environment, run_job
from batcher.loop import Loop
from batcher.options import Options, Paths
from batcher.progress import watch
from batcher.source import count_rows
from batcher.summary import ModelSummary, Summary
from batcher.tally import Tally

#: A longer name is cut in the table, in characters.
_WIDEST_MODEL = 60


def run_with_progress(options: Options, *, quiet: bool, environ: Mapping[str, str] | None = None) -> Summary:
    """Run a job; unless `quiet`, show its progress on standard error."""

    def count() -> int | None:
        try:
            rows = None if options.job == "-" else count_rows(options.job)
        except JobFileError:
            return None  # the run itself meets it, and says so
        return rows if rows is None or options.limit_rows is None else min(rows, options.limit_rows)

    async def show(loop: Loop, tally: Tally) -> None:
        await watch(loop, tally, count=count, clock=SystemClock(), out=sys.stderr)

    async def run() -> Summary:
        given = environment() if environ is None else environ
        return await run_job(options, given, watch=None if quiet else show)

    return anyio.run(run, backend_options={"use_uvloop": find_spec("uvloop") is not None})


def print_summary(summary: Summary, paths: Paths, *, as_json: bool, quiet: bool) -> None:
    """Print how the job stands: one JSON object on standard output, a table on standard error."""
    if as_json:
        print_json(summary)
    if not quiet:
        already = f"; {summary.already_done:,} rows were done before" if summary.already_done else ""
        click.echo(
            f"this run  {summary.requests:,} requests in {summary.elapsed_s:,.1f} s, "
            f"{summary.retries:,} of them retries{already}",
            err=True,
        )
        for line in describe(summary):
            click.echo(line, err=True)
        files = [("results", paths.output)]
        if summary.failed or summary.in_doubt:
            files.append(("errors", paths.errors))
        for what, path in files:
            missing = "" if path.is_file() else " (not written: batcher export)"
            click.echo(f"{what:<8}  {path}{missing}", err=True)
    if summary.stopped is not None:
        click.echo(f"batcher: stopped: {one_line(summary.stopped)}", err=True)


def print_json(summary: Summary) -> None:
    """Print a summary as one JSON object on standard output."""
    try:
        click.echo(orjson.dumps(summary.to_dict()))
    except orjson.JSONEncodeError:
        # A path in the reason that is not UTF-8.
        click.echo(json.dumps(summary.to_dict()))


def describe(summary: Summary) -> list[str]:
    """Say how a job stands, in a few lines."""
    others = (("failed", summary.failed), ("in doubt", summary.in_doubt), ("pending", summary.pending))
    counts = [f"{summary.succeeded:,} succeeded", *(f"{count:,} {name}" for name, count in others if count)]
    lines = [f"rows      {summary.rows:,}: {', '.join(counts)}"]
    early = (("at the output limit", summary.truncated), ("by the content filter", summary.filtered))
    if cut := [f"{count:,} {where}" for where, count in early if count]:
        lines.append(f"cut off   {', '.join(cut)}")
    if summary.by_error:
        lines.append(
            f"failures  {', '.join(f'{count:,} {code}' for code, count in summary.by_error.items())}"
        )
    if summary.by_model:
        lines += _table(summary.by_model)
    return [*lines, f"bill      {_bill(summary)}"]


def _table(by_model: Mapping[str, ModelSummary]) -> list[str]:
    names = {model: one_line(model)[:_WIDEST_MODEL] for model in by_model}
    width = max(len("model"), *map(len, names.values()))
    lines = [
        f"{'model':<{width}}  {'requests':>11}  {'prompt tok':>13}  {'cached':>11}  {'output tok':>12}  cost"
    ]
    for model, bill in by_model.items():
        cost = "unknown" if bill.cost_usd is None else f"${bill.cost_usd}"
        lines.append(
            f"{names[model]:<{width}}  {bill.requests:>11,}  {bill.prompt_tokens:>13,}"
            f"  {bill.cached_tokens:>11,}  {bill.completion_tokens:>12,}  {cost}"
        )
    return lines


def _bill(summary: Summary) -> str:
    settled = (
        "unknown: an answer without a usage that adds up, or a model or tier without a price (--prices FILE)"
        if summary.cost_usd is None
        else f"${summary.cost_usd}"
    )
    doubts = sum(bill.in_doubt for bill in summary.by_model.values())
    if not doubts:
        return settled
    most = summary.in_doubt_cost_usd_max
    more = "an amount without a bound" if most is None else f"at most ${most}"
    if summary.past_key_ttl:
        past = f"{summary.past_key_ttl:,} of them for longer than --key-ttl: their keys no longer cover them"
        return f"{settled}, and {more} more for {doubts:,} attempts in doubt, {past}"
    return f"{settled}, and {more} more for {doubts:,} attempts in doubt"
