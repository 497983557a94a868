"""The executor of long-lived worker processes on this machine: isolation and time limits. Torch-free."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping
from multiprocessing.connection import Connection, wait
from typing import IO

from autopeft.job import Job
from autopeft.study.executors.base import Event, Executor, Failed, Finished, Lost, Resources, Started
from autopeft.trial import Failure

_BOOT = "import sys; sys.path[:] = {path!r}; from autopeft.study.executors.worker import main; main{arguments!r}"
_TAIL = 4000
# Signals that others send to a process; a process that fails by itself gets SIGSEGV, SIGABRT, SIGBUS, SIGFPE or SIGILL.
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class _Worker:
    """One process in a session of its own, with the job it is doing."""

    def __init__(self, evaluate: str, environment: Mapping[str, str], memory_limit: int) -> None:
        self.job: Job | None = None
        self.started = 0.0
        self.connection, theirs = multiprocessing.Pipe()
        lifeline, self._lifeline = os.pipe()
        # What the process prints is kept from the terminal; its last lines explain a crash.
        self._output: IO[bytes] = tempfile.TemporaryFile("a+b", buffering=0)  # noqa: SIM115 - lives with the worker
        assert isinstance(theirs, Connection)
        arguments = (theirs.fileno(), lifeline, os.getpid(), evaluate, memory_limit)
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _BOOT.format(path=sys.path, arguments=arguments)],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                env=dict(environment),
                pass_fds=(theirs.fileno(), lifeline),
                start_new_session=True,
            )
        finally:
            theirs.close()
            os.close(lifeline)

    def send(self, job: Job) -> None:
        """Gives the idle worker a job; one that has just died shows it at the next `receive`."""
        self._output.truncate(0)
        self.job, self.started = job, time.monotonic()
        with contextlib.suppress(OSError):
            self.connection.send(job)

    def receive(self) -> tuple[list[Event], bool]:
        """Returns the events that have come, and whether the worker is gone."""
        events: list[Event] = []
        try:
            while self.connection.poll():
                events.append(self.connection.recv())
        except (EOFError, OSError):
            # It closes its end while it dies; the status tells why only if nobody kills it first.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=5.0)
            return events, True
        except (Exception, SystemExit) as error:
            # What came cannot be read, so nothing after it can be trusted either.
            name = type(error).__name__
            if self.job is not None:
                what = f"what the job returned cannot be read: {name}: {error}".splitlines()[0]
                events.append(Failed(self.job.number, Failure("crashed", what[:500])))
            return events, True
        return events, self.process.poll() is not None and not self.connection.poll()

    def printed(self) -> str:
        """Returns the last of what the process has printed."""
        end = self._output.seek(0, os.SEEK_END)
        self._output.seek(max(0, end - _TAIL))
        return self._output.read().decode(errors="replace")

    def end(self) -> int:
        """Kills the process and all it started; returns its exit status, negative for a signal."""
        # The group outlives its first process where that left children.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        status = self.process.wait()
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        self.connection.close()
        return status


class ProcessExecutor(Executor):
    """Runs jobs in long-lived processes; a worker loads backbone and task once.

    Processes start when they are first needed. They are fresh interpreters, not forks, each in its own session, and
    they end with the driver even where that is killed. A worker that is killed from outside loses its job (`Lost`);
    one that crashes, or exceeds a limit, fails it; both are replaced. After a job ran out of memory its process is
    replaced too, so that memory returns to where it was.

    Args:
        evaluate: Function that runs a job, as "package.module:function".
        workers: Number of processes.
        threads: Threads of one process: set in its environment before any library is loaded.
        time_limit: Seconds one job may take, or None.
        memory_limit: Bytes of data one process may hold, or None (`RLIMIT_DATA`; CPU memory only).

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
    ) -> None:
        self._evaluate, self._capacity = evaluate, workers
        self._time_limit, self._memory_limit = time_limit, memory_limit
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        self._environment = {**os.environ, **dict.fromkeys(names, str(threads))}
        self._waiting: deque[Job] = deque()
        self._workers: list[_Worker] = []

    @property
    def capacity(self) -> int:
        return self._capacity

    @property
    def processes(self) -> tuple[int, ...]:
        """Process ids of the workers."""
        return tuple(worker.process.pid for worker in self._workers)

    def submit(self, job: Job, resources: Resources = Resources()) -> None:  # noqa: ARG002, B008
        self._waiting.append(job)
        self._assign()

    def poll(self, timeout: float) -> list[Event]:
        self._assign()
        busy = [worker for worker in self._workers if worker.job is not None]
        if busy:
            wait([worker.connection for worker in busy], self._until_limit(busy, timeout))
        else:
            time.sleep(timeout if timeout > 0 and not self._waiting else 0)
        events = [event for worker in busy for event in self._collect(worker)]
        self._assign()
        return events

    def kill(self, number: int) -> None:
        self._waiting = deque(job for job in self._waiting if job.number != number)
        for worker in tuple(self._workers):
            if worker.job is not None and worker.job.number == number:
                self._drop(worker)

    def close(self) -> None:
        self._waiting.clear()
        for worker in tuple(self._workers):
            self._drop(worker)

    def _assign(self) -> None:
        """Gives waiting jobs to idle workers, starting processes up to the capacity."""
        while self._waiting:
            idle = next((worker for worker in self._workers if worker.job is None), None)
            if idle is not None and idle.process.poll() is not None:
                self._drop(idle)
                continue
            if idle is None:
                if len(self._workers) >= self._capacity:
                    return
                idle = _Worker(self._evaluate, self._environment, self._memory_limit or 0)
                self._workers.append(idle)
            idle.send(self._waiting.popleft())

    def _collect(self, worker: _Worker) -> list[Event]:
        events, gone = worker.receive()
        for event in events:
            if isinstance(event, Started):
                worker.started = time.monotonic()
            elif isinstance(event, Finished | Failed):
                worker.job = None
                if isinstance(event, Failed) and event.failure.kind == "out_of_memory":
                    self._drop(worker)
        if worker.job is not None and gone:
            events.append(_ending(worker.job.number, self._drop(worker), worker))
        elif worker.job is not None and self._remaining(worker) <= 0:
            failure = Failure("timed_out", f"took longer than {self._time_limit:g} s")
            events.append(Failed(worker.job.number, failure))
            self._drop(worker)
        elif gone and worker in self._workers:
            self._drop(worker)
        return events

    def _drop(self, worker: _Worker) -> int:
        self._workers.remove(worker)
        return worker.end()

    def _remaining(self, worker: _Worker) -> float:
        return float("inf") if self._time_limit is None else worker.started + self._time_limit - time.monotonic()

    def _until_limit(self, busy: list[_Worker], timeout: float) -> float:
        return max(0.0, min(timeout, *(self._remaining(worker) for worker in busy)))


def _ending(number: int, status: int, worker: _Worker) -> Event:
    """What the death of a worker means for its job."""
    if -status in _FROM_OUTSIDE:
        return Lost(number, f"the worker process was killed ({signal.Signals(-status).name})")
    by_signal = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    return Failed(number, Failure("crashed", f"the worker process died with {by_signal}", worker.printed()))
