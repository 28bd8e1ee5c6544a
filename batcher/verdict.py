"""What a reply, or the lack of one, means: one table, and the pure function that reads it.

The table is searched by status, then by the error's `code`, then by its `type`; never by the words of its
message, which servers change at will.
"""

from collections.abc import Iterator, Mapping
from typing import Final, Literal, NamedTuple, TypeAlias, assert_never

import msgspec

from batcher.money.usage import Usage
from batcher.reply import Answer, Complaint, read_answer, read_error
from batcher.request import Billed, Claimed, Finish, Landed, Lost
from batcher.retry import backoff_s

#: `fail`: the row ends. `find`: it ends if anything was ever found there, else the run does. `again`: it goes
#: again, after a backoff. `hold`: nothing goes for a while, then one request first. `halt`: the run ends.
Action: TypeAlias = Literal["fail", "find", "again", "hold", "halt"]

#: What has failed. A request that goes `again` for the endpoint's fault is held with all others, free of
#: charge, as long as nothing is answered.
Scope: TypeAlias = Literal["row", "pool", "endpoint", "job"]


class Rule(NamedTuple):
    """One line of the table."""

    #: A status, a group of them (`52x`, `4xx`), or a word for what came instead of an answer.
    status: int | str
    #: The error's `code`, or else its `type`; None for any.
    code: str | None
    action: Action
    scope: Scope
    billed: Billed
    #: The word that the attempts log and the errors file use.
    error: str
    meaning: str
    #: Only where the server says how long to wait.
    asks: bool = False
    #: Only where the body is not the API's own error: whoever says it, the work may have been done.
    bare: bool = False


_QUOTA = "the account has no quota or credit left: add credit or raise the limit, then run the same command"
_BILLING = "the account's billing is not active: set it up with the provider, then run the same command"
_NOT_FOUND = "nothing is found there: check the model and --base-url"
_TOO_LARGE = "the request is larger than the server takes"
_TOO_LONG = "the request, with its output limit, is longer than the model's context"
_FILTERED = "the server's filter refuses what the row says"
_FORBIDDEN = "the key may not do this: check the project and the model"
_OVERLOADED = "the server is overloaded"
_SLOW_DOWN = "the traffic grows faster than the server likes"

