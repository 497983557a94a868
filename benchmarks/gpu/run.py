"""What a GPU makes of a search: configurations per hour together against one at a time, share of its peak, memory.

    python -m benchmarks.gpu.run                 needs CUDA; `make bench-gpu`
    python -m benchmarks.gpu.run --tiny          the same code on any device, in a minute; its figures say nothing

Random configurations of the space of `spaces.autopeft()` (adapters and prefixes of every size, random layers), the same
for every K, on texts of seeded random tokens: lengths as in AG News (lognormal, median 50, at most 128). A trial is
`STEPS` steps of 16 texts; steps are timed after `WARM` that are not. Rates are those of a trial of 1,000 texts x 3
epochs, without loading and scoring. The share of the peak counts the products of matrices that one configuration alone
needs, padding of modules left out; the peak is that of torch's matmul on the same device in the same precision. `eager`
is the loop as it runs; `--compile` adds the layers through torch.compile, which is not part of the package.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, BertConfig, PreTrainedModel

from autopeft.adapters import build_head
from autopeft.backbones import inject, shape_in
from autopeft.backbones.stacked import stack
from autopeft.configuration import Configuration
from autopeft.heads import Head
from autopeft.setting import Precision, Recipe
from autopeft.spaces.presets import autopeft
from autopeft.study.executors.stacked import stackable
from autopeft.training.batches import Tokens
from autopeft.training.device import begin_device_peak, device_of_worker, device_peak_bytes
from autopeft.training.loop import StepDone, train
from autopeft.training.precision import computing, supported
from autopeft.training.random_states import seed_all
from autopeft.training.sources import Texts
from autopeft.training.stacked import StackedStep, train_stacked

RESULTS = Path(__file__).resolve().parent / "results"
TRIAL_STEPS = math.ceil(1000 / 16) * 3
SEED = 0


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        models: Layers, width and heads by name; FFNs are four times as wide.
        together: Numbers K of configurations in one batch.
        alone: Configurations that are timed one at a time.
        steps: Steps timed of each run.
        warm: Steps before them.
        precisions: Formats of the frozen products.
        texts: Texts that batches are cut from.
        matmul: Sizes of the square products that give the peak.
    """

    models: dict[str, tuple[int, int, int]]
    together: Sequence[int]
    alone: int
    steps: int
    warm: int
    precisions: Sequence[Precision]
    texts: int
    matmul: Sequence[int]


FULL = Plan(
    {"minilm-l6-384": (6, 384, 12), "bert-base": (12, 768, 12), "bert-large": (24, 1024, 16)},
    (1, 4, 16, 64),
    alone=4,
    steps=30,
    warm=8,
    precisions=("float32", "bfloat16"),
    texts=1024,
    matmul=(2048, 4096, 8192),
)
TINY = Plan({"tiny": (3, 32, 4)}, (1, 2, 4), alone=2, steps=3, warm=1, precisions=("float32",), texts=96, matmul=(128,))


def model_of(layers: int, width: int, heads: int, device: torch.device) -> PreTrainedModel:
    """Returns a frozen random BERT: what it computes costs as much as a trained one."""
    torch.manual_seed(SEED)
    config = BertConfig(
        vocab_size=1000,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=160,
    )
    model: PreTrainedModel = AutoModel.from_config(config, attn_implementation="sdpa")
    return model.eval().requires_grad_(False).to(device)


def tokens_of(count: int) -> Tokens:
    """Returns random texts of lengths like those of short news, with two classes."""
    rng = np.random.default_rng(SEED)
    lengths = np.clip(rng.lognormal(math.log(50), 0.35, size=count), 8, 128).astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    ids = torch.from_numpy(rng.integers(5, 1000, size=int(starts[-1])))
    return Tokens(ids, None, starts, torch.from_numpy(rng.integers(0, 2, size=count)), pad=0)


def configurations_of(model: PreTrainedModel, count: int) -> list[Configuration]:
    """Returns random configurations that can be trained together."""
    space, rng, found = autopeft().on(shape_in(model)), np.random.default_rng(SEED), []
    while len(found) < count:
        configuration = space.sample(rng)
        if stackable(configuration):
            found.append(configuration)
    return found


def steps_alone(
    model: PreTrainedModel, tokens: Tokens, configuration: Configuration, recipe: Recipe
) -> Iterator[object]:
    """Trains one configuration; yields after each step."""
    seed_all(SEED)
    injection = inject(model, configuration)
    try:
        head = build_head(Head(), model, 2)
        rows = np.arange(len(tokens))
        events = train(Texts(model, tokens), injection, head, recipe, rows=rows, epochs=99, seed=SEED)
        yield from (event for event in events if isinstance(event, StepDone))
    finally:
        injection.eject()


def steps_together(
    model: PreTrainedModel, tokens: Tokens, configurations: Sequence[Configuration], recipe: Recipe
) -> Iterator[object]:
    """Trains several; yields after each step."""
    made = stack(model, configurations, lambda: build_head(Head(), model, 2), lambda k: seed_all(SEED))
    try:
        rows = np.arange(len(tokens))
        events = train_stacked(Texts(model, tokens), made, recipe, rows=rows, epochs=99, seed=SEED)
        yield from (event for event in events if isinstance(event, StackedStep))
    finally:
        made.eject()


