"""Why a run ends before its rows do."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Stop:
    """What ended a run."""

    #: `interrupted`, `input`, `disk`, `stall`, `failures`, or a word of the verdict table.
    kind: str
    #: One sentence: what happened, and what to do.
    reason: str


INTERRUPTED: Final = Stop("interrupted", "interrupted: run the same command again to go on")
