"""Whether this machine, key and endpoint are fit for a run: `examine` looks, synchronous functions judge."""

import ipaddress
import os
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import msgspec
import orjson

from batcher.clock import Clock
from batcher.errors import ConfigurationError, StoreError, one_line
from batcher.job import World, check_file_limit
from batcher.limits.pool import SHARED
from batcher.money.cost import usd_string
from batcher.money.prices import PriceBook
from batcher.money.usage import Usage
from batcher.options import Options
from batcher.reply import Answer, Complaint, is_replayed, read_answer, read_error
from batcher.request import Landed, Lost, Request, Row, Transport, Try
from batcher.rules import Rule, rule_of_error, rule_of_loss, rule_of_no_answer
from batcher.store.journal import Journal, Opening
from batcher.transport.endpoint import Endpoint

State: TypeAlias = Literal["ok", "warn", "fail"]
#: What an endpoint does with a request that comes again under its key.
Idempotency: TypeAlias = Literal["replays", "bills again", "unknown"]

OLDEST_PYTHON: Final = (3, 11)
#: STRICT tables (sqlite.org/stricttables.html).
OLDEST_SQLITE: Final = (3, 37)

_CREDENTIALS: Final = ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_CUSTOM_HEADERS")
_ROW: Final = Row(1, bytes(16), "doctor")
#: Url -> the model that is asked if the user names none, and the rest of the body. OpenAI takes no lower
#: output limit than 16 for responses.
QUESTIONS: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "/v1/chat/completions": (
        "gpt-4o-mini",
        {"messages": [{"role": "user", "content": "Say yes."}], "max_completion_tokens": 1},
    ),
    "/v1/responses": ("gpt-4o-mini", {"input": "Say yes.", "max_output_tokens": 16}),
    "/v1/completions": ("gpt-3.5-turbo-instruct", {"prompt": "Say yes.", "max_tokens": 1}),
    "/v1/embeddings": ("text-embedding-3-small", {"input": "Say yes."}),
}


class Check(msgspec.Struct, frozen=True):
    """One thing that was looked at: `fail` is in the way of a run, `warn` may be."""

    name: str
    state: State
    #: What is so and, unless it is `ok`, what to do.
    message: str


class Report:
    """What was found; each check is told as soon as it is known, without what `mask` takes out."""

    def __init__(self, tell: Callable[[Check], object], mask: Callable[[bytes], bytes]) -> None:
        self._tell = tell
        self._mask = mask
        self.checks: list[Check] = []
        #: None unless a second reply could be looked for.
        self.idempotency: Idempotency | None = None

    def add(self, check: Check) -> None:
        """Take one more check; a server's words in it may be on several lines, and quote the key."""
        masked = self._mask(one_line(check.message).encode()).decode(errors="replace")
        self.checks.append(msgspec.structs.replace(check, message=masked))
        self._tell(self.checks[-1])

    @property
    def exit_code(self) -> int:
        """1 if something failed, else 0."""
        return int(any(check.state == "fail" for check in self.checks))

    def to_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        checks = [msgspec.structs.asdict(check) for check in self.checks]
        return {"checks": checks, "idempotency": self.idempotency}


async def examine(
    options: Options,
    environ: Mapping[str, str],
    tell: Callable[[Check], object],
    *,
    model: str | None = None,
    probe: str | None = None,
    world: World | None = None,
) -> Report:
    """Look at the machine, the key and the endpoint; `tell` gets each check as soon as it is known.

    Of `options` the base URL, `max_inflight` and `timeout_s` (seconds, for each request) count. `model` is
    looked for in the server's list. Nothing that costs is sent, unless `probe` is a url of `QUESTIONS`: then
    its question is asked two or three times, of `model` or of a cheap one.

    Raises:
        ConfigurationError: there is no key, or no base URL can be made of what was given.
    """
    world = world or World()
    endpoint = Endpoint.from_environment(options.base_url, environ)
    report = Report(tell, endpoint.mask)
    report.add(check_version("python", sys.version_info[:3], OLDEST_PYTHON))
    report.add(check_version("sqlite", sqlite3.sqlite_version_info, OLDEST_SQLITE))
    report.add(check_files(options.max_inflight))
    report.add(check_credentials(environ, os.environ))
    report.add(check_endpoint(endpoint))
    try:
        async with _scratch(endpoint, world) as journal:
            await _ask_endpoint(options, endpoint, journal, world, report, model, probe)
    except StoreError as error:
        report.add(Check("store", "fail", f"{error}: set TMPDIR to a folder where a store can be made"))
    return report


# --- the machine, and what it was told


def check_version(name: str, found: Sequence[int], oldest: Sequence[int]) -> Check:
    """Compare a version with the oldest that will do."""
    text, least = (".".join(map(str, numbers)) for numbers in (found, oldest))
    if tuple(found) >= tuple(oldest):
        return Check(name, "ok", text)
    return Check(name, "fail", f"{text}: {least} or newer is needed: use a newer Python, which brings it")


