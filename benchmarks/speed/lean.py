"""Trials of this package in one process, timed: what `trainer.py` is compared with.

    OMP_NUM_THREADS=1 python -m benchmarks.speed.lean spec.json

The spec is JSON: `setting` (`Setting.to_dict`), `epochs`, `trials`: a list of {"configuration", "seed"}. Prints one
line of JSON per trial, as `trainer.py` does.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from autopeft.configuration import Configuration
from autopeft.job import Job
from autopeft.setting import Setting
from autopeft.trial import Budget
from autopeft.worker import evaluate, load_setting


def run(setting: Setting, epochs: int, trial: Mapping[str, Any]) -> dict[str, Any]:
    """Trains and scores one configuration; loading counts for the trial that is the first of its process."""
    began = time.process_time()
    loaded = load_setting(setting)
    lengths = {name: loaded.split(name).lengths.tolist() for name in ("train", "validation")}
    prepared = time.process_time()
    job = Job(0, Configuration.from_dict(trial["configuration"]), Budget(0, epochs), trial["seed"], setting, keep=True)
    outcome = evaluate(job)
    return {
        "quality": outcome.objectives["quality"],
        "loss": sum(outcome.detail["curve"]) / len(outcome.detail["curve"]),
        "parameters": int(outcome.objectives["parameters"]),
        "cpu_seconds": time.process_time() - began,
        "prepare_seconds": prepared - began,
        "train_seconds": outcome.cost.cpu_seconds,
        "tokens": {name: sum(lengths[name]) for name in lengths},
        "squares": {name: sum(n * n for n in lengths[name]) for name in lengths},
    }


def main() -> None:
    """Runs the trials of a spec."""
    torch.set_num_threads(1)
    spec = json.loads(Path(sys.argv[1]).read_text())
    setting = Setting.from_dict(spec["setting"])
    for trial in spec["trials"]:
        print(json.dumps(run(setting, spec["epochs"], trial)), flush=True)


if __name__ == "__main__":
    main()
