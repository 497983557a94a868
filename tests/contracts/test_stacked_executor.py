"""What only the executor that trains together promises: who runs with whom, and what a failing batch becomes."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from autopeft.cli.running import require_runnable
from autopeft.cli.settings import SearchSettings
from autopeft.configuration import Configuration, Placement
from autopeft.errors import InputError, TrainingError
from autopeft.job import Job, JobStopped, Outcome, Report
from autopeft.modules import FullFineTuning, Lora, PeftModule, Prefix
from autopeft.setting import Recipe
from autopeft.shapes import Slot
from autopeft.study.executors.base import Checkpoint, Device, Failed, Finished, Lost, Started
from autopeft.study.executors.choice import ALONE, make_executor
from autopeft.study.executors.stacked import StackedExecutor, alike, stackable
from autopeft.trial import Budget, Cost
from tests.contracts.cheap_jobs import formula, some_job
from tests.contracts.polling import PATIENCE, collect


def of(*modules: tuple[str, PeftModule, str]) -> Configuration:
    return Configuration(tuple(Placement(Slot.parse(slot), module, group) for slot, module, group in modules))


LORA = of(("encoder.0.attention.query", Lora(2), ""))


def a_job(number: int = 0, **changes: object) -> Job:
    return replace(some_job(number), configuration=LORA, **changes)  # type: ignore[arg-type]


class Recorder:
    """Notes which jobs ran together; `fail` says which batches fail as a whole."""

    def __init__(self, largest: int = 99) -> None:
        self.batches: list[list[int]] = []
        self.alone: list[int] = []
        self._largest = largest

    def together(self, jobs: Sequence[Job], reports: Sequence[Report]) -> list[Outcome | Exception]:
        self.batches.append([job.number for job in jobs])
        if len(jobs) > self._largest:
            raise RuntimeError("CUDA out of memory")
        return [formula(job) for job in jobs]

    def one(self, job: Job, report: Report) -> Outcome:
        self.alone.append(job.number)
        return formula(job, report)

    def executor(self, most: int = 4) -> StackedExecutor:
        return StackedExecutor(self.one, self.together, most)


@pytest.mark.parametrize(
    ("configuration", "expected"),
    [
        (LORA, True),
        (of(("encoder.0.attention", Prefix(2, mlp=3), "p"), ("encoder.1.attention", Prefix(2, mlp=3), "p")), True),
        (of(("encoder.0.attention", Prefix(2, mlp=3), "p"), ("encoder.1.attention", Prefix(2, mlp=3), "q")), False),
        (of(("backbone.0.all", FullFineTuning(), "")), False),
        (Configuration(), False),
    ],
)
def test_which_configurations_can_be_stacked(configuration: Configuration, expected: bool) -> None:
    assert stackable(configuration) is expected
    assert alike(replace(a_job(), configuration=configuration), a_job(1)) is expected


def test_jobs_that_differ_in_what_a_batch_shares_run_apart() -> None:
    first = a_job()
    assert alike(first, a_job(1))
    setting = first.setting
    for changes in (
        {"seed": 1},
        {"budget": Budget(0, 2)},
        {"budget": Budget(0, 1, share=0.5)},
        {"splits": ("selection",)},
        {"checkpoint": {"state.json": b"{}"}},
        {"setting": replace(setting, recipe=Recipe(batch_size=8))},
    ):
        assert not alike(first, a_job(1, **changes)), changes
    dropping = replace(setting, recipe=Recipe(dropout=0.1))
    assert not alike(a_job(setting=dropping), a_job(1, setting=dropping))


def test_those_that_are_alike_run_together_in_the_order_they_came() -> None:
    recorder = Recorder()
    executor = recorder.executor(most=3)
    for number in range(6):
        executor.submit(a_job(number, seed=number % 2))
    executor.submit(some_job(6))
    events = collect(executor, 7)
    assert recorder.batches == [[0, 2, 4], [1, 3, 5]]
    assert recorder.alone == [6]
    assert [e.number for e in events if isinstance(e, Started)] == [0, 2, 4, 1, 3, 5, 6]
    assert {e.number for e in events if isinstance(e, Finished)} == set(range(7))


def test_a_batch_that_fails_as_a_whole_is_run_in_halves() -> None:
    recorder = Recorder(largest=2)
    executor = recorder.executor(most=5)
    for number in range(5):
        executor.submit(a_job(number))
    events = collect(executor, 5)
    assert recorder.batches == [[0, 1, 2, 3, 4], [0, 1], [2, 3, 4], [3, 4]]
    assert recorder.alone == [2]
    assert sum(isinstance(e, Finished) for e in events) == 5


def test_what_jobs_report_comes_while_the_batch_runs() -> None:
    seen = threading.Event()

    def together(jobs: Sequence[Job], reports: Sequence[Report]) -> list[Outcome | Exception]:
        for job, report in zip(jobs, reports, strict=True):
            report.progress("step 1")
            report.checkpoint({"job": str(job.number).encode()})
        return [formula(job) if seen.wait(PATIENCE / 2) else RuntimeError("it came too late") for job in jobs]

    executor = StackedExecutor(formula, together, 2)
    for number in range(2):
        executor.submit(a_job(number))
    events = executor.poll(0.0)
    while sum(isinstance(e, Checkpoint) for e in events) < 2 and not any(isinstance(e, Failed) for e in events):
        events += executor.poll(PATIENCE)
    seen.set()
    events += collect(executor, 2 - sum(isinstance(e, Failed) for e in events))
    assert {e.number: e.files for e in events if isinstance(e, Checkpoint)} == {0: {"job": b"0"}, 1: {"job": b"1"}}
    assert sum(isinstance(e, Finished) for e in events) == 2


def test_a_running_batch_hands_over_when_it_is_asked_to_stop() -> None:
    def together(jobs: Sequence[Job], reports: Sequence[Report]) -> list[Outcome | Exception]:
        deadline = time.monotonic() + PATIENCE / 2
        while not all(report.stopping for report in reports) and time.monotonic() < deadline:
            time.sleep(0.005)
        for report in reports:
            report.checkpoint({"step": b"7"})
        return [JobStopped() for _ in jobs]

    executor = StackedExecutor(formula, together, 2)
    for number in range(2):
        executor.submit(a_job(number))
    assert [type(e) for e in executor.poll(0.0)] == [Started, Started]
    for number in range(2):
        executor.stop(number)
    events = collect(executor, 2)
    assert [type(e) for e in events] == [Checkpoint, Checkpoint, Lost, Lost]
    assert all(e.stopped for e in events if isinstance(e, Lost))


def test_the_next_batch_waits_for_one_that_was_given_up_and_hears_nothing_of_it() -> None:
    free, log = threading.Event(), []

    def evaluate(job: Job, report: Report) -> Outcome:
        log.append(f"begins {job.seed}")
        if job.seed == 0:
            free.wait(PATIENCE)
            assert report.stopping
            report.checkpoint({"step": b"1"})
        log.append(f"ends {job.seed}")
        return formula(job)

    executor = StackedExecutor(evaluate, "", 2)
    executor.submit(a_job(0, seed=0))
    executor.poll(0.0)
    executor.kill(0)
    executor.submit(a_job(0, seed=1))
    assert executor.poll(0.05) == []
    free.set()
    assert [type(e) for e in collect(executor, 1)] == [Started, Finished]
    assert log == ["begins 0", "ends 0", "begins 1", "ends 1"]


def test_halves_of_a_failed_batch_go_on_from_its_checkpoints_and_pay_for_what_was_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The clock shows 10 CPU seconds and 6 seconds when job 0 hands over, 30 and 26 when the batch fails.
    readings = iter([Cost(10.0, 6.0, 1), Cost(30.0, 26.0, 9), Cost(30.0, 26.0, 9)])
    monkeypatch.setattr("autopeft.study.executors.stacked.measure", lambda: lambda: next(readings, Cost()))

    def together(jobs: Sequence[Job], reports: Sequence[Report]) -> list[Outcome | Exception]:
        reports[0].checkpoint({"step": b"5"})
        raise RuntimeError("CUDA out of memory")

    def one(job: Job, report: Report) -> Outcome:
        begun[job.number] = job.checkpoint
        if job.number:
            raise ValueError("no weights")
        return replace(formula(job), cost=Cost(2.0, 1.0, 5))

    begun: dict[int, object] = {}
    executor = StackedExecutor(one, together, 2)
    for number in range(2):
        executor.submit(a_job(number))
    finished, failed = collect(executor, 2)[-2:]
    assert begun == {0: {"step": b"5"}, 1: {}}
    assert isinstance(finished, Finished)
    assert finished.outcome.cost == Cost(2.0 + 20.0 / 2, 1.0 + 20.0 / 2, 9)
    assert isinstance(failed, Failed)
    assert 15.0 <= failed.cost.cpu_seconds < 25.0  # half of 30, and what it took alone


def test_each_has_an_ending_of_its_own() -> None:
    def together(jobs: Sequence[Job], reports: Sequence[Report]) -> list[Outcome | Exception]:
        return [formula(jobs[0]), TrainingError("loss is nan", kind="nan", cure="lower it"), JobStopped()]

    executor = StackedExecutor(formula, together, 3)
    for number in range(3):
        executor.submit(a_job(number))
    finished, failed, lost = collect(executor, 3)[-3:]
    assert isinstance(finished, Finished)
    assert isinstance(failed, Failed)
    assert failed.failure.kind == "nan"
    assert isinstance(lost, Lost)
    assert lost.stopped


def poll_on(executor: StackedExecutor) -> None:
    """Whether the first call sees what happens in the thread at once is a matter of moments."""
    executor.poll(0.0)
    executor.poll(60.0)
    executor.poll(60.0)


def test_an_exception_that_ends_the_run_loses_all_of_the_batch() -> None:
    def together(jobs: Sequence[Job], reports: Sequence[Report]) -> list[Outcome | Exception]:
        raise KeyboardInterrupt

    executor = StackedExecutor(formula, together, 3)
    for number in range(3):
        executor.submit(a_job(number))
    with pytest.raises(KeyboardInterrupt):
        poll_on(executor)
    events = [event for event in executor.poll(0.0) if not isinstance(event, Started)]
    assert [(type(e), e.number) for e in events] == [(Lost, 0), (Lost, 1), (Lost, 2)]
    assert executor.poll(0.0) == []


def test_no_jobs_at_once_is_refused() -> None:
    with pytest.raises(InputError, match="0 trials together"):
        StackedExecutor(formula, "autopeft.together:evaluate_together", 0)


@pytest.mark.parametrize(
    ("asked", "cure"),
    [
        ({"time_limit": 60.0}, "leave it out, or train them apart: --together 1"),
        ({"memory_limit": 1 << 30}, "leave it out, or train them apart: --together 1"),
        ({"devices": (Device("0"),)}, "set CUDA_VISIBLE_DEVICES for the command instead, or train them apart"),
        ({"devices_per_trial": 1}, "set CUDA_VISIBLE_DEVICES for the command instead, or train them apart"),
    ],
)
def test_what_holds_for_one_process_per_trial_is_refused(asked: dict[str, Any], cure: str) -> None:
    (name,) = asked
    with pytest.raises(InputError) as refused:
        make_executor("process", ALONE, workers=1, threads=1, together=16, **asked)
    assert refused.value.where == f"search.{name}"
    assert cure in str(refused.value)
    assert "16" in str(refused.value)


@pytest.mark.parametrize(
    "asked", [{"time_limit": "30m"}, {"memory_limit": "8GB"}, {"devices": ("0", "1")}, {"devices_per_trial": 1}]
)
def test_a_search_that_asks_for_it_is_refused_before_anything_is_made(asked: dict[str, Any]) -> None:
    devices = {"devices": ("0",)} if "devices_per_trial" in asked else {}
    with pytest.raises(InputError, match="16 trials are trained together"):
        require_runnable(SearchSettings(together=16, **asked, **devices))
    require_runnable(SearchSettings(**asked, **devices))


def test_it_is_chosen_by_the_number_of_trials_together() -> None:
    executor = make_executor("process", ALONE, workers=1, threads=1, together=16)
    assert isinstance(executor, StackedExecutor)
    assert executor.capacity == 16
    for name, evaluate, workers, together, message in (
        ("process", ALONE, 2, 16, "16 trials are trained together in one process"),
        ("ray", ALONE, 1, 16, "not on Ray"),
        ("inline", "own.package:train", 1, 16, "own.package:train cannot be trained together"),
        ("inline", ALONE, 1, 0, "0 trials together"),
    ):
        with pytest.raises(InputError, match=message):
            make_executor(name, evaluate, workers, 1, together=together)
