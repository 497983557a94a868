"""Jobs of several steps that hand over a checkpoint after each and go on from it."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

from autopeft.job import SILENT, Job, JobStopped, Outcome, Report
from tests.contracts.cheap_jobs import formula, log

HERE = "tests.contracts.stepwise_jobs"
STEPS = 6


def stepwise(job: Job, report: Report = SILENT) -> Outcome:
    """Takes `STEPS` steps of about 20 ms; the log named by CHEAP_JOBS_LOG tells each, with the number of the trial."""
    for step in range(done(job), STEPS):
        log(f"{job.number} {step}")
        time.sleep(0.02)
        report.progress(f"step {step + 1}/{STEPS}")
        report.checkpoint({"steps": str(step + 1).encode()})
        if report.stopping:
            raise JobStopped
    outcome = formula(job)
    return replace(outcome, detail={**outcome.detail, "began": done(job)})


def done(job: Job) -> int:
    """Steps that an earlier attempt took."""
    return int(job.checkpoint.get("steps", b"0"))


def killed_midway(job: Job, report: Report = SILENT) -> Outcome:
    """Is killed from outside after half of its steps, the first time, where its checkpoint has reached the driver."""
    if done(job) == 0:
        for step in range(STEPS // 2):
            log(f"{job.number} {step}")
            report.checkpoint({"steps": str(step + 1).encode()})
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)
    return stepwise(job, report)


def patient(job: Job, report: Report = SILENT) -> Outcome:
    """Works until it is asked to stop; goes straight to its end when it is run again."""
    if done(job):
        return formula(job)
    log(f"{job.number} began")
    while not report.stopping:
        time.sleep(0.01)
    report.checkpoint({"steps": b"1"})
    raise JobStopped


def steps_logged(path: Path) -> dict[int, list[int]]:
    """Steps by trial, in the order they were taken."""
    found: dict[int, list[int]] = {}
    for line in path.read_text().splitlines():
        number, step = map(int, line.split())
        found.setdefault(number, []).append(step)
    return found


def tell_a_secret(job: Job, report: Report = SILENT) -> Outcome:
    raise ValueError(f"no access with {os.environ['HF_TOKEN']}")
