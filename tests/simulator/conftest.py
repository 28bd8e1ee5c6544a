"""A real simulator in a process of its own, and a plain client for it."""

import http.client
import json
import subprocess
import sys
from contextlib import contextmanager
from typing import NamedTuple

import pytest


class Answer(NamedTuple):
    status: int
    headers: dict
    raw: bytes

    @property
    def body(self):
        return json.loads(self.raw)

    @property
    def code(self):
        return self.body["error"]["code"]


class Simulator:
    """Speaks to one simulator; every request has a connection of its own."""

    def __init__(self, base_url, process):
        self.base_url = base_url
        self.process = process
        self.port = int(base_url.rsplit(":", 1)[1].removesuffix("/v1"))
        self.timeout_s = 10

    def request(self, method, path, body=None, **headers):
        if isinstance(body, dict):
            body = json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.timeout_s)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            reply = connection.getresponse()
            return Answer(reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read())
        finally:
            connection.close()

    def post(self, path, body, **headers):
        return self.request("POST", path, body, **headers)

    def chat(self, text="hello", key=None, **fields):
        body = {"model": "m", "messages": [{"role": "user", "content": text}], **fields}
        return self.post("/v1/chat/completions", body, **({"Idempotency_Key": key} if key else {}))

    def ledger(self, query=""):
        return self.request("GET", "/ledger" + query).body


@contextmanager
def simulator(*options):
    command = [sys.executable, "-m", "batcher", "simulate", "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith("batcher simulate: http://127.0.0.1:")
            yield Simulator(line.removeprefix("batcher simulate: ").strip(), process)
        finally:
            process.terminate()
            process.wait(10)


@pytest.fixture
def script(tmp_path):
    """Return a function that writes a script of faults, of lines (objects), and returns its options."""

    def write(*lines):
        path = tmp_path / "faults.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return "--faults", str(path)

    return write


@pytest.fixture
def start():
    """Return the context manager that starts a simulator with the given options."""
    return simulator


@pytest.fixture(scope="module")
def start_once():
    """Return what `start` does, for a simulator that a module's tests share."""
    return simulator


@pytest.fixture(scope="module")
def plain():
    """Return a simulator with no options, which the module's tests share."""
    with simulator() as running:
        yield running
