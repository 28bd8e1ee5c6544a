"""A request's life: it arrives, it counts, it is finished. No sockets and no clock: `now` is an argument.

    arrive  is it a request at all, may it be asked, is its key free        -> an answer at once, or Work
    count   faults, quota, limits, the work itself, the bill                -> Work.answer and Work.fault
    finish  the answer is on its way: its key is free again

Between arriving and counting, and between counting and finishing, the caller lets the latency pass.
"""

import functools
import math
from collections.abc import Callable
from hashlib import blake2b
from urllib.parse import unquote

import msgspec

from batcher.simulator import answers, words
from batcher.simulator.config import Config
from batcher.simulator.faults import Faults, Latency
from batcher.simulator.ledger import Ledger
from batcher.simulator.limits import ModelLimits, Over, whole_ms
from batcher.simulator.outcomes import OUT_OF_QUOTA, Fault
from batcher.simulator.reading import READERS, Asked, BadRequest, load
from batcher.simulator.replies import error, reply, wait_lines

_REPLAYED = b"idempotent-replayed: true\r\n"


class Work(msgspec.Struct, gc=False):
    """A request that is well formed and on its way."""

    path: str
    asked: Asked
    digest: bytes
    #: What the ledger calls it: its idempotency key, or its digest where it sent none.
    name: str | bytes
    #: Its place among the requests that came: the first is 1.
    number: int
    #: Its key was answered before.
    replay: bool = False
    #: Its key is marked as under way.
    held: bool = False
    before_s: float = 0.0
    after_s: float = 0.0
    #: When it counted, and the tokens of its charge that are given back when it is finished.
    counted_at: float = 0.0
    unused: int = 0
    answer: bytes = b""
    #: What it meets; None: it is answered as it should be.
    fault: Fault | None = None


