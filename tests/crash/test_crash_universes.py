"""Death at any step, in a few hundred simulated universes: `make crash` goes through 20,000."""

import pytest

from tests.crash.universes import explore

#: Seeds that no run of `make crash` meets: these tests add to it.
FIRST, CHUNK = 1_000_000, 40


@pytest.mark.parametrize("chunk", range(8))
def test_every_promise_holds_wherever_a_process_dies(chunk):
    first = FIRST + chunk * CHUNK
    reports = [explore(seed) for seed in range(first, first + CHUNK)]
    assert [report for report in reports if report.broken] == []
    assert sum(report.deaths for report in reports) > CHUNK
    # What the modes differ in has been there.
    assert sum(report.in_doubt_rows for report in reports if "at-most-once" in report.mode) > 0
    assert sum(report.billed_again for report in reports if "ignored" in report.mode) > 0


def test_a_seed_is_a_universe():
    first, second = ([], [])
    for told in (first, second):
        explore(FIRST, lambda life, *_, disk, told=told: told.append((life.steps, disk.statements)))
    assert first == second != []


def test_what_happens_in_a_universe_depends_on_its_seed():
    assert len({(report.lives, report.attempts, report.rows) for report in map(explore, range(10))}) > 5
