"""The tasks of the speed benchmark: drawn once from the public data sets and laid down as files for every loop."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autopeft import tasks
from autopeft.families import locate
from autopeft.setting import Backbone, Recipe, Setting, describe_backbone
from autopeft.tasks import Task
from benchmarks.data import ROOT, dataset

FOLDER = ROOT / "runs" / "speed"
"""Where texts and studies of this benchmark lie."""
COLUMNS: Mapping[str, Mapping[str, str]] = {
    "sick": {"text": "text_a", "text_pair": "text_b", "label": "label"},
    "rte": {"text": "text_a", "text_pair": "text_b", "label": "label"},
}
"""Columns of the sets that have others than "text" and "label"."""


REVIEWS, MOST_SENTENCES = 2000, 7


def texts_of(data: str) -> Path:
    """Returns the training file of a public set, or that of "reviews", made from one.

    A review is 1 to 7 sentences of SST-2 of one label, joined: texts of 49 tokens on average, a hundredth of them cut
    at 128, whose lengths are spread so that batches of 16 drawn at random are half padding. That is the spread with
    which the targets of this benchmark were set.
    """
    if data != "reviews":
        return dataset(data) / "train.jsonl"
    target = FOLDER / "reviews.jsonl"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}")
        partial.write_text("".join(_reviews(dataset("sst2") / "train.jsonl")), encoding="utf-8")
        partial.replace(target)
    return target


def _reviews(sentences: Path) -> list[str]:
    rng = np.random.default_rng(0)
    by_label: dict[int, list[str]] = {0: [], 1: []}
    for line in sentences.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        by_label[row["label"]].append(row["text"])
    lines = []
    for number in range(REVIEWS):
        label = number % 2
        chosen = rng.choice(len(by_label[label]), size=rng.integers(1, MOST_SENTENCES + 1), replace=False)
        text = " . ".join(by_label[label][i] for i in chosen)
        lines.append(json.dumps({"text": text, "label": label}) + "\n")
    return lines


@dataclass(frozen=True)
class Workload:
    """One task at one size.

    Attributes:
        data: Name of the public set, or "reviews" (see `texts_of`).
        train: Training texts.
        validation: Texts scored.
        epochs: Passes.
        batch_size: Texts per step.
        max_length: Tokens a text is cut to.
        seed: Draws the texts.
        backbone: Reference of the backbone.
    """

    data: str
    train: int
    validation: int
    epochs: int = 3
    batch_size: int = 16
    max_length: int = 128
    seed: int = 0
    backbone: str = "demo"

    @property
    def name(self) -> str:
        """Short name for result rows; it names all that decides the work."""
        model = "" if self.backbone == "demo" else f"-{Path(self.backbone).name}"
        size = f"{self.train}x{self.epochs}+{self.validation}"
        return f"{self.data}-{size}-b{self.batch_size}-l{self.max_length}-s{self.seed}{model}"

    def task(self) -> Task:
        """Returns the drawn task."""
        columns: Any = COLUMNS.get(self.data, {"text": "text", "label": "label"})
        return tasks.load(
            str(texts_of(self.data)),
            **columns,
            metric="accuracy",
            train_size=self.train,
            validation_size=self.validation,
            selection_size=20,
            test_size=20,
            seed=self.seed,
        )

    def recipe(self, **changes: Any) -> Recipe:
        """Returns the recipe of the lean loop, with changes."""
        fields = {"batch_size": self.batch_size, "max_length": self.max_length, "weight_decay": 0.01, **changes}
        return Recipe(**fields)

    def setting(self, **changes: Any) -> Setting:
        """Returns the setting of the lean loop; `changes` are fields of its recipe."""
        task, backbone = self.task(), self.described()
        return Setting(backbone, task.source, task.to_dict(), task.rows, recipe=self.recipe(**changes))

    def described(self) -> Backbone:
        """Returns the described backbone."""
        return describe_backbone(self.backbone)

    def files(self) -> dict[str, Any]:
        """Writes the drawn texts as JSON Lines, unless they are there, and returns what `trainer.py` reads."""
        target, task = FOLDER / self.name, self.task()
        target.mkdir(parents=True, exist_ok=True)
        for split in ("train", "validation"):
            examples = task.splits[split]
            pairs = examples.pairs or (None,) * len(examples.texts)
            rows = zip(examples.texts, pairs, examples.targets.tolist(), strict=True)
            lines = [
                json.dumps({"text": text, **({} if pair is None else {"pair": pair}), "label": label})
                for text, pair, label in rows
            ]
            (target / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return {
            "name": self.name,
            "backbone": str(locate(self.backbone)),
            "train": str(target / "train.jsonl"),
            "validation": str(target / "validation.jsonl"),
            "labels": len(task.labels),
            **{k: getattr(self, k) for k in ("epochs", "batch_size", "max_length")},
            "weight_decay": self.recipe().weight_decay,
        }


REFERENCE = Workload("reviews", 1000, 500)
"""1,000 texts of 49 tokens on average, at most 128, 3 epochs, 500 scored."""

NEWS = Workload("agnews", 1000, 500)
"""The same size, texts of 54 tokens of which nearly all are alike in length: batches by length save less there."""

SIXTEEN = Workload("reviews", 192, 96)
"""A fifth of it, for many configurations."""

SEARCHED = ("trec", "sst2", "sick")
"""The tasks of the whole search; the first has the shortest texts."""


def searched(data: str, seed: int, train: int = 400, validation: int = 400) -> Workload:
    """Returns a task of the whole search."""
    return Workload(data, train, validation, seed=seed, max_length=64)
