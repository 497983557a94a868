"""What a worker gets and what it gives back: plain data, so any executor can carry it. Torch-free."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autopeft.configuration import Configuration
from autopeft.setting import Setting
from autopeft.trial import Budget, Cost


@dataclass(frozen=True)
class Job:
    """One training run.

    Attributes:
        number: Number of the trial.
        configuration: What to train.
        budget: At which fidelity.
        seed: Seeds every random number of the run: fresh weights, the subset and the order of the data.
        setting: Backbone, task, head and recipe.
        splits: Splits to score after the last step; the first one's metric is the quality.
        keep: Whether the trained adapter comes back as files.
    """

    number: int
    configuration: Configuration
    budget: Budget
    seed: int
    setting: Setting
    splits: tuple[str, ...] = ("validation",)
    keep: bool = True


@dataclass(frozen=True)
class Outcome:
    """What came of a job.

    Attributes:
        objectives: "quality", "parameters" (stored), "seconds", "memory" and so on.
        cost: What it used.
        detail: Further JSON: "curve" (mean training loss per epoch), "scores" (metric per split), "counts",
            "predictions" (`predictions_digest` per split).
        files: Name to content of what belongs in the trial's folder (the adapter); only the driver writes.
    """

    objectives: Mapping[str, float]
    cost: Cost
    detail: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)


def predictions_digest(predictions: NDArray[Any]) -> str:
    """Returns the SHA-256 of predictions in order, shape (n,): class indices as int64, numbers as float32.

    A process that loads the adapter and predicts the same split can show with it that nothing changed.

    Example:
        >>> predictions_digest(np.array([0, 2, 1]))[:8]
        '0f004f11'
    """
    kind = np.float32 if predictions.dtype.kind == "f" else np.int64
    return hashlib.sha256(np.ascontiguousarray(predictions, dtype=kind).tobytes()).hexdigest()
