"""What a request asks for: a body becomes an `Asked`, or a `BadRequest` that says what is wrong with it.

Token counts are estimates of the simulator's own: a token is four characters, rounded up. What a request
is charged at admission is characters/4 of its content plus its output limit, as OpenAI's rate-limit guide
describes; what it is billed adds 3 per message (OpenAI's cookbook) and counts at least 1 for each text.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import msgspec
import orjson

_CHARS_PER_TOKEN = 4
_MESSAGE_OVERHEAD_TOKENS = 3
#: OpenAI's own limits on one embedding request.
_MAX_INPUTS = 2048
_MAX_INPUT_TOKENS = 300_000
_MAX_DIMENSIONS = 4096

#: Fields that would change the shape of the answer -> the value that does not.
_UNSUPPORTED: dict[str, object] = {"stream": False, "background": False, "n": 1, "best_of": 1}

Body: TypeAlias = dict[str, Any]


class BadRequest(Exception):  # noqa: N818  the API's name for it
    """The request can't be answered: the message says why, `param` which field is to blame."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class Asked(msgspec.Struct, frozen=True, gc=False):
    """The few things in a body that decide its answer."""

    model: str
    #: Tokens to take from the limits before it is answered.
    charge: int
    #: Tokens that its usage bills as input.
    prompt_tokens: int
    #: Words that each answer may have; None is no limit.
    limit: int | None
    #: One for each answer: the last user text, or the inputs.
    texts: list[str]
    #: Embeddings only: numbers in each vector, None where the request leaves it open.
    dimensions: int | None = None
    #: Embeddings only: written as base64 of 32-bit floats.
    base64: bool = False


