"""The sentiment job: review sentences in, one word for each out, and how often that is the human's word."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Final

import orjson

from batcher.errors import SimulatorError

MODEL: Final = "gpt-4o-mini"
_INSTRUCTION: Final = (
    "Say how the reviewer feels about the product. Answer with one word: positive, negative or neutral."
)
_NEUTRAL: Final = 0.2
_STOP_S: Final = 20.0


def reviews() -> list[dict[str, str | float]]:
    """Return the reviews: `id`, `score` (-4 to 4, the mean of human ratings) and `text`."""
    packaged = Path(str(files("batcher"))) / "jobs"
    # In a checkout the data stands beside the package; the wheel carries it inside.
    folder = packaged if packaged.is_dir() else packaged.parent.parent / "jobs"
    return [orjson.loads(line) for line in (folder / "amazon_reviews.jsonl").read_bytes().splitlines()]


def write_job(path: Path) -> None:
    """Write the job file: one request per review, in the Batch input form."""
    with path.open("wb") as file:
        for review in reviews():
            messages = [
                {"role": "system", "content": _INSTRUCTION},
                {"role": "user", "content": review["text"]},
            ]
            body = {"model": MODEL, "messages": messages, "max_completion_tokens": 16}
            line = {
                "custom_id": review["id"],
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": body,
            }
            file.write(orjson.dumps(line) + b"\n")


def agreement(results: Path) -> tuple[int, int]:
    """Compare the answers with the human labels; return how many agree, and how many answers there are.

    A mean rating within 5% of the scale's half, 0.2, of its middle is neutral: the same share that the
    authors of VADER call neutral on its own scale.
    """
    scores = {review["id"]: float(review["score"]) for review in reviews()}
    agreeing = total = 0
    for line in results.read_bytes().splitlines():
        result = orjson.loads(line)
        answer = result["response"]["body"]["choices"][0]["message"]["content"].strip().lower().rstrip(".")
        score = scores[result["custom_id"]]
        human = "positive" if score >= _NEUTRAL else "negative" if score <= -_NEUTRAL else "neutral"
        agreeing += answer == human
        total += 1
    return agreeing, total


@contextmanager
def simulator(*options: str) -> Iterator[str]:
    """Run `batcher simulate` as a process of its own; give its base URL.

    Raises:
        SimulatorError: it does not start; the message is its own.
    """
    command = [sys.executable, "-m", "batcher", "simulate", "--port", "0", *options]
    with subprocess.Popen(  # noqa: S603  our own command
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            ready = process.stdout.readline() if process.stdout is not None else ""
            if not ready:
                said = process.stderr.read().strip() if process.stderr is not None else ""
                raise SimulatorError(said.removeprefix("batcher: ") or "the simulator did not start")
            yield ready.split()[-1]
        finally:
            process.terminate()
            process.wait(_STOP_S)
