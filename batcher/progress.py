"""The progress line: how far the run is, how fast, what it costs, and what keeps it from being faster."""

import os
from collections import deque
from collections.abc import Callable
from typing import Final, TextIO

import anyio
import anyio.to_thread
from tqdm import tqdm

from batcher.clock import Clock
from batcher.errors import one_line
from batcher.loop import Loop
from batcher.money.cost import PICO_PER_USD
from batcher.tally import Tally

_WITH_TOTAL: Final = "{percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} {rate_fmt} eta {remaining}{postfix}"

#: A terminal's line is renewed so often, and elsewhere a plain line is printed so often, in seconds.
TERMINAL_S: Final = 0.25
PLAIN_S: Final = 30.0


async def watch(
    loop: Loop, tally: Tally, *, count: Callable[[], int | None], clock: Clock, out: TextIO
) -> None:
    """Show the progress of a run on `out` until cancelled, and once more then.

    `count` counts the rows of the whole file, in a thread: the loop does not wait for it.
    """
    line = _TerminalLine(out) if _is_terminal(out) else _PlainLines(out, clock)

    async def set_total() -> None:
        line.total = await anyio.to_thread.run_sync(count, abandon_on_cancel=True)

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(set_total)
            shown_at = clock.now()
            while True:
                await anyio.sleep(TERMINAL_S)
                line.tell(loop.notices)
                if clock.now() - shown_at >= line.every_s:
                    shown_at = clock.now()
                    line.show(loop, tally)
    finally:
        line.tell(loop.notices)
        line.show(loop, tally)
        line.close()


def _is_terminal(out: TextIO) -> bool:
    """Tell a terminal that a line can renew itself on: some that claim to be one have no width."""
    return out.isatty() and os.get_terminal_size(out.fileno()).columns > 0


def describe(loop: Loop, tally: Tally) -> str:
    """Say in a few words what the counters mean: in flight, tokens, cost, retries, what binds."""
    tokens = tally.prompt_tokens + tally.completion_tokens
    cost = f"${tally.cost_pico_usd / PICO_PER_USD:.4f}" + ("+?" if tally.unpriced else "")
    parts = [f"{tally.in_flight} in flight", f"{_short(tokens)} tok", cost, f"{tally.retries} retries"]
    if tally.failed:
        parts.append(f"{tally.failed} failed")
    if tally.in_flight:
        parts.append(f"bound by {loop.binding()}")
    return ", ".join(parts)


def _short(count: int) -> str:
    return tqdm.format_sizeof(count) if count >= 1000 else str(count)


class _Line:
    """Where progress is shown, and how often, in seconds."""

    every_s: float
    #: Rows in the file; None while it is not known.
    total: int | None = None

    def show(self, loop: Loop, tally: Tally) -> None:
        raise NotImplementedError

    def tell(self, notices: deque[str]) -> None:
        """Print what is to be told, each once, on a line of its own."""
        while notices:
            self.print(f"batcher: {one_line(notices.popleft())}\n")

    def print(self, text: str) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Leave the cursor where the next line belongs."""


class _TerminalLine(_Line):
    """One line that renews itself."""

    every_s = TERMINAL_S

    def __init__(self, out: TextIO) -> None:
        self._bar = tqdm(file=out, unit=" rows", dynamic_ncols=True, mininterval=0, smoothing=0.1)
        self._bar.bar_format = "{n_fmt} rows, {rate_fmt} {postfix}"

    def show(self, loop: Loop, tally: Tally) -> None:
        bar = self._bar
        if self.total and not bar.total:
            bar.total = self.total
            bar.bar_format = _WITH_TOTAL
        bar.set_postfix_str(describe(loop, tally), refresh=False)
        if not bar.initial:
            # What earlier runs settled is no speed of this one.
            bar.initial = tally.already_done
        bar.n = tally.ended
        bar.refresh()

    def print(self, text: str) -> None:
        self._bar.clear()
        self._bar.fp.write(text)
        self._bar.refresh()

    def close(self) -> None:
        self._bar.close()


class _PlainLines(_Line):
    """A line now and then, for logs."""

    every_s = PLAIN_S

    def __init__(self, out: TextIO, clock: Clock) -> None:
        self._out = out
        self._now = clock.now
        self._began = clock.now()

    def show(self, loop: Loop, tally: Tally) -> None:
        elapsed_s = max(self._now() - self._began, 1e-9)
        rate = (tally.ended - tally.already_done) / elapsed_s
        left = 0 if self.total is None else self.total - tally.ended
        eta = f", eta {tqdm.format_interval(left / rate)}" if rate and left > 0 else ""
        of = "" if self.total is None else f"/{self.total}"
        what = describe(loop, tally)
        self.print(f"batcher: {tally.ended}{of} rows, {rate:.0f} rows/s{eta}, {what}\n")

    def print(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()
