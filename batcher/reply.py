"""What a reply says, read from its bytes: an answer, or an error. What either means is judged elsewhere."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Annotated, Any, Final, NamedTuple, TypeAlias

import msgspec

from batcher.money.usage import Usage, WireUsage
from batcher.request import Finish, Reply, Request


class Answer(msgspec.Struct, frozen=True, gc=False):
    """A success that holds what its endpoint must give."""

    #: The body without raw line breaks.
    body: bytes
    #: None where the reply does not say what it used.
    usage: Usage | None
    #: Why it ended early; None if it did not.
    finish: Finish | None


class Complaint(NamedTuple):
    """What the server, or the transport, says of a failure."""

    message: str
    #: What is wrong with a success that is none: `invalid`, `error`, `failed` or `unfinished`.
    kind: str | None = None
    code: str | None = None
    type: str | None = None
    status: int | None = None
    request_id: str | None = None
    #: The reply's body, if it is JSON, on one line.
    body: bytes | None = None
    #: How long the server asks to wait, in seconds.
    wait_s: float | None = None
    #: Whether the body is an error object, as the API's own server makes them and gateways do not.
    is_api_error: bool = False
    #: `x-should-retry`, where the server says it.
    should_retry: bool | None = None
    #: Whether an earlier attempt with the same key had been told this already.
    replayed: bool = False


class _Error(msgspec.Struct):
    message: str | None = None
    type: str | None = None
    code: str | int | None = None


class _ErrorBody(msgspec.Struct):
    error: _Error


_decode_error = msgspec.json.Decoder(_ErrorBody).decode
#: Gemini's compatible endpoint has sent errors in an array.
_decode_errors = msgspec.json.Decoder(Annotated[list[_ErrorBody], msgspec.Meta(min_length=1)]).decode
_check_json = msgspec.json.Decoder(msgspec.Raw).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

#: What decoding raises. A body nested deeper than the interpreter's stack can't be read either.
_NOT_JSON: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

#: So much of a body that is not the API's own error goes into the message, in characters, and so much of
#: it is looked at for that, in bytes.
_EXCERPT: Final = 200
_LOOKED_AT: Final = 4000
#: Of an API error's own message so much, in characters: the body is kept as a whole.
_LONGEST_MESSAGE: Final = 1000
#: The tags of a web page, and what is no text in it.
_TAGS: Final = re.compile(r"<(script|style)\b.*?</\1>|<!--.*?-->|<[^<>]*>", re.DOTALL | re.IGNORECASE)


def is_replayed(reply: Reply) -> bool:
    """Say whether a reply's headers mark it as one that was given before, under the same key.

    There is no standard name. Stripe's is `Idempotent-Replayed`, and gateways have their own: what they share
    is that they speak of both, and that a mark which is not `true` or the like is none.
    """
    return any(
        b"idempoten" in name and b"replay" in name and value.strip().lower() in _MARKS
        for name, value in reply.headers
    )


_MARKS: Final = (b"true", b"1", b"yes")


def read_error(reply: Reply, kind: str | None = None, why: str = "") -> Complaint:
    """Read what a reply complains of, whoever made it: the API, a gateway, or something that is neither.

    `kind` and `why` say what is wrong with a success that is none; `why` takes the place of its own words.
    """
    error = _error(reply.body)
    if error is None:
        text = _other_words(reply.body) or _excerpt(reply.body) or "no body"
        location = reply.header(b"location")
        where = f" to {location}" if location else ""
        message, code, type_ = f"HTTP {reply.status}{where}: {text}", None, None
    else:
        code, type_ = None if error.code is None else str(error.code), error.type
        message = error.message or code or type_ or f"HTTP {reply.status}"
    return Complaint(
        " ".join((why or message).split())[:_LONGEST_MESSAGE],
        kind,
        code,
        type_,
        reply.status,
        reply.header(b"x-request-id"),
        _json_or_none(reply.body),
        _wait_s(reply),
        error is not None,
        {"true": True, "false": False}.get((reply.header(b"x-should-retry") or "").strip().lower()),
        is_replayed(reply),
    )


def _error(body: bytes) -> _Error | None:
    try:
        found: _ErrorBody = (_decode_errors(body) if body.lstrip()[:1] == b"[" else [_decode_error(body)])[0]
    except _NOT_JSON:
        return None
    return found.error


class _OtherBody(msgspec.Struct):
    message: Any = None
    detail: Any = None


_decode_other = msgspec.json.Decoder(_OtherBody).decode


def _other_words(body: bytes) -> str:
    """Return what servers of other makes say: vLLM in `message`, FastAPI in `detail`; else nothing."""
    try:
        other = _decode_other(body)
    except _NOT_JSON:
        return ""
    return next((each for each in (other.message, other.detail) if type(each) is str), "")


def _excerpt(body: bytes) -> str:
    """Show the beginning of a body that is no JSON on one line; of a web page, its words."""
    text = body[:_LOOKED_AT].decode("utf-8", "replace")
    if text.lstrip().startswith("<"):
        text = _TAGS.sub(" ", text)
    return " ".join(text.split())[:_EXCERPT]


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


# --- answers


class _Message(msgspec.Struct, gc=False):
    """An object, whatever it holds."""


class _ChatChoice(msgspec.Struct, gc=False):
    finish_reason: Any = None
    message: _Message | None = None

    @property
    def is_empty(self) -> bool:
        return self.message is None


class _TextChoice(msgspec.Struct, gc=False):
    finish_reason: Any = None
    text: str | None = None

    @property
    def is_empty(self) -> bool:
        return self.text is None


class _Billed(msgspec.Struct, gc=False, kw_only=True):
    usage: WireUsage | None = None
    service_tier: str | None = None


class _Chat(_Billed, gc=False):
    choices: Annotated[list[_ChatChoice], msgspec.Meta(min_length=1)]


class _Completion(_Billed, gc=False):
    choices: Annotated[list[_TextChoice], msgspec.Meta(min_length=1)]


class _Response(_Billed, gc=False):
    status: str | None = None
    output: list[msgspec.Raw] | None = None
    incomplete_details: Any = None
    error: Any = None


class _Embedding(msgspec.Struct, gc=False):
    embedding: msgspec.Raw


class _Embeddings(_Billed, gc=False):
    data: list[_Embedding]


class _Moderations(_Billed, gc=False):
    results: Annotated[list[_Message], msgspec.Meta(min_length=1)]


_Success: TypeAlias = _Chat | _Completion | _Response | _Embeddings | _Moderations

#: What a success must hold, per endpoint: decoding checks the whole of it and builds only these few fields.
_DECODERS: Mapping[str, msgspec.json.Decoder[Any]] = {
    "/v1/chat/completions": msgspec.json.Decoder(_Chat),
    "/v1/completions": msgspec.json.Decoder(_Completion),
    "/v1/responses": msgspec.json.Decoder(_Response),
    "/v1/embeddings": msgspec.json.Decoder(_Embeddings),
    "/v1/moderations": msgspec.json.Decoder(_Moderations),
}


class _NoAnswerError(Exception):
    """A success does not hold an answer: what kind of reply it is, and why."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind = kind


