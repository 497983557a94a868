"""How trials are given to many workers: the virtual clock by closed forms, the driver by simulated runs.

The driver's own time is not counted in any run here, so that nothing depends on this machine;
`benchmarks/scheduling` counts it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from autopeft.errors import InputError, StudyError
from autopeft.job import Job
from autopeft.search.base import make_searcher
from autopeft.study.driver import AHEAD_FROM
from autopeft.study.executors.base import Event, Executor, Finished, Lost, Started
from autopeft.study.executors.simulated import SimulatedExecutor
from autopeft.study.ledger import Ended, Ledger
from autopeft.study.limits import Terms
from autopeft.study.store import Store
from autopeft.study.study import Study
from autopeft.trial import Trial, TrialStatus
from tests.contracts.cheap_jobs import formula, some_job
from tests.contracts.cheap_studies import definition, table


class Clock:
    """The driver's clock, moved by the test."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def lasting(seconds: float) -> Callable[[Job], float]:
    return lambda job: seconds


def recorded_like(job: Job) -> float:
    """8 to 20 s, by the job's number."""
    return float(np.random.default_rng(job.number).uniform(8.0, 20.0))


def finish(executor: Executor, jobs: int) -> None:
    left = jobs
    while left:
        left -= sum(isinstance(event, Finished) for event in executor.poll(1.0))


# -- the virtual clock --


