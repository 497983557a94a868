"""The estimated memory of trials against the measured peak of fresh worker processes.

    python -m benchmarks.estimate.run

Three backbones (all-MiniLM-L6-v2, and a BERT and a DistilBERT of other sizes with random weights, which memory does not
depend on), two data sets (questions of 12 tokens, pairs of sentences of 66), batches of 16 and 32: random
configurations of `spaces.autopeft(lora=True)`, full fine-tuning and LoRA on all Linears, each trained for 12 steps and
scored on 128 texts in a process of its own; with all-MiniLM-L6-v2 also LoRA in the higher layers, with the hidden
states below kept. The two constants HOLES and CHURN of `autopeft/estimate.py` were fitted on the rows of `FITTED`
(`--fit` does it again); the others are the check. About 25 CPU-minutes; rows that the results file has already are not
measured again, and `--again` only computes their estimates anew.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from autopeft import estimate, spaces, tasks
from autopeft.configuration import Configuration, describe
from autopeft.estimate import Memory, memory_of
from autopeft.lengths import Lengths
from autopeft.presets import preset
from autopeft.setting import Backbone, Recipe, Setting, describe_backbone
from autopeft.shapes import BackboneShape
from autopeft.tasks.base import TaskSource
from autopeft.trial import Budget
from benchmarks.data import dataset

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "memory.json"
STEPS, TEXTS = 12, 128
OTHER_BACKBONES: dict[str, dict[str, Any]] = {
    "distilbert-4x512": {"model_type": "distilbert", "dim": 512, "n_layers": 4, "n_heads": 8, "hidden_dim": 2048},
    "bert-2x768": {
        "model_type": "bert",
        "hidden_size": 768,
        "num_hidden_layers": 2,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    },
}
COLUMNS = {
    "trec": {"text": "text", "label": "label"},
    "rte": {"text": "text_a", "text_pair": "text_b", "label": "label"},
}
FITTED = ("demo", "rte")
"""Backbone and data the constants were fitted on."""
PAIRS = ((*FITTED, 0), ("demo", "trec", 2), ("bert-2x768", "rte", 0), ("distilbert-4x512", "rte", 4),
         ("distilbert-4x512", "trec", 6))  # fmt: skip
"""Backbone, data, and the seed of the configurations for batches of 16; for 32 it is one more."""
RANDOM = 4
"""Random configurations per pair and batch size."""
TOLERANCE = 0.15
HEIGHTS = (2, 4)
"""Lowest layers of the configurations that are also trained with hidden states below them kept."""

_CHILD = """
import sys; sys.path[:] = {path!r}
from benchmarks.estimate.child import measure
measure(sys.argv[1])
"""


def save_backbone(name: str, folder: Path) -> str:
    """Saves a random backbone with the demo backbone's tokenizer, unless it is there; returns its reference."""
    if name == "demo":
        return name
    target = folder / name
    if not target.exists():
        import torch
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        from autopeft.families import locate

        fields = dict(OTHER_BACKBONES[name])
        torch.manual_seed(0)
        AutoModel.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields)).save_pretrained(target)
        tokenizer = AutoTokenizer.from_pretrained(locate("demo"))
        if name.startswith("distilbert"):  # it takes no token types
            tokenizer.model_input_names = ["input_ids", "attention_mask"]
        tokenizer.save_pretrained(target)
    return str(target)


def settings(folder: Path) -> Iterator[tuple[str, str, int, Setting]]:
    """Yields name of backbone, name of data, seed of the configurations and setting, one per batch size."""
    for name, data, seed in PAIRS:
        backbone = describe_backbone(save_backbone(name, folder))
        train = str(dataset(data) / "train.jsonl")
        for more, batch in enumerate((16, 32)):
            size = STEPS * batch
            task = tasks.load(train, **COLUMNS[data], train_size=size, validation_size=TEXTS)  # type: ignore[arg-type]
            recipe = Recipe(batch_size=batch, max_length=128, threads=1)
            setting = Setting(backbone, task.source, task.to_dict(), task.rows, recipe=recipe)
            yield name, data, seed + more, setting


def configurations(shape: BackboneShape, seed: int) -> list[Configuration]:
    """Returns `RANDOM` random configurations and two baselines."""
    rng, space = np.random.default_rng(seed), spaces.autopeft(lora=True).on(shape)
    drawn = [space.sample(rng) for _ in range(RANDOM)]
    return [*drawn, preset("lora_all_linear", shape, 1e-3), preset("full", shape, 1e-4)]


def cached(shape: BackboneShape) -> list[Configuration]:
    """Returns configurations below whose modules lie layers: LoRA on all Linears from a layer on."""
    everywhere = preset("lora_all_linear", shape, 1e-3)
    return [
        replace(everywhere, placements=tuple(p for p in everywhere.placements if p.slot.index >= height))
        for height in HEIGHTS
    ]


