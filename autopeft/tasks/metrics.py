"""Metrics of a task: plain functions of targets and predictions, in one registry. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from autopeft.errors import InputError, nearest
from autopeft.tasks.base import TaskKind

Values = NDArray[Any]


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        name: Its name in `METRICS`.
        kinds: The kinds of task it fits.
        function: (targets, predictions), both of shape (n,), to a number. Class indices for classification, numbers
            for regression.
        better: Which direction is better.
    """

    name: str
    kinds: tuple[TaskKind, ...]
    function: Callable[[Values, Values], float]
    better: Literal["higher", "lower"] = "higher"


def accuracy(targets: Values, predictions: Values) -> float:
    """Returns the share of predictions that equal their target; both of shape (n,).

    Example:
        >>> accuracy(np.array([0, 1, 1, 2]), np.array([0, 1, 0, 2]))
        0.75
    """
    return float(np.mean(targets == predictions))


def f1(targets: Values, predictions: Values) -> float:
    """Returns F1 of class 1 where only classes 0 and 1 occur, otherwise `macro_f1`; both of shape (n,).

    `tasks.load` turns "f1" into "macro_f1" for a task of three or more classes, so the definition never depends on
    which classes a split happens to hold.
    """
    if max(targets.max(initial=0), predictions.max(initial=0)) > 1:
        return macro_f1(targets, predictions)
    return _f1_of(1, targets, predictions)


def macro_f1(targets: Values, predictions: Values) -> float:
    """Returns the mean F1 over the classes that occur in the targets or the predictions; both of shape (n,)."""
    classes = np.union1d(targets, predictions)
    return float(np.mean([_f1_of(k, targets, predictions) for k in classes]))


def _f1_of(positive: int, targets: Values, predictions: Values) -> float:
    true, guessed = targets == positive, predictions == positive
    total = int(true.sum()) + int(guessed.sum())
    return 2.0 * int((true & guessed).sum()) / total if total else 0.0


def matthews(targets: Values, predictions: Values) -> float:
    """Returns the Matthews correlation, for more than two classes in Gorodkin's form; both of shape (n,).

    R_K of Gorodkin, Computational Biology and Chemistry 28 (2004), eq. 8. Constant targets or predictions give 0.
    """
    classes = np.union1d(targets, predictions)
    true = (targets[:, None] == classes).astype(np.float64)
    guessed = (predictions[:, None] == classes).astype(np.float64)
    n, t, p = float(len(targets)), true.sum(0), guessed.sum(0)
    scale = (n * n - float(t @ t)) * (n * n - float(p @ p))
    return float((n * (true * guessed).sum() - t @ p) / np.sqrt(scale)) if scale > 0 else 0.0


def pearson(targets: Values, predictions: Values) -> float:
    """Returns Pearson's linear correlation; both of shape (n,). Constant targets or predictions give 0."""
    x, y = targets.astype(np.float64), predictions.astype(np.float64)
    # Equality, not a zero variance: the mean of equal numbers can be off by one rounding.
    if len(x) == 0 or np.all(x == x[0]) or np.all(y == y[0]):
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))


def spearman(targets: Values, predictions: Values) -> float:
    """Returns Spearman's correlation of average ranks; both of shape (n,). Cost O(n log n); constants give 0."""
    if np.isnan(predictions).any() or np.isnan(targets).any():
        return float("nan")  # ranks would hide it
    return pearson(_ranks(targets), _ranks(predictions))


def _ranks(values: Values) -> NDArray[np.float64]:
    """Returns ranks from 1, tied values sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2.0)[inverse]
    return ranks


def r2(targets: Values, predictions: Values) -> float:
    """Returns 1 - (squared error / squared deviation of the targets); both of shape (n,). Constant targets give 0."""
    deviation = float(np.sum((targets - targets.mean()) ** 2))
    return 1.0 - float(np.sum((targets - predictions) ** 2)) / deviation if deviation > 0 else 0.0


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", ("classification",), accuracy),
        Metric("f1", ("classification",), f1),
        Metric("macro_f1", ("classification",), macro_f1),
        Metric("matthews", ("classification",), matthews),
        Metric("pearson", ("regression",), pearson),
        Metric("spearman", ("regression",), spearman),
        Metric("r2", ("regression",), r2),
    )
}
DEFAULT_METRIC: dict[TaskKind, str] = {"classification": "accuracy", "regression": "spearman"}


def check_name(name: str | None) -> None:
    """Refuses a metric that is not in the registry.

    Raises:
        InputError: With the nearest known name.
    """
    if name is not None and name not in METRICS:
        raise InputError(f"unknown metric {name!r}", where="task.metric", cure=nearest(name, METRICS))


def metric_for(name: str | None, kind: TaskKind, classes: int) -> str:
    """Returns the metric a task is scored by: `name`, or the default of its kind.

    Args:
        name: A name in `METRICS`, or None.
        kind: Kind of the task.
        classes: Number of classes; "f1" means "macro_f1" above two.

    Raises:
        InputError: Where the name is unknown or does not fit the kind.

    Example:
        >>> metric_for("f1", "classification", classes=3)
        'macro_f1'
    """
    check_name(name)
    chosen = name or DEFAULT_METRIC[kind]
    if kind not in METRICS[chosen].kinds:
        fitting = ", ".join(sorted(metric.name for metric in METRICS.values() if kind in metric.kinds))
        raise InputError(
            f"metric {chosen!r} does not fit a {kind} task",
            where="task.metric",
            cure=f"use one of {fitting}, or set task.kind",
        )
    return "macro_f1" if chosen == "f1" and classes > 2 else chosen
