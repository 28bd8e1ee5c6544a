"""The pool against a model that remembers everything and adds it up anew for each question."""

import math

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from batcher.limits.bucket import SAVED_REQUESTS_S, SAVED_TOKENS_S, Limit, Never, Took, Wait
from batcher.limits.pool import LOOK_S, Pool
from batcher.limits.window import DAY_S, MINUTE_S, SKEW_S, SLOTS
from tests.limits.servers import said

#: Before a promised time, and what floats and slacks leave between two ways to add up.
PROBE_S = 1e-6
#: What floats leave where nothing is owed.
HAIR_S = 2e-7
FOREVER_S = 1e9


class Sent:
    """A request at the server: `tokens` is what it counts now, `reserved` what it counted first.

    It was sent at `sent_at` by our clock and counts as of `at`; `really_at` is by a clock that never goes
    back.
    """

    def __init__(self, at, sent_at, really_at, tokens):
        self.at, self.sent_at, self.really_at = at, sent_at, really_at
        self.tokens = self.reserved = tokens
        #: More than reserved counts from when it is known.
        self.more = []
        self.ended = False


class Model:
    """What may go, by the rules in words: no ring, no running sums, no theoretical arrival time."""

    def __init__(self, limit, burst_s):
        self.limit, self.burst_s = limit, burst_s
        self.held, self.sent = [], []
        self.latest = -math.inf
        #: The latest time of a question, and of anything: what had left by then does not come back with the
        #: clock.
        self.asked = self.seen = -math.inf
        #: Since when somebody has been waiting all the time.
        self.waits_since = math.inf
        #: (time, by how much that moves the even flow on), of requests and of tokens: see `owed`.
        self.flows = {"requests": [], "tokens": []}

    def flow(self, kind, at, amount):
        rate = self.limit.rpm if kind == "requests" else self.limit.tpm
        self.flows[kind].append((at, amount * 60 / rate if rate else 0.0))

    def begins(self, kind, now):
        """Return when the flow of what goes now begins: it saves up a little while somebody waits."""
        saved_s = SAVED_REQUESTS_S if kind == "requests" else SAVED_TOKENS_S
        return now if self.waits_since > now else max(self.waits_since, now - saved_s)

    def owed(self, kind, now):
        """Return when all that was taken will have flowed out: the latest of all backlogs."""
        sums, latest = 0.0, self.begins(kind, now)
        for at, seconds in reversed(self.flows[kind]):
            sums += seconds
            latest = max(latest, at + sums)
        return latest

    def counts(self, now, period_s):
        """Return requests and tokens that stand in the window: held, or sent and not yet gone."""
        requests, tokens, slot_s = len(self.held), sum(self.held), period_s / SLOTS
        for sent in self.sent:
            if _leaves(sent.at, period_s, slot_s) > now:
                requests, tokens = requests + 1, tokens + sent.tokens
            tokens += sum(amount for at, amount in sent.more if _leaves(at, period_s, slot_s) > now)
        return requests, tokens

    def may_go(self, costs, now, latest=-math.inf):
        """Return how many of `costs` may go at `now`, when `latest` has been seen already."""
        counts = {period_s: self.counts(max(now, latest), period_s) for period_s in (MINUTE_S, DAY_S)}
        by_requests, by_tokens = self.owed("requests", now), self.owed("tokens", now)
        a_request_s = 60 / self.limit.rpm if self.limit.rpm else 0.0
        a_token_s = 60 / self.limit.tpm if self.limit.tpm else 0.0
        for count, cost in enumerate(costs):
            for due, seconds in ((by_requests, a_request_s), (by_tokens, cost * a_token_s)):
                if due > now + HAIR_S and due + seconds > now + self.burst_s + HAIR_S:
                    return count
            for (requests, tokens), most_requests, most_tokens in (
                (counts[MINUTE_S], self.limit.rpm, self.limit.tpm),
                (counts[DAY_S], self.limit.rpd, self.limit.tpd),
            ):
                if most_requests is not None and requests + count + 1 > most_requests:
                    return count
                if most_tokens is not None and tokens + sum(costs[: count + 1]) > most_tokens:
                    return count
            by_requests, by_tokens = by_requests + a_request_s, by_tokens + cost * a_token_s
        return len(costs)

    def in_windows_that_end(self, now):
        """Yield requests and tokens of the minute, and of the day, if all that is held goes really now."""
        for period_s in (MINUTE_S, DAY_S):
            within = [sent for sent in self.sent if sent.really_at >= now - period_s]
            yield len(self.held) + len(within)
            yield sum(self.held) + sum(sent.tokens for sent in within)


