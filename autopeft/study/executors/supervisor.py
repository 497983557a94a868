"""What runs beside a worker process on a node of a cluster: it hands jobs down and events up. Torch-free.

Of the jobs it knows nothing; isolation, limits and the reading of a death are those of `ProcessExecutor`, so that they
are the same on a laptop and on a cluster. Ray makes an actor of it, and this file knows nothing of Ray.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

from autopeft.job import Job
from autopeft.study.executors.base import Device, Event, Resources
from autopeft.study.executors.process import ProcessExecutor
from autopeft.version import __version__

# Calls made at once by a driver: `watch`, `work`, and two of `stop`, `kill` and `close`.
CALLS = 4
_SLICE = 0.2


@dataclass(frozen=True)
class Introduction:
    """What a supervisor says of itself.

    Attributes:
        version: Version of this package on its node.
        machine: Name of the node.
        process: Its process id.
    """

    version: str
    machine: str
    process: int


@final
class Supervisor:
    """One worker process with the executor that looks after it.

    Its methods are called from several threads at once: `watch` never returns, and `stop`, `kill` and `close` come
    while `work` waits.
    """

    def __init__(self) -> None:
        self._executor: ProcessExecutor | None = None
        self._devices = 0
        self._closed = False
        self._ticket = self._stopped = self._killed = 0
        self._lock, self._next = threading.Lock(), threading.Lock()

    def begin(self, version: str, path: Sequence[str], devices: int, options: Mapping[str, Any]) -> Introduction:
        """Prepares for jobs, unless the driver runs another version of this package.

        Args:
            version: The driver's version.
            path: The driver's import path; what of it is here too is searched after this machine's own.
            devices: Accelerators of a trial; those in CUDA_VISIBLE_DEVICES are used.
            options: Further keywords of `ProcessExecutor`.
        """
        if version == __version__:
            sys.path.extend(entry for entry in path if entry not in sys.path)
            names = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name][:devices]
            self._devices = len(names)
            self._executor = ProcessExecutor(workers=1, devices=[Device(name) for name in names], **options)
        return Introduction(__version__, platform.node(), os.getpid())

    def watch(self) -> None:
        """Never returns: that it ends tells the driver at once that this process is gone."""
        threading.Event().wait()

    def work(self, ticket: int, job: Job | None, resources: Resources, seconds: float) -> list[Event]:
        """Begins a job, if one is given, and waits for events.

        Args:
            ticket: Counts the jobs: a `stop` or `kill` of one may come before it does, or after it has ended.
            job: The next job, or None to wait for what the current one does.
            resources: What it needs.
            seconds: Wait no longer.
        """
        deadline = time.monotonic() + seconds
        while True:
            with self._turn() as executor:
                if self._closed or ticket <= self._killed:
                    return []
                if job is not None:
                    self._ticket = ticket
                    executor.submit(job, replace(resources, devices=min(resources.devices, self._devices)))
                    if ticket <= self._stopped:
                        executor.stop(job.number)
                    job = None
                events = executor.poll(min(_SLICE, max(0.0, deadline - time.monotonic())))
                if events or time.monotonic() >= deadline:
                    return events

    def stop(self, ticket: int, number: int) -> None:
        """Asks a job to hand over a checkpoint and end."""
        with self._turn() as executor:
            self._stopped = ticket
            if ticket == self._ticket:
                executor.stop(number)

    def kill(self, ticket: int, number: int) -> None:
        """Kills a job with its process."""
        with self._turn() as executor:
            self._killed = ticket
            if ticket == self._ticket:
                executor.kill(number)

    def close(self) -> None:
        """Ends the worker process."""
        with self._turn() as executor:
            self._closed = True
            executor.close()

    @contextlib.contextmanager
    def _turn(self) -> Iterator[ProcessExecutor]:
        """Gives the executor to one thread at a time, in the order of asking: `work` cannot overtake who waits."""
        assert self._executor is not None
        with self._next:
            self._lock.acquire()
        try:
            yield self._executor
        finally:
            self._lock.release()
