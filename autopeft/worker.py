"""What a worker runs: one job in, one outcome out. The backbone and the data are loaded once per process."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from autopeft import tasks
from autopeft.adapters import Adapter, build_head
from autopeft.backbones import Injection, inject, load_backbone, load_tokenizer
from autopeft.errors import FailureKind, TrainingError
from autopeft.heads.layer import HeadLayer
from autopeft.job import SILENT, Job, Outcome, Report, predictions_digest
from autopeft.setting import Setting
from autopeft.tasks import Task
from autopeft.training import cost
from autopeft.training.batches import Tokens, tokenise
from autopeft.training.loop import predict, train
from autopeft.training.probe import features, fit_probe


@dataclass(frozen=True)
class Loaded:
    """What stays in a worker between jobs of one study.

    Attributes:
        setting: The study's setting.
        task: The loaded task.
        model: The frozen backbone.
        tokens: Tokenised splits by name; filled as they are asked for.
        tokenizer: The backbone's tokenizer.
    """

    setting: Setting
    task: Task
    model: PreTrainedModel
    tokenizer: Any
    tokens: dict[str, Tokens]

    def split(self, name: str) -> Tokens:
        """Returns a tokenised split; tokenises it on first use."""
        if name not in self.tokens:
            examples = self.task.splits[name]
            self.tokens[name] = tokenise(self.tokenizer, examples, self.setting.recipe.max_length)
        return self.tokens[name]


_LOADED: dict[str, Loaded] = {}


def key_of(setting: Setting) -> str:
    """Returns the text under which a setting's backbone and data are kept: equal for equal settings."""
    return json.dumps(setting.to_dict(), sort_keys=True)


def load_setting(setting: Setting) -> Loaded:
    """Returns backbone, tokenizer and data of a setting, loaded once per process.

    Raises:
        TrainingError: The data is no longer what the study was made with.
    """
    key = key_of(setting)
    if key not in _LOADED:
        task = tasks.load_source(setting.source, rows=setting.rows)
        if task.fingerprint != setting.task["fingerprint"]:
            raise TrainingError(
                "the data changed since the study was made",
                kind="refused",
                where=setting.source.train,
                cure="restore the files, or start another study",
            )
        _LOADED.clear()
        _LOADED[key] = Loaded(setting, task, load_backbone(setting.backbone), load_tokenizer(setting.backbone), {})
    return _LOADED[key]


def evaluate(job: Job, report: Report = SILENT) -> Outcome:  # noqa: ARG001 - told of progress from here on
    """Trains one configuration and scores it.

    Everything random comes from `job.seed`: the generator is seeded before any weight is made. The quality is the
    metric after the last step, on the first of the job's splits. The backbone is left as it was found.

    Args:
        job: What to train, on what, at which budget.
        report: Told of progress and checkpoints; may ask to stop.

    Raises:
        TrainingError: The loss or the outputs became NaN or infinite, or the data changed.
        InputError: The configuration does not fit the backbone.

    Example:
        >>> evaluate(job).objectives["quality"]  # doctest: +SKIP
        0.874
    """
    loaded = load_setting(job.setting)
    recipe = job.setting.recipe
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(job.seed)
    measured = cost.start()
    injection = inject(loaded.model, job.configuration)
    try:
        head = build_head(job.setting.head, loaded.model, loaded.task.outputs)
        curve = _fit(job, loaded, injection, head)
        spent = measured()
        outputs = {name: _finite(predict(loaded.model, head, loaded.split(name)), name) for name in job.splits}
        scores = {name: score(loaded.task, name, found) for name, found in outputs.items()}
        adapter = _adapter(job, loaded.task, injection, head, scores)
    finally:
        _LOADED.clear()  # a backbone that does not come back clean is not used again
        injection.eject()
        _LOADED[key_of(job.setting)] = loaded
    total = measured()
    counts = adapter.provenance["counts"]
    objectives = {
        "quality": scores[job.splits[0]],
        "parameters": float(counts["stored"]),
        "seconds": spent.seconds,
        "memory": float(total.peak_bytes),
    }
    detail = {
        "curve": curve,
        "scores": scores,
        "counts": counts,
        "examples": len(_rows(job, loaded.split("train"))),
        "predictions": {name: predictions_digest(_predicted(loaded.task, found)) for name, found in outputs.items()},
    }
    files = adapter.files() if job.keep else {}
    del adapter, injection, head
    gc.collect()
    return Outcome(objectives, total, detail, files)