def _leaves(at, period_s, slot_s):
    return (math.floor(at / slot_s) + 1) * slot_s + period_s + SKEW_S


COSTS = (
    st.lists(st.integers(0, 60), min_size=1, max_size=9)
    | st.lists(st.integers(0, 10), min_size=1, max_size=30)
    | st.lists(st.integers(0, 400), max_size=4)
)
LIMITS = st.builds(
    Limit,
    rpm=st.none() | st.integers(1, 40),
    tpm=st.none() | st.integers(50, 500),
    rpd=st.none() | st.none() | st.integers(1, 60),
    tpd=st.none() | st.none() | st.integers(50, 2000),
)


#: Forward: less than a slot, a slot, less than a minute, a minute, a machine that slept.
MOVES_S = (0.001, 0.05, 0.1, 1.0, 7.3, 30.0, 60.0, 600.0, 40_000.0)


class PoolMachine(RuleBasedStateMachine):
    """Everything that can happen to a pool but the server's word on what remains."""

    @initialize(
        limit=LIMITS,
        burst_s=st.sampled_from([0.0, 0.25, 5.0, 60.0]),
        counts=st.sampled_from(["reserved", "actual"]),
    )
    def begin(self, limit, burst_s, counts):
        self.limit, self.counts, self.now = limit, counts, 1000.0
        #: By how much the clock has gone back.
        self.lost_s = 0.0
        self.burst_s = burst_s
        self.pool = Pool(limit, burst_s, counts)
        self.model = Model(limit, burst_s)
        self.paused_until, self.closed_at, self.closed = -math.inf, -math.inf, False
        self.probe_next, self.probe, self.look_until = limit == Limit(), None, -math.inf
        self.holds = 0
        self.promise = None
        self.has_heard = False

    # --- time

    @rule(seconds=st.sampled_from(MOVES_S) | st.floats(0, 100) | st.floats(-50, 0))
    def the_clock_moves(self, seconds):
        # Never by a whole minute: see the test of the window.
        moved = max(self.now + seconds, self.model.seen - 50.0)
        if self.look_until <= self.now:
            moved = max(moved, self.look_until)  # what is over is over
        self.lost_s += max(self.now - moved, 0.0)
        self.now = moved
        self.promise = None

    # --- admission

    @rule(costs=COSTS)
    def ask(self, costs):
        assert self.pool.holds == self.holds
        fit = self.pool.fit(iter(costs), self.now)
        self.promise = None
        if self.probe is not None and self.now < self.look_until:
            assert fit == Wait(None if self.look_until == math.inf else self.look_until)
        elif self.closed and self.now < self.paused_until:
            self.is_paused(costs, fit)
        else:
            answered = {Took: self.took, Wait: self.waits, Never: self.never}[type(fit)]
            answered(costs, fit)

    def is_paused(self, costs, fit):
        if not costs:
            assert fit == Took(0)
            return
        self.asked()
        assert fit.until >= self.paused_until
        if fit.until > self.paused_until:
            assert self.surely_goes(costs[:1], fit.until - PROBE_S) == 0
        if self.may_go(costs[:1], fit.until) == 1:
            self.promise = (costs, fit.until)
        else:
            assert fit.until == self.paused_until
            assert self.surely_goes(costs[:1], self.now + FOREVER_S) == 0

    def took(self, costs, fit):
        shown = costs[:1] if self.probe_next else costs
        assert self.surely_goes(shown, self.now) <= fit.count <= self.may_go(shown, self.now)
        assert fit.count or not shown
        self.asked()
        # Once a pause is over it stays over, even if the clock goes back.
        self.closed = self.probe_next
        assert fit.probe == (self.probe_next and fit.count > 0)
        for kind, amount in (("requests", fit.count), ("tokens", sum(costs[: fit.count]))):
            self.model.flow(kind, self.model.begins(kind, self.now), amount)
        self.model.held += costs[: fit.count]
        waits_since = min(self.model.waits_since, self.now)
        self.model.waits_since = math.inf if fit.count == len(shown) else waits_since
        if fit.probe:
            self.probe, self.probe_next = "held", False
            self.rest()
            self.look_until = self.now + LOOK_S if self.paused_until == -math.inf else math.inf
        if fit.count:
            really = self.now + self.lost_s
            for counted, most in zip(self.model.in_windows_that_end(really), self.most(), strict=True):
                assert counted <= most

    def rest(self):
        for kind, rate in (("requests", self.limit.rpm), ("tokens", self.limit.tpm)):
            if rate:
                self.model.flow(kind, self.now + self.burst_s, 0)

    def waits(self, costs, fit):
        first = costs[:1]
        self.closed = self.probe_next
        assert self.surely_goes(first, self.now) == 0
        self.asked()
        self.model.waits_since = min(self.model.waits_since, self.now)
        if fit.until is None:
            assert self.model.held
            assert self.surely_goes(first, self.now + FOREVER_S) == 0
            return
        assert fit.until > self.now
        assert self.may_go(first, fit.until) == 1
        assert self.surely_goes(first, fit.until - PROBE_S) == 0
        self.promise = (costs, fit.until)

    def never(self, costs, fit):
        self.asked()
        self.closed = self.probe_next
        self.model.waits_since = min(self.model.waits_since, self.now)
        limits = {"minute": self.limit.tpm, "day": self.limit.tpd}
        assert costs[0] > fit.maximum == limits[fit.period]
        assert all(fit.maximum <= limit for limit in limits.values() if limit is not None)

    def surely_goes(self, costs, now):
        """Return how many must go; by the server's word it may be fewer."""
        return 0 if self.has_heard else self.model.may_go(costs, now - PROBE_S, self.model.asked)

    def may_go(self, costs, now):
        return self.model.may_go(costs, now + PROBE_S, self.model.seen)

    def asked(self):
        self.model.asked = max(self.model.asked, self.now)
        self.model.seen = max(self.model.seen, self.now)

    def most(self):
        limit = self.limit
        return [math.inf if each is None else each for each in (limit.rpm, limit.tpm, limit.rpd, limit.tpd)]

    @precondition(lambda self: self.promise is not None)
    @rule()
    def ask_just_before_and_exactly_at_the_promised_time(self):
        costs, until = self.promise
        if until - PROBE_S > self.now:
            self.now = until - PROBE_S
            assert self.has_heard or self.pool.fit(costs, self.now) == Wait(until)
        self.now = until
        fit = self.pool.fit(costs, until)
        assert isinstance(fit, Took)
        self.took(costs, fit)
        self.promise = None

    # --- what becomes of it

    @precondition(lambda self: self.model.held)
    @rule(share=st.floats(0, 1), late_s=st.sampled_from([0.0, 0.0, 0.3, 70.0]))
    def some_leave(self, share, late_s):
        self.now += late_s
        count = max(1, round(share * len(self.model.held)))
        costs = [self.model.held.pop(0) for _ in range(count)]
        self.pool.sent(costs, self.now)
        self.model.latest = max(self.model.latest, self.now)
        self.model.seen = max(self.model.seen, self.now)
        really = self.now + self.lost_s
        sent = [Sent(self.model.latest, self.now, really, cost) for cost in costs]
        self.model.sent += sent
        if self.probe == "held":
            self.probe = sent[0]
        self.promise = None

    @precondition(lambda self: self.model.held)
    @rule()
    def one_never_leaves(self):
        cost = self.model.held.pop(0)
        self.pool.give_back([cost])
        self.model.flow("requests", -math.inf, -1)
        self.model.flow("tokens", -math.inf, -cost)
        if self.probe == "held":
            self.probe_lands()
        self.promise = None

    def on_the_wire(self):
        return [sent for sent in self.model.sent if not sent.ended]

    @precondition(lambda self: self.on_the_wire())
    @rule(
        which=st.integers(0, 100),
        endings=st.lists(st.sampled_from(["dropped", None]) | st.integers(0, 80), min_size=1, max_size=5),
    )
    def some_end(self, which, endings):
        for ending in endings[: len(self.on_the_wire())]:
            sent = self.end(which)
            if ending == "dropped":
                self.pool.dropped()
                continue
            self.pool.used(sent.reserved, ending, sent.sent_at, self.now)
            self.pool.succeeded()
            self.holds = 0
            if self.counts == "actual" and ending is not None:
                self.correct(sent, ending)

    def end(self, which):
        waiting = self.on_the_wire()
        sent = waiting[which % len(waiting)]
        sent.ended = True
        self.promise = None
        if sent is self.probe:
            self.probe_lands()
        return sent

    def correct(self, sent, actual):
        self.model.seen = max(self.model.seen, self.now)
        self.model.flow("tokens", -math.inf, actual - sent.tokens)
        if actual > sent.reserved:
            self.model.latest = max(self.model.latest, self.now)
            sent.more.append((self.model.latest, actual - sent.reserved))
        elif sent.sent_at == sent.at:
            # One that was sent on a clock that had gone back counts in full.
            sent.tokens = actual

    def probe_lands(self):
        self.pool.probed()
        self.probe = None

    # --- pauses

    @rule(seconds=st.floats(0, 40), before_s=st.none() | st.floats(0, 60))
    def the_server_says_no(self, seconds, before_s):
        sent_at = None if before_s is None else self.now - before_s
        is_over = self.now >= self.paused_until
        same = is_over and sent_at is not None and sent_at < self.closed_at
        assert self.pool.pause(self.now + seconds, self.now, sent_at) == (is_over and not same)
        self.promise = None
        if same:
            return
        if is_over:
            self.holds, self.closed_at = self.holds + 1, self.now
        self.paused_until = max(self.paused_until, self.now + seconds)
        self.probe_next = self.closed = True

    # --- another process

    @rule(away_s=st.sampled_from([0.0, 5.0, 100.0]))
    def it_crashes_and_starts_again(self, away_s):
        """What was on its way may have been sent until now, and counts as what it reserved.

        The journal tells the new process when each was really sent.
        """
        model, really = self.model, self.now + self.lost_s
        model.sent += [Sent(really, really, really, cost) for cost in model.held]
        self.now, self.lost_s = really + away_s, 0.0
        self.pool = Pool(self.limit, self.burst_s, self.counts)
        self.model = Model(self.limit, self.burst_s)
        for sent in model.sent:
            self.model.latest = self.model.seen = sent.really_at
            again = Sent(sent.really_at, sent.really_at, sent.really_at, sent.reserved)
            again.ended = True
            self.model.sent.append(again)
            self.pool.seed(again.at, 1, again.reserved)
            self.pool.seed(again.at, 1, again.reserved, DAY_S)
        self.paused_until, self.closed_at, self.closed = -math.inf, -math.inf, False
        self.probe_next, self.probe, self.look_until = self.limit == Limit(), None, -math.inf
        self.holds = 0
        self.promise = None
        self.has_heard = False

    def teardown(self):
        """When all has landed there is always a time at which it goes on."""
        if not hasattr(self, "pool"):
            return
        if self.model.held:
            self.some_leave(1.0, 0.0)
        for _ in self.on_the_wire():
            self.pool.dropped()
        self.pool.probed()
        for _ in range(5):
            fit = self.pool.fit([1], self.now)
            if isinstance(fit, Took):
                return
            assert fit.until > self.now
            self.now = fit.until
        raise AssertionError(fit)


