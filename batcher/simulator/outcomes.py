"""Every fault that a request can meet, as data: what is answered, whether work was done, how it ends.

A fault is one row. `refused`: nothing is done and nothing billed, and the reply is made already.
`connection`: nothing is done, and there is no reply. `spoiled`: the work is done and billed, and then
something happens to the answer. The shapes of the errors are OpenAI's unless the row says whose.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeAlias

import orjson

from batcher.simulator import spoiling
from batcher.simulator.replies import HTML, JSON, error, wait_lines
from batcher.simulator.spoiling import Change, Split

#: What follows the last byte: the next request, FIN, RST, or nothing as long as the client stays.
Ending: TypeAlias = Literal["next", "close", "reset", "silence"]
Group: TypeAlias = Literal["refused", "connection", "spoiled", "outage"]

#: What each group has in common, for a reader.
GROUPS: dict[Group, str] = {
    "refused": "Refused (nothing done, nothing billed)",
    "connection": "Connection lost (nothing done, nothing billed, no answer)",
    "spoiled": "Spoiled (done and billed, and then)",
    "outage": "Outage (in a script only)",
}

#: How long a 429 that is a fault asks to wait: there is no limit that it could be worked out from.
_WAIT_MS = 20
#: The shortest wait but none that a header in whole seconds can ask for.
_RETRY_AFTER = b"retry-after: 1\r\n"
#: How long an answer takes that drips, and one that follows blank lines.
DRIP_S = 2.0
BLANK_LINES_S = 0.5
#: Bytes that `wrong-length` promises and does not send.
_MISSING_BYTES = 50

_INVALID = "invalid_request_error"


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One fault: the row of the table."""

    name: str
    group: Group
    #: What happens, for a reader.
    meaning: str
    #: The reply's status; 0 where there is none.
    status: int = 200
    #: Header lines besides those that every reply has, each with its line break.
    lines: bytes = b""
    content_type: bytes = JSON
    #: The body, of a refusal.
    body: bytes = b""
    #: What becomes of the right body, of an answer that is spoiled.
    change: Change = spoiling.sound
    #: Bytes of the length it claims that never come.
    missing_bytes: int = 0
    split: Split = spoiling.whole
    #: Seconds from its first piece to its last.
    takes_s: float = 0.0
    ending: Ending = "next"

    @property
    def works(self) -> bool:
        """Whether the work is done and billed."""
        return self.group == "spoiled"

    @property
    def is_charged(self) -> bool:
        """Whether it takes from the limits: what is turned away at the door, or never got there, does not."""
        return self.works or self.status >= 500


def _refused(
    name: str,
    meaning: str,
    message: str = "",
    type_: str = _INVALID,
    code: str | None = None,
    *,
    lines: bytes = b"",
    param: str | None = None,
) -> Fault:
    """Make a refusal with an error as OpenAI writes it; its status is what its name begins with."""
    body = error(f"{message or meaning} (simulated)", type_, param, code)
    return Fault(name=name, group="refused", meaning=meaning, status=int(name[:3]), lines=lines, body=body)


def _page(name: str, title: str) -> Fault:
    """Make the page that a gateway in front of the API answers when it has no better."""
    body = f"<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<center><h1>{title}</h1></center>\r\n"
    html = f"{body}<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n".encode()
    meaning = f"{title}: an HTML page, as a gateway makes it"
    return Fault(name=name, group="refused", meaning=meaning, status=int(name), content_type=HTML, body=html)


def _odd(name: str, meaning: str, status: int, body: bytes, lines: bytes = b"") -> Fault:
    """Make a refusal whose body is none of OpenAI's."""
    return Fault(name=name, group="refused", meaning=meaning, status=status, body=body, lines=lines)


def _no_quota(code: str, meaning: str, type_: str = "insufficient_quota") -> Fault:
    return _refused(f"429-{code}", f"{meaning}; no wait helps", meaning[0].upper() + meaning[1:], type_, code)


