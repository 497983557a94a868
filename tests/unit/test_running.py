"""When a run ends, what it keeps of running trials, and on what terms trials are run. Jobs are cheap and real."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from autopeft.configuration import Configuration
from autopeft.errors import InputError, TrainingError
from autopeft.job import SILENT, Job, JobStopped, Outcome, Report
from autopeft.study.executors.base import (
    Checkpoint,
    Ending,
    Event,
    Executor,
    Failed,
    Finished,
    Lost,
    Progress,
    Resources,
    Started,
)
from autopeft.study.executors.inline import InlineExecutor
from autopeft.study.executors.stacked import StackedExecutor
from autopeft.study.failing import FAILING, FAILING_LATER
from autopeft.study.ledger import REMOTE_CODE
from autopeft.study.limits import STOP_FILE, Allowance, Limits, Terms
from autopeft.study.study import Study
from autopeft.trial import Cost, Failure, FailureKind, Trial, TrialStatus
from tests.contracts import cheap_jobs, stepwise_jobs
from tests.contracts.cheap_studies import definition, table
from tests.contracts.stepwise_jobs import STEPS, steps_logged

STEPWISE = stepwise_jobs.HERE
ANY = Resources()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "study"


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHEAP_JOBS_LOG", str(tmp_path / "log"))
    return tmp_path / "log"


class Clock:
    """Stands for `time.monotonic`: each trial of `Timed` takes a stated time on it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Timed(Executor):
    """Runs jobs one after the other; each takes ten seconds of the clock."""

    capacity = 1

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._jobs: list[Job] = []
        self._begun = False
        self.asked: list[Resources] = []

    def submit(self, job: Job, resources: Resources = ANY) -> None:
        self._jobs.append(job)
        self.asked.append(resources)

    def poll(self, timeout: float) -> list[Event]:
        if not self._begun:
            self._clock.now += 100.0  # waiting for a worker costs nothing
            self._begun = True
            return [Started(self._jobs[0].number)]
        self._clock.now += 10.0
        self._begun = False
        return [self.end(self._jobs.pop(0))]

    def end(self, job: Job) -> Ending:
        return Finished(job.number, cheap_jobs.formula(job))

    def kill(self, number: int) -> None:
        self._jobs = [job for job in self._jobs if job.number != number]

    def close(self) -> None:
        self._jobs.clear()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    made = Clock()
    monkeypatch.setattr("autopeft.study.limits.time.monotonic", made)
    yield made
    monkeypatch.undo()


# -- budgets --


def test_a_run_begins_no_trial_after_its_time(path: Path, clock: Clock) -> None:
    # A trial waits 100 s and runs 10: three are submitted at 0, 110, 220 s, and a fourth would be at 330 s.
    with Study.start(path, definition(trials=9)) as study:
        report = study.run(executor=Timed(clock), terms=Terms(Limits(seconds=250.0)))
        assert (report.stopped, report.completed, report.exit_code) == ("budget", 3, 0)
        assert (study.missing, study.left) == (6, 6)
        # The time is that of the run: the next one has its own.
        assert study.run(executor=Timed(clock), terms=Terms(Limits(seconds=250.0))).completed == 3


def test_the_time_of_workers_is_that_of_the_study(path: Path, clock: Clock) -> None:
    with Study.start(path, definition(trials=9)) as study:
        assert study.run(executor=Timed(clock), trials=2).stopped == "finished"
    with Study.start(path, definition(trials=9)) as study:  # 20 s are spent
        report = study.run(executor=Timed(clock), terms=Terms(Limits(worker_seconds=45.0)))
        assert (report.stopped, report.completed) == ("budget", 3)
        assert study.run(executor=Timed(clock), terms=Terms(Limits(worker_seconds=45.0))).completed == 0


def test_lost_attempts_are_paid_for(path: Path, clock: Clock) -> None:
    class Vanishing(Timed):
        def end(self, job: Job) -> Ending:
            seen.append(job.number)
            return Lost(0, "the machine was taken away") if len(seen) == 1 else super().end(job)

    seen: list[int] = []
    with Study.start(path, definition(trials=9)) as study:
        study.run(executor=Vanishing(clock), terms=Terms(Limits(worker_seconds=25.0)))
        assert seen == [0, 0, 1]


