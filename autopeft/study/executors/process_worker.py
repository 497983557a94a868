"""The driver's side of one worker process. Torch-free."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import IO, Any

from autopeft.job import Job
from autopeft.study.executors.base import Device, Resources
from autopeft.study.executors.memory import cpu_seconds, resident
from autopeft.study.executors.worker import Stop
from autopeft.trial import Cost

_BOOT = "import sys; sys.path[:] = {path!r}; from autopeft.study.executors.worker import main; main{arguments!r}"
_TAIL = 4000
_DYING_SECONDS = 5.0


@dataclass(frozen=True)
class Gone:
    """The connection to a worker has ended, by its death or because what came cannot be read.

    Attributes:
        unreadable: Why, in the second case; or "".
    """

    unreadable: str = ""


class Worker:
    """One process in a session of its own, with the job it is doing.

    Two threads carry its messages, so that a process which stands still never holds up the driver.

    Args:
        evaluate: Function that runs a job, as "package.module:function".
        environment: Environment of the process.
        memory_limit: Bytes of data it may hold, 0 for no limit.
        devices: Devices that are its own as long as it lives.
        inbox: Gets (worker, message) for every message, and a `Gone` at the end.

    Attributes:
        job: What it is doing, or None.
        resources: What that job asked for.
        resting: Whether its job has ended and it has not yet cleaned up.
        baseline: Resident bytes after its first job, or None before that.
        gone: Set once the connection has ended.
        running: Whether its job has begun; before that the process may still be loading what the job imports.
        started: When its job began, or was given to it, on the monotonic clock.
        silence: Seconds since its last message in which somebody listened.
        heard: Whether a message has come since that was reckoned.
    """

    def __init__(
        self,
        evaluate: str,
        environment: Mapping[str, str],
        memory_limit: int,
        devices: tuple[Device, ...],
        inbox: queue.SimpleQueue[tuple[Worker, Any]],
    ) -> None:
        self.job: Job | None = None
        self.resources = Resources()
        self.resting = self.running = False
        self.baseline: int | None = None
        self.devices = devices
        self.gone: Gone | None = None
        self.silence, self.heard = 0.0, False
        self.started = time.monotonic()
        self._dying_since: float | None = None
        self._cpu, self._peak = 0.0, 0
        self._inbox = inbox
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        # What the process prints is kept from the terminal; its last lines explain a crash.
        self._output: IO[bytes] = tempfile.TemporaryFile("a+b", buffering=0)  # noqa: SIM115 - lives with the worker
        self._connection, theirs = multiprocessing.Pipe()
        lifeline, self._lifeline = os.pipe()
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
        except BaseException:
            os.close(self._lifeline)  # ends a process that was begun when this was interrupted
            raise
        finally:
            theirs.close()
            os.close(lifeline)
        self._ended = False
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        threading.Thread(target=self._post, daemon=True).start()

    @property
    def idle(self) -> bool:
        """Whether it can take a job."""
        return self.job is None and not self.resting

    @property
    def memory(self) -> int:
        """Resident bytes of the process now."""
        return resident(self.process.pid)

    @property
    def exited(self) -> bool:
        """Whether the process has ended; its status and its figures can still be read."""
        if self.process.returncode is not None:
            return True
        if not hasattr(os, "waitid"):
            return self.process.poll() is not None
        try:
            return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
        except ChildProcessError:  # somebody else has waited for it
            return True

    @property
    def dying(self) -> bool:
        """Whether the process has ended, or the connection to it."""
        return self.gone is not None or self.exited

    def dead(self) -> bool:
        """Says whether nothing more will come of it: both have ended, or one has and the other had time to follow."""
        if not self.dying:
            return False
        if self._dying_since is None:
            self._dying_since = time.monotonic()
            if self.exited:
                self.kill_group()  # children that it left behind hold the connection open
        if self.gone is not None and (self.gone.unreadable or self.exited):
            return True
        return time.monotonic() > self._dying_since + _DYING_SECONDS

    def give(self, job: Job, resources: Resources) -> None:
        """Gives the idle worker a job; one that has just died shows it by a `Gone`."""
        message = bytes(ForkingPickler.dumps(job))
        self._output.truncate(0)
        self.job, self.resources = job, resources
        self._peak, self.silence = 0, 0.0
        self.begun()
        self.running = False
        self._outbox.put(message)

    def stop(self, number: int) -> None:
        """Asks the job to hand over a checkpoint and end."""
        self._outbox.put(bytes(ForkingPickler.dumps(Stop(number))))

    def begun(self) -> None:
        """Notes that the job runs: its cost counts from now."""
        self.running = True
        self.started, self._cpu = time.monotonic(), cpu_seconds(self.process.pid)

    def note(self, memory: int | None = None) -> None:
        """Notes resident bytes while the job runs, those of this moment by default."""
        self._peak = max(self._peak, self.memory if memory is None else memory)

    def cost(self) -> Cost:
        """Returns what the job has used, as far as it shows from outside; also of a process that is dead."""
        cpu = max(0.0, cpu_seconds(self.process.pid) - self._cpu)
        return Cost(cpu, time.monotonic() - self.started, max(self._peak, self.memory))

    def printed(self) -> str:
        """Returns the last of what the process has printed."""
        end = self._output.seek(0, os.SEEK_END)
        self._output.seek(max(0, end - _TAIL))
        return self._output.read().decode(errors="replace")

    def kill_group(self) -> None:
        """Kills the process and all it started; the group outlives its first process where that left children."""
        if not self._ended:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def end(self) -> int:
        """Kills the process and all it started; returns its exit status, negative for a signal."""
        self.kill_group()
        status = self.process.wait()
        if not self._ended:
            self._ended = True  # from here on the number may be that of another process
            os.close(self._lifeline)
            self._outbox.put(None)
        return status

    def _listen(self) -> None:
        """Passes on what comes, until the end."""
        gone = Gone()
        try:
            while True:
                data = self._connection.recv_bytes()
                try:
                    message = ForkingPickler.loads(data)
                except BaseException as error:
                    # What came cannot be read, so nothing after it can be trusted either.
                    gone = Gone(f"{type(error).__name__}: {error}".splitlines()[0][:400])
                    break
                self._inbox.put((self, message))
        except (EOFError, OSError):
            pass
        self._inbox.put((self, gone))

    def _post(self) -> None:
        """Sends what is to be sent; a process that stands still keeps this thread waiting, and nobody else."""
        while (message := self._outbox.get()) is not None:
            with contextlib.suppress(OSError):
                self._connection.send_bytes(message)
        self._listener.join()
        self._connection.close()
        self._output.close()
