"""One line of the job file: what it asks for, or why it can't be a request."""

from hashlib import blake2b
from typing import Any

import msgspec
import orjson

from batcher.request import Rejected, Row

#: Endpoint -> the field that its body can't be without.
ENDPOINTS = {
    "/v1/chat/completions": "messages",
    "/v1/responses": "input",
    "/v1/embeddings": "input",
    "/v1/moderations": "input",
    "/v1/completions": "prompt",
}

#: A responses body may take its input from a stored prompt or an earlier response instead.
_INSTEAD_OF_INPUT = ("prompt", "previous_response_id", "conversation")

#: Local servers (llama.cpp, LM Studio) take this output limit for none.
_NO_LIMIT = -1

#: Fields that only a responses body has.
_RESPONSES_ONLY = frozenset(
    {"instructions", "max_output_tokens", "text", "reasoning", "store", *_INSTEAD_OF_INPUT}
)
#: Fields that only an embeddings body has.
_EMBEDDINGS_ONLY = frozenset({"dimensions", "encoding_format"})


class Draft(msgspec.Struct, frozen=True, gc=False):
    """A line that can be a request; it has no key yet, since that may depend on the lines before it."""

    seq: int
    custom_id: str
    #: False for a bare body, whose custom_id only says where it stands.
    named: bool
    url: str
    model: str
    #: The parsed body, and the bytes that are sent.
    fields: dict[str, Any]
    body: bytes

    def digest(self) -> bytes:
        """Hash what the row asks for: 16 bytes of the url and the body, and of its name if it has one."""
        name = self.custom_id if self.named else None
        identity = orjson.dumps([name, "POST", self.url])
        return blake2b(identity + self.body, digest_size=16).digest()


class _RefusedError(Exception):
    """Why a line is rejected."""


def parse(line: bytes, seq: int) -> Draft | Rejected:
    """Read one line, in the OpenAI Batch input form or as a bare request body."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return rejected(line, seq, f"not valid JSON: {_fault(line, error)}{_looks_like(line, seq)}")
    try:
        if type(value) is not dict:
            message = f"{_kind(value)} where a request object is expected{_looks_like(line, seq)}"
            raise _RefusedError(message)
        return _batch_form(value, seq) if "body" in value else _bare(value, seq)
    except _RefusedError as refusal:
        return rejected(line, seq, str(refusal), value)


def rejected(line: bytes, seq: int, why: str, value: object = None) -> Rejected:
    """Make the rejection of a line; its key is of the line and its place: nothing is ever sent for it."""
    name = value.get("custom_id") if type(value) is dict else None
    key = blake2b(b"rejected %d %b" % (seq, line), digest_size=16).digest()
    row = Row(seq, key, name if type(name) is str and name else f"row-{seq}")
    return Rejected(row, f"line {seq}: {why}", line)


def _batch_form(value: dict[str, Any], seq: int) -> Draft:
    custom_id, body = value.get("custom_id"), value["body"]
    if type(custom_id) is not str or not custom_id:
        message = "custom_id is missing" if custom_id is None else "custom_id must be a string, and not empty"
        raise _RefusedError(message)
    if value.get("method", "POST") != "POST":
        message = f"method must be POST, not {_show(value['method'])}"
        raise _RefusedError(message)
    if type(body) is not dict:
        message = f"body must be an object, not {_kind(body)}"
        raise _RefusedError(message)
    url = value.get("url")
    return _draft(seq, custom_id, True, _url_of(body) if url is None else url, body)


def _bare(body: dict[str, Any], seq: int) -> Draft:
    return _draft(seq, f"row-{seq}", False, _url_of(body), body)


def _draft(  # noqa: C901  every row comes through: a loop over options would double what this costs
    seq: int, custom_id: str, named: bool, url: str, body: dict[str, Any]
) -> Draft:
    needed = ENDPOINTS.get(url) if type(url) is str else None
    if needed is None:
        raise _RefusedError(_no_endpoint(url))
    model = body.get("model")
    if type(model) is not str or not model:
        message = "model is missing" if model is None else "model must be a string, and not empty"
        raise _RefusedError(message)
    given = body.get(needed)
    if needed == "messages" and type(given) is list and given:
        for item in given:
            if type(item) is not dict:
                message = f"messages must be an array of objects, and holds {_kind(item)}"
                raise _RefusedError(message)
    elif type(given) is not str or needed == "messages":
        _check_content(url, needed, given, body)
    if "max_completion_tokens" in body and not (
        type(limit := body["max_completion_tokens"]) is int and limit >= 1
    ):
        _check_output_limit("max_completion_tokens", limit, url)
    if "max_tokens" in body and not (type(limit := body["max_tokens"]) is int and limit >= 1):
        _check_output_limit("max_tokens", limit, url)
    if "max_output_tokens" in body and not (type(limit := body["max_output_tokens"]) is int and limit >= 1):
        _check_output_limit("max_output_tokens", limit, url)
    if "n" in body:
        _check_whole("n", body["n"], 1)
    if "stream" in body or "background" in body:
        _check_off(body)
    try:
        sent = orjson.dumps(body)
    except orjson.JSONEncodeError as error:
        message = "body is nested too deeply to be written again"
        raise _RefusedError(message) from error
    return Draft(seq, custom_id, named, url, model, body, sent)


def _check_content(url: str, needed: str, given: object, body: dict[str, Any]) -> None:
    """Refuse what no server can answer; whether a text or a part of it will do is for the server to say."""
    if needed not in body or (given is None and url == "/v1/responses"):
        if url != "/v1/responses" or not any(name in body for name in _INSTEAD_OF_INPUT):
            message = f"{needed} is missing: {url} needs it"
            raise _RefusedError(message)
    elif needed == "messages":
        what = "an empty one" if given == [] else _kind(given)
        message = f"messages must be an array of objects, not {what}"
        raise _RefusedError(message)
    elif type(given) is not list and not (given is None and needed == "prompt"):
        # Without a prompt a completion begins a text of its own.
        message = f"{needed} must be a string or an array, not {_kind(given)}"
        raise _RefusedError(message)


def _check_off(body: dict[str, Any]) -> None:
    for name in ("stream", "background"):
        if body.get(name):
            message = f'"{name}": true has no place in a batch: leave it out'
            raise _RefusedError(message)


def _check_output_limit(name: str, value: object, url: str) -> None:
    # In completions, with `echo`, 0 asks how likely the prompt is.
    if value != _NO_LIMIT and not (url == "/v1/completions" and value == 0 and type(value) is int):
        _check_whole(name, value, 1)


def _check_whole(name: str, value: object, least: int) -> None:
    """Refuse what is neither null nor a whole number; many servers take 16.0 for one."""
    if value is None:
        return
    if not isinstance(value, int | float) or type(value) is bool or value < least or value % 1:
        message = f"{name} must be a whole number, at least {least}, not {_show(value)}"
        raise _RefusedError(message)


def _no_endpoint(url: object) -> str:
    message = f"url must be one of {', '.join(ENDPOINTS)}, not {_show(url)}"
    if type(url) is not str:
        return message
    # Without its /v1, with a slash at its end, or with the server's address.
    path = f"/{url.strip('/')}"
    meant = [known for known in ENDPOINTS if path.endswith(known.removeprefix("/v1"))]
    return f"{message}: did you mean {meant[0]}?" if meant else message


def _fault(line: bytes, error: orjson.JSONDecodeError) -> str:
    """Say what is wrong with a line's JSON, and where."""
    try:
        line.decode()
    except UnicodeDecodeError as undecodable:
        return f"it is not UTF-8 at byte {undecodable.start + 1}"
    return f"{error.msg} at column {error.colno}"


