"""What a worker runs: one job in, one outcome out. The backbone and the data are loaded once per process."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import PurePath
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from autopeft import tasks
from autopeft.adapters import Adapter, build_head
from autopeft.backbones import Injection, inject, load_backbone, load_tokenizer, runs_remote_code
from autopeft.errors import FailureKind, StudyError, TrainingError
from autopeft.heads.layer import HeadLayer
from autopeft.job import SILENT, Job, JobStopped, Outcome, Report, predictions_digest
from autopeft.setting import Setting
from autopeft.tasks import Task
from autopeft.training.batches import Tokens, tokenise
from autopeft.training.checkpoint import identity_of, pack, unpack
from autopeft.training.cost import Meter
from autopeft.training.loop import StepDone, predict, train
from autopeft.training.probe import features, fit_probe
from autopeft.training.random_states import seed_all
from autopeft.training.schedule import Schedule
from autopeft.training.sources import Texts
from autopeft.training.state import State, require_fit, trained_parameters
from autopeft.untrusted import visible


@dataclass(frozen=True)
class Loaded:
    """What stays in a worker between jobs of one study.

    Attributes:
        setting: The study's setting.
        task: The loaded task.
        model: The frozen backbone.
        tokens: Tokenised splits by name; filled as they are asked for.
        tokenizer: The backbone's tokenizer.
        remote_code: Whether code that came with the backbone is in use.
    """

    setting: Setting
    task: Task
    model: PreTrainedModel
    tokenizer: Any
    tokens: dict[str, Tokens]
    remote_code: bool

    def split(self, name: str) -> Tokens:
        """Returns a tokenised split; tokenises it on first use."""
        if name not in self.tokens:
            examples = self.task.splits[name]
            self.tokens[name] = tokenise(self.tokenizer, examples, self.setting.recipe.max_length)
        return self.tokens[name]


_LOADED: dict[str, Loaded] = {}


def key_of(setting: Setting, trust_remote_code: bool = False) -> str:
    """Returns the text under which a setting's backbone and data are kept: equal for equal settings."""
    return json.dumps([setting.to_dict(), trust_remote_code], sort_keys=True)


def load_setting(setting: Setting, *, trust_remote_code: bool = False) -> Loaded:
    """Returns backbone, tokenizer and data of a setting, loaded once per process.

    Args:
        setting: What to load.
        trust_remote_code: Whether code that comes with the backbone may run.

    Raises:
        TrainingError: The data is no longer what the study was made with.
    """
    key = key_of(setting, trust_remote_code)
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
        model = load_backbone(setting.backbone, trust_remote_code=trust_remote_code)
        _LOADED[key] = Loaded(setting, task, model, load_tokenizer(setting.backbone), {}, runs_remote_code(model))
    return _LOADED[key]


def evaluate(job: Job, report: Report = SILENT) -> Outcome:
    """Trains one configuration and scores it.

    Everything random comes from `job.seed`: all generators are seeded before any weight is made. The quality is the
    metric after the last step, on the first of the job's splits. The backbone is left as it was found.

    The result is the same, bit for bit, whether the job goes on from a checkpoint or not. A checkpoint that cannot be
    used is told to the report, and the job begins anew. Cost and seconds are those of the steps that led to the result,
    over all attempts; making checkpoints is not counted.

    Args:
        job: What to train, on what, at which budget.
        report: Told of progress; given a checkpoint every `job.checkpoint_seconds` of training, and after the last step
            if training took that long. Heard between two steps; scoring and the frozen probe are brought to their end.

    Raises:
        JobStopped: The report asked to stop; it has the checkpoint.
        TrainingError: The loss or the outputs became NaN or infinite, or the data changed.
        InputError: The configuration does not fit the backbone.

    Example:
        >>> evaluate(job).objectives["quality"]  # doctest: +SKIP
        0.874
    """
    loaded = load_setting(job.setting, trust_remote_code=job.trust_remote_code)
    torch.set_num_threads(job.setting.recipe.threads)
    seed_all(job.seed)
    meter = Meter()
    injection = inject(loaded.model, job.configuration)
    try:
        head = build_head(job.setting.head, loaded.model, loaded.task.outputs)
        curve = _fit(job, loaded, injection, head, _Course(job, report, meter))
        spent = meter.read()
        report.progress("scoring")
        outputs = {name: _finite(predict(Texts(loaded.model, loaded.split(name)), head), name) for name in job.splits}
        scores = {name: score(loaded.task, name, found) for name, found in outputs.items()}
        adapter = _adapter(job, loaded, injection, head, scores)
    finally:
        _LOADED.clear()  # a backbone that does not come back clean is not used again
        injection.eject()
        _LOADED[key_of(job.setting, job.trust_remote_code)] = loaded
    total = meter.read()
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


