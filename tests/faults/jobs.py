"""Jobs for the fault campaign: what they return follows from the trial alone, byte for byte."""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from autopeft.job import SILENT, Job, JobStopped, Outcome, Report
from autopeft.trial import Cost
from tests.contracts.cheap_jobs import formula, log

HERE = "tests.faults.jobs"
STEPS = 5
STEP_SECONDS = 0.02


def steady(job: Job, report: Report = SILENT) -> Outcome:
    """Takes 5 steps of 20 ms, each with a checkpoint; a step that is lost or done twice changes the adapter."""
    return _steps(job, report, STEP_SECONDS)


def heavy(job: Job, report: Report = SILENT) -> Outcome:
    """Returns 60 kB, so that a full disk refuses the trial's folder before it refuses the database."""
    outcome = steady(job, report)
    weights = outcome.files["adapter.safetensors"] * 2000
    return replace(outcome, files={"adapter.safetensors": weights})


def quick(job: Job, report: Report = SILENT) -> Outcome:
    """Returns what `steady` returns, at once."""
    return _steps(job, SILENT, 0.0)


def _steps(job: Job, report: Report, seconds: float) -> Outcome:
    log(f"{job.number} {os.getpid()}")
    kept = job.checkpoint.get("state", b"0 ")
    done, state = int(kept.split(b" ", 1)[0]), kept.split(b" ", 1)[1]
    for step in range(done, STEPS):
        time.sleep(seconds)
        state = hashlib.sha256(state + f"{job.configuration.id} {job.seed} {step}".encode()).digest()
        if seconds:
            report.checkpoint({"state": f"{step + 1} ".encode() + state})
        if report.stopping:
            raise JobStopped
    outcome = formula(job)
    objectives = {**outcome.objectives, "seconds": 0.1}
    # Measured time would make two records of one trial differ.
    files = {"adapter.safetensors": state}
    return replace(outcome, objectives=objectives, cost=Cost(0.1, 0.1, 1), detail={}, files=files)


# -- what goes wrong in some trials --


def grow(job: Job) -> None:
    """Takes memory until there is none, and writes to all of it."""
    held = []
    while len(held) < 400:
        held.append(b"\1" * (16 << 20))
    raise AssertionError("there was no limit")


def stand_still_with_the_gil(job: Job) -> None:
    ctypes.PyDLL(None).sleep(600)


def stop_the_process_once(job: Job) -> None:
    mark = Path(os.environ["CHEAP_JOBS_LOG"] + ".stopped")
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGSTOP)


def kill_the_process(job: Job) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fault(job: Job) -> None:
    ctypes.string_at(0)


def abort(job: Job) -> None:
    os.abort()


def some(bad: Callable[[Job], None], job: Job, report: Report) -> Outcome:
    """Lets every fifth trial go wrong, and the others go well."""
    if job.number % 5 == 2:
        bad(job)
    return steady(job, report)


def some_grow(job: Job, report: Report = SILENT) -> Outcome:
    return some(grow, job, report)


def some_hang(job: Job, report: Report = SILENT) -> Outcome:
    return some(stand_still_with_the_gil, job, report)


def some_stand_still(job: Job, report: Report = SILENT) -> Outcome:
    return some(stop_the_process_once, job, report)


def some_are_killed(job: Job, report: Report = SILENT) -> Outcome:
    return some(kill_the_process, job, report)


def some_fault(job: Job, report: Report = SILENT) -> Outcome:
    return some(fault, job, report)


def some_abort(job: Job, report: Report = SILENT) -> Outcome:
    return some(abort, job, report)


def _with_quality(value: float, job: Job, report: Report) -> Outcome:
    outcome = steady(job, report)
    return replace(outcome, objectives={**outcome.objectives, "quality": value}) if job.number % 5 == 2 else outcome


def some_nan(job: Job, report: Report = SILENT) -> Outcome:
    return _with_quality(math.nan, job, report)


def some_infinite(job: Job, report: Report = SILENT) -> Outcome:
    return _with_quality(math.inf, job, report)