def check_files(max_inflight: int) -> Check:
    """Raise the limit of open files as a run would, and say whether that was enough."""
    try:
        check_file_limit(max_inflight)
    except ConfigurationError as error:
        return Check("files", "fail", str(error))
    return Check("files", "ok", f"the system allows enough open files for --max-inflight {max_inflight}")


def check_credentials(environ: Mapping[str, str], own: Mapping[str, str]) -> Check:
    """Say which credentials there are, and where: in the process's `own` environment, or only in `.env`."""
    found = [name for name in _CREDENTIALS if environ.get(name, "").strip()]
    places = [f"{name} from {'the environment' if name in own else '.env'}" for name in found]
    return Check("credentials", "ok", ", ".join(places))


def check_endpoint(endpoint: Endpoint) -> Check:
    """Say where requests go, and whether others on the way can read them."""
    if endpoint.scheme == "https" or _is_this_machine(endpoint.host):
        return Check("endpoint", "ok", endpoint.base_url)
    advice = "the key and the rows go there unencrypted: use https, unless the network is yours"
    return Check("endpoint", "warn", f"{endpoint.base_url}: {advice}")


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# --- what a server says

_LATER: Final = "run it again later"
#: What happens to a row again after a while: the fault is not in what was asked.
_PASSES: Final = ("again", "wait", "hold")


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


_decode_models = msgspec.json.Decoder(_Models).decode


def check_models(landed: Landed, model: str | None) -> Check:
    """Judge what came of `GET /models`, which asks for the key, as a rule, and costs nothing."""
    if isinstance(landed, Lost):
        return Check("models", "fail", f"{landed.reason}: check --base-url, and that the server is up")
    if not 200 <= landed.status < 300:
        said = read_error(landed)
        rule = rule_of_error(landed.status, said)
        if rule.action == "halt" and landed.status != 403:
            return Check("models", "fail", f"{_words(landed.status, said)}: {rule.meaning}")
        # A key may be made for other things than this list, and not every server has one.
        advice = _LATER if rule.action in _PASSES else "check --base-url, or ask with --probe-idempotency"
        return Check("models", "warn", f"no list of models: {_words(landed.status, said)}: {advice}")
    try:
        listed = {each.id for each in _decode_models(landed.body).data}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Check("models", "warn", "the answer to GET /models is no list of models: check --base-url")
    if model is not None and model not in listed:
        advice = "check the name, and what the key may use"
        return Check("models", "warn", f"{model} is not among the {len(listed):,} that are listed: {advice}")
    took_ms = (landed.ended_at - landed.sent_at) * 1000
    return Check("models", "ok", f"the server lists {len(listed):,}; it answered in {took_ms:,.1f} ms")


def _words(status: int, said: Complaint) -> str:
    """Name the status, and say what the server said."""
    text = said.message.rstrip(".")
    return text if text.startswith(f"HTTP {status}") else f"HTTP {status}: {text}"


class Answered(NamedTuple):
    """A whole answer came."""

    body: bytes
    #: Whether a header says that it was given before.
    marked: bool
    usage: Usage | None


class Unanswered(NamedTuple):
    """Something else came, or nothing: what it means, and its own words."""

    rule: Rule
    words: str

    @property
    def advice(self) -> str:
        """What to do about it, where it was the first reply."""
        if self.rule.status in ("unreachable", "invalid"):
            return "check --base-url, and that the server is up"
        if self.rule.action == "fail":
            return "name another --model or --url"
        return _LATER if self.rule.action in _PASSES else self.rule.meaning


def read(request: Request, landed: Landed) -> Answered | Unanswered:
    """Read one reply, or the lack of one."""
    if isinstance(landed, Lost):
        return Unanswered(rule_of_loss(landed), landed.reason)
    if not 200 <= landed.status < 300:
        said = read_error(landed)
        return Unanswered(rule_of_error(landed.status, said), _words(landed.status, said))
    answer = read_answer(request, landed)
    if isinstance(answer, Answer):
        return Answered(landed.body, is_replayed(landed), answer.usage)
    rule = rule_of_no_answer(answer)
    return Unanswered(rule, f"{_words(landed.status, answer)}: {rule.meaning}")


# --- what the replies show


class Finding(NamedTuple):
    """What two or three replies show; `idempotency` is None where the first was no answer."""

    idempotency: Idempotency | None
    state: State
    message: str


_TWICE: Final = (
    "at-least-once may pay twice for what is in flight at a crash, --delivery at-most-once never does"
)
_IF_AGAIN: Final = f"if it bills again, {_TWICE}"