def read_answer(request: Request, reply: Reply) -> Answer | Complaint:
    """Read a success; where it holds no whole answer, say what it holds instead."""
    # Judged as it came: without its line breaks a body that is cut or broken could pass for a whole one.
    body = reply.body
    try:
        if not body.isascii():
            body.decode()
        success = _decode(request.path, body)
        finish = _finish(request, success)
    except _NoAnswerError as error:
        return read_error(reply, error.kind, str(error))
    except _NOT_JSON as error:
        said = read_error(reply, "error")
        if said.is_api_error:
            return said
        text = _excerpt(body)
        return read_error(reply, "invalid", f"{error}; it begins: {text}" if text else "it is empty")
    if isinstance(success.usage, WireUsage):
        usage = success.usage.normalise(success.service_tier)
    else:
        # Moderations report no usage, and none is billed.
        usage = Usage() if isinstance(success, _Moderations) else None
    return Answer(_one_line(body), usage, finish)


def _decode(path: str, body: bytes) -> _Success:
    decode = _DECODERS[path].decode
    success: _Success
    try:
        success = decode(body)
    except msgspec.ValidationError:
        # A paid answer is not lost over a field that only the bill wants.
        fields = _decode_fields(body)
        fields.pop("usage", None)
        fields.pop("service_tier", None)
        success = decode(msgspec.json.encode(fields))
    return success


def _finish(request: Request, success: _Success) -> Finish | None:
    """Say why an answer ended early, if it did; `_NoAnswerError` where it lacks what its endpoint gives."""
    if isinstance(success, _Chat | _Completion):
        return _finish_of_choices(success.choices)
    if isinstance(success, _Response):
        return _finish_of_response(success)
    if isinstance(success, _Embeddings):
        _check_embeddings(request, success.data)
    return None


def _finish_of_choices(choices: Sequence[_ChatChoice | _TextChoice]) -> Finish | None:
    finish: Finish | None = None
    for choice in choices:
        reason = choice.finish_reason
        if reason == "content_filter":
            finish = "content_filter"
        elif reason == "error":
            raise _NoAnswerError("error", "a choice that ended in an error")
        elif choice.is_empty:
            raise _NoAnswerError("invalid", "a choice without its message or text")
        elif reason == "length" and finish is None:
            finish = "length"
    return finish


def _finish_of_response(response: _Response) -> Finish | None:
    if response.status in ("failed", "cancelled"):
        error = response.error if type(response.error) is dict else {}
        said = error.get("message") or error.get("code") or "it does not say why"
        raise _NoAnswerError("failed", f"its status is {response.status}: {said}")
    if response.status in ("queued", "in_progress"):
        raise _NoAnswerError("unfinished", f"its status is {response.status}")
    if response.output is None:
        if type(response.error) is dict:
            raise _NoAnswerError("error", str(response.error.get("message") or "it does not say which"))
        raise _NoAnswerError("invalid", "it has no output")
    if response.status != "incomplete":
        return None
    details = response.incomplete_details
    filtered = type(details) is dict and details.get("reason") == "content_filter"
    return "content_filter" if filtered else "length"


class _Inputs(msgspec.Struct, gc=False):
    input: str | list[Any]


_decode_inputs = msgspec.json.Decoder(_Inputs).decode


def _check_embeddings(request: Request, data: list[_Embedding]) -> None:
    """Make sure that there is one vector for each input: a list of numbers is one input, in token ids."""
    try:
        given: Any = _decode_inputs(request.body).input
    except msgspec.ValidationError:
        given = None  # a form of input that only this server knows
    count = len(given) if type(given) is list and given and type(given[0]) is not int else 1
    if len(data) != count and given is not None:
        raise _NoAnswerError("invalid", f"{len(data)} embeddings for {count} inputs")
    if not all(_is_vector(each.embedding) for each in data):
        raise _NoAnswerError("invalid", "an embedding without numbers")


def _is_vector(raw: msgspec.Raw) -> bool:
    """Say whether it can be one, by how it begins: an array of numbers, or base64."""
    start = bytes(memoryview(raw)[:64]).replace(b" ", b"")
    return start[:1] in (b"[", b'"') and start[1:2] not in (b"]", b'"', b"[", b"n", b"{", b"")
