import pytest

from batcher.limits.returns import Heard, Returns

LIMIT = 60_000
PER_S = 1000.0
#: Of what is sent, a tenth is used in the end; 1,000 tokens are sent a second, all of the limit.
USED = 0.1


def window(at, sent, _used):
    """What a sliding window has counted: all that was sent within its minute."""
    return sent(at) - sent(at - 60.0), 60.0


def bucket(level, others=0.0):
    """A bucket that would keep its level, since it refills as fast as we send, but for what others take."""

    def drains(at, _sent, _used):
        counted = min(LIMIT - level + others * PER_S * at, LIMIT)
        return counted, counted / PER_S

    return drains


def window_that_gives_back(at, _sent, used):
    return used(at) - used(at - 60.0), 60.0


def fixed(at, sent, _used):
    begins = at // 60.0 * 60.0
    return sent(at) - sent(begins), 60.0 - at % 60.0


def with_others(server, share):
    def shared(at, sent, used):
        counted, reset_s = server(at, sent, used)
        return min(counted + share * PER_S * min(at, 60.0), LIMIT), reset_s

    return shared


def listen(server, seconds=300, every_s=1.0, resets=True):
    """Hear a server every second while all of the limit is sent; return when it was certain."""
    returns, at = Returns(), 0.0

    def sent(until):
        return PER_S * max(until, 0.0)

    def used(until):
        return USED * sent(until)

    while at < seconds:
        at += every_s
        counted, reset_s = server(at, sent, used)
        heard = Heard(
            at=at,
            remaining=int(LIMIT - counted),
            counted=int(sent(at) - sent(at - 60.0)),
            ever=int(sent(at)),
            unused=int(sent(at) - used(at)),
            reset_s=reset_s if resets else None,
        )
        returns.hear(heard, LIMIT, PER_S)
        if returns.shown:
            return at
    return None


def test_a_window_that_gives_back_shows_it_within_its_first_minute():
    assert listen(window_that_gives_back) <= 30.0


@pytest.mark.parametrize(
    "server",
    [
        pytest.param(window, id="a window that keeps"),
        pytest.param(fixed, id="a window that begins anew"),
        pytest.param(bucket(LIMIT), id="a bucket that is whole"),
        pytest.param(bucket(LIMIT // 2), id="a bucket at a half"),
        pytest.param(with_others(window, 0.3), id="a window, and others in it"),
        pytest.param(bucket(LIMIT, others=0.3), id="a bucket, and others at it"),
    ],
)
@pytest.mark.parametrize("resets", [True, False], ids=["with resets", "without"])
def test_a_server_that_keeps_reservations_never_looks_as_if_it_gave_back(server, resets):
    assert listen(server, resets=resets) is None


def test_where_the_reset_is_not_told_it_may_be_a_bucket_and_nothing_is_certain():
    assert listen(window_that_gives_back, resets=False) is None


def test_words_that_come_too_close_together_say_nothing():
    returns = Returns()
    for step in range(100):
        at = step * 0.01
        returns.hear(Heard(at, LIMIT, step * 1000, step * 1000, step * 900, 60.0), LIMIT, PER_S)
    assert not returns.shown
