"""Trains 200 tiny models on 2 workers and watches what is used: memory, descriptors, threads, time outside training.

    make soak

A random BERT of 3 layers, 32 wide, is really trained: full fine-tuning and LoRA on all Linears first, then random
configurations of LoRA, serial and parallel adapters and prefixes. Every process is looked at whenever a trial begins,
when its worker has cleaned up after the one before. Growth is that of the mean over the last 20 trials against the mean
over trials 40 to 60, for the process that grew most. Overhead is the time of the workers in which no job ran, from the
start of the first job to the end of the last, per trial; and the CPU time of the driver.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

from autopeft import spaces, tasks
from autopeft.configuration import Configuration
from autopeft.job import SILENT, Job, Outcome, Report
from autopeft.presets import preset
from autopeft.setting import Recipe, describe_backbone
from autopeft.study.executors.base import Event, Started
from autopeft.study.executors.process import ProcessExecutor
from autopeft.study.study import Study
from autopeft.trial import Budget, Trial
from tests.faults.real import materials

HERE = Path(__file__).resolve().parent
WORKERS, TRIALS, BASELINES, FIRST, WINDOW = 2, 200, 40, 50, 20


def timed(job: Job, report: Report = SILENT) -> Outcome:
    """Does what a worker does, and tells how long all of it took and when it ended."""
    began = time.monotonic()
    from autopeft.worker import evaluate

    outcome = evaluate(job, report)
    ended = time.monotonic()
    return replace(outcome, detail={**outcome.detail, "began": began, "ended": ended, "process": os.getpid()})


class Usage:
    """Looks at the driver and its workers whenever a trial begins."""

    def __init__(self, executor: ProcessExecutor) -> None:
        self._executor = executor
        self.samples: list[dict[str, Any]] = []

    def __call__(self, event: Event, trial: Trial) -> None:
        if isinstance(event, Started):
            seen = {str(process): _usage(process) for process in (os.getpid(), *self._executor.processes)}
            self.samples.append({"trial": trial.number, "processes": seen})


def _usage(process: int) -> Mapping[str, int]:
    folder = Path(f"/proc/{process}")
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line)
    return {
        "resident": int(status["VmRSS"].split()[0]) * 1024,
        "threads": int(status["Threads"]),
        "descriptors": len(list((folder / "fd").iterdir())),
    }


def growth(samples: list[dict[str, Any]], what: str) -> dict[str, dict[str, float]]:
    """Returns for each process the mean around trial 50, that of the last 20 trials, and the growth in percent."""
    found = {}
    for process in samples[-1]["processes"]:
        values = [(s["trial"], s["processes"][process][what]) for s in samples if process in s["processes"]]
        early = [v for n, v in values if abs(n - FIRST) <= WINDOW // 2]
        late = [v for n, v in values if n >= samples[-1]["trial"] - WINDOW]
        role = "driver" if int(process) == os.getpid() else f"worker {len(found)}"
        if early and late:
            change = 100.0 * (mean(late) / mean(early) - 1.0)
            found[role] = {"early": round(mean(early)), "late": round(mean(late)), "growth_percent": round(change, 3)}
    return found


def family(trial: Trial) -> str:
    return " + ".join(sorted({type(p.module).__name__ for p in trial.configuration.placements})) or "probe"


def first_ones(shape: Any) -> list[tuple[str, Configuration]]:
    """Half full fine-tuning, half LoRA on all Linears; the rates make them differ."""
    names = ["full", "lora_all_linear"] * (BASELINES // 2)
    return [(f"{name} {k}", preset(name, shape, 1e-4 * 1.1**k)) for k, name in enumerate(names)]


def soak(place: Path, trials: int) -> dict[str, Any]:
    reference, data = materials(place)
    backbone = describe_backbone(reference)
    sizes = {"lora": (0, 1, 2, 4, 8), "serial": (0, 2, 4, 8, 16), "parallel": (0, 2, 4, 8, 16), "prefix": (0, 2, 4, 8)}
    study = Study.create(
        place / "study",
        backbone=backbone,
        task=tasks.load(data, text="text", label="label"),
        space=spaces.autopeft(**sizes),
        trials=trials - BASELINES,
        recipe=replace(Recipe(), batch_size=8, max_length=32),
        budget=Budget(0, 3),
        searcher="random",
        baselines=first_ones(backbone.shape),
        evaluate="benchmarks.soak.run:timed",
    )
    executor = ProcessExecutor(study.evaluate, WORKERS)
    usage = Usage(executor)
    cpu = resource.getrusage(resource.RUSAGE_SELF)
    with study:
        report = study.run(WORKERS, executor, progress=usage)
        used = resource.getrusage(resource.RUSAGE_SELF)
        executor.close()
        done = study.trials
    assert (report.stopped, report.failed) == ("finished", 0), report
    busy = sum(t.detail["ended"] - t.detail["began"] for t in done)
    span = max(t.detail["ended"] for t in done) - min(t.detail["began"] for t in done)
    return {
        "id": f"{len(done)} trials, {WORKERS} workers",
        "trials": len(done),
        "families": dict(sorted(Counter(family(t) for t in done).items())),
        "resident_bytes": growth(usage.samples, "resident"),
        "threads": growth(usage.samples, "threads"),
        "descriptors": growth(usage.samples, "descriptors"),
        "worker_processes": len({t.detail["process"] for t in done}),
        "seconds": round(span, 2),
        "mean_job_seconds": round(busy / len(done), 4),
        "overhead_seconds_per_trial": round((WORKERS * span - busy) / len(done), 4),
        "driver_cpu_seconds_per_trial": round(
            (used.ru_utime + used.ru_stime - cpu.ru_utime - cpu.ru_stime) / len(done), 4
        ),
        "resident_over_time": [
            [s["trial"], *sorted(p["resident"] >> 10 for p in s["processes"].values())]
            for s in usage.samples[:: max(1, len(usage.samples) // 40)]
        ],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "soak.json")
    given = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=HERE, check=False)
    with tempfile.TemporaryDirectory() as place:
        row = soak(Path(place), given.trials)
    content = {
        "command": "make soak",
        "commit": commit.stdout.strip(),
        "versions": {name: version(name) for name in ("autopeft", "torch", "transformers", "numpy")},
        "machine": {"architecture": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
        "rows": [row],
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps({k: v for k, v in row.items() if k != "resident_over_time"}, indent=1))
    grown = max(entry["growth_percent"] for entry in row["resident_bytes"].values())
    return int(grown >= 2.0 or row["overhead_seconds_per_trial"] >= 1.0)


if __name__ == "__main__":
    sys.exit(main())
