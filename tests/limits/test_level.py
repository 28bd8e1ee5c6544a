import pytest

from batcher.limits.level import LEAST_MARGIN_S, MOST_MARGIN_S, Level

PERIOD_S = 60.25
PER_S = 100.0
#: What is always left to others at this rate.
LEFT = LEAST_MARGIN_S * PER_S


class Sender:
    """What a window does for a level: it counts what was sent, for a period."""

    def __init__(self, per_s=PER_S):
        self.level, self.per_s = Level(PERIOD_S), per_s
        self.sent, self.now = [], 0.0

    def send(self, amount, now):
        self.now = now
        self.sent.append((now, amount))
        self.level.note(self.used, self.used, self.granted, now)

    @property
    def used(self):
        return sum(amount for at, amount in self.sent if at + PERIOD_S > self.now)

    @property
    def granted(self):
        return sum(amount for _, amount in self.sent)

    def hear(self, remaining, at, *, refused=False):
        self.level.hear(remaining, self.per_s, at, refused=refused)

    def freed(self, amount):
        for at, sent in self.sent:
            if at + PERIOD_S > self.now:
                amount -= sent
                if amount <= 0:
                    return at + PERIOD_S
        return float("inf")

    def room(self, now, *, awaited=True):
        self.now = now
        return self.level.room(self.used, self.granted, now, awaited=awaited)

    def earliest(self, cost, now, *, awaited=True):
        self.now = now
        return self.level.earliest(cost, self.used, self.granted, now, self.freed, awaited=awaited)


@pytest.fixture
def sender():
    return Sender()


def test_as_long_as_nothing_was_heard_nothing_is_in_the_way(sender):
    sender.send(5, 0.0)
    assert sender.room(0.0) == float("inf")
    assert sender.earliest(10**9, 0.0) == 0.0


def test_what_was_sent_before_the_word_is_in_it_and_what_was_sent_after_it_is_not(sender):
    sender.send(100, 0.0)
    sender.send(50, 1.0)
    sender.hear(1000, at=0.0)
    assert sender.room(1.0) == pytest.approx(1000 - 50 - LEFT)


def test_what_is_held_is_not_there_either(sender):
    sender.send(100, 0.0)
    sender.hear(1000, at=0.0)
    assert sender.level.room(130, 130, 0.0, awaited=True) == pytest.approx(1000 - 30 - LEFT)


def test_as_a_window_it_gets_back_only_what_leaves_our_own(sender):
    sender.send(100, 0.0)
    sender.send(400, 30.0)
    sender.hear(500, at=30.0)
    assert sender.room(59.0) == pytest.approx(500 - LEFT)
    assert sender.room(60.3) == pytest.approx(600 - LEFT)


def test_as_a_bucket_it_refills_evenly_and_no_faster(sender):
    sender.send(100, 0.0)
    sender.send(6000, 58.0)
    sender.hear(50, at=58.0)
    # Our own window gives 100 back at once; the server may have no more than 50 + 2.5 s of its rate.
    assert sender.room(60.5) == pytest.approx(50 + 100 - LEFT)
    assert sender.room(58.5) == pytest.approx(50 - LEFT)


def test_where_no_reply_is_on_its_way_it_is_a_bucket(sender):
    """No word would come that could free it: so it must free itself."""
    sender.send(100, 0.0)
    sender.hear(0, at=0.0)
    assert sender.room(10.0, awaited=True) < 0
    assert sender.room(10.0, awaited=False) == pytest.approx(10 * PER_S - LEFT)


def test_a_word_holds_for_a_period_and_then_as_a_bucket(sender):
    sender.send(1, 0.0)
    sender.hear(0, at=0.0)
    assert sender.room(PERIOD_S - 0.01) < 1
    assert sender.room(PERIOD_S) == pytest.approx(PERIOD_S * PER_S - LEFT)


@pytest.mark.parametrize("awaited", [True, False])
@pytest.mark.parametrize("cost", [1, 100, 700])
def test_not_before_and_exactly_at(sender, cost, awaited):
    sender.send(60, 0.0)
    sender.send(30, 20.0)
    sender.send(10, 40.0)
    sender.hear(20, at=40.0)
    at = sender.earliest(cost, 41.0, awaited=awaited)
    assert at > 41.0 or sender.room(41.0, awaited=awaited) >= cost
    assert sender.room(at, awaited=awaited) >= cost
    if at > 41.0:
        assert sender.room(at - 1e-3, awaited=awaited) < cost


