"""The executor that trains several configurations in one batch, in this process. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import final

from autopeft.configuration import Configuration
from autopeft.errors import InputError
from autopeft.job import Job, Outcome, Report
from autopeft.study.executors.admission import fits_beside, refusal
from autopeft.study.executors.base import (
    Checkpoint,
    Ending,
    Evaluate,
    Event,
    Executor,
    Failed,
    Lost,
    Progress,
    Resources,
    Started,
    named,
)
from autopeft.study.executors.memory import measure
from autopeft.study.executors.perform import perform
from autopeft.trial import Cost, Failure

EvaluateTogether = Callable[[Sequence[Job], Sequence[Report]], Sequence[Outcome | Exception]]
"""What runs several jobs at once: an outcome for each, or the exception that it alone ended with. An exception out of
it belongs to none of them."""


def stackable(configuration: Configuration) -> bool:
    """Says whether a configuration can be trained beside others in one batch.

    It has a module, every module is of a kind that can, and at most one group of prefixes has an MLP.

    Example:
        >>> stackable(Configuration())
        False
    """
    placements = configuration.placements
    groups = {p.group for p in placements if getattr(p.module, "mlp", 0)}
    return bool(placements) and len(groups) <= 1 and all(p.module.stackable for p in placements)


def alike(one: Job, other: Job) -> bool:
    """Says whether two jobs can be trained in one batch: they see the same texts in one order and are scored alike.

    Seed, budget, setting (backbone, data, head, recipe) and splits agree, both begin anew or both go on from another
    job, dropout is off, and both configurations are `stackable`.
    """
    if one.setting.recipe.dropout > 0 or not (stackable(one.configuration) and stackable(other.configuration)):
        return False
    agree = all(
        getattr(one, name) == getattr(other, name) for name in ("seed", "budget", "splits", "trust_remote_code")
    )
    begin = all(bool(getattr(one, name)) == bool(getattr(other, name)) for name in ("checkpoint", "start"))
    return agree and begin and (one.setting is other.setting or one.setting == other.setting)


class StackedExecutor(Executor):
    """Runs jobs within `poll`: those that are `alike` together in one batch, the others one at a time.

    It is for a GPU, which a single small trial leaves idle most of the time; on a CPU it gains little. Results are
    those of single jobs up to the rounding of sums, and say in their detail how many were trained together. As with the
    inline executor a crash of a job is a crash of the study, which can be resumed; there are no time limits and no
    heartbeats, and what a job reports comes with its ending. Where the whole batch fails, such as for want of memory,
    its halves are run.

    Args:
        evaluate: What runs a job: a function, or its name as "package.module:function".
        together: What runs several at once, likewise.
        most: Largest number of jobs in one batch.
        alike: Says whether two jobs can be in one.

    Raises:
        InputError: `most` is below 1.

    Example:
        >>> StackedExecutor("autopeft.worker:evaluate", "autopeft.together:evaluate_together", most=16).capacity
        16
    """

    runs_jobs_itself = True

    def __init__(
        self,
        evaluate: Evaluate | str,
        together: EvaluateTogether | str,
        most: int,
        alike: Callable[[Job, Job], bool] = alike,
    ) -> None:
        if most < 1:
            raise InputError(f"{most} trials together", where="search.together", cure="use 1 or more")
        self._evaluate, self._together, self._most, self._alike = evaluate, together, most, alike
        self._waiting: dict[int, tuple[Job, Resources]] = {}
        self._running: dict[int, _Collected] = {}
        self._inside = False
        self._events: list[Event] = []

    @property
    def capacity(self) -> int:
        return self._most

    def submit(self, job: Job, resources: Resources = Resources()) -> None:  # noqa: B008 - a frozen value
        reason = refusal(replace(resources, devices=0), ())
        if reason is None:
            self._waiting[job.number] = job, resources
        else:
            self._events.append(Failed(job.number, Failure("refused", reason)))

    def poll(self, timeout: float) -> list[Event]:  # noqa: ARG002 - the jobs decide how long they take
        if not self._events and self._running:
            self._run([self._waiting[number][0] for number in self._running])
        elif not self._events and self._waiting:
            for job in self._next():
                self._running[job.number] = _Collected(job.number, self._add)
                self._events.append(Started(job.number))
        events, self._events = self._events, []
        return events

    def stop(self, number: int) -> None:
        if self._inside and number in self._running:
            self._running[number].asked = True
        elif number in self._waiting:
            self._withdraw(number)
            self._events.append(Lost(number, "it was asked to stop before it began", stopped=True))

    def kill(self, number: int) -> None:
        self._withdraw(number)
        self._events = [event for event in self._events if event.number != number]

    def close(self) -> None:
        self._waiting.clear()
        self._running.clear()
        self._events.clear()

    def _next(self) -> list[Job]:
        """Returns the job that has waited longest and those that can be trained with it, as many as memory holds."""
        (first, resources), *others = self._waiting.values()
        chosen, claims = [first], [(resources.memory, 0)]
        for job, needs in others:
            if len(chosen) < self._most and self._alike(first, job) and fits_beside(needs.memory, claims):
                chosen.append(job)
                claims.append((needs.memory, 0))
        return chosen

    def _run(self, jobs: Sequence[Job]) -> None:
        reports, cost, self._inside = dict(self._running), measure(), True
        ended: list[Ending] = []
        try:
            ended = self._ended(jobs, [reports[job.number] for job in jobs])
        except BaseException as error:
            spent, reason = _share(cost(), len(jobs)), f"it was interrupted by {type(error).__name__}"
            ended = [Lost(job.number, reason, cost=spent) for job in jobs]
            raise
        finally:
            self._inside = False
            for job in jobs:
                self._withdraw(job.number)
            self._events += ended

    def _ended(self, jobs: Sequence[Job], reports: Sequence[_Collected]) -> list[Ending]:
        if len(jobs) == 1:
            return [perform(self._evaluate, jobs[0], reports[0])]
        cost = measure()
        try:
            together = named(self._together) if isinstance(self._together, str) else self._together
            found = together(jobs, reports)
        except (Exception, SystemExit):
            middle = len(jobs) // 2
            return [*self._ended(jobs[:middle], reports[:middle]), *self._ended(jobs[middle:], reports[middle:])]
        spent = _share(cost(), len(jobs))
        pairs = zip(jobs, reports, found, strict=True)
        return [_ending(job, report, result, spent) for job, report, result in pairs]

    def _add(self, event: Event) -> None:
        self._events.append(event)

    def _withdraw(self, number: int) -> None:
        self._waiting.pop(number, None)
        self._running.pop(number, None)


def _ending(job: Job, report: Report, result: Outcome | Exception, cost: Cost) -> Ending:
    def told(job: Job, report: Report) -> Outcome:  # noqa: ARG001 - what performs gives both
        if isinstance(result, Exception):
            raise result
        return result

    ended = perform(told, job, report)
    return replace(ended, cost=cost) if isinstance(ended, Failed | Lost) else ended


def _share(cost: Cost, jobs: int) -> Cost:
    return Cost(cost.cpu_seconds / jobs, cost.seconds / jobs, cost.peak_bytes)


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
