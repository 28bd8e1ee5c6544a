"""What becomes of an attempt: the pure function that applies the table of `batcher.rules`."""

from typing import Final, Literal, NamedTuple, TypeAlias

import msgspec

from batcher.money.usage import Usage
from batcher.reply import Answer, Complaint, is_replayed, read_answer, read_error
from batcher.request import Billed, Claimed, Finish, Landed, Lost
from batcher.retry import CAP_S, backoff_s
from batcher.rules import Action, Rule, Scope, rule_of_error, rule_of_loss, rule_of_no_answer


class Policy(msgspec.Struct, frozen=True, gc=False):
    """What the user decided about failures."""

    #: So many charged attempts, and the row fails.
    max_attempts: int = 5
    #: What may have been billed is not sent again.
    at_most_once: bool = False
    #: But for what an earlier run left in doubt: that is sent again, once.
    retry_in_doubt: bool = False
    #: How long an answer may take, in seconds.
    timeout_s: float = 300.0

    @property
    def withholds(self) -> bool:
        """Whether what an earlier run left in doubt is not sent."""
        return self.at_most_once and not self.retry_in_doubt


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
    #: Whether the server had done it for an earlier attempt, and said so.
    replayed: bool = False


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
    #: Whether the server had failed an earlier attempt, and only says so again.
    replayed: bool = False


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
    #: Whether the server had failed an earlier attempt, and only says so again: another key is needed.
    replayed: bool = False


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
        return _apply(rule_of_loss(landed), Complaint(landed.reason), case)
    if not 200 <= landed.status < 300:
        complaint = read_error(landed)
        return _apply(rule_of_error(landed.status, complaint, claimed.doubted), complaint, case)
    answer = read_answer(claimed.request, landed)
    if isinstance(answer, Answer):
        request_id = landed.header(b"x-request-id")
        replayed = is_replayed(landed)
        return Done(landed.status, request_id, (answer.body,), answer.usage, answer.finish, replayed=replayed)
    return _apply(rule_of_no_answer(answer, claimed.doubted), answer, case)


def blames_endpoint(landed: Landed) -> bool:
    """Say whether an attempt failed in a way that is the endpoint's fault, if no other fares better."""
    if isinstance(landed, Lost):
        return rule_of_loss(landed).scope == "endpoint"
    if is_replayed(landed):
        return False
    return landed.status >= 500 and rule_of_error(landed.status, read_error(landed)).scope == "endpoint"


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


_Facts: TypeAlias = tuple[str, str, Billed, int | None, str | None]


def _apply(rule: Rule, said: Complaint, case: _Case) -> Verdict:
    message = f"{rule.meaning}: {said.message}" if said.message else rule.meaning
    facts = (rule.error, message, rule.billed, said.status, said.request_id)
    standing = case.standing
    down = rule.scope == "endpoint" and (standing.down or rule.action == "hold")
    if rule.billed == "maybe" and case.policy.at_most_once:
        until = _hold_until(said, case, standing.holds + 1) if down else None
        return Fail("in_doubt", *facts, said.body, until, _is_replayed_failure(said))
    if _is_replayed_failure(said):
        return _renew(facts, said, case)
    action = _action(rule, said, standing)
    if action == "fail":
        return _fail(rule, facts, said)
    if action == "halt":
        return Halt(*facts)
    if action == "find":
        return Again(case.now + backoff_s(case.claimed.number, case.chance), False, *facts)
    if action == "wait":
        return _wait(facts, said, case)
    if action == "hold" and rule.scope == "pool":
        return _hold_pool(facts, said, case)
    if down or rule.scope == "job":
        return _hold(rule.scope, facts, said, case)
    return _again(facts, said, case)


def _is_replayed_failure(said: Complaint) -> bool:
    """Say whether a key is spent; a damaged success may come whole under it, and would be paid again."""
    return said.replayed and said.status is not None and said.status >= 300


def _fail(rule: Rule, facts: _Facts, said: Complaint) -> Fail:
    error, message, billed, status, request_id = facts
    if rule.action in _TRIES_AGAIN:
        why = f"{message} (the server says that it must not be tried again)"
        return Fail("exhausted", error, why, billed, status, request_id, said.body)
    return Fail("refused", *facts, said.body)


#: What goes again, unless the server says otherwise.
_TRIES_AGAIN: Final = ("again", "wait", "hold")


def _action(rule: Rule, said: Complaint, standing: Standing) -> Action:
    """Return what to do: the server knows best whether to try again, but for what stops the whole job."""
    if said.should_retry is False and rule.action in _TRIES_AGAIN:
        return "fail"
    if said.should_retry is True and rule.action in ("fail", "find") and rule.code is None:
        return "again"
    return "fail" if rule.action == "find" and standing.found else rule.action


def _wait(facts: _Facts, said: Complaint, case: _Case) -> Again | Fail:
    """Let a request wait for its own earlier attempt: free of charge, for as long as that may take."""
    free = case.claimed.number - case.claimed.charged
    if free > _WAITS + case.policy.timeout_s / (CAP_S / 2):
        return _again(facts, said, case)
    wait_s = max(backoff_s(free, case.chance), said.wait_s or 0.0)
    return Again(case.now + wait_s, False, *facts)


#: Backoffs with full jitter take half their bound on average. Until the bound is `CAP_S` there are so many,
#: which take as long as two of those that follow.
_WAITS: Final = 8


def _renew(facts: _Facts, said: Complaint, case: _Case) -> Verdict:
    """Let a request go again with another key: with this one it would only be told the same."""
    return msgspec.structs.replace(_again(facts, said, case), replayed=True)


def _again(facts: _Facts, said: Complaint, case: _Case) -> Again | Fail:
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
