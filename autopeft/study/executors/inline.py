"""The executor that runs jobs in this process, one at a time. Torch-free."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import final

from autopeft.job import Job, Report
from autopeft.study.executors.admission import refusal
from autopeft.study.executors.base import (
    Checkpoint,
    Evaluate,
    Event,
    Executor,
    Failed,
    Lost,
    Progress,
    Resources,
    Started,
)
from autopeft.study.executors.memory import measure
from autopeft.study.executors.perform import perform
from autopeft.trial import Failure


class InlineExecutor(Executor):
    """Runs each job within `poll`; for debugging, and where the process may not start others.

    A crash of a job is a crash of the study, which can be resumed; there are no time limits and no heartbeats. What a
    job reports comes with its ending. Where an exception that is no `Exception` ends the run within `poll`, such as
    one raised by a signal, the job is lost, and the next `poll` returns what it had handed over and that.

    Args:
        evaluate: What runs a job: a function, or its name as "package.module:function".

    Example:
        >>> InlineExecutor("autopeft.worker:evaluate").capacity
        1
    """

    runs_jobs_itself = True

    def __init__(self, evaluate: Evaluate | str) -> None:
        self._evaluate = evaluate
        self._waiting: deque[Job] = deque()
        self._running: _Collected | None = None
        self._inside = False
        self._events: list[Event] = []

    @property
    def capacity(self) -> int:
        return 1

    def submit(self, job: Job, resources: Resources = Resources()) -> None:  # noqa: B008 - a frozen value
        reason = refusal(replace(resources, devices=0), ())
        if reason is None:
            self._waiting.append(job)
        else:
            self._events.append(Failed(job.number, Failure("refused", reason)))

    def poll(self, timeout: float) -> list[Event]:  # noqa: ARG002 - the job decides how long it takes
        if not self._events and self._waiting:
            if self._running is None:
                self._running = _Collected(self._waiting[0].number, self._add)
                self._events.append(Started(self._running.number))
            else:
                self._run(self._waiting[0], self._running)
        events, self._events = self._events, []
        return events

    def stop(self, number: int) -> None:
        if self._inside and self._running is not None and self._running.number == number:
            self._running.asked = True
        elif any(job.number == number for job in self._waiting):
            self._withdraw(number)
            self._events.append(Lost(number, "it was asked to stop before it began", stopped=True))

    def kill(self, number: int) -> None:
        self._withdraw(number)
        self._events = [event for event in self._events if event.number != number]

    def close(self) -> None:
        self._waiting.clear()
        self._events.clear()
        self._running = None

    def _run(self, job: Job, report: _Collected) -> None:
        cost, self._inside = measure(), True
        try:
            ended = perform(self._evaluate, job, report)
        except BaseException as error:
            ended = Lost(job.number, f"it was interrupted by {type(error).__name__}", cost=cost())
            raise
        finally:
            self._inside = False
            self._withdraw(job.number)
            self._events.append(ended)

    def _add(self, event: Event) -> None:
        self._events.append(event)

    def _withdraw(self, number: int) -> None:
        if self._running is not None and self._running.number == number:
            self._running = None
        self._waiting = deque(job for job in self._waiting if job.number != number)


@final
class _Collected(Report):
    """Keeps what a job reports until its ending."""

    def __init__(self, number: int, add: Callable[[Event], None]) -> None:
        self.number, self.asked = number, False
        self._add = add

    def progress(self, message: str) -> None:
        self._add(Progress(self.number, message))

    def checkpoint(self, files: Mapping[str, bytes]) -> None:
        self._add(Checkpoint(self.number, dict(files)))

    @property
    def stopping(self) -> bool:
        return self.asked
