"""When a run ends before its total of trials, and on what terms a trial is run. Torch-free."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from autopeft.configuration import Configuration
from autopeft.errors import InputError
from autopeft.study.executors.base import Resources

CHARGE_SECONDS = 60.0
STOP_FILE = "stop"
"""A file of this name in the study's directory ends the run that is going on, and keeps the next from beginning."""


@dataclass(frozen=True)
class Limits:
    """How much a run may take; None where there is no limit.

    Attributes:
        seconds: Wall time of the run. Once it is over no trial begins; those that run are finished, so it is exceeded
            by one trial at most.
        worker_seconds: Time that workers spend on trials, all workers added and earlier runs of the study included:
            what a bill for machines counts. Honoured in the same way.
        trial_seconds: Wall time of one attempt at a trial; it is killed then, and failed as "timed_out".
        trial_memory: Bytes one worker may hold; a trial that exceeds it fails as "out_of_memory".

    Raises:
        InputError: A limit is not above 0.

    Example:
        >>> Limits(seconds=7200.0).worker_seconds is None
        True
    """

    seconds: float | None = None
    worker_seconds: float | None = None
    trial_seconds: float | None = None
    trial_memory: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not value > 0:
                raise InputError(f"{value} allows nothing", where=name, cure="give a number above 0, or None")


@dataclass(frozen=True)
class Terms:
    """On what terms trials are run.

    Attributes:
        limits: When to stop.
        checkpoint_seconds: Wall seconds between two checkpoints of a trial.
        grace_seconds: Wall seconds that running trials get for a checkpoint after SIGTERM; machines that are taken
            away give 30 seconds or more.
        trust_remote_code: Whether code that comes with the backbone may run.
        resources: What a trial needs, or a function of its configuration that says so; None: one device where the
            executor has any, and the memory estimated for the machine.
        synchronous: Whether proposals are made for all workers at once, when all of them are free: then the trials do
            not depend on which worker was faster, and workers wait for each other.
    """

    limits: Limits = field(default_factory=Limits)
    checkpoint_seconds: float = 120.0
    grace_seconds: float = 10.0
    trust_remote_code: bool = False
    resources: Resources | Callable[[Configuration], Resources] | None = None
    synchronous: bool = False

    def needed(self, configuration: Configuration) -> Resources:
        """Returns the resources of a trial of a configuration."""
        if self.resources is None:
            return Resources()
        return self.resources if isinstance(self.resources, Resources) else self.resources(configuration)


@dataclass(frozen=True)
class _Running:
    """When a trial began, by the monotonic clock, and how many of its seconds have been charged."""

    since: float
    charged: float = 0.0


class Allowance:
    """What is left of the limits while a run goes on, by the monotonic clock: a clock that is set changes nothing.

    Args:
        limits: The limits.
        spent: Worker-seconds of earlier runs.
        attempts: Attempts at trials that took those.
        stop_file: Where the wish to stop may appear.
    """

    def __init__(self, limits: Limits, spent: float, attempts: int, stop_file: Path) -> None:
        self._limits, self._spent, self._attempts, self._stop_file = limits, spent, attempts, stop_file
        self._began = self._charged = time.monotonic()
        self._ended = spent  # of attempts that have ended
        self._running: dict[int, _Running | None] = {}

    def expect(self, number: int) -> None:
        """Reckons with a trial that waits for a worker; waiting costs nothing."""
        self._running[number] = None

    def begin(self, number: int) -> None:
        """Counts the time of a trial from now, since a worker has begun it."""
        self._running[number] = _Running(time.monotonic())

    def end(self, number: int) -> float:
        """Ends the count of a trial; returns its seconds since they were last charged."""
        running = self._running.pop(number, None)
        if running is None:
            return 0.0
        seconds = time.monotonic() - running.since - running.charged
        self._spent += seconds
        self._ended += seconds + running.charged
        self._attempts += 1
        return seconds

    def charge(self) -> float:
        """Returns the seconds of running trials that are to be recorded now, about once a minute; else 0.

        So a driver that is killed forgets one minute for each worker at most.
        """
        now = time.monotonic()
        if now - self._charged < CHARGE_SECONDS:
            return 0.0
        self._charged = now
        seconds = 0.0
        for number, running in self._running.items():
            if running is not None:
                seconds += now - running.since - running.charged
                self._running[number] = _Running(running.since, now - running.since)
        self._spent += seconds
        return seconds

    def over(self) -> Literal["budget", "stop file"] | None:
        """Says why no further trial shall begin, or None.

        What running trials will take is reckoned with the mean of those that have ended, so that several workers
        together exceed a budget of worker-seconds by about one trial, too.
        """
        if self._stop_file.exists():
            return "stop file"
        now, limits = time.monotonic(), self._limits
        mean = self._ended / self._attempts if self._attempts else 0.0
        running = sum(mean if r is None else max(now - r.since, mean) - r.charged for r in self._running.values())
        past = limits.seconds is not None and now - self._began >= limits.seconds
        paid = limits.worker_seconds is not None and self._spent + running >= limits.worker_seconds
        return "budget" if past or paid else None
