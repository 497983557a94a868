"""The contract of an executor: it runs jobs somewhere and reports events. Torch-free."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from autopeft.job import Job, Outcome
from autopeft.trial import Failure

Evaluate = Callable[[Job], Outcome]


@dataclass(frozen=True)
class Started:
    """A worker began the job."""

    number: int


@dataclass(frozen=True)
class Progress:
    """The job is alive.

    Attributes:
        number: The trial's number.
        message: One short line, such as "epoch 2/3".
    """

    number: int
    message: str


@dataclass(frozen=True)
class Finished:
    """The job ended well."""

    number: int
    outcome: Outcome


@dataclass(frozen=True)
class Failed:
    """The job itself failed: an error, NaN, out of memory, a time limit. It is not run again."""

    number: int
    failure: Failure


@dataclass(frozen=True)
class Lost:
    """The worker vanished for a reason outside the job (killed, pre-empted); the job may be run again."""

    number: int
    reason: str


Event = Started | Progress | Finished | Failed | Lost


class Executor(ABC):
    """Runs jobs; the study owns retries, limits and states.

    Every submitted job gets exactly one of Finished, Failed or Lost, unless it is killed, after which no event of it
    is reported. Checked by `tests/contracts/test_executors.py` for every executor.
    """

    @property
    @abstractmethod
    def capacity(self) -> int:
        """Number of jobs that can run at once."""

    @abstractmethod
    def submit(self, job: Job) -> None:
        """Queues a job; returns at once."""

    @abstractmethod
    def poll(self, timeout: float) -> list[Event]:
        """Waits up to `timeout` seconds for events and returns them; empty where none came."""

    @abstractmethod
    def kill(self, number: int) -> None:
        """Stops a job now, whatever it is doing; unknown numbers are ignored."""

    @abstractmethod
    def close(self) -> None:
        """Stops every job and releases the workers; safe to call twice."""


def resolve(reference: str) -> Evaluate:
    """Imports the function named "package.module:function"; the driver stays torch-free by naming it as a string."""
    module, _, name = reference.partition(":")
    return cast(Evaluate, getattr(importlib.import_module(module), name))
