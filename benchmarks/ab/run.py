"""A/B tests of three training choices: dropout, the precision of the frozen part's products, and batches cut by length.

    python -m benchmarks.ab.run

Backbone all-MiniLM-L6-v2, 512 training texts, 3 epochs, batch 32, one thread; quality is the task's metric on 500 other
training texts, loss the mean loss there. Every (task, configuration, seed) is trained as the lean loop does it (dropout
0, float32, batches cut by length) and once with each choice changed, same fresh weights and same seed; differences are
paired. A killed run goes on with the same command, and --minutes bounds a run. About 30 CPU-minutes in all.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from scipy import stats

from autopeft import tasks
from autopeft.adapters import build_head
from autopeft.backbones import inject
from autopeft.configuration import Configuration, Placement, Training, describe
from autopeft.modules import Lora, ParallelAdapter, PeftModule, Prefix, SerialAdapter
from autopeft.setting import Precision, Recipe, Setting, describe_backbone
from autopeft.shapes import Slot
from autopeft.tasks.base import TaskSource
from autopeft.training import loop
from autopeft.training.batches import bucketed
from autopeft.training.loop import loss_of, predict, train
from autopeft.training.precision import computing
from autopeft.training.random_states import seed_all
from autopeft.training.sources import Texts
from autopeft.worker import Loaded, load_setting, score
from benchmarks.data import dataset

HERE: Final = Path(__file__).resolve().parent
RESULTS: Final = HERE / "results" / "ab.json"
EPOCHS: Final = 3
SEEDS: Final = (0, 1, 2)
RECIPE: Final = Recipe(batch_size=32, max_length=128)
LEAN: Final = "lean"
VARIANTS: Final[Mapping[str, Recipe]] = {
    LEAN: RECIPE,
    "dropout": replace(RECIPE, dropout=0.1),  # the backbone's own
    "bfloat16": replace(RECIPE, precision="bfloat16"),
    "shuffled": RECIPE,
}
TASKS: Final[Mapping[str, Mapping[str, Any]]] = {
    "trec": {"text": "text"},
    "sst2": {"text": "text"},
    "sick": {"text": "text_a", "text_pair": "text_b"},
}


def _in(layers: tuple[int, ...], **modules: PeftModule) -> list[Placement]:
    return [Placement(Slot("encoder", i, site), m) for i in layers for site, m in modules.items()]


def _query(layers: tuple[int, ...], module: PeftModule) -> list[Placement]:
    return [Placement(Slot("encoder", i, f"attention.{part}"), module) for i in layers for part in ("query", "value")]


CONFIGURATIONS: Final[Mapping[str, Configuration]] = {
    "lora": Configuration(tuple(_query(tuple(range(6)), Lora(8))), Training(3e-3)),
    "serial and parallel, high": Configuration(
        (*_in((3, 4, 5), ffn=SerialAdapter(48)), *_in((4, 5), ffn=ParallelAdapter(24))), Training(1e-3)
    ),
    "prefix and parallel": Configuration(
        tuple(_in((0, 2, 5), ffn=ParallelAdapter(96), attention=Prefix(6))), Training(3e-3)
    ),
}


def load(name: str) -> Loaded:
    """Returns one task with its backbone."""
    path = str(dataset(name) / "train.jsonl")
    source = TaskSource(
        path, label="label", **TASKS[name], train_size=512, validation_size=500, selection_size=10, test_size=10
    )
    task = tasks.load_source(source)
    setting = Setting(describe_backbone("demo"), task.source, task.to_dict(), task.rows, recipe=RECIPE)
    return load_setting(setting)


def planned() -> Iterator[tuple[int, str, str, str]]:
    """Yields (seed, task, configuration, variant): every task with every seed first, then further configurations."""
    names = list(CONFIGURATIONS)
    first = [v for v in VARIANTS if v != "shuffled"]  # it takes longest
    for turn, variants in product(range(len(names)), (first, ["shuffled"])):
        for seed, (i, task), variant in product(SEEDS, enumerate(TASKS), variants):
            yield seed, task, names[(turn + seed + i) % len(names)], variant


@contextmanager
def _batches(variant: str) -> Iterator[None]:
    """Cuts plainly shuffled batches in the variant that asks for them: a pool of one batch sorts nothing."""
    if variant == "shuffled":
        vars(loop)["bucketed"] = partial(bucketed, pool=1)
    try:
        yield
    finally:
        vars(loop)["bucketed"] = bucketed


def scored(loaded: Loaded, head: Any, precision: Precision) -> tuple[dict[str, float], np.ndarray]:
    """Returns quality, loss and CPU seconds of scoring in a precision, and the outputs."""
    began = time.process_time()
    tokens = loaded.split("validation")
    with computing(loaded.model, precision):
        outputs = predict(Texts(loaded.model, tokens), head)
    spent = time.process_time() - began
    loss = float(loss_of(torch.from_numpy(outputs), tokens.targets))
    return {"quality": score(loaded.task, "validation", outputs), "loss": loss, "cpu_seconds": round(spent, 3)}, outputs


def trial(loaded: Loaded, configuration: Configuration, seed: int, variant: str) -> dict[str, Any]:
    """Trains once; returns what came of it, scored in both precisions."""
    recipe, tokens = VARIANTS[variant], loaded.split("train")
    loaded.split("validation")
    torch.set_num_threads(1)
    seed_all(seed)
    injection = inject(loaded.model, configuration)
    try:
        head = build_head(loaded.setting.head, loaded.model, loaded.task.outputs)
        began = time.process_time()
        with computing(loaded.model, recipe.precision), _batches(variant):
            rows = np.arange(len(tokens))
            events = list(
                train(Texts(loaded.model, tokens), injection, head, recipe, rows=rows, epochs=EPOCHS, seed=seed)
            )
        spent = time.process_time() - began
        wide, outputs = scored(loaded, head, "float32")
        narrow, rounded = scored(loaded, head, "bfloat16")
    finally:
        injection.eject()
    return {
        "quality": wide["quality"],
        "loss": wide["loss"],
        "training_loss": getattr(events[-1], "loss", None),
        "cpu_seconds": round(spent, 3),
        "scoring": {"float32": wide, "bfloat16": narrow},
        "predictions_that_differ": int((outputs.argmax(1) != rounded.argmax(1)).sum()),
        "parameters": configuration.count(loaded.setting.backbone.shape).stored,
    }


def interval(values: list[float]) -> dict[str, Any]:
    """Returns the mean of paired differences and half the width of its 95 % interval (Student's t)."""
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
    return {"mean": round(float(np.mean(values)), 5), "half_width": round(half, 5), "pairs": len(values)}


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns per choice and task, and over all tasks, what changes against the lean loop."""
    found = {(r["task"], r["name"], r["seed"], r["variant"]): r for r in rows}
    lines = []
    for variant, task in product([v for v in VARIANTS if v != LEAN], [*TASKS, "all"]):
        pairs = [
            (found[*key, LEAN], r)
            for (*key, v), r in found.items()
            if v == variant and task in (key[0], "all") and (*key, LEAN) in found
        ]
        if len(pairs) < 2:
            continue
        line: dict[str, Any] = {"variant": variant, "task": task}
        for what in ("quality", "loss"):
            line[what] = interval([b[what] - a[what] for a, b in pairs])
        for side, rows_of in ((LEAN, [a for a, _ in pairs]), (variant, [b for _, b in pairs])):
            line[f"mean quality, {side}"] = round(float(np.mean([r["quality"] for r in rows_of])), 4)
        line["cpu_ratio"] = round(sum(b["cpu_seconds"] for _, b in pairs) / sum(a["cpu_seconds"] for a, _ in pairs), 3)
        lines.append(line)
    for variant in (LEAN, "bfloat16"):
        own = [r for r in rows if r["variant"] == variant]
        if len(own) < 2:
            continue
        scorings = [(r["scoring"]["float32"], r["scoring"]["bfloat16"]) for r in own]
        lines.append(
            {
                "scored in bfloat16 against float32, trained as": variant,
                "quality": interval([b["quality"] - a["quality"] for a, b in scorings]),
                "largest difference of quality": max(abs(b["quality"] - a["quality"]) for a, b in scorings),
                "share of predictions that differ": float(np.mean([r["predictions_that_differ"] for r in own])) / 500,
                "cpu_ratio": round(
                    sum(b["cpu_seconds"] for _, b in scorings) / sum(a["cpu_seconds"] for a, _ in scorings), 3
                ),
            }
        )
    return lines


def save(rows: list[dict[str, Any]], command: str) -> None:
    """Writes the results file; a run that is killed while it does leaves the one before."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=HERE, check=False)
    content = {
        "command": command,
        "commit": commit.stdout.strip(),
        "versions": {n: version(n) for n in ("autopeft", "torch", "transformers", "numpy")},
        "machine": {"architecture": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
        "data": [f"$AUTOPEFT_DATA/data/{name}" for name in TASKS],
        "complete": len(rows) == len(TASKS) * len(CONFIGURATIONS) * len(SEEDS) * len(VARIANTS),
        "summary": summary(rows),
        "rows": rows,
    }
    fresh = RESULTS.with_suffix(".new")
    fresh.write_text(json.dumps(content, indent=1) + "\n")
    fresh.replace(RESULTS)


def main() -> None:
    """Runs what is missing of the results file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no further trial after that")
    options = parser.parse_args()
    command = f"python -m benchmarks.ab.run {' '.join(sys.argv[1:])}".strip()
    end = time.monotonic() + 60 * options.minutes
    RESULTS.parent.mkdir(exist_ok=True)
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    done = {row["id"] for row in rows}
    loaded: dict[str, Loaded] = {}
    for seed, task, name, variant in planned():
        configuration = CONFIGURATIONS[name]
        key = f"{task}/{name}/{seed}/{variant}"
        if key in done or time.monotonic() > end:
            continue
        if task not in loaded:
            loaded[task] = load(task)
        found = trial(loaded[task], configuration, seed, variant)
        about = {"id": key, "task": task, "name": name, "seed": seed, "variant": variant}
        budget = {"examples": 512, "epochs": EPOCHS}
        rows.append({**about, "configuration": configuration.to_dict(), "budget": budget, **found})
        save(rows, command)
        print(
            f"{found['quality']:.4f} {found['loss']:.4f} {found['cpu_seconds']:6.2f}s {key} {describe(configuration)}"
        )
        sys.stdout.flush()
    for line in summary(rows):
        print(json.dumps(line))


if __name__ == "__main__":
    main()