def test_what_was_charged_already_is_not_reckoned_twice(path: Path, clock: Clock) -> None:
    allowance = Allowance(Limits(worker_seconds=4 * 3600.0), 0.0, 0, path / STOP_FILE)
    for number in range(4):
        allowance.begin(number)
    for _ in range(20):  # minutes
        clock.now += 60.0
        allowance.charge()
    allowance.end(0)
    # 80 minutes are spent, three trials may end at any moment: far from 4 hours.
    assert allowance.over() is None
    clock.now += 3000.0
    assert allowance.over() is None  # 80 + 3 x 50 = 230 of 240 minutes
    clock.now += 300.0
    assert allowance.over() == "budget"


def test_several_workers_exceed_the_time_of_workers_by_about_one_trial(path: Path, clock: Clock) -> None:
    class Four(Timed):
        capacity = 4

    # The first four are begun without knowing how long they take; 40 s later each new one is reckoned at 10 s.
    with Study.start(path, definition(trials=40)) as study:
        study.run(executor=Four(clock), terms=Terms(Limits(worker_seconds=95.0)))
        assert 95.0 <= study._ledger.spent()[0] <= 105.0


def test_time_of_a_driver_that_was_killed_is_paid_for_by_the_minute(path: Path, clock: Clock) -> None:
    class Long(Timed):
        polls = 0

        def poll(self, timeout: float) -> list[Event]:
            self.polls += 1
            if self.polls == 1:
                return [Started(self._jobs[0].number)]
            if self.polls == 5:
                raise KeyboardInterrupt  # as good as a kill: nothing more is recorded
            self._clock.now += 50.0
            return []

    with Study.start(path, definition(trials=1)) as study, pytest.raises(KeyboardInterrupt):
        study.run(executor=Long(clock))
    with Study.open(path, trust_evaluate=True) as study:
        assert study._ledger.spent()[0] == 100.0  # of 150 s: charged at 100, the first time a minute was over


def test_a_run_that_is_complete_has_finished_whatever_its_limits_say(path: Path, clock: Clock) -> None:
    with Study.start(path, definition(trials=2)) as study:
        assert study.run(executor=Timed(clock), terms=Terms(Limits(seconds=115.0))).stopped == "finished"
        assert study.run(executor=Timed(clock), terms=Terms(Limits(seconds=1e-9))).stopped == "finished"


