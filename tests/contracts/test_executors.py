"""The contract of an executor, over every executor.

An executor joins by one line in `EXECUTORS`. No test here assumes that there are processes, pipes or a shared disk;
what only some executors promise is tested beside them.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest

from autopeft.job import Job, Outcome, Report
from autopeft.study.executors.base import (
    Checkpoint,
    Event,
    Executor,
    Failed,
    Finished,
    Heartbeat,
    Lost,
    Progress,
    Resources,
    Started,
    named,
)
from autopeft.study.executors.inline import InlineExecutor
from autopeft.study.executors.process import ProcessExecutor
from autopeft.study.executors.simulated import SimulatedExecutor
from autopeft.study.executors.stacked import EvaluateTogether, StackedExecutor
from autopeft.study.signals import StopNow, StopRequests
from tests.contracts import cheap_jobs
from tests.contracts.cheap_jobs import HERE, some_job
from tests.contracts.polling import collect, ending, failure, poll_for, result


def one_by_one(name: str) -> EvaluateTogether:
    """Stands for training together: as `autopeft.together` does, it gives each job its outcome or its exception."""

    def together(jobs: Sequence[Job], reports: Sequence[Report]) -> list[Outcome | Exception]:
        found: list[Outcome | Exception] = []
        for job, report in zip(jobs, reports, strict=True):
            try:
                found.append(named(name)(job, report))
            except Exception as error:
                found.append(error)
        return found

    return together


EXECUTORS: dict[str, Callable[[str], Executor]] = {
    "inline": lambda job: InlineExecutor(f"{HERE}:{job}"),
    "process": lambda job: ProcessExecutor(f"{HERE}:{job}", workers=2, threads=1),
    "stacked": lambda job: StackedExecutor(f"{HERE}:{job}", one_by_one(f"{HERE}:{job}"), 4, lambda one, other: True),
    "simulated": lambda job: SimulatedExecutor(f"{HERE}:{job}", lambda job: 0.05, workers=2),
}
WITHIN_POLL = ("inline", "simulated")
Make = Callable[..., Executor]


@pytest.fixture(params=EXECUTORS)
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    yield from _closing(EXECUTORS[request.param])


@pytest.fixture(params=[name for name in EXECUTORS if name not in WITHIN_POLL])
def make_elsewhere(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Only those whose jobs run while the driver does something else."""
    yield from _closing(EXECUTORS[request.param])


def _closing(factory: Make) -> Iterator[Make]:
    made: list[Executor] = []

    def start(job: str, **options: object) -> Executor:
        made.append(factory(job, **options))
        return made[-1]

    yield start
    for executor in made:
        executor.close()


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
    poll_for(executor, Started)
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


def of(events: list[Event], number: int) -> list[Event]:
    """The events of one job but those that may come at any time."""
    return [e for e in events if e.number == number and not isinstance(e, Heartbeat)]


def test_every_job_starts_at_most_once_and_ends_once_whatever_it_does(make: Make) -> None:
    executor = make("mixed")
    for number in range(15):
        executor.submit(some_job(number))
    events = collect(executor, 15) + executor.poll(0.2)
    for number in range(15):
        mine = of(events, number)
        assert [isinstance(e, Started) for e in mine] == [True] + [False] * (len(mine) - 1)
        ended = [isinstance(e, Finished | Failed | Lost) for e in mine]
        assert ended == [False] * (len(mine) - 1) + [True]
        assert type(mine[-1]) is (Finished if number % 5 < 2 else Failed)


def test_progress_and_checkpoints_arrive_in_order_before_the_ending(make: Make) -> None:
    executor = make("reports")
    executor.submit(some_job(7))
    events = of(collect(executor, 1), 7)
    assert [type(e) for e in events if not isinstance(e, Checkpoint)] == [Started, *(3 * [Progress]), Finished]
    assert [e.message for e in events if isinstance(e, Progress)] == ["step 0", "step 1", "step 2"]
    expected = [{"step": str(k).encode(), "weights/all": bytes(1000**k)} for k in range(3)]
    found = [expected.index(dict(e.files)) for e in events if isinstance(e, Checkpoint)]
    assert found == sorted(set(found))  # one that another replaced before it was fetched need not come
    assert found[-1] == 2
    assert isinstance(events[-2], Checkpoint)