def _looks_like(line: bytes, seq: int) -> str:
    """Say what a whole file looks like that begins with no request: the same is wrong with every line."""
    if seq != 1:
        return ""
    start = line[:100]
    if start.startswith(b"["):
        what = "one JSON array"
    elif b"\0" in start:
        what = "UTF-16, or a binary file"
    elif start.startswith(b"{"):
        if line != b"{":
            return ""
        what = "JSON over several lines"
    else:
        what = "something else, such as CSV"
    return f"; a job file must be JSON Lines in UTF-8, one object per line, and this looks like {what}"


def _url_of(body: dict[str, Any]) -> str:
    """Tell the endpoint by the shape of a body."""
    if "messages" in body:
        return "/v1/chat/completions"
    if "input" in body:
        return _url_of_input(body)
    if "prompt" in body and type(body["prompt"]) is not dict:
        return "/v1/completions"
    if not _RESPONSES_ONLY.isdisjoint(body):
        return "/v1/responses"
    message = "neither a Batch line (custom_id, url, body) nor a request body (messages, input or prompt)"
    raise _RefusedError(message)


def _url_of_input(body: dict[str, Any]) -> str:
    if not _RESPONSES_ONLY.isdisjoint(body):
        return "/v1/responses"
    given, model = body["input"], str(body.get("model"))
    if "moderation" in model:
        return "/v1/moderations"
    # Responses take a string or a list of items; only embeddings take a list of strings or of token ids.
    plain_list = type(given) is list and bool(given) and type(given[0]) is not dict
    if plain_list or "embed" in model or not _EMBEDDINGS_ONLY.isdisjoint(body):
        return "/v1/embeddings"
    return "/v1/responses"


def _kind(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _show(value: object) -> str:
    try:
        text = orjson.dumps(value).decode()
    except orjson.JSONEncodeError:  # nested too deeply
        return _kind(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
