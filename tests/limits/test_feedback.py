from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from batcher.limits.bucket import Limit
from batcher.limits.feedback import Announced, Feedback, read
from batcher.limits.window import DAY_S, MINUTE_S
from tests.limits.servers import ROUNDINGS, Fixed, Refilling, Sliding, headers, said


def hear(feedback, model, pairs):
    """Return what is heard, without the reset."""
    return [word[:4] for word in feedback.hear(model, read(pairs))]


# --- what a reply says


@pytest.mark.parametrize(
    ("value", "seconds", "rounding_s"),
    [
        (b"0s", 0.0, 1.0),
        (b"1ms", 0.001, 0.001),
        (b"12ms", 0.012, 0.001),
        (b"120ms", 0.12, 0.001),
        (b"1s", 1.0, 1.0),
        (b"8.64s", 8.64, 0.01),
        (b"17.28s", 17.28, 0.01),
        (b"7.5ms", 0.0075, 0.0001),
        (b"1m30s", 90.0, 1.0),
        (b"6m0s", 360.0, 1.0),
        (b"7m12s", 432.0, 1.0),
        (b"2m59.56s", 179.56, 0.01),
        (b"1h2m", 3720.0, 1.0),
        (b"2h24m0s", 8640.0, 1.0),
        (b"1d", 86_400.0, 1.0),
        (b"23h59m59.999s", 86_399.999, 0.001),
        (b"1m0s5ms", 60.005, 0.001),
        (b"8.64", 8.64, 0.01),
        (b"30", 30.0, 1.0),
        (b" 30 ", 30.0, 1.0),
        # What says nothing, or nothing that can be meant.
        (None, None, 0.0),
        (b"", None, 0.0),
        (b"soon", None, 0.0),
        (b"-1s", None, 0.0),
        (b"-1", None, 0.0),
        (b"1s later", None, 0.0),
        (b"1.2.3s", None, 0.0),
        (b"s", None, 0.0),
        (b"1 s", None, 0.0),
        (b"1S", None, 0.0),
        (b"1us", None, 0.0),
        (b"nan", None, 0.0),
        (b"inf", None, 0.0),
        (b"1e3", None, 0.0),
        (b"2d", None, 0.0),
        (b"1700000000", None, 0.0),  # a time of day, as some send it
        (b"2026-01-01T00:00:00Z", None, 0.0),
        (b"9" * 400 + b"s", None, 0.0),
        (b"\xff\xfe", None, 0.0),
        (b"\xb2s", None, 0.0),  # a superscript 2
    ],
    ids=repr,
)
def test_durations(value, seconds, rounding_s):
    announced = read(said(b"100", b"99", value))["requests"]
    assert announced.reset_s == (None if seconds is None else pytest.approx(seconds))
    assert announced.rounding_s == pytest.approx(rounding_s)


@pytest.mark.parametrize("value", [b"1." + b"0" * 400 + b"s", b"1." + b"0" * 400])
def test_a_duration_of_absurd_precision_is_only_a_duration(value):
    assert read(said(b"100", b"99", value))["requests"].limit == 100


