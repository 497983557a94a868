"""What a worker runs to be timed: training steps on the real data, until it is asked to stop."""

from __future__ import annotations

import gc
import time
from dataclasses import replace

import numpy as np
import torch

from autopeft.adapters import build_head
from autopeft.backbones import inject
from autopeft.job import SILENT, Job, JobStopped, Outcome, Report
from autopeft.training.loop import StepDone, train
from autopeft.training.random_states import seed_all
from autopeft.training.sources import Texts
from autopeft.worker import load_setting

BATCHES = 8
"""Batches that are trained on again and again: as many as are sorted by length together."""
_SAID_EVERY = 0.1
_FOREVER = 1_000_000


def evaluate(job: Job, report: Report = SILENT) -> Outcome:
    """Trains and says "EXAMPLES SECONDS" about ten times a second: examples so far, and the monotonic clock.

    Threads are those of the job's recipe; backbone and data are loaded once per process, whatever the threads. Hidden
    states are not taken from the cache.

    Args:
        job: What to train, on what; its budget is not looked at.
        report: Told of the pace; asked after each step whether to stop.

    Raises:
        JobStopped: It was asked to stop; there is no other end.
    """
    recipe = job.setting.recipe
    loaded = load_setting(
        replace(job.setting, recipe=replace(recipe, threads=1)), trust_remote_code=job.trust_remote_code
    )
    torch.set_num_threads(recipe.threads)
    tokens = loaded.split("train")
    batches = max(1, min(BATCHES, len(tokens) // recipe.batch_size))
    rows = np.sort(np.random.default_rng(job.seed).permutation(len(tokens))[: batches * recipe.batch_size])
    per_step = len(rows) / batches
    seed_all(job.seed)
    injection = inject(loaded.model, job.configuration)
    try:
        head = build_head(job.setting.head, loaded.model, loaded.task.outputs)
        source = Texts(loaded.model, tokens)
        said = 0.0
        for event in train(source, injection, head, recipe, rows=rows, epochs=_FOREVER, seed=job.seed):
            now = time.monotonic()
            if isinstance(event, StepDone) and now >= said + _SAID_EVERY:
                said = now
                report.progress(f"{round(event.step * per_step)} {now:.6f}")
            if report.stopping:
                raise JobStopped
    finally:
        loaded.model.eval()
        injection.eject()
        gc.collect()
    raise JobStopped
