"""A search as people write it today: Optuna proposes, transformers' Trainer with peft trains each trial in full.

    pip install optuna        # the extra "bench" of this package has it
    OMP_NUM_THREADS=1 python -m benchmarks.speed.optuna_peft spec.json

The space is what peft can express of the paper's: which layers carry LoRA on query and value, its rank, the rate. Of
serial and parallel adapters and of a prefix per layer there is no form in peft. Objectives: accuracy on the validation
texts, and trained parameters.

The spec is JSON: `variant` and `workload` as for `trainer.py`, `trials`, `seed`. Prints one line of JSON per trial.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from benchmarks.speed import trainer

RANKS = (1, 2, 4, 8, 16, 32)
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


def objective(spec: dict[str, Any], layers: int) -> Callable[[Any], tuple[float, float]]:
    """Returns the function that Optuna calls for each trial.

    Args:
        spec: What to train on.
        layers: Layers of the backbone.
    """

    def train(trial: Any) -> tuple[float, float]:
        switched = [i for i in range(layers) if trial.suggest_categorical(f"layer {i}", [False, True])]
        asked = {
            "layers": switched or [layers - 1],
            "rank": trial.suggest_categorical("rank", RANKS),
            "learning_rate": trial.suggest_categorical("rate", RATES),
            "seed": spec["seed"],
        }
        row = trainer.run(spec["variant"], spec["workload"], asked)
        print(json.dumps({**row, "trial": asked}), flush=True)
        return row["quality"], float(row["parameters"])

    return train


def main() -> None:
    """Runs the search of a spec."""
    import optuna  # an optional package: without it this part of the benchmark is left out

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(1)
    spec = json.loads(Path(sys.argv[1]).read_text())
    sampler = optuna.samplers.TPESampler(seed=spec["seed"])
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    study.optimize(objective(spec, spec["layers"]), n_trials=spec["trials"])


if __name__ == "__main__":
    main()
