"""SIGKILL at random and at chosen moments, again and again: `make crash` survives 500 of them."""

import pytest

from tests.crash.kills import torment

#: Seeds that no run of `make crash` meets: these tests add to it.
FIRST = 1_000_000


@pytest.mark.parametrize("seed", range(FIRST, FIRST + 8))
def test_a_job_that_is_killed_again_and_again_keeps_every_promise(seed):
    report = torment(seed)
    assert report.broken == ""
    assert report.rows > 0