KINDS = st.sampled_from([(b"requests", "rpm"), (b"tokens", "tpm"), (b"requests", "rpd"), (b"tokens", "tpd")])


class HearingMachine(PoolMachine):
    """Whatever the server says remains, the bound holds, and there is a time at which it goes on."""

    @initialize(
        limit=st.builds(
            Limit,
            rpm=st.integers(1, 40),
            tpm=st.integers(50, 500),
            rpd=st.integers(20, 60) | st.just(10**6),
            tpd=st.integers(500, 2000) | st.just(10**6),
        ),
        burst_s=st.sampled_from([0.0, 0.25, 60.0]),
        counts=st.sampled_from(["reserved", "actual"]),
    )
    def begin(self, limit, burst_s, counts):
        super().begin(limit, burst_s, counts)

    @precondition(lambda self: self.model.sent)
    @rule(
        which=st.integers(0, 100),
        of=KINDS,
        limit=st.none() | st.integers(1, 10**6),
        share=st.just(0.0) | st.floats(0, 1),
        refused=st.booleans(),
    )
    def the_server_says(self, which, of, limit, share, refused):
        kind, name = of
        limit = limit or getattr(self.limit, name)
        reset = b"2h0m0s" if name.endswith("d") else b"60s"
        headers = said(limit, int(share * limit), reset, kind)
        sent_at = self.model.sent[which % len(self.model.sent)].sent_at
        assert not self.pool.hear("m", headers, sent_at, refused=refused)
        self.has_heard = True
        self.promise = None


class TestPool(PoolMachine.TestCase):
    settings = settings(max_examples=120, stateful_step_count=40)


class TestPoolThatHears(HearingMachine.TestCase):
    settings = settings(max_examples=60, stateful_step_count=40)
