"""Scripts of faults: who meets which line, outages, and every mistake that a script can have."""

import errno
import json
import socket
import subprocess
import sys
import time

import pytest

from batcher.simulator import Scheduled, StartError, read_script
from batcher.simulator.door import outages
from batcher.simulator.faults import Faults

#: No clock of a loaded machine is exact: what may not come early may come so much early.
SLACK_S = 0.02


def drawn(script, number=1, passed_s=0.0, name="k", shares=None):
    fault, _by_script = Faults(shares or {}, script, seed=0).draw(name, number, passed_s)
    return fault and fault.name


def test_what_the_script_decides_is_no_occurrence_for_the_shares():
    def met(script):
        faults, names = Faults({"500": 0.5}, script, seed=0), []
        for second in range(40):
            fault, by_script = faults.draw("k", second + 1, second)
            faults.happened("k", by_script=by_script)
            names += [fault and fault.name] * (not by_script)
        return names

    undisturbed = met(())
    disturbed = met([Scheduled(fault="503", at_s=5, for_s=10)])
    assert len(disturbed) == 30
    assert disturbed == undisturbed[:30]
    assert {None, "500"} == set(disturbed)


def test_seconds_begin_with_theirs_and_end_before_theirs():
    script = [Scheduled(fault="503", at_s=20, for_s=10)]
    assert [drawn(script, passed_s=second) for second in (0, 19.99, 20, 29.99, 30, 1e9)] == [
        *(None, None, "503", "503", None, None)
    ]
    assert drawn([Scheduled(fault="503", at_s=20)], passed_s=1e9) == "503"


def test_requests_begin_with_the_one_that_is_named():
    script = [Scheduled(fault="503", after=1000, count=50)]
    assert [drawn(script, number) for number in (1, 999, 1000, 1049, 1050)] == [
        *(None, None, "503", "503", None)
    ]
    assert drawn([Scheduled(fault="503", after=3)], 10**9) == "503"
    assert drawn([Scheduled(fault="503", after=0, count=1)], 1) == "503"


def test_the_first_line_that_fits_goes_before_the_others_and_the_shares():
    script = [Scheduled(fault="401", after=2, count=1), Scheduled(fault="503", at_s=0, for_s=5)]
    assert [drawn(script, n, s, shares={"500": 1}) for n, s in ((1, 0), (2, 1), (3, 2), (4, 5))] == [
        *("503", "401", "503", "500")
    ]


def test_a_share_is_of_the_requests_by_name_and_each_line_has_its_own():
    script = [Scheduled(fault="429", at_s=0, share=0.5), Scheduled(fault="500", at_s=0, share=0.5)]
    met = [drawn(script, name=f"k{number}") for number in range(1000)]
    assert met == [drawn(script, number=9, name=f"k{number}") for number in range(1000)]
    counts = {fault: met.count(fault) for fault in ("429", "500", None)}
    assert 430 < counts["429"] < 570
    assert 190 < counts["500"] < 310
    assert 190 < counts[None] < 310
    assert drawn([Scheduled(fault="429", at_s=0, share=0)]) is None


def test_outages_that_touch_are_one():
    script = [
        Scheduled(fault="refuse-connections", at_s=at_s, for_s=for_s)
        for at_s, for_s in ((5, 5), (0, 1), (6, 1), (10, 2), (20, None), (30, 1))
    ]
    assert outages([*script, Scheduled(fault="503", at_s=2)]) == [(0, 1), (5, 12), (20, float("inf"))]


def test_requests_of_a_running_simulator_are_counted_from_the_first_and_the_ledger_is_none(start, script):
    line = {"fault": "503", "after": 3, "count": 2}
    with start(*script(line)) as simulator:
        statuses = []
        for number in range(6):
            simulator.ledger()
            statuses.append(simulator.chat(str(number)).status)
        ledger = simulator.ledger()
    assert statuses == [200, 200, 503, 503, 200, 200]
    assert (ledger["billed"], ledger["faults"], ledger["refused"]) == (4, {"503": 2}, {"503": 2})