def test_an_older_word_says_nothing(sender):
    sender.send(10, 0.0)
    sender.send(10, 5.0)
    sender.hear(300, at=5.0)
    sender.hear(9, at=0.0)
    assert sender.room(5.0) == pytest.approx(300 - LEFT)


def test_of_those_that_were_sent_together_the_one_that_found_less_came_last(sender):
    sender.send(10, 5.0)
    for remaining in (300, 295, 299):
        sender.hear(remaining, at=5.0)
    assert sender.room(5.0) == pytest.approx(295 - LEFT)


def test_a_word_about_what_is_not_noted_says_nothing(sender):
    sender.send(10, 100.0)
    sender.hear(0, at=90.0)
    assert not sender.level.heard


# --- others


def falls_short(sender, by, rounds=30):
    """Send a tenth of the rate each 0.1 s, and hear each time that others took as much beside it."""
    remaining = 100_000
    for step in range(rounds):
        now = step * 0.1
        sender.send(10, now)
        sender.hear(remaining - 10 - by, at=now)
        remaining -= 10 + by
    return now, remaining


def test_what_others_take_between_two_words_is_left_to_them():
    sender = Sender()
    now, remaining = falls_short(sender, by=40)
    room = sender.room(now)
    assert room == pytest.approx(remaining - 40, abs=10)
    assert room < remaining - LEFT


@pytest.mark.parametrize(
    ("remaining", "left_per_s"),
    [
        # Of 6,000 a minute, of which 1,200 were ours.
        pytest.param(4800, float("inf"), id="none has used any"),
        pytest.param(4700, float("inf"), id="hardly any"),
        pytest.param(3000, 70.0, id="1,800 of others"),
        pytest.param(0, 25.0, id="4,800 of others: a quarter is tried for"),
        pytest.param(5900, float("inf"), id="it counts less than we do"),
    ],
)
def test_what_is_neither_left_nor_ours_others_use(sender, remaining, left_per_s):
    assert sender.level.left_per_s == float("inf")
    sender.send(1200, 0.0)
    sender.hear(remaining, at=0.0)
    assert sender.level.left_per_s == left_per_s


def test_it_is_no_more_than_some_seconds_of_the_rate():
    sender = Sender()
    now, remaining = falls_short(sender, by=3000)
    assert sender.room(now) == pytest.approx(remaining - MOST_MARGIN_S * PER_S)


def test_and_it_is_forgotten_when_they_have_gone():
    sender = Sender()
    now, remaining = falls_short(sender, by=100)
    for step in range(1, 200):
        sender.send(1, now + step * 10.0)
        sender.hear(remaining, at=now + step * 10.0)
    now += step * 10.0
    assert sender.room(now) == pytest.approx(remaining - LEFT)


def test_a_refusal_where_much_was_expected_tells_of_others():
    kind, stern = Sender(), Sender()
    for sender in (kind, stern):
        sender.send(10, 0.0)
        sender.hear(200, at=0.0)
        sender.send(10, 1.0)
    kind.hear(60, at=1.0)
    stern.hear(60, at=1.0, refused=True)
    assert stern.room(1.0) < kind.room(1.0)


def test_a_nothing_that_comes_with_one_success_after_another_is_not_meant(sender):
    for step in range(40):
        sender.send(1, step * 1.0)
        sender.hear(0, at=step * 1.0)
    assert sender.room(39.0) == float("inf")
    sender.hear(5, at=39.0)
    assert sender.level.heard


def test_a_nothing_that_comes_with_refusals_is(sender):
    for step in range(40):
        sender.send(1, step * 1.0)
        sender.hear(0, at=step * 1.0, refused=True)
    assert sender.level.heard


def test_it_tells_what_had_been_sent_by_then(sender):
    sender.send(10, 0.0)
    sender.send(20, 30.0)
    sender.send(5, 65.0)
    assert sender.level.sent_by(-1.0) is None
    assert sender.level.sent_by(30.0) == (30, 30)
    assert sender.level.sent_by(64.0) == (30, 30)
    assert sender.level.sent_by(65.0) == (25, 35)
