"""What must hold in every universe, whoever died in it, and when."""

import sqlite3
from collections import Counter
from contextlib import closing

import orjson

from tests.crash.reports import Report
from tests.crash.server import answer_of, cost


class BrokenError(AssertionError):
    """A promise does not hold in this universe."""


def check(universe, summary, calm):
    """Make sure that every promise holds; return the report of the universe."""
    plan, server = universe.plan, universe.server
    server.catch_up(float("inf"))
    with closing(sqlite3.connect(universe.store)) as db:
        attempts = db.execute(
            "SELECT id, attempts.key, billed, rows FROM attempts LEFT JOIN settlements ON attempt = id"
        ).fetchall()
        ends = db.execute(
            "SELECT seq, custom_id, state FROM rows JOIN outcomes ON row = id WHERE seq NOT NULL ORDER BY seq"
        ).fetchall()
        (healthy,) = db.execute("PRAGMA integrity_check").fetchone()
    must(healthy == "ok", healthy)
    check_files(universe, ends, calm)
    check_attempts(universe, attempts)
    check_money(universe, summary, attempts, ends)
    check_windows(server.departures, plan.options)
    return Report(
        seed=plan.seed,
        mode=plan.mode,
        lives=universe.lives,
        deaths=universe.deaths,
        attempts=len(attempts),
        rows=len(ends),
        in_doubt_rows=summary.in_doubt,
        in_doubt=sum(each.in_doubt for each in summary.by_model.values()),
        billed_again=server.billed_keys.total()
        - len({rows for _, key, _, rows in attempts if key in server.billed_keys}),
    )


def must(holds, *what):
    if not holds:
        raise BrokenError(" ".join(map(str, what)))


def check_files(universe, ends, calm):
    """Every row has ended, once; the files are those of an undisturbed job, but for rows in doubt."""
    names = [line["custom_id"] for line in map(orjson.loads, (calm.results + calm.errors).splitlines())]
    must(sorted(name for _, name, _ in ends) == sorted(names), "not every row ended once:", ends)
    results, errors = ((universe.folder / f"job.{name}.jsonl").read_bytes() for name in ("results", "errors"))
    doubted = [name for _, name, state in ends if state == "in_doubt"]
    must(universe.plan.delivery == "at-most-once" or not doubted, "in doubt at least once:", doubted)
    if not doubted:
        must(results == calm.results, "the results differ:", results, calm.results)
        must(errors == calm.errors, "the errors differ:", errors, calm.errors)
        return
    kept = [line for line in calm.results.splitlines() if orjson.loads(line)["custom_id"] not in doubted]
    must(results.splitlines() == kept, "the results differ:", results, kept)
    listed = [orjson.loads(line)["custom_id"] for line in errors.splitlines()]
    failed = [name for _, name, state in ends if state != "done"]
    must(listed == failed, "the errors file lists", listed, "and", failed, "are not done")
    unanswered = [line for line in calm.errors.splitlines() if orjson.loads(line)["custom_id"] not in doubted]
    must(set(unanswered) <= set(errors.splitlines()), "the errors differ:", errors, unanswered)


def check_attempts(universe, attempts):
    """What left had been claimed; what was answered is not sent again; who died left what it had in doubt."""
    claims = {(attempt, key) for attempt, key, *_ in attempts}
    left = [(attempt, key) for _, attempt, key, *_ in universe.server.departures]
    must(len(left) == len(set(left)), "one claim was sent twice")
    must(set(left) <= claims, "sent without a claim:", set(left) - claims)
    answered = set()
    for attempt, _, billed, rows in attempts:
        must(billed is not None, "never settled:", attempt)
        must(rows not in answered, "sent again after its answer was in:", attempt)
        if billed == "yes":
            answered.add(rows)
    doubts = Counter(key for _, key, billed, _ in attempts if billed == "maybe")
    for key, count in universe.cut_down.items():
        must(
            doubts[key] >= count, "under way when a process ended, and not in doubt:", key, doubts[key], count
        )


def check_money(universe, summary, attempts, ends):
    """The bill is the server's, but for replies that never arrived, and those are in doubt."""
    plan, server = universe.plan, universe.server
    answers = Counter(key for _, key, billed, _ in attempts if billed == "yes")
    doubts = Counter(key for _, key, billed, _ in attempts if billed == "maybe")
    for key, times in server.billed_keys.items():
        must(times <= answers[key] + doubts[key], "billed and not on the bill:", key, times)
        most = answers[key] + universe.cut_down[key] + server.cut_off[key]
        must(times <= most, "billed more often than it was cut off:", key, times, most)
    must(all(server.billed_keys[key] for key in answers), "on the bill, and never billed")
    if plan.honours or plan.delivery == "at-most-once":
        bills = Counter()
        for key, rows in {(key, rows) for _, key, _, rows in attempts}:
            bills[rows] += server.billed_keys[key]
        must(max(bills.values(), default=0) <= 1, "billed twice:", bills.most_common(3))
    settled = sum(cost(answer_of_row(universe, seq)) for seq, _, state in ends if state == "done")
    must(pico(summary.cost_usd) == settled, "the bill is not that of the answers:", summary.cost_usd, settled)
    most = settled + pico(summary.in_doubt_cost_usd_max)
    must(settled <= server.cost_pico_usd <= most, "ledger:", settled, server.cost_pico_usd, most)
    if plan.honours and plan.delivery == "at-least-once":
        must(settled == server.cost_pico_usd, "the bill is not the server's:", settled, server.cost_pico_usd)


def answer_of_row(universe, seq):
    line = orjson.loads(universe.lines[seq - 1])
    return answer_of(orjson.dumps(line.get("body", line)))[3]


def pico(usd):
    whole, _, rest = usd.partition(".")
    return int(whole) * 10**12 + int(rest.ljust(12, "0"))


def check_windows(departures, options):
    """In no minute, whoever lived in it, more has left than the limits let through."""
    for limit, costs in (
        (options["rpm"], [1] * len(departures)),
        (options["tpm"], [tokens for _, _, _, tokens, _ in departures]),
    ):
        times = [at for at, *_ in departures]
        start = total = 0
        for at, spent in zip(times, costs, strict=True):
            total += spent
            while times[start] <= at - 60.0:
                total -= costs[start]
                start += 1
            must(
                limit is None or total <= limit,
                f"{total} in the minute before {at}, and the limit is {limit}",
            )
