"""Cost of the lean loop against length, width, depth, examples and trials, on random backbones and random tokens.

    OMP_NUM_THREADS=1 python -m benchmarks.speed.curves spec.json

What is learnt does not matter here, only how long it takes: LoRA r=8 on query and value of all layers, batches of 16
texts of one length. The spec is JSON: `points`, a list of {"length", "width", "layers", "examples", "trials"}. Prints
one line of JSON per point.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModel

from autopeft.adapters import build_head
from autopeft.backbones import inject
from autopeft.families import shape_of
from autopeft.heads import Head
from autopeft.presets import preset
from autopeft.setting import Recipe
from autopeft.training.batches import Tokens
from autopeft.training.loop import train
from autopeft.training.sources import Texts
from benchmarks.speed.costs import CostModel
from benchmarks.speed.flops import passes
from benchmarks.speed.pieces import Piece, Stages
from benchmarks.speed.processes import measure

BASE = {"length": 48, "width": 384, "layers": 6, "examples": 128, "trials": 1}
VARIED: Mapping[str, Sequence[int]] = {
    "length": (16, 32, 64, 128),
    "width": (128, 256, 512, 768),
    "layers": (2, 4, 8, 12),
    "examples": (32, 64, 256, 512),
    "trials": (2, 4, 8),
}
BATCH, CLASSES, VOCABULARY = 16, 4, 2000


def points(varied: Mapping[str, Sequence[int]] = VARIED) -> list[dict[str, int]]:
    """Returns the base and, for each quantity, the base with that one changed."""
    return [dict(BASE), *({**BASE, name: value} for name, values in varied.items() for value in values)]


def stages(chosen: Sequence[Mapping[str, int]], repeats: int) -> Stages:
    """Yields the pieces: every point in one process, `repeats` times."""
    yield [Piece("curves", "all points", "lean", partial(run, chosen), repeat=r, own=True) for r in range(repeats)]


def run(chosen: Sequence[Mapping[str, int]]) -> dict[str, Any]:
    """Measures the points in a fresh process."""
    done = measure("curves", {"points": list(chosen)})
    return {"cpu_seconds": done.cpu_seconds, "peak_bytes": done.peak_bytes, "points": done.rows}


def features(point: Mapping[str, int]) -> tuple[float, float, float]:
    """Returns what a point's seconds are linear in: operations; numbers moved; steps times layers.

    "Numbers moved" is tokens x layers x width: what sums, norms and activations read and write.
    """
    shape = shape_of(_config(point).to_dict())
    one = passes(preset("lora", shape, 1e-3), shape, CLASSES)
    length, texts = point["length"], point["examples"] * point["trials"]
    operations = (one.forward + one.backward).of(texts * length, texts * length**2, texts)
    steps = point["trials"] * -(-point["examples"] // BATCH)
    return operations, float(texts * length * point["layers"] * point["width"]), float(steps * point["layers"])


def explained(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Fits the linear model to measured points: seconds per 10^9 operations, per 10^6 numbers, per step and layer."""
    matrix, seconds = [features(row) for row in rows], [row["cpu_seconds"] for row in rows]
    model = CostModel.fit(matrix, seconds)
    per = model.weights / model.scales
    errors = model(matrix) / np.array(seconds) - 1.0
    return {
        "seconds_per_1e9_operations": float(per[0] * 1e9),
        "seconds_per_1e6_numbers": float(per[1] * 1e6),
        "seconds_per_step_and_layer": float(per[2]),
        "relative_error": {"mean": float(np.abs(errors).mean()), "most": float(np.abs(errors).max())},
    }


def _config(point: Mapping[str, int]) -> Any:
    width = point["width"]
    return AutoConfig.for_model(
        "bert", vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=point["layers"],
        num_attention_heads=width // 32, intermediate_size=4 * width, max_position_embeddings=512,
    )  # fmt: skip


def measured(point: Mapping[str, int]) -> dict[str, Any]:
    """Trains for one epoch per trial, and returns the CPU seconds of the loop; three steps before warm it up."""
    torch.manual_seed(0)
    model = AutoModel.from_config(_config(point), attn_implementation="sdpa").eval().requires_grad_(False)
    shape = shape_of(model.config.to_dict())
    count, length = point["examples"], point["length"]
    tokens = Tokens(
        ids=torch.randint(1, VOCABULARY, (count * length,)),
        types=torch.zeros(count * length, dtype=torch.long),
        starts=np.arange(count + 1, dtype=np.int64) * length,
        targets=torch.randint(0, CLASSES, (count,)),
        pad=0,
    )
    recipe, configuration = Recipe(batch_size=BATCH, max_length=length), preset("lora", shape, 1e-3)
    spent = 0.0
    for trial in range(-1, point["trials"]):
        rows = np.arange(count if trial >= 0 else min(count, 3 * BATCH))
        began = time.process_time()
        injection = inject(model, configuration)
        head = build_head(Head(), model, CLASSES)
        for _ in train(Texts(model, tokens), injection, head, recipe, rows=rows, epochs=1, seed=max(trial, 0)):
            pass
        injection.eject()
        spent += time.process_time() - began if trial >= 0 else 0.0
    return {**point, "cpu_seconds": spent}


def main() -> None:
    """Measures the points of a spec."""
    torch.set_num_threads(1)
    for point in json.loads(Path(sys.argv[1]).read_text())["points"]:
        print(json.dumps(measured(point)), flush=True)


if __name__ == "__main__":
    main()
