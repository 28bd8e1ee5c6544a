"""The table of what a reply, or the lack of one, means, and how it is searched.

By status, then by the error's `code`, then by its `type`; never by the words of its message, which servers
change at will.
"""

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple, TypeAlias

from batcher.reply import Complaint
from batcher.request import Billed, Lost

#: `fail`: the row ends. `find`: it ends if anything was ever found there, else the run does. `again`: it goes
#: again, after a backoff. `wait`: so it does, and for as long as an answer may take it costs it nothing.
#: `hold`: nothing goes for a while, then one request first. `halt`: the run ends.
Action: TypeAlias = Literal["fail", "find", "again", "wait", "hold", "halt"]

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
    #: Only where an earlier attempt with this key may be under way yet.
    doubted: bool = False


_QUOTA = "the account has no quota or credit left: add credit or raise the limit, then run the same command"
_BILLING = "the account's billing is not active: set it up with the provider, then run the same command"
_NOT_FOUND = "nothing is found there: check the model and --base-url"
_TOO_LARGE = "the request is larger than the server takes"
_TOO_LONG = "the request, with its output limit, is longer than the model's context"
_FILTERED = "the server's filter refuses what the row says"
_FORBIDDEN = "the key may not do this: check the project and the model"
_OVERLOADED = "the server is overloaded"
_SLOW_DOWN = "the traffic grows faster than the server likes"
_UNDER_WAY = "an earlier attempt with this key is still under way"
_REUSED = (
    "the server knows this key with another body: give the job a --namespace of its own, in a new --store"
)

#: What a key that is still in progress is called (409, as in the IETF's idempotency-key draft), and one that
#: came with another body before (422 there; some answer 400 or 409): there is no standard word for either.
_IN_PROGRESS = (
    "idempotency_key_in_progress",
    "idempotency_key_in_use",
    "idempotency_in_progress",
    "request_in_progress",
)
_MISMATCH = (
    "idempotency_key_reused",
    "idempotency_key_mismatch",
    "idempotency_conflict",
    "idempotency_mismatch",
    "idempotency_error",
)

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
    *(Rule(409, code, "wait", "row", "no", "in_progress", _UNDER_WAY) for code in _IN_PROGRESS),
    *(
        Rule(status, code, "fail", "row", "no", "key_reused", _REUSED)
        for status in (400, 409, 422)
        for code in _MISMATCH
    ),
    Rule(409, None, "wait", "row", "no", "in_progress", _UNDER_WAY, doubted=True),
    Rule(409, None, "again", "row", "no", "conflict", "something else has this request in hand"),
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

_Match: TypeAlias = tuple[int | str, str | None, bool, bool, bool]
_BY_MATCH: Mapping[_Match, Rule] = {
    (each.status, each.code, each.asks, each.bare, each.doubted): each for each in TABLE
}
#: What a code means in an error that comes under the status of a success.
_BY_CODE: Mapping[str, Rule] = {rule.code: rule for rule in TABLE if rule.code is not None}


def rule_of_loss(lost: Lost) -> Rule:
    """Return the line for an attempt that brought no reply."""
    if not lost.left:
        stopped = lost.kind in ("stopped", "closed")
        return _rule("stopped" if stopped else "unreachable")
    return _BY_MATCH.get(_match(lost.kind)) or _rule("lost")


def _match(status: int | str, code: str | None = None) -> _Match:
    return status, code, False, False, False


def _rule(status: str) -> Rule:
    return _BY_MATCH[_match(status)]


def rule_of_error(status: int, said: Complaint, doubted: bool = False) -> Rule:
    """Return the line for a status that is no success; `doubted` says that its key may be under way."""
    for match in _matches(status, said, doubted):
        if rule := _BY_MATCH.get(match):
            return rule
    return _rule("other")


def _matches(status: int, said: Complaint, doubted: bool) -> Iterator[_Match]:
    """Yield what a line of the table may say of an error, the most particular first."""
    for word in (said.code, said.type):
        if word is not None:
            yield _match(status, word)
    asks, bare = said.wait_s is not None, not said.is_api_error
    if doubted:
        yield status, None, False, False, True
    for given in ((asks, bare), (asks, False), (False, bare), (False, False)):
        yield status, None, *given, False
    if 300 <= status < 600:
        yield _match(f"{status // 10}x")
        yield _match(f"{status // 100}xx")


def rule_of_no_answer(said: Complaint, doubted: bool = False) -> Rule:
    """Return the line for a success that holds no answer."""
    if said.kind == "error":
        for word in (said.code or "", said.type or ""):
            if word in _BY_CODE:
                return _BY_CODE[word]
            if word.isdecimal() and 400 <= int(word) < 600:
                # As OpenRouter says what its upstream answered.
                return rule_of_error(int(word), said, doubted)
    return _rule(said.kind or "invalid")