@pytest.mark.parametrize(
    ("limit", "remaining", "expected"),
    [
        pytest.param(b"500", b"499", Announced(500, 499), id="both"),
        pytest.param(b"500", None, Announced(500), id="what remains is missing"),
        pytest.param(b"500", b"0", Announced(500, 0), id="nothing remains"),
        pytest.param(b"500", b"500", Announced(500, 500), id="everything remains"),
        pytest.param(b"500", b"501", Announced(500), id="more than the limit remains"),
        pytest.param(b"500", b"-1", Announced(500), id="less than nothing remains"),
        pytest.param(b"500", b"many", Announced(500), id="what remains is no number"),
        pytest.param(b"500.0", b"499.0", Announced(500, 499), id="whole, with a point"),
        pytest.param(b"500.5", b"499", None, id="half a request"),
        pytest.param(None, b"499", None, id="no limit"),
        pytest.param(b"0", b"0", None, id="0, as Azure says"),
        pytest.param(b"-1", b"-1", None, id="-1, as Azure says"),
        pytest.param(b"", b"", None, id="empty"),
        pytest.param(b"many", b"499", None, id="no number"),
        pytest.param(b"nan", b"nan", None, id="not a number"),
        pytest.param(b"inf", b"inf", None, id="infinity"),
        pytest.param(b"1e13", b"5", None, id="absurd"),
        pytest.param(b"9" * 500, b"5", None, id="very absurd"),
        pytest.param(b"500, 200;w=60", b"5", None, id="a draft's policy"),
        pytest.param(b"\xd9\xa5", b"5", None, id="other digits"),
    ],
)
def test_limits(limit, remaining, expected):
    assert read(said(limit, remaining)).get("requests") == expected


def test_headers_of_other_names_say_nothing():
    assert read([]) == {}
    assert read([(b"content-type", b"500"), (b"x-ratelimit", b"5"), (b"x-ratelimit-limit", b"5")]) == {}
    assert read([(b"x-ratelimit-limit-images", b"5"), (b"x-ratelimit-remaining-requests", b"5")]) == {}


@pytest.mark.parametrize(
    ("account", "project", "expected"),
    [
        pytest.param((1000, 900), (500, 400), 500, id="the project's is tighter"),
        pytest.param((1000, 100), (500, 400), 1000, id="the account's is, for the moment"),
        pytest.param((1000, None), (500, 499), 500, id="it does not say what remains of the account's"),
        pytest.param(None, (500, 400), 500, id="the project's alone"),
        pytest.param((1000, 900), None, 1000, id="the account's alone"),
        pytest.param((1000, 900), (0, 0), 1000, id="the project has none"),
    ],
)
def test_of_a_project_and_its_account_the_tighter_speaks(account, project, expected):
    pairs = []
    for kind, values in ((b"tokens", account), (b"project-tokens", project)):
        if values is not None:
            pairs += said(*values, kind=kind)
    assert read(pairs)["tokens"].limit == expected


NAMES = [
    b"x-ratelimit-%b-%b" % (what, kind)
    for what in (b"limit", b"remaining", b"reset")
    for kind in (b"requests", b"tokens", b"project-tokens")
]
VALUES = (
    st.binary(max_size=12)
    | st.from_regex(rb"[0-9.]{0,9}(d|h|ms|m|s)?[0-9.]{0,9}(d|h|ms|m|s)?", fullmatch=True)
    | st.integers(-(10**14), 10**14).map(lambda number: b"%d" % number)
)


@settings(max_examples=150)
@given(st.lists(st.lists(st.tuples(st.sampled_from(NAMES) | st.binary(), VALUES), max_size=9), max_size=4))
@example([[(name, b"1") for name in NAMES]] * 4)
def test_whatever_the_headers_say_it_is_read(replies):
    feedback = Feedback()
    for pairs in replies:
        for word in feedback.hear("m", read(pairs)):
            assert word.kind in ("requests", "tokens")
            assert word.period_s in (MINUTE_S, DAY_S)
            assert 0 < word.limit <= 10**12
            assert word.remaining is None or 0 <= word.remaining <= word.limit
    limit = feedback.limit
    assert all(each is None or each > 0 for each in (limit.rpm, limit.tpm, limit.rpd, limit.tpd))


# --- the period, which no header says


