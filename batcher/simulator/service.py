"""A request's life: it arrives, it counts, it is finished. No sockets and no clock: `now` is an argument.

    arrive  is it a request at all, may it be asked, is its key free        -> an answer at once, or Work
    count   faults, limits, the work itself, the bill                       -> Work.answer and Work.ending
    finish  the answer is on its way: its key is free again

Between arriving and counting, and between counting and finishing, the caller lets the latency pass.
"""

import functools
import math
from hashlib import blake2b
from http import HTTPStatus
from urllib.parse import unquote

import msgspec

from batcher.simulator import answers, words
from batcher.simulator.config import Config
from batcher.simulator.faults import Faults, Latency
from batcher.simulator.ledger import Ledger
from batcher.simulator.limits import ModelLimits, Over, whole_ms
from batcher.simulator.reading import READERS, Asked, BadRequest, load

#: How long a 429 that is a fault asks to wait: there is no limit that it could be worked out from.
_FAULT_WAIT_S = 0.02

_STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus
}
_HEAD = b"%bcontent-type: application/json\r\nx-request-id: req_%b\r\n%bcontent-length: %d\r\n\r\n"


def reply(status: int, digest: bytes, body: bytes, lines: bytes = b"") -> bytes:
    """Write a whole reply; `lines` are more header lines, each with its line break."""
    return _HEAD % (_STATUS_LINES[status], digest.hex().encode(), lines, len(body)) + body


class Work(msgspec.Struct, gc=False):
    """A request that is well formed and on its way."""

    path: str
    asked: Asked
    digest: bytes
    #: What the ledger calls it: its idempotency key, or its digest where it sent none.
    name: str | bytes
    #: Its key was answered before.
    replay: bool = False
    #: Its key is marked as under way.
    held: bool = False
    before_s: float = 0.0
    after_s: float = 0.0
    answer: bytes = b""
    #: What becomes of the answer: None (it is sent), `reset` or `cut-off`.
    ending: str | None = None


