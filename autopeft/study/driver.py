"""The loop that keeps workers busy: begin trials, wait for events, record them. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from autopeft.errors import AutoPeftError
from autopeft.study.executors.base import Event, Executor, Failed, Finished, Lost
from autopeft.study.ledger import Ledger
from autopeft.study.signals import StopNow, StopRequests
from autopeft.trial import Failure, Trial, TrialStatus

POLL_SECONDS = 0.2
FAILING = 5
"""A run whose first trials, this many of them, fail alike is stopped."""

Watch = Callable[[Event, Trial], None]
"""What is told of every event, with the trial as it is recorded then."""

_EXIT_CODES = {"finished": 0, "exhausted": 0, "failing": 1, "interrupted": 130, "terminated": 143}


@dataclass(frozen=True)
class RunReport:
    """How a run ended.

    Attributes:
        stopped: "finished" (all that was asked for), "exhausted" (the searcher had nothing more to propose),
            "interrupted" (Ctrl-C), "terminated" (SIGTERM) or "failing" (the first trials of the run all failed alike).
        completed: Trials completed in this run.
        failed: Trials failed in this run.
        failure: The failure the first trials had in common, for "failing".
    """

    stopped: Literal["finished", "exhausted", "interrupted", "terminated", "failing"]
    completed: int = 0
    failed: int = 0
    failure: Failure | None = None

    @property
    def exit_code(self) -> int:
        """What a command that ran it exits with: 0; 1 where every trial of the run failed; 130 or 143."""
        if self.stopped in ("finished", "exhausted") and self.failed and not self.completed:
            return 1
        return _EXIT_CODES[self.stopped]


class TrainingStoppedError(AutoPeftError):
    """Final training was stopped before its end by Ctrl-C or SIGTERM; the same command goes on with it.

    Attributes:
        report: How the run ended; its `exit_code` is what a command should exit with.
    """

    exit_code = 130

    def __init__(self, report: RunReport) -> None:
        super().__init__(f"training was stopped ({report.stopped})", cure="run the same command again to go on")
        self.report = report


def drive(ledger: Ledger, following: Callable[[], Trial | None], executor: Executor, watch: Watch) -> RunReport:
    """Runs trials until there is none left to begin, or until it is told to stop.

    Args:
        ledger: Records every step.
        following: Returns the queued trial to begin next, or None; asked again whenever a worker is free.
        executor: Runs the jobs; left open.
        watch: Called with every event after it is recorded.

    Returns:
        How it ended. Where it stopped early, trials that were running are recorded as interrupted.
    """
    loop = _Loop(ledger, following, executor, watch)
    with StopRequests() as stop:
        try:
            while loop.step(stop):
                pass
        except StopNow:
            loop.give_up("SIGTERM" if stop.terminated else "Ctrl-C, twice")
        if loop.common is not None:
            loop.give_up(f"the first {FAILING} trials failed alike")
            ledger.note_alike(loop.failed)
            return loop.report("failing")
    if stop.soon:
        return loop.report("terminated" if stop.terminated else "interrupted")
    return loop.report("finished")


class _Loop:
    """State of one call of `drive`."""

    def __init__(self, ledger: Ledger, following: Callable[[], Trial | None], executor: Executor, watch: Watch) -> None:
        self._ledger, self._following, self._executor, self._watch = ledger, following, executor, watch
        self._running: set[int] = set()
        self._completed = 0
        self.failed: list[int] = []
        self._failures: list[Failure] = []
        self.common: Failure | None = None

    def step(self, stop: StopRequests) -> bool:
        """Fills the workers and handles what happened; says whether there is more to do."""
        while not stop.soon and len(self._running) < self._executor.capacity:
            trial = self._following()
            if trial is None:
                break
            job = self._ledger.begin(trial.number)
            self._running.add(trial.number)
            self._executor.submit(job)
        stop.raise_if_now()
        if not self._running:
            return False
        with stop.waiting():
            events = self._executor.poll(POLL_SECONDS)
        for event in events:
            self._handle(event)
        return self.common is None

    def give_up(self, reason: str) -> None:
        """Stops the running trials and records that."""
        for number in sorted(self._running):
            self._executor.kill(number)
            self._ledger.interrupt(number, reason)
        self._running.clear()

    def report(self, stopped: Literal["finished", "interrupted", "terminated", "failing"]) -> RunReport:
        """Returns the numbers of this run."""
        return RunReport(stopped, self._completed, len(self.failed), self.common)

    def _handle(self, event: Event) -> None:
        number = event.number
        if number not in self._running:
            return
        if isinstance(event, Finished | Failed):
            result = event.outcome if isinstance(event, Finished) else event.failure
            trial = self._ledger.tell(number, result)
        elif isinstance(event, Lost):
            trial = self._ledger.lose(number, event.reason)
        else:
            trial = self._ledger.trial(number)
        if trial.status is not TrialStatus.RUNNING:
            self._running.discard(number)
            self._count(trial)
        self._watch(event, trial)

    def _count(self, trial: Trial) -> None:
        self._completed += trial.status in (TrialStatus.COMPLETED, TrialStatus.PRUNED)
        if trial.status is TrialStatus.FAILED:
            self.failed.append(trial.number)
        if self._completed == 0 and trial.failure is not None:
            self._failures.append(trial.failure)
            if len(self._failures) == FAILING and len({_kin(f) for f in self._failures}) == 1:
                self.common = self._failures[0]


def _kin(failure: Failure) -> tuple[str, str]:
    """What failures that are alike share: numbers in the message, such as sizes and addresses, may differ."""
    return failure.kind, re.sub(r"\d+", "#", failure.message)