def load(body: bytes) -> Body:
    """Parse a body and refuse what no endpoint takes."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"We could not parse the JSON body of your request: {error}") from None
    if type(fields) is not dict:
        raise BadRequest("The JSON body of your request must be an object.")
    model = fields.get("model")
    if type(model) is not str or not model:
        raise BadRequest("you must provide a model parameter", "model", "missing_required_parameter")
    if not _UNSUPPORTED.keys().isdisjoint(fields):
        for name, harmless in _UNSUPPORTED.items():
            if fields.get(name) not in (None, harmless):
                raise BadRequest(f"'{name}' is not supported by the simulator.", name, "unsupported_value")
    return fields


def chat(fields: Body) -> Asked:
    """Read a chat completion."""
    messages = fields.get("messages")
    if type(messages) is not list or not messages:
        raise BadRequest("'messages' must be a list of at least one message.", "messages", "invalid_type")
    limit = _whole(fields, "max_completion_tokens")
    if limit is None:
        limit = _whole(fields, "max_tokens")
    return _conversation(fields["model"], messages, "messages", limit, chars=0, prompt_tokens=0)


def responses(fields: Body) -> Asked:
    """Read a response: its input is one text or a list of items; its instructions are a message more."""
    limit = _whole(fields, "max_output_tokens")
    chars = prompt_tokens = 0
    instructions = fields.get("instructions")
    if type(instructions) is str:
        chars = len(instructions)
        prompt_tokens = _MESSAGE_OVERHEAD_TOKENS + _tokens(chars)
    given = fields.get("input")
    items = [{"role": "user", "content": given}] if type(given) is str else given
    if type(items) is not list or not items:
        raise BadRequest("'input' must be a text, or a list of at least one item.", "input", "invalid_type")
    return _conversation(fields["model"], items, "input", limit, chars=chars, prompt_tokens=prompt_tokens)


def embeddings(fields: Body) -> Asked:
    """Read an embedding request: one input or many, texts or lists of token numbers."""
    texts, sizes = _inputs(fields, "input")
    if len(texts) > _MAX_INPUTS:
        raise BadRequest(f"'input' has {len(texts)} inputs, and at most {_MAX_INPUTS} are allowed.", "input")
    if 0 in sizes:
        raise BadRequest("'$.input' is invalid: an input is empty.", "input", "invalid_value")
    tokens = sum(map(_tokens, sizes))
    if tokens > _MAX_INPUT_TOKENS:
        raise BadRequest(
            f"Requested {tokens} tokens, max {_MAX_INPUT_TOKENS} tokens per request.",
            "input",
            "max_tokens_per_request",
        )
    dimensions = _whole(fields, "dimensions")
    if dimensions is not None and dimensions > _MAX_DIMENSIONS:
        raise BadRequest(f"'dimensions' may be at most {_MAX_DIMENSIONS}.", "dimensions", "invalid_value")
    written = fields.get("encoding_format")
    if written not in (None, "float", "base64"):
        raise BadRequest("'encoding_format' must be 'float' or 'base64'.", "encoding_format", "invalid_value")
    return Asked(fields["model"], _ceil(sum(sizes)), tokens, None, texts, dimensions, written == "base64")


def moderations(fields: Body) -> Asked:
    """Read a moderation: a text, a list of texts, or the parts of one input."""
    given = fields.get("input")
    if type(given) is list and given and type(given[0]) is dict:
        texts = [_text(given, "input")]
        sizes = [len(texts[0])]
    else:
        texts, sizes = _inputs(fields, "input")
    return Asked(fields["model"], _ceil(sum(sizes)), 0, None, texts)


def completions(fields: Body) -> Asked:
    """Read a legacy completion: one prompt or many; 16 tokens each by default, as OpenAI has it."""
    texts, sizes = _inputs(fields, "prompt")
    limit = _whole(fields, "max_tokens")
    if limit is None:
        limit = 16
    charge = _ceil(sum(sizes)) + limit * len(texts)
    return Asked(fields["model"], charge, sum(map(_tokens, sizes)), limit, texts)


#: Path -> how its body is read.
READERS: dict[str, Callable[[Body], Asked]] = {
    "/v1/chat/completions": chat,
    "/v1/responses": responses,
    "/v1/embeddings": embeddings,
    "/v1/moderations": moderations,
    "/v1/completions": completions,
}


def _ceil(chars: int) -> int:
    return -(-chars // _CHARS_PER_TOKEN)


def _tokens(chars: int) -> int:
    return _ceil(chars) or 1


def _whole(fields: Body, name: str) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    if type(value) is not int or value < 1:
        raise BadRequest(f"'{name}' must be a whole number, at least 1.", name, "invalid_value")
    return value


def _conversation(
    model: str, items: list[Any], param: str, limit: int | None, *, chars: int, prompt_tokens: int
) -> Asked:
    last = ""
    for item in items:
        if type(item) is not dict:
            raise BadRequest(f"'{param}' must hold objects.", param, "invalid_type")
        content = item.get("content")
        if content is None:
            content = item.get("output")  # what a tool answered, in the Responses API
        if type(content) is not str:
            content = _text(content, param)
        size = len(content)
        chars += size
        prompt_tokens += _MESSAGE_OVERHEAD_TOKENS + (-(-size // _CHARS_PER_TOKEN) or 1)
        if item.get("role") == "user":
            last = content
    return Asked(model, _ceil(chars) + (limit or 0), prompt_tokens, limit, [last])


def _text(content: object, param: str) -> str:
    """Join the texts of a message's parts; images and the like count nothing."""
    if content is None:
        return ""
    if type(content) is str:
        return content
    if type(content) is not list or not all(type(part) is dict for part in content):
        raise BadRequest(
            f"'{param}' holds content that is neither a text nor a list of parts.", param, "invalid_type"
        )
    return "".join(part["text"] for part in content if type(part.get("text")) is str)


def _inputs(fields: Body, name: str) -> tuple[list[str], list[int]]:
    """Return the inputs as texts, and the characters of each; a token number counts as four."""
    given = fields.get(name)
    if type(given) is str:
        return [given], [len(given)]
    if type(given) is not list or not given:
        raise BadRequest(f"'{name}' must be a text or a list of them, not empty.", name, "invalid_type")
    if type(given[0]) is int:
        given = [given]
    texts, sizes = [], []
    for one in given:
        if type(one) is str:
            texts.append(one)
            sizes.append(len(one))
        elif type(one) is list and all(type(token) is int for token in one):
            texts.append(repr(one))
            sizes.append(len(one) * _CHARS_PER_TOKEN)
        else:
            raise BadRequest(f"'{name}' must hold texts or lists of token numbers.", name, "invalid_type")
    return texts, sizes
