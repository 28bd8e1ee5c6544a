"""Push a file of requests through the OpenAI API as fast as your limits allow.

    summary = await batcher.run("job.jsonl", rpm=500, tpm=200_000)

The names below are the public face; everything else may change. They are imported when first used, so
that `import batcher` costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batcher.errors import (
        BatcherError,
        ConfigurationError,
        JobFileError,
        StoreError,
        StoreLockedError,
        StoreWriteError,
    )
    from batcher.job import run, status
    from batcher.limits.bucket import Limit
    from batcher.options import Options
    from batcher.retry import MaxFailures
    from batcher.summary import ModelSummary, Summary

_HOMES = {
    "BatcherError": "batcher.errors",
    "ConfigurationError": "batcher.errors",
    "JobFileError": "batcher.errors",
    "Limit": "batcher.limits.pool",
    "MaxFailures": "batcher.retry",
    "ModelSummary": "batcher.summary",
    "Options": "batcher.options",
    "StoreError": "batcher.errors",
    "StoreLockedError": "batcher.errors",
    "StoreWriteError": "batcher.errors",
    "Summary": "batcher.summary",
    "run": "batcher.job",
    "status": "batcher.job",
}

__all__ = [
    "BatcherError",
    "ConfigurationError",
    "JobFileError",
    "Limit",
    "MaxFailures",
    "ModelSummary",
    "Options",
    "StoreError",
    "StoreLockedError",
    "StoreWriteError",
    "Summary",
    "run",
    "status",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401  any of the names above
    if name not in _HOMES:
        raise AttributeError(f"module 'batcher' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