def test_a_stopped_job_hands_over_a_checkpoint_and_goes_on_from_there(make_elsewhere: Make) -> None:
    executor = make_elsewhere("until_stopped")
    job = some_job(3)
    executor.submit(job)
    events = poll_for(executor, Progress)
    executor.stop(3)
    events = of(events + collect(executor, 1), 3)
    assert [type(e) for e in events[-2:]] == [Checkpoint, Lost]
    checkpoint, lost = events[-2:]
    assert isinstance(lost, Lost)
    assert isinstance(checkpoint, Checkpoint)
    assert lost.stopped
    assert lost.cost.seconds > 0
    last = [e.message for e in events if isinstance(e, Progress)][-1]
    assert checkpoint.files == {"step": last.removeprefix("step ").encode()}

    again = result(executor, replace(job, checkpoint=checkpoint.files))
    assert isinstance(again, Finished)
    assert again.outcome.detail["step"] == int(checkpoint.files["step"])


def test_a_stop_does_not_reach_a_later_attempt_of_the_same_job(make_elsewhere: Make) -> None:
    executor = make_elsewhere("stopped_only_again")
    executor.submit(some_job(0))
    poll_for(executor, Started)
    executor.stop(0)
    assert isinstance(ending(executor), Finished)
    assert isinstance(result(executor, replace(some_job(0), checkpoint={"step": b"1"})), Finished)


def test_a_wait_that_a_signal_ends_costs_nothing(make_elsewhere: Make) -> None:
    executor = make_elsewhere("until_stopped")
    executor.submit(some_job(0))
    poll_for(executor, Progress)
    terminate = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM))

    def wait_on() -> None:
        terminate.start()
        while True:
            executor.poll(5.0)

    with StopRequests() as stop, pytest.raises(StopNow), stop.waiting():
        wait_on()
    executor.stop(0)
    events = of(collect(executor, 1), 0)
    assert [type(e) for e in events[-2:]] == [Checkpoint, Lost]


def test_a_job_that_waits_and_is_stopped_never_starts(make: Make) -> None:
    executor = make("slow")
    numbers = range(executor.capacity + 3)
    for number in numbers:
        executor.submit(some_job(number))
    executor.stop(numbers[-1])
    events = collect(executor, len(numbers))
    (lost,) = of(events, numbers[-1])
    assert isinstance(lost, Lost)
    assert lost.stopped
    assert all(isinstance(of(events, number)[-1], Finished) for number in numbers[:-1])


def test_a_job_that_is_stopped_and_then_killed_reports_nothing(make: Make) -> None:
    executor = make("slow")
    numbers = range(executor.capacity + 3)
    for number in numbers:
        executor.submit(some_job(number))
    executor.stop(numbers[-1])
    executor.kill(numbers[-1])
    events = collect(executor, len(numbers) - 1) + executor.poll(0.2)
    assert of(events, numbers[-1]) == []


def test_stopping_what_is_not_there_is_ignored(make: Make) -> None:
    executor = make("formula")
    executor.stop(5)
    assert isinstance(result(executor), Finished)
    executor.stop(0)
    assert executor.poll(0.0) == []


def test_a_job_that_can_never_fit_is_refused_with_the_numbers(make: Make) -> None:
    executor = make("formula")
    executor.submit(some_job(0), Resources(memory=1 << 60))
    executor.submit(some_job(1), Resources(memory=1 << 20))
    events = collect(executor, 2)
    (refused,) = of(events, 0)
    assert isinstance(refused, Failed)
    assert refused.failure.kind == "refused"
    assert "1048576.0 TiB" in refused.failure.message
    assert isinstance(of(events, 1)[-1], Finished)


def test_a_failure_and_a_stop_carry_what_was_used(make: Make) -> None:
    event = result(make("raise_error"))
    assert isinstance(event, Failed)
    assert event.cost.seconds > 0
    assert event.cost.peak_bytes > 0
