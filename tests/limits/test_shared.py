"""A server's limit that others use too, or that nobody has told: what is refused, and what is used."""

import heapq
import math
from random import Random

import pytest

from batcher.limits.bucket import Limit, Took, Wait
from batcher.limits.pool import Pool
from batcher.limits.ramp import Ramp
from tests.limits.servers import Fixed, Refilling, Sliding, headers

RPM = 1_200
COST = 10
TICK_S = 0.05
COMMIT_S = 0.003


class World:
    """A pool with a ramp, a server, others at it, and the wires between them; events in their order."""

    def __init__(self, server, *, given=True, others=0.0, others_from=0.0, begins=0.0, seed=1):
        self.server, self.chance = server, Random(seed)
        self.pool = Pool(Limit(rpm=RPM) if given else Limit(), 0.25)
        self.ramp = Ramp()
        self.events, self.orders, self.now = [], 0, 0.0
        self.asks_at = math.inf
        self.newest, self.probe = 0, None
        self.served, self.refused, self.others_refused = [], [], []
        self.at(begins, self.admit)
        self.others_per_s = others * server.limit / 60.0
        if others:
            self.at(others_from, self.others)

    def at(self, when, what, *args):
        self.orders += 1
        heapq.heappush(self.events, (when, self.orders, what, args))

    def run(self, until):
        run_together(until, self)

    def step(self):
        self.now, _, what, args = heapq.heappop(self.events)
        what(*args)

    def admit(self):
        fit = self.pool.fit([COST] * self.ramp.free, self.now)
        while isinstance(fit, Took) and fit.count:
            self.ramp.take(fit.count, newest=self.newest + fit.count)
            for _ in range(fit.count):
                self.newest += 1
                self.at(self.now + COMMIT_S, self.leave, self.newest)
            self.probe = self.newest if fit.probe else self.probe
            fit = self.pool.fit([COST] * self.ramp.free, self.now)
        if isinstance(fit, Wait) and fit.until is not None:
            self.asks_at = max(fit.until, self.now + TICK_S)
            self.at(self.asks_at, self.admit_if_due, self.asks_at)

    def admit_if_due(self, asked_for):
        if asked_for == self.asks_at:
            self.admit()

    def leave(self, number):
        self.pool.sent([COST], self.now)
        self.at(self.now + self.chance.uniform(0.02, 0.2), self.arrive, number, self.now)

    def arrive(self, number, sent_at):
        self.server.pass_to(self.now)
        wait_s = self.server.wait_s(1)
        if wait_s == 0.0:
            self.server.take(1)
            self.served.append(self.now)
        else:
            self.refused.append(self.now)
        said = headers(self.server)
        self.at(self.now + self.chance.uniform(0.02, 0.2), self.land, number, sent_at, wait_s, said)

    def land(self, number, sent_at, wait_s, said):
        refused = wait_s > 0.0
        self.pool.hear("m", said, sent_at, refused=refused)
        self.ramp.landed(number, succeeded=not refused, refused=refused)
        if not refused:
            self.pool.used(COST, None, sent_at, self.now)
            self.pool.succeeded()
        else:
            self.pool.dropped()
            if self.pool.pause(self.now + max(wait_s, 0.02), self.now, sent_at):
                self.ramp.cut()
        if number == self.probe:
            self.probe = None
            self.pool.probed()
            if not refused:
                self.ramp.reopen()
        self.asks_at = math.inf
        self.admit()

    def others(self):
        self.server.pass_to(self.now)
        if self.server.wait_s(1) == 0.0:
            self.server.take(1)
        else:
            self.others_refused.append(self.now)
        self.at(self.now + self.chance.expovariate(self.others_per_s), self.others)

    def used_since(self, since):
        """Return the share of the limit that was ours."""
        served = sum(at >= since for at in self.served)
        return served / (self.server.limit / 60.0) / (self.now - since)

    @property
    def refused_share(self):
        return len(self.refused) / (len(self.served) + len(self.refused))


def run_together(until, *worlds):
    while (first := min(worlds, key=lambda world: world.events[0][0])).events[0][0] <= until:
        first.step()
    for world in worlds:
        world.now = until


SERVERS = pytest.mark.parametrize("kind", [Sliding, Refilling, Fixed])


@SERVERS
@pytest.mark.parametrize("limit", [RPM, 2_400])
def test_alone_nothing_is_refused(kind, limit):
    world = World(kind(limit))
    world.run(300.0)
    assert not world.refused
    assert world.used_since(120.0) >= 0.99 * RPM / limit


@SERVERS
def test_a_limit_that_nobody_gave_is_found_and_used(kind):
    world = World(kind(RPM), given=False)
    world.run(300.0)
    assert world.pool.limit == Limit(rpm=RPM)
    assert world.refused_share <= 0.01
    assert world.used_since(120.0) >= 0.95


@SERVERS
def test_a_limit_that_is_lower_than_the_one_given_is_believed(kind):
    """A few are refused at first, before the server's word comes."""
    world = World(kind(RPM // 3))
    world.run(600.0)
    assert world.refused_share <= 0.01
    assert world.used_since(240.0) >= 0.9


@pytest.mark.parametrize("kind", [Sliding, Refilling])
@pytest.mark.parametrize("others_from", [0.0, 70.0])
def test_what_others_use_is_left_to_them(kind, others_from):
    world = World(kind(RPM), others=0.3, others_from=others_from)
    world.run(600.0)
    assert world.refused_share <= 0.005
    assert world.used_since(300.0) == pytest.approx(0.7, abs=0.03)
    late = sum(at > 300.0 for at in world.others_refused)
    assert late <= 0.01 * world.others_per_s * 300.0


@SERVERS
@pytest.mark.parametrize("others", [0.9, 1.5])
def test_however_much_others_use_it_goes_on(kind, others):
    """There is no state in which it waits for a word that only a request of its own could bring."""
    world = World(kind(RPM // 10), others=others)
    world.run(1200.0)
    assert sum(at > 900.0 for at in world.served) > 5


@SERVERS
def test_when_the_others_are_gone_it_has_all_of_it_again(kind):
    world = World(kind(RPM), others=0.3)
    world.run(300.0)
    world.others_per_s = 1e-9
    world.run(900.0)
    assert world.used_since(600.0) >= 0.97


@SERVERS
@pytest.mark.parametrize("later", [0.0, 100.0])
def test_two_of_us_share_an_account_without_knowing_of_each_other(kind, later):
    server = kind(RPM)
    both = World(server, seed=1), World(server, seed=2, begins=later)
    run_together(600.0, *both)
    assert max(world.refused_share for world in both) <= 0.005
    shares = [world.used_since(300.0) for world in both]
    assert 0.94 <= sum(shares) <= 1.0
    assert min(shares) >= 0.1
