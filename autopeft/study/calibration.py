"""How many workers with how many threads each are fastest here: measured, not guessed. Torch-free.

One process with all cores is seldom the fastest for small models, and how much slower it is depends on the machine, the
backbone and the lengths of the texts. So the real training step is run for a few seconds in as many processes at once,
for each way to share the cores out, and the most examples per second in total win.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from autopeft.configuration import Configuration
from autopeft.errors import StudyError
from autopeft.estimate import memory_of
from autopeft.job import Job
from autopeft.setting import Setting
from autopeft.study.definition import StudyDefinition
from autopeft.study.executors.base import Executor, Failed, Lost, Progress
from autopeft.study.executors.memory import available
from autopeft.study.executors.process import ProcessExecutor
from autopeft.trial import Budget

CALIBRATED: Final = "calibrated"
"""Kind of the event that records a calibration."""
PACE: Final = "autopeft.pace:evaluate"
TIE: Final = 0.03
"""Paces closer than this share count as equal: repeated measurements differ by as much."""
STARTS_WITHIN: Final = 180.0
"""Seconds in which all processes have to be up."""
_SAMPLE: Final = 32
_WARM: Final = 0.4
_POLL: Final = 0.05


@dataclass(frozen=True)
class Pace:
    """How fast one way to share the cores out is.

    Attributes:
        workers: Processes at once.
        threads: Threads of each.
        examples_per_second: Training examples per second of wall time, all processes together.
    """

    workers: int
    threads: int
    examples_per_second: float


@dataclass(frozen=True)
class Calibration:
    """What was measured, and what follows.

    Attributes:
        paces: In order of measurement.
        cores: Cores that may be used.
        most_workers: As many as memory, trials and the executor allow.
        took: Seconds of wall time of all of it.
    """

    paces: tuple[Pace, ...]
    cores: int
    most_workers: int
    took: float

    @property
    def chosen(self) -> Pace:
        """The fastest; of those that are as good as equal the one with the fewest processes, then threads."""
        best = max(pace.examples_per_second for pace in self.paces)
        equal = [pace for pace in self.paces if pace.examples_per_second >= (1.0 - TIE) * best]
        return min(equal, key=lambda pace: (pace.workers, pace.threads))

    def to_dict(self) -> dict[str, Any]:
        """Returns a JSON-able form, the choice included."""
        return {
            **{name: value for name, value in asdict(self).items() if name != "paces"},
            "workers": self.chosen.workers,
            "threads": self.chosen.threads,
            "paces": [asdict(pace) for pace in self.paces],
        }


def told(detail: Mapping[str, Any]) -> str:
    """Returns a recorded calibration (`Calibration.to_dict`) in one line.

    Example:
        >>> told({"workers": 2, "threads": 1, "paces": [{"workers": 2, "threads": 1, "examples_per_second": 90.5}]})
        '2 workers x 1 thread, measured: 2 x 1 90.5 examples/s'
    """
    paces = sorted(detail["paces"], key=lambda pace: -pace["examples_per_second"])
    measured = ", ".join(f"{p['workers']} x {p['threads']} {p['examples_per_second']:.3g}" for p in paces)
    workers, threads = detail["workers"], detail["threads"]
    plural = ("s" if n != 1 else "" for n in (workers, threads))
    return f"{workers} worker{next(plural)} x {threads} thread{next(plural)}, measured: {measured} examples/s"


def usable_cores(cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Returns the cores this process may use: those it may run on, and no more than its control group's share of time.

    Args:
        cgroups: Where control groups are mounted, version 1 or 2.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (cgroups / "cpu.max").read_text().split()[:2]
    except (OSError, ValueError):
        try:
            quota, period = ((cgroups / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        except OSError:
            return cores
    try:
        share = float(quota) / float(period)
    except (ValueError, ZeroDivisionError):  # "max"
        return cores
    return max(1, min(cores, math.floor(share))) if share > 0 else cores


def candidates(cores: int, most_workers: int, threads: int | None = None) -> list[tuple[int, int]]:
    """Returns the pairs of workers and threads worth measuring, the likeliest first.

    For 1, 2, 4 ... threads and for all cores: as many workers as there are cores for; with one thread also half as many
    and one, for where memory is the limit.

    Args:
        cores: Cores that may be used; no pair uses more.
        most_workers: Most workers.
        threads: The only number of threads allowed, or None; may exceed the cores, then one worker is tried.

    Example:
        >>> candidates(2, most_workers=8)
        [(2, 1), (1, 2), (1, 1)]
    """
    powers = [2**k for k in range(cores.bit_length()) if 2**k <= cores]
    allowed = [threads] if threads is not None else sorted({*powers, cores})
    found = [(max(1, min(most_workers, cores // t)), t) for t in allowed]
    least = allowed[0]
    found += [(max(1, min(most_workers, cores // least) // 2), least), (1, least)]
    return list(dict.fromkeys(found))


def most_workers(definition: StudyDefinition, free: int | None) -> int:
    """Returns how many workers have room: no more than trials, none that would not fit into the free memory.

    Each is reckoned with the largest of some of the space's configurations and of the baselines.

    Args:
        definition: The study.
        free: Bytes that are free now, or None where that is unknown.
    """
    trials = max(1, definition.trials + len(definition.baselines))
    if free is None or not definition.texts:
        return trials
    rng = np.random.default_rng(0)
    some = [definition.space.sample(rng) for _ in range(_SAMPLE)] + [c for _, c in definition.baselines]
    largest = max(memory_of(definition.setting, definition.texts, c).total for c in some)
    return max(1, min(trials, free // largest))


def calibrate(
    definition: StudyDefinition,
    *,
    threads: int | None = None,
    most: int | None = None,
    window: float = 3.0,
    limit: float = 30.0,
    trust_remote_code: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Calibration:
    """Measures and chooses.

    Measured is a configuration of the space, drawn with a fixed seed, without the cache of hidden states. What else
    runs on the machine meanwhile counts: measure when it is as busy as it will be.

    Args:
        definition: The study; its recipe's threads are not looked at.
        threads: The only number of threads allowed, since a study keeps its own; None: any.
        most: Most workers the executor can have, or None.
        window: Seconds of measurement for each pair.
        limit: Seconds of measurement in all, once the processes are up; pairs that are left are not measured.
        trust_remote_code: Whether code that comes with the backbone may run.
        say: Told each result in a line.

    Raises:
        StudyError: A process could not train, or none was up in time.

    Example:
        >>> calibrate(study.definition).chosen  # doctest: +SKIP
        Pace(workers=2, threads=1, examples_per_second=208.3)
    """
    began = time.monotonic()
    cores = usable_cores()
    allowed = min(most_workers(definition, available()), most or cores)
    pairs = candidates(cores, allowed, threads)
    configuration = definition.space.sample(np.random.default_rng(0))
    largest = max(t for _, t in pairs)
    paces: list[Pace] = []
    executor = ProcessExecutor(PACE, max(w for w, _ in pairs), largest)
    try:
        numbers = iter(range(1_000_000))
        deadline = float("inf")
        for workers, each in pairs:
            if paces and time.monotonic() + window > deadline:
                break
            setting = replace(definition.setting, recipe=replace(definition.setting.recipe, threads=each))
            jobs = [_job(next(numbers), configuration, setting, trust_remote_code) for _ in range(workers)]
            rate = _measured(executor, jobs, window)
            if not paces:
                deadline = time.monotonic() + limit - window
            paces.append(Pace(workers, each, rate))
            say(f"{workers} x {each}: {rate:.3g} examples/s")
    finally:
        executor.close()
    return Calibration(tuple(paces), cores, allowed, time.monotonic() - began)


def _job(number: int, configuration: Configuration, setting: Setting, trust: bool) -> Job:
    return Job(number, configuration, Budget(0, 1), 0, setting, keep=False, trust_remote_code=trust)


def _measured(executor: Executor, jobs: Sequence[Job], window: float) -> float:
    """Returns the examples per second of jobs that train at once."""
    for job in jobs:
        executor.submit(job)
    said: dict[int, list[tuple[float, float]]] = {job.number: [] for job in jobs}
    start = time.monotonic()

    def listen() -> None:
        for event in executor.poll(_POLL):
            if isinstance(event, Failed):
                failure = event.failure
                cure = "give --workers a number; the message says what else is wrong"
                raise StudyError(
                    f"the measurement failed: {failure.kind}: {failure.message}", where="workers", cure=cure
                )
            if isinstance(event, Lost):
                raise StudyError(f"the measurement failed: {event.reason}", where="workers", cure="try again")
            if isinstance(event, Progress) and event.number in said and event.message[:1].isdigit():
                examples, _, clock = event.message.partition(" ")
                said[event.number].append((float(clock), float(examples)))

    while not all(said.values()):
        if time.monotonic() > start + STARTS_WITHIN:
            what = f"not all of {len(jobs)} processes trained within {STARTS_WITHIN:g} s"
            raise StudyError(what, where="workers", cure="give --workers a number")
        listen()
    opened = time.monotonic() + _WARM  # the first steps take longer
    while time.monotonic() < opened:
        listen()
    for heard in said.values():
        heard.clear()
    closes = time.monotonic() + window
    # Where a step takes longer than the window, two are waited for.
    while time.monotonic() < closes or any(len(heard) < 2 for heard in said.values()):
        if time.monotonic() > closes + STARTS_WITHIN:
            raise StudyError("training steps take minutes here", where="workers", cure="give --workers a number")
        listen()
    _end(executor, jobs)
    rates = [(last[1] - first[1]) / (last[0] - first[0]) for first, *_, last in said.values()]
    return sum(rates)


def _end(executor: Executor, jobs: Sequence[Job]) -> None:
    """Ends jobs and waits for it: their processes train the next pair."""
    for job in jobs:
        executor.stop(job.number)
    running, end = {job.number for job in jobs}, time.monotonic() + STARTS_WITHIN
    while running and time.monotonic() < end:
        running -= {event.number for event in executor.poll(_POLL) if isinstance(event, Failed | Lost)}
