"""Jobs that tell what became of the shared weights while they trained; worker processes run them by name."""

from __future__ import annotations

import hashlib
import os
import re
import time
from dataclasses import replace
from pathlib import Path

from torch import nn

from autopeft import worker
from autopeft.backbones.shared import private_tensors, share_weights
from autopeft.job import SILENT, Job, Outcome, Report

TOGETHER = "AUTOPEFT_TEST_TOGETHER"
"""Environment variable: a folder in which the jobs 2 n and 2 n + 1 wait for each other."""
SHARE = "AUTOPEFT_TEST_SHARE"
"""Environment variable: a folder for the shared file, to have it made however small the weights are."""


def evaluate(job: Job, report: Report = SILENT) -> Outcome:
    """Trains when both are ready; adds the digest of the weights before and after, and what of them became private."""
    model = worker.load_setting(job.setting).model
    if os.environ.get(SHARE):
        share_weights(model, job.setting.backbone.sha256, folder=Path(os.environ[SHARE]), least=0)
    before = digest(model)
    wait_for_the_other(job.number)
    outcome = worker.evaluate(job, report)
    found = {"before": before, "after": digest(model), "private": sorted(private_tensors(model))}
    return replace(outcome, detail={**outcome.detail, **found, "written": written()})


def digest(model: nn.Module) -> str:
    """Returns the SHA-256 of all parameters and buffers as they lie in memory, in order of name."""
    sha = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        sha.update(name.encode())
        sha.update(tensor.detach().contiguous().numpy().tobytes())
    return sha.hexdigest()


def written() -> int:
    """Returns the bytes of mapped weights that this process has written to, and so has a page of its own for."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith((".safetensors", ".raw"))
        elif inside and line.startswith("Private_Dirty:"):
            total += 1024 * int(line.split()[1])
    return total


def wait_for_the_other(number: int) -> None:
    """Returns once both jobs of a pair have come here."""
    folder = os.environ.get(TOGETHER)
    if folder is None:
        return
    Path(folder, str(number)).touch()
    end = time.monotonic() + 120
    while not Path(folder, str(number ^ 1)).exists():
        if time.monotonic() > end:
            raise TimeoutError("the other job did not come")
        time.sleep(0.005)
