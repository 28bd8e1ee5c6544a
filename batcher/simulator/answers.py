"""The answers, written as bytes: everything in them follows from the request's digest and what it asked.

A token of an answer is a word: an answer that is longer than its limit is cut between words.
"""

import base64
import math
from array import array
from collections.abc import Callable
from hashlib import shake_128

import orjson

from batcher.simulator.ledger import Usage
from batcher.simulator.reading import Asked
from batcher.simulator.words import Voice

#: Every answer was created at this moment: 2025-01-01T00:00:00Z.
CREATED = 1_735_689_600

_MODELS = (
    "gpt-5-mini",
    "gpt-5-nano",
    "gpt-4.1-mini",
    "gpt-4o-mini",
    "text-embedding-3-large",
    "text-embedding-3-small",
    "omni-moderation-latest",
)  # fmt: skip

_CHAT = (
    b'{"id":"chatcmpl-%b","object":"chat.completion","created":%d,"model":%b,"choices":[{"index":0,"message":'
    b'{"role":"assistant","content":%b,"refusal":null,"annotations":[]},"logprobs":null,"finish_reason":"%b"}],'
    b'"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,'
    b'"prompt_tokens_details":{"cached_tokens":%d,"audio_tokens":0},'
    b'"completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":0,'
    b'"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}},'
    b'"service_tier":"default","system_fingerprint":"fp_simulator"}'
)
_RESPONSE = (
    b'{"id":"resp_%b","object":"response","created_at":%d,"status":"%b","background":false,"error":null,'
    b'"incomplete_details":%b,"instructions":null,"max_output_tokens":%b,"model":%b,"output":[{"id":"msg_%b",'
    b'"type":"message","status":"%b","role":"assistant","content":[{"type":"output_text","text":%b,'
    b'"annotations":[],"logprobs":[]}]}],"parallel_tool_calls":true,"previous_response_id":null,'
    b'"service_tier":"default","store":false,"temperature":1.0,"text":{"format":{"type":"text"}},'
    b'"tool_choice":"auto","tools":[],"top_p":1.0,"truncation":"disabled",'
    b'"usage":{"input_tokens":%d,"input_tokens_details":{"cached_tokens":%d},"output_tokens":%d,'
    b'"output_tokens_details":{"reasoning_tokens":0},"total_tokens":%d},"user":null,"metadata":{}}'
)
_EMBEDDING = b'{"object":"embedding","index":%d,"embedding":%b}'
_EMBEDDINGS = b'{"object":"list","data":[%b],"model":%b,"usage":{"prompt_tokens":%d,"total_tokens":%d}}'
_COMPLETION = (
    b'{"id":"cmpl-%b","object":"text_completion","created":%d,"model":%b,"choices":[%b],'
    b'"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,'
    b'"prompt_tokens_details":{"cached_tokens":%d},"completion_tokens_details":{"reasoning_tokens":0}}}'
)
_CHOICE = b'{"text":%b,"index":%d,"logprobs":null,"finish_reason":"%b"}'
_CATEGORIES = (
    "harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent",
    "self-harm", "self-harm/instructions", "self-harm/intent", "sexual", "sexual/minors",
    "violence", "violence/graphic",
)  # fmt: skip


