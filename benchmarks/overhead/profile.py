"""Where the time of a lean trial goes, by operation and by Python, and what settings of the allocator change.

    OMP_NUM_THREADS=1 nice -n 10 python -m benchmarks.overhead.profile operations [--precision bfloat16]
    OMP_NUM_THREADS=1 nice -n 10 python -m benchmarks.overhead.profile allocator

all-MiniLM-L6-v2, LoRA r=8 on queries and values, batch 16, texts of AG News (up to 128 tokens), one thread. The first
profiles `STEPS` training steps after as many that warm up: self time by operation from torch's profiler, and in a
second run of as many steps the self time of Python functions from cProfile: an upper bound, since it makes them look
slower than they are and counts operators such as + among them.
The second runs one trial in fresh processes, CPU seconds and peak memory, medians of `REPEATS`.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import platform
import pstats
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.speed.workloads import Workload

RESULTS = Path(__file__).resolve().parent / "results"
STEPS, REPEATS = 20, 3
WORKLOAD = Workload("agnews", 16 * (4 * STEPS + 2), 64, epochs=1)
SHORTER = Workload("agnews", 480, 64, epochs=1)
ALLOCATORS: dict[str, dict[str, str]] = {
    "default": {},
    "threshold 4 MiB": {"MALLOC_MMAP_THRESHOLD_": "4194304"},
    "threshold 4 MiB, huge pages": {"MALLOC_MMAP_THRESHOLD_": "4194304", "THP_MEM_ALLOC_ENABLE": "1"},
}
GROUPS = {
    "matrix products": ("mm", "addmm", "bmm", "linear", "matmul", "mkldnn"),
    "attention": ("attention", "flash"),
    "gelu": ("gelu",),
    "layer norm": ("layer_norm",),
    "copies and casts": ("copy_", "_to_copy", "clone", "cat", "index_select", "index", "embedding"),
    "sums and products by element": ("add", "add_", "mul", "sum", "div", "sub", "neg", "where", "masked_fill_"),
    "optimiser": ("adam", "foreach", "norm"),
}


def steps(precision: str) -> Iterator[object]:
    """Trains step by step; yields after each."""
    import numpy as np

    from autopeft.adapters import build_head
    from autopeft.backbones import inject
    from autopeft.presets import preset
    from autopeft.training.loop import StepDone, train
    from autopeft.training.random_states import seed_all
    from autopeft.training.sources import Texts
    from autopeft.worker import load_setting

    loaded = load_setting(WORKLOAD.setting(precision=precision))
    seed_all(0)
    tokens = loaded.split("train")
    injection = inject(loaded.model, preset("lora", loaded.setting.backbone.shape, 1e-3))
    head = build_head(loaded.setting.head, loaded.model, loaded.task.outputs)
    source = Texts(loaded.model, tokens)
    rows = np.arange(len(tokens))
    for event in train(source, injection, head, loaded.setting.recipe, rows=rows, epochs=1, seed=0):
        if isinstance(event, StepDone):
            yield event


def operations(precision: str) -> dict[str, Any]:
    """Returns the shares of the CPU time of a training step."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    torch.set_num_threads(1)
    running = steps(precision)
    for _ in range(STEPS):
        next(running)
    began = time.process_time()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(STEPS):
            next(running)
    traced = time.process_time() - began
    found: dict[str, float] = defaultdict(float)
    for event in profiled.key_averages():
        found[group_of(event.key)] += event.self_cpu_time_total / 1e6
    inside = sum(found.values())
    began = time.process_time()
    for _ in range(STEPS):
        next(running)
    plain, nothing = (time.process_time() - began) / STEPS, step_of_nothing()
    python = cProfile.Profile()
    began = time.process_time()
    python.enable()
    for _ in range(STEPS):
        next(running)
    python.disable()
    spent = time.process_time() - began
    stats: Any = pstats.Stats(python)
    own = {key: value[2] for key, value in stats.stats.items()}
    in_python = sum(seconds for (file, _, _), seconds in own.items() if file != "~" and "profile" not in file)
    top = sorted(((s, f"{Path(f).name}:{n}") for (f, _, n), s in own.items() if f != "~"), reverse=True)[:8]
    return {
        "id": f"operations/{precision}",
        "steps": STEPS,
        "cpu_seconds_of_a_step": round(plain, 4),
        "cpu_seconds_of_a_step_traced": round(traced / STEPS, 4),
        "shares": {name: round(s / inside, 4) for name, s in sorted(found.items(), key=lambda item: -item[1])},
        "cpu_seconds_of_a_step_of_nothing": round(nothing, 5),
        "share_beside_arithmetic": round(nothing / plain, 4),
        "share_of_python": round(in_python / spent, 4),
        "python": {name: round(seconds / spent, 4) for seconds, name in top},
    }


