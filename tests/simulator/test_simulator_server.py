"""The process and its sockets."""

import json
import signal
import socket
import subprocess
import sys
import time

import pytest

BODY = b'{"model":"m","messages":[{"role":"user","content":"%d"}]}'


def raw(number, headers=b""):
    body = BODY % number
    return b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n%bContent-Length: %d\r\n\r\n%b" % (
        headers,
        len(body),
        body,
    )


def read_answers(connection, count):
    """Read so many answers, or as many as there are before the end."""
    file = connection.makefile("rb")
    answers = []
    while len(answers) < count and (line := file.readline()):
        size = 0
        while (header := file.readline()) != b"\r\n":
            if header.startswith(b"content-length:"):
                size = int(header.split(b":")[1])
        answers.append((int(line.split()[1]), json.loads(file.read(size))))
    return answers


@pytest.fixture
def connection(plain):
    with socket.create_connection(("127.0.0.1", plain.port), timeout=5) as connected:
        yield connected


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_exit_0(start, number):
    with (
        start("--latency", "1000") as simulator,
        socket.create_connection(("127.0.0.1", simulator.port)) as busy,
    ):
        busy.sendall(raw(1))
        time.sleep(0.1)
        simulator.process.send_signal(number)
        assert simulator.process.wait(5) == 0


def test_requests_sent_ahead_are_answered_in_their_order(plain, connection):
    connection.sendall(b"".join(raw(number) for number in range(200)))
    answers = read_answers(connection, 200)
    expected = [plain.post("/v1/chat/completions", BODY % number).body["id"] for number in (0, 1, 199)]
    assert [answers[number][1]["id"] for number in (0, 1, 199)] == expected
    assert len({body["id"] for _, body in answers}) == 200


def test_a_slow_answer_is_not_overtaken(start):
    with start("--latency", "1-20") as simulator:
        with socket.create_connection(("127.0.0.1", simulator.port), timeout=10) as connection:
            connection.sendall(b"".join(raw(number) for number in range(70)))
            ids = [body["id"] for _, body in read_answers(connection, 70)]
        assert ids == [
            simulator.post("/v1/chat/completions", BODY % number).body["id"] for number in range(70)
        ]


def test_a_chunked_body_in_small_pieces_is_the_same_request(plain, connection):
    connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    for place in range(0, len(BODY % 5), 10):
        piece = (BODY % 5)[place : place + 10]
        connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
        time.sleep(0.001)
    connection.sendall(b"0\r\n\r\n")
    [(status, body)] = read_answers(connection, 1)
    assert (status, body) == (200, plain.post("/v1/chat/completions", BODY % 5).body)


def test_connection_close_is_obeyed(connection):
    connection.sendall(raw(1, b"Connection: close\r\n"))
    assert len(read_answers(connection, 2)) == 1


def test_who_expects_100_continue_gets_it(connection):
    head, _, body = raw(1, b"Expect: 100-continue\r\n").partition(b"\r\n\r\n")
    connection.sendall(head + b"\r\n\r\n")
    assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.sendall(body)
    assert read_answers(connection, 1)[0][0] == 200


def test_what_is_not_http_is_400_and_closed(connection):
    connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
    assert [status for status, _ in read_answers(connection, 2)] == [400]


def test_latency_passes_before_the_answer(start):
    with start("--latency-before", "100-150", "--latency-after", "100") as simulator:
        began = time.monotonic()
        simulator.chat()
        assert time.monotonic() - began >= 0.195


def test_it_listens_on_this_machine_only(plain):
    assert plain.base_url.startswith("http://127.0.0.1:")


def run(*options):
    command = [sys.executable, "-m", "batcher", "simulate", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


def test_a_port_in_use_is_one_line_and_exit_2(plain):
    ended = run("--port", str(plain.port))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.count("\n") == 1
    assert f"can't listen on 127.0.0.1 port {plain.port}" in ended.stderr


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--fault", "fire=1%"], "names no fault"),
        (["--fault", "429=2"], "share from 0 to 1"),
        (["--fault", "429=much"], "share from 0 to 1"),
        (["--fault", "429=60%", "--fault", "500=60%"], "more than 100%"),
        (["--latency", "30-10"], "no latency"),
        (["--latency-after", "slow"], "no latency"),
    ],
)
def test_a_bad_option_says_what_is_wrong_with_it(options, reason):
    ended = run("--port", "0", *options)
    assert ended.returncode == 2
    assert reason in ended.stderr.splitlines()[-1]


def test_sentiment_without_its_package_says_what_to_install():
    code = "import sys; sys.modules['vaderSentiment'] = None; from batcher.cli import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", code, "simulate", "--port", "0", "--answers", "sentiment"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert ended.returncode == 2
    assert "pip install 'batcher-openai[demo]'" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_the_package_imports_nothing_of_the_rest():
    code = (
        "import sys, batcher.simulator; ours = [m for m in sys.modules if m.startswith('batcher.')]; "
        "print([m for m in ours if not m.startswith('batcher.simulator')])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