@final
class _Course:
    """The course of one job's training: what its report is told, when a checkpoint is due, what all of it has cost."""

    def __init__(self, job: Job, report: Report, meter: Meter) -> None:
        self.report = report
        self._job, self._meter = job, meter
        self._told = float("-inf")
        self._began = self._kept = time.monotonic()

    @cached_property
    def _identity(self) -> dict[str, Any]:
        return identity_of(self._job)

    def begin(self, injection: Injection, head: HeadLayer, schedule: Schedule) -> State | None:
        """Returns where to go on from, or None where there is no checkpoint that can be used."""
        if not self._job.checkpoint:
            return None
        try:
            state, spent = unpack(self._job.checkpoint, self._identity)
            require_fit(state, trained_parameters(injection, head), schedule)
        except StudyError as error:
            self.report.progress(visible(f"begins anew, the checkpoint cannot be used: {error}".splitlines()[0]))
            return None
        self._meter.add(spent)
        self.report.progress(f"goes on after step {state.step}/{schedule.total}")
        return state

    def follow(self, event: StepDone, schedule: Schedule) -> None:
        """Tells of a step, about once a second, and keeps the state where that is due or the job has to stop."""
        now = time.monotonic()
        if now - self._told >= 1.0:
            self._told = now
            self.report.progress(f"epoch {event.epoch}/{schedule.epochs}, step {event.step}/{schedule.total}")
        stopping = self.report.stopping
        since = self._began if event.step == schedule.total else self._kept
        if stopping or now - since >= self._job.checkpoint_seconds:
            with self._meter.stopped() as spent:
                self.report.checkpoint(pack(event.state(), self._identity, spent))
            self._kept = time.monotonic()
        if stopping:
            raise JobStopped


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


def _fit(job: Job, loaded: Loaded, injection: Injection, head: HeadLayer, course: _Course) -> list[float]:
    tokens = loaded.split("train")
    rows = _rows(job, tokens)
    mean, deviation = (0.0, 1.0) if loaded.task.labels else _moments(tokens.targets[rows])
    if not loaded.task.labels:
        # Rates and clipping suit targets of unit scale; the head takes mean and deviation back at the end.
        tokens = replace(tokens, targets=(tokens.targets - mean) / deviation)
    if not job.configuration.placements and head.dense is None:
        course.report.progress("fitting the frozen probe")
        chosen = torch.from_numpy(rows)
        found = features(Texts(loaded.model, tokens), head)
        curve = [fit_probe(head, found[chosen], tokens.targets[chosen], job.seed)]
    else:
        curve = _epochs(job, loaded, injection, head, tokens, rows, course)
    with torch.no_grad():
        head.output.weight.mul_(deviation)
        head.output.bias.mul_(deviation).add_(mean)
    return curve


def _moments(targets: torch.Tensor) -> tuple[float, float]:
    deviation = float(targets.double().std(correction=0))
    return float(targets.double().mean()), deviation or 1.0


def _epochs(
    job: Job,
    loaded: Loaded,
    injection: Injection,
    head: HeadLayer,
    tokens: Tokens,
    rows: NDArray[np.int64],
    course: _Course,
) -> list[float]:
    recipe, epochs = job.setting.recipe, job.budget.epochs
    schedule = Schedule.of(len(rows), epochs, recipe)
    state = course.begin(injection, head, schedule)
    curve = list(state.curve) if state is not None else []
    for event in train(
        Texts(loaded.model, tokens), injection, head, recipe, rows=rows, epochs=epochs, seed=job.seed, state=state
    ):
        if isinstance(event, StepDone):
            course.follow(event, schedule)
        else:
            curve.append(event.loss)
    return curve


def _adapter(job: Job, loaded: Loaded, injection: Injection, head: HeadLayer, scores: Mapping[str, float]) -> Adapter:
    backbone, task = job.setting.backbone, loaded.task
    count = job.configuration.count(backbone.shape)
    provenance = {
        "metric": task.metric,
        "data": {"train": PurePath(job.setting.source.train).name, "sizes": dict(job.setting.task["sizes"])},
        "scores": dict(scores),
        "counts": {**vars(count), "head": job.setting.head.count(backbone.shape.width, task.outputs)},
        "trial": job.number,
        "seed": job.seed,
        "budget": job.budget.to_dict(),
        "recipe": job.setting.recipe.to_dict(),
        "task_fingerprint": task.fingerprint,
        "versions": {name: version(name) for name in ("torch", "transformers")},
        **({"remote_code": True} if loaded.remote_code else {}),
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
