"""What this run has done so far: counters, for the progress line and the summary."""

from dataclasses import dataclass

from batcher.request import Settled


@dataclass(slots=True)
class Tally:
    """Counts of one run; rows and attempts count when they are durably settled."""

    #: Rows read from the job file so far.
    rows_read: int = 0
    #: Of those: settled by an earlier run.
    already_done: int = 0
    #: Rows of this run by their end.
    succeeded: int = 0
    failed: int = 0
    in_doubt: int = 0
    #: Lines that never became a request (counted in `failed` too).
    rejected: int = 0
    #: Attempts claimed and not settled.
    in_flight: int = 0
    #: Attempts settled, but for those that never left; and how many of them were not a request's first.
    requests: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    #: In 10^-12 dollar, of the answers whose price is known.
    cost_pico_usd: int = 0
    #: Answers whose price is not known.
    unpriced: int = 0

    @property
    def ended(self) -> int:
        """Rows that are settled, by this run or an earlier one."""
        return self.already_done + self.succeeded + self.failed + self.in_doubt

    def add(self, settled: Settled, number: int) -> None:
        """Count a settled attempt, the `number`-th of its request, and the rows that it ended."""
        attempt, outcomes = settled.settlement.attempt, settled.settlement.outcomes
        self.in_flight -= 1
        if attempt.sent_at is not None:
            self.requests += 1
            self.retries += number > 1
        self.prompt_tokens += attempt.prompt_tokens
        self.completion_tokens += attempt.completion_tokens
        if attempt.cost_pico_usd is None:
            self.unpriced += 1
        else:
            self.cost_pico_usd += attempt.cost_pico_usd
        for outcome in outcomes:
            self.succeeded += outcome.state == "done"
            self.in_doubt += outcome.state == "in_doubt"
            self.failed += outcome.state in ("refused", "exhausted")

    def reject(self, count: int) -> None:
        """Count rows that ended without being sent."""
        self.failed += count
        self.rejected += count