TABLE: tuple[Rule, ...] = (
    Rule("unreachable", None, "hold", "endpoint", "no", "unreachable", "the server can't be reached"),
    Rule("reset", None, "again", "endpoint", "maybe", "reset", "the connection ended before a reply"),
    Rule("timeout", None, "again", "endpoint", "maybe", "timed_out", "no reply within --timeout"),
    Rule("cut_off", None, "again", "endpoint", "maybe", "cut_off", "the connection ended within the reply"),
    Rule("lost", None, "again", "row", "maybe", "lost", "what came is no reply"),
    Rule("stopped", None, "hold", "job", "no", "never_left", "the run stopped before it was sent"),
    Rule("closed", None, "hold", "job", "maybe", "cut_short", "the run stopped before its reply came"),
    Rule("invalid", None, "again", "row", "maybe", "invalid_answer", "a success without a whole answer"),
    Rule("error", None, "again", "row", "maybe", "error_in_answer", "a success that holds an error"),
    Rule("failed", None, "again", "row", "maybe", "response_failed", "a response that has failed"),
    Rule("unfinished", None, "again", "row", "maybe", "response_unfinished", "a response without its end"),
    Rule("3xx", None, "halt", "job", "no", "redirected", "the server redirects: correct --base-url"),
    Rule(400, "context_length_exceeded", "fail", "row", "no", "context_length_exceeded", _TOO_LONG),
    Rule(400, "string_above_max_length", "fail", "row", "no", "too_large", _TOO_LARGE),
    Rule(400, "content_filter", "fail", "row", "no", "content_filter", _FILTERED),
    Rule(401, None, "halt", "job", "no", "authentication", "the key is refused: check OPENAI_API_KEY"),
    Rule(402, None, "hold", "pool", "no", "credit", "the account has too little credit just now", asks=True),
    Rule(402, None, "halt", "job", "no", "quota", _QUOTA),
    Rule(403, None, "halt", "job", "no", "permission", _FORBIDDEN),
    Rule(404, None, "find", "row", "no", "not_found", _NOT_FOUND),
    Rule(408, None, "again", "row", "maybe", "timeout", "the server gave up waiting"),
    Rule(409, None, "again", "row", "no", "conflict", "the server is still busy with this request"),
    Rule(413, None, "fail", "row", "no", "too_large", _TOO_LARGE),
    Rule(429, "insufficient_quota", "halt", "job", "no", "quota", _QUOTA),
    Rule(429, "credit_balance_exhausted", "halt", "job", "no", "quota", _QUOTA),
    Rule(429, "organization_spend_limit_exceeded", "halt", "job", "no", "quota", _QUOTA),
    Rule(429, "project_spend_limit_exceeded", "halt", "job", "no", "quota", _QUOTA),
    Rule(429, "organization_usage_limit_exceeded", "halt", "job", "no", "quota", _QUOTA),
    Rule(429, "billing_hard_limit_reached", "halt", "job", "no", "quota", _QUOTA),
    Rule(429, "billing_not_active", "halt", "job", "no", "billing", _BILLING),
    Rule(429, "slow_down", "hold", "pool", "no", "slow_down", _SLOW_DOWN),
    Rule(429, None, "hold", "pool", "no", "rate_limit", "the rate limit is reached"),
    Rule("4xx", None, "fail", "row", "no", "bad_request", "the server refuses what the row says"),
    Rule(500, None, "again", "row", "no", "server_error", "the server failed"),
    Rule(500, None, "again", "row", "maybe", "server_error", "a gateway or the server failed", bare=True),
    Rule(502, None, "again", "endpoint", "maybe", "bad_gateway", "a gateway lost the server"),
    Rule(503, "server_is_overloaded", "hold", "pool", "no", "overloaded", _OVERLOADED),
    Rule(503, "slow_down", "hold", "pool", "no", "slow_down", _SLOW_DOWN),
    Rule(503, None, "hold", "pool", "no", "unavailable", _OVERLOADED, asks=True),
    Rule(503, None, "hold", "pool", "maybe", "unavailable", _OVERLOADED, asks=True, bare=True),
    Rule(503, None, "again", "endpoint", "no", "unavailable", "the server is not available"),
    Rule(503, None, "again", "endpoint", "maybe", "unavailable", "the server is not available", bare=True),
    Rule(504, None, "again", "endpoint", "maybe", "gateway_timeout", "a gateway gave up waiting"),
    Rule(529, None, "hold", "pool", "no", "overloaded", _OVERLOADED, asks=True),
    Rule(529, None, "again", "endpoint", "no", "overloaded", _OVERLOADED),
    Rule("52x", None, "again", "endpoint", "maybe", "bad_gateway", "a gateway lost the server"),
    Rule("5xx", None, "again", "row", "maybe", "server_error", "the server failed"),
    Rule("other", None, "again", "row", "maybe", "invalid_answer", "a status that no answer has"),
)

_Match: TypeAlias = tuple[int | str, str | None, bool, bool]
_BY_MATCH: Mapping[_Match, Rule] = {(each.status, each.code, each.asks, each.bare): each for each in TABLE}
#: What a code means in an error that comes under the status of a success.
_BY_CODE: Mapping[str, Rule] = {rule.code: rule for rule in TABLE if rule.code is not None}


class Policy(msgspec.Struct, frozen=True, gc=False):
    """What the user decided about failures."""

    #: So many charged attempts, and the row fails.
    max_attempts: int = 5
    #: What may have been billed is not sent again.
    at_most_once: bool = False


class Standing(msgspec.Struct, frozen=True, gc=False):
    """How things stand when an attempt has landed."""

    #: Holds of its pool, or of the endpoint, since something last succeeded: the backoff grows with them.
    holds: int = 0
    #: Whether it went first after a pause: only then is a refusal for rate charged to it.
    probe: bool = False
    #: Whether the endpoint is down: nothing is answered, so that its faults say nothing of the row.
    down: bool = False
    #: Whether anything was ever answered with success: then what is not found is the row's own mistake.
    found: bool = True
    #: Whether all that is left has failed before, in a run that has had successes: then nothing else can show
    #: whether it is the rows' own doing, and they go first in turn until each has spent its attempts.
    tail: bool = False
    #: Whether in such a tail all were lost where others were answered, or few are left and nothing was for
    #: long: then going first in vain is charged even while the endpoint looks down.
    suspect: bool = False


class Done(msgspec.Struct, frozen=True, gc=False):
    """The answer is in."""

    status: int
    request_id: str | None
    #: One for each row of the request, without raw line breaks.
    answers: tuple[bytes, ...]
    #: None where the reply does not say what it used.
    usage: Usage | None
    #: Why it ended early, if it did.
    finish: Finish | None = None
    billed: Billed = "yes"


