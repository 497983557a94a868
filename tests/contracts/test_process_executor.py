"""What only worker processes promise: isolation, limits, devices, and that nothing of them stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from autopeft.errors import InputError
from autopeft.study.executors.base import (
    Checkpoint,
    Device,
    Event,
    Failed,
    Finished,
    Heartbeat,
    Lost,
    Progress,
    Resources,
    Started,
)
from autopeft.study.executors.process import ProcessExecutor
from autopeft.trial import Failure
from tests.contracts.cheap_jobs import HERE, ROOT, some_job
from tests.contracts.polling import alive, collect, ending, failure, poll_for, result, wait_until

Make = Callable[..., ProcessExecutor]


@pytest.fixture
def processes() -> Iterator[Make]:
    made: list[ProcessExecutor] = []

    def start(job: str, workers: int = 1, **options: Any) -> ProcessExecutor:
        made.append(ProcessExecutor(f"{HERE}:{job}", workers, **options))
        return made[-1]

    yield start
    for executor in made:
        executor.close()


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the jobs leave their marks."""
    path = tmp_path / "log"
    monkeypatch.setenv("CHEAP_JOBS_LOG", str(path))
    return path


def words(log: Path) -> list[str]:
    """Waits for the first line of the log."""
    wait_until(lambda: log.exists() and log.read_text().endswith("\n"))
    return log.read_text().splitlines()[0].split()


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


def test_a_worker_that_is_terminated_hands_over_the_checkpoint_first(processes: Make) -> None:
    executor = processes("until_stopped")
    executor.submit(some_job())
    poll_for(executor, Progress)
    (worker,) = executor.processes
    os.kill(worker, signal.SIGTERM)
    checkpoint, lost = collect(executor, 1)[-2:]
    assert isinstance(checkpoint, Checkpoint)
    assert isinstance(lost, Lost)
    assert (lost.reason, lost.stopped) == ("its worker process was terminated (SIGTERM)", False)
    wait_until(lambda: not alive(worker))


def test_an_idle_worker_that_is_terminated_goes(processes: Make) -> None:
    executor = processes("formula")
    assert isinstance(result(executor, some_job(0)), Finished)
    (worker,) = executor.processes
    os.kill(worker, signal.SIGTERM)
    wait_until(lambda: not alive(worker))
    assert isinstance(result(executor, some_job(1)), Finished)


def test_a_worker_killed_between_jobs_is_replaced(processes: Make) -> None:
    executor = processes("formula")
    executor.submit(some_job(0))
    collect(executor, 1)
    (worker,) = executor.processes
    os.kill(worker, signal.SIGKILL)
    os.waitid(os.P_PID, worker, os.WEXITED | os.WNOWAIT)  # dead with all its threads, and not yet reaped
    executor.submit(some_job(1))
    assert isinstance(ending(executor), Finished)


def test_a_job_beyond_the_time_limit_is_killed_with_its_process(processes: Make) -> None:
    executor = processes("hang", time_limit=0.2)
    executor.submit(some_job())
    workers = executor.processes
    event = ending(executor)
    assert isinstance(event, Failed)
    assert (event.failure.kind, event.failure.message) == ("timed_out", "took longer than 0.2 s")
    assert executor.processes == ()
    assert not alive(workers[0])


def test_a_job_beyond_the_memory_limit_fails_and_its_process_is_replaced(processes: Make) -> None:
    executor = processes("allocate", memory_limit=1 << 30)
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


def test_a_working_job_shows_that_it_lives(processes: Make) -> None:
    executor = processes("hang")
    executor.submit(some_job(4))
    beats = [e for e in poll_for(executor, Heartbeat) if isinstance(e, Heartbeat)]
    assert beats[0].number == 4
    assert 1 << 20 < beats[0].memory < 1 << 30


def test_a_process_that_stands_still_is_given_up(processes: Make) -> None:
    executor = processes("stand_still", silence_limit=2.0)
    executor.submit(some_job())
    (worker,) = executor.processes
    event = ending(executor)
    assert isinstance(event, Lost)
    assert (event.reason, event.stopped) == ("the worker process gave no sign of life for 2 s", False)
    assert event.cost.peak_bytes > 0
    assert not alive(worker)


def test_a_busy_job_is_not_taken_for_dead(processes: Make) -> None:
    # It says nothing itself; the heartbeats come from beside it, and are only read now and then.
    executor = processes("hang", silence_limit=3.0)
    executor.submit(some_job())
    poll_for(executor, Started)
    for _ in range(4):
        time.sleep(1.0)
        assert all(isinstance(e, Heartbeat) for e in executor.poll(0.0))


def test_a_limit_that_every_process_exceeds_is_refused() -> None:
    with pytest.raises(InputError, match="silence_limit: 1 s is no silence"):
        ProcessExecutor(f"{HERE}:formula", silence_limit=1.0)


def test_the_children_of_a_job_die_with_it(processes: Make, log: Path) -> None:
    executor = processes("hang_with_a_child", time_limit=0.5)
    executor.submit(some_job())
    worker, child = (int(word) for word in words(log)[1:])
    assert alive(child)
    event = ending(executor)
    assert isinstance(event, Failed)
    assert event.failure.kind == "timed_out"
    assert event.cost.seconds >= 0.5
    assert event.cost.peak_bytes > 0
    wait_until(lambda: not alive(child))
    assert not alive(worker)


def test_closing_leaves_no_orphan(processes: Make, log: Path) -> None:
    executor = processes("hang_with_a_child")
    executor.submit(some_job())
    worker, child = (int(word) for word in words(log)[1:])
    executor.close()
    assert not alive(worker)
    wait_until(lambda: not alive(child))


