"""The executor that runs jobs in this process, one at a time. Torch-free."""

from __future__ import annotations

from collections import deque

from autopeft.job import Job
from autopeft.study.executors.base import Evaluate, Event, Executor, Resources, Started
from autopeft.study.executors.perform import perform


class InlineExecutor(Executor):
    """Runs each job within `poll`; for debugging, and where the process may not start others.

    A crash of a job is a crash of the study, which can be resumed; there are no time limits.

    Args:
        evaluate: What runs a job: a function, or its name as "package.module:function".

    Example:
        >>> InlineExecutor("autopeft.worker:evaluate").capacity
        1
    """

    def __init__(self, evaluate: Evaluate | str) -> None:
        self._evaluate = evaluate
        self._waiting: deque[Job] = deque()
        self._begun = False

    @property
    def capacity(self) -> int:
        return 1

    def submit(self, job: Job, resources: Resources = Resources()) -> None:  # noqa: ARG002, B008 - it has no choice
        self._waiting.append(job)

    def poll(self, timeout: float) -> list[Event]:  # noqa: ARG002 - the job decides how long it takes
        if not self._waiting:
            return []
        if not self._begun:
            self._begun = True
            return [Started(self._waiting[0].number)]
        ended = perform(self._evaluate, self._waiting[0])
        self._waiting.popleft()
        self._begun = False
        return [ended]

    def kill(self, number: int) -> None:
        if self._waiting and self._waiting[0].number == number:
            self._begun = False
        self._waiting = deque(job for job in self._waiting if job.number != number)

    def close(self) -> None:
        self._waiting.clear()
        self._begun = False