class Answers:
    """Writes the body that answers a request, and what it is billed for."""

    def __init__(self, voice: Voice, cached_share: float, embedding_dimensions: int) -> None:
        self._voice = voice
        self._cached_share = cached_share
        self._dimensions = embedding_dimensions
        self._writers: dict[str, Callable[[Asked, bytes], tuple[bytes, Usage]]] = {
            "/v1/chat/completions": self._chat,
            "/v1/responses": self._response,
            "/v1/embeddings": self._embeddings,
            "/v1/moderations": self._moderation,
            "/v1/completions": self._completion,
        }

    def write(self, path: str, asked: Asked, digest: bytes) -> tuple[bytes, Usage]:
        """Answer a request: the same path, request and digest give the same bytes."""
        return self._writers[path](asked, digest)

    def _said(self, asked: Asked, digest: bytes, text: str) -> tuple[bytes, int, bool]:
        """Return the answer as JSON text, its tokens, and whether it was cut."""
        said = self._voice(digest, text)
        tokens = len(said.words)
        if asked.limit is None or tokens <= asked.limit:
            return said.text, tokens, False
        return orjson.dumps(" ".join(said.words[: asked.limit])), asked.limit, True

    def _usage(self, asked: Asked, completion_tokens: int) -> Usage:
        cached = int(asked.prompt_tokens * self._cached_share) if self._cached_share else 0
        return Usage(asked.prompt_tokens, completion_tokens, cached)

    def _chat(self, asked: Asked, digest: bytes) -> tuple[bytes, Usage]:
        text, tokens, cut = self._said(asked, digest, asked.texts[0])
        usage = self._usage(asked, tokens)
        body = _CHAT % (
            digest.hex().encode(), CREATED, orjson.dumps(asked.model), text, b"length" if cut else b"stop",
            usage.prompt, tokens, usage.prompt + tokens, usage.cached,
        )  # fmt: skip
        return body, usage

    def _response(self, asked: Asked, digest: bytes) -> tuple[bytes, Usage]:
        text, tokens, cut = self._said(asked, digest, asked.texts[0])
        usage = self._usage(asked, tokens)
        status = b"incomplete" if cut else b"completed"
        name = digest.hex().encode()
        body = _RESPONSE % (
            name, CREATED, status, b'{"reason":"max_output_tokens"}' if cut else b"null",
            orjson.dumps(asked.limit), orjson.dumps(asked.model), name, status, text,
            usage.prompt, usage.cached, tokens, usage.prompt + tokens,
        )  # fmt: skip
        return body, usage

    def _embeddings(self, asked: Asked, digest: bytes) -> tuple[bytes, Usage]:  # noqa: ARG002  a writer
        dimensions = asked.dimensions or self._dimensions
        vectors = (_vector(asked.model, text, dimensions) for text in asked.texts)
        if asked.base64:
            written = [b'"%b"' % base64.b64encode(vector.tobytes()) for vector in vectors]
        else:
            written = [orjson.dumps(vector.tolist()) for vector in vectors]
        data = b",".join([_EMBEDDING % item for item in enumerate(written)])
        # Embeddings have no cached price: usage has no details to say so.
        usage = Usage(asked.prompt_tokens, 0, 0)
        return _EMBEDDINGS % (data, orjson.dumps(asked.model), usage.prompt, usage.prompt), usage

    def _moderation(self, asked: Asked, digest: bytes) -> tuple[bytes, Usage]:
        results = []
        for text in asked.texts:
            scores = shake_128(text.encode()).digest(len(_CATEGORIES))
            results.append(
                {
                    "flagged": False,
                    "categories": dict.fromkeys(_CATEGORIES, False),
                    "category_scores": {
                        name: score / 2560 for name, score in zip(_CATEGORIES, scores, strict=True)
                    },
                    "category_applied_input_types": {name: ["text"] for name in _CATEGORIES},
                }
            )
        body = orjson.dumps({"id": f"modr-{digest.hex()}", "model": asked.model, "results": results})
        return body, Usage(0, 0, 0)

    def _completion(self, asked: Asked, digest: bytes) -> tuple[bytes, Usage]:
        choices, tokens = [], 0
        for index, prompt in enumerate(asked.texts):
            text, words, cut = self._said(asked, digest[index % 15 :], prompt)
            choices.append(_CHOICE % (text, index, b"length" if cut else b"stop"))
            tokens += words
        usage = self._usage(asked, tokens)
        body = _COMPLETION % (
            digest.hex().encode(), CREATED, orjson.dumps(asked.model), b",".join(choices),
            usage.prompt, tokens, usage.prompt + tokens, usage.cached,
        )  # fmt: skip
        return body, usage


def _vector(model: str, text: str, dimensions: int) -> "array[float]":
    """Return a vector of length 1 in 32-bit floats: the same for the same text, in whatever pack it comes."""
    name = f"{model}\n{text}".encode()
    numbers = array("h", shake_128(name).digest(2 * dimensions))
    # Half a step aside, so that no vector is all zeros.
    length = math.sqrt(sum((number + 0.5) ** 2 for number in numbers))
    return array("f", [(number + 0.5) / length for number in numbers])


def model_list() -> bytes:
    """Answer `GET /v1/models`: a few known names; requests may use any."""
    return orjson.dumps({"object": "list", "data": [_model(name) for name in _MODELS]})


def model_card(name: str) -> bytes:
    """Answer `GET /v1/models/NAME`: every name is a model."""
    return orjson.dumps(_model(name))


def _model(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": CREATED, "owned_by": "simulator"}
