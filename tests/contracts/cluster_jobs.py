"""Jobs that tell where they run, wait for a sign, or take their supervisor with them.

The environment variable CLUSTER_JOBS names a folder that they share with the test.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

from autopeft.job import SILENT, Job, Outcome, Report
from tests.contracts.cheap_jobs import formula

HERE = "tests.contracts.cluster_jobs"
SIGN = "go on"


def folder() -> Path:
    return Path(os.environ["CLUSTER_JOBS"])


def whereabouts(job: Job, report: Report = SILENT) -> Outcome:
    """Hands over the bytes of a file of its working directory; tells its process and its supervisor's."""
    file = Path(f"weights of {job.number}")
    file.write_bytes(b"weights of %d" % job.number)
    told = {"folder": str(Path.cwd()), "process": os.getpid(), "supervisor": os.getppid()}
    files = {"adapter/weights": file.read_bytes()}
    file.unlink()
    return replace(formula(job), detail=told, files=files)


def wait_for_sign(job: Job, report: Report = SILENT) -> Outcome:
    """Says where it runs and with which devices, and waits until the file `SIGN` is there."""
    note = f"{os.getpid()} {os.getppid()} {os.environ.get('CUDA_VISIBLE_DEVICES', '')}"
    (folder() / "new").write_text(note)
    (folder() / "new").rename(folder() / str(job.number))
    while not (folder() / SIGN).exists():
        time.sleep(0.01)
    return formula(job)


def kill_supervisor_once(job: Job, report: Report = SILENT) -> Outcome:
    """Trial 3 kills the process that looks after it, the first time."""
    mark = folder() / "killed"
    if job.number == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    return formula(job)
