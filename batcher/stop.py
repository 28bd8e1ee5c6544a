"""Why a run ends before its rows do."""

from dataclasses import dataclass, replace
from typing import Final, Self


@dataclass(frozen=True, slots=True)
class Stop:
    """What ended a run."""

    #: `interrupted`, `input`, `disk`, `stall`, `failures`, or a word of the verdict table.
    kind: str
    #: One sentence: what happened, and what to do.
    reason: str

    def losing(self, answers: int) -> Self:
        """Add that so many answers are lost that were paid for."""
        lost = f"{answers:,} answers came that could not be written down: their attempts are in doubt"
        return replace(self, reason=f"{self.reason}; {lost}")


INTERRUPTED: Final = Stop("interrupted", "interrupted: run the same command again to go on")
