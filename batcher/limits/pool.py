"""A rate budget: the bucket, the pauses that the server asks for, and what it says of its limits."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import astuple, replace
from itertools import islice
from typing import Literal

from batcher.limits.bucket import Bucket, Fit, Limit, Never, Took, Wait
from batcher.limits.feedback import Feedback, Word, read
from batcher.limits.growth import Growth
from batcher.limits.returns import Heard, Returns

#: The name of the pool of every model without one of its own: no model has it.
SHARED = ""
#: Admission goes in groups, some milliseconds apart: a smaller burst would lose what those are worth.
LEAST_BURST_S = 0.1

#: The first reply may tell the limits: it is waited for so long, since many servers tell none.
LOOK_S = 5.0

#: Whether the server's limit counts what a request reserves, or what it has used in the end; `auto` takes the
#: first, which is what OpenAI does, unless the headers show the other.
TpmCounts = Literal["auto", "reserved", "actual"]


class Pool(Bucket):
    """One rate budget, shared by the models that are mapped to it: a bucket that the server can close.

    A grant is `sent`, which starts its minute, or it never leaves: `give_back`. What was sent ends as `used`
    or as `dropped` (refused for rate: refused requests count too, says OpenAI's rate-limit guide). After a
    pause one request goes alone, as a probe, and the others wait for what becomes of it (`probed`). So they
    do at the beginning where nobody gave a limit, if not for long: its reply may tell them (`hear`).
    """

    __slots__ = (
        "_closed_at",
        "_counts",
        "_feedback",
        "_given",
        "_growth",
        "_guarded",
        "_look_until",
        "_paused_until",
        "_probe_next",
        "_probing",
        "_returns",
        "_unused",
        "holds",
        "limit",
    )

    def __init__(self, limit: Limit, burst_s: float, counts: TpmCounts = "auto") -> None:
        super().__init__(limit, burst_s)
        #: Pauses since something last succeeded: what the backoff grows with.
        self.holds = 0
        #: The limits that it keeps: those given, and else those that the server tells.
        self.limit = limit
        self._given = limit
        self._counts = counts
        self._feedback = Feedback()
        self._returns = Returns()
        #: Of all answers: tokens that were reserved and not used.
        self._unused = 0
        self._growth: Growth | None = None
        #: When the last hold began, and until when it lasts.
        self._closed_at = self._paused_until = -math.inf
        self._probe_next = limit == Limit()
        self._probing = False
        #: Until when the first one is waited for.
        self._look_until = math.inf
        #: Whether any of these stands before the bucket.
        self._guarded = self._probe_next

    def fit(self, costs: Iterable[int], now: float) -> Fit:
        """Admit the longest prefix of `costs` (tokens of each request) that may go at `now`.

        It reads no further than the first one that may not.
        """
        if self._guarded:
            return self._fit_guarded(costs, now)
        return Bucket.fit(self, costs, now)

    @property
    def is_looking(self) -> bool:
        """Whether the first one that goes alone goes to learn the limits, and not after a pause."""
        return self._paused_until == -math.inf and self._probing

    def _fit_guarded(self, costs: Iterable[int], now: float) -> Fit:
        if self._probing and now < self._look_until:
            return Wait(None if self._look_until == math.inf else self._look_until)
        if now < self._paused_until:
            return self._paused(costs, now)
        if self._growth is not None:
            self._grow(self._growth.per_s(now))
        self._guarded = self._probe_next or self._growth is not None
        if not self._probe_next:
            return Bucket.fit(self, costs, now)
        fit = Bucket.fit(self, islice(costs, 1), now)
        if isinstance(fit, Took) and fit.count:
            self.rest(now)
            self._probe_next, self._probing = False, True
            self._look_until = now + LOOK_S if self.is_looking else math.inf
            return Took(fit.count, probe=True)
        return fit

    def _paused(self, costs: Iterable[int], now: float) -> Fit:
        first = next(iter(costs), None)
        if first is None:
            return Took(0)
        at = self.earliest(first, now)
        return Wait(self._paused_until if at == math.inf else max(at, self._paused_until))

    def _grow(self, per_s: float) -> None:
        if not self.slow_to(per_s):
            self._growth = None

    def used(self, reserved: int, actual: int | None, sent_at: float, now: float) -> None:
        """End a reservation whose request was dealt with; `actual` is what it used, where that is known."""
        self.ended(1)
        if actual is None:
            return
        self._unused += reserved - actual
        if self._counts == "actual" or (self._counts == "auto" and self._returns.shown):
            self.correct(actual - reserved, sent_at, now)

    def dropped(self) -> None:
        """End a reservation whose request was refused for rate: it counts all the same."""
        self.ended(1)

    def hear(
        self,
        model: str,
        headers: Iterable[tuple[bytes, bytes]],
        sent_at: float,
        *,
        refused: bool,
        served: int = 0,
    ) -> bool:
        """Take what the reply to what was sent at `sent_at` says of the limits; say whether they are new.

        What remains is believed where it is less than our own window leaves. A limit is taken where none was
        given. `served` are the tokens of the request, if it was served.
        """
        announced = read(headers)
        if not announced:
            return False
        if "tokens" in announced and announced["tokens"].limit < served:
            # The server counts otherwise.
            self._feedback.disbelieve(model)
            self.forget("tokens")
        words = self._feedback.hear(model, announced)
        limit = self._merged(self._feedback.limit)
        is_new = limit != self.limit
        if is_new:
            self.limit = limit
            # Of a day only the server knows what was used before: what it says remains is the limit.
            self.set_limit(replace(limit, rpd=self._given.rpd, tpd=self._given.tpd))
        for word in words:
            if word.remaining is not None:
                per_s = word.limit / word.period_s
                self.believe(word.kind, word.period_s, word.remaining, per_s, sent_at, refused=refused)
                if word.kind == "tokens" and not self._returns.shown:
                    self._look_for_returns(word, per_s, sent_at)
        return is_new

    def _look_for_returns(self, said: Word, per_s: float, sent_at: float) -> None:
        sent = self.tokens_sent_by(sent_at)
        if sent is not None and said.remaining is not None:
            heard = Heard(sent_at, said.remaining, *sent, self._unused, said.reset_s)
            self._returns.hear(heard, said.limit, per_s)

    def _merged(self, told: Limit) -> Limit:
        given = self._given
        return Limit(
            rpm=given.rpm or told.rpm,
            tpm=given.tpm or told.tpm,
            rpd=given.rpd or told.rpd,
            tpd=given.tpd or told.tpd,
        )

    @property
    def announced(self) -> Limit:
        """Those of the limits kept that the server has told."""
        kept, given = astuple(self.limit), astuple(self._given)
        return Limit(*(a if b is None else None for a, b in zip(kept, given, strict=True)))

    def whose(self, never: Never) -> str:
        """Say where the limit comes from that a request is larger than."""
        given = self._given.tpm if never.period == "minute" else self._given.tpd
        return "the limit that the server announces" if given is None else "the limit"

    def pause(self, until: float, now: float, sent_at: float | None = None) -> bool:
        """Admit nothing before `until`, and then one first; say whether this is a new hold.

        The longest of several pauses holds. What was in flight when one began (`sent_at` is when what asked
        for this one was sent) is refused too: that is the same hold, not another one, however late it lands.
        """
        new = now >= self._paused_until
        if new and sent_at is not None and sent_at < self._closed_at:
            return False
        if new:
            self._closed_at = now
            self.holds += 1
        self._paused_until = max(self._paused_until, until)
        self._probe_next = self._guarded = True
        return new

    def slow_down(self, now: float) -> None:
        """Let the traffic grow slowly from here: the server says that it grew too fast."""
        self._growth = Growth(self.tokens_in_a_minute, now)
        self._guarded = True

    def succeeded(self) -> None:
        """Note that the server serves this pool: the next pause is a first one again."""
        self.holds = 0

    def probed(self) -> None:
        """Note that the probe has landed; if the pool is still closed, `pause` has said so before."""
        self._probing = False

    def binding(self, cost: int, now: float) -> str | None:
        """Name what a request of `cost` tokens waits for: see `Bucket.binding`."""
        if (self._probing and now < self._look_until) or now < self._paused_until:
            return "server"
        return Bucket.binding(self, cost, now)


def pools(
    shared: Limit, by_model: Mapping[str, Limit], burst_s: float, counts: TpmCounts = "auto"
) -> dict[str, Pool]:
    """Make the pools of a job: the shared one, and one for each model with a limit of its own."""
    limits = {SHARED: shared, **by_model}
    return {name: Pool(limit, max(burst_s, LEAST_BURST_S), counts) for name, limit in limits.items()}