@pytest.mark.parametrize(
    ("limit", "remaining", "reset", "period_s"),
    [
        # Buckets that refill evenly.
        pytest.param(b"10000", b"9999", b"8.64s", DAY_S, id="OpenAI: 10,000 a day, one used"),
        pytest.param(b"10000", b"9998", b"17.28s", DAY_S, id="two used"),
        pytest.param(b"10000", b"9000", b"2h24m0s", DAY_S, id="1,000 used"),
        pytest.param(b"10000", b"0", b"24h0m0s", DAY_S, id="all used"),
        pytest.param(b"200", b"199", b"7m12s", DAY_S, id="200 a day"),
        pytest.param(b"14400", b"14370", b"2m59.56s", DAY_S, id="Groq: 14,400 a day"),
        pytest.param(b"1000000", b"999990", b"864ms", DAY_S, id="a million a day"),
        pytest.param(b"500", b"499", b"120ms", MINUTE_S, id="500 a minute"),
        pytest.param(b"3", b"2", b"20s", MINUTE_S, id="3 a minute"),
        pytest.param(b"60", b"0", b"1m0s", MINUTE_S, id="all of a minute's used"),
        pytest.param(b"10000", b"9999", b"6ms", MINUTE_S, id="10,000 a minute"),
        pytest.param(b"200000", b"199000", b"300ms", MINUTE_S, id="tokens"),
        pytest.param(b"30000000", b"29999000", b"2ms", MINUTE_S, id="30M tokens: next to nothing used"),
        # What can't be told.
        pytest.param(b"30000000", b"29999990", b"0s", None, id="30M tokens: nothing to tell by"),
        pytest.param(b"500", b"500", b"0s", None, id="none used"),
        pytest.param(b"500", b"500", b"30s", None, id="none used, and yet a reset"),
        pytest.param(b"500", None, b"120ms", None, id="what remains is missing"),
        pytest.param(b"500", b"499", None, None, id="the reset is missing"),
        # Whole seconds, rounded up or down.
        pytest.param(b"10000", b"9999", b"9s", DAY_S, id="8.64 s rounded up"),
        pytest.param(b"10000", b"9999", b"8s", DAY_S, id="8.64 s rounded down"),
        pytest.param(b"1000", b"999", b"1m26s", DAY_S, id="86.4 s rounded"),
        pytest.param(b"500", b"499", b"1s", MINUTE_S, id="120 ms rounded up"),
        pytest.param(b"500", b"400", b"12s", MINUTE_S, id="12 s"),
        pytest.param(b"3", b"2", b"20", MINUTE_S, id="plain seconds"),
        # Sliding windows: until the last request has left.
        pytest.param(b"10000", b"9999", b"60s", MINUTE_S, id="sliding: a whole minute"),
        pytest.param(b"10000", b"9993", b"59.8s", MINUTE_S, id="sliding: a moment later"),
        pytest.param(b"10000", b"9999", b"24h0m0s", DAY_S, id="sliding: a whole day"),
        pytest.param(b"10000", b"9999", b"1m1s", MINUTE_S, id="sliding: a minute, rounded up"),
        # Fixed windows: until they end.
        pytest.param(b"500", b"400", b"43s", MINUTE_S, id="fixed: well used"),
        pytest.param(b"10000", b"9000", b"5s", MINUTE_S, id="fixed: near its end"),
        pytest.param(b"10000", b"9000", b"7h3m0s", DAY_S, id="fixed: a day's"),
        pytest.param(b"10000", b"9995", b"43s", DAY_S, id="fixed: misleads, looks like a day's bucket"),
        pytest.param(
            b"1200", b"1199", b"54s", None, id="fixed: hardly a day's bucket, if one and a half are used"
        ),
        pytest.param(b"10000", b"9998", b"10.4s", None, id="a day's bucket, if 1.2 are used"),
    ],
)
def test_the_period_follows_from_limit_remaining_and_reset(limit, remaining, reset, period_s):
    assert read(said(limit, remaining, reset))["requests"].period_s() == period_s


@pytest.mark.parametrize(
    ("limit", "remaining", "reset"), [(b"92269", b"92267", b"1s"), (b"1000000", b"999999", b"1s")]
)
def test_a_reset_below_its_rounding_tells_nothing(limit, remaining, reset):
    """A day's bucket that is almost whole, in whole seconds."""
    assert read(said(limit, remaining, reset))["requests"].period_s() is None