def measured(setting: Setting, configuration: Configuration, epochs: int = 1, jobs: int = 1) -> dict[str, Any]:
    """Trains a configuration in a fresh process and returns what that needed at each stage, in bytes."""
    asked = {
        "setting": setting.to_dict(),
        "configuration": configuration.to_dict(),
        "budget": vars(Budget(0, epochs)),
        "jobs": jobs,
    }
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file, tempfile.TemporaryDirectory() as place:
        json.dump(asked, file)
        file.flush()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "AUTOPEFT_CACHE": place}
        command = [sys.executable, "-c", _CHILD.format(path=sys.path), file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def header() -> dict[str, Any]:
    """Returns what every results file begins with."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=HERE, check=False)
    libc = " ".join(platform.libc_ver())
    return {
        "command": "python -m benchmarks.estimate.run",
        "commit": commit.stdout.strip(),
        "versions": {n: version(n) for n in ("autopeft", "torch", "transformers", "tokenizers", "numpy")},
        "machine": {"architecture": platform.machine(), "cores": os.cpu_count(), "libc": libc},
        "python": platform.python_version(),
        "data": "$AUTOPEFT_DATA/data",
    }


def row(name: str, data: str, setting: Setting, configuration: Configuration, found: dict[str, Any]) -> dict[str, Any]:
    """Returns the row of one measurement, without its estimate."""
    return {
        "id": identity(name, data, setting, configuration),
        "backbone": name,
        "data": data,
        "batch_size": setting.recipe.batch_size,
        **({"cache": True} if setting.recipe.cache else {}),
        "outputs": setting.outputs,
        "configuration": configuration.to_dict(),
        "description": describe(configuration),
        "seed": 0,
        "budget": {"examples": 0, "epochs": 1},
        "lengths": {split: vars(Lengths.of(found["lengths"][split])) for split in ("train", "validation")},
        "stages": {k: found[k] for k in ("driver", "imported", "loaded", "tokenised", "after", "after_files")},
        "memory": found["peaks"][0],
        "cpu_seconds": found["cpu_seconds"][0],
    }


def identity(name: str, data: str, setting: Setting, configuration: Configuration) -> str:
    """Returns the id of a row."""
    return f"{name} {data} {setting.recipe.batch_size} {configuration.id}" + (" cached" if setting.recipe.cache else "")


def estimated(row: dict[str, Any], shape: BackboneShape) -> Memory:
    """Returns the estimate for a row."""
    source = TaskSource(train="", text="", label="")
    recipe = Recipe(batch_size=row["batch_size"], cache=row.get("cache"))
    setting = Setting(Backbone("", "", shape), source, {"labels": ["?"] * row["outputs"]}, {}, recipe=recipe)
    lengths = {split: Lengths(**fields) for split, fields in row["lengths"].items()}
    return memory_of(setting, lengths, Configuration.from_dict(row["configuration"]))


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns, by backbone and data, how many estimates lie within `TOLERANCE`, and the worst."""
    found = []
    for (name, data, _), kept in [*((pair, None) for pair in PAIRS), *((pair, True) for pair in PAIRS)]:
        ratios = [r["ratio"] for r in rows if (r["backbone"], r["data"], r.get("cache")) == (name, data, kept)]
        if ratios:
            within = sum(abs(ratio - 1) <= TOLERANCE for ratio in ratios)
            fields = {"rows": len(ratios), "within": within, "lowest": min(ratios), "highest": max(ratios)}
            fitted = (name, data) == FITTED and kept is None
            found.append({"backbone": name, "data": data, "cached": bool(kept), "fitted": fitted, **fields})
    return found


def fit(rows: Sequence[dict[str, Any]], shapes: dict[str, BackboneShape]) -> tuple[float, float]:
    """Returns HOLES and CHURN with the least squared relative error on the rows of `FITTED`."""
    from scipy.optimize import least_squares

    chosen = [r for r in rows if (r["backbone"], r["data"]) == FITTED and "cache" not in r]

    def errors(constants: Sequence[float]) -> list[float]:
        estimate.HOLES, estimate.CHURN = map(float, constants)  # type: ignore[misc]
        return [estimated(r, shapes[r["backbone"]]).total / r["memory"] - 1 for r in chosen]

    found = least_squares(errors, [0.5, 0.5], diff_step=0.01).x
    return float(found[0]), float(found[1])


def main() -> None:
    """Measures what is missing, computes every estimate and writes the results file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--again", action="store_true", help="measure nothing")
    parser.add_argument("--cached", action="store_true", help="measure only trials that read the cache")
    parser.add_argument("--fit", action="store_true", help="print the constants that fit best")
    parser.add_argument("--models", default="runs/estimate", help="folder for the random backbones")
    options = parser.parse_args()
    old = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": [], "shapes": {}}
    record = old if options.again else {**header(), "shapes": old["shapes"], "rows": old["rows"]}
    rows, present = record["rows"], {r["id"] for r in record["rows"]}
    commit = header()["commit"]

    def write() -> None:
        shapes = {name: BackboneShape.from_dict(shape) for name, shape in record["shapes"].items()}
        for each in rows:
            memory = estimated(each, shapes[each["backbone"]])
            each["estimate"] = {"total": memory.total, **vars(memory)}
            each["ratio"] = round(memory.total / each["memory"], 4)
        record["summary"] = summary(rows)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    for name, data, seed, setting in () if options.again else settings(Path(options.models)):
        record["shapes"][name] = setting.backbone.shape.to_dict()
        keeping = replace(setting, recipe=replace(setting.recipe, cache=True))
        wanted = [] if options.cached else [(setting, c) for c in configurations(setting.backbone.shape, seed)]
        wanted += [(keeping, c) for c in cached(setting.backbone.shape) if name == "demo"]
        for how, configuration in wanted:
            if identity(name, data, how, configuration) not in present:
                rows.append({**row(name, data, how, configuration, measured(how, configuration)), "commit": commit})
                write()
                print(rows[-1]["ratio"], rows[-1]["id"], rows[-1]["description"], flush=True)
    write()
    for line in record["summary"]:
        print(line)
    if options.fit:
        print(fit(rows, {name: BackboneShape.from_dict(shape) for name, shape in record["shapes"].items()}))


if __name__ == "__main__":
    main()