def score(task: Task, split: str, outputs: NDArray[np.float32]) -> float:
    """Returns the task's metric on one split.

    Args:
        task: The task.
        split: Name of the split.
        outputs: Outputs of the head, shape (n, outputs).
    """
    predictions = _predicted(task, outputs)
    return float(tasks.METRICS[task.metric].function(task.splits[split].targets, predictions))


def _finite(outputs: NDArray[np.float32], split: str) -> NDArray[np.float32]:
    # The loss is checked before each step; only the outputs show what the last step did.
    if np.isfinite(outputs).all():
        return outputs
    kind: FailureKind = "nan" if np.isnan(outputs).any() else "infinite"
    raise TrainingError(f"outputs on {split} are not finite after training", kind=kind, cure="lower the learning rate")


def _predicted(task: Task, outputs: NDArray[np.float32]) -> NDArray[Any]:
    """Returns class indices, or numbers, shape (n,)."""
    return outputs.argmax(axis=1) if task.labels else outputs[:, 0].astype(np.float64)


def _rows(job: Job, tokens: Tokens) -> NDArray[np.int64]:
    """Returns the training rows of the job's budget: all, or a subset drawn with its seed."""
    if not 0 < job.budget.examples < len(tokens):
        return np.arange(len(tokens))
    return np.sort(np.random.default_rng([job.seed, 0]).permutation(len(tokens))[: job.budget.examples])


def _fit(job: Job, loaded: Loaded, injection: Injection, head: HeadLayer) -> list[float]:
    tokens = loaded.split("train")
    rows = _rows(job, tokens)
    mean, deviation = (0.0, 1.0) if loaded.task.labels else _moments(tokens.targets[rows])
    if not loaded.task.labels:
        # Rates and clipping suit targets of unit scale; the head takes mean and deviation back at the end.
        tokens = replace(tokens, targets=(tokens.targets - mean) / deviation)
    curve = _epochs(job, loaded, injection, head, tokens, rows)
    with torch.no_grad():
        head.output.weight.mul_(deviation)
        head.output.bias.mul_(deviation).add_(mean)
    return curve


def _moments(targets: torch.Tensor) -> tuple[float, float]:
    deviation = float(targets.double().std(correction=0))
    return float(targets.double().mean()), deviation or 1.0


def _epochs(
    job: Job, loaded: Loaded, injection: Injection, head: HeadLayer, tokens: Tokens, rows: NDArray[np.int64]
) -> list[float]:
    if not job.configuration.placements and head.dense is None:
        chosen = torch.from_numpy(rows)
        return [fit_probe(head, features(loaded.model, head, tokens)[chosen], tokens.targets[chosen], job.seed)]
    epochs = train(
        loaded.model,
        injection,
        head,
        tokens,
        job.setting.recipe,
        rows=rows,
        epochs=job.budget.epochs,
        seed=job.seed,
    )
    return [epoch.loss for epoch in epochs]


def _adapter(job: Job, task: Task, injection: Injection, head: HeadLayer, scores: Mapping[str, float]) -> Adapter:
    backbone = job.setting.backbone
    count = job.configuration.count(backbone.shape)
    provenance = {
        "metric": task.metric,
        "data": {"train": PurePath(job.setting.source.train).name, "sizes": dict(job.setting.task["sizes"])},
        "scores": dict(scores),
        "counts": {**vars(count), "head": job.setting.head.count(backbone.shape.width, task.outputs)},
        "trial": job.number,
        "seed": job.seed,
        "budget": vars(job.budget).copy(),
        "recipe": vars(job.setting.recipe).copy(),
        "task_fingerprint": task.fingerprint,
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }
    return Adapter(
        configuration=job.configuration.stored_form(),
        head=job.setting.head,
        labels=task.labels,
        reference=backbone.reference,
        revision=backbone.revision,
        sha256=backbone.sha256,
        max_length=job.setting.recipe.max_length,
        pairs=job.setting.source.text_pair is not None,
        tensors={**injection.stored_state(), **{f"head.{k}": v.detach() for k, v in head.state_dict().items()}},
        provenance=provenance,
    )
