"""What a run can be told, and where its files are."""

import os
from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Final, Literal, TypeAlias, get_args

import msgspec

from batcher.errors import ConfigurationError
from batcher.limits.bucket import Limit
from batcher.limits.pool import TpmCounts
from batcher.retry import MaxFailures

Delivery: TypeAlias = Literal["at-least-once", "at-most-once"]

#: Gateways that honour idempotency keys remember them for about a day, in seconds.
KEY_TTL_S: Final = 86_400.0


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What `batcher run` can be told; the defaults are those of the command."""

    #: The job file: JSON Lines, also `.gz` or `.zst`; `-` is standard input and needs `store`.
    job: str
    #: None takes OPENAI_BASE_URL, or OpenAI's own.
    base_url: str | None = None
    #: None names them after the job file: `.db`, `.results.jsonl`, `.errors.jsonl`.
    store: Path | None = None
    output: Path | None = None
    errors: Path | None = None
    #: Requests and tokens per minute of every model without a limit of its own; None takes what the server
    #: announces.
    rpm: int | None = None
    tpm: int | None = None
    #: The same per day: in any 24 hours.
    rpd: int | None = None
    tpd: int | None = None
    #: Whether the server's limits count the tokens that a request reserves or those that it has used: `auto`
    #: goes by its headers.
    tpm_counts: TpmCounts = "auto"
    #: Model -> its own limit.
    limits: Mapping[str, Limit] = {}
    #: How far ahead of its even rate the flow may run, in seconds.
    burst_s: float = 0.25
    max_inflight: int = 1000
    max_attempts: int = 5
    #: A request's total, in seconds.
    timeout_s: float = 300.0
    delivery: Delivery = "at-least-once"
    retry_failed: bool = False
    retry_in_doubt: bool = False
    #: How long the server remembers an idempotency key, in seconds: what is in doubt for longer may be billed
    #: again when it is sent again.
    key_ttl_s: float = KEY_TTL_S
    max_failures: MaxFailures = MaxFailures(share=0.5)
    max_stall_s: float = 1800.0
    #: What is in flight when the run is stopped may take so long to land, in seconds.
    grace_s: float = 30.0
    namespace: str | None = None
    #: Send no more than the first so many rows of the file.
    limit_rows: int | None = None
    #: A file of prices that go before the known ones.
    prices: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what can't be meant.

        Raises:
            ConfigurationError: it names the option and what it takes.
        """
        for name in ("rpm", "tpm", "rpd", "tpd", "max_inflight", "max_attempts", "limit_rows"):
            _at_least_one(f"--{name.replace('_', '-')}", getattr(self, name))
        if not isinstance(self.limits, Mapping):
            raise ConfigurationError(f"--limit must be a dict of models and limits, not {self.limits!r}")
        for model, limit in self.limits.items():
            if not isinstance(limit, Limit):
                raise ConfigurationError(f"--limit {model} must be a batcher.Limit(rpm, tpm), not {limit!r}")
            for value in astuple(limit):
                _at_least_one(f"--limit {model}", value)
        for name in ("timeout_s", "max_stall_s", "grace_s", "burst_s", "key_ttl_s"):
            _seconds(f"--{name.removesuffix('_s').replace('_', '-')}", getattr(self, name))
        if not self.timeout_s:
            raise ConfigurationError("--timeout must be more than 0 seconds: no request can be that fast")
        if self.namespace == "":
            raise ConfigurationError("--namespace must not be empty: leave it out for the store's own")
        _one_of("--delivery", self.delivery, get_args(Delivery))
        _one_of("--tpm-counts", self.tpm_counts, get_args(TpmCounts))
        self.paths()

    def paths(self) -> "Paths":
        """Return where the job's files are.

        Raises:
            ConfigurationError: standard input has no name to make them from, or two of them are the same.
        """
        return Paths.of(self.job, self.store, self.output, self.errors)


def check_export(paths: "Paths", job: str, *written: Path | None) -> None:
    """Make sure that what an export writes is none of the job's own files.

    Raises:
        ConfigurationError: it is one.
    """
    own = paths.places(job)
    for path in written:
        if path is not None and os.path.realpath(path) in own:
            raise ConfigurationError(f"{path} is a file of this job: name another one")


class Paths(msgspec.Struct, frozen=True):
    """The three files of a job."""

    store: Path
    output: Path
    errors: Path

    def places(self, job: str) -> list[str]:
        """Return where the job, these, and what SQLite and the lock keep beside the store really are.

        A name that can't be there leads somewhere too: a loop of links, or one that is too long.
        """
        beside = (f"{self.store}{suffix}" for suffix in ("-wal", "-shm", ".lock"))
        named = (job, str(self.store), str(self.output), str(self.errors), *beside)
        return [os.path.realpath(name) for name in named]

    @classmethod
    def of(
        cls, job: str, store: Path | None, output: Path | None = None, errors: Path | None = None
    ) -> "Paths":
        """Name them after the job file, or, for standard input, after the store; see `Options.paths`."""
        if job == "-" and store is None:
            raise ConfigurationError(
                "a job from standard input has no name: say where its store is with --store"
            )
        base = str(store) if job == "-" else job
        for suffix in (".db",) if job == "-" else (".gz", ".zst"):
            base = base.removesuffix(suffix)
        base = base.removesuffix(".jsonl")
        paths = cls(
            store or Path(f"{base}.db"),
            output or Path(f"{base}.results.jsonl"),
            errors or Path(f"{base}.errors.jsonl"),
        )
        places = paths.places(job)
        if len(set(places)) < len(places):
            raise ConfigurationError(
                f"the job ({job}), the store ({paths.store}), the results ({paths.output}) and the errors "
                f"({paths.errors}) must be four different files"
            )
        return paths


def _at_least_one(option: str, value: int | None) -> None:
    if value is not None and type(value) is not int:
        raise ConfigurationError(f"{option} must be a whole number, not {value!r}")
    if value is not None and value < 1:
        raise ConfigurationError(f"{option} must be at least 1, not {value}")


def _seconds(option: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ConfigurationError(f"{option} must be 0 seconds or more, not {value!r}")


def _one_of(option: str, value: str, words: tuple[str, ...]) -> None:
    if value not in words:
        raise ConfigurationError(f"{option} must be one of {', '.join(words)}, not {value}")
