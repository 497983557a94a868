"""The contract of an executor, over every executor; and what only processes can promise."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autopeft.study.executors.base import Event, Executor, Failed, Finished, Lost, Started
from autopeft.study.executors.inline import InlineExecutor
from autopeft.study.executors.process import ProcessExecutor
from autopeft.trial import Failure
from tests.contracts import cheap_jobs
from tests.contracts.cheap_jobs import HERE, ROOT, some_job

PATIENCE = 60.0  # seconds after which a test gives up; no test measures time
EXECUTORS: dict[str, Callable[[str], Executor]] = {
    "inline": lambda job: InlineExecutor(f"{HERE}:{job}"),
    "process": lambda job: ProcessExecutor(f"{HERE}:{job}", workers=2, threads=1),
}
Make = Callable[..., Executor]


@pytest.fixture(params=EXECUTORS)
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    yield from _closing(EXECUTORS[request.param])


@pytest.fixture
def processes() -> Iterator[Make]:
    def start(job: str, workers: int = 1, **options: float) -> Executor:
        return ProcessExecutor(f"{HERE}:{job}", workers, **options)  # type: ignore[arg-type]

    yield from _closing(start)


def _closing(factory: Make) -> Iterator[Make]:
    made: list[Executor] = []

    def start(job: str, **options: object) -> Executor:
        made.append(factory(job, **options))
        return made[-1]

    yield start
    for executor in made:
        executor.close()


def collect(executor: Executor, endings: int) -> list[Event]:
    """Polls until that many jobs have ended."""
    events: list[Event] = []
    deadline = time.monotonic() + PATIENCE
    while sum(isinstance(e, Finished | Failed | Lost) for e in events) < endings:
        assert time.monotonic() < deadline, f"only {events}"
        events += executor.poll(0.1)
    return events


def ending(executor: Executor) -> Event:
    return collect(executor, 1)[-1]


def failure(executor: Executor) -> tuple[str, str]:
    executor.submit(some_job())
    event = ending(executor)
    assert isinstance(event, Failed), event
    return event.failure.kind, event.failure.message


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{process}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# -- every executor --


def test_a_job_starts_and_ends_once_with_its_outcome(make: Make) -> None:
    executor = make("formula")
    jobs = [some_job(number, 10.0**-number) for number in range(5)]
    for job in jobs:
        executor.submit(job)
    events = collect(executor, 5)
    events += executor.poll(0.0)
    for job in jobs:
        mine = [e for e in events if e.number == job.number]
        assert [type(e) for e in mine] == [Started, Finished]
        assert isinstance(mine[1], Finished)
        assert mine[1].outcome.files == cheap_jobs.formula(job).files
        assert mine[1].outcome.objectives["quality"] == cheap_jobs.formula(job).objectives["quality"]


def test_it_can_do_at_least_one_job_at_once(make: Make) -> None:
    assert make("formula").capacity >= 1


def test_polling_without_jobs_gives_nothing(make: Make) -> None:
    assert make("formula").poll(0.0) == []


@pytest.mark.parametrize(
    ("job", "kind", "message"),
    [
        ("raise_error", "error", "ValueError: no weights in shard 0"),
        ("raise_training_error", "nan", "the loss is not a number"),
        ("raise_memory_error", "out_of_memory", "MemoryError"),
        ("return_nothing", "error", "TypeError: evaluate returned NoneType, not an Outcome"),
        ("ask_to_exit", "error", "SystemExit: 1"),
    ],
)
def test_an_exception_fails_the_job_with_its_kind(make: Make, job: str, kind: str, message: str) -> None:
    assert failure(make(job)) == (kind, message)


def test_a_failure_carries_the_traceback(make: Make) -> None:
    executor = make("raise_error")
    executor.submit(some_job())
    event = ending(executor)
    assert isinstance(event, Failed)
    assert "in raise_error" in event.failure.traceback


def test_an_unknown_function_fails_the_job(make: Make) -> None:
    kind, message = failure(make("no_such_function"))
    assert kind == "error"
    assert "no_such_function" in message


def test_it_works_on_after_a_failure(make: Make) -> None:
    executor = make("every_third_fails")
    for number in range(4):
        executor.submit(some_job(number))
    ended = {e.number: type(e) for e in collect(executor, 4) if not isinstance(e, Started)}
    assert ended == {0: Failed, 1: Finished, 2: Finished, 3: Failed}


def test_a_killed_job_reports_nothing_more_and_others_go_on(make: Make) -> None:
    executor = make("slow")
    executor.submit(some_job(0))
    events: list[Event] = []
    while not any(isinstance(e, Started) for e in events):
        events += executor.poll(0.1)
    executor.submit(some_job(1))
    executor.submit(some_job(2))
    executor.kill(0)
    executor.kill(2)
    executor.kill(99)
    later = collect(executor, 1) + executor.poll(0.2)
    assert {e.number for e in later} == {1}


def test_closing_twice_is_safe(make: Make) -> None:
    executor = make("slow")
    executor.submit(some_job())
    executor.close()
    executor.close()
    assert executor.poll(0.0) == []


# -- processes --


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ("leave", "the worker process died with exit status 3"),
        ("fault", "the worker process died with signal SIGSEGV"),
    ],
)
def test_a_crash_fails_the_job_and_the_next_one_gets_a_new_process(processes: Make, job: str, message: str) -> None:
    executor = processes(job)
    assert failure(executor) == ("crashed", message)
    assert failure(executor) == ("crashed", message)


def test_a_crash_keeps_the_last_words_of_the_process(processes: Make) -> None:
    executor = processes("leave")
    executor.submit(some_job())
    event = ending(executor)
    assert isinstance(event, Failed)
    assert "the last words of the worker" in event.failure.traceback


def test_a_worker_killed_from_outside_loses_its_job(processes: Make) -> None:
    executor = processes("killed_from_outside")
    executor.submit(some_job())
    event = ending(executor)
    assert isinstance(event, Lost)
    assert (event.reason, event.stopped) == ("the worker process was killed (SIGKILL)", False)


def test_a_worker_killed_between_jobs_is_replaced(processes: Make) -> None:
    executor = processes("formula")
    assert isinstance(executor, ProcessExecutor)
    executor.submit(some_job(0))
    collect(executor, 1)
    (worker,) = executor.processes
    os.kill(worker, signal.SIGKILL)
    os.waitid(os.P_PID, worker, os.WEXITED | os.WNOWAIT)  # dead with all its threads, and not yet reaped
    executor.submit(some_job(1))
    assert isinstance(ending(executor), Finished)


def test_a_job_beyond_the_time_limit_is_killed_with_its_process(processes: Make) -> None:
    executor = processes("hang", time_limit=0.2)
    assert isinstance(executor, ProcessExecutor)
    executor.submit(some_job())
    workers = executor.processes
    event = ending(executor)
    assert isinstance(event, Failed)
    assert (event.failure.kind, event.failure.message) == ("timed_out", "took longer than 0.2 s")
    assert executor.processes == ()
    assert not alive(workers[0])


def test_a_job_beyond_the_memory_limit_fails_and_its_process_is_replaced(processes: Make) -> None:
    executor = processes("allocate", memory_limit=1 << 30)
    assert isinstance(executor, ProcessExecutor)
    executor.submit(some_job())
    (worker,) = executor.processes
    event = ending(executor)
    assert isinstance(event, Failed)
    assert event.failure.kind == "out_of_memory"
    assert not alive(worker)


def test_an_outcome_that_cannot_travel_fails_the_job(processes: Make) -> None:
    assert failure(processes("return_a_function"))[0] == "error"


def test_an_outcome_that_cannot_be_read_fails_the_job_and_its_process_is_replaced(processes: Make) -> None:
    executor = processes("return_an_explosive")
    executor.submit(some_job(0))
    event = ending(executor)
    assert isinstance(event, Failed)
    assert event.failure == Failure("crashed", "what the job returned cannot be read: RuntimeError: it was no outcome")
    assert executor.processes == ()
    executor.submit(some_job(1))
    assert ending(executor).number == 1


def test_a_hanging_job_can_be_killed(processes: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    monkeypatch.setenv("CHEAP_JOBS_LOG", str(log))
    executor = processes("hang")
    executor.submit(some_job())
    wait_until(log.exists)
    worker = int(log.read_text().split()[2])
    executor.kill(0)
    assert not alive(worker)


def test_threads_are_set_before_any_library_is_loaded(processes: Make) -> None:
    executor = processes("formula", threads=3)
    executor.submit(some_job())
    event = ending(executor)
    assert isinstance(event, Finished)
    assert event.outcome.detail["threads"] == "3"


def test_jobs_run_side_by_side_and_a_worker_is_kept(processes: Make) -> None:
    executor = processes("slow", workers=2)
    assert isinstance(executor, ProcessExecutor)
    for number in range(6):
        executor.submit(some_job(number))
    workers = executor.processes
    assert len(workers) == 2
    collect(executor, 6)
    assert executor.processes == workers


def test_workers_die_with_a_driver_that_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = (
        "from tests.contracts.cheap_jobs import HERE, some_job\n"
        "from autopeft.study.executors.process import ProcessExecutor\n"
        "executor = ProcessExecutor(f'{HERE}:hang', 1)\n"
        "executor.submit(some_job())\n"
        "while True: executor.poll(1.0)\n"
    )
    driver = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "CHEAP_JOBS_LOG": str(log), "PYTHONPATH": str(ROOT)}
    )
    try:
        wait_until(lambda: log.exists() and log.read_text().endswith("\n"))
    finally:
        driver.kill()
        driver.wait()
    worker = int(log.read_text().split()[2])
    wait_until(lambda: not alive(worker))
