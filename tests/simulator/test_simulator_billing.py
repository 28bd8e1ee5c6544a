"""Keys, faults and the ledger: what is billed, and how often."""

import http.client
import threading
import time

import pytest


def fails(call):
    """Return how a request ended without an answer."""
    with pytest.raises((ConnectionError, http.client.IncompleteRead)) as caught:
        call()
    return type(caught.value)


def test_the_ledger_sums_per_model_and_lists_every_key(plain, start):
    with start() as simulator:
        first = simulator.chat("one", key="k1").body["usage"]
        other = simulator.post("/v1/embeddings", {"model": "e", "input": "x" * 40})
        simulator.request("GET", "/nowhere")
        ledger = simulator.ledger("?entries=1")
    assert other.status == 200
    assert (ledger["requests"], ledger["billed"], ledger["keys"], ledger["billed_twice"]) == (3, 2, 2, 0)
    assert ledger["refused"] == {"404": 1}
    assert ledger["prompt_tokens"] == first["prompt_tokens"] + 10
    assert ledger["by_model"]["e"] == {
        "billed": 1,
        "prompt_tokens": 10,
        "completion_tokens": 0,
        "cached_tokens": 0,
    }
    keyed, bare = ledger["entries"]
    assert (keyed["key"], keyed["times"], keyed["model"]) == ("k1", 1, "m")
    assert keyed["completion_tokens"] == first["completion_tokens"]
    assert bare["key"] is None
    assert len(bare["body"]) == 32


def test_a_key_that_was_answered_is_replayed_and_not_billed_again(start):
    with start("--rpm", "1") as simulator:
        first, second = simulator.chat("a", key="k"), simulator.chat("a", key="k")
        assert second.raw == first.raw
        assert second.headers["idempotent-replayed"] == "true"
        assert "idempotent-replayed" not in first.headers
        ledger = simulator.ledger()
    assert (ledger["billed"], ledger["replayed"], ledger["requests"]) == (1, 1, 2)


def test_a_key_with_another_body_is_422(start):
    with start() as simulator:
        simulator.chat("a", key="k")
        answer = simulator.chat("b", key="k")
    assert (answer.status, answer.code) == (422, "idempotency_key_reused")


def test_a_key_under_way_is_409_and_free_again_afterwards(start):
    with start("--latency-after", "600") as simulator:
        slow = threading.Thread(target=simulator.chat, args=("a", "k"))
        slow.start()
        time.sleep(0.2)
        answer = simulator.chat("a", key="k")
        other = simulator.chat("b", key="k")
        slow.join()
        assert simulator.chat("a", key="k").headers["idempotent-replayed"] == "true"
    assert (answer.status, answer.code) == (409, "idempotency_key_in_progress")
    assert (other.status, other.code) == (422, "idempotency_key_reused")


def test_a_refusal_that_is_kept_is_said_again_and_another_key_is_free(start):
    with start("--idempotency", "keep-failures", "--fault", "500=50%") as simulator:
        first = {key: simulator.chat("a", key=key) for key in map(str, range(20))}
        failed = [key for key, answer in first.items() if answer.status == 500]
        for key in failed * 2:
            again = simulator.chat("a", key=key)
            assert (again.status, again.raw) == (500, first[key].raw)
            assert again.headers["idempotent-replayed"] == "true"
        ledger = simulator.ledger()
    assert 0 < len(failed) < 20
    assert all("idempotent-replayed" not in answer.headers for answer in first.values())
    assert (ledger["billed"], ledger["replayed"]) == (20 - len(failed), 2 * len(failed))
    assert ledger["faults"] == {"500": len(failed)}


def test_ignored_keys_are_billed_as_often_as_they_come(start):
    with start("--idempotency", "ignore") as simulator:
        for _ in range(3):
            assert "idempotent-replayed" not in simulator.chat("a", key="k").headers
        ledger = simulator.ledger("?entries=1")
    assert (ledger["billed"], ledger["keys"], ledger["billed_twice"]) == (3, 1, 1)
    assert ledger["entries"][0]["times"] == 3


@pytest.mark.parametrize(("fault", "billed"), [("reset-before", 0), ("reset-after", 1), ("cut-off", 1)])
def test_a_fault_without_an_answer_bills_only_work_that_was_done_and_only_once(start, fault, billed):
    with start("--fault", f"{fault}=100%") as simulator:
        expected = http.client.IncompleteRead if fault == "cut-off" else ConnectionResetError
        for _ in range(2):
            assert fails(lambda: simulator.chat("a", key="k")) is expected
        ledger = simulator.ledger()
    assert ledger["billed"] == billed
    assert ledger["faults"] == {fault: 2}
    assert ledger["replayed"] == billed


def test_work_that_was_cut_off_is_replayed_in_full(start):
    with start("--fault", "cut-off=0.5") as simulator, start() as sound:
        for number in range(40):
            for _ in range(40):
                try:
                    answer = simulator.chat(f"row {number}", key=f"k{number}")
                except http.client.IncompleteRead:
                    continue
                break
            assert answer.raw == sound.chat(f"row {number}").raw
        ledger = simulator.ledger()
    assert (ledger["billed"], ledger["keys"], ledger["billed_twice"]) == (40, 40, 0)
    assert ledger["faults"]["cut-off"] == ledger["requests"] - 40
    assert ledger["replayed"] > 0


@pytest.mark.parametrize(("status", "type_"), [("429", "requests"), ("500", "server_error")])
def test_a_fault_that_answers_is_refused_and_not_billed(start, status, type_):
    with start("--fault", f"{status}=1") as simulator:
        answer = simulator.chat()
        ledger = simulator.ledger()
    assert answer.status == int(status)
    assert answer.body["error"]["type"] == type_
    assert (ledger["billed"], ledger["refused"]) == (0, {status: 1})


def test_which_requests_meet_faults_depends_on_the_seed_and_not_on_the_order(start):
    def run(order, seed):
        with start("--fault", "500=30%", "--seed", seed) as simulator:
            return {number: simulator.chat(f"row {number}").status for number in order}

    forward = run(range(40), "1")
    assert run(reversed(range(40)), "1") == forward
    assert run(range(40), "2") != forward
    assert 3 < list(forward.values()).count(500) < 25


def test_over_the_limit_is_429_with_the_time_to_wait(start):
    with start("--rpm", "120") as simulator:
        answers = [simulator.chat(str(number)) for number in range(125)]
        ledger = simulator.ledger()
    refused = [answer for answer in answers if answer.status == 429]
    assert refused
    assert refused[0].code == "rate_limit_exceeded"
    assert refused[0].body["error"]["type"] == "requests"
    assert 0 < int(refused[0].headers["retry-after-ms"]) <= 500
    assert refused[0].headers["retry-after"] == "1"
    assert refused[0].headers["x-ratelimit-limit-requests"] == "120"
    assert refused[0].headers["x-ratelimit-remaining-requests"] == "0"
    assert ledger["refused"] == {"429": len(refused)}
    assert ledger["billed"] == 125 - len(refused)


def test_tokens_are_charged_with_the_output_limit_for_each_model(start):
    with start("--tpm", "100", "--window", "sliding") as simulator:
        first = simulator.chat("x" * 41, max_tokens=50)
        assert first.headers["x-ratelimit-remaining-tokens"] == str(100 - 11 - 50)
        assert simulator.chat("y" * 41, max_tokens=50).body["error"]["type"] == "tokens"
        assert simulator.chat("y" * 41, max_tokens=50, model="another").status == 200
        too_large = simulator.chat("z", max_tokens=100)
        assert too_large.status == 429
        assert "retry-after-ms" not in too_large.headers
