"""What the simulator is told when it starts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

#: The faults that can be asked for, in the order in which their shares are laid side by side.
FAULT_NAMES = ("429", "500", "reset-before", "reset-after", "cut-off")


class StartError(Exception):
    """The simulator can't start: the message is one line that says why, and what to do."""


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
    #: Least and most milliseconds between a request's arrival and the moment it counts.
    latency_before_ms: tuple[float, float] = (0.0, 0.0)
    #: Least and most milliseconds between the moment it counts and the answer.
    latency_after_ms: tuple[float, float] = (0.0, 0.0)
    #: The share (0 to 1) of requests that meet each fault, by its name in `FAULT_NAMES`.
    faults: Mapping[str, float] = field(default_factory=dict)
    #: Changes which requests meet faults, and their latencies; never what they are answered.
    seed: int = 0
    #: `honour`: a key that was answered is replayed and not billed again. `ignore`: keys mean nothing.
    idempotency: Literal["honour", "ignore"] = "honour"

    def __post_init__(self) -> None:
        unknown = set(self.faults) - set(FAULT_NAMES)
        if unknown:
            raise ValueError(f"no such fault: {min(unknown)}; there are {', '.join(FAULT_NAMES)}")
        if any(share < 0 for share in self.faults.values()) or sum(self.faults.values()) > 1 + 1e-9:
            raise ValueError("the shares of all faults must lie between 0 and 1, and so must their sum")
        for low, high in (self.latency_before_ms, self.latency_after_ms):
            if not 0 <= low <= high:
                raise ValueError("a latency needs 0 <= least <= most milliseconds")