AS_MINUTE, AS_DAY = (10_000, 9_000, b"6s"), (10_000, 9_995, b"43.2s")
UNCLEAR, FAR = (10_000, 10_000, b"0s"), (10_000, 9_000, b"2h24m0s")


@pytest.mark.parametrize(
    ("words", "period_s"),
    [
        pytest.param([UNCLEAR], MINUTE_S, id="nothing told: a minute"),
        pytest.param([AS_DAY], DAY_S, id="the first word is taken"),
        pytest.param([UNCLEAR, AS_DAY], DAY_S, id="the first that tells something"),
        pytest.param([AS_DAY, AS_MINUTE], DAY_S, id="one word alone changes nothing"),
        pytest.param([AS_DAY, AS_MINUTE, AS_MINUTE], MINUTE_S, id="two in a row do"),
        pytest.param([AS_DAY, AS_MINUTE, AS_DAY, AS_MINUTE], DAY_S, id="two that are not in a row do not"),
        pytest.param([AS_MINUTE] + [AS_DAY] * 9, MINUTE_S, id="what only looks like a day does not"),
        pytest.param([AS_MINUTE, FAR], MINUTE_S, id="what is far does not alone"),
        pytest.param([AS_MINUTE, FAR, FAR], DAY_S, id="what is far twice is certain"),
        pytest.param([FAR, FAR] + [AS_MINUTE] * 9, DAY_S, id="what is certain does not change"),
    ],
)
def test_a_first_word_that_misleads_is_corrected_by_the_next_ones(words, period_s):
    feedback = Feedback()
    for word in words:
        (heard,) = hear(feedback, "m", said(*word))
    assert heard == ("requests", 10_000, period_s, words[-1][1])
    assert feedback.limit == (Limit(rpm=10_000) if period_s == MINUTE_S else Limit(rpd=10_000))


def words_of(server, count, load_per_s, write, chance):
    """Yield the headers of so many replies at this load, the server's refusals included."""
    now = 0.0
    for _ in range(count):
        now += chance.expovariate(load_per_s)
        server.pass_to(now)
        if server.wait_s(1) == 0.0:
            server.take(1)
        yield headers(server, write=write)


#: A kind of server, how it writes durations, a size of its limit, a load, and a seed.
ANY_SERVER = (
    st.sampled_from([Refilling, Sliding, Fixed]),
    st.sampled_from(sorted(ROUNDINGS)),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 2**32),
)


def known_after_some_words(server, load_per_s, rounding, chance):
    feedback = Feedback()
    for pairs in words_of(server, 40, load_per_s, ROUNDINGS[rounding], chance):
        hear(feedback, "m", pairs)
    return feedback.limit


