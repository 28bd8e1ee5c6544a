"""A rate budget: the bucket, and the pauses that the server asks for."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

from batcher.limits.bucket import Bucket, Fit, Took, Wait

#: The name of the pool of every model without one of its own.
SHARED = "shared"
#: Admission goes in groups, some milliseconds apart: a smaller burst would lose what those are worth.
LEAST_BURST_S = 0.02


@dataclass(frozen=True, slots=True)
class Limit:
    """What the account allows; None where it sets no limit, or where nobody said."""

    #: Requests per minute.
    rpm: int | None = None
    #: Tokens per minute: the estimated input and the output limit of each request.
    tpm: int | None = None


class Pool:
    """One rate budget, shared by the models that are mapped to it.

    A grant has three endings: `sent` (it counts for a minute), `give_back` (it never left), and nothing at
    all for one that was sent and refused: refused requests count too (OpenAI's rate-limit guide). After a
    pause one request goes alone, as a probe, and the others wait for what becomes of it (`probed`).
    """

    __slots__ = ("_bucket", "_paused_until", "_probe_next", "_probing", "holds", "name")

    def __init__(self, name: str, limit: Limit, burst_s: float) -> None:
        self.name = name
        #: Pauses since something last succeeded: what the backoff grows with.
        self.holds = 0
        self._bucket = Bucket(limit.rpm, limit.tpm, burst_s)
        self._paused_until = float("-inf")
        self._probe_next = False
        self._probing = False

    def fit(self, costs: Iterable[int], now: float) -> Fit:
        """Admit the longest prefix of `costs` (tokens of each request) that may go at `now`."""
        if self._probing:
            return Wait(None)
        if now < self._paused_until:
            return Wait(self._paused_until)
        if not self._probe_next:
            return self._bucket.fit(costs, now)
        fit = self._bucket.fit(islice(costs, 1), now)
        if isinstance(fit, Took) and fit.count:
            self._probe_next, self._probing = False, True
            return Took(fit.count, probe=True)
        return fit

    def sent(self, costs: Iterable[int], now: float) -> None:
        """Start the minute of what has just been sent."""
        self._bucket.sent(costs, now)

    def give_back(self, costs: Iterable[int]) -> None:
        """Return the reservations of what never left."""
        self._bucket.give_back(costs)

    def seed(self, sent: Iterable[tuple[float, int]]) -> None:
        """Count what an earlier process sent: (time, tokens) of each request, oldest first."""
        self._bucket.seed(sent)

    def pause(self, until: float, now: float) -> bool:
        """Admit nothing before `until`, and then one first; say whether this is a new hold.

        The longest of several pauses holds. What was in flight when one began is refused too: that is the
        same hold, not another one.
        """
        new = now >= self._paused_until
        self.holds += new
        self._paused_until = max(self._paused_until, until)
        self._probe_next = True
        self._bucket.rest(self._paused_until)
        return new

    def succeeded(self) -> None:
        """Note that the server serves this pool: the next pause is a first one again."""
        self.holds = 0

    def probed(self) -> None:
        """Note that the probe has landed; if the pool is still closed, `pause` has said so before."""
        self._probing = False

    def binding(self, cost: int, now: float) -> str | None:
        """Name what a request of `cost` tokens waits for: `requests`, `tokens`, `server` or None."""
        if self._probing or now < self._paused_until:
            return "server"
        return self._bucket.binding(cost, now)


def pools(shared: Limit, by_model: Mapping[str, Limit], burst_s: float) -> dict[str, Pool]:
    """Make the pools of a job: the shared one, and one for each model with a limit of its own."""
    limits = {SHARED: shared, **by_model}
    return {name: Pool(name, limit, max(burst_s, LEAST_BURST_S)) for name, limit in limits.items()}