@pytest.mark.parametrize(("jobs", "workers"), [(10, 4), (12, 4), (3, 5), (64, 64), (7, 1)])
def test_jobs_of_one_length_take_whole_waves(jobs: int, workers: int) -> None:
    executor = SimulatedExecutor(formula, lasting(2.0), workers)
    for number in range(jobs):
        executor.submit(some_job(number))
    finish(executor, jobs)
    waves = -(-jobs // workers)
    found = executor.utilisation()
    assert found.span == pytest.approx(2.0 * waves)
    assert found.share == pytest.approx(jobs / (workers * waves))
    # Until the last wave begins, every worker is busy.
    assert found.full_span == pytest.approx(2.0 * (waves - 1))
    assert found.share_before_tail == pytest.approx(1.0 if waves > 1 else 0.0)
    assert found.driver == 0.0


def test_the_drivers_time_delays_the_worker() -> None:
    # One second of the driver before each job of three: busy for 3 of every 4 seconds.
    clock = Clock()
    executor = SimulatedExecutor(formula, lasting(3.0), 1, clock)
    for number in range(5):
        clock.now += 1.0
        executor.submit(some_job(number))
        finish(executor, 1)
    found = executor.utilisation()
    assert (found.span, found.busy, found.driver) == pytest.approx((20.0, 15.0, 5.0))
    assert found.share == pytest.approx(0.75)


def test_a_job_that_ends_while_the_driver_is_busy_is_noticed_late_and_its_worker_is_idle() -> None:
    clock = Clock()
    executor = SimulatedExecutor(formula, lambda job: 2.0 + 3.0 * job.number, 2, clock)
    executor.submit(some_job(0))
    executor.submit(some_job(1))
    clock.now += 3.0
    events = executor.poll(10.0)
    assert [(type(e), e.number) for e in events] == [(Started, 0), (Started, 1), (Finished, 0)]
    assert executor.now == pytest.approx(3.0)  # it had something to tell, and did not go on to the next ending
    assert executor.utilisation().busy == pytest.approx(2.0 + 3.0)


def test_what_the_outcome_takes_is_not_counted() -> None:
    clock = Clock()

    def costly(job: Job, report: object) -> object:
        clock.now += 50.0
        return formula(job)

    executor = SimulatedExecutor(costly, lasting(3.0), 1, clock)  # type: ignore[arg-type]
    executor.submit(some_job())
    finish(executor, 1)
    assert (executor.now, executor.utilisation().driver) == (3.0, 0.0)


def test_polling_goes_no_further_than_asked() -> None:
    executor = SimulatedExecutor(formula, lasting(2.0), 1)
    executor.submit(some_job())
    assert [type(e) for e in executor.poll(0.5)] == [Started]
    assert executor.poll(0.5) == []
    assert executor.now == 0.5
    assert executor.poll(1.0) == []
    assert [type(e) for e in executor.poll(9.0)] == [Finished]
    assert executor.now == 2.0
    assert executor.poll(9.0) == []
    assert executor.now == 2.0  # nothing runs: no time passes


def test_a_stopped_job_is_lost_with_the_time_it_had_used_and_frees_its_worker() -> None:
    executor = SimulatedExecutor(formula, lasting(2.0), 1)
    executor.submit(some_job(0))
    executor.submit(some_job(1))
    executor.poll(0.5)
    executor.poll(0.5)
    executor.stop(0)
    lost, started = executor.poll(0.0)
    assert isinstance(lost, Lost)
    assert (lost.number, lost.stopped, lost.cost.seconds) == (0, True, 0.5)
    assert isinstance(started, Started)
    finish(executor, 1)
    assert executor.now == 2.5


def test_no_workers_are_refused() -> None:
    with pytest.raises(InputError, match="0 workers"):
        SimulatedExecutor(formula, lasting(1.0), 0)


# -- the driver --


def test_64_workers_are_busy_until_nothing_is_left_to_begin(tmp_path: Path) -> None:
    executor = SimulatedExecutor(formula, recorded_like, workers=64)
    with Study.start(tmp_path / "study", definition(trials=640)) as study:
        report = study.run(executor=executor)
    assert (report.stopped, report.completed) == ("finished", 640)
    found = executor.utilisation()
    # No worker waits for a batch: each gets the next trial at the moment its last one ends.
    assert found.share_before_tail == pytest.approx(1.0)
    free = [0.0] * 64
    for number in range(640):
        heapq.heapreplace(free, free[0] + recorded_like(some_job(number)))
    assert found.span == pytest.approx(max(free))
    assert found.share > 0.9


def queued_meanwhile(path: Path, workers: int) -> list[int]:
    """How many trials waited each time one ended, while others were still to be proposed."""
    waiting: list[int] = []

    def watch(event: Event, trial: Trial) -> None:
        if isinstance(event, Finished) and study.missing:
            waiting.append(sum(t.status is TrialStatus.QUEUED for t in study.trials))

    executor = SimulatedExecutor(formula, recorded_like, workers)
    with Study.start(path, definition(trials=3 * workers)) as study:
        study.run(executor=executor, progress=watch)
    return waiting


def test_only_many_workers_have_trials_proposed_ahead(tmp_path: Path) -> None:
    assert set(queued_meanwhile(tmp_path / "few", AHEAD_FROM - 1)) == {0}
    many = queued_meanwhile(tmp_path / "many", AHEAD_FROM)
    assert max(many) == AHEAD_FROM // 8
    assert many.count(0) == 0


def test_random_search_proposes_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    tables = []
    for workers in (1, 40):
        with Study.start(tmp_path / str(workers), definition(trials=90)) as study:
            study.run(executor=SimulatedExecutor(formula, recorded_like, workers))
            tables.append(table(study.trials))
    assert tables[0] == tables[1]


def test_synchronous_proposals_are_made_for_all_workers_at_once(tmp_path: Path) -> None:
    waves = []
    searcher = make_searcher("bayes", initial=70)
    with Study.start(tmp_path / "study", definition(trials=120, searcher=searcher)) as study:

        def watch(event: Event, trial: Trial) -> None:
            if isinstance(event, Started):
                waves.append(sum(not t.status.final for t in study.trials))

        study.run(executor=SimulatedExecutor(formula, recorded_like, 40), progress=watch, terms=Terms(synchronous=True))
    assert waves == [40] * 120


def test_every_trial_is_on_disk_as_running_before_its_job_begins(tmp_path: Path) -> None:
    found = []

    def seconds(job: Job) -> float:  # called when the job begins
        with Study.open(tmp_path / "study", readonly=True) as reader:
            found.append(reader.trial(job.number).status)
        return recorded_like(job)

    with Study.start(tmp_path / "study", definition(trials=48)) as study:
        study.run(executor=SimulatedExecutor(formula, seconds, 20))
    assert found == [TrialStatus.RUNNING] * 48


def test_every_ending_is_on_disk_before_the_searcher_and_the_watcher_learn_of_it(tmp_path: Path) -> None:
    def watch(event: Event, trial: Trial) -> None:
        if isinstance(event, Finished):
            with Study.open(tmp_path / "study", readonly=True) as reader:
                assert reader.trial(event.number) == trial
                assert reader.folder(event.number).joinpath("trial.json").exists()

    executor = SimulatedExecutor(formula, lasting(5.0), 20)  # twenty end at once
    with Study.start(tmp_path / "study", definition(trials=60)) as study:
        assert study.run(executor=executor, progress=watch).completed == 60


def test_where_the_disk_refuses_one_of_several_the_others_are_recorded(tmp_path: Path) -> None:
    with Store.create(tmp_path / "study", definition().to_dict()) as store:
        ledger = Ledger(store)
        with Study.start(tmp_path / "other", definition()) as other:
            ledger.add([t.proposal for t in other.ask(4)])
        jobs = ledger.begin_all(range(4), Terms())
        (tmp_path / "study" / "trials").mkdir()
        (tmp_path / "study" / "trials" / ".0001.new").write_text("in the way")
        with pytest.raises(StudyError, match="folder cannot be written"):
            ledger.tell_all([Ended(job.number, formula(job)) for job in jobs])
        statuses = [t.status for t in store.trials()]
    completed = TrialStatus.COMPLETED
    assert statuses == [completed, TrialStatus.RUNNING, completed, completed]
