"""A whole search by successive halving, with the cache, in one process: what a user's study does.

    OMP_NUM_THREADS=1 python -m benchmarks.speed.lean_search spec.json

The spec is JSON: `workload` (fields of `Workload`), `folder` of the study (deleted before and after), `trials`, `seed`,
`precision`, and `options` of the searcher "halving". Prints one line of JSON: all trials in order of number.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from autopeft import Study, spaces
from autopeft.search.base import make_searcher
from autopeft.trial import TRAINING_LOSS, Budget, Trial
from benchmarks.speed.workloads import Workload


def row(trial: Trial) -> dict[str, Any]:
    """Returns what is kept of one trial."""
    return {
        "number": trial.number,
        "configuration": trial.configuration.to_dict(),
        "id": trial.configuration.id,
        "seed": trial.proposal.seed,
        "budget": trial.proposal.budget.to_dict(),
        "parent": trial.proposal.parent,
        "status": str(trial.status),
        "quality": trial.objectives.get("quality"),
        "training_loss": trial.objectives.get(TRAINING_LOSS),
        "parameters": trial.objectives.get("parameters"),
        "cpu_seconds": round(trial.cost.cpu_seconds, 3),
    }


def main() -> None:
    """Runs the search of a spec."""
    torch.set_num_threads(1)
    spec = json.loads(Path(sys.argv[1]).read_text())
    workload, folder = Workload(**spec["workload"]), Path(spec["folder"])
    shutil.rmtree(folder, ignore_errors=True)
    with Study.create(
        folder,
        backbone=workload.described(),
        task=workload.task(),
        space=spaces.autopeft(),
        trials=spec["trials"],
        recipe=workload.recipe(cache=True, precision=spec["precision"]),
        budget=Budget(0, workload.epochs),
        searcher=make_searcher("halving", **spec["options"]),
        seed=spec["seed"],
        baselines=(),
    ) as study:
        study.run(executor="inline")
        print(json.dumps({"trials": [row(trial) for trial in study.trials]}))
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
