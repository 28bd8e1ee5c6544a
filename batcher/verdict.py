"""What a reply, or the lack of one, means: one table, and the pure function that reads it.

The table is searched by status, then by the error's `code`, then by its `type`; never by the words of its
message, which servers change at will.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeAlias, assert_never

import msgspec

from batcher.money.usage import Usage, WireUsage
from batcher.request import Billed, Claimed, Landed, Lost, Reply
from batcher.retry import backoff_s

Action: TypeAlias = Literal["fail", "again", "hold pool", "hold endpoint", "halt"]


class Rule(NamedTuple):
    """One line of the table."""

    #: A status (`bare`: without the API's own error body), a class of them (`4xx`), or a word for what came.
    status: int | str
    #: The error's `code`, or else its `type`; None for any.
    code: str | None
    action: Action
    billed: Billed
    #: The word that the attempts log and the errors file use.
    error: str
    meaning: str


_QUOTA = "the account has no quota or credit left: add credit or raise the limit, then run the same command"
_BILLING = "the account's billing is not active: set it up with the provider, then run the same command"

TABLE: tuple[Rule, ...] = (
    Rule("never left", None, "hold endpoint", "no", "unreachable", "the server can't be reached"),
    Rule("stopped", None, "hold endpoint", "no", "never_left", "the run stopped before it was sent"),
    Rule("lost", None, "again", "maybe", "lost", "the connection ended before the whole reply was in"),
    Rule("invalid", None, "again", "maybe", "invalid_answer", "a success whose body is not a whole answer"),
    Rule("3xx", None, "halt", "no", "redirected", "the server redirects: correct --base-url"),
    Rule(401, None, "halt", "no", "authentication", "the key is refused: check OPENAI_API_KEY"),
    Rule(403, None, "halt", "no", "permission", "the key may not do this: check the project and the model"),
    Rule(402, None, "halt", "no", "quota", _QUOTA),
    Rule(408, None, "again", "maybe", "timeout", "the server gave up waiting"),
    Rule(409, None, "again", "no", "conflict", "the server is still busy with this request"),
    Rule(429, "insufficient_quota", "halt", "no", "quota", _QUOTA),
    Rule(429, "credit_balance_exhausted", "halt", "no", "quota", _QUOTA),
    Rule(429, "organization_spend_limit_exceeded", "halt", "no", "quota", _QUOTA),
    Rule(429, "project_spend_limit_exceeded", "halt", "no", "quota", _QUOTA),
    Rule(429, "organization_usage_limit_exceeded", "halt", "no", "quota", _QUOTA),
    Rule(429, "billing_hard_limit_reached", "halt", "no", "quota", _QUOTA),
    Rule(429, "billing_not_active", "halt", "no", "billing", _BILLING),
    Rule(429, None, "hold pool", "no", "rate_limit", "the rate limit is reached"),
    Rule("4xx", None, "fail", "no", "bad_request", "the server refuses what the row says"),
    Rule(500, None, "again", "no", "server_error", "the server failed"),
    Rule("bare 500", None, "again", "maybe", "server_error", "a gateway or the server failed"),
    Rule(502, None, "again", "maybe", "bad_gateway", "a gateway lost the server"),
    Rule(503, None, "again", "no", "unavailable", "the server is overloaded"),
    Rule("bare 503", None, "again", "maybe", "unavailable", "a gateway or the server is overloaded"),
    Rule(504, None, "again", "maybe", "gateway_timeout", "a gateway gave up waiting for the server"),
    Rule("5xx", None, "again", "maybe", "server_error", "the server failed"),
    Rule("other", None, "again", "maybe", "invalid_answer", "a status that no answer has"),
)
_BY_MATCH: Mapping[tuple[int | str, str | None], Rule] = {(rule.status, rule.code): rule for rule in TABLE}


@dataclass(frozen=True, slots=True)
class Policy:
    """What the user decided about failures."""

    #: So many charged attempts, and the row fails.
    max_attempts: int = 5
    #: What may have been billed is not sent again.
    at_most_once: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """How things stood when an attempt was sent."""

    #: Holds of its pool, or of the endpoint, since something last succeeded: the backoff grows with them.
    holds: int = 0
    #: Whether it went first after a pause: only then is a refusal for rate charged to it.
    probe: bool = False


class Done(msgspec.Struct, frozen=True, gc=False):
    """The answer is in."""

    status: int
    request_id: str | None
    #: One for each row of the request, without raw line breaks.
    answers: tuple[bytes, ...]
    #: None where the reply does not say what it used.
    usage: Usage | None
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


class Again(msgspec.Struct, frozen=True, gc=False):
    """The same request again, not before `due`."""

    due: float
    #: Whether this attempt counts against `max_attempts`.
    charged: bool
    error: str
    billed: Billed
    status: int | None = None
    request_id: str | None = None


class Hold(msgspec.Struct, frozen=True, gc=False):
    """Nothing of this scope goes before `until`; then this request again, charged if it was the probe."""

    scope: Literal["pool", "endpoint"]
    until: float
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
        stopped = landed.kind in ("stopped", "closed")
        rule = _BY_MATCH["lost" if landed.left else "stopped" if stopped else "never left", None]
        return _apply(rule, _Said(landed.reason), case)
    if 200 <= landed.status < 300:
        return _judge_success(landed, case)
    said = _read_error(landed)
    return _apply(_find(landed.status, said), said, case)


class _Case(NamedTuple):
    """What a verdict depends on besides what came back."""

    claimed: Claimed
    now: float
    chance: float
    policy: Policy
    standing: Standing


class _Said(NamedTuple):
    """What the server, or the transport, said of a failure."""

    message: str
    code: str | None = None
    type: str | None = None
    status: int | None = None
    request_id: str | None = None
    body: bytes | None = None
    wait_s: float | None = None
    #: Whether the body is an error object, as the API's own server makes them and gateways do not.
    is_api_error: bool = False


def _find(status: int, said: _Said) -> Rule:
    group = f"{status // 100}xx" if 3 <= status // 100 <= 5 else "other"
    for word in (said.code, said.type):
        if word is not None and (rule := _BY_MATCH.get((status, word))):
            return rule
    for match in (status if said.is_api_error else f"bare {status}", status, group):
        if rule := _BY_MATCH.get((match, None)):
            return rule
    return _BY_MATCH["other", None]


def _apply(rule: Rule, said: _Said, case: _Case) -> Verdict:
    message = f"{rule.meaning}: {said.message}" if said.message else rule.meaning
    facts = (rule.error, message, rule.billed, said.status, said.request_id)
    if rule.billed == "maybe" and case.policy.at_most_once:
        return Fail("in_doubt", *facts, said.body)
    match rule.action:
        case "halt":
            return Halt(*facts)
        case "fail":
            return Fail("refused", *facts, said.body)
        case "hold endpoint":
            return Hold("endpoint", case.now + backoff_s(case.standing.holds + 1, case.chance), *facts)
        case "again" | "hold pool":
            return _apply_again(rule, said, case, message)
    assert_never(rule.action)


def _apply_again(rule: Rule, said: _Said, case: _Case, message: str) -> Verdict:
    now, chance, policy, charged_before = case.now, case.chance, case.policy, case.claimed.charged
    # A server that says when to come back speaks for the whole pool, whatever the status.
    holding = rule.action == "hold pool" or (said.status == 503 and said.wait_s is not None)
    charged = case.standing.probe or not holding
    if charged and charged_before + 1 >= policy.max_attempts:
        attempts = f"{policy.max_attempts} attempts, the last: {message}"
        return Fail("exhausted", rule.error, attempts, rule.billed, said.status, said.request_id, said.body)
    if holding:
        until = now + _pause_s(said.wait_s, case.standing.holds, chance)
        return Hold("pool", until, rule.error, message, rule.billed, said.status, said.request_id)
    wait_s = max(backoff_s(charged_before + 1, chance), said.wait_s or 0.0)
    return Again(now + wait_s, charged, rule.error, rule.billed, said.status, said.request_id)


def _pause_s(wait_s: float | None, holds: int, chance: float) -> float:
    """Return how long a pool waits: what the server asks for is a minimum, so the spread is added to it."""
    return backoff_s(holds + 1, chance) if wait_s is None else wait_s * (1 + 0.1 * chance)


class _Error(msgspec.Struct):
    message: str | None = None
    type: str | None = None
    code: str | int | None = None


class _ErrorBody(msgspec.Struct):
    error: _Error


_decode_error = msgspec.json.Decoder(_ErrorBody).decode
_check_json = msgspec.json.Decoder(msgspec.Raw).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

#: What decoding raises. A body nested deeper than the interpreter's stack can't be read either.
_NOT_JSON: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

#: So much of a body that is not the API's own error goes into the message.
_EXCERPT = 200


def _read_error(reply: Reply) -> _Said:
    body = _json_or_none(reply.body)
    facts = (reply.status, reply.header(b"x-request-id"), body)
    wait_s = _wait_s(reply)
    try:
        error = _decode_error(reply.body).error
    except _NOT_JSON:
        text = _one_line(reply.body)[:_EXCERPT].decode("utf-8", "replace").strip() or "no body"
        location = reply.header(b"location")
        where = f" to {location}" if location else ""
        return _Said(f"HTTP {reply.status}{where}: {text}", None, None, *facts, wait_s)
    code = None if error.code is None else str(error.code)
    message = error.message or code or error.type or f"HTTP {reply.status}"
    return _Said(_one_line(message.encode()).decode(), code, error.type, *facts, wait_s, True)


def _one_line(body: bytes) -> bytes:
    """Drop raw line breaks: valid JSON has them only between its tokens, so no value changes."""
    return body.translate(None, b"\r\n").strip() if b"\n" in body or b"\r" in body else body


def _json_or_none(body: bytes) -> bytes | None:
    """Return a body that is JSON, on one line."""
    try:
        _check_json(body)
        body.decode()
    except _NOT_JSON:
        return None
    return _one_line(body)


#: A server that asks for more than a day (no limit of OpenAI's takes longer to reset) does not mean it.
_LONGEST_WAIT_S: Final = 86_400.0


def _wait_s(reply: Reply) -> float | None:
    """Read how long the server asks to wait: `retry-after-ms`, or `Retry-After` as seconds or as a date."""
    for name, unit in ((b"retry-after-ms", 1000.0), (b"retry-after", 1.0)):
        value = reply.header(name)
        if value is None:
            continue
        try:
            wait_s = float(value) / unit
        except ValueError:
            wait_s = _until_date_s(value, reply.header(b"date"))
        if 0 <= wait_s <= _LONGEST_WAIT_S:
            return wait_s
    return None


def _until_date_s(value: str, date: str | None) -> float:
    """Read `Retry-After` as a date, by the server's own clock; -1 where that can't be done."""
    try:
        until: datetime = parsedate_to_datetime(value)
        return (until - parsedate_to_datetime(date or "")).total_seconds()
    except (TypeError, ValueError, OverflowError):
        return -1.0


class _Choice(msgspec.Struct, gc=False):
    """An object, whatever it holds."""


class _Billed(msgspec.Struct, gc=False, kw_only=True):
    usage: WireUsage | None = None
    service_tier: str | None = None


class _Completion(_Billed, gc=False):
    choices: Annotated[list[_Choice], msgspec.Meta(min_length=1)]


class _Response(_Billed, gc=False):
    output: list[msgspec.Raw]
    status: str | None = None


class _Embeddings(_Billed, gc=False):
    data: Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1)]


class _Moderations(_Billed, gc=False):
    results: Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1)]


_Answer: TypeAlias = _Completion | _Response | _Embeddings | _Moderations

#: States of a response that is not an answer; `incomplete` is one, cut off by its output limit.
_NOT_COMPLETED = frozenset({"failed", "queued", "in_progress", "cancelled"})

#: What a success must hold, per endpoint: decoding checks the whole of it and builds only these few fields.
_DECODERS: Mapping[str, msgspec.json.Decoder[Any]] = {
    "/v1/chat/completions": msgspec.json.Decoder(_Completion),
    "/v1/completions": msgspec.json.Decoder(_Completion),
    "/v1/responses": msgspec.json.Decoder(_Response),
    "/v1/embeddings": msgspec.json.Decoder(_Embeddings),
    "/v1/moderations": msgspec.json.Decoder(_Moderations),
}


def _judge_success(reply: Reply, case: _Case) -> Verdict:
    # Judged as it came: without its line breaks a body that is cut or broken could pass for a whole one.
    body, path = reply.body, case.claimed.request.path
    try:
        if not body.isascii():
            body.decode()
        try:
            answer: _Answer = _DECODERS[path].decode(body)
        except msgspec.ValidationError:
            # A paid answer is not lost over a field that only the bill wants.
            answer = _decode_leniently(path, body)
    except _NOT_JSON as error:
        text = " ".join(body[:_EXCERPT].decode("utf-8", "replace").split())
        return _invalid(f"{error}; it begins: {text}" if text else str(error), reply, case)
    if isinstance(answer, _Response) and answer.status in _NOT_COMPLETED:
        return _invalid(f"its status is {answer.status}", reply, case)
    if isinstance(answer.usage, WireUsage):
        usage = answer.usage.normalise(answer.service_tier)
    else:
        # Moderations report no usage, and none is billed.
        usage = Usage() if isinstance(answer, _Moderations) else None
    return Done(reply.status, reply.header(b"x-request-id"), (_one_line(body),), usage)


def _decode_leniently(path: str, body: bytes) -> "_Answer":
    """Decode an answer whose usage or tier can't be what they are named, and drop those two."""
    fields = _decode_fields(body)
    fields.pop("usage", None)
    fields.pop("service_tier", None)
    answer: _Answer = _DECODERS[path].decode(msgspec.json.encode(fields))
    return answer


def _invalid(what: str, reply: Reply, case: _Case) -> Verdict:
    said = _Said(what, None, None, reply.status, reply.header(b"x-request-id"), _json_or_none(reply.body))
    return _apply(_BY_MATCH["invalid", None], said, case)
