"""The loop that keeps workers busy: begin trials, wait for events, record them. Torch-free."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

from autopeft.errors import AutoPeftError
from autopeft.study.executors.base import Checkpoint, Event, Executor, Failed, Finished, Lost, Started
from autopeft.study.failing import Failures
from autopeft.study.ledger import Ended, Ledger
from autopeft.study.limits import STOP_FILE, Allowance, Terms
from autopeft.study.signals import StopNow, StopRequests
from autopeft.trial import Failure, Trial, TrialStatus

_LOG = logging.getLogger("autopeft")
POLL_SECONDS = 0.2

Watch = Callable[[Event, Trial], None]
"""What is told of every event, with the trial as it is recorded then."""

Following = Callable[[int, int], list[Trial]]
"""Given the number of free workers and of running trials, returns queued trials to begin; none where there are none."""

Ahead = Callable[[int], object]
"""Queues new trials while all workers are busy, until as many wait as the number says, where any more are wanted."""

AHEAD_FROM = 16
"""With at least this many workers trials are proposed before a worker is free, so that it need not wait for that. With
fewer none is: each then knows all that has ended, and a searcher is hardly ever what a worker waits for."""
AT_ONCE = 32
"""Most trials that are proposed or begun together, unless all are: the first of them shall not wait for the last."""

Stopped = Literal["finished", "exhausted", "interrupted", "terminated", "failing", "budget", "stop file"]

_AGAIN = "run the same command again to go on"
_CURES: dict[Stopped, str] = {
    "stop file": f"remove the file '{STOP_FILE}' from the study's directory, then run the same command again",
    "budget": "raise the limit, then run the same command again",
    "failing": "mend the cause (`autopeft show STUDY TRIAL` tells it), then run the same command again",
}
_EXIT_CODES: dict[Stopped, int] = {"failing": 1, "interrupted": 130, "terminated": 143}


@dataclass(frozen=True)
class RunReport:
    """How a run ended.

    Attributes:
        stopped: "finished" (all that was asked for), "exhausted" (the searcher had nothing more to propose),
            "budget" (a limit of time was reached), "stop file" (the file `stop` is in the study's directory),
            "interrupted" (Ctrl-C), "terminated" (SIGTERM) or "failing" (trials failed in a row: see `failure`).
        completed: Trials completed in this run.
        failed: Trials failed in this run.
        failure: For "failing": the first failure of the row.
        row: For "failing": how many trials the row has.
    """

    stopped: Stopped
    completed: int = 0
    failed: int = 0
    failure: Failure | None = None
    row: int = 0

    @property
    def exit_code(self) -> int:
        """What a command that ran it exits with: 0; 1 where every trial of the run failed; 130 or 143."""
        if self.stopped not in _EXIT_CODES and self.failed and not self.completed:
            return 1
        return _EXIT_CODES.get(self.stopped, 0)


class TrainingStoppedError(AutoPeftError):
    """Final training was stopped before its end; the same command goes on with it.

    Attributes:
        report: How the run ended; its `exit_code` is what a command should exit with.
    """

    exit_code: int = 130

    def __init__(self, report: RunReport) -> None:
        super().__init__(f"training was stopped ({report.stopped})", cure=_CURES.get(report.stopped, _AGAIN))
        self.report = report
        self.exit_code = report.exit_code or 1


def drive(
    ledger: Ledger,
    following: Following,
    executor: Executor,
    watch: Watch,
    terms: Terms,
    allowance: Allowance,
    ahead: Ahead = lambda most: None,
    known: frozenset[int] = frozenset(),
) -> RunReport:
    """Runs trials until there is none left to begin, or until it is told to stop.

    Every worker gets a new trial as soon as its last one has ended; what has ended by then is recorded together.

    Args:
        ledger: Records every step.
        following: Says what to begin next; asked whenever workers are free.
        executor: Runs the jobs; left open.
        watch: Called with every event after it is recorded.
        terms: How trials are run.
        allowance: Says when the limits are reached.
        ahead: Prepares trials for workers that are still busy, where there are `AHEAD_FROM` or more.
        known: Trials that may be refused once more without counting as failures in a row.

    Returns:
        How it ended. Where it stopped early, trials that were running are recorded as interrupted.
    """
    loop = _Loop(ledger, following, executor, watch, terms, allowance, ahead, known)
    with StopRequests() as stop:
        try:
            while loop.step(stop):
                pass
        except StopNow:
            loop.give_up("SIGTERM" if stop.terminated else "Ctrl-C, twice", stop, terms.grace_seconds)
        if loop.failures.row:
            loop.give_up(f"{len(loop.failures.row)} trials in a row failed", stop)
            ledger.note_alike(loop.failures.row)
            return loop.report("failing")
    if stop.soon:
        return loop.report("terminated" if stop.terminated else "interrupted")
    return loop.report(loop.ended or "finished")


class _Loop:
    """State of one call of `drive`."""

    def __init__(
        self,
        ledger: Ledger,
        following: Following,
        executor: Executor,
        watch: Watch,
        terms: Terms,
        allowance: Allowance,
        ahead: Ahead,
        known: frozenset[int],
    ) -> None:
        self._ledger, self._following, self._executor, self._watch = ledger, following, executor, watch
        self._terms, self._allowance, self._ahead = terms, allowance, ahead
        self._running: set[int] = set()
        self._completed = self._failed = 0
        self._told = False
        self.failures = Failures(known)
        self.ended: Literal["budget", "stop file"] | None = None

    def step(self, stop: StopRequests) -> bool:
        """Fills the workers and handles what happened; says whether there is more to do."""
        self._fill(stop)
        stop.raise_if_now()
        if stop.soon and not self._told and self._running:
            self._told = True
            _LOG.warning("finishing the %d running trials; Ctrl-C again stops now", len(self._running))
        if not self._running:
            return False
        # Only what runs jobs itself must be torn out of them; others return soon, with all that has come.
        with stop.waiting() if self._executor.runs_jobs_itself else nullcontext():
            events = self._executor.poll(POLL_SECONDS)
        self._handle(events)
        self._ledger.charge(self._allowance.charge())
        return not self.failures.row

    def _fill(self, stop: StopRequests) -> None:
        """Begins trials on all free workers, then has some prepared for those that will be free next."""
        while not stop.soon and (free := self._executor.capacity - len(self._running)) > 0:
            self.ended = self._allowance.over()
            most = free if self._terms.synchronous else min(free, AT_ONCE)
            trials = [] if self.ended else self._following(most, len(self._running))
            if not trials:
                return
            jobs = self._ledger.begin_all([trial.number for trial in trials], self._terms)
            for trial, job in zip(trials, jobs, strict=True):
                self._running.add(trial.number)
                self._allowance.expect(trial.number)
                self._executor.submit(job, self._terms.needed(trial.configuration))
        if not stop.soon and self._executor.capacity >= AHEAD_FROM and not self._allowance.over():
            self._ahead(self._executor.capacity // 8)

    def give_up(self, reason: str, stop: StopRequests, grace: float = 0.0) -> None:
        """Stops the running trials and records that.

        Args:
            reason: Kept with their interruption.
            stop: Another request to stop ends the grace.
            grace: Seconds they get to hand over a checkpoint, where SIGTERM asked.
        """
        for number in sorted(self._running):
            self._executor.stop(number)
        if stop.terminated and grace > 0:
            end, asked = time.monotonic() + grace, stop.count
            while self._running and time.monotonic() < end and stop.count == asked:
                self._handle(self._executor.poll(POLL_SECONDS), reason)
        # What a job handed over before it was cut off is still there, and `kill` would forget it.
        if self._running:
            self._handle(self._executor.poll(0.0), reason)
        for number in sorted(self._running):
            self._executor.kill(number)
            self._ledger.interrupt(number, reason, self._allowance.end(number))
        self._running.clear()

    def report(self, stopped: Stopped) -> RunReport:
        """Returns the numbers of this run."""
        row = self.failures.row if stopped == "failing" else []
        return RunReport(stopped, self._completed, self._failed, self.failures.first if row else None, len(row))

    def _handle(self, events: Sequence[Event], giving_up: str | None = None) -> None:
        """Records events, all endings together; `giving_up` is the reason where running trials are being stopped."""
        seen: list[tuple[Event, Trial | None]] = []
        told: dict[int, Ended] = {}
        for event in events:
            number, trial = event.number, None
            if number not in self._running:
                continue
            if isinstance(event, Started):
                self._allowance.begin(number)
            if isinstance(event, Finished | Failed | Lost):
                self._running.discard(number)
                seconds = self._allowance.end(number)
            if isinstance(event, Finished):
                told[number] = Ended(number, event.outcome, None, seconds)
            elif isinstance(event, Failed):
                told[number] = Ended(number, event.failure, event.cost, seconds)
            elif isinstance(event, Lost) and (giving_up or event.stopped):
                trial = self._ledger.interrupt(number, giving_up or event.reason, seconds)
            elif isinstance(event, Lost):
                trial = self._ledger.lose(number, event.reason, seconds)
            elif isinstance(event, Checkpoint):
                trial = self._ledger.keep(number, event.files)
            else:
                trial = self._ledger.trial(number)
            seen.append((event, trial))
        finals = {trial.number: trial for trial in self._ledger.tell_all(list(told.values()))}
        for event, recorded in seen:
            trial = recorded or finals[event.number]
            if isinstance(event, Finished | Failed | Lost):
                self._count(trial)
            self._watch(event, trial)

    def _count(self, trial: Trial) -> None:
        self._completed += trial.status in (TrialStatus.COMPLETED, TrialStatus.PRUNED)
        self._failed += trial.status is TrialStatus.FAILED
        if trial.status.final:
            self.failures.see(trial)
