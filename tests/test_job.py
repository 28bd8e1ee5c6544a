"""A job from Python: the same as the command, in any thread, and resumable after a cancellation."""

import asyncio
import inspect
import threading

import anyio
import pytest

import batcher as library
from batcher.job import World, run_job
from batcher.options import Options
from batcher.request import Reply
from batcher.stop import INTERRUPTED
from batcher.testing import MemoryTransport, VirtualClock, answer, inline_connection
from batcher.testing import run as run_virtual


@pytest.fixture(autouse=True)
def key(monkeypatch, tmp_path):
    """Give this process a key, and a folder of its own without an `.env`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")


@pytest.fixture
def run(server):
    """Run a job in an event loop of its own."""

    def finish(job, **options):
        options = {"base_url": server.base_url, "max_inflight": 50, **options}
        return asyncio.run(library.run(job, **options))

    return finish


def test_the_summary_is_what_json_prints(run, batcher, server, write, reviews):
    rows = reviews(50)
    summary = run(write(rows))
    printed = batcher("run", write(rows, "other.jsonl"), "--base-url", server.base_url, "--json").json
    assert isinstance(summary, library.Summary)
    assert isinstance(summary.by_model["gpt-4o-mini"], library.ModelSummary)
    assert {**summary.to_dict(), "elapsed_s": 0} == {**printed, "elapsed_s": 0}
    assert summary.exit_code == 0


def test_it_runs_in_a_thread_that_gets_no_signals(run, write, reviews):
    job, ended = write(reviews(50)), []
    thread = threading.Thread(target=lambda: ended.append(run(job)))
    thread.start()
    thread.join(60)
    assert [summary.succeeded for summary in ended] == [50]


def test_it_prints_nothing(run, write, reviews, capfd):
    run(write(reviews(5)))
    assert capfd.readouterr() == ("", "")


def test_it_leaves_the_callers_signals_alone(run, write, reviews):
    import signal

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run(write(reviews(5)))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_it_runs_under_anyio_too(server, write, reviews):
    job = str(write(reviews(5)))

    async def both():
        first = await library.run(job, base_url=server.base_url)
        return first, await library.run(job, base_url=server.base_url)

    first, second = anyio.run(both)
    assert (first.requests, second.requests, second.already_done) == (5, 0, 5)


def test_two_jobs_at_once_in_one_loop(server, write, reviews):
    jobs = [write(reviews(50, seed=seed), f"job-{seed}.jsonl") for seed in range(2)]

    async def both():
        return await asyncio.gather(
            *(library.run(job, base_url=server.base_url, max_inflight=50) for job in jobs)
        )

    assert [summary.succeeded for summary in asyncio.run(both())] == [50, 50]


def test_status_from_python(run, write, reviews):
    job = write(reviews(5))
    with pytest.raises(library.StoreError, match="nothing of this job has run yet"):
        library.status(job)
    summary = run(job)
    assert library.status(job).succeeded == summary.succeeded == 5


def test_an_unknown_option_is_a_type_error(server, write, reviews):
    with pytest.raises(TypeError, match="rmp"):
        asyncio.run(library.run(write(reviews(1)), base_url=server.base_url, rmp=5))


def test_a_wrong_option_is_refused_before_anything_is_made(run, write, reviews, tmp_path):
    job = write(reviews(1))
    with pytest.raises(library.ConfigurationError, match="--rpm"):
        run(job, rpm=-1)
    assert list(tmp_path.iterdir()) == [job]


@pytest.mark.parametrize("name", ["no.jsonl", "."])
def test_a_job_file_that_cannot_be_read(run, name):
    with pytest.raises(library.JobFileError):
        run(name)


def test_no_key(run, write, reviews, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(library.ConfigurationError, match="OPENAI_API_KEY"):
        run(write(reviews(1)))


def test_cancelling_leaves_a_store_that_goes_on(serve, write, reviews, lines, tmp_path):
    rows = reviews(600)
    job = write(rows)

    with serve("--latency-after", "50-150") as slow:

        async def cancelled():
            task = asyncio.create_task(library.run(job, base_url=slow.base_url, max_inflight=50))
            await anyio.to_thread.run_sync(slow.wait_for, 200)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(cancelled())
        status = library.status(job)
        assert 0 < status.succeeded < len(rows)
        assert (status.failed, status.pending) == (0, len(rows) - status.succeeded)
        summary = asyncio.run(library.run(job, base_url=slow.base_url, max_inflight=50))
        assert slow.ledger()["billed_twice"] == 0
    assert (summary.exit_code, summary.succeeded, summary.already_done) == (0, len(rows), status.succeeded)
    assert [line["custom_id"] for line in lines(tmp_path / "job.results.jsonl")] == [
        row["custom_id"] for row in rows
    ]


def test_a_timeout_around_it_is_the_callers(serve, write, reviews):
    job = write(reviews(20))
    with serve("--latency-after", "20000") as slow:

        async def hurried():
            with anyio.move_on_after(1.0) as scope:
                await library.run(job, base_url=slow.base_url)
            return scope.cancelled_caught

        assert asyncio.run(hurried())
    assert library.status(job).pending == 20


def in_virtual_time(job, answer=answer, watch=None, **options):
    """Run a job without a network, a thread or a wait."""
    clock = VirtualClock()
    world = World(clock=clock, connect=inline_connection, transport=lambda *_: MemoryTransport(answer, clock))
    given = Options(job=str(job), base_url="http://localhost/v1", **options)
    return run_virtual(lambda: run_job(given, {"OPENAI_API_KEY": "key"}, world=world, watch=watch), clock)


def test_a_job_meets_whatever_world_it_is_given(write, reviews, lines, tmp_path):
    summary = in_virtual_time(write(reviews(600)), rpm=60)
    assert (summary.exit_code, summary.succeeded) == (0, 600)
    assert 590 <= summary.elapsed_s <= 610
    assert len(lines(tmp_path / "job.results.jsonl")) == 600


def test_how_long_an_answer_may_take_is_how_long_a_key_in_progress_is_waited_for(write, reviews):
    body = b'{"error": {"message": "busy", "code": "idempotency_key_in_progress"}}'

    def busy(_claimed, now):
        return Reply(409, (), body, now, now + 0.1)

    summary = in_virtual_time(write(reviews(1)), busy, timeout_s=30.0, max_attempts=1)
    assert (summary.by_error, summary.requests) == ({"in_progress": 1}, 8 + 1 + 1)


def test_a_signal_that_comes_when_all_is_done_changes_nothing(write, reviews):
    async def interrupt_at_the_end(loop, _tally):
        try:
            await anyio.sleep_forever()
        finally:
            loop.stop(INTERRUPTED)

    summary = in_virtual_time(write(reviews(5)), watch=interrupt_at_the_end)
    assert (summary.exit_code, summary.succeeded, summary.stopped) == (0, 5, None)


def test_run_is_a_coroutine_function():
    assert inspect.iscoroutinefunction(library.run)
