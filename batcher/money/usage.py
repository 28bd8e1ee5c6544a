"""What one reply used, read from whichever shape the endpoint reports it in.

The shapes (`FACTS.md`, "Usage and prices"; openai 3.57 `types/completion_usage.py` and
`types/responses/response_usage.py`): chat and completions say `prompt_tokens` and `completion_tokens`,
responses say `input_tokens` and `output_tokens`, embeddings only `prompt_tokens` and `total_tokens`,
moderations nothing.

A usage that can't be right gives None, "usage unknown", and so an unknown cost: a negative, fractional,
boolean or enormous count, parts that exceed their whole, or a total that is not the sum (some servers
leave reasoning tokens out of the completion, and a bill made from the rest would be too low).
"""

from typing import Any, Final

import msgspec

#: More than this in one request is a fault of the server, not a count (contexts end at 10^7). It also keeps
#: every cost within the 64 bits of an SQLite integer: see `batcher.money.overrides.MOST_USD`.
MOST_TOKENS: Final = 10**8


class Usage(msgspec.Struct, frozen=True, gc=False):
    """The tokens of one reply, by how they are charged."""

    #: All input, the parts below included.
    prompt_tokens: int = 0
    #: The part of the input that was read from the prompt cache.
    cached_tokens: int = 0
    #: The part of the input that was written to the prompt cache; disjoint from the part read.
    cache_write_tokens: int = 0
    #: All output, reasoning and rejected predictions included.
    completion_tokens: int = 0
    #: The part of the input, and of the output, that is audio.
    input_audio_tokens: int = 0
    output_audio_tokens: int = 0
    #: The part of the cache writes that is kept for 12 hours, which costs more than the usual 30 minutes.
    long_cache_write_tokens: int = 0
    #: The service tier that was used, as the reply says it; None where it does not say.
    tier: str | None = None


class _InputDetails(msgspec.Struct, gc=False):
    cached_tokens: Any = None
    cache_write_tokens: Any = None
    audio_tokens: Any = None
    cache_write_tokens_details: Any = None


class _OutputDetails(msgspec.Struct, gc=False):
    audio_tokens: Any = None


class WireUsage(msgspec.Struct, gc=False):
    """The `usage` object as it comes, for a msgspec decoder to fill in.

    Decoding fails only where this or one of its details is neither an object nor null; a count may be
    anything, and `normalise` judges it. A decoder that meets such a failure should decode again with a plain
    object in this place, and ask `read_usage`: an odd usage must not make a paid answer unreadable.
    `gc=False`: what it holds can't be part of a cycle.
    """

    prompt_tokens: Any = None
    completion_tokens: Any = None
    total_tokens: Any = None
    input_tokens: Any = None
    output_tokens: Any = None
    prompt_tokens_details: _InputDetails | None = None
    completion_tokens_details: _OutputDetails | None = None
    input_tokens_details: _InputDetails | None = None
    output_tokens_details: _OutputDetails | None = None

    def normalise(self, tier: object = None) -> Usage | None:
        """Return the usage, charged at `tier` (the reply's `service_tier`), or None if it can't be right."""
        prompt, completion, total = self.prompt_tokens, self.completion_tokens, self.total_tokens
        ins, outs = self.prompt_tokens_details, self.completion_tokens_details
        if completion is None or self.input_tokens is not None or self.output_tokens is not None:
            prompt = _same(prompt, self.input_tokens)
            completion = _same(completion, self.output_tokens)
            if completion is None and total is not None:
                completion = 0  # embeddings: the total says that there is no output
            ins, outs = ins or self.input_tokens_details, outs or self.output_tokens_details
        if type(prompt) is not int or type(completion) is not int:
            return None
        if not (0 <= prompt <= MOST_TOKENS and 0 <= completion <= MOST_TOKENS):
            return None
        if total is not None and (type(total) is not int or total != prompt + completion):
            return None
        if type(tier) is not str:
            tier = None
        if ins is not None or outs is not None:
            return _with_parts(prompt, completion, ins, outs, tier)
        return Usage(prompt, 0, 0, completion, 0, 0, 0, tier)


def read_usage(value: object, tier: object = None) -> Usage | None:
    """Read a `usage` that is already decoded to plain objects; None if it is missing or can't be right."""
    try:
        return msgspec.convert(value, WireUsage).normalise(tier)
    except msgspec.ValidationError:
        return None


def _with_parts(
    prompt: int, completion: int, ins: _InputDetails | None, outs: _OutputDetails | None, tier: str | None
) -> Usage | None:
    """Read the details. A breakdown that can't be right is one that can't be billed: None."""
    cached = written = audio_in = audio_out = long = 0
    if ins is not None:
        cached = ins.cached_tokens or 0
        written = ins.cache_write_tokens or 0
        audio_in = ins.audio_tokens or 0
        if ins.cache_write_tokens_details:
            long = _long_writes(ins.cache_write_tokens_details)
    if outs is not None:
        audio_out = outs.audio_tokens or 0
    if not (type(cached) is type(written) is type(audio_in) is type(audio_out) is type(long) is int):
        return None
    if cached < 0 or written < 0 or audio_in < 0 or audio_out < 0 or long < 0:
        return None
    if cached + written > prompt or audio_in > prompt or audio_out > completion or long > written:
        return None
    return Usage(prompt, cached, written, completion, audio_in, audio_out, long, tier)


def _long_writes(by_lifetime: object) -> Any:  # noqa: ANN401  anything may be on the wire
    return by_lifetime.get("ttl_12h_tokens") or 0 if type(by_lifetime) is dict else -1


def _same(chat: Any, responses: Any) -> Any:  # noqa: ANN401  anything may be on the wire
    """Return the count that either shape gives; -1, which is no count, where they disagree."""
    if responses is None:
        return chat
    return responses if chat is None or chat == responses else -1
