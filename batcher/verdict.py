"""What a reply, or the lack of one, means: one table, and the pure function that reads it.

The table is searched by status, then by the error's `code`, then by its `type`; never by the words of its
message, which servers change at will.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Literal, NamedTuple, TypeAlias

import msgspec

from batcher.money.usage import Usage, WireUsage
from batcher.request import Billed, Claimed, Landed, Lost, Reply
from batcher.retry import backoff_s

Action: TypeAlias = Literal["fail", "again", "hold pool", "hold endpoint", "halt"]


class Rule(NamedTuple):
    """One line of the table."""

    #: A status, a class of them (`4xx`), `lost` or `200`.
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
    Rule(502, None, "again", "maybe", "bad_gateway", "a gateway lost the server"),
    Rule(503, None, "again", "no", "unavailable", "the server is overloaded"),
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
    reason: str
    billed: Billed
    status: int | None = None
    request_id: str | None = None


Verdict: TypeAlias = Done | Fail | Again | Hold | Halt


def judge(
    claimed: Claimed,
    landed: Landed,
    now: float,
    chance: float,
    policy: Policy,
    holds: int = 0,
    probe: bool = False,
) -> Verdict:
    """Decide what becomes of an attempt.

    `chance` is a random number from 0 to 1 that spreads retries. `holds` is how often the request's pool,
    or the endpoint for what never left, has been held since something last succeeded: the backoff grows
    with it. `probe` says that it went first after a pause: only then is a refusal for rate charged.
    """
    if isinstance(landed, Lost):
        rule = _BY_MATCH["lost" if landed.left else "never left", None]
        return _apply(rule, claimed, now, chance, policy, holds, probe, _Said(landed.reason))
    if 200 <= landed.status < 300:
        return _judge_success(claimed, landed, now, chance, policy)
    said = _read_error(landed)
    return _apply(_find(landed.status, said), claimed, now, chance, policy, holds, probe, said)


class _Said(NamedTuple):
    """What the server, or the transport, said of a failure."""

    message: str
    code: str | None = None
    type: str | None = None
    status: int | None = None
    request_id: str | None = None
    body: bytes | None = None
    wait_s: float | None = None


def _find(status: int, said: _Said) -> Rule:
    group = f"{status // 100}xx" if 3 <= status // 100 <= 5 else "other"
    for match in ((status, said.code), (status, said.type), (status, None), (group, None)):
        if rule := _BY_MATCH.get(match):
            return rule
    return _BY_MATCH["other", None]


def _apply(
    rule: Rule,
    claimed: Claimed,
    now: float,
    chance: float,
    policy: Policy,
    holds: int,
    probe: bool,
    said: _Said,
) -> Verdict:
    message = f"{rule.meaning}: {said.message}" if said.message else rule.meaning
    facts = (rule.error, message, rule.billed, said.status, said.request_id)
    if rule.billed == "maybe" and policy.at_most_once:
        return Fail("in_doubt", *facts, said.body)
    if rule.action == "halt":
        return Halt(rule.error, message, rule.billed, said.status, said.request_id)
    if rule.action == "fail":
        return Fail("refused", *facts, said.body)
    if rule.action == "hold endpoint":
        return Hold("endpoint", now + backoff_s(holds + 1, chance), *facts)
    # A server that says when to come back speaks for the whole pool, whatever the status.
    holding = rule.action == "hold pool" or (said.status == 503 and said.wait_s is not None)
    charged = probe or not holding
    if charged and claimed.charged + 1 >= policy.max_attempts:
        attempts = f"{policy.max_attempts} attempts, the last: {message}"
        return Fail("exhausted", rule.error, attempts, rule.billed, said.status, said.request_id, said.body)
    if holding:
        return Hold("pool", now + _pause_s(said.wait_s, holds, chance), *facts)
    wait_s = max(backoff_s(claimed.charged + 1, chance), said.wait_s or 0.0)
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

#: So much of a body that is not the API's own error goes into the message.
_EXCERPT = 200


def _read_error(reply: Reply) -> _Said:
    body = _one_line(reply.body)
    facts = (reply.status, reply.header(b"x-request-id"))
    wait_s = _wait_s(reply)
    try:
        error = _decode_error(reply.body).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        text = body[:_EXCERPT].decode("utf-8", "replace").strip() or "no body"
        location = reply.header(b"location")
        where = f" to {location}" if location else ""
        return _Said(f"HTTP {reply.status}{where}: {text}", None, None, *facts, _json_or_none(body), wait_s)
    code = None if error.code is None else str(error.code)
    message = error.message or code or error.type or f"HTTP {reply.status}"
    return _Said(_one_line(message.encode()).decode(), code, error.type, *facts, body, wait_s)


def _one_line(body: bytes) -> bytes:
    """Drop raw line breaks: JSON strings can't hold them, so no value changes."""
    return body.translate(None, b"\r\n").strip() if b"\n" in body or b"\r" in body else body


