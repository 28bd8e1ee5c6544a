"""The dual bucket: requests and tokens, both or neither."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from math import inf
from operator import itemgetter
from typing import Final

import msgspec

from batcher.limits.level import NOTE_S
from batcher.limits.pace import SLACK_S, Pace
from batcher.limits.period import Period
from batcher.limits.window import DAY_S, MINUTE_S, Window


@dataclass(frozen=True, slots=True)
class Limit:
    """What the account allows; None where it sets no limit, or where nobody said."""

    #: Requests per minute.
    rpm: int | None = None
    #: Tokens per minute: the estimated input and the output limit of each request.
    tpm: int | None = None
    #: Requests and tokens per day.
    rpd: int | None = None
    tpd: int | None = None

    def __str__(self) -> str:
        """Say it in words: `500 requests and 200,000 tokens a minute, 10,000 requests a day`."""
        minute = _in_words(self.rpm, self.tpm, "minute")
        day = _in_words(self.rpd, self.tpd, "day")
        return ", ".join(filter(None, (minute, day))) or "none"


def _in_words(requests: int | None, tokens: int | None, period: str) -> str:
    counts = ((requests, "requests"), (tokens, "tokens"))
    words = " and ".join(f"{count:,} {what}" for count, what in counts if count is not None)
    return f"{words} a {period}" if words else ""


class Took(msgspec.Struct, frozen=True, gc=False):
    """The first `count` of the group are admitted: send them, or give them back."""

    count: int
    #: It goes alone, to see whether the pool is open again.
    probe: bool = False


class Wait(msgspec.Struct, frozen=True, gc=False):
    """Nothing is admitted now; ask again at `until`, or, where that is None, when something has landed."""

    until: float | None


class Never(msgspec.Struct, frozen=True, gc=False):
    """The first of the group is larger than a whole limit: this many tokens in a `minute` or a `day`."""

    maximum: int
    period: str = "minute"


Fit = Took | Wait | Never


#: What a pace saves up while the first in line waits for something else, in seconds of it: else requests that
#: are large beside the limit would keep both from being used. One of a tenth of a minute's tokens holds
#: what is behind it up for 6 s.
SAVED_REQUESTS_S: Final = 6.0
SAVED_TOKENS_S: Final = 0.5


class Bucket:
    """Requests and tokens, per minute and per day; any of the four limits may be absent.

    A cost is a number of tokens; each also costs one request. First come, first served: nothing goes before
    the first in line, however small.

    >>> bucket = Bucket(Limit(rpm=60), burst_s=1.0)
    >>> bucket.fit([10, 10], now=0.0)
    Took(count=1, probe=False)
    >>> bucket.fit([10], now=0.0)
    Wait(until=1.0)
    """

    __slots__ = (
        "_ahead_s",
        "_capped",
        "_day",
        "_ended",
        "_minute",
        "_note_at",
        "_pace_requests",
        "_pace_tokens",
        "_periods",
        "_waits_since",
        "_window",
    )

    def __init__(self, limit: Limit, burst_s: float) -> None:
        self._pace_requests = Pace(inf, burst_s)
        self._pace_tokens = Pace(inf, burst_s)
        self._ahead_s = burst_s + SLACK_S
        self._window = Window()
        self._minute = Period(self._window)
        self._day: Period | None = None
        #: Those of the two that there are.
        self._periods: tuple[Period, ...] = (self._minute,)
        #: Whether more than the window of the minute stands in the way: a day, or the server's word.
        self._capped = False
        #: Requests that were sent and have ended.
        self._ended = 0
        #: When what has been sent is noted next.
        self._note_at = -inf
        #: Since when the first in line waits; infinity if none does.
        self._waits_since = inf
        self.set_limit(limit)

    def set_limit(self, limit: Limit) -> None:
        """Change the limits from now on."""
        rpm, tpm, rpd, tpd = (inf if each is None else each for each in astuple(limit))
        self._window.max_requests, self._window.max_tokens = rpm, tpm
        self._set_rates()
        if min(rpd, tpd) < inf:
            self._count_days()
        if self._day is not None:
            self._day.window.max_requests, self._day.window.max_tokens = rpd, tpd

    def forget(self, kind: str) -> None:
        """Believe no longer what the server has said of `requests`, or of `tokens`."""
        for period in self._periods:
            period.level(kind).heard = False
        self._set_rates()

    def _set_rates(self) -> None:
        requests_per_s = self._window.max_requests / MINUTE_S
        self._pace_requests.set_rate(min(requests_per_s, self._minute.requests.left_per_s))
        self._pace_tokens.set_rate(self._tokens_per_s)

    @property
    def _tokens_per_s(self) -> float:
        return min(self._window.max_tokens / MINUTE_S, self._minute.tokens.left_per_s)

    def _count_days(self) -> None:
        if self._day is None:
            self._day = Period(Window(period_s=DAY_S))
            # What has been sent is in the server's word, what is held will be sent.
            requests, tokens = self._window.counted()
            self._day.window.take(self._window.requests - requests, self._window.tokens - tokens)
            self._day.note(-inf)
            self._periods = (self._minute, self._day)
            self._capped = True

    def fit(self, costs: Iterable[int], now: float) -> Fit:
        """Admit the longest prefix of `costs` (tokens of each request) that may go at `now`.

        It reads no further than the first one that may not.
        """
        # What `Pace` and `Window` do one by one is done here for a group, with local names.
        # long: each call more would add a tenth to what an admission costs
        pace_requests, pace_tokens, window = self._pace_requests, self._pace_tokens, self._window
        if now >= window.leaves:
            window.roll(now)
        requests, tokens = window.requests, window.tokens
        max_requests, max_tokens = window.max_requests, window.max_tokens
        if self._capped:
            max_requests, max_tokens = self._caps(now)
        requests_s, tokens_s = pace_requests.interval_s, pace_tokens.interval_s
        requests_due, tokens_due = pace_requests.due, pace_tokens.due
        if self._waits_since < now:
            requests_due = max(requests_due, self._waits_since, now - SAVED_REQUESTS_S)
            tokens_due = max(tokens_due, self._waits_since, now - SAVED_TOKENS_S)
        else:
            if requests_due < now:
                requests_due = now
            if tokens_due < now:
                tokens_due = now
        ahead, count, refused = now + self._ahead_s, 0, None
        for cost in costs:
            requests_next, tokens_next = requests_due + requests_s, tokens_due + cost * tokens_s
            if (
                requests + 1 > max_requests
                or tokens + cost > max_tokens
                # What is larger than the burst goes where nothing is owed.
                or (requests_next > ahead and requests_due - now > SLACK_S)
                or (tokens_next > ahead and tokens_due - now > SLACK_S)
            ):
                refused = cost
                break
            requests_due, tokens_due = requests_next, tokens_next
            requests, tokens, count = requests + 1, tokens + cost, count + 1
        if count == 0 and refused is not None:
            return self._refusal(refused, now)
        self._waits_since = inf if refused is None else min(self._waits_since, now)
        pace_requests.due, pace_tokens.due = requests_due, tokens_due
        if self._day is not None:
            self._day.window.take(count, tokens - window.tokens)
        window.requests, window.tokens = requests, tokens
        return Took(count)

    def _caps(self, now: float) -> tuple[float, float]:
        """Return what the window of the minute may hold at the most, by all that stands in the way."""
        awaited = self._awaited
        requests, tokens = self._minute.room(now, awaited=awaited)
        heard = self._minute.heard
        if self._day is not None:
            requests_a_day, tokens_a_day = self._day.room(now, awaited=awaited)
            requests, tokens = min(requests, requests_a_day), min(tokens, tokens_a_day)
            heard = heard or self._day.heard
        if heard and not awaited:
            requests = min(requests, 1)  # one goes first, to hear how things stand
        return self._window.requests + requests, self._window.tokens + tokens

    @property
    def _awaited(self) -> bool:
        """Whether a reply is on its way, and with it the server's next word."""
        return self._window.granted()[0] > self._ended

    def _refusal(self, cost: int, now: float) -> Fit:
        self._waits_since = min(self._waits_since, now)
        maximum, period = self._window.max_tokens, "minute"
        if self._day is not None and self._day.window.max_tokens < maximum:
            maximum, period = self._day.window.max_tokens, "day"
        if cost > maximum:
            return Never(int(maximum), period)
        at = self.earliest(cost, now)
        # It was refused: where sums of floats say that it may go now, it is a hair later.
        return Wait(None if at == inf else max(at, now + SLACK_S))

    def earliest(self, cost: int, now: float) -> float:
        """Return from when a request of `cost` tokens may go, infinity if no time is known for that."""
        if self._capped:
            return max(at for at, _ in self._times(cost, now))
        paces = self._pace_requests.earliest(1, now), self._pace_tokens.earliest(cost, now)
        return max(*paces, *self._window.earliest(1, cost, now))

    def _times(self, cost: int, now: float) -> Iterator[tuple[float, str]]:
        """Yield from when each limit allows a request of this cost, with the limit's name."""
        yield self._pace_requests.earliest(1, now), "requests"
        yield self._pace_tokens.earliest(cost, now), "tokens"
        for period in self._periods:
            yield from period.times(cost, now, awaited=self._awaited)

    def binding(self, cost: int, now: float) -> str | None:
        """Name what a request of `cost` tokens waits for the longest; None if it may go.

        `requests`, `tokens`, `requests a day`, `tokens a day`; `requests left at the server` or `tokens left
        at the server`: by its word too little remains.
        """
        at, name = max(self._times(cost, now), key=itemgetter(0))
        return None if at <= now else name

    def sent(self, costs: Sequence[int], now: float) -> None:
        """Start the minute of what has just been sent."""
        requests, tokens = len(costs), sum(costs)
        self._window.sent(requests, tokens, now)
        if self._day is not None:
            self._day.window.sent(requests, tokens, now)
        if now >= self._note_at:
            self._note_at = now + NOTE_S
            for period in self._periods:
                period.note(now)

    def ended(self, count: int) -> None:
        """Note that so many of those sent are answered, or never will be; their minute goes on."""
        self._ended += count

    def give_back(self, costs: Sequence[int]) -> None:
        """Return the reservations of what never left."""
        requests, tokens = len(costs), sum(costs)
        self._pace_requests.give_back(requests)
        self._pace_tokens.give_back(tokens)
        self._window.give_back(requests, tokens)
        if self._day is not None:
            self._day.window.give_back(requests, tokens)

    def correct(self, tokens: int, sent_at: float, now: float) -> None:
        """Change what was sent at `sent_at` by so many tokens, now that its true size is known."""
        self._pace_tokens.give_back(-tokens)
        self._window.correct(tokens, sent_at, now)
        if self._day is not None:
            self._day.window.correct(tokens, sent_at, now)

    def seed(self, at: float, requests: int, tokens: int, period_s: float = MINUTE_S) -> None:
        """Count what an earlier process sent at `at` in the window of this period: oldest first."""
        if period_s == MINUTE_S:
            self._window.seed(requests, tokens, at)
            self._ended += requests
        elif self._day is not None:
            self._day.window.seed(requests, tokens, at)

    def believe(
        self, kind: str, period_s: float, remaining: int, per_s: float, sent_at: float, *, refused: bool
    ) -> None:
        """Take the server's word: `remaining` was left when what was sent at `sent_at` arrived.

        `per_s` is the rate of its limit, `refused` whether the word came with a refusal.
        """
        if period_s == DAY_S:
            self._count_days()
        for period in self._periods:
            if period.window.period_s == period_s:
                period.level(kind).hear(remaining, per_s, sent_at, refused=refused)
            else:
                # There is one such limit. If it was taken for another period, that was a mistake.
                period.level(kind).heard = False
        self._set_rates()
        self._capped = True

    def tokens_sent_by(self, at: float) -> tuple[int, int] | None:
        """Return the tokens that had been sent by `at`: within the minute, and in all; None if unknown."""
        return self._minute.tokens.sent_by(at)

    @property
    def tokens_in_a_minute(self) -> int:
        """What was sent within the last minute, or is about to be."""
        return self._window.tokens

    def slow_to(self, per_s: float) -> bool:
        """Let tokens flow at no more than this rate; say whether that is less than the limit."""
        self._pace_tokens.set_rate(min(per_s, self._tokens_per_s))
        return per_s < self._window.max_tokens / MINUTE_S

    def rest(self, now: float) -> None:
        """Start without a burst: after a pause."""
        self._pace_requests.rest(now)
        self._pace_tokens.rest(now)
