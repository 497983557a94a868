"""The executor that runs jobs on a Ray cluster. Torch-free; ray is imported when an executor is made."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from autopeft.errors import InputError, StudyError
from autopeft.job import Job
from autopeft.study.executors.base import Event, Executor, Failed, Finished, Lost, Resources
from autopeft.study.executors.cluster import OBJECT_STORE, Cluster, undisturbed
from autopeft.study.executors.perform import failure_of
from autopeft.study.executors.supervisor import CALLS, Introduction, Supervisor
from autopeft.trial import Failure
from autopeft.version import __version__

# One call of `Supervisor.work` waits this long where nothing happens; events end it at once.
_WAIT_SECONDS = 10.0
_ANSWER_SECONDS = 5.0
_LOOK_SECONDS = 5.0
_LONGEST_REST = 60.0
_STARTS = 3


@final
@dataclass(eq=False)
class _Slot:
    """A worker of the cluster: its actor, the job it does, and the calls under way.

    Attributes:
        actor: Its handle; None while the slot rests after a start that failed.
        starting: Call that ends once it is ready, or None.
        gone: Call that ends when it dies, or None.
        work: Call that brings events, or None.
        kill: Call that ends once its job is killed, or None.
        kill_by: Until when that is waited for.
        job: Number of its job, or None.
        ticket: Counts the jobs it was given, since the same one may come again.
        where: The node, for messages.
        failures: Starts that failed in a row.
        rests_until: When the next start may be tried.
    """

    actor: Any = None
    starting: Any = None
    gone: Any = None
    work: Any = None
    kill: Any = None
    kill_by: float = 0.0
    job: int | None = None
    ticket: int = 0
    where: str = ""
    failures: int = 0
    rests_until: float = 0.0

    @property
    def ready(self) -> bool:
        return self.gone is not None

    @property
    def idle(self) -> bool:
        return self.ready and self.work is None and self.kill is None

    @property
    def calls(self) -> list[Any]:
        """The calls under way."""
        return [call for call in (self.starting, self.work, self.kill, self.gone) if call is not None]


class RayExecutor(Executor):
    """Runs jobs on a Ray cluster: one actor for each worker, each with a long-lived process that keeps the backbone.

    Ray places the actors, each with the CPUs and accelerators of one trial, and tells when one is gone. Beside each
    runs a `ProcessExecutor` of one process, which isolates the jobs and holds them to their limits as on one machine.
    Jobs wait here until a worker that is alive and idle takes them; files come back as bytes, and no node needs to see
    the study's directory. Where a worker or its node dies its job is `Lost`, and Ray is asked for another worker, which
    it places where there is room.

    Args:
        evaluate: Function that runs a job, as "package.module:function"; it can be imported on every node.
        workers: Number of actors.
        threads: Threads of one job; Ray reserves as many CPUs.
        time_limit: Seconds one job may take, or None.
        memory_limit: Bytes one worker process may hold, or None; Ray reserves as much of the node's memory.
        devices: Accelerators that Ray reserves for each worker and shows to it; training itself does not use one yet.
        address: "auto", or "host:port" of a cluster this machine belongs to; None for RAY_ADDRESS, and where that is
            not set for a cluster of our own on this machine, which ends with the executor.
        object_store: Bytes of shared memory of a cluster of our own.
        runtime_env: What Ray prepares on the nodes ("working_dir", "env_vars", ...), or None.
        patience: Seconds to wait, where nothing runs, for a node that one worker fits on.

    Raises:
        MissingExtra: Ray is not installed.
        InputError: No cluster at the address, or no node of it has room for one worker.

    Starting takes seconds; a job costs a few milliseconds more than in a process of this machine.

    Example:
        >>> RayExecutor("autopeft.worker:evaluate", workers=2, address="auto").capacity  # doctest: +SKIP
        2
    """

    def __init__(
        self,
        evaluate: str,
        workers: int = 1,
        threads: int = 1,
        time_limit: float | None = None,
        memory_limit: int | None = None,
        *,
        devices: int = 0,
        address: str | None = None,
        object_store: int = OBJECT_STORE,
        runtime_env: Mapping[str, Any] | None = None,
        patience: float = 60.0,
    ) -> None:
        if workers < 1:
            raise InputError(f"{workers} workers can run nothing", where="workers", cure="use 1 or more")
        self._capacity, self._patience = workers, patience
        self._options = {
            "evaluate": evaluate,
            "threads": threads,
            "time_limit": time_limit,
            "memory_limit": memory_limit,
        }
        self._waiting: deque[tuple[Job, Resources]] = deque()
        self._events: list[Event] = []  # kept here until they are returned, so that no interruption loses one
        self._slots: list[_Slot] = []
        self._done: set[Any] = set()
        self._problem = ("", "")
        self._looked = time.monotonic()
        self._short_since: float | None = None
        self._closed = False
        self._cluster = Cluster(address, workers * threads, object_store, runtime_env)
        self._ray = self._cluster.ray
        try:
            self._devices = devices
            reserved = None if self._cluster.ours else memory_limit
            needs = {"CPU": threads, "GPU": devices, "memory": reserved or 0}
            self._needs = {kind: amount for kind, amount in needs.items() if amount}
            shortage = self._cluster.shortage(self._needs)
            if shortage:
                raise InputError(shortage, where="executor", cure="ask for less, or add a larger node to the cluster")
            self._actor = self._ray.remote(Supervisor).options(
                num_cpus=threads,
                num_gpus=devices,
                memory=reserved,
                max_restarts=0,
                max_task_retries=0,
                max_concurrency=CALLS,
                **self._cluster.options,
            )
            self._slots = [_Slot() for _ in range(workers)]
            for slot in self._slots:
                self._start(slot)
        except BaseException:
            self.close()
            raise

    @property
    def capacity(self) -> int:
        return self._capacity

    def submit(self, job: Job, resources: Resources = Resources()) -> None:  # noqa: B008 - a frozen value
        if self._closed:
            raise StudyError("the executor is closed", cure="make a new one")
        if self._devices and resources.devices > self._devices:
            what = f"it asks for {resources.devices} devices; a worker has {self._devices}"
            self._events.append(Failed(job.number, Failure("refused", what)))
            return
        self._waiting.append((job, resources))
        self._assign()

    def poll(self, timeout: float) -> list[Event]:
        """Waits up to `timeout` seconds for events and returns them; empty where none came.

        Raises:
            StudyError: No worker can be started any more.
        """
        if self._closed:
            return []
        deadline = time.monotonic() + timeout
        while True:
            self._assign()
            self._wait(0.0 if self._events else deadline - time.monotonic())
            for slot in self._slots:
                self._look_after(slot)
            self._done = set()
            self._assign()
            if not self._events:
                self._require_workers()
            if self._events or time.monotonic() >= deadline:
                events, self._events = self._events, []
                return events

    def stop(self, number: int) -> None:
        if self._withdraw(number):
            self._events.append(Lost(number, "it was asked to stop before it began", stopped=True))
        for slot in self._on(number):
            slot.actor.stop.remote(slot.ticket, number)

    def kill(self, number: int) -> None:
        self._withdraw(number)
        for slot in self._on(number):
            slot.job = None
            slot.kill, slot.kill_by = slot.actor.kill.remote(slot.ticket, number), time.monotonic() + _ANSWER_SECONDS
        self._events = [event for event in self._events if event.number != number]

    def close(self) -> None:
        self._waiting.clear()
        self._events.clear()
        if self._closed:
            return
        self._closed = True
        ready = [slot for slot in self._slots if slot.ready]
        with undisturbed():
            self._await([slot.actor.close.remote() for slot in ready], _ANSWER_SECONDS)
            for slot in self._slots:
                self._end(slot.actor)
            self._await([slot.gone for slot in ready], _ANSWER_SECONDS)
            self._slots.clear()
            self._cluster.close()

    # -- workers --

    def _start(self, slot: _Slot) -> None:
        slot.actor = self._actor.remote()
        slot.starting = slot.actor.begin.remote(__version__, sys.path, self._devices, self._options)
        slot.gone = slot.work = slot.kill = None

    def _end(self, actor: Any) -> None:
        with contextlib.suppress(self._ray.exceptions.RayError, ValueError):
            if actor is not None:
                self._ray.kill(actor, no_restart=True)

    def _replace(self, slot: _Slot) -> None:
        self._end(slot.actor)
        self._start(slot)

    def _introduce(self, slot: _Slot) -> None:
        """Takes note that a worker is ready, or why it is not."""
        try:
            told: Introduction = self._ray.get(slot.starting)
        except Exception as error:  # whatever Ray raises for a node that cannot run it
            cure = f"each node needs autopeft {__version__} and what the jobs import"
            self._rest(slot, 1, f"no worker starts on the Ray cluster: {_last_line(error)}", cure)
            return
        slot.where = told.machine
        if told.version != __version__:
            what = f"the node {told.machine} has autopeft {told.version}, this one has {__version__}"
            self._rest(slot, _STARTS, what, "install one version everywhere")
            return
        slot.starting, slot.failures, slot.gone = None, 0, slot.actor.watch.remote()

    def _rest(self, slot: _Slot, failures: int, what: str, cure: str) -> None:
        self._end(slot.actor)
        slot.actor = slot.starting = None
        slot.failures += failures
        slot.rests_until = time.monotonic() + min(_LONGEST_REST, 2.0**slot.failures)
        self._problem = (what, cure)

    def _require_workers(self) -> None:
        """Raises StudyError where none is ready and none can become so."""
        now = time.monotonic()
        if any(slot.ready for slot in self._slots):
            self._short_since = None
            return
        if all(slot.actor is None and slot.failures >= _STARTS for slot in self._slots):
            raise StudyError(self._problem[0], cure=self._problem[1])
        if now < self._looked + _LOOK_SECONDS:
            return
        self._looked, shortage = now, self._cluster.shortage(self._needs)
        self._short_since = (self._short_since or now) if shortage else None
        if shortage and self._short_since is not None and now - self._short_since >= self._patience:
            ours = "the cluster that was started here has died: run the same command again"
            raise StudyError(
                shortage, cure=ours if self._cluster.ours else "add a node, then run the same command again"
            )

    # -- jobs --

    def _assign(self) -> None:
        """Gives waiting jobs to workers that are ready, and tries again to start those that rest."""
        now = time.monotonic()
        for slot in self._slots:
            if slot.actor is None and now >= slot.rests_until:
                self._start(slot)
            if not self._waiting or not slot.idle or self._await([slot.gone], 0.0):
                continue
            job, resources = self._waiting.popleft()
            slot.job, slot.ticket = job.number, slot.ticket + 1
            try:
                slot.work = slot.actor.work.remote(slot.ticket, job, resources, _WAIT_SECONDS)
            except Exception as error:  # it cannot travel
                self._events.append(Failed(job.number, failure_of(error)))
                slot.job = None

    def _wait(self, timeout: float) -> None:
        """Waits for a call to end, and takes note of all that have."""
        now = time.monotonic()
        for slot in self._slots:
            if slot.kill is not None:
                timeout = min(timeout, slot.kill_by - now)
            elif slot.actor is None:
                timeout = min(timeout, slot.rests_until - now)
        calls = [call for slot in self._slots for call in slot.calls]
        if not calls:
            time.sleep(max(0.0, timeout))
        elif self._await(calls, timeout, 1):
            self._done = set(self._await(calls, 0.0))

    def _await(self, calls: list[Any], timeout: float, count: int | None = None) -> list[Any]:
        """Returns those of the calls that have ended, after waiting for `count` of them, or for all."""
        if not calls:
            return []
        ended, _ = self._ray.wait(calls, num_returns=count or len(calls), timeout=max(0.0, timeout))
        return list(ended)

    def _look_after(self, slot: _Slot) -> None:
        """Does what the calls of a worker that have ended ask for."""
        if slot.starting in self._done:
            self._introduce(slot)
        elif slot.gone in self._done:
            # What it had sent before it died may still come.
            self._await([slot.work] if slot.work is not None else [], _ANSWER_SECONDS)
            if slot.work is None or self._receive(slot):
                self._lose(slot, self._error(slot.gone))
        elif slot.work in self._done:
            self._receive(slot)
        if slot.kill is not None:
            if slot.kill in self._done:
                slot.kill = None
            elif time.monotonic() >= slot.kill_by:
                self._replace(slot)

    def _receive(self, slot: _Slot) -> bool:
        """Reads the events that a call of `work` brings; says whether it could."""
        try:
            events = self._ray.get(slot.work)
        except Exception as error:
            self._lose(slot, error)
            return False
        mine = [event for event in events if event.number == slot.job]
        self._events += mine
        if any(isinstance(event, Finished | Failed | Lost) for event in mine):
            slot.job = None
        slot.work = None
        if slot.job is not None:
            slot.work = slot.actor.work.remote(slot.ticket, None, Resources(), _WAIT_SECONDS)
        return True

    def _lose(self, slot: _Slot, error: Exception) -> None:
        """Tells what the end of a worker means for its job, and has Ray start another."""
        number, raised = slot.job, self._ray.exceptions
        slot.job = None
        if number is not None:
            if isinstance(error, raised.RayTaskError | raised.RaySystemError) or not isinstance(error, raised.RayError):
                what = f"what the worker on {slot.where} returned cannot be read: {_last_line(error)}"
                self._events.append(Failed(number, Failure("crashed", what, str(error))))
            else:
                self._events.append(Lost(number, self._reason(slot, error)))
        self._replace(slot)

    def _error(self, call: Any) -> Exception:
        """Returns what a call that cannot end otherwise ended with."""
        try:
            self._ray.get(call)
        except Exception as error:  # it is told apart by who asks
            return error
        return RuntimeError("the worker has left")

    def _reason(self, slot: _Slot, error: Exception) -> str:
        raised = self._ray.exceptions
        if isinstance(error, raised.OutOfMemoryError):
            return f"Ray ended the worker on {slot.where} since its node ran out of memory"
        if isinstance(error, raised.ActorUnavailableError | raised.NodeDiedError) or "node has died" in str(error):
            return f"the node {slot.where} died or cannot be reached"
        if isinstance(error, raised.ObjectLostError):
            return f"what the worker on {slot.where} sent was lost on the way"
        return f"the worker on {slot.where} was killed"

    def _on(self, number: int) -> list[_Slot]:
        return [slot for slot in self._slots if slot.job == number]

    def _withdraw(self, number: int) -> bool:
        """Takes a job from those that wait; says whether it was among them."""
        before = len(self._waiting)
        self._waiting = deque(entry for entry in self._waiting if entry[0].number != number)
        return len(self._waiting) < before


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