@pytest.mark.parametrize("name", ["seconds", "worker_seconds", "trial_seconds", "trial_memory"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_limit_that_allows_nothing_is_refused(name: str, value: int) -> None:
    with pytest.raises(InputError, match="allows nothing"):
        Limits(**{name: value})


def test_setting_the_clock_changes_no_budget(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = iter([-1e9, 1e9] * 100)
    real = time.time
    monkeypatch.setattr("time.time", lambda: real() + next(jumps))
    with Study.start(path, definition(trials=4)) as study:
        report = study.run(executor="inline", terms=Terms(Limits(seconds=3600.0, worker_seconds=3600.0)))
        assert (report.stopped, report.completed) == ("finished", 4)


# -- the stop file --


def test_a_stop_file_ends_a_run_after_its_running_trials_and_stays(path: Path) -> None:
    def touch(event: Event, trial: Trial) -> None:
        if trial.number == 1:
            (path / STOP_FILE).touch()

    with Study.start(path, definition(trials=5)) as study:
        report = study.run(executor="inline", progress=touch)
        assert (report.stopped, report.completed, report.exit_code) == ("stop file", 2, 0)
        assert study.run(executor="inline").stopped == "stop file"
        (path / STOP_FILE).unlink()
        assert study.run(executor="inline").stopped == "finished"


# -- failures in a row --


def failing(kind: FailureKind, first: int) -> InlineExecutor:
    def evaluate(job: Job, report: Report = SILENT) -> Outcome:
        if job.number >= first:
            raise TrainingError("abcdefghijklmnopqrstuvwxyz"[job.number % 26], kind=kind)
        return cheap_jobs.formula(job)

    return InlineExecutor(evaluate)


def alike(kind: FailureKind) -> InlineExecutor:
    def evaluate(job: Job, report: Report = SILENT) -> Outcome:
        raise TrainingError("all alike", kind=kind)

    return InlineExecutor(evaluate)


def test_ten_failures_in_a_row_stop_a_run_with_the_first_error(path: Path) -> None:
    with Study.start(path, definition(trials=30)) as study:
        report = study.run(executor=failing("error", first=3))
        assert (report.stopped, report.completed, report.failed, report.row) == ("failing", 3, 10, FAILING_LATER)
        assert report.failure == study.trial(3).failure
        assert [t.number for t in study.repeatable] == list(range(3, 13))
        assert study.left == 27
        assert study.run(executor="inline").completed == 27
        assert (study.begun, study.left) == (30, 0)


def test_what_fails_again_is_not_repeated_for_ever(path: Path) -> None:
    # 0 to 2 work, 3 to 12 never do: ten in a row; five of them alike when repeated; the other five; then the rest runs.
    def evaluate(job: Job, report: Report = SILENT) -> Outcome:
        if 3 <= job.number <= 12:
            raise ValueError("this layer does not fit")
        return cheap_jobs.formula(job)

    with Study.start(path, definition(trials=20)) as study:
        reports = [study.run(executor=InlineExecutor(evaluate)) for _ in range(5)]
        assert [r.stopped for r in reports] == ["failing", "failing", "failing", "finished", "finished"]
        assert [r.completed for r in reports] == [3, 0, 0, 7, 0]
        assert (study.begun, study.left) == (20, 0)


def test_trials_that_alone_are_refused_come_last_and_stop_nothing(path: Path) -> None:
    # Every third trial of the first run can never fit; the other runs try these again, after what is new.
    def evaluate(job: Job, report: Report = SILENT) -> Outcome:
        if job.number % 3 == 0 and job.number < 24:
            raise InputError("it needs more memory than there is")
        order.append(job.number)
        return cheap_jobs.formula(job)

    order: list[int] = []
    with Study.start(path, definition(trials=24)) as study:
        assert study.run(executor=InlineExecutor(evaluate)).failed == 8
        report = study.run(executor=InlineExecutor(evaluate), trials=30)
        assert (report.stopped, report.completed, report.failed) == ("finished", 6, 8)
        assert order[-6:] == list(range(24, 30))
        assert study.run(executor="inline").completed == 8


def test_all_that_failed_together_are_repeated(path: Path) -> None:
    class Together(Executor):
        capacity = 64

        def __init__(self) -> None:
            self._jobs: list[Job] = []

        def submit(self, job: Job, resources: Resources = ANY) -> None:
            self._jobs.append(job)

        def poll(self, timeout: float) -> list[Event]:
            jobs, self._jobs = self._jobs, []
            return [Failed(job.number, Failure("error", "the driver of the disk is gone")) for job in jobs]

        def kill(self, number: int) -> None:
            self._jobs = [job for job in self._jobs if job.number != number]

        def close(self) -> None:
            self._jobs.clear()

    with Study.start(path, definition(trials=40)) as study:
        report = study.run(executor=Together())
        assert (report.stopped, report.failed, report.row) == ("failing", report.failed, report.failed)
        assert len(study.repeatable) == report.failed >= 32
        assert study.run(executor="inline").completed == 40


def test_a_refusal_does_not_use_up_the_repeat_of_a_row(path: Path) -> None:
    with Study.start(path, definition(trials=5)) as study:
        assert study.run(executor=alike("refused")).stopped == "failing"
        assert study.run(executor=alike("error")).stopped == "failing"
        assert len(study.repeatable) == 5
        assert study.run(executor="inline").completed == 5


def test_trials_that_diverged_alike_are_not_repeated(path: Path) -> None:
    with Study.start(path, definition(trials=16)) as study:
        assert study.run(executor=alike("nan")).row == FAILING
        assert study.repeatable == ()


def test_addresses_in_messages_make_no_difference(path: Path) -> None:
    def evaluate(job: Job, report: Report = SILENT) -> Outcome:
        raise ValueError(f"<Tensor at {0x7FA0 + job.number:#x}> is no good")

    with Study.start(path, definition(trials=16)) as study:
        assert study.run(executor=InlineExecutor(evaluate)).row == FAILING


def test_failures_of_trials_that_did_train_do_not_stop_a_run(path: Path) -> None:
    with Study.start(path, definition(trials=16)) as study:
        report = study.run(executor=failing("nan", first=1))
        assert (report.stopped, report.failed) == ("finished", 15)


def test_five_that_fail_alike_from_the_start_stop_a_run(path: Path) -> None:
    with Study.start(path, definition("raise_error", trials=16)) as study:
        assert study.run(executor="inline").row == FAILING


# -- pruned --


def test_a_pruned_trial_is_final_and_says_why(path: Path) -> None:
    with Study.start(path, definition(trials=2)) as study:
        (trial,) = study.ask()
        study.begin(trial.number)
        reached = Outcome({"quality": 0.1}, Cost(1.0, 2.0, 3))
        pruned = study.prune(trial.number, "it is dominated", reached)
        assert (pruned.status, pruned.objectives["quality"], pruned.failure) == (TrialStatus.PRUNED, 0.1, None)
        assert study.events[-1].detail["reason"] == "it is dominated"
        assert [t.number for t in study.front] == []
        assert study.run(executor="inline").completed == 1
    with Study.open(path, readonly=True) as study:
        assert study.trial(trial.number) == pruned


# -- what a trial keeps --


def test_a_trial_that_gets_on_between_losses_is_not_what_kills_its_workers(path: Path) -> None:
    class Losing(Timed):
        def poll(self, timeout: float) -> list[Event]:
            job = self._jobs.pop(0)
            done = stepwise_jobs.done(job)
            if done == 6:
                return [Started(job.number), Finished(job.number, cheap_jobs.formula(job))]
            kept = Checkpoint(job.number, {"steps": str(done + 1).encode()})
            return [Started(job.number), kept, Lost(job.number, "the machine was taken away")]

    with Study.start(path, definition(trials=1)) as study:
        assert study.run(executor=Losing(Clock())).completed == 1
        assert [e.kind for e in study.events if e.trial == 0].count("interrupted") == 6


def test_a_damaged_checkpoint_is_named_and_its_trial_begins_anew(path: Path, log: Path) -> None:
    with Study.start(path, definition(trials=1, evaluate=f"{STEPWISE}:stepwise")) as study:
        (trial,) = study.ask()
        study.begin(trial.number)
        study._ledger.keep(trial.number, {"steps": b"3"})
    (path / "checkpoints" / "0000" / "steps").write_bytes(b"5")
    with Study.open(path, trust_evaluate=True) as study:
        assert study.run(executor="inline").completed == 1
        assert len(study.damaged) == 1
    assert steps_logged(log) == {0: list(range(STEPS))}


def test_a_checkpoint_that_cannot_be_written_is_told_once_and_costs_nothing_else(path: Path) -> None:
    class Outside(Timed):
        def poll(self, timeout: float) -> list[Event]:
            job = self._jobs.pop(0)
            bad = Checkpoint(job.number, {"../x": b""})
            return [Started(job.number), bad, bad, Finished(job.number, cheap_jobs.formula(job))]

    with Study.start(path, definition(trials=1)) as study:
        assert study.run(executor=Outside(Clock())).completed == 1
        (told,) = [e for e in study.events if e.kind == "checkpoint refused"]
        assert "../x" in told.detail["reason"]


def test_a_trial_whose_worker_is_killed_goes_on_from_its_checkpoint(path: Path, log: Path) -> None:
    with Study.start(path, definition(trials=1, evaluate=f"{STEPWISE}:killed_midway")) as study:
        assert study.run().completed == 1
        assert study.trial(0).detail["began"] == STEPS // 2
        assert not (path / "checkpoints" / "0000").exists()
    assert steps_logged(log) == {0: list(range(STEPS))}


@pytest.mark.parametrize("stacked", [False, True])
def test_a_terminated_run_hands_over_checkpoints_and_the_next_goes_on_from_them(
    path: Path, log: Path, stacked: bool
) -> None:
    def terminate(event: Event, trial: Trial) -> None:
        if isinstance(event, Started):
            began.append(trial.number)
            if len(began) == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    began: list[int] = []
    with Study.start(path, definition(trials=2, evaluate=f"{STEPWISE}:patient")) as study:
        report = (
            study.run(executor=StackedExecutor(f"{STEPWISE}:patient", in_turn, 2, both), progress=terminate)
            if stacked
            else study.run(workers=2, progress=terminate)
        )
        assert (report.stopped, report.exit_code, report.completed) == ("terminated", 143, 0)
        assert {t.status for t in study.trials} == {TrialStatus.INTERRUPTED}
        assert {e.detail["reason"] for e in study.events if e.kind == "interrupted"} == {"SIGTERM"}
    with Study.open(path, trust_evaluate=True) as study:
        assert study.run(workers=2).completed == 2  # `patient` would wait for ever without its checkpoint


def in_turn(jobs: Sequence[Job], reports: Sequence[Report]) -> list[Outcome | Exception]:
    """Stands for training together."""
    found: list[Outcome | Exception] = []
    for job, report in zip(jobs, reports, strict=True):
        try:
            found.append(stepwise_jobs.patient(job, report))
        except JobStopped as stopped:
            found.append(stopped)
    return found


def both(one: Job, other: Job) -> bool:
    return True


def test_a_checkpoint_of_a_batch_is_on_the_disk_before_the_batch_ends(path: Path) -> None:
    def together(jobs: Sequence[Job], reports: Sequence[Report]) -> list[Outcome | Exception]:
        for report in reports:
            report.checkpoint({"steps": b"5"})
        kept = [path / "checkpoints" / f"{job.number:04d}" / "steps" for job in jobs]
        deadline = time.monotonic() + 30.0
        while not all(file.exists() for file in kept):
            if time.monotonic() > deadline:
                return [TimeoutError("no checkpoint on the disk") for _ in jobs]
            time.sleep(0.01)
        return [cheap_jobs.formula(job) for job in jobs]

    with Study.start(path, definition(trials=2)) as study:
        assert study.run(executor=StackedExecutor("", together, 2, both)).completed == 2


def test_a_second_signal_ends_the_grace(path: Path, log: Path) -> None:
    def terminate(event: Event, trial: Trial) -> None:
        if isinstance(event, Started):
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()

    with Study.start(path, definition("hang", trials=1)) as study:
        report = study.run(progress=terminate, terms=Terms(grace_seconds=600.0))  # far beyond any limit of a test
        assert report.stopped == "terminated"
        assert study.trial(0).status is TrialStatus.INTERRUPTED


def test_what_a_failed_trial_used_is_kept(path: Path) -> None:
    class Costly(Timed):
        def end(self, job: Job) -> Ending:
            return Failed(job.number, Failure("timed_out", "too long"), Cost(1.0, 2.0, 3))

    with Study.start(path, definition(trials=1)) as study:
        study.run(executor=Costly(Clock()))
        assert study.trial(0).cost == Cost(1.0, 2.0, 3)


def test_an_inline_trial_that_is_cut_off_keeps_its_checkpoint(path: Path, log: Path) -> None:
    def cut_off(job: Job, report: Report = SILENT) -> Outcome:
        if not stepwise_jobs.done(job):
            report.checkpoint({"steps": b"5"})
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1.0)
        return stepwise_jobs.stepwise(job, report)

    with Study.start(path, definition(trials=1)) as study:
        assert study.run(executor=InlineExecutor(cut_off)).stopped == "terminated"
        assert study.trial(0).status is TrialStatus.INTERRUPTED
        assert study.run(executor=InlineExecutor(cut_off)).completed == 1
    assert steps_logged(log) == {0: [5]}


# -- terms --


def test_jobs_carry_the_terms_and_the_run_that_allows_remote_code_is_recorded(path: Path) -> None:
    def note(job: Job, report: Report = SILENT) -> Outcome:
        seen.append((job.checkpoint_seconds, job.trust_remote_code))
        return cheap_jobs.formula(job)

    seen: list[tuple[float, bool]] = []
    with Study.start(path, definition(trials=2)) as study:
        study.run(executor=InlineExecutor(note), trials=1)
        assert not [e for e in study.events if e.kind == REMOTE_CODE]
        study.run(executor=InlineExecutor(note), terms=Terms(checkpoint_seconds=5.0, trust_remote_code=True), trials=2)
        (allowed,) = [e for e in study.events if e.kind == REMOTE_CODE]
        assert allowed.detail == {"backbone": "small-bert"}
    assert seen == [(120.0, False), (5.0, True)]


def test_each_trial_gets_the_resources_of_its_configuration(path: Path) -> None:
    def needed(configuration: Configuration) -> Resources:
        return Resources(memory=len(configuration.placements))

    executor = Timed(Clock())
    with Study.start(path, definition(trials=4)) as study:
        study.run(executor=executor, terms=Terms(resources=needed))
        assert [r.memory for r in executor.asked] == [len(t.configuration.placements) for t in study.trials]


class Two(Executor):
    """Two places; which of two jobs ends first is told by `order`."""

    capacity = 2

    def __init__(self, last_first: bool) -> None:
        self._last_first = last_first
        self._jobs: list[Job] = []

    def submit(self, job: Job, resources: Resources = ANY) -> None:
        self._jobs.append(job)

    def poll(self, timeout: float) -> list[Event]:
        job = self._jobs.pop(-1 if self._last_first else 0)
        return [Started(job.number), Progress(job.number, "on"), Finished(job.number, cheap_jobs.formula(job))]

    def kill(self, number: int) -> None:
        self._jobs = [job for job in self._jobs if job.number != number]

    def close(self) -> None:
        self._jobs.clear()


def tables(tmp_path: Path, **changes: Any) -> list[list[dict[str, Any]]]:
    """The trials of one study run with the two orders of ending."""
    found = []
    synchronous = changes.pop("synchronous")
    for last_first in (False, True):
        with Study.start(tmp_path / str(last_first), definition(trials=16, **changes)) as study:
            study.run(executor=Two(last_first), terms=Terms(synchronous=synchronous))
            found.append(table(study.trials))
    return found


def test_synchronous_proposals_do_not_depend_on_which_worker_is_faster(tmp_path: Path) -> None:
    first, second = tables(tmp_path, searcher=bayes(), synchronous=True)
    assert first == second


def test_asynchronous_ones_may(tmp_path: Path) -> None:
    first, second = tables(tmp_path, searcher=bayes(), synchronous=False)
    assert first != second  # else the test above would show nothing


def test_random_proposals_never_depend_on_it(tmp_path: Path) -> None:
    first, second = tables(tmp_path, synchronous=False)
    assert first == second


def test_random_proposals_do_not_depend_on_how_many_are_wanted_at_once(tmp_path: Path) -> None:
    with (
        Study.start(tmp_path / "one", definition(trials=6)) as one,
        Study.start(tmp_path / "all", definition(trials=6)) as together,
    ):
        single = [one.ask()[0].configuration for _ in range(6)]
        assert single == [t.configuration for t in together.ask(6)]


def bayes() -> Any:
    from autopeft.search.bayes import BayesSearch

    return BayesSearch(initial=4, pool=64, draws=4, steps=2)


def test_a_worker_process_reports_progress_while_it_runs(path: Path, log: Path) -> None:
    messages: list[str] = []

    def note(event: Event, trial: Trial) -> None:
        if isinstance(event, Progress):
            messages.append(event.message)
            assert trial.status is TrialStatus.RUNNING

    with Study.start(path, definition(trials=1, evaluate=f"{STEPWISE}:stepwise")) as study:
        study.run(progress=note)
    assert messages == [f"step {k}/{STEPS}" for k in range(1, STEPS + 1)]


# -- what is stored --


@pytest.mark.parametrize("executor", ["inline", "process"])
def test_secrets_in_an_error_are_not_stored(path: Path, executor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "abcdefgh-not-for-the-disk")
    with Study.start(path, definition(trials=1, evaluate=f"{STEPWISE}:tell_a_secret")) as study:
        study.run(executor=executor)
        failure = study.trial(0).failure
        assert failure is not None
        assert failure.message == "ValueError: no access with [redacted: HF_TOKEN]"
        assert "tell_a_secret" in failure.traceback
    stored = [file.read_bytes() for file in path.rglob("*") if file.is_file()]
    assert not any(b"not-for-the-disk" in content for content in stored)
    assert any(b"[redacted: HF_TOKEN]" in content for content in stored)
