"""Expected hypervolume improvement where one objective is modelled and the other known exactly. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import scipy  # its parts are loaded when they are first used, so that verbs that suggest nothing start fast
from numpy.typing import NDArray

Array = NDArray[np.float64]
_DENSITY = 1.0 / np.sqrt(2.0 * np.pi)


class Predictor(Protocol):
    """What the acquisition asks of a model: `gp.Paths`, or anything with the same method."""

    def predict(self, x: Array) -> tuple[Array, Array]:
        """Returns the means of s functions, shape (m, s), and a shared standard deviation, shape (m,)."""


@dataclass(frozen=True)
class Staircase:
    """The best quality reached at every cost, as a step function.

    Attributes:
        edges: Ascending costs where steps begin, shape (k + 1,); the last is the reference cost.
        heights: Best quality on each step, shape (k,); at least the reference quality.
    """

    edges: Array
    heights: Array

    @staticmethod
    def of(quality: Array, cost: Array, reference: tuple[float, float]) -> Staircase:
        """Returns the staircase of points with `quality` (larger better) and `cost` (smaller better), shapes (n,)."""
        floor, limit = reference
        inside = (quality > floor) & (cost < limit)
        order = np.lexsort((-quality[inside], cost[inside]))
        climbing, steps = quality[inside][order], cost[inside][order]
        rises = climbing > np.maximum.accumulate(np.concatenate([[floor], climbing]))[:-1]
        heights = np.concatenate([[floor], climbing[rises]])
        edges = np.concatenate([[-np.inf], steps[rises], [limit]])
        return Staircase(edges, heights)


def expected_improvement(staircase: Staircase, mean: Array, deviation: Array, cost: Array) -> Array:
    """Closed-form expected hypervolume improvement for two objectives, the second known.

    A point of quality q and cost c adds the area between q and the staircase h over costs from c to the reference C:
    the integral over t in [c, C] of max(0, q - h(t)). With q ~ N(mean, deviation^2) each step contributes its length
    times the ordinary expected improvement over its height.

    Args:
        staircase: The front so far.
        mean: Means, shape (m,).
        deviation: Standard deviations, above 0, shape (m,).
        cost: Costs, shape (m,).

    Returns:
        Shape (m,). With one step over [0, 1] and costs 0 it is the expected improvement.
    """
    lengths = np.maximum(
        np.minimum(staircase.edges[1:], staircase.edges[-1]) - np.maximum(staircase.edges[:-1], cost[:, None]), 0.0
    )
    z = (mean[:, None] - staircase.heights) / deviation[:, None]
    gain = z * scipy.special.ndtr(z) + _DENSITY * np.exp(-0.5 * z * z)
    return np.asarray(deviation * (lengths * gain).sum(axis=1))


def noisy_improvement(model: Predictor, staircases: list[Staircase], x: Array, cost: Array, chunk: int = 4096) -> Array:
    """Averages the improvement over drawn functions, each with the front it gives (arXiv 1706.07094, eq. 8-9).

    The draws are exact values at the observed and the pending points, so noise and pending trials need no other care.

    Args:
        model: The drawn functions.
        staircases: The front of each of the s functions.
        x: Inputs, shape (m, p).
        cost: Known costs, shape (m,).
        chunk: Inputs handled at once, which bounds the memory.

    Returns:
        Shape (m,).
    """
    total = np.zeros(len(x))
    for start in range(0, len(x), chunk):
        part = slice(start, start + chunk)
        means, deviation = model.predict(x[part])
        for k, staircase in enumerate(staircases):
            total[part] += expected_improvement(staircase, means[:, k], deviation, cost[part])
    return total / len(staircases)
