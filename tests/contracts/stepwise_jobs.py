"""Jobs of several steps that hand over a checkpoint after each and go on from it."""

from __future__ import annotations

import hashlib
import math
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

from autopeft.configuration import Configuration
from autopeft.job import SILENT, Job, JobStopped, Outcome, Report
from autopeft.trial import TRAINING_LOSS
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


def chained(job: Job, report: Report = SILENT) -> Outcome:
    """Takes `STEPS` steps, or the job's part of them; each hashes the one before, which only the right start knows."""
    files = job.checkpoint or (job.start.files if job.start is not None else {})
    chain = files.get("chain", job.configuration.id.encode())
    first, until = int(files.get("steps", b"0")), math.ceil(job.budget.share * STEPS)
    for step in range(first, until):
        log(f"{job.number} {step}")
        chain = hashlib.sha256(chain).hexdigest().encode()
        report.checkpoint({"steps": str(step + 1).encode(), "chain": chain})
    outcome = replace(formula(job), detail={"chain": chain.decode()}, files={"adapter": chain})
    if job.budget.full:
        return outcome
    # The loss need not order configurations as the quality does.
    loss = 1.0 - outcome.objectives["quality"] + 1e-3 * (int(job.configuration.id[:4], 16) % 7)
    return replace(outcome, objectives={**outcome.objectives, TRAINING_LOSS: loss}, files={})


def chain_of(configuration: Configuration) -> str:
    """The chain of a job that was never left."""
    chain = configuration.id.encode()
    for _ in range(STEPS):
        chain = hashlib.sha256(chain).hexdigest().encode()
    return chain.decode()


def chained_some_fail(job: Job, report: Report = SILENT) -> Outcome:
    """Fails for a fixed third of the configurations."""
    if int(job.configuration.id[:4], 16) % 3 == 0:
        raise ValueError("a third of them fail")
    return chained(job, report)
