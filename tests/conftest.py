"""The command and the simulator as real processes, and jobs for them."""

import ctypes
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
from hypothesis import settings

# No test asserts speed.
settings.register_profile("batcher", deadline=None)
settings.load_profile("batcher")

#: Where nothing listens: no test can reach a real server by forgetting to name one.
NOWHERE = "http://127.0.0.1:1/v1"
KEY = "sk-test-0123456789"
#: No process of these tests takes longer, in seconds; the bound only ends what hangs.
HANGS_S = 60

FAULTS = ("429", "500", "reset-before", "reset-after", "cut-off")

_WORDS = (
    *("the", "a", "this", "movie", "film", "plot", "actor", "scene", "ending", "was", "is", "felt", "great"),
    *("wonderful", "bad", "dull", "awful", "fine", "funny", "slow", "never", "always", "loved", "hated"),
    *("again", "worth", "time", "money", "and", "but", "with", "without"),
)


# From linux/prctl.h and linux/capability.h.
_PR_CAPBSET_DROP = 24
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1, 2
_LIBC = ctypes.CDLL(None, use_errno=True)


def obey_permissions():
    """Let what is executed next be refused what a file's mode forbids: root is refused nothing by itself."""
    for capability in (_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH):
        if os.geteuid() == 0 and _LIBC.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "root can't be made to obey permissions")


def environment(extra=None):
    """Return a child's environment: nothing of ours but the path, and what `extra` says (None removes)."""
    env = {"PATH": os.environ["PATH"], "OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": NOWHERE}
    return {name: value for name, value in {**env, **(extra or {})}.items() if value is not None}


class Finished(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self):
        """The one JSON object on standard output: anything else there is an error."""
        return json.loads(self.out)


class Running:
    """A command that has not ended yet."""

    def __init__(self, process):
        self.process = process
        self.pid = process.pid

    def signal(self, number):
        self.process.send_signal(number)

    def finish(self):
        out, err = self.process.communicate(timeout=HANGS_S)
        return Finished(self.process.returncode, out, err)

    @property
    def is_running(self):
        return self.process.poll() is None


class Simulator:
    """A simulator's address, and what it says it billed."""

    def __init__(self, base_url, process):
        self.base_url = base_url
        self.process = process
        self.port = urlsplit(base_url).port

    def ledger(self, target="/ledger?entries=1"):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=HANGS_S)
        try:
            connection.request("GET", target)
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def requests(self):
        return self.ledger("/ledger")["requests"]

    def wait_for(self, requests, running=None):
        """Wait until it has been asked so often, as long as the command that asks is running."""
        give_up = time.monotonic() + HANGS_S
        while self.requests() < requests:
            assert running is None or running.is_running, running.finish()
            assert time.monotonic() < give_up, f"no {requests} requests came"
            time.sleep(0.02)


@contextmanager
def ended(process):
    """End a process, by its own pid, if the test has not."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=HANGS_S)


@contextmanager
def simulator(*options, port=0):
    command = [sys.executable, "-m", "batcher", "simulate", "--port", str(port), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
    with ended(process):
        line = process.stdout.readline()
        assert line.startswith("batcher simulate: http://127.0.0.1:"), line
        yield Simulator(line.split()[-1], process)
        if process.poll() is None:
            process.terminate()
            process.wait(HANGS_S)


@pytest.fixture
def serve():
    """Return the context manager that starts a simulator: `with serve("--rpm", "60") as server`."""
    return simulator


@pytest.fixture
def faults():
    """Return the options of a simulator that gives one request in a hundred each of its faults."""
    return [option for name in FAULTS for option in ("--fault", f"{name}=1%")]


@pytest.fixture(scope="session")
def server():
    """Return a simulator without limits, latency or faults that all tests share: count differences only."""
    with simulator() as running:
        yield running


@pytest.fixture
def launch(tmp_path):
    """Return the context manager that starts a command in the test's folder and does not wait for it."""

    @contextmanager
    def start(*args, env=None):
        command = [sys.executable, "-m", "batcher", *map(str, args)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command, stdout=pipe, stderr=pipe, text=True, env=environment(env), cwd=tmp_path
        )
        with ended(process):
            yield Running(process)

    return start


@pytest.fixture
def batcher(tmp_path):
    """Return a function that runs a command in the test's folder to its end, with a user's rights."""

    def run(*args, env=None, stdin=""):
        command = [sys.executable, "-m", "batcher", *map(str, args)]
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            env=environment(env),
            cwd=tmp_path,
            timeout=HANGS_S,
            preexec_fn=obey_permissions,
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    return run


def review(number, chance):
    text = " ".join(chance.choices(_WORDS, k=chance.randint(20, 60)))
    messages = [
        {"role": "system", "content": "Say in one word how the reviewer feels about the movie."},
        {"role": "user", "content": text},
    ]
    body = {"model": "gpt-4o-mini", "messages": messages, "max_completion_tokens": 16}
    return {"custom_id": f"review-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def review_lines(count, seed=0):
    chance = random.Random(seed)
    return [review(number, chance) for number in range(count)]


@pytest.fixture
def reviews():
    """Return a function that makes the lines of a job, the same each time, as objects."""
    return review_lines


@pytest.fixture
def write(tmp_path):
    """Return a function that writes lines (objects) as a job file in the test's folder."""

    def lines(rows, name="job.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return lines


@pytest.fixture
def lines():
    """Return a function that reads a file of JSON Lines."""
    return lambda path: [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.fixture
def kill():
    """Return a function that ends a command as a crash would, and waits until it is gone."""

    def sigkill(running):
        running.signal(signal.SIGKILL)
        assert running.finish().code == -signal.SIGKILL

    return sigkill