class Fail(msgspec.Struct, frozen=True, gc=False):
    """The rows end without an answer."""

    state: Literal["refused", "exhausted", "in_doubt"]
    error: str
    message: str
    billed: Billed
    status: int | None = None
    request_id: str | None = None
    #: The reply's body, if it is JSON.
    body: bytes | None = None
    #: Where it is the endpoint that is down: nothing else goes before this time.
    hold_until: float | None = None


class Again(msgspec.Struct, frozen=True, gc=False):
    """The same request again, not before `due`."""

    due: float
    #: Whether this attempt counts against `max_attempts`.
    charged: bool
    error: str
    message: str
    billed: Billed
    status: int | None = None
    request_id: str | None = None


class Hold(msgspec.Struct, frozen=True, gc=False):
    """Nothing of this scope goes before `until`; then this request again, not before `due`."""

    scope: Scope
    until: float
    #: Before `until` it goes first, as the probe; after it, another one does.
    due: float
    #: Whether this attempt counts against `max_attempts`.
    charged: bool
    error: str
    message: str
    billed: Billed
    status: int | None = None
    request_id: str | None = None


class Halt(msgspec.Struct, frozen=True, gc=False):
    """No request of this job can succeed: stop; this row stays pending."""

    error: str
    message: str
    billed: Billed
    status: int | None = None
    request_id: str | None = None


Verdict: TypeAlias = Done | Fail | Again | Hold | Halt


def judge(
    claimed: Claimed, landed: Landed, now: float, chance: float, policy: Policy, standing: Standing
) -> Verdict:
    """Decide what becomes of an attempt; `chance` is a random number from 0 to 1 that spreads retries."""
    case = _Case(claimed, now, chance, policy, standing)
    if isinstance(landed, Lost):
        return _apply(_rule_of_loss(landed), Complaint(landed.reason), case)
    if not 200 <= landed.status < 300:
        complaint = read_error(landed)
        return _apply(_rule_of_error(landed.status, complaint), complaint, case)
    answer = read_answer(claimed.request, landed)
    if isinstance(answer, Answer):
        request_id = landed.header(b"x-request-id")
        return Done(landed.status, request_id, (answer.body,), answer.usage, answer.finish)
    return _apply(_rule_of_no_answer(answer), answer, case)


def blames_endpoint(landed: Landed) -> bool:
    """Say whether an attempt failed in a way that is the endpoint's fault, if no other fares better."""
    if isinstance(landed, Lost):
        return _rule_of_loss(landed).scope == "endpoint"
    return landed.status >= 500 and _rule_of_error(landed.status, read_error(landed)).scope == "endpoint"


def endpoint_hold(verdict: Verdict) -> float | None:
    """Return until when the whole endpoint is left in peace, if a verdict says so."""
    if isinstance(verdict, Hold) and verdict.scope == "endpoint":
        return verdict.until
    return verdict.hold_until if isinstance(verdict, Fail) else None


class _Case(NamedTuple):
    """What a verdict depends on besides what came back."""

    claimed: Claimed
    now: float
    chance: float
    policy: Policy
    standing: Standing


def _rule_of_loss(lost: Lost) -> Rule:
    if not lost.left:
        stopped = lost.kind in ("stopped", "closed")
        return _BY_MATCH["stopped" if stopped else "unreachable", None, False, False]
    lost_rule = _BY_MATCH["lost", None, False, False]
    return _BY_MATCH.get((lost.kind, None, False, False), lost_rule)


def _rule_of_error(status: int, said: Complaint) -> Rule:
    for match in _matches(status, said):
        if rule := _BY_MATCH.get(match):
            return rule
    return _BY_MATCH["other", None, False, False]


def _matches(status: int, said: Complaint) -> Iterator[_Match]:
    """Yield what a line of the table may say of an error, the most particular first."""
    for word in (said.code, said.type):
        if word is not None:
            yield status, word, False, False
    asks, bare = said.wait_s is not None, not said.is_api_error
    for given in ((asks, bare), (asks, False), (False, bare), (False, False)):
        yield status, None, *given
    if 300 <= status < 600:
        yield f"{status // 10}x", None, False, False
        yield f"{status // 100}xx", None, False, False


def _rule_of_no_answer(said: Complaint) -> Rule:
    if said.kind == "error":
        for word in (said.code or "", said.type or ""):
            if word in _BY_CODE:
                return _BY_CODE[word]
            if word.isdecimal() and 400 <= int(word) < 600:
                # As OpenRouter says what its upstream answered.
                return _rule_of_error(int(word), said)
    return _BY_MATCH[said.kind or "invalid", None, False, False]