_SERVER_ERROR = error("The server had an error (simulated)", "server_error")
_NO_RETRY = b"x-should-retry: false\r\n"
_RETRY = b"x-should-retry: true\r\n"
_WAIT = wait_lines(_WAIT_MS)
_RATE = ("Rate limit reached", "requests", "rate_limit_exceeded")
_BUSY = ("The server is overloaded or not ready yet", "server_error")
_POOR = ("Insufficient credits", "insufficient_credits")

_REFUSED = (
    _refused("400", "a bad request", "Invalid request"),
    _refused("400-retry", "a bad request, with x-should-retry: true", lines=_RETRY),
    _refused(
        "400-context_length_exceeded",
        "the prompt is longer than the model's context",
        "This model's maximum context length is 128000 tokens. Please reduce the length of the messages.",
        code="context_length_exceeded",
        param="messages",
    ),
    _refused(
        "400-content_filter",
        "the prompt was filtered, as Azure has it",
        "The response was filtered due to the prompt triggering the content management policy",
        code="content_filter",
        param="prompt",
    ),
    _refused("401", "the key is wrong", "Incorrect API key provided", code="invalid_api_key"),
    _refused("402", "credits are used up", *_POOR),
    _refused(
        "402-retry-after",
        "credits are short for now: Retry-After",
        *_POOR,
        lines=_RETRY_AFTER,
    ),
    _refused(
        "403",
        "the key may not do this",
        "Country, region, or territory not supported",
        "request_forbidden",
        "unsupported_country_region_territory",
    ),
    _refused("404", "no such model", "The model does not exist", code="model_not_found", param="model"),
    _refused("408", "the server waited too long", "Request timed out", "timeout_error"),
    _refused("409", "a conflict", "The resource was changed by another request", code="conflict"),
    replace(
        _refused(
            "409",
            "409: a request with the same key is under way",
            "A request with this Idempotency-Key is still under way",
            code="idempotency_key_in_progress",
        ),
        name="key-in-progress",
    ),
    _refused("413", "the body is too large", "Request too large", code="request_too_large"),
    _refused("422", "the body can't be processed", "Unprocessable entity", code="unprocessable_entity"),
    _refused("429", "over the rate limit: Retry-After and retry-after-ms", *_RATE, lines=_WAIT),
    _refused("429-no-wait", "over the rate limit, with no header that says how long", *_RATE),
    _refused("429-slow_down", "too steep a rise in requests", "Slow down", "requests", "slow_down"),
    _no_quota("insufficient_quota", "you exceeded your current quota"),
    _no_quota("credit_balance_exhausted", "the credit balance is exhausted"),
    _no_quota("organization_spend_limit_exceeded", "the organization's spend limit is reached"),
    _no_quota("project_spend_limit_exceeded", "the project's spend limit is reached"),
    _no_quota("organization_usage_limit_exceeded", "the organization's usage limit is reached"),
    _no_quota("billing_hard_limit_reached", "the billing hard limit has been reached", _INVALID),
    _no_quota("billing_not_active", "the account is not active", "billing_not_active"),
    _odd("500", "an error of the server", 500, _SERVER_ERROR),
    _odd("500-no-retry", "an error of the server, with x-should-retry: false", 500, _SERVER_ERROR, _NO_RETRY),
    _page("502", "502 Bad Gateway"),
    _refused("503", "overloaded, with no Retry-After", *_BUSY),
    _refused("503-retry-after", "overloaded, with Retry-After", *_BUSY, lines=_RETRY_AFTER),
    _refused("503-server_is_overloaded", "overloaded, with this code", *_BUSY, "server_is_overloaded"),
    _page("504", "504 Gateway Time-out"),
    _refused("529", "overloaded, as other providers say it", "Overloaded", "overloaded_error"),
    # A name that no resolver knows (RFC 2606): who follows it, and takes the key there, reaches nobody.
    _odd(
        "redirect", "307 to another host, with no body", 307, b"", b"location: http://elsewhere.invalid/\r\n"
    ),
    _odd(
        "error-array",
        "400 with the error in an array, as Gemini's compatible endpoint",
        400,
        b"[" + error("Invalid request (simulated)", _INVALID) + b"]",
    ),
    _odd(
        "error-string", "500 with a text for an error", 500, orjson.dumps({"error": "Internal Server Error"})
    ),
    _odd("error-empty", "500 with no body", 500, b""),
)


