"""Two workers against one, for trials of one thread; and what each worker holds in memory for itself.

    python -m benchmarks.parallel.run --repetitions 5

Speed: the same list of trials (all-MiniLM-L6-v2, AG News, LoRA r=8 on all six Linears of every layer) is run by one
worker process and by several, in turns; processes are up and have loaded backbone and data before the clock runs.
"speedup" is the ratio of the wall times. Other work on the machine lowers it: "others" is the share of all cores that
other processes had meanwhile, and "contention" the CPU time of a trial beside others relative to alone, which shows
shared caches and memory even on a busy machine: the speed-up of a quiet one is about workers / contention.

Memory: private bytes (USS: Private_Clean + Private_Dirty) and Pss of two idle workers, from smaps_rollup, for weights
in float32 and in float16, with AUTOPEFT_SHARED_WEIGHTS on and off.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from autopeft import tasks
from autopeft.families import locate
from autopeft.job import Job
from autopeft.presets import preset
from autopeft.setting import Recipe, Setting, describe_backbone
from autopeft.study.calibration import usable_cores
from autopeft.study.executors.base import Failed, Finished, Lost
from autopeft.study.executors.process import ProcessExecutor
from autopeft.study.locations import located
from autopeft.trial import Budget
from benchmarks.data import dataset
from benchmarks.speed.record import commit, machine

HERE = Path(__file__).resolve().parent
TEXTS, VALIDATED = 256, 128


def setting_of(reference: str = "demo") -> Setting:
    """Returns the backbone and the data: short news of about 50 tokens."""
    train = str(dataset("agnews") / "train.jsonl")
    sizes = {"train_size": TEXTS, "validation_size": float(VALIDATED), "selection_size": 16.0, "test_size": 16.0}
    task = tasks.load(train, text="text", label="label", **sizes)
    recipe = Recipe(batch_size=16, threads=1, cache=False)
    return located(Setting(describe_backbone(reference), task.source, task.to_dict(), task.rows, recipe=recipe))


def jobs_of(setting: Setting, first: int, count: int) -> list[Job]:
    """Returns trials of the same configuration, one epoch, numbered from `first`."""
    configuration = preset("lora_all_linear", setting.backbone.shape, 1e-3)
    return [Job(first + i, configuration, Budget(TEXTS, 1), 0, setting, keep=False) for i in range(count)]


def run(executor: ProcessExecutor, jobs: Sequence[Job]) -> dict[str, Any]:
    """Runs jobs and returns wall seconds, the mean CPU seconds of one, and the share others had of the machine."""
    busy, began = _busy(), time.perf_counter()
    for job in jobs:
        executor.submit(job)
    outcomes = []
    while len(outcomes) < len(jobs):
        for event in executor.poll(5.0):
            if isinstance(event, Failed | Lost):
                sys.exit(f"a trial failed: {event}")
            if isinstance(event, Finished):
                outcomes.append(event.outcome)
    wall = time.perf_counter() - began
    cpu = [outcome.cost.cpu_seconds for outcome in outcomes]
    others = max(0.0, _busy() - busy - sum(cpu)) / (wall * (os.cpu_count() or 1))
    return {
        "wall": wall,
        "cpu": statistics.mean(cpu),
        "others": others,
        "qualities": {o.objectives["quality"] for o in outcomes},
    }


def _busy() -> float:
    """Returns the CPU seconds of all processes of the machine since it was started."""
    fields = [int(n) for n in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    user, nice, system, _, _, irq, softirq, steal = fields[:8]
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def speed(workers: int, trials: int, repetitions: int) -> Iterator[dict[str, Any]]:
    """Yields one row for each repetition, the order of the two alternating."""
    setting = setting_of()
    few, many = (ProcessExecutor("autopeft.worker:evaluate", n, 1) for n in (1, workers))
    try:
        for executor in (few, many):
            run(executor, jobs_of(setting, 0, executor.capacity))
        for repetition in range(repetitions):
            order = [few, many] if repetition % 2 == 0 else [many, few]
            found = {executor.capacity: run(executor, jobs_of(setting, 100, trials)) for executor in order}
            one, several = found[1], found[workers]
            qualities = one["qualities"] | several["qualities"]
            yield {
                "id": f"speed/{workers}/{repetition}",
                "part": "speed",
                "workers": workers,
                "trials": trials,
                "seconds_one": round(one["wall"], 2),
                "seconds_several": round(several["wall"], 2),
                "speedup": round(one["wall"] / several["wall"], 3),
                "cpu_seconds_one": round(one["cpu"], 2),
                "cpu_seconds_several": round(several["cpu"], 2),
                "contention": round(several["cpu"] / one["cpu"], 3),
                "others_one": round(one["others"], 3),
                "others_several": round(several["others"], 3),
                "same_quality": len(qualities) == 1,
            }
    finally:
        few.close()
        many.close()


def memory(folder: Path) -> Iterator[dict[str, Any]]:
    """Yields what each of two workers holds, for both kinds of weights."""
    half = folder / "float16"
    shutil.copytree(locate("demo"), half)
    weights = half / "model.safetensors"
    tensors = {name: t.half() if t.is_floating_point() else t for name, t in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    for kind, reference in (("float32", "demo"), ("float16", str(half))):
        for shared in (False, True):
            os.environ |= {
                "AUTOPEFT_CACHE": str(folder / "cache"),
                "AUTOPEFT_SHARED_WEIGHTS": "on" if shared else "off",
            }
            with _pair(setting_of(reference)) as processes:
                held = [_held(process) for process in processes]
            yield {
                "id": f"memory/{kind}/{'shared' if shared else 'off'}",
                "part": "memory",
                "weights": kind,
                "bytes_of_weights": 4 * describe_backbone(reference).shape.total_parameters,
                "shared_weights": "on" if shared else "off",
                "private_mb": [round(h["private"] / 1e6, 1) for h in held],
                "pss_mb": [round(h["pss"] / 1e6, 1) for h in held],
                "rss_mb": [round(h["rss"] / 1e6, 1) for h in held],
            }


@contextmanager
def _pair(setting: Setting) -> Iterator[tuple[int, ...]]:
    """Has two workers that have just done a small trial each."""
    executor = ProcessExecutor("autopeft.worker:evaluate", 2, 1)
    try:
        jobs = [replace(job, budget=Budget(32, 1)) for job in jobs_of(setting, 0, 2)]
        run(executor, jobs)
        time.sleep(2.0)  # they give free memory back after a trial
        yield executor.processes
    finally:
        executor.close()


def _held(process: int) -> dict[str, int]:
    sizes = dict(re.findall(r"^(\w+):\s+(\d+) kB", Path(f"/proc/{process}/smaps_rollup").read_text(), re.MULTILINE))
    private = int(sizes["Private_Clean"]) + int(sizes["Private_Dirty"])
    return {"private": 1024 * private, "pss": 1024 * int(sizes["Pss"]), "rss": 1024 * int(sizes["Rss"])}


def write(path: Path, rows: Sequence[dict[str, Any]], command: str) -> None:
    """Writes the results file; rows of other parts that are there stay."""
    parts = {row["part"] for row in rows}
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    kept = [row for row in old if row["part"] not in parts]
    every = [*kept, *rows]
    speeds = [row for row in every if row["part"] == "speed"]
    content = {
        "command": command,
        "commit": commit(),
        "versions": {n: version(n) for n in ("autopeft", "torch", "transformers", "safetensors")},
        "machine": {**machine(), "usable_cores": usable_cores()},
        "data": "$AUTOPEFT_DATA/data",
        "summary": {
            "speedup_median": statistics.median(row["speedup"] for row in speeds) if speeds else None,
            "contention_median": statistics.median(row["contention"] for row in speeds) if speeds else None,
            "others_largest": max((max(r["others_one"], r["others_several"]) for r in speeds), default=None),
        },
        "rows": every,
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(content["summary"]))


def main() -> None:
    """Measures and writes results/parallel.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("speed", "memory"), action="append", help="default: both")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--trials", type=int, default=6, help="trials of each of the two")
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    parts = options.part or ["memory", "speed"]
    with tempfile.TemporaryDirectory() as folder:
        for part in parts:
            made = (
                memory(Path(folder))
                if part == "memory"
                else speed(options.workers, options.trials, options.repetitions)
            )
            for row in made:
                rows.append(row)
                print(json.dumps(row), flush=True)
    write(
        HERE / "results" / "parallel.json", rows, f"python -m benchmarks.parallel.run {' '.join(sys.argv[1:])}".strip()
    )


if __name__ == "__main__":
    main()
