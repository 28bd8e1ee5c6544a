"""The public face: a dozen names, options that are checked when they are made, errors that say what to do."""

import inspect
from pathlib import Path

import pytest

import batcher
from batcher import errors


def test_every_public_name_is_there():
    assert batcher.__all__ == sorted(batcher.__all__)
    assert set(batcher.__all__) == set(batcher._HOMES)
    for name in batcher.__all__:
        assert getattr(batcher, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = batcher.nothing


def test_every_error_is_public_or_the_simulators():
    raised = {
        name
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if kind.__module__ == errors.__name__
    }
    assert raised - {"SimulatorError"} == {name for name in batcher.__all__ if name.endswith("Error")}
    for name in raised:
        assert issubclass(getattr(errors, name), batcher.BatcherError)
        assert getattr(errors, name).__doc__


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rpm": 0}, "--rpm must be at least 1, not 0"),
        ({"tpm": -1}, "--tpm must be at least 1, not -1"),
        ({"max_inflight": 0}, "--max-inflight must be at least 1, not 0"),
        ({"max_attempts": 0}, "--max-attempts must be at least 1, not 0"),
        ({"limit_rows": 0}, "--limit-rows must be at least 1, not 0"),
        ({"limits": {"m": batcher.Limit(0, None)}}, "--limit m must be at least 1, not 0"),
        ({"timeout_s": 0}, "--timeout must be"),
        ({"timeout_s": float("inf")}, "--timeout must be"),
        ({"max_stall_s": float("nan")}, "--max-stall must be"),
        ({"grace_s": -1}, "--grace must be"),
        ({"burst_s": -1}, "--burst must be"),
        ({"delivery": "exactly-once"}, "--delivery must be one of at-least-once, at-most-once"),
    ],
)
def test_options_refuse_what_cannot_be_meant(options, says):
    with pytest.raises(batcher.ConfigurationError) as caught:
        batcher.Options(job="job.jsonl", **options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_standard_input_needs_a_store():
    with pytest.raises(batcher.ConfigurationError, match="--store"):
        batcher.Options(job="-")
    assert batcher.Options(job="-", store=Path("job.db")).store == Path("job.db")


def test_options_do_not_change():
    options = batcher.Options(job="job.jsonl", rpm=5)
    with pytest.raises(AttributeError):
        options.rpm = 6


@pytest.mark.parametrize(
    ("job", "store", "expected"),
    [
        ("jobs/a.jsonl", None, ("jobs/a.db", "jobs/a.results.jsonl", "jobs/a.errors.jsonl")),
        ("a.jsonl.gz", None, ("a.db", "a.results.jsonl", "a.errors.jsonl")),
        ("a.jsonl.zst", None, ("a.db", "a.results.jsonl", "a.errors.jsonl")),
        ("a", None, ("a.db", "a.results.jsonl", "a.errors.jsonl")),
        ("a.json", None, ("a.json.db", "a.json.results.jsonl", "a.json.errors.jsonl")),
        ("a.jsonl", "b.db", ("b.db", "a.results.jsonl", "a.errors.jsonl")),
        ("-", "s/b.db", ("s/b.db", "s/b.results.jsonl", "s/b.errors.jsonl")),
    ],
)
def test_the_files_are_named_after_the_job(job, store, expected):
    from batcher.options import Paths

    paths = Paths.of(job, None if store is None else Path(store))
    assert (paths.store, paths.output, paths.errors) == tuple(map(Path, expected))
