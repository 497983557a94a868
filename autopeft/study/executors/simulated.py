"""The executor that only pretends: jobs on many workers, on a clock of its own. Torch-free."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import final

from autopeft.errors import InputError
from autopeft.job import Job
from autopeft.study.executors.admission import refusal
from autopeft.study.executors.base import Evaluate, Event, Executor, Failed, Lost, Resources, Started
from autopeft.study.executors.local import Collected, Told
from autopeft.study.executors.perform import perform
from autopeft.trial import Cost, Failure


@dataclass(frozen=True)
class Utilisation:
    """How busy simulated workers were.

    Attributes:
        workers: Their number.
        span: Virtual seconds from the executor's making to the last thing that happened.
        busy: Worker-seconds spent on jobs in that time.
        full_span: Virtual seconds to the moment when the last job began: what follows is the last wave, in which
            workers are idle since nothing is left to do.
        full_busy: Worker-seconds spent on jobs until then.
        driver: Seconds that the driver took for itself and that delayed the workers.
    """

    workers: int
    span: float
    busy: float
    full_span: float
    full_busy: float
    driver: float

    @property
    def share(self) -> float:
        """Busy worker-seconds by those there were, over the whole run; 0 where no time has passed."""
        return self.busy / (self.workers * self.span) if self.span > 0 else 0.0

    @property
    def share_before_tail(self) -> float:
        """The same without the last wave."""
        return self.full_busy / (self.workers * self.full_span) if self.full_span > 0 else 0.0


@final
class SimulatedExecutor(Executor):
    """Runs jobs in no time, and says when they would have ended on many workers.

    Jobs last as long as `seconds` says, on a virtual clock; `poll` moves it to the next ending, at most `timeout`
    seconds on. Nothing is waited for and no process is started: hours of a thousand workers take as long as the driver
    needs for them. That need is part of what is simulated: whatever `clock` shows between two calls of this executor is
    added to the virtual clock, and a job that ends meanwhile keeps its worker idle until the driver has seen that and
    submitted another. `outcome` is called once a job ends; the time it takes is not counted.

    Args:
        outcome: What runs a job: a function of the job and its report, or its name as "package.module:function".
        seconds: How long a job takes, above 0. For a simulation that can be repeated, derive what is random from the
            job's number, not from a running stream: jobs may be asked about in any order.
        workers: Jobs at once.
        clock: The driver's clock in seconds, such as `time.perf_counter` (what workers would really wait for, the disk
            included) or `time.thread_time`; None does not count the driver's time, which makes a run deterministic.

    Raises:
        InputError: There is no worker.

    Example:
        >>> executor = SimulatedExecutor(lambda job, report: Outcome({"quality": 1.0}, Cost()), lambda job: 10.0, 64)
        >>> executor.utilisation().share
        0.0
    """

    def __init__(
        self,
        outcome: Evaluate | str,
        seconds: Callable[[Job], float],
        workers: int = 1,
        clock: Callable[[], float] | None = None,
    ) -> None:
        if workers < 1:
            raise InputError(f"{workers} workers can run nothing", where="workers", cure="use 1 or more")
        self._outcome, self._seconds, self._workers = outcome, seconds, workers
        self._clock: Callable[[], float] = clock or (lambda: 0.0)
        self.now = 0.0
        self._driver, self._last_begin = 0.0, 0.0
        self._done: list[tuple[float, float]] = []
        self._waiting: deque[Job] = deque()
        self._running: dict[int, _Attempt] = {}
        self._endings: list[tuple[float, int, _Attempt]] = []
        self._begun = 0
        self._events: list[Event] = []
        self._left = self._clock()

    @property
    def capacity(self) -> int:
        return self._workers

    def submit(self, job: Job, resources: Resources = Resources()) -> None:  # noqa: B008 - a frozen value
        self._count_driver()
        reason = refusal(replace(resources, devices=0), ())
        if reason is not None:
            self._events.append(Failed(job.number, Failure("refused", reason)))
        else:
            self._waiting.append(job)
            self._fill()
        self._left = self._clock()

    def poll(self, timeout: float) -> list[Event]:
        self._count_driver()
        if not self._events and timeout > 0:
            following = self._next_ending()
            if following is not None:
                self._advance(min(self.now + timeout, following))
        events, self._events = self._events, []
        self._left = self._clock()
        return events

    def stop(self, number: int) -> None:
        """Ends a job at once: it comes back as lost, without a checkpoint, having used the time since it began."""
        self._count_driver()
        attempt = self._running.get(number)
        if attempt is not None:
            spent = self._end(attempt, self.now)
            self._events.append(Lost(number, "it was asked to stop", True, Cost(spent, spent)))
            self._fill()
        elif any(job.number == number for job in self._waiting):
            self._withdraw(number)
            self._events.append(Lost(number, "it was asked to stop before it began", stopped=True))
        self._left = self._clock()

    def kill(self, number: int) -> None:
        self._count_driver()
        self._withdraw(number)
        attempt = self._running.get(number)
        if attempt is not None:
            self._end(attempt, self.now)
        self._events = [event for event in self._events if event.number != number]
        self._fill()
        self._left = self._clock()

    def close(self) -> None:
        self._waiting.clear()
        for attempt in list(self._running.values()):
            self._end(attempt, self.now)
        self._events.clear()

    def utilisation(self) -> Utilisation:
        """Returns how busy the workers were so far."""
        spans = [*self._done, *((a.began, min(a.ends, self.now)) for a in self._running.values())]
        last = self._last_begin
        return Utilisation(self._workers, self.now, _busy(spans, self.now), last, _busy(spans, last), self._driver)

    def _count_driver(self) -> None:
        """Lets the time pass that the driver took since the last call."""
        took = max(0.0, self._clock() - self._left)
        self._driver += took
        self._advance(self.now + took)

    def _advance(self, until: float) -> None:
        """Moves the clock on; jobs that end on the way free their worker for those that wait here."""
        while (ending := self._next_ending()) is not None and ending <= until:
            _, _, attempt = heapq.heappop(self._endings)
            self.now = max(self.now, ending)
            spent = self._end(attempt, ending)
            self._events += _results(self._outcome, attempt.job, spent)
            self._fill()
        self.now = max(self.now, until)

    def _next_ending(self) -> float | None:
        while self._endings and self._endings[0][2].over:
            heapq.heappop(self._endings)
        return self._endings[0][0] if self._endings else None

    def _fill(self) -> None:
        while self._waiting and len(self._running) < self._workers:
            job = self._waiting.popleft()
            attempt = _Attempt(job, self.now, self.now + max(0.0, self._seconds(job)))
            self._running[job.number] = attempt
            self._begun, self._last_begin = self._begun + 1, self.now
            heapq.heappush(self._endings, (attempt.ends, self._begun, attempt))
            self._events.append(Started(job.number))

    def _end(self, attempt: _Attempt, when: float) -> float:
        attempt.over = True
        del self._running[attempt.job.number]
        self._done.append((attempt.began, when))
        return when - attempt.began

    def _withdraw(self, number: int) -> None:
        self._waiting = deque(job for job in self._waiting if job.number != number)


@dataclass
class _Attempt:
    """One job on one worker, in virtual seconds."""

    job: Job
    began: float
    ends: float
    over: bool = False


def _results(outcome: Evaluate | str, job: Job, seconds: float) -> list[Event]:
    """Runs a job for real; what it took of virtual time is its cost where it failed."""
    told = Told()
    ended = perform(outcome, job, Collected(job.number, told))
    if isinstance(ended, Failed | Lost):
        ended = replace(ended, cost=replace(ended.cost, seconds=seconds))
    return [*told.take(), ended]


def _busy(spans: Iterable[tuple[float, float]], until: float) -> float:
    return sum(min(end, until) - begin for begin, end in spans if begin < until)