def _apply(rule: Rule, said: Complaint, case: _Case) -> Verdict:
    message = f"{rule.meaning}: {said.message}" if said.message else rule.meaning
    facts = (rule.error, message, rule.billed, said.status, said.request_id)
    standing = case.standing
    down = rule.scope == "endpoint" and (standing.down or rule.action == "hold")
    if rule.billed == "maybe" and case.policy.at_most_once:
        until = _hold_until(said, case, standing.holds + 1) if down else None
        return Fail("in_doubt", *facts, said.body, until)
    action = _action(rule, said, standing)
    match action:
        case "halt":
            return Halt(*facts)
        case "fail" if rule.action in ("again", "hold"):
            why = f"{message} (the server says that it must not be tried again)"
            return Fail("exhausted", rule.error, why, *facts[2:], said.body)
        case "fail":
            return Fail("refused", *facts, said.body)
        case "find":
            return Again(case.now + backoff_s(case.claimed.number, case.chance), False, *facts)
        case "hold" if rule.scope == "pool":
            return _hold_pool(facts, said, case)
        case "hold" | "again":
            if down or rule.scope == "job":
                return _hold(rule.scope, facts, said, case)
            return _again(facts, said, case)
    assert_never(action)


def _action(rule: Rule, said: Complaint, standing: Standing) -> Action:
    """Return what to do: the server knows best whether to try again, but for what stops the whole job."""
    if said.should_retry is False and rule.action in ("again", "hold"):
        return "fail"
    if said.should_retry is True and rule.action in ("fail", "find") and rule.code is None:
        return "again"
    return "fail" if rule.action == "find" and standing.found else rule.action


_Facts: TypeAlias = tuple[str, str, Billed, int | None, str | None]


def _again(facts: _Facts, said: Complaint, case: _Case) -> Verdict:
    charged = case.claimed.charged + 1
    if charged >= case.policy.max_attempts:
        return _exhausted(facts, said, case)
    wait_s = max(backoff_s(charged, case.chance), said.wait_s or 0.0)
    return Again(case.now + wait_s, True, *facts)


def _hold(scope: Scope, facts: _Facts, said: Complaint, case: _Case) -> Verdict:
    """Hold everything, free of charge, and let another one go first: this one may be to blame."""
    standing = case.standing
    charged = standing.suspect and standing.probe
    if charged and case.claimed.charged + 1 >= case.policy.max_attempts:
        return _exhausted(facts, said, case)
    # A suspect waits as a row does, by its own attempts.
    failures = case.claimed.charged + 1 if standing.suspect else standing.holds + 1
    until = _hold_until(said, case, failures)
    return Hold(scope, until, until + backoff_s(failures, case.chance), charged, *facts)


def _hold_pool(facts: _Facts, said: Complaint, case: _Case) -> Verdict:
    """Hold the pool; charge the request if it went first, since it may be one that can never fit.

    It fails only if others get through meanwhile: as the probe it is alone, so that after its last attempt
    another one goes first. If that succeeds (no holds since), and this one is refused again, it is the row.
    """
    standing, charged = case.standing, case.claimed.charged + case.standing.probe
    spent = charged >= case.policy.max_attempts
    if spent and (standing.holds == 0 or standing.tail):
        return _exhausted(facts, said, case)
    failures = max(charged, 1) if standing.tail else standing.holds + 1
    until = _hold_until(said, case, failures)
    behind = until + backoff_s(failures, case.chance)
    due = behind if spent or standing.tail else case.now
    return Hold("pool", until, due, standing.probe, *facts)


def _hold_until(said: Complaint, case: _Case, failures: int) -> float:
    """Return the end of a hold: what the server asks for is a minimum, and too little if it did not help."""
    chance = case.chance
    if said.wait_s is None:
        return case.now + backoff_s(failures, chance)
    asked = said.wait_s * (1 + _SPREAD * chance)
    return case.now + (asked if case.standing.holds == 0 else max(asked, backoff_s(failures, chance)))


#: What a server asks for is lengthened by up to this share, so that not all come at once.
_SPREAD: Final = 0.1


def _exhausted(facts: _Facts, said: Complaint, case: _Case) -> Fail:
    error, message, billed, status, request_id = facts
    attempts = f"{case.policy.max_attempts} attempts, the last: {message}"
    return Fail("exhausted", error, attempts, billed, status, request_id, said.body)