def test_seconds_count_from_the_first_request(start, script):
    with start(*script({"fault": "503", "at_s": 0.4, "for_s": 0.4})) as simulator:
        time.sleep(0.5)
        simulator.ledger()
        statuses, began = [], time.monotonic()
        while len(statuses) < 3:
            status = simulator.chat(str(time.monotonic())).status
            if not statuses or statuses[-1][0] != status:
                statuses.append((status, time.monotonic() - began))
            assert time.monotonic() - began < 10
    assert [status for status, _ in statuses] == [200, 503, 200]
    assert statuses[1][1] >= 0.4 - SLACK_S
    assert statuses[2][1] >= 0.8 - SLACK_S


def test_an_outage_resets_connections_refuses_new_ones_and_ends(start, script):
    with start(*script({"fault": "refuse-connections", "at_s": 0.3, "for_s": 0.7})) as simulator:
        address = ("127.0.0.1", simulator.port)
        with socket.create_connection(address, timeout=5) as idle:
            began = time.monotonic()
            first = simulator.chat("a", key="k")
            with pytest.raises(ConnectionResetError):
                idle.recv(1)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, timeout=5)
        with socket.socket() as thief, pytest.raises(OSError, match=r".") as refused:
            thief.bind(address)
        assert refused.value.errno == errno.EADDRINUSE
        second = until_it_answers(simulator, began)
        assert time.monotonic() - began >= 1 - SLACK_S
        assert second.raw == first.raw
        assert second.headers["idempotent-replayed"] == "true"


def until_it_answers(simulator, began):
    while True:
        try:
            return simulator.chat("a", key="k")
        except ConnectionError:
            assert time.monotonic() - began < 10
            time.sleep(0.02)


def until_it_refuses(simulator):
    """Ask until connects are refused: one that was taken at the last moment is reset."""
    began = time.monotonic()
    while time.monotonic() - began < 10:
        try:
            simulator.chat("a")
        except ConnectionRefusedError:
            return
        except ConnectionResetError:
            continue
    pytest.fail("connections are taken")


def test_an_outage_from_the_start_does_no_work_for_the_request_that_starts_it(start, script):
    lines = [{"fault": "refuse-connections", "at_s": at_s, "for_s": 0.2} for at_s in (0, 0.6)]
    with start(*script(*lines)) as simulator:
        began = time.monotonic()
        with pytest.raises(ConnectionResetError):
            simulator.chat("a", key="k")
        assert until_it_answers(simulator, began).status == 200
        time.sleep(max(0, began + 0.7 - time.monotonic()))
        assert until_it_answers(simulator, began).status == 200
        assert time.monotonic() - began >= 0.8 - SLACK_S
        ledger = simulator.ledger()
    assert ledger["billed"] == 1
    assert ledger["faults"]["refuse-connections"] >= 1


def test_an_outage_for_ever_ends_with_the_simulator(start, script):
    with start(*script({"fault": "refuse-connections", "at_s": 0})) as simulator:
        with pytest.raises(ConnectionResetError):
            simulator.chat("a")
        until_it_refuses(simulator)
        simulator.process.terminate()
        assert simulator.process.wait(5) == 0


def test_blank_lines_are_allowed_and_so_is_nothing(tmp_path):
    path = tmp_path / "faults.jsonl"
    path.write_bytes(b'\n{"fault": "503", "at_s": 0}\r\n  \n\n{"fault": "hang", "after": 1}')
    assert [line.fault for line in read_script(path)] == ["503", "hang"]
    path.write_bytes(b"")
    assert read_script(path) == ()