class Service:
    """Everything that the server knows: limits, faults, keys under way and the ledger.

    `first` is called when the first API request comes: the seconds of a script count from there.
    """

    def __init__(self, config: Config, first: Callable[[], object]) -> None:
        self._config = config
        voice = words.make_voice(config.answers)
        self._answers = answers.Answers(voice, config.cached_share, config.embedding_dimensions)
        self._faults = Faults(config.faults, config.script, config.seed)
        self._faulty = any(config.faults.values()) or bool(config.script)
        self._quota = config.quota
        self._first = first
        self._began_s = 0.0
        self._before = Latency(b"before", config.latency_before_ms, config.seed)
        self._after = Latency(b"after", config.latency_after_ms, config.seed)
        self._slow = config.latency_before_ms[1] > 0 or config.latency_after_ms[1] > 0
        self._ledger = Ledger()
        self._limits: dict[str, ModelLimits] = {}
        self._under_way: dict[str, bytes] = {}
        self._honour = config.idempotency != "ignore"
        self._keeps_failures = config.idempotency == "keep-failures"
        #: Keys that were refused, and with what.
        self._failed: dict[str | bytes, Fault] = {}
        self._limited = bool(config.rpm or config.tpm)
        self._gives_back = self._limited and config.tpm_counts == "actual"
        self._credential = f"Bearer {config.api_key}".encode() if config.api_key else None

    def arrive(
        self,
        method: str,
        target: bytes,
        key: str | None,
        credential: bytes | None,
        body: bytes,
        now: float,
    ) -> bytes | Work:
        """Take a request; return its reply where nothing is left to decide."""
        path, query, prefix = _split(target)
        if method == "GET" and path == "/ledger":
            entries = "entries=1" in query.split("&")
            return reply(200, b"ledger", self._ledger.as_json(entries=entries))
        number = self._ledger.requests = self._ledger.requests + 1
        if number == 1:
            self._began_s = now
            self._first()
        digest = blake2b(prefix + body, digest_size=16).digest()
        if self._credential and credential != self._credential:
            message = "Incorrect API key provided." if credential else "You didn't provide an API key."
            return self._refuse(401, digest, message, code="invalid_api_key")
        reader = READERS.get(path)
        if reader is None or method != "POST":
            return self._get(method, path, digest)
        try:
            asked = reader(load(body))
        except BadRequest as bad:
            return self._refuse(400, digest, str(bad), bad.param, bad.code)
        work = Work(path, asked, digest, digest if key is None else key, number)
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
        fault, by_script = None, False
        if self._faulty:
            fault, by_script = self._faults.draw(work.name, work.number, now - self._began_s)
        works = fault is None or fault.works
        if self._quota is not None and works and not work.replay and self._ledger.billed >= self._quota:
            self._turn_away(work, OUT_OF_QUOTA, b"")
            return
        lines = b""
        if self._limited:
            limits = self._limits_of(work.asked.model)
            # What is turned away at the door, and what is only said again, takes nothing from the limits.
            if not work.replay and (fault is None or fault.is_charged):
                over = limits.take(work.asked.charge, now)
                if over:
                    # No work was tried: it does not count as an occurrence, and meets its fault next time.
                    work.after_s = 0.0
                    work.answer = self._over(work, over, limits.headers(now))
                    return
            lines = limits.headers(now)
            work.counted_at = now
        if self._faulty:
            self._faults.happened(work.name, by_script=by_script)
        if fault:
            self._ledger.faults[fault.name] += 1
            work.fault = fault
        if works:
            self._do(work, lines)
        elif fault:
            self._turn_away(work, fault, lines)
            self._keep(work, fault)

    def finish(self, work: Work) -> None:
        """Let go of the request's key, and of the tokens that it did not use."""
        if work.unused:
            self._limits[work.asked.model].give_back(work.unused, work.counted_at)
        if work.held and isinstance(work.name, str):
            del self._under_way[work.name]

    def _do(self, work: Work, lines: bytes) -> None:
        """Answer, and bill what was not answered before."""
        body, usage = self._answers.write(work.path, work.asked, work.digest)
        if work.replay:
            self._ledger.replayed += 1
            lines += _REPLAYED
        else:
            self._ledger.bill(work.name, work.digest, work.asked.model, usage)
            if self._gives_back:
                work.unused = max(work.asked.charge - usage.prompt - usage.completion, 0)
        fault = work.fault
        if fault is None:
            work.answer = reply(200, work.digest, body, lines)
        else:
            body = fault.change(work.path, body)
            work.answer = reply(
                200, work.digest, body, fault.lines + lines, fault.content_type, fault.missing_bytes
            )

    def _turn_away(self, work: Work, fault: Fault, lines: bytes) -> None:
        """Answer at once, if there is an answer, and do nothing."""
        work.after_s = 0.0
        if fault.status:
            self._ledger.refused[str(fault.status)] += 1
            work.answer = reply(
                fault.status, work.digest, fault.body, fault.lines + lines, fault.content_type
            )

    def _keep(self, work: Work, fault: Fault) -> None:
        """Remember what a key was refused with, if failures are kept and it was told."""
        if self._keeps_failures and fault.status and not work.replay:
            self._failed[work.name] = fault

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
        if kept := self._failed.get(key):
            self._ledger.replayed += 1
            return reply(kept.status, work.digest, kept.body, kept.lines + _REPLAYED, kept.content_type)
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
        return reply(status, digest, error(message, "invalid_request_error", param, code))

    def _over(self, work: Work, over: Over, lines: bytes) -> bytes:
        """Answer 429; without a time to wait if the request is larger than the limit and no wait helps."""
        self._ledger.refused["429"] += 1
        unit = "RPM" if over.kind == "requests" else "TPM"
        which = f"for {work.asked.model} on {over.kind} per min ({unit}): Limit {over.limit}"
        if math.isinf(over.wait_s):
            message = f"Request too large {which}, Requested {over.requested}. It can never be taken."
        else:
            lines += wait_lines(whole_ms(over.wait_s))
            message = f"Rate limit reached {which}. Please try again in {whole_ms(over.wait_s)}ms."
        return reply(429, work.digest, error(message, over.kind, None, "rate_limit_exceeded"), lines)


@functools.lru_cache(maxsize=256)
def _split(target: bytes) -> tuple[str, str, bytes]:
    """Return the target's path, its query, and what the digest of its requests begins with."""
    path, _, query = target.decode("latin-1").partition("?")
    return path, query, path.encode() + b"\n"