def seconds_of(steps: Iterator[object], plan: Plan, device: torch.device) -> tuple[float, int]:
    """Returns seconds per step and the peak of the device's memory in bytes."""
    begin_device_peak(device)
    for _ in range(plan.warm):
        next(steps)
    _wait(device)
    began = time.perf_counter()
    for _ in range(plan.steps):
        next(steps)
    _wait(device)
    seconds = (time.perf_counter() - began) / plan.steps
    steps.close()  # type: ignore[attr-defined]
    return seconds, device_peak_bytes(device)


def matmul_peak(device: torch.device, precision: Precision, sizes: Sequence[int]) -> float:
    """Returns the largest rate of torch's square products, in FLOP per second."""
    dtype, best = getattr(torch, precision), 0.0
    for size in sizes:
        left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        for repeat in range(4):
            _wait(device)
            began = time.perf_counter()
            for _ in range(10):
                left @ right
            _wait(device)
            if repeat:
                best = max(best, 10 * 2 * size**3 / (time.perf_counter() - began))
    return best


def flop_of(model: PreTrainedModel, tokens: Tokens, configurations: Sequence[Configuration], recipe: Recipe) -> float:
    """Returns the mean FLOP of the products of one configuration's step, counted by torch while it trains alone."""
    from torch.utils.flop_counter import FlopCounterMode

    counted = []
    for configuration in configurations:
        steps = steps_alone(model, tokens, configuration, recipe)
        with FlopCounterMode(display=False) as counter:
            for _ in range(4):
                next(steps)
        steps.close()  # type: ignore[attr-defined]
        counted.append(counter.get_total_flops() / 4)
    return float(np.mean(counted))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(plan: Plan, compiled: bool) -> Iterator[dict[str, Any]]:
    """Yields one row for each model, precision and way to train."""
    device, tokens = device_of_worker(), tokens_of(plan.texts)
    recipe = Recipe(batch_size=16)
    for name, (layers, width, heads) in plan.models.items():
        model = model_of(layers, width, heads, device)
        configurations = configurations_of(model, max(plan.together))
        flop = flop_of(model, tokens, configurations[: plan.alone], recipe)
        for precision in plan.precisions:
            if not supported(device) and precision == "bfloat16":
                continue
            peak = matmul_peak(device, precision, plan.matmul)
            with computing(model, precision):
                runs = _runs(model, tokens, configurations, replace(recipe, precision=precision), plan)
                if compiled:
                    for layer in model.encoder.layer:
                        layer.compile(dynamic=True)
                alone = 0.0
                for together, run in runs:
                    row = {"id": f"{name}-{precision}-{together}" + ("-compiled" if compiled else ""), "model": name}
                    row |= {"precision": precision, "together": together, "compiled": compiled}
                    try:
                        seconds, memory = run()
                    except torch.cuda.OutOfMemoryError:
                        yield {**row, "failed": "out of memory"}
                        continue
                    many = max(1, together)
                    rate = 3600 * many / (seconds * TRIAL_STEPS)
                    alone = alone or rate
                    yield {
                        **row,
                        "seconds_per_step": seconds,
                        "configurations_per_hour": rate,
                        "against_alone": rate / alone,
                        "share_of_peak": many * flop / seconds / peak,
                        "matmul_peak": peak,
                        "peak_memory": memory,
                    }


def _runs(
    model: PreTrainedModel, tokens: Tokens, configurations: Sequence[Configuration], recipe: Recipe, plan: Plan
) -> Iterator[tuple[int, Callable[[], tuple[float, int]]]]:
    """Yields how many are trained together, 0 for the loop of one at a time, and what measures it."""
    device = model.device

    def alone() -> tuple[float, int]:
        chosen = configurations[: plan.alone]
        found = [seconds_of(steps_alone(model, tokens, c, recipe), plan, device) for c in chosen]
        return float(np.mean([seconds for seconds, _ in found])), max(memory for _, memory in found)

    def beside(count: int) -> tuple[float, int]:
        # As many batches as it takes for all K to meet the same configurations as the single ones do.
        groups = [configurations[i : i + count] for i in range(0, max(count, plan.alone), count)]
        found = [seconds_of(steps_together(model, tokens, group, recipe), plan, device) for group in groups]
        return float(np.mean([seconds for seconds, _ in found])), max(memory for _, memory in found)

    yield 0, alone
    for count in plan.together:
        yield count, lambda count=count: beside(count)


def machine() -> dict[str, Any]:
    """Returns what is said of the machine: no name, no path."""
    if not torch.cuda.is_available():
        return {"device": "cpu", "architecture": platform.machine(), "python": platform.python_version()}
    found = torch.cuda.get_device_properties(0)
    return {"device": found.name, "memory": found.total_memory, "python": platform.python_version()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a minute, on any device")
    parser.add_argument("--compile", action="store_true", help="also with layers through torch.compile")
    parser.add_argument("--out", type=Path, default=None, help="default: results/gpu.json; none for --tiny")
    asked = parser.parse_args()
    if not asked.tiny and not torch.cuda.is_available():
        print("no CUDA device is visible: nothing is measured (--tiny tries the code here)", file=sys.stderr)
        return 2
    plan, rows = TINY if asked.tiny else FULL, []
    for compiled in (False, True) if asked.compile else (False,):
        for row in measure(plan, compiled):
            rows.append(row)
            print(json.dumps(row), flush=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    found = {
        "command": "python -m benchmarks.gpu.run" + "".join(f" --{n}" for n in ("tiny", "compile") if vars(asked)[n]),
        "commit": commit,
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "machine": machine(),
        "rows": rows,
    }
    target = asked.out or (None if asked.tiny else RESULTS / "gpu.json")
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
