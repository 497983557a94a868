"""Optuna with peft: what a trial of it costs, held against the Trainer alone."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import Any

from benchmarks.speed.pieces import Piece, Stages
from benchmarks.speed.processes import measure
from benchmarks.speed.record import say
from benchmarks.speed.workloads import Workload


def stages(workload: Workload, trials: int) -> Stages:
    """Yields the pieces; none where Optuna is not installed, and says so.

    Args:
        workload: The task.
        trials: Trials of each search.
    """
    if find_spec("optuna") is None:
        say("optuna is left out: the package is not installed (pip install optuna)")
        return
    yield [
        Piece("optuna", f"{trials} of {workload.name}", loop, partial(run, workload, loop, trials))
        for loop in ("plain", "tuned")
    ]


def run(workload: Workload, loop: str, trials: int) -> dict[str, Any]:
    """Runs a search in a fresh process."""
    shape = workload.described().shape
    (layers,) = shape.stacks.values()
    spec = {"variant": loop, "workload": workload.files(), "trials": trials, "seed": 0, "layers": layers}
    done = measure("optuna_peft", spec)
    return {
        "budget": {"examples": workload.train, "epochs": workload.epochs},
        "quality": max(row["quality"] for row in done.rows),
        "cpu_seconds": done.cpu_seconds,
        "peak_bytes": done.peak_bytes,
        "trials": [{k: row[k] for k in ("trial", "quality", "parameters", "cpu_seconds")} for row in done.rows],
    }
