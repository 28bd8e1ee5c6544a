"""The cheap estimate for admission: what a server will charge to a rate limit, and what bounds a request.

    tokens = max(ceil(characters / 4), ceil(UTF-8 bytes x ratio)) + images + output limit x choices

of the content. Characters/4 is what OpenAI itself admits by, and the rate-limits guide says both "the maximum
of" it and the output limit, and "plus": the sum holds under either (`FACTS.md`, "Rate limits"). The ratio is
what answers have shown a byte to be worth (`batcher.tokens.ratio`): servers that count real tokens find more
than characters/4 in Chinese, in JSON and in hexadecimal. Content is what people write: text, names,
instructions, tool definitions and response formats. Roles, ids and the JSON around them are not counted, and
audio and files are not either: what they cost takes more than a look. Images in chats and responses are
charged by OpenAI's formulas (`batcher.tokens.images`); for moderations none is published. A request without
an output limit is charged 16 for each choice: the API's historical default for `max_tokens`, and about what
OpenAI's own cookbook reserves (`api_request_parallel_processor.py`: 15).

Bodies come from users' files: a wrong type anywhere counts for nothing and raises nothing. The server
will say so.
"""

from collections.abc import Callable, Iterable
from math import ceil
from typing import Final

import msgspec

from batcher.tokens.images import image_tokens
from batcher.tokens.ratio import STARTING_RATIO

#: Reserved for the output of each choice where no limit is set. In legacy completions it is the limit.
DEFAULT_OUTPUT: Final = 16

#: A limit beyond this is as good as this: sums of them still fit 64 bits.
_MOST_OUTPUT: Final = 2**53


class Estimate(msgspec.Struct, frozen=True, gc=False):
    """What can be told from a body at a glance."""

    #: Tokens to admit: the estimated input, and the output limit (or its default).
    tokens: int
    #: The most output there can be, all choices together; None where the request sets no limit.
    output_limit: int | None
    #: False where more can be charged than the text in the body and the output: images, files, audio, hosted
    #: tools, stored prompts and conversations, predictions, 12-hour cache writes.
    bounded_input: bool
    #: UTF-8 bytes of the text that the ratio was applied to; 0 where the input is more than that text: token
    #: ids, and whatever takes the bound away. Of the tokens of such an answer nothing can be learned.
    input_bytes: int


class _Tally:
    """The count so far."""

    __slots__ = ("body", "bounded", "characters", "size", "tokens")

    def __init__(self, body: dict[str, object], characters: int = 0, size: int = 0) -> None:
        self.body = body
        self.characters = characters
        #: In bytes.
        self.size = size
        #: Of what is not text.
        self.tokens = 0
        self.bounded = True

    def add(self, text: str) -> None:
        self.characters += len(text)
        self.size += len(text) if text.isascii() else _utf8_bytes(text)

    def estimate(self, ratio: float, output_limit: int | None, reserve: int) -> Estimate:
        tokens = _text_tokens(self.characters, self.size, ratio) + self.tokens + reserve
        is_text = self.bounded and not self.tokens
        return Estimate(tokens, output_limit, self.bounded, self.size if is_text else 0)


def estimate(path: str, body: dict[str, object], ratio: float = STARTING_RATIO) -> Estimate:
    """Estimate a request from its path (`/v1/chat/completions`) and its parsed body.

    `ratio` is tokens per byte of text (`Ratios.of` the model).
    """
    reader = _READERS.get(path)
    if reader is not None:
        return reader(body, ratio)
    tally = _Tally(body)
    tally.bounded = False
    _add_all_text(tally, body)
    return tally.estimate(ratio, None, DEFAULT_OUTPUT)


def _utf8_bytes(text: str) -> int:
    """Count the bytes of a text; half of a surrogate pair has no encoding, and is no reason to fail."""
    return len(text.encode("utf-8", "surrogatepass"))


def _text_tokens(characters: int, size: int, ratio: float) -> int:
    least, learned = (characters + 3) // 4, size * ratio
    return least if learned <= least else ceil(learned)