def _lost(name: str, meaning: str, ending: Ending, group: Group = "connection") -> Fault:
    return Fault(name=name, group=group, meaning=meaning, status=0, split=spoiling.nothing, ending=ending)


_CONNECTION = (
    _lost("reset-before", "the connection is reset", "reset"),
    _lost("hang", "silence: the connection stays open until the client leaves", "silence"),
)

_NOT_JSON = b"<html><body>Welcome to the hotel's network. Please sign in.</body></html>\n"
_ERROR_OBJECT = error("An error that came as a 200 (simulated)", "server_error")
_FAILED = {"code": "server_error", "message": "The model failed (simulated)"}


_spoiled = partial(Fault, group="spoiled")

_SPOILED = (
    _spoiled(name="reset-after", meaning="the connection is reset", split=spoiling.nothing, ending="reset"),
    _spoiled(
        name="cut-off",
        meaning="half of the body, and the connection closed",
        split=spoiling.half,
        ending="close",
    ),
    _spoiled(
        name="drip", meaning=f"a few bytes at a time, for {DRIP_S:g} s", split=spoiling.drips, takes_s=DRIP_S
    ),
    _spoiled(
        name="not-json", meaning="a web page", change=spoiling.replaced_by(_NOT_JSON), content_type=HTML
    ),
    _spoiled(name="content-type", meaning="the right answer, under text/html", content_type=HTML),
    _spoiled(
        name="wrong-length",
        meaning="a length that is larger than the body, and the connection closed",
        missing_bytes=_MISSING_BYTES,
        ending="close",
    ),
    _spoiled(name="empty", meaning="200 with no body", change=spoiling.replaced_by(b"")),
    _spoiled(
        name="error-object",
        meaning="200 with an error for a body",
        change=spoiling.replaced_by(_ERROR_OBJECT),
    ),
    _spoiled(
        name="blank-lines",
        meaning=f"blank lines for {BLANK_LINES_S:g} s and then the right answer, as DeepSeek does",
        change=spoiling.after_blank_lines,
        split=spoiling.line_by_line,
        takes_s=BLANK_LINES_S,
    ),
    _spoiled(
        name="truncated",
        meaning="ended for its output limit; embeddings and moderations as ever",
        change=spoiling.ended_for("length", "max_output_tokens"),
    ),
    _spoiled(
        name="filtered",
        meaning="ended by the content filter; embeddings and moderations as ever",
        change=spoiling.ended_for("content_filter", "content_filter"),
    ),
    _spoiled(
        name="failed",
        meaning="a response with status failed; other endpoints as error-object",
        change=spoiling.response_with({"status": "failed", "error": _FAILED}, otherwise=_ERROR_OBJECT),
    ),
    _spoiled(
        name="queued",
        meaning="a response with status queued; other endpoints as error-object",
        change=spoiling.response_with({"status": "queued", "usage": None}, otherwise=_ERROR_OBJECT),
    ),
)

#: What a request meets that comes while connections are refused: one that was on its way already.
OUTAGE = _lost("refuse-connections", "nobody listens, and every connection is reset", "reset", group="outage")

#: Name -> fault, in the order in which their shares are laid side by side.
FAULTS: dict[str, Fault] = {fault.name: fault for fault in (*_REFUSED, *_CONNECTION, *_SPOILED)}
#: What a script may name.
SCRIPTABLE: dict[str, Fault] = {**FAULTS, OUTAGE.name: OUTAGE}
OUT_OF_QUOTA = FAULTS["429-insufficient_quota"]
