"""A server in virtual time: it works, bills, remembers keys or not, and goes wrong as its seed has it."""

import heapq
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from hashlib import blake2b

import orjson

from batcher.request import Lost, Reply

MODEL = "gpt-4o-mini"
#: In 10^-12 dollar a token: those of PRICES.
INPUT_PRICE, OUTPUT_PRICE = 1_000_000, 4_000_000
PRICES = b'{"gpt-4o-mini": {"input": 1, "output": 4}}'
#: How long a client waits for an answer.
TIMEOUT_S = 30.0

FATES = (
    *("unreachable", "lost", "late", "reset", "cut_off", "timeout", "slow"),
    *("429", "500", "500", "503", "502", "502_done", "spoiled"),
)

#: Those after which the work may have been done, and nobody here knows.
CUT_OFF = ("lost", "late", "reset", "cut_off", "timeout", "502", "502_done", "spoiled")


@dataclass(order=True)
class Delivery:
    """A request that is still on its way to the server when its client has long given up."""

    at: float
    order: int
    claimed: object = field(compare=False)


@dataclass
class Known:
    """What a server that honours keys remembers of one."""

    done_at: float
    reply: tuple


class Server:
    """Does work, bills it, and remembers keys or does not. It outlives every process that asks it."""

    def __init__(
        self, chance, *, honours=True, forgetful=False, keeps_failures=False, marks=True, faults=0.0, budget=0
    ):
        self._chance = chance
        self.honours = honours
        #: It heeds only keys whose work has ended: what comes meanwhile is worked on, and billed, once more.
        self._forgetful = forgetful
        self._keeps_failures = keeps_failures
        self._marks = marks or keeps_failures
        self._faults = faults
        self._budget = budget
        self._known = {}
        self._late = []
        #: (time, attempt, key, tokens, life) of every request that has left.
        self.departures = []
        #: Key -> how often it was billed.
        self.billed_keys = Counter()
        #: Key -> how often its reply was lost on the way, or came too late, or was no answer any more.
        self.cut_off = Counter()
        self.cost_pico_usd = 0
        self.fates = Counter()

    def answers(self, life):
        """Make the network of one process."""

        def answer(claimed, now):
            life.step()
            landed = self._send(claimed, now, life)
            life.step()
            return landed

        return answer

    def _send(self, claimed, now, life):
        fate = self._fate()
        self.fates[fate] += 1
        if fate == "unreachable":
            return Lost(False, "connect", "nothing listens", None, now + self._some(0.1, 2))
        self.departures.append((now, claimed.id, claimed.request.key, claimed.request.tokens, life.number))
        self.catch_up(now)
        gone_s = self._some(0.01, 3)
        self.cut_off[claimed.request.key] += fate in CUT_OFF
        if fate == "lost":
            return Lost(True, "reset", "lost on its way", now, now + gone_s)
        if fate == "late":
            self._deliver_later(claimed, now + self._some(0.1, 3 * TIMEOUT_S))
            return Lost(True, "timeout", "no reply in time", now, now + TIMEOUT_S)
        if self.honours and self._chance.random() < 0.05:
            # Whatever the first of the two is told, the second may be worked on.
            self._deliver_later(claimed, now + self._some(0.1, 60))
            self.cut_off[claimed.request.key] += 1
        takes_s = 2 * TIMEOUT_S if fate == "timeout" else self._some(0.05, 5 if fate == "slow" else 1)
        done_at, (status, headers, body) = self._serve(claimed, now, takes_s, fate)
        if fate == "timeout":
            return Lost(True, "timeout", "no reply in time", now, now + TIMEOUT_S)
        if fate in ("reset", "cut_off"):
            return Lost(True, fate, "the reply was lost", now, min(done_at, now + TIMEOUT_S) + 0.01)
        if fate == "502_done":
            status, headers, body = 502, (), b"<html>bad gateway</html>"
        if fate == "spoiled" and status == 200:
            body = body[: len(body) // 2]
        return Reply(status, headers, body, now, max(done_at, now) + 0.01)

    def _fate(self):
        if self._budget <= 0 or self._chance.random() >= self._faults:
            return "well"
        self._budget -= 1
        return self._chance.choice(FATES)

    def _some(self, least, most):
        return self._chance.uniform(least, most)

    def _deliver_later(self, claimed, at):
        heapq.heappush(self._late, Delivery(at, len(self.departures), claimed))

    def catch_up(self, now):
        """Serve what has come meanwhile, whoever sent it."""
        while self._late and self._late[0].at <= now:
            late = heapq.heappop(self._late)
            self._serve(late.claimed, late.at, 0.5, "well")

    def _serve(self, claimed, now, takes_s, fate):
        """Return when it is done, and the reply."""
        key = claimed.request.key
        if fate in ("429", "503"):
            return now, error(int(fate), "requests" if fate == "429" else "server_error")
        known = self._known.get(key)
        if known is not None and (self.honours or now >= known.done_at):
            if now < known.done_at:
                code = self._chance.choice(("idempotency_key_in_progress", None))
                return now, error(409, "invalid_request_error", code)
            status, headers, body = known.reply
            mark = ((b"idempotent-replayed", b"true"),) if self._marks else ()
            return now, (status, headers + mark, body)
        if fate == "500":
            reply = error(500, "server_error")
        elif fate == "502":
            return now, (502, (), b"<html>bad gateway</html>")
        else:
            reply = self._work(claimed)
        if (self.honours or self._forgetful) and (reply[0] == 200 or self._keeps_failures):
            self._known[key] = Known(now + takes_s, reply)
        return now + takes_s, reply

    def _work(self, claimed):
        """Do the work and bill it, unless the row asks for what can't be."""
        status, headers, body, tokens = answer_of(claimed.request.body)
        if status == 200:
            self.billed_keys[claimed.request.key] += 1
            self.cost_pico_usd += cost(tokens)
        return status, headers, body


def error(status, type_, code=None):
    body = {"error": {"message": f"{status} in this universe", "type": type_, "param": None, "code": code}}
    return status, (), orjson.dumps(body)


def cost(tokens):
    prompt, completion = tokens
    return prompt * INPUT_PRICE + completion * OUTPUT_PRICE


@cache
def answer_of(body):
    """Return the status, the headers, the body and the tokens of the one answer that a request has."""
    text = orjson.loads(body)["messages"][0]["content"]
    digest = blake2b(body, digest_size=8).hexdigest()
    headers = ((b"x-request-id", b"req-" + digest.encode()),)
    if text.startswith("refuse"):
        status, _, refusal = error(400, "invalid_request_error", "bad_row")
        return status, headers, refusal, (0, 0)
    tokens = len(text) + 1, digest.count("1") + 1
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)}
    message = {"role": "assistant", "content": f"the answer to {text}"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    answer = {"id": f"chatcmpl-{digest}", "model": MODEL, "choices": [choice], "usage": usage}
    return 200, headers, orjson.dumps(answer), tokens
