"""When to try again, and when to give up. Pure functions: `now` and `chance` are arguments."""

from dataclasses import dataclass
from typing import ClassVar

#: The first backoff is at most this long, in seconds, and each following one at most twice the one before.
BASE_S = 0.5
#: No backoff is longer than this, in seconds.
CAP_S = 60.0


def backoff_s(failures: int, chance: float) -> float:
    """Return how long to wait after `failures` failures in a row (at least 1), in seconds.

    Full jitter: random(0, min(cap, base * 2^n)) (M. Brooker, "Exponential Backoff And Jitter", AWS
    Architecture Blog, 2015): retries of many rows that failed together spread out evenly.
    """
    return chance * min(CAP_S, BASE_S * 2.0 ** min(failures - 1, 30))


@dataclass(frozen=True, slots=True)
class MaxFailures:
    """When a job that fails throughout is stopped: after a number of failed rows, or at a share of them."""

    #: Stop when this many rows have failed.
    count: int | None = None
    #: Stop when this share of the rows has failed, 0 to 1: looked at after `SHARE_AFTER` rows.
    share: float | None = None

    #: So many rows must have ended before a share means anything.
    SHARE_AFTER: ClassVar[int] = 200

    def exceeded(self, failed: int, ended: int) -> bool:
        """Say whether `failed` of the `ended` rows of this run are too many."""
        if self.count is not None and failed >= self.count:
            return True
        if self.share is None or ended < self.SHARE_AFTER:
            return False
        return failed > self.share * ended
