"""The estimated memory of trials against the measured peak of fresh worker processes.

    python -m benchmarks.estimate.run

Three backbones (all-MiniLM-L6-v2, and a DistilBERT and a BERT of other sizes with random weights, which memory does not
depend on), two data sets (questions of 10 tokens, pairs of sentences of 60), batches of 16 and 32: random
configurations of `spaces.autopeft(lora=True)`, full fine-tuning and LoRA on all Linears, each trained for some steps and
scored on 128 texts in a process of its own. The constants of `autopeft/estimate.py` were fitted on the rows marked
"fitted"; the others are the check. About 20 CPU-minutes; `--again` only computes the estimates anew.
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
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from autopeft import spaces, tasks
from autopeft.configuration import Configuration, describe
from autopeft.presets import preset
from autopeft.setting import Recipe, Setting, describe_backbone
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
PAIRS = (
    ("bert-2x768", "rte"),
    ("demo", "trec"),
    ("distilbert-4x512", "rte"),
    ("distilbert-4x512", "trec"),
    FITTED,
)
RANDOM = 4
"""Random configurations per pair and batch size."""

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


def settings(folder: Path) -> Iterator[tuple[str, str, Setting]]:
    """Yields name of backbone, name of data and setting, one per batch size."""
    for name, data in PAIRS:
        backbone = describe_backbone(save_backbone(name, folder))
        train = str(dataset(data) / "train.jsonl")
        for batch in (16, 32):
            size = STEPS * batch
            task = tasks.load(train, **COLUMNS[data], train_size=size, validation_size=TEXTS)  # type: ignore[arg-type]
            recipe = Recipe(batch_size=batch, max_length=128, threads=1)
            yield name, data, Setting(backbone, task.source, task.to_dict(), task.rows, recipe=recipe)


def configurations(setting: Setting, seed: int) -> list[Configuration]:
    """Returns `RANDOM` random configurations and two baselines."""
    shape = setting.backbone.shape
    rng = np.random.default_rng(seed)
    space = spaces.autopeft(lora=True).on(shape)
    drawn = [space.sample(rng) for _ in range(RANDOM)]
    return [*drawn, preset("lora_all_linear", shape, 1e-3), preset("full", shape, 1e-4)]


def measured(setting: Setting, configuration: Configuration, epochs: int = 1, jobs: int = 1) -> dict[str, Any]:
    """Trains a configuration in a fresh process and returns what that needed at each stage, in bytes."""
    asked = {
        "setting": setting.to_dict(),
        "configuration": configuration.to_dict(),
        "budget": vars(Budget(0, epochs)),
        "jobs": jobs,
    }
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(asked, file)
        file.flush()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-c", _CHILD.format(path=sys.path), file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def header(command: Sequence[str]) -> dict[str, Any]:
    """Returns what every results file begins with."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=HERE, check=False)
    libc = " ".join(platform.libc_ver())
    return {
        "command": " ".join(command),
        "commit": commit.stdout.strip(),
        "versions": {n: version(n) for n in ("autopeft", "torch", "transformers", "tokenizers", "numpy")},
        "machine": {"architecture": platform.machine(), "cores": os.cpu_count(), "libc": libc},
        "python": platform.python_version(),
        "data": "$AUTOPEFT_DATA/data",
    }
