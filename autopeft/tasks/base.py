"""A task as a value: where its data lies, what its columns mean, its splits and its metric. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

TaskKind = Literal["classification", "regression"]
SplitName = Literal["train", "validation", "selection", "test"]


@dataclass(frozen=True)
class TaskSource:
    """Where the data lies and what its columns mean; JSON, stored with a study so a worker can load it again.

    Attributes:
        train: File (.csv, .tsv, .jsonl, .ndjson, .json, .parquet), a Hugging Face data set name ("hf:NAME" or
            "hf:NAME/CONFIG"), or "demo" for the built-in set.
        validation: File of the split the search sees, or None to draw it from `train`.
        selection: File of the split that compares the chosen few, or None to draw it from `train`.
        test: File of the split opened once at the end, or None to draw it from `train`.
        text: Column of the text.
        text_pair: Column of the second text of a pair, or None for single sentences.
        label: Column of the label (classes) or of the number (regression).
        kind: "classification", "regression", or "auto": regression where every label is a number and either one is
            not whole, or there are more than 20 different ones and fewer than 10 rows for each on average.
        metric: Name of the metric, or None: accuracy for classification, Spearman for regression.
        train_size: Number of training examples kept (None: all that the other splits leave).
        validation_size: Size drawn where the source has no such split: a number of examples, or a share below 1.
        selection_size: The same for the selection split.
        test_size: The same for the test split.
        seed: Seed of the one stratified draw.
    """

    train: str
    text: str
    label: str
    text_pair: str | None = None
    validation: str | None = None
    selection: str | None = None
    test: str | None = None
    kind: Literal["auto", "classification", "regression"] = "auto"
    metric: str | None = None
    train_size: int | None = None
    validation_size: float = 0.2
    selection_size: float = 0.1
    test_size: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class Examples:
    """Examples of one split.

    Attributes:
        texts: The texts.
        pairs: Second texts, same length, or None for single sentences.
        targets: Shape (n,): class indices (int64) or numbers (float64).
    """

    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None
    targets: NDArray[np.int64] | NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: NDArray[np.int64]) -> Examples:
        """Returns the examples at `rows`, in that order."""
        pairs = tuple(self.pairs[i] for i in rows) if self.pairs is not None else None
        return Examples(tuple(self.texts[i] for i in rows), pairs, self.targets[rows])


@dataclass(frozen=True)
class Task:
    """A loaded task.

    Attributes:
        source: Where it came from.
        kind: "classification" or "regression".
        labels: Class names in the order of their indices; empty for regression.
        metric: Name of the metric in `tasks.metrics.METRICS`.
        splits: Examples of "train", "validation", "selection" and "test". Score "test" through
            `Study.open_test` only, which records it.
        rows: For each split, the row numbers in the file it was drawn from: what is stored with a study.
        fingerprint: SHA-256 over labels, texts and targets of all splits.
        notes: What loading did that a user should know, a sentence each: duplicates dropped, how labels were read.
    """

    source: TaskSource
    kind: TaskKind
    labels: tuple[str, ...]
    metric: str
    splits: Mapping[str, Examples]
    rows: Mapping[str, tuple[int, ...]]
    fingerprint: str
    notes: tuple[str, ...] = ()

    @property
    def outputs(self) -> int:
        """Width of the head's output: the number of classes, or 1."""
        return len(self.labels) or 1

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON-able identity of the task (not its data): source, labels, metric, sizes, fingerprint."""
        return {
            "source": vars(self.source).copy(),
            "kind": self.kind,
            "labels": list(self.labels),
            "metric": self.metric,
            "sizes": {name: len(examples) for name, examples in self.splits.items()},
            "fingerprint": self.fingerprint,
        }