def test_a_crash_is_seen_although_a_child_holds_the_connection(processes: Make, log: Path) -> None:
    assert failure(processes("leave_a_child")) == ("crashed", "the worker process died with exit status 3")
    child = int(words(log)[2])
    wait_until(lambda: not alive(child))


def test_memory_that_is_no_data_is_measured_while_the_job_runs(processes: Make) -> None:
    executor = processes("share_memory", memory_limit=100 << 20)
    event = result(executor)
    assert isinstance(event, Failed)
    assert event.failure.kind == "out_of_memory"
    assert event.failure.message.startswith("used 1")
    assert event.failure.message.endswith(" MiB of memory; the limit is 100.0 MiB")
    assert event.cost.peak_bytes > 128 << 20
    assert executor.processes == ()


def test_a_job_larger_than_the_limit_of_a_worker_is_refused(processes: Make) -> None:
    event = result(processes("formula", memory_limit=1 << 30), resources=Resources(memory=2 << 30))
    assert isinstance(event, Failed)
    reason = "it needs 2.0 GiB of memory, and a worker may use 1.0 GiB"
    assert event.failure == Failure("refused", reason)


def test_a_process_that_grows_is_replaced(processes: Make) -> None:
    executor = processes("leak")
    seen = []
    for number in range(3):
        event = result(executor, some_job(number))
        assert isinstance(event, Finished)
        seen.append(event.outcome.detail["process"])
    assert seen[0] == seen[1] != seen[2]


def test_a_process_may_grow_where_that_is_allowed(processes: Make) -> None:
    executor = processes("leak", growth=1000.0)
    seen = set()
    for number in range(3):
        event = result(executor, some_job(number))
        assert isinstance(event, Finished)
        seen.add(event.outcome.detail["process"])
    assert len(seen) == 1


# -- devices --


def seen_by(executor: ProcessExecutor, events: list[Event]) -> dict[int, tuple[str, int]]:
    """What each job saw: its devices and its process."""
    ended = [e for e in events if isinstance(e, Finished)]
    return {e.number: (e.outcome.detail["devices"], e.outcome.detail["process"]) for e in ended}


def test_n_devices_run_n_jobs_at_once_one_each(processes: Make, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHEAP_JOBS_MEET", "3")  # none ends before three run
    executor = processes("meet", workers=3, devices=[Device("0"), Device("1"), Device("GPU-8f3c")])
    for number in range(6):
        executor.submit(some_job(number))
    seen = seen_by(executor, collect(executor, 6))
    assert {seen[number][0] for number in range(3)} == {"0", "1", "GPU-8f3c"}
    assert len(set(seen.values())) == 3  # and each process keeps its own


def test_no_device_is_held_by_two_workers_at_any_time(processes: Make) -> None:
    executor = processes("slow", workers=3, devices=[Device("0"), Device("1"), Device("2")])
    asked = [1, 2, 1, 3, 0, 1, 2, 2, 1, 0, 3, 1]
    for number, count in enumerate(asked):
        executor.submit(some_job(number), Resources(devices=count))
    ended = 0
    while ended < len(asked):
        held = [name for process in executor.processes for name in visible(process)]
        assert len(held) == len(set(held))
        ended += sum(isinstance(e, Finished) for e in executor.poll(0.01))


def visible(process: int) -> list[str]:
    """CUDA_VISIBLE_DEVICES of a process, as the kernel keeps it."""
    environment = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    names = next(line for line in environment if line.startswith(b"CUDA_VISIBLE_DEVICES=")).partition(b"=")[2]
    return [name.decode() for name in names.split(b",") if name]


def test_a_job_gets_the_number_of_devices_it_asks_for(processes: Make) -> None:
    executor = processes("devices", workers=2, devices=[Device("0"), Device("1")])
    found = []
    for number, count in enumerate((2, 1, 0, 2)):
        event = result(executor, some_job(number), Resources(devices=count))
        assert isinstance(event, Finished)
        found.append(event.outcome.detail["devices"])
    assert found[0] == found[3] == "0,1"
    assert found[1] in ("0", "1")
    assert found[2] == ""


def test_a_job_gets_the_smallest_device_that_suffices(processes: Make) -> None:
    executor = processes("devices", devices=[Device("big", 80 << 30), Device("small", 16 << 30)])
    found = []
    for number, memory in enumerate((1 << 30, 40 << 30)):
        event = result(executor, some_job(number), Resources(memory=memory))
        assert isinstance(event, Finished)
        found.append(event.outcome.detail["devices"])
    assert found == ["small", "big"]


@pytest.mark.parametrize(
    ("resources", "reason"),
    [
        (Resources(devices=3), "it asks for 3 devices and there are 2"),
        (
            Resources(memory=96 << 30),
            "it needs 96.0 GiB on a device; the largest of 2 has 80.0 GiB, and none is large enough",
        ),
        (
            Resources(devices=2, memory=40 << 30),
            "it needs 40.0 GiB on each of 2 devices; the largest of 2 has 80.0 GiB, and 1 is large enough",
        ),
    ],
)
def test_what_no_device_can_hold_is_refused(processes: Make, resources: Resources, reason: str) -> None:
    executor = processes("devices", devices=[Device("0", 80 << 30), Device("1", 16 << 30)])
    event = result(executor, resources=resources)
    assert isinstance(event, Failed)
    assert event.failure == Failure("refused", reason)
    assert executor.processes == ()


def test_without_devices_the_environment_is_left_alone(processes: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    event = result(processes("devices"), resources=Resources(devices=4))
    assert isinstance(event, Finished)
    assert event.outcome.detail["devices"] == "7"


def test_a_device_named_twice_is_refused() -> None:
    with pytest.raises(InputError, match="the same device twice in 0, 0"):
        ProcessExecutor(f"{HERE}:formula", devices=[Device("0"), Device("0")])