def _chat(body: dict[str, object], ratio: float) -> Estimate:
    characters = beyond = 0
    unusual: list[object] = []
    messages = body.get("messages")
    if type(messages) is list:
        for message in messages:
            if type(message) is dict and len(message) == 2 and type(content := message.get("content")) is str:
                # A role and a text: this is the hot path.
                characters += len(content)
                if not content.isascii():
                    beyond += _utf8_bytes(content) - len(content)
            else:
                unusual.append(message)
    limit = body.get("max_completion_tokens")
    older = body.get("max_tokens")
    if limit is None or (type(older) is int and (type(limit) is not int or older > limit)):
        limit = older
    if unusual or not _CHAT_EXTRAS.isdisjoint(body):
        tally = _Tally(body, characters, characters + beyond)
        for message in unusual:
            _add_message(tally, message)
        _add_extras(tally, body, _CHAT_EXTRAS)
        return _generating(tally, ratio, limit, _at_least_one(body.get("n")))
    if type(limit) is int and 0 <= limit < _MOST_OUTPUT:
        size = characters + beyond
        return Estimate(_text_tokens(characters, size, ratio) + limit, limit, True, size)
    return _generating(_Tally(body, characters, characters + beyond), ratio, limit, 1)


def _responses(body: dict[str, object], ratio: float) -> Estimate:
    tally = _Tally(body)
    given = body.get("input")
    if type(given) is str:
        tally.add(given)
    elif type(given) is list:
        for item in given:
            _add_item(tally, item)
    instructions = body.get("instructions")
    if type(instructions) is str:
        tally.add(instructions)
    if not _RESPONSES_EXTRAS.isdisjoint(body):
        _add_extras(tally, body, _RESPONSES_EXTRAS)
    return _generating(tally, ratio, body.get("max_output_tokens"), 1)


def _completions(body: dict[str, object], ratio: float) -> Estimate:
    """Read legacy completions: every prompt of a list is completed, and `best_of` choices make `n`."""
    tally = _Tally(body)
    prompts = _add_inputs(tally, body.get("prompt"))
    suffix = body.get("suffix")
    if type(suffix) is str:
        tally.add(suffix)
    choices = prompts * max(_at_least_one(body.get("n")), _at_least_one(body.get("best_of")))
    limit = body.get("max_tokens")
    return _generating(tally, ratio, DEFAULT_OUTPUT if limit is None else limit, choices)


def _without_output(body: dict[str, object], ratio: float) -> Estimate:
    """Embeddings and moderations."""
    tally = _Tally(body)
    _add_inputs(tally, body.get("input"))
    return tally.estimate(ratio, 0, 0)


def _generating(tally: _Tally, ratio: float, limit: object, choices: int) -> Estimate:
    if type(limit) is int and limit >= 0:
        most = min(limit * choices, _MOST_OUTPUT)
        return tally.estimate(ratio, most, most)
    return tally.estimate(ratio, None, min(DEFAULT_OUTPUT * choices, _MOST_OUTPUT))


def _at_least_one(value: object) -> int:
    return value if type(value) is int and value > 1 else 1


def _add_inputs(tally: _Tally, given: object) -> int:
    """Count a string, an array of token ids, or a list of either; return how many inputs that makes."""
    if type(given) is str:
        tally.add(given)
        return 1
    if type(given) is not list or not given:
        return 1
    if type(given[0]) is int:
        tally.tokens += len(given)
        return 1
    for each in given:
        if type(each) is str:
            tally.add(each)
        elif type(each) is list:
            tally.tokens += len(each)
        else:
            _add_part(tally, each)
    return len(given)


def _add_message(tally: _Tally, message: object) -> None:
    if type(message) is not dict:
        return
    content = message.get("content")
    if type(content) is str:
        tally.add(content)
    else:
        _add_parts(tally, content)
    for key, value in message.items():
        if key in _MESSAGE_EXTRAS:
            _add_all_text(tally, value)
        elif key == "audio" and value is not None:
            tally.bounded = False


