"""The reference trial: LoRA r=8 on query and value of all layers, so that no cache is possible."""

from __future__ import annotations

from functools import partial
from typing import Any

from autopeft.configuration import Configuration, describe
from autopeft.presets import preset
from benchmarks.speed.flops import trial_flops
from benchmarks.speed.pieces import Piece, Stages
from benchmarks.speed.processes import measure
from benchmarks.speed.sixteen import lean_loop
from benchmarks.speed.workloads import Workload

RATE, RANK = 1e-3, 8


def stages(workload: Workload, repeats: int, precisions: tuple[str, ...]) -> Stages:
    """Yields the pieces: one fresh process per loop and repeat, the loops in turn; the repeat is the training's seed.

    "tuned same head" is the tuned Trainer with LoRA and the head of the lean loop: it shows the quality of the same
    function, where the others have the stock head.

    Args:
        workload: The task.
        repeats: Processes per loop.
        precisions: Those of the lean loop, "float32" first.
    """
    configuration = preset("lora", workload.described().shape, RATE)
    for repeat in range(repeats):
        lean = [(lean_loop(precision), partial(run_lean, workload, precision)) for precision in precisions]
        names = ("plain", "tuned", "tuned same head", *(f"tuned {p}" for p in precisions if p != "float32"))
        others = [(loop, partial(run_trainer, workload, loop)) for loop in names]
        yield [
            Piece(
                "reference",
                workload.name,
                loop,
                partial(run, configuration, repeat),
                seed=repeat,
                repeat=repeat,
                own=loop.startswith("lean"),
            )
            for loop, run in (*lean, *others)
        ]


def run_lean(workload: Workload, precision: str, configuration: Configuration, seed: int) -> dict[str, Any]:
    """Runs the lean trial between two measurements of the matmul peak.

    The peak is measured by processes of its own: it takes memory itself.
    """
    setting = workload.setting(precision=precision, cache=True)
    trial = {"configuration": configuration.to_dict(), "seed": seed}
    before = measure("peak", {})
    done = measure("lean", {"setting": setting.to_dict(), "epochs": workload.epochs, "trials": [trial]})
    peak = (before.rows[0]["peak"] + measure("peak", {}).rows[0]["peak"]) / 2
    row = done.rows[0]
    flops = trial_flops(configuration, workload, row["tokens"], row["squares"])
    return {
        **_common(workload, configuration),
        **row,
        "process_seconds": done.cpu_seconds,
        "peak_bytes": done.peak_bytes,
        "flops": flops,
        "matmul_peak": peak,
        "share_of_peak": flops / row["train_seconds"] / peak,
    }


def run_trainer(workload: Workload, loop: str, configuration: Configuration, seed: int) -> dict[str, Any]:
    """Runs the same trial under the Trainer, LoRA by peft; for "tuned same head" by this package."""
    trial: dict[str, Any] = {"learning_rate": RATE, "rank": RANK, "seed": seed}
    if loop.endswith("same head"):
        trial["configuration"] = configuration.to_dict()
    done = measure(
        "trainer", {"variant": loop.removesuffix(" same head"), "workload": workload.files(), "trials": [trial]}
    )
    return {
        **_common(workload, configuration),
        **done.rows[0],
        "process_seconds": done.cpu_seconds,
        "peak_bytes": done.peak_bytes,
    }


def _common(workload: Workload, configuration: Configuration) -> dict[str, Any]:
    return {
        "budget": {"examples": workload.train, "epochs": workload.epochs},
        "configuration": configuration.to_dict(),
        "description": describe(configuration),
    }