@settings(max_examples=150)
@given(*ANY_SERVER, st.booleans())
def test_a_limit_of_a_minute_is_known_after_some_words(kind, rounding, size, load, seed, used):
    """Whatever the server, at a tenth of its limit and more, at any moment of its window."""
    chance, limit = Random(seed), round(3 * 7_000**size)
    server = kind(limit, now=-chance.uniform(0, 60))
    server.pass_to(0.0)
    server.take(chance.randint(0, limit // 2) if used else 0)
    load_per_s = limit / 60 * 0.1 * 15**load
    assert known_after_some_words(server, load_per_s, rounding, chance) == Limit(rpm=limit)


@settings(max_examples=150)
@given(*ANY_SERVER)
def test_a_limit_of_a_day_is_known_after_some_words(kind, rounding, size, load, seed):
    """At twice its rate and more, so that a bucket is not whole again each time."""
    chance, limit = Random(seed), round(50 * 400**size)
    server = kind(limit, DAY_S, now=-chance.uniform(0, DAY_S / 2))
    server.pass_to(0.0)
    server.take(chance.randint(0, limit // 2))
    load_per_s = max(0.05 * 100**load, 2 * limit / DAY_S)
    assert known_after_some_words(server, load_per_s, rounding, chance) == Limit(rpd=limit)


@pytest.mark.parametrize(
    ("server", "limit", "load_per_s"),
    [
        pytest.param(Fixed(73_000, MINUTE_S), 73_000, 4.0, id="a minute's: 4% of it used"),
        pytest.param(Fixed(5_000, DAY_S, now=-DAY_S + 300), 5_000, 1.0, id="a day's: its last minute"),
    ],
)
def test_a_period_that_was_told_by_many_words_is_not_unlearned(server, limit, load_per_s):
    feedback, known = Feedback(), set()
    for number, pairs in enumerate(words_of(server, 290, load_per_s, ROUNDINGS["ms"], Random(1))):
        hear(feedback, "m", pairs)
        if number >= 10:
            known.add(feedback.limit)
    assert len(known) == 1


# --- several models in one pool


def test_the_limit_is_the_least_of_the_models():
    feedback = Feedback()
    hear(feedback, "a", said(500, 499, b"120ms") + said(b"90000", b"80000", b"7s", b"tokens"))
    hear(feedback, "b", said(200, 199, b"300ms") + said(b"150000", b"140000", b"4s", b"tokens"))
    hear(feedback, "c", said(1000, 999, b"86.4s"))
    assert feedback.limit == Limit(rpm=200, tpm=90_000, rpd=1000)


def test_only_the_model_with_the_least_tells_what_remains():
    feedback = Feedback()
    assert hear(feedback, "a", said(500, 499, b"120ms")) == [("requests", 500, MINUTE_S, 499)]
    assert hear(feedback, "b", said(200, 150, b"15s")) == [("requests", 200, MINUTE_S, 150)]
    assert hear(feedback, "a", said(500, 3, b"59s")) == []
    assert hear(feedback, "a", said(200, 199, b"300ms")) == [("requests", 200, MINUTE_S, 199)]


def test_limits_of_a_minute_and_of_a_day_stand_beside_each_other():
    feedback = Feedback()
    hear(feedback, "a", said(500, 499, b"120ms"))
    assert hear(feedback, "b", said(1000, 999, b"86.4s")) == [("requests", 1000, DAY_S, 999)]
    assert hear(feedback, "a", said(500, 498, b"240ms")) == [("requests", 500, MINUTE_S, 498)]


def test_a_model_whose_limit_changes_is_taken_at_its_last_word():
    feedback = Feedback()
    hear(feedback, "a", said(500, 499, b"120ms"))
    hear(feedback, "a", said(5000, 4999, b"12ms"))
    assert feedback.limit == Limit(rpm=5000)


def test_a_reply_without_a_word_changes_nothing():
    feedback = Feedback()
    hear(feedback, "a", said(500, 499, b"120ms"))
    assert hear(feedback, "a", [(b"content-type", b"text/html")]) == []
    assert feedback.limit == Limit(rpm=500)


def test_a_word_without_what_remains_tells_the_limit():
    feedback = Feedback()
    assert hear(feedback, "a", said(b"500")) == [("requests", 500, MINUTE_S, None)]
    assert feedback.limit == Limit(rpm=500)


def test_a_token_limit_that_is_disbelieved_is_none_for_its_model():
    feedback, words = Feedback(), said(b"10", b"10", b"0s", b"tokens") + said(b"500", b"499")
    hear(feedback, "a", words)
    assert feedback.limit == Limit(rpm=500, tpm=10)
    feedback.disbelieve("a")
    assert feedback.limit == Limit(rpm=500)
    assert hear(feedback, "a", words) == [("requests", 500, MINUTE_S, 499)]
    assert feedback.limit == Limit(rpm=500)
    hear(feedback, "b", said(b"90", b"80", b"7s", b"tokens"))
    assert feedback.limit == Limit(rpm=500, tpm=90)
