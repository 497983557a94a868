"""What a worker process runs: jobs from a connection until the driver closes it or dies. Torch-free itself."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import queue
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any, final

from autopeft.job import Job, Report
from autopeft.study.executors.base import (
    Checkpoint,
    Ending,
    Failed,
    Finished,
    Heartbeat,
    Lost,
    Progress,
    Started,
    named,
)
from autopeft.study.executors.memory import resident, resident_after_cleaning
from autopeft.study.executors.perform import failure_of, perform

HEARTBEAT_SECONDS = 1.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class Stop:
    """Tells a worker that the job it has shall hand over a checkpoint and end."""

    number: int


@dataclass(frozen=True)
class Rested:
    """Tells the driver that a worker has cleaned up after its job and can take the next.

    Attributes:
        memory: Resident bytes it still has.
    """

    memory: int


def main(jobs: int, lifeline: int, driver: int, evaluate: str, memory_limit: int) -> None:
    """Serves jobs; returns when the connection is closed.

    Args:
        jobs: File descriptor of the connection: jobs and stops come in, events go out.
        lifeline: File descriptor that reaches its end when the driver is gone.
        driver: Process id of the driver.
        evaluate: The function to call, as "package.module:function".
        memory_limit: Largest size of the process's data in bytes, 0 for none.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, which decides what becomes of the jobs
    faulthandler.enable()
    _die_with(driver, lifeline)
    if memory_limit:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_limit, memory_limit))
    line = _Line(Connection(jobs))
    _leave_in_order(line)
    least = 0
    while True:
        job = line.take()
        if job is None:
            break
        # What the job imports is loaded before its time begins; a failure of that is told by `perform`.
        with contextlib.suppress(Exception, SystemExit):
            named(evaluate)
        line.begin(job.number)
        ended = perform(evaluate, job, _LineReport(line, job.number))
        if isinstance(ended, Lost) and not line.asked(job.number):
            ended = replace(ended, reason="its worker process was terminated (SIGTERM)", stopped=False)
        line.end(ended)
        memory = resident_after_cleaning(least)
        least = min(least or memory, memory)
        line.send(Rested(memory))
    if line.terminated:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)


class _Line:
    """The worker's end of the connection: one thread listens, one shows that the process lives."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._given: int | None = None  # the job that came last
        self._running: int | None = None
        self._stopped = self.terminated = False
        for work in (self._listen, self._beat):
            threading.Thread(target=work, daemon=True).start()

    def take(self) -> Job | None:
        """Waits for the next job; None once there will be none."""
        return self._jobs.get()

    def asked(self, number: int) -> bool:
        """Says whether the driver has asked that job to stop."""
        return self._stopped and self._given == number

    def terminate(self) -> None:
        """Lets the job that runs be the last, and asks it to stop; safe within a signal handler."""
        self.terminated = True
        self._jobs.put(None)

    def begin(self, number: int) -> None:
        """Tells that a job runs; from now on there are heartbeats."""
        with self._lock:
            self._connection.send(Started(number))
            self._running = number

    def end(self, ended: Ending) -> None:
        """Tells how the job ended; nothing of it follows."""
        with self._lock:
            self._running = None
            try:
                self._connection.send(ended)
            except OSError:
                raise
            except Exception as error:  # what evaluate returned cannot travel
                cost = ended.outcome.cost if isinstance(ended, Finished) else ended.cost
                self._connection.send(Failed(ended.number, failure_of(error), cost))

    def send(self, message: Any) -> None:
        """Sends one message, whole."""
        with self._lock:
            self._connection.send(message)

    def _listen(self) -> None:
        try:
            while True:
                message = self._connection.recv()
                if isinstance(message, Stop):
                    self._stopped = self._stopped or message.number == self._given
                else:
                    self._stopped, self._given = False, message.number
                    self._jobs.put(message)
        except EOFError:
            self._jobs.put(None)
        except BaseException:
            # A job that cannot be read: nothing after it can be either, and the driver shows what is printed here.
            traceback.print_exc()
            os._exit(1)

    def _beat(self) -> None:
        while True:
            time.sleep(HEARTBEAT_SECONDS)
            # Where memory is short the next beat may find some; where the driver is gone the process ends anyway.
            with contextlib.suppress(MemoryError, OSError), self._lock:
                if self._running is not None:
                    self._connection.send(Heartbeat(self._running, resident()))


@final
class _LineReport(Report):
    def __init__(self, line: _Line, number: int) -> None:
        self._line, self._number = line, number

    def progress(self, message: str) -> None:
        self._line.send(Progress(self._number, message))

    def checkpoint(self, files: Mapping[str, bytes]) -> None:
        self._line.send(Checkpoint(self._number, dict(files)))

    @property
    def stopping(self) -> bool:
        return self._line.terminated or self._line.asked(self._number)


def _leave_in_order(line: _Line) -> None:
    """Makes SIGTERM ask for the job's checkpoint first: where a machine goes down, every process of it gets one."""
    worker = os.getpid()

    def on_terminate(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature is Python's
        if os.getpid() == worker:
            line.terminate()
        else:  # a fork of it, made by the job
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, on_terminate)


def _die_with(driver: int, lifeline: int) -> None:
    """Makes this process end when the driver does, however it does."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != driver:  # it died before the line above
        os._exit(1)

    def watch() -> None:
        with contextlib.suppress(OSError):
            os.read(lifeline, 1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
