"""The executor of long-lived worker processes on this machine: isolation, limits, devices. Torch-free."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from autopeft.errors import InputError
from autopeft.job import Job
from autopeft.study.executors.admission import choose, fits_beside, refusal, suits
from autopeft.study.executors.base import (
    Device,
    Event,
    Executor,
    Failed,
    Finished,
    Heartbeat,
    Lost,
    Resources,
    Started,
)
from autopeft.study.executors.memory import OutOfMemoryWatch, as_text
from autopeft.study.executors.perform import NO_MEMORY, failure_of
from autopeft.study.executors.process_worker import Gone, Worker
from autopeft.study.executors.worker import HEARTBEAT_SECONDS, Rested
from autopeft.trial import Cost, Failure

# Signals that others send to a process; a process that fails by itself gets SIGSEGV, SIGABRT, SIGBUS, SIGFPE or SIGILL.
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
_TICK = 0.5
_STARTS_WITHIN = 300.0
_LISTENED_AT_MOST = 10.0
_GROWTH_AT_LEAST = 256 << 20


class ProcessExecutor(Executor):
    """Runs jobs in long-lived processes; a worker loads backbone and task once.

    Processes start when they are first needed. They are fresh interpreters, not forks, each in its own session, and
    they end with the driver even where that is killed. A worker that is killed from outside, or gives no sign of life,
    loses its job (`Lost`); one that crashes, exceeds a limit, or that the kernel kills for want of memory, fails it.
    Such a process is replaced, and so is one whose job ran out of memory or whose memory grows from job to job, so that
    memory returns to where it was.

    SIGTERM lets a worker hand over its job's checkpoint before it goes, where the job listens; its job is lost too.

    Jobs begin in the order in which they were submitted: one that waits for memory or devices lets no other pass.

    Args:
        evaluate: Function that runs a job, as "package.module:function".
        workers: Number of processes.
        threads: Threads of one process: set in its environment before any library is loaded.
        time_limit: Seconds one job may take once what it imports is loaded, or None.
        memory_limit: Bytes one process may hold, or None: of data by `RLIMIT_DATA`, so that the job meets a
            MemoryError, and of resident memory once a second. CPU memory only.
        silence_limit: Seconds after which a process that says nothing at all is given up; one that works says
            something every second, unless foreign code keeps Python from running.
        devices: Accelerators to share out: a process is started with those its job asked for in CUDA_VISIBLE_DEVICES,
            and no two have the same. Without any, `Resources.devices` is ignored and the environment left alone.
        growth: A process is replaced once its memory between jobs is this many times, and 256 MiB above, what it was
            after its first job.

    Raises:
        InputError: Two devices of one name, or a `silence_limit` under 2 seconds.

    Example:
        >>> executor = ProcessExecutor("autopeft.worker:evaluate", workers=2)
        >>> executor.capacity
        2
        >>> executor.close()
    """

    def __init__(
        self,
        evaluate: str,
        workers: int = 1,
        threads: int = 1,
        time_limit: float | None = None,
        memory_limit: int | None = None,
        silence_limit: float = 300.0,
        devices: Sequence[Device] = (),
        *,
        growth: float = 1.5,
    ) -> None:
        names = [device.name for device in devices]
        if len(set(names)) < len(names):
            raise InputError(f"the same device twice in {', '.join(names)}", where="devices", cure="name each once")
        if silence_limit < 2 * HEARTBEAT_SECONDS:
            what = f"{silence_limit:g} s is no silence where processes speak once a second"
            raise InputError(what, where="silence_limit", cure=f"use {2 * HEARTBEAT_SECONDS:g} s or more")
        self._evaluate, self._capacity, self._devices = evaluate, workers, tuple(devices)
        self._time_limit, self._memory_limit, self._silence_limit = time_limit, memory_limit, silence_limit
        self._growth = growth
        libraries = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        self._environment = {**os.environ, **dict.fromkeys(libraries, str(threads))}
        self._waiting: deque[tuple[Job, Resources]] = deque()
        self._workers: list[Worker] = []
        self._inbox: queue.SimpleQueue[tuple[Worker, Any]] = queue.SimpleQueue()
        self._events: list[Event] = []  # kept here until they are returned, so that no interruption loses one
        self._watch = OutOfMemoryWatch()
        self._listened = self._looked = time.monotonic()

    @property
    def capacity(self) -> int:
        return self._capacity

    @property
    def processes(self) -> tuple[int, ...]:
        """Process ids of the workers."""
        return tuple(worker.process.pid for worker in self._workers)

    def submit(self, job: Job, resources: Resources = Resources()) -> None:  # noqa: B008 - a frozen value
        asked = resources if self._devices else replace(resources, devices=0)
        reason = refusal(asked, self._devices, self._memory_limit)
        if reason is not None:
            self._events.append(Failed(job.number, Failure("refused", reason)))
            return
        self._waiting.append((job, asked))
        self._assign()

    def poll(self, timeout: float) -> list[Event]:
        deadline = time.monotonic() + timeout
        while True:
            self._assign()
            self._take(0.0 if self._events else min(deadline - time.monotonic(), self._until_check()))
            self._check()
            self._assign()
            if self._events or time.monotonic() >= deadline:
                events, self._events = self._events, []
                return events

    def stop(self, number: int) -> None:
        if any(job.number == number for job, _ in self._waiting) and self._on(number) is None:
            self._withdraw(number)
            self._events.append(Lost(number, "it was asked to stop before it began", stopped=True))
        worker = self._on(number)
        if worker is not None:
            worker.stop(number)

    def kill(self, number: int) -> None:
        self._withdraw(number)
        worker = self._on(number)
        if worker is not None:
            self._drop(worker)
        self._events = [event for event in self._events if event.number != number]

    def close(self) -> None:
        self._waiting.clear()
        self._events.clear()
        for worker in self._workers:
            worker.kill_group()
        for worker in tuple(self._workers):
            self._drop(worker)

    # -- giving out jobs --

    def _assign(self) -> None:
        """Gives waiting jobs to workers, in order, as long as the first one fits."""
        while self._waiting:
            job, resources = self._waiting[0]
            if not any(worker.job is job for worker in self._workers):
                worker = self._place(resources)
                if worker is None:
                    return
                if not any(other.job for other in self._workers):
                    self._watch.restart()
                    self._listened = time.monotonic()
                self._watch.look()
                try:
                    worker.give(job, resources)
                except Exception as error:  # it cannot travel
                    self._events.append(Failed(job.number, failure_of(error)))
            self._waiting.popleft()

    def _place(self, resources: Resources) -> Worker | None:
        """Returns a worker for the next job, a new process where need be; None while it has to wait."""
        for worker in tuple(self._workers):
            if worker.idle and worker.dying:
                self._drop(worker)
        idle = [worker for worker in self._workers if worker.idle]
        suited = next((worker for worker in idle if suits(resources, worker.devices)), None)
        if suited is None and not idle and len(self._workers) >= self._capacity:
            return None
        wanted = 0 if resources.devices else resources.memory
        if wanted:
            claims = [(_claim(worker), worker.memory) for worker in self._workers if worker.job is not None]
            if not fits_beside(wanted, claims, suited.memory if suited else 0):
                return None
        return suited or self._start(resources, idle)

    def _start(self, resources: Resources, idle: list[Worker]) -> Worker | None:
        """Starts a process with the devices the job asks for, if need be in place of idle ones."""
        held = {device.name for worker in self._workers for device in worker.devices}
        released = {device.name for worker in idle for device in worker.devices}
        free = [device for device in self._devices if device.name not in held]
        chosen = choose(resources, free)
        if chosen is None:
            free = [device for device in self._devices if device.name not in held - released]
            chosen = choose(resources, free)
        if chosen is None:
            return None
        for worker in idle:
            if set(worker.devices) & set(chosen) or len(self._workers) >= self._capacity:
                self._drop(worker)
        environment = self._environment
        if self._devices:
            environment = {**environment, "CUDA_VISIBLE_DEVICES": ",".join(device.name for device in chosen)}
        worker = Worker(self._evaluate, environment, self._memory_limit or 0, chosen, self._inbox)
        self._workers.append(worker)
        return worker

    # -- what comes back --

    def _take(self, timeout: float) -> None:
        """Waits for a message, and reads all that are there."""
        with contextlib.suppress(queue.Empty):
            worker, message = self._inbox.get(timeout=max(0.0, timeout))
            while True:
                if worker in self._workers:
                    worker.heard = True
                    self._read(worker, message)
                worker, message = self._inbox.get_nowait()

    def _read(self, worker: Worker, message: Any) -> None:
        """Does what one message of a worker asks for."""
        if isinstance(message, Gone):
            worker.gone = message
        elif isinstance(message, Rested):
            self._rest(worker, message.memory)
        elif worker.job is not None and message.number == worker.job.number:
            if isinstance(message, Started):
                worker.begun()
            elif isinstance(message, Heartbeat):
                worker.note(message.memory)
            elif isinstance(message, Finished | Failed | Lost):
                worker.job, worker.resting = None, True
                if isinstance(message, Failed) and message.failure.kind == "out_of_memory":
                    self._drop(worker)
            self._events.append(message)
            if isinstance(message, Heartbeat) and self._memory_limit and message.memory > self._memory_limit:
                have, most = as_text(message.memory), as_text(self._memory_limit)
                self._fail(worker, Failure("out_of_memory", f"used {have} of memory; the limit is {most}"))

    def _rest(self, worker: Worker, memory: int) -> None:
        worker.resting = False
        if worker.baseline is None:
            worker.baseline = memory
        elif memory > max(self._growth * worker.baseline, worker.baseline + _GROWTH_AT_LEAST):
            self._drop(worker)

    def _check(self) -> None:
        """Ends what has died, stands still or takes too long."""
        now = time.monotonic()
        # Time in which nobody listened, since the driver was stopped or busy, is no silence of the worker.
        passed, self._listened = min(now - self._listened, _LISTENED_AT_MOST), now
        if now >= self._looked + _TICK:
            self._look(now)
        for worker in tuple(self._workers):
            if worker.idle:
                continue
            worker.silence = 0.0 if worker.heard else worker.silence + passed
            worker.heard = False
            if worker.dead():
                self._bury(worker)
            elif worker.job is None:
                if worker.silence > self._silence_limit:
                    self._drop(worker)
            elif self._remaining(worker) <= 0:
                self._fail(worker, Failure("timed_out", f"took longer than {self._time_limit:g} s"))
            elif worker.silence > self._silence_limit:
                cost = worker.cost()
                reason = f"the worker process gave no sign of life for {self._silence_limit:g} s"
                self._events.append(Lost(worker.job.number, reason, cost=cost))
                self._drop(worker)

    def _look(self, now: float) -> None:
        """Takes the readings that explain an ending later."""
        self._looked = now
        for worker in self._workers:
            if worker.job is not None:
                worker.note()
                self._watch.look()

    def _bury(self, worker: Worker) -> None:
        """Tells what the death of a worker means for its job."""
        job, exited, cost, printed = worker.job, worker.exited, worker.cost(), worker.printed()
        status = worker.end()
        if job is not None:
            known = status if exited else None
            # Under a limit of data some libraries end the process where they get none.
            denied = bool(self._memory_limit) and any(words in printed.lower() for words in NO_MEMORY)
            if denied and known is not None and -known not in _FROM_OUTSIDE:
                limit = as_text(self._memory_limit or 0)
                failure = Failure("out_of_memory", f"the worker process found no memory within {limit}", printed)
                self._events.append(Failed(job.number, failure, cost))
            else:
                self._events.append(_ending(job.number, known, worker.gone, self._watch.rose(), cost, printed))
        self._drop(worker)

    def _fail(self, worker: Worker, failure: Failure) -> None:
        assert worker.job is not None
        self._events.append(Failed(worker.job.number, failure, worker.cost()))
        self._drop(worker)

    def _drop(self, worker: Worker) -> None:
        worker.end()
        if worker in self._workers:
            self._workers.remove(worker)

    def _on(self, number: int) -> Worker | None:
        return next((worker for worker in self._workers if worker.job and worker.job.number == number), None)

    def _withdraw(self, number: int) -> None:
        self._waiting = deque(entry for entry in self._waiting if entry[0].number != number)

    def _remaining(self, worker: Worker) -> float:
        if self._time_limit is None:
            return float("inf")
        limit = self._time_limit if worker.running else max(self._time_limit, _STARTS_WITHIN)
        return worker.started + limit - time.monotonic()

    def _until_check(self) -> float:
        """Returns how long nobody needs to look after the workers."""
        return min(self._checks(), default=60.0)

    def _checks(self) -> Iterator[float]:
        if self._waiting:
            yield _TICK
        for worker in self._workers:
            if not worker.idle:
                yield 0.02 if worker.dying else _TICK
                yield self._silence_limit - worker.silence
                if worker.job is not None:
                    yield self._remaining(worker)


def _claim(worker: Worker) -> int:
    return 0 if worker.resources.devices else worker.resources.memory


def _ending(number: int, status: int | None, gone: Gone | None, short: bool, cost: Cost, printed: str) -> Event:
    """What the death of a worker means for its job; without a status it has only cut the connection."""
    if gone is not None and gone.unreadable:
        what = f"what the job returned cannot be read: {gone.unreadable}"
        return Failed(number, Failure("crashed", what), cost)
    if status is None:
        return Failed(number, Failure("crashed", "the worker process closed its connection", printed), cost)
    if -status == signal.SIGKILL and short:
        what = "the kernel killed the worker process since memory ran out"
        seen = f"; it had {as_text(cost.peak_bytes)} when last seen" if cost.peak_bytes else ""
        return Failed(number, Failure("out_of_memory", what + seen, printed), cost)
    if -status in _FROM_OUTSIDE:
        return Lost(number, f"the worker process was killed ({signal.Signals(-status).name})", cost=cost)
    by_signal = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    return Failed(number, Failure("crashed", f"the worker process died with {by_signal}", printed), cost)