def _add_item(tally: _Tally, item: object) -> None:
    """Count one item of a response's input: a message, or a call of a function and its output."""
    if type(item) is not dict:
        return
    kind = item.get("type")
    if type(kind) is not str or kind == "message":
        if "id" in item and "content" not in item:
            tally.bounded = False  # a reference to an item that the server keeps
        content = item.get("content")
        if type(content) is str:
            tally.add(content)
        else:
            _add_parts(tally, content)
    elif kind in _CALLS:
        for key in ("name", "arguments", "input", "output"):
            value = item.get(key)
            if type(value) is str:
                tally.add(value)
            else:
                _add_parts(tally, value)
    else:
        tally.bounded = False


def _add_parts(tally: _Tally, parts: object) -> None:
    if type(parts) is list:
        for part in parts:
            if type(part) is dict and part.get("type") in ("image_url", "input_image"):
                _add_image(tally, part)
            else:
                _add_part(tally, part)


def _add_image(tally: _Tally, part: dict[str, object]) -> None:
    """Charge an image: of a chat, `url` and `detail` in `image_url`; of a response, both beside it."""
    tally.bounded = False
    model, image = tally.body.get("model"), part.get("image_url")
    if type(image) is dict:
        tally.tokens += image_tokens(model, image.get("detail"), image.get("url"))
    else:
        tally.tokens += image_tokens(model, part.get("detail"), image)


def _add_part(tally: _Tally, part: object) -> None:
    if type(part) is str:
        tally.add(part)
        return
    if type(part) is not dict:
        return
    kind = part.get("type")
    if type(kind) is not str or kind not in _TEXT_PARTS:
        tally.bounded = False
        return
    text = part.get("refusal" if kind == "refusal" else "text")
    if type(text) is str:
        tally.add(text)
    mark = part.get("prompt_cache_breakpoint")
    if type(mark) is dict and mark.get("ttl") not in (None, "30m"):
        tally.bounded = False


def _add_extras(tally: _Tally, body: dict[str, object], extras: Iterable[str]) -> None:
    """Count, or take the bound away for, the keys of a body that most bodies do not have."""
    for key in extras:
        value = body.get(key)
        if value is None or key == "n" or (key == "modalities" and value == ["text"]):
            continue
        if key in _COUNTED:
            _add_all_text(tally, value)
            if key == "tools" and not _all_own_tools(value):
                tally.bounded = False
        elif key == "reasoning":
            # "pro" thinks several times; whether the output limit holds for all of it is not documented
            tally.bounded &= type(value) is not dict or value.get("mode") in (None, "standard")
        else:
            tally.bounded = False


def _all_own_tools(tools: object) -> bool:
    """Tell whether all tools run at the client: hosted ones bring in what they find, and cost fees."""
    return type(tools) is list and all(
        type(tool) is dict and tool.get("type") in ("function", "custom") for tool in tools
    )


def _add_all_text(tally: _Tally, value: object) -> None:
    """Count every string in a value, keys included. Without recursion: files can nest deeply."""
    left = [value]
    while left:
        value = left.pop()
        if type(value) is str:
            tally.add(value)
        elif type(value) is list:
            left += value
        elif type(value) is dict:
            left += value
            left += value.values()


_TEXT_PARTS: Final = frozenset({"text", "input_text", "output_text", "refusal"})
_CALLS: Final = frozenset(
    {"function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output"}
)
_MESSAGE_EXTRAS: Final = frozenset({"name", "tool_calls", "function_call", "refusal"})
#: Keys of a body whose text becomes part of the input.
_COUNTED: Final = frozenset({"tools", "functions", "response_format", "text"})
#: Keys that most bodies do not have, and that change what is counted.
_CHAT_EXTRAS: Final = frozenset(
    {"n", "tools", "functions", "response_format", "audio", "modalities", "prediction", "web_search_options"}
)
_RESPONSES_EXTRAS: Final = frozenset(
    {
        "tools",
        "text",
        "reasoning",
        "previous_response_id",
        "conversation",
        "prompt",
        "image",
        "context_management",
        "access_programs",
    }
)
_READERS: Final[dict[str, Callable[[dict[str, object], float], Estimate]]] = {
    "/v1/chat/completions": _chat,
    "/v1/responses": _responses,
    "/v1/completions": _completions,
    "/v1/embeddings": _without_output,
    "/v1/moderations": _without_output,
}