def step_of_nothing() -> float:
    """Returns the CPU seconds of a step of the same calls on nearly no numbers: Python, and torch's way to a kernel.

    The backbone has as many layers, but is 12 wide, and the texts are cut to 3 tokens.
    """
    import numpy as np
    import torch
    from transformers import AutoConfig, AutoModel, PreTrainedModel

    from autopeft.adapters import build_head
    from autopeft.backbones import inject
    from autopeft.backbones.inject import shape_in
    from autopeft.presets import preset
    from autopeft.training.loop import StepDone, train
    from autopeft.training.sources import Texts
    from autopeft.worker import load_setting

    loaded = load_setting(replace(WORKLOAD, max_length=3).setting())
    sizes = {"hidden_size": 12, "num_attention_heads": 12, "num_hidden_layers": 6, "intermediate_size": 48}
    config = AutoConfig.for_model("bert", vocab_size=loaded.model.config.vocab_size, **sizes)
    model: PreTrainedModel = AutoModel.from_config(config).eval().requires_grad_(False)
    tokens, recipe = loaded.split("train"), loaded.setting.recipe
    injection = inject(model, preset("lora", shape_in(model), 1e-3))
    head = build_head(loaded.setting.head, model, loaded.task.outputs)
    done, began = 0, 0.0
    torch.set_num_threads(1)
    for event in train(Texts(model, tokens), injection, head, recipe, rows=np.arange(len(tokens)), epochs=1, seed=0):
        if isinstance(event, StepDone):
            done += 1
            if done == STEPS:
                began = time.process_time()
            if done == 4 * STEPS:
                return (time.process_time() - began) / (3 * STEPS)
    raise AssertionError("there are more steps than that")


def group_of(name: str) -> str:
    """Returns the group of an operation of torch."""
    bare = name.removeprefix("aten::").lower()
    for group, parts in GROUPS.items():
        if any(bare == part or (len(part) > 4 and part in bare) for part in parts):
            return group
    return "rest"


def trial() -> None:
    """Runs one trial and prints its CPU seconds and peak memory."""
    import torch

    from autopeft.job import Job
    from autopeft.presets import preset
    from autopeft.trial import Budget
    from autopeft.worker import evaluate

    torch.set_num_threads(1)
    setting = SHORTER.setting()
    outcome = evaluate(Job(0, preset("lora", setting.backbone.shape, 1e-3), Budget(0, 1), 0, setting, keep=False))
    print(json.dumps({"cpu_seconds": outcome.cost.cpu_seconds, "memory": outcome.cost.peak_bytes}))


def allocators() -> Iterator[dict[str, Any]]:
    """Yields a row per setting of the allocator; the settings take turns, so that load is shared among them."""
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for _ in range(REPEATS):
        for name, variables in ALLOCATORS.items():
            environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
            command = [sys.executable, "-m", "benchmarks.overhead.profile", "trial"]
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    for name, runs in found.items():
        yield {
            "id": f"allocator/{name}",
            "cpu_seconds": round(median(run["cpu_seconds"] for run in runs), 2),
            "all_cpu_seconds": [round(run["cpu_seconds"], 2) for run in runs],
            "memory": int(median(run["memory"] for run in runs)),
        }


def write(row: dict[str, Any]) -> None:
    """Puts a row into the results file."""
    path = RESULTS / "profile.json"
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    record = {
        "command": "OMP_NUM_THREADS=1 nice -n 10 python -m benchmarks.overhead.profile operations|allocator",
        "commit": commit,
        "versions": {n: version(n) for n in ("autopeft", "torch", "transformers", "numpy")},
        "machine": {"architecture": platform.machine(), "cores": os.cpu_count(), "libc": " ".join(platform.libc_ver())},
        "workload": {"operations": WORKLOAD.name, "allocator": SHORTER.name},
        "rows": [r for r in rows if r["id"] != row["id"]] + [{**row, "commit": commit}],
    }
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(row, indent=1), flush=True)


def main() -> None:
    """Measures one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["operations", "allocator", "trial"])
    parser.add_argument("--precision", default="float32")
    options = parser.parse_args()
    if options.what == "trial":
        trial()
    elif options.what == "operations":
        write(operations(options.precision))
    else:
        for row in allocators():
            write(row)


if __name__ == "__main__":
    main()