GOOD = b'{"fault": "503", "at_s": 1}'
MISTAKES = {
    "not JSON": (b"fault: 503", "not JSON"),
    "cut off": (GOOD[:-5], "not JSON"),
    "not UTF-8": (b'{"fault": "\xff"}', "not JSON"),
    "not an object": (b"[1]", "object"),
    "no fault": (b'{"at_s": 1}', "`fault`"),
    "unknown fault": (b'{"fault": "fire", "at_s": 1}', "'fire' names no fault"),
    "unknown field": (b'{"fault": "503", "at": 1}', "`at`"),
    "fault is a number": (b'{"fault": 503, "at_s": 1}', "$.fault"),
    "at_s is a text": (b'{"fault": "503", "at_s": "1"}', "$.at_s"),
    "at_s is a truth": (b'{"fault": "503", "at_s": true}', "$.at_s"),
    "at_s is no number": (b'{"fault": "503", "at_s": NaN}', "not JSON"),
    "after is a fraction": (b'{"fault": "503", "after": 1.5}', "$.after"),
    "share is a text": (b'{"fault": "503", "at_s": 1, "share": "1%"}', "$.share"),
    "at_s is negative": (b'{"fault": "503", "at_s": -1}', "at_s and after must be at least 0"),
    "after is negative": (b'{"fault": "503", "after": -1}', "at_s and after must be at least 0"),
    "for_s is negative": (b'{"fault": "503", "at_s": 1, "for_s": -1}', "for_s and count must be above 0"),
    "count is negative": (b'{"fault": "503", "after": 1, "count": -1}', "for_s and count must be above 0"),
    "share is negative": (b'{"fault": "503", "at_s": 1, "share": -0.5}', "between 0 and 1"),
    "share is above 1": (b'{"fault": "503", "at_s": 1, "share": 1.5}', "between 0 and 1"),
    "neither at_s nor after": (b'{"fault": "503"}', "at_s or after"),
    "both at_s and after": (b'{"fault": "503", "at_s": 1, "after": 1}', "at_s or after"),
    "for_s with after": (b'{"fault": "503", "after": 1, "for_s": 1}', "for_s goes with at_s"),
    "count with at_s": (b'{"fault": "503", "at_s": 1, "count": 1}', "count with after"),
    "an outage by number": (b'{"fault": "refuse-connections", "after": 1}', "takes at_s"),
    "an outage for some": (b'{"fault": "refuse-connections", "at_s": 1, "share": 0.5}', "takes at_s"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_names_its_line(tmp_path, mistake):
    line, reason = MISTAKES[mistake]
    path = tmp_path / "faults.jsonl"
    path.write_bytes(b"\n".join([GOOD, b"", line, GOOD]))
    with pytest.raises(StartError) as refused:
        read_script(path)
    assert str(refused.value).startswith(f"{path} line 3: ")
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


#: Through the command, which takes its time to start: one of each way to fail.
@pytest.mark.parametrize("mistake", ["not JSON", "unknown fault", "unknown field", "at_s is negative"])
def test_the_command_says_the_mistake_in_one_line(tmp_path, mistake):
    path = tmp_path / "faults.jsonl"
    path.write_bytes(b"\n".join([GOOD, b"", MISTAKES[mistake][0]]))
    ended = command(path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"batcher: {path} line 3: ")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(("name", "reason"), [("nowhere.jsonl", "No such file"), (".", "directory")])
def test_the_command_says_that_there_is_no_script(tmp_path, name, reason):
    ended = command(tmp_path / name)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("batcher: can't read ")
    assert reason in ended.stderr
    assert ended.stderr.count("\n") == 1


def command(path):
    arguments = [sys.executable, "-m", "batcher", "simulate", "--port", "0", "--faults", str(path)]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=20, check=False)


def test_shares_and_scripts_come_from_the_environment_by_their_options_names(tmp_path, monkeypatch, start):
    path = tmp_path / "faults.jsonl"
    path.write_text(json.dumps({"fault": "503", "after": 1, "count": 1}))
    monkeypatch.setenv("BATCHER_SIMULATE_FAULTS", str(path))
    monkeypatch.setenv("BATCHER_SIMULATE_FAULT", "401=100%")
    with start() as simulator:
        assert [simulator.chat().status for _ in range(2)] == [503, 401]
