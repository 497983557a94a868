"""The contract of an executor: it runs jobs somewhere and reports events. Torch-free."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

from autopeft.job import Job, Outcome, Report
from autopeft.trial import Cost, Failure

Evaluate = Callable[[Job, Report], Outcome]


@dataclass(frozen=True)
class Device:
    """An accelerator of a machine.

    Attributes:
        name: What the process that gets it finds in CUDA_VISIBLE_DEVICES, such as "0" or "GPU-8f3c".
        memory: Bytes it offers to one job, 0 where that is unknown.
    """

    name: str
    memory: int = 0


@dataclass(frozen=True)
class Resources:
    """What one job needs.

    Attributes:
        devices: Accelerators, where the executor has any; on one without, jobs run on the CPU.
        memory: Bytes expected at its peak, on each of its devices or else in the memory of the machine; 0: unknown. A
            job that can never fit is refused, one that does not fit now waits.
    """

    devices: int = 1
    memory: int = 0


@dataclass(frozen=True)
class Started:
    """A worker began the job."""

    number: int


@dataclass(frozen=True)
class Heartbeat:
    """The worker is alive, whatever the job is doing.

    Attributes:
        number: The trial's number.
        memory: Resident bytes of the worker now.
    """

    number: int
    memory: int


@dataclass(frozen=True)
class Progress:
    """The job says where it is.

    Attributes:
        number: The trial's number.
        message: One short line, such as "epoch 2/3".
    """

    number: int
    message: str


@dataclass(frozen=True)
class Checkpoint:
    """The job can go on from here, in this process or another.

    Attributes:
        number: The trial's number.
        files: Relative names and contents, to be given back as `Job.checkpoint`.
    """

    number: int
    files: Mapping[str, bytes]


@dataclass(frozen=True)
class Finished:
    """The job ended well."""

    number: int
    outcome: Outcome


@dataclass(frozen=True)
class Failed:
    """The job itself failed: an error, NaN, out of memory, a time limit. It is not run again.

    Attributes:
        number: The trial's number.
        failure: Why.
        cost: What it had used by then, as far as that is known.
    """

    number: int
    failure: Failure
    cost: Cost = field(default_factory=Cost)


@dataclass(frozen=True)
class Lost:
    """The job ended for a reason outside it (its worker was killed, it was asked to stop); it may be run again.

    Attributes:
        number: The trial's number.
        reason: One line.
        stopped: Whether it ended since `Executor.stop` asked it to.
        cost: What it had used by then, as far as that is known.
    """

    number: int
    reason: str
    stopped: bool = False
    cost: Cost = field(default_factory=Cost)


Ending = Finished | Failed | Lost
Event = Started | Heartbeat | Progress | Checkpoint | Ending


class Executor(ABC):
    """Runs jobs; the study owns retries and states, and only the driver writes.

    Every submitted job gets at most one Started, then any number of Heartbeat, Progress and Checkpoint, then exactly
    one of Finished, Failed or Lost, unless it is killed, after which no event of it is reported. A Checkpoint that
    another has replaced before it was fetched may be left out. A job that was lost may be submitted again under its
    number. An exception that a signal handler raises while `poll` waits loses no event: the next `poll` returns it.
    Checked by `tests/contracts/test_executors.py` for every executor.
    """

    runs_jobs_itself: ClassVar[bool] = False
    """Whether `poll` takes as long as a job, so that only an exception out of it can stop at once."""

    @property
    @abstractmethod
    def capacity(self) -> int:
        """Number of jobs that can run at once."""

    @abstractmethod
    def submit(self, job: Job, resources: Resources = Resources()) -> None:
        """Queues a job; returns at once. A job that can never have these resources fails as "refused"."""

    @abstractmethod
    def poll(self, timeout: float) -> list[Event]:
        """Waits up to `timeout` seconds for events and returns them; empty where none came."""

    def stop(self, number: int) -> None:  # noqa: B027 - a job need not be able to
        """Asks a job to hand over a checkpoint and end: then comes Checkpoint and Lost, or how else it ended before.

        It may take its time, or not listen; unknown numbers are ignored.
        """

    @abstractmethod
    def kill(self, number: int) -> None:
        """Stops a job now, whatever it is doing; unknown numbers are ignored."""

    @abstractmethod
    def close(self) -> None:
        """Stops every job and releases the workers; safe to call twice."""


def named(reference: str) -> Callable[..., Any]:
    """Imports the function named "package.module:function"; the driver stays torch-free by naming it as a string."""
    module, _, name = reference.partition(":")
    return cast(Callable[..., Any], getattr(importlib.import_module(module), name))
