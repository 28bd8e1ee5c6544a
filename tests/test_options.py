from pathlib import Path

import pytest

from batcher.errors import ConfigurationError
from batcher.limits.pool import Limit
from batcher.options import Options, Paths


def test_a_job_alone_is_enough():
    options = Options(job="a.jsonl")
    assert options.max_attempts == 5
    assert options.timeout_s == 300.0
    assert options.max_failures.share == 0.5
    assert options.max_stall_s == 1800.0
    assert options.grace_s == 30.0
    assert options.delivery == "at-least-once"
    assert options.key_ttl_s == 86_400.0


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rpm": 0}, "--rpm must be at least 1, not 0"),
        ({"tpm": -1}, "--tpm must be at least 1, not -1"),
        ({"max_inflight": 0}, "--max-inflight must be at least 1, not 0"),
        ({"max_attempts": 0}, "--max-attempts must be at least 1, not 0"),
        ({"limit_rows": 0}, "--limit-rows must be at least 1, not 0"),
        ({"limits": {"gpt": Limit(rpm=0)}}, "--limit gpt must be at least 1, not 0"),
        ({"limits": {"gpt": Limit(tpm=0)}}, "--limit gpt must be at least 1, not 0"),
        ({"timeout_s": 0}, "--timeout must be more than 0 seconds"),
        ({"timeout_s": -1.0}, "--timeout must be 0 seconds or more"),
        ({"timeout_s": NAN}, "--timeout must be 0 seconds or more, not nan"),
        ({"max_stall_s": INF}, "--max-stall must be 0 seconds or more, not inf"),
        ({"grace_s": -0.1}, "--grace must be 0 seconds or more"),
        ({"burst_s": NAN}, "--burst must be 0 seconds or more"),
        ({"key_ttl_s": -1}, "--key-ttl must be 0 seconds or more, not -1"),
        ({"key_ttl_s": INF}, "--key-ttl must be 0 seconds or more, not inf"),
        ({"delivery": "exactly-once"}, "--delivery must be one of at-least-once, at-most-once, not exactly"),
        ({"job": "-"}, "say where its store is with --store"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_the_name_of_its_option(given, message):
    with pytest.raises(ConfigurationError) as caught:
        Options(**{"job": "a.jsonl", **given})
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "given",
    [
        {"rpm": 1, "tpm": 1, "max_inflight": 1, "max_attempts": 1, "limit_rows": 1},
        {"grace_s": 0, "burst_s": 0, "max_stall_s": 0, "timeout_s": 0.001, "key_ttl_s": 0},
        {"limits": {"a": Limit(), "b": Limit(rpm=1)}},
        {"job": "-", "store": Path("a.db")},
    ],
)
def test_the_least_that_can_be_meant_is_taken(given):
    Options(**{"job": "a.jsonl", **given})


@pytest.mark.parametrize(
    ("job", "stem"),
    [
        ("a.jsonl", "a"),
        ("dir/a.jsonl", "dir/a"),
        ("a.jsonl.gz", "a"),
        ("a.jsonl.zst", "a"),
        ("a.gz", "a"),
        ("a", "a"),
        ("a.json", "a.json"),
        ("a.b.jsonl", "a.b"),
        ("/abs/jobs.jsonl/a.jsonl", "/abs/jobs.jsonl/a"),
    ],
)
def test_files_are_named_after_the_job(job, stem):
    assert Paths.of(job, None) == Paths(
        Path(f"{stem}.db"), Path(f"{stem}.results.jsonl"), Path(f"{stem}.errors.jsonl")
    )


def test_a_job_from_standard_input_is_named_after_its_store():
    expected = Paths(Path("d/n.db"), Path("d/n.results.jsonl"), Path("d/n.errors.jsonl"))
    assert Paths.of("-", Path("d/n.db")) == expected


def test_a_named_file_is_taken_as_named():
    paths = Paths.of("a.jsonl", Path("s"), Path("o"), Path("e"))
    assert paths == Paths(Path("s"), Path("o"), Path("e"))
    assert Paths.of("a.jsonl", None, output=Path("o")).errors == Path("a.errors.jsonl")


@pytest.mark.parametrize(
    "given",
    [
        {"output": Path("a.jsonl")},
        {"errors": Path("./a.jsonl")},
        {"store": Path("a.results.jsonl")},
        {"output": Path("b"), "errors": Path("b")},
    ],
)
def test_no_file_of_a_job_may_be_another_one_of_it(given):
    with pytest.raises(ConfigurationError, match="must be four different files"):
        Options(**{"job": "a.jsonl", **given})


def test_an_empty_namespace_is_refused():
    with pytest.raises(ConfigurationError, match="--namespace must not be empty"):
        Options(job="a.jsonl", namespace="")