def _json_or_none(body: bytes) -> bytes | None:
    try:
        _check_json(body)
        body.decode()
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return body


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
        if 0 <= wait_s < float("inf"):
            return wait_s
    return None


def _until_date_s(value: str, date: str | None) -> float:
    """Read `Retry-After` as a date, by the server's own clock; -1 where that can't be done."""
    try:
        until: datetime = parsedate_to_datetime(value)
        return (until - parsedate_to_datetime(date or "")).total_seconds()
    except (TypeError, ValueError):
        return -1.0


class _Choice(msgspec.Struct, gc=False):
    finish_reason: str | None = None


class _Completion(msgspec.Struct, gc=False):
    choices: list[_Choice]
    usage: WireUsage | None = None
    service_tier: str | None = None


class _Response(msgspec.Struct, gc=False):
    output: msgspec.Raw
    status: str | None = None
    usage: WireUsage | None = None
    service_tier: str | None = None


class _Embeddings(msgspec.Struct, gc=False):
    data: msgspec.Raw
    usage: WireUsage | None = None
    service_tier: str | None = None


class _Moderations(msgspec.Struct, gc=False):
    results: msgspec.Raw
    usage: WireUsage | None = None
    service_tier: str | None = None


#: What a success must hold, per endpoint: decoding checks the whole of it and builds only these few fields.
_DECODERS: Mapping[str, msgspec.json.Decoder[_Completion | _Response | _Embeddings | _Moderations]] = {
    "/v1/chat/completions": msgspec.json.Decoder(_Completion),
    "/v1/completions": msgspec.json.Decoder(_Completion),
    "/v1/responses": msgspec.json.Decoder(_Response),
    "/v1/embeddings": msgspec.json.Decoder(_Embeddings),
    "/v1/moderations": msgspec.json.Decoder(_Moderations),
}


def _judge_success(claimed: Claimed, reply: Reply, now: float, chance: float, policy: Policy) -> Verdict:
    body = _one_line(reply.body)
    try:
        answer = _DECODERS[claimed.request.path].decode(body)
        if not body.isascii():
            body.decode()
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return _invalid(claimed, reply, now, chance, policy, str(error))
    if isinstance(answer, _Response) and answer.status in ("failed", "queued", "in_progress", "cancelled"):
        return _invalid(claimed, reply, now, chance, policy, f"its status is {answer.status}")
    if answer.usage is not None:
        usage = answer.usage.normalise(answer.service_tier)
    else:
        # Moderations report no usage, and none is billed.
        usage = Usage() if isinstance(answer, _Moderations) else None
    return Done(reply.status, reply.header(b"x-request-id"), (body,), usage)


def _invalid(claimed: Claimed, reply: Reply, now: float, chance: float, policy: Policy, what: str) -> Verdict:
    body = _json_or_none(_one_line(reply.body))
    said = _Said(what, None, None, reply.status, reply.header(b"x-request-id"), body)
    return _apply(_BY_MATCH["invalid", None], claimed, now, chance, policy, 0, False, said)