def decide(came: Sequence[Answered | Unanswered]) -> Finding | None:
    """Say what came of one request: twice under one key, and then under another one, in this order.

    None: one more is needed. The second always is, and the third to tell a server that replays from one that
    answers the same request with the same bytes in any case.
    """
    first, last = came[0], came[-1]
    if isinstance(first, Unanswered):
        return Finding(None, "fail", f"{first.words}: {first.advice}")
    if isinstance(last, Unanswered):
        state: State = "warn" if last.rule.action in _PASSES else "fail"
        which = "the second" if len(came) == 2 else "the third, under another key,"
        message = f"can't tell: {which} was not answered as the first: {last.words}; {_IF_AGAIN}"
        return Finding("unknown", state, message)
    if len(came) == 1:
        return None
    if len(came) == 2:
        return _compare(first, last)
    if last.body == first.body:
        message = f"can't tell: the same request gets the same bytes under any key; {_IF_AGAIN}"
        return Finding("unknown", "warn", message)
    message = (
        "sent twice under one key, both times the same answer, and another under another key: a row in doubt "
        "is paid once here; but no header says so, and the bill goes on to count it as in doubt"
    )
    return Finding("replays", "ok", message)


def _compare(first: Answered, second: Answered) -> Finding | None:
    # Who marks the first answer to a new key as given before marks every one.
    if second.marked and not first.marked:
        message = "sent twice under one key, answered from the first: a row in doubt is paid once here"
        return Finding("replays", "ok", message)
    if second.body != first.body:
        message = f"sent twice under one key, answered anew: this endpoint bills again: {_TWICE}"
        return Finding("bills again", "warn", message)
    return None


def check_cost(came: Sequence[Answered | Unanswered], model: str, prices: PriceBook) -> Check | None:
    """Add up what the answers used, and what that costs if each is billed; None where nothing can be."""
    usages = [each.usage for each in came if isinstance(each, Answered)]
    doubted = any(isinstance(each, Unanswered) and each.rule.billed == "maybe" for each in came)
    if not usages:
        return Check("cost", "warn", "unknown: what was not answered may be billed") if doubted else None
    counts = [f"{each.prompt_tokens + each.completion_tokens:,}" if each else "unknown" for each in usages]
    used = f"{len(counts)} x {counts[0]}" if len(set(counts)) == 1 else " + ".join(counts)
    costs = [prices.cost(model, usage) for usage in usages]
    known = [cost for cost in costs if cost is not None]
    price = "at an unknown price" if len(known) < len(costs) else f"at most ${usd_string(sum(known))}"
    more = "; what was not answered may be billed too" if doubted else ""
    return Check("cost", "ok", f"{used} tokens, {price}{more}")


# --- asking


class _Getting(Endpoint, frozen=True):
    """The same place, asked with GET."""

    def head(self, url: str) -> bytes:
        """See `Endpoint.head`."""
        return b"GET" + super().head(url).removeprefix(b"POST")


@asynccontextmanager
async def _scratch(endpoint: Endpoint, world: World) -> AsyncIterator[Journal]:
    """Open a store that is thrown away: what is sent is claimed first, here as in a run."""
    try:
        temporary = TemporaryDirectory(prefix="batcher-doctor-")
    except OSError as error:
        raise StoreError(f"no temporary folder can be made: {error}") from error
    with temporary as folder:
        opening = Opening(path=Path(folder) / "doctor.db", base_url=endpoint.base_url)
        journal = await Journal.open(opening, world.clock, world.connect)
        try:
            await journal.fresh([_ROW])
            yield journal
        finally:
            await journal.close()


async def _ask(journal: Journal, transport: Transport, request: Request) -> Landed:
    (claimed,) = await journal.claim([Try(request)])
    return await transport.send(claimed, lambda _: None)


async def _ask_endpoint(
    options: Options,
    endpoint: Endpoint,
    journal: Journal,
    world: World,
    report: Report,
    model: str | None,
    probe: str | None,
) -> None:
    clock = world.clock
    getting = _Getting(*msgspec.structs.astuple(endpoint))
    listing = Request((_ROW,), clock.token(), SHARED, "none", "/v1/models", b"", 0, None)
    async with aclosing(world.transport(options, getting, clock)) as transport:
        landed = await _ask(journal, transport, listing)
    report.add(check_models(landed, model))
    if probe is None:
        return
    if isinstance(landed, Lost) and not landed.left:
        report.add(Check("idempotency", "fail", "not probed: no request gets there, see models"))
        return
    model = model or QUESTIONS[probe][0]
    async with aclosing(world.transport(options, endpoint, clock)) as transport:
        finding, came = await probe_key(probe, model, journal, transport, clock)
    report.idempotency = finding.idempotency
    report.add(Check("idempotency", finding.state, finding.message))
    if cost := check_cost(came, model, PriceBook(endpoint.base_url, clock.wall())):
        report.add(cost)


async def probe_key(
    url: str, model: str, journal: Journal, transport: Transport, clock: Clock
) -> tuple[Finding, list[Answered | Unanswered]]:
    """Ask the question of a url twice under a new key, and a third time under another if that is needed.

    Returns what it shows, and what came, in order. The journal must hold the row: see `_scratch`.
    """
    key, control = clock.token(), clock.token()
    body = orjson.dumps({"model": model, **QUESTIONS[url][1]})
    came: list[Answered | Unanswered] = []
    finding = None
    while finding is None:
        request = Request((_ROW,), key if len(came) < 2 else control, SHARED, model, url, body, 0, None)
        came.append(read(request, await _ask(journal, transport, request)))
        finding = decide(came)
    return finding, came
