"""What the simulator is told when it starts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from batcher.simulator.outcomes import FAULTS, OUTAGE, SCRIPTABLE

#: The faults that can be given a share, in the order in which their shares are laid side by side.
FAULT_NAMES = tuple(FAULTS)


class StartError(Exception):
    """The simulator can't start: the message is one line that says why, and what to do."""


class Scheduled(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of a script: a fault, and the requests that meet it.

    Either `at_s`, with or without `for_s`, or `after`, with or without `count`. Raises `ValueError` where
    it makes no sense.
    """

    fault: str
    #: From this second on, counted from the first API request.
    at_s: float | None = None
    #: For so many seconds; None is for ever.
    for_s: float | None = None
    #: From this request on: the first is 1 (and so is 0).
    after: int | None = None
    #: For so many requests; None is for ever.
    count: int | None = None
    #: The share of those requests that meet it.
    share: float = 1.0

    def __post_init__(self) -> None:
        if self.fault not in SCRIPTABLE:
            raise ValueError(f"{self.fault!r} names no fault: `batcher simulate --list-faults` lists them")
        if (self.at_s is None) == (self.after is None):
            raise ValueError("name at_s or after, and not both")
        if (self.for_s is not None and self.at_s is None) or (self.count is not None and self.after is None):
            raise ValueError("for_s goes with at_s, and count with after")
        if (self.at_s or 0) < 0 or (self.after or 0) < 0:
            raise ValueError("at_s and after must be at least 0")
        if (self.for_s is not None and self.for_s <= 0) or (self.count is not None and self.count <= 0):
            raise ValueError("for_s and count must be above 0")
        if not 0 <= self.share <= 1:
            raise ValueError("share must lie between 0 and 1")
        if self.fault == OUTAGE.name and (self.at_s is None or self.share != 1):
            raise ValueError(f"{OUTAGE.name} takes at_s and for_s only: it is for everybody")

    @property
    def end_s(self) -> float:
        """The second at which it is over, of a line with `at_s`."""
        return math.inf if self.for_s is None else (self.at_s or 0.0) + self.for_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Every setting of the simulator, with its default."""

    #: The address to listen on. The default can't be reached from other machines.
    host: str = "127.0.0.1"
    #: The port to listen on; 0 lets the operating system choose one.
    port: int = 8000
    #: The key that requests must carry as `Authorization: Bearer KEY`; None takes anything, and nothing.
    api_key: str | None = None
    #: `text`: a short sentence made from the request's hash. `sentiment`: one word about the last user text.
    answers: Literal["text", "sentiment"] = "text"
    #: Numbers in an embedding, where the request does not ask for `dimensions`.
    embedding_dimensions: int = 8
    #: The share (0 to 1) of each request's prompt tokens that its usage calls cached.
    cached_share: float = 0.0
    #: Requests per minute for each model; None is no limit.
    rpm: int | None = None
    #: Tokens per minute for each model; None is no limit.
    tpm: int | None = None
    #: `bucket`: refills continuously and holds one minute. `sliding`: exact over every 60 seconds.
    window: Literal["bucket", "sliding"] = "bucket"
    #: `reserved`: what a request may use counts for its minute. `actual`: what it did not use is given back.
    tpm_counts: Literal["reserved", "actual"] = "reserved"
    #: Least and most milliseconds between a request's arrival and the moment it counts.
    latency_before_ms: tuple[float, float] = (0.0, 0.0)
    #: Least and most milliseconds between the moment it counts and the answer.
    latency_after_ms: tuple[float, float] = (0.0, 0.0)
    #: The share (0 to 1) of requests that meet each fault, by its name in `FAULT_NAMES`.
    faults: Mapping[str, float] = field(default_factory=dict)
    #: Faults at their time, which go before those shares; the first that fits a request is what it meets.
    script: Sequence[Scheduled] = ()
    #: Answers that are billed before all further work is refused for want of credit; None is no end of it.
    quota: int | None = None
    #: Changes which requests meet faults, and their latencies; never what they are answered.
    seed: int = 0
    #: `honour`: a key that was answered is replayed and not billed again. `keep-failures`: so is one that was
    #: refused, with the refusal. `ignore`: keys mean nothing.
    idempotency: Literal["honour", "keep-failures", "ignore"] = "honour"

    def __post_init__(self) -> None:
        unknown = set(self.faults) - set(FAULT_NAMES)
        if unknown:
            raise ValueError(f"no such fault: {min(unknown)}; there are {', '.join(FAULT_NAMES)}")
        if self.quota is not None and self.quota < 0:
            raise ValueError("the quota must be at least 0")
        if any(share < 0 for share in self.faults.values()) or sum(self.faults.values()) > 1 + 1e-9:
            raise ValueError("the shares of all faults must lie between 0 and 1, and so must their sum")
        for low, high in (self.latency_before_ms, self.latency_after_ms):
            if not 0 <= low <= high:
                raise ValueError("a latency needs 0 <= least <= most milliseconds")
