"""What many universes, or many jobs that were killed, came to: a report of each, and a table of all."""

import argparse
import os
import sys
from collections import Counter
from dataclasses import dataclass, field

#: The sums of the table, and their titles.
COLUMNS = {
    "lives": "processes",
    "deaths": "deaths",
    "attempts": "attempts",
    "rows": "rows",
    "in_doubt_rows": "rows in doubt",
    "in_doubt": "attempts in doubt",
    "billed_again": "billed again",
}


@dataclass
class Report:
    """What became of one job: a seed."""

    seed: int
    #: How rows in doubt are delivered, and whether the server honours keys.
    mode: str
    #: Processes that ran, and those that died.
    lives: int = 0
    deaths: int = 0
    #: Where they did.
    points: Counter = field(default_factory=Counter)
    attempts: int = 0
    rows: int = 0
    #: Rows that ended in doubt, and attempts that are.
    in_doubt_rows: int = 0
    in_doubt: int = 0
    #: What the server billed beyond once for each row.
    billed_again: int = 0
    #: Which promise does not hold.
    broken: str = ""


def mode(at_most_once, honours):
    delivery = "at-most-once" if at_most_once else "at-least-once"
    return f"{delivery}, keys {'honoured' if honours else 'ignored'}"


def table(reports):
    """Lay the reports out as the lines of a table, one for each mode."""
    yield f"| delivery | jobs | {' | '.join(COLUMNS.values())} | broken |"
    yield "|---" * (len(COLUMNS) + 3) + "|"
    for name in sorted({each.mode for each in reports}):
        mine = [each for each in reports if each.mode == name]
        sums = [f"{sum(getattr(each, column) for each in mine):,}" for column in COLUMNS]
        yield f"| {name} | {len(mine):,} | {' | '.join(sums)} | {sum(bool(each.broken) for each in mine)} |"
    if points := sum((each.points for each in reports), Counter()):
        yield "died at " + ", ".join(f"{point}: {count}" for point, count in points.most_common())


def main(what, default, see_one, see_many):
    """See `default` of `what` through, or one, as the command line says; exit 1 if anything is broken.

    `see_one(seed)` returns a report, and `see_many(count, first, processes)` yields them.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument(f"--{what}", type=int, default=default, help=f"how many {what} (default: {default})")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--until-broken", action="store_true", help="stop at the first that is broken")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    if given.seed is not None:
        report = see_one(given.seed)
        print(report)
        sys.exit(bool(report.broken))
    reports = []
    for report in see_many(getattr(given, what), given.first, given.processes):
        reports.append(report)
        if report.broken:
            print(f"seed {report.seed} ({report.mode}): {report.broken[:500]}", flush=True)
            if given.until_broken:
                break
    print("\n".join(table(reports)))
    sys.exit(any(report.broken for report in reports))
