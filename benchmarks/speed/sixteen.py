"""Random configurations of the paper's space, cache on: one process of the lean loop against a Trainer for each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from autopeft import spaces
from autopeft.configuration import Configuration, describe
from benchmarks.speed.pieces import Piece, Stages
from benchmarks.speed.processes import measure
from benchmarks.speed.workloads import Workload

SEED = 16


def drawn(workload: Workload, count: int) -> list[Configuration]:
    """Returns `count` random points of `spaces.autopeft()`, uniform over the space."""
    rng, space = np.random.default_rng(SEED), spaces.autopeft().on(workload.described().shape)
    return [space.sample(rng) for _ in range(count)]


def stages(workload: Workload, count: int, repeats: int, precisions: tuple[str, ...] = ("float32",)) -> Stages:
    """Yields the pieces: the lean loop over all configurations, `repeats` times, and every Trainer once.

    Args:
        workload: The task.
        count: Configurations.
        repeats: Processes of the lean loop.
        precisions: Those of the lean loop, "float32" first.
    """
    chosen = drawn(workload, count)
    name = f"{count} of {workload.name}"
    yield [
        Piece("sixteen", name, lean_loop(p), partial(run_lean, workload, chosen, precision=p), repeat=r, own=True)
        for r in range(repeats)
        for p in precisions
    ]
    yield [
        Piece("sixteen", f"{workload.name} {c.id}", loop, partial(run_trainer, workload, loop, c))
        for c in chosen
        for loop in ("plain", "tuned")
    ]


def lean_loop(precision: str) -> str:
    """Returns the name of the lean loop in a precision."""
    return "lean" if precision == "float32" else f"lean {precision}"


def run_lean(
    workload: Workload, chosen: Sequence[Configuration], seed: int = 0, precision: str = "float32"
) -> dict[str, Any]:
    """Trains all configurations in one process, with the cache."""
    setting = workload.setting(cache=True, precision=precision)
    trials = [{"configuration": c.to_dict(), "seed": seed} for c in chosen]
    done = measure("lean", {"setting": setting.to_dict(), "epochs": workload.epochs, "trials": trials})
    kept = ("quality", "cpu_seconds", "train_seconds")
    return {
        "budget": {"examples": workload.train, "epochs": workload.epochs},
        "cpu_seconds": sum(row["cpu_seconds"] for row in done.rows),
        "process_seconds": done.cpu_seconds,
        "peak_bytes": done.peak_bytes,
        "trials": [
            {"configuration": c.id, "description": describe(c), **{k: row[k] for k in kept}}
            for c, row in zip(chosen, done.rows, strict=True)
        ],
    }


def run_trainer(workload: Workload, loop: str, configuration: Configuration, seed: int = 0) -> dict[str, Any]:
    """Trains one configuration under a Trainer, in a process of its own; its start is not in `cpu_seconds`."""
    rate = configuration.training.learning_rate
    trial = {"configuration": configuration.to_dict(), "learning_rate": rate, "seed": seed}
    done = measure("trainer", {"variant": loop, "workload": workload.files(), "trials": [trial]})
    return {
        "budget": {"examples": workload.train, "epochs": workload.epochs},
        "configuration": configuration.to_dict(),
        "description": describe(configuration),
        **done.rows[0],
        "process_seconds": done.cpu_seconds,
        "peak_bytes": done.peak_bytes,
    }
