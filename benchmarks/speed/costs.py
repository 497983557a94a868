"""What many trials cost, from a few that were timed; and what a search loses by training only a few of them fully."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from autopeft.configuration import Configuration
from autopeft.pareto import hypervolume
from autopeft.shapes import BackboneShape
from benchmarks.speed.flops import passes

Array = NDArray[np.float64]


def features(configuration: Configuration, shape: BackboneShape) -> tuple[float, float, float]:
    """Returns what a trial's cost is linear in: one, operations per token forth and back, and inserted modules.

    Example:
        >>> features(configuration, shape)  # doctest: +SKIP
        (1.0, 35651584.0, 6.0)
    """
    one = passes(configuration, shape, 0)
    return 1.0, one.forward.tokens + one.backward.tokens, float(len(configuration.placements))


def lowest(configuration: Configuration, shape: BackboneShape) -> int:
    """Returns the lowest layer with a module; the number of layers where there is none."""
    (layers,) = shape.stacks.values()
    return min((p.slot.index for p in configuration.placements), default=layers)


def stratified(configurations: Sequence[Configuration], shape: BackboneShape, count: int) -> list[Configuration]:
    """Returns the middle ones of `count` equal groups, in order of lowest layer and then of operations.

    Args:
        configurations: Any.
        shape: Shape of the backbone.
        count: How many to choose; at most as many as there are.
    """
    ordered = sorted(configurations, key=lambda c: (lowest(c, shape), features(c, shape)[1], c.id))
    return [ordered[int((i + 0.5) * len(ordered) / count)] for i in range(count)]


@dataclass(frozen=True)
class CostModel:
    """CPU seconds as a linear function of `features`, no weight below 0.

    Attributes:
        weights: One per feature.
        scales: What each feature is divided by.
    """

    weights: Array
    scales: Array

    @staticmethod
    def fit(rows: Sequence[Sequence[float]], seconds: Sequence[float]) -> CostModel:
        """Returns the model of least relative errors.

        Args:
            rows: Features of the timed trials, shape (n, k).
            seconds: Their CPU seconds, shape (n,), above 0.
        """
        matrix, target = np.asarray(rows, dtype=float), np.asarray(seconds, dtype=float)
        scales = np.maximum(np.abs(matrix).max(axis=0), 1e-300)
        weights, _ = nnls(matrix / scales / target[:, None], np.ones(len(target)))
        return CostModel(weights, scales)

    def __call__(self, rows: Sequence[Sequence[float]]) -> Array:
        """Returns the seconds of trials with these features, shape (n,)."""
        seconds: Array = (np.asarray(rows, dtype=float) / self.scales) @ self.weights
        return seconds


def left_out_errors(rows: Sequence[Sequence[float]], seconds: Sequence[float]) -> Array:
    """Returns the relative error of each trial under the model of all others, shape (n,)."""
    errors = []
    for i in range(len(rows)):
        model = CostModel.fit([*rows[:i], *rows[i + 1 :]], [*seconds[:i], *seconds[i + 1 :]])
        errors.append(model([rows[i]])[0] / seconds[i] - 1.0)
    return np.array(errors)


@dataclass(frozen=True)
class Regret:
    """What a search loses against training all its configurations fully.

    Attributes:
        best: Best quality of all minus best found.
        mean: The same among configurations of at most P parameters, over the P in `budgets`.
        hypervolume: Share of the hypervolume of all that the found ones have.
        budgets: Numbers of parameters.
    """

    best: float
    mean: float
    hypervolume: float
    budgets: tuple[float, ...]


def regret(quality: Sequence[float], parameters: Sequence[float], found: Sequence[int], budgets: int = 16) -> Regret:
    """Compares a search's fully trained configurations with all of them.

    The budgets are spaced evenly in log parameters between the smallest configuration of the search's front and the
    largest of all. The hypervolume is over quality and log10 parameters, from the corner (lowest quality of all,
    largest number of parameters).

    Args:
        quality: Quality of each configuration, fully trained, shape (n,).
        parameters: Stored parameters of each, shape (n,).
        found: Indices of those the search trained fully.
        budgets: How many parameter budgets.

    Example:
        >>> regret([0.9, 0.8, 0.7], [100, 10, 10], [1, 2]).best
        0.1
    """
    scores, sizes, chosen = np.asarray(quality, float), np.asarray(parameters, float), np.asarray(found, int)
    grid = np.geomspace(sizes[chosen].min(), sizes.max(), budgets)
    losses = [
        scores[sizes <= most * (1 + 1e-9)].max() - scores[chosen][sizes[chosen] <= most * (1 + 1e-9)].max()
        for most in grid
    ]
    points = np.column_stack([scores, -np.log10(sizes)])
    corner = points.min(axis=0)
    whole = hypervolume(points, corner)
    share = hypervolume(points[chosen], corner) / whole if whole > 0 else 1.0
    best = float(scores.max() - scores[chosen].max())
    return Regret(round(best, 12), float(np.mean(losses)), float(share), tuple(grid.tolist()))