class Service:
    """Everything that the server knows: limits, faults, keys under way and the ledger."""

    def __init__(self, config: Config) -> None:
        self._config = config
        voice = words.make_voice(config.answers)
        self._answers = answers.Answers(voice, config.cached_share, config.embedding_dimensions)
        self._faults = Faults(config.faults, config.seed)
        self._faulty = any(config.faults.values())
        self._before = Latency(b"before", config.latency_before_ms, config.seed)
        self._after = Latency(b"after", config.latency_after_ms, config.seed)
        self._slow = config.latency_before_ms[1] > 0 or config.latency_after_ms[1] > 0
        self._ledger = Ledger()
        self._limits: dict[str, ModelLimits] = {}
        self._under_way: dict[str, bytes] = {}
        self._honour = config.idempotency == "honour"
        self._limited = bool(config.rpm or config.tpm)
        self._credential = f"Bearer {config.api_key}".encode() if config.api_key else None

    def arrive(
        self, method: str, target: bytes, key: str | None, credential: bytes | None, body: bytes
    ) -> bytes | Work:
        """Take a request; return its reply where nothing is left to decide."""
        path, query, prefix = _split(target)
        if method == "GET" and path == "/ledger":
            entries = "entries=1" in query.split("&")
            return reply(200, b"ledger", self._ledger.as_json(entries=entries))
        self._ledger.requests += 1
        digest = blake2b(prefix + body, digest_size=16).digest()
        if self._credential and credential != self._credential:
            message = "Incorrect API key provided." if credential else "You didn't provide an API key."
            return self._refuse(401, digest, message, code="invalid_api_key")
        reader = READERS.get(path)
        if reader is None or method != "POST":
            return self._get(method, path, digest)
        try:
            asked = reader(load(body))
        except BadRequest as error:
            return self._refuse(400, digest, str(error), error.param, error.code)
        work = Work(path, asked, digest, digest if key is None else key)
        if key is not None and self._honour:
            refusal = self._hold(work, key)
            if refusal:
                return refusal
        if self._slow and not work.replay:
            work.before_s = self._before.draw_s(digest)
            work.after_s = self._after.draw_s(digest)
        return work

    def count(self, work: Work, now: float) -> None:
        """Decide what becomes of the request, do its work and bill it."""
        fault = self._faults.draw(work.name) if self._faulty else None
        lines = b""
        if self._limited:
            limits = self._limits_of(work.asked.model)
            # What is turned away at the door, and what is only said again, takes nothing from the limits.
            if not work.replay and fault not in ("reset-before", "429"):
                over = limits.take(work.asked.charge, now)
                if over:
                    # No work was tried: it does not count as an occurrence, and meets its fault next time.
                    work.after_s = 0.0
                    work.answer = self._over(work, over, limits.headers(now))
                    return
            lines = limits.headers(now)
        if self._faulty:
            self._faults.happened(work.name)
        if fault:
            self._ledger.faults[fault] += 1
        if fault == "reset-before":
            work.ending, work.after_s = "reset", 0.0
        elif fault in ("429", "500"):
            work.after_s = 0.0
            work.answer = self._failed(work, fault, lines)
        else:
            self._do(work, lines)
            if fault:
                work.ending = {"reset-after": "reset"}.get(fault, fault)

    def finish(self, work: Work) -> None:
        """Let go of the request's key."""
        if work.held and isinstance(work.name, str):
            del self._under_way[work.name]

    def _do(self, work: Work, lines: bytes) -> None:
        """Answer, and bill what was not answered before."""
        body, usage = self._answers.write(work.path, work.asked, work.digest)
        if work.replay:
            self._ledger.replayed += 1
            lines += b"idempotent-replayed: true\r\n"
        else:
            self._ledger.bill(work.name, work.digest, work.asked.model, usage)
        work.answer = reply(200, work.digest, body, lines)

    def _hold(self, work: Work, key: str) -> bytes | None:
        """Mark the key as under way, or refuse it (409 and 422 as the IETF's idempotency-key draft has them).

        Nothing but the digest is kept of what was answered: the same body is answered with the same bytes.
        """
        under_way = self._under_way.get(key)
        before = under_way or self._ledger.billed_digest(key)
        if before is not None and before != work.digest:
            message = "This Idempotency-Key was used before with another body."
            return self._refuse(422, work.digest, message, code="idempotency_key_reused")
        if under_way:
            message = "A request with this Idempotency-Key is still under way."
            return self._refuse(409, work.digest, message, code="idempotency_key_in_progress")
        work.replay = before is not None
        work.held = True
        self._under_way[key] = work.digest
        return None

    def _limits_of(self, model: str) -> ModelLimits:
        limits = self._limits.get(model)
        if limits is None:
            limits = ModelLimits(self._config.rpm, self._config.tpm, self._config.window)
            self._limits[model] = limits
        return limits

    def _get(self, method: str, path: str, digest: bytes) -> bytes:
        is_models = path == "/v1/models" or path.startswith("/v1/models/")
        if is_models and method == "GET":
            name = unquote(path[len("/v1/models/") :])
            return reply(200, digest, answers.model_card(name) if name else answers.model_list())
        if is_models or path in READERS or path == "/ledger":
            return self._refuse(
                405, digest, f"Not allowed to {method} on {path}.", code="method_not_supported"
            )
        return self._refuse(404, digest, f"Invalid URL ({method} {path})", code="unknown_url")

    def _refuse(
        self, status: int, digest: bytes, message: str, param: str | None = None, code: str | None = None
    ) -> bytes:
        self._ledger.refused[str(status)] += 1
        return reply(status, digest, answers.error(message, "invalid_request_error", param, code))

    def _over(self, work: Work, over: Over, lines: bytes) -> bytes:
        """Answer 429; without a time to wait if the request is larger than the limit and no wait helps."""
        self._ledger.refused["429"] += 1
        unit = "RPM" if over.kind == "requests" else "TPM"
        which = f"for {work.asked.model} on {over.kind} per min ({unit}): Limit {over.limit}"
        if math.isinf(over.wait_s):
            message = f"Request too large {which}, Requested {over.requested}. It can never be taken."
        else:
            lines += _wait_lines(over.wait_s)
            message = f"Rate limit reached {which}. Please try again in {whole_ms(over.wait_s)}ms."
        return reply(429, work.digest, answers.error(message, over.kind, None, "rate_limit_exceeded"), lines)

    def _failed(self, work: Work, fault: str, lines: bytes) -> bytes:
        self._ledger.refused[fault] += 1
        if fault == "429":
            message = f"Rate limit reached for {work.asked.model}: a fault of the simulator."
            lines += _wait_lines(_FAULT_WAIT_S)
            body = answers.error(message, "requests", None, "rate_limit_exceeded")
        else:
            body = answers.error("The server had an error: a fault of the simulator.", "server_error")
        return reply(int(fault), work.digest, body, lines)


@functools.lru_cache(maxsize=256)
def _split(target: bytes) -> tuple[str, str, bytes]:
    """Return the target's path, its query, and what the digest of its requests begins with."""
    path, _, query = target.decode("latin-1").partition("?")
    return path, query, path.encode() + b"\n"


def _wait_lines(seconds: float) -> bytes:
    ms = whole_ms(seconds)
    return b"retry-after-ms: %d\r\nretry-after: %d\r\n" % (ms, -(-ms // 1000))
