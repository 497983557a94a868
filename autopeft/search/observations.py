"""What a searcher can learn from a history: visited points, qualities, known costs, the reference point. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autopeft.errors import InputError
from autopeft.pareto import nondominated, orient
from autopeft.spaces.base import Points, Space, as_point
from autopeft.trial import Objective, Problem, StoredParameters, Trial, TrialStatus

Array = NDArray[np.float64]

UNTRAINABLE = frozenset({"nan", "infinite", "out_of_memory", "timed_out"})
"""Failures that the configuration itself causes: a model of the quality learns from them as from the worst seen."""


@dataclass(frozen=True)
class Observations:
    """Measured qualities, one row per distinct point of the space, trained at the problem's full budget.

    Attributes:
        points: Shape (n, d).
        quality: Mean measured quality, oriented so that larger is better, shape (n,).
        repeats: Number of trials averaged, shape (n,).
    """

    points: Points
    quality: Array
    repeats: Array

    def __len__(self) -> int:
        return len(self.points)


def observe(problem: Problem, history: Sequence[Trial]) -> Observations:
    """Collects the measured qualities of a history.

    Repeats of one configuration are averaged. A trial that failed in a way its configuration caused (`UNTRAINABLE`)
    counts as the worst quality seen; other failures, other budgets and configurations outside the space are left out.
    """
    first, space = problem.objectives[0], problem.space
    sums: dict[tuple[int, ...], list[float]] = {}
    ruined: list[tuple[int, ...]] = []
    for trial in history:
        point = space.point(trial.configuration) if trial.proposal.budget == problem.budget else None
        if point is None:
            continue
        value = trial.objectives.get(first.name, math.nan)
        if trial.status is TrialStatus.COMPLETED and math.isfinite(value):
            sums.setdefault(point, []).append(float(orient([value], [first])[0]))
        elif trial.failure is not None and trial.failure.kind in UNTRAINABLE:
            ruined.append(point)
    if sums:
        worst = min(v for values in sums.values() for v in values)
        for point in ruined:
            sums.setdefault(point, [worst])
    return Observations(
        np.array(list(sums), dtype=np.int64).reshape(-1, len(space.dimensions)),
        np.array([np.mean(v) for v in sums.values()], dtype=float),
        np.array([len(v) for v in sums.values()], dtype=float),
    )


def visited(space: Space, trials: Sequence[Trial]) -> set[bytes]:
    """Returns the keys (see `keys`) of all points some trial has tried or is trying, whatever came of it."""
    points = [p for t in trials if (p := space.point(t.configuration)) is not None]
    return set(keys(np.array(points, dtype=np.int64).reshape(-1, len(space.dimensions))))


def keys(points: Points) -> list[bytes]:
    """Returns a hashable key per point of an array of shape (n, d)."""
    return [row.tobytes() for row in np.ascontiguousarray(points, dtype=np.int64)]


def known_values(objective: Objective, space: Space, points: Points) -> Array:
    """Returns the exact values of a known objective at valid points (n, d), shape (n,), in raw units.

    Cost: vectorised for `StoredParameters` of the space's own backbone, one call per point otherwise.
    """
    known = objective.known
    if known is None:
        raise InputError(f"objective '{objective.name}' is not known in advance", where="search", cure="measure it")
    if isinstance(known, StoredParameters) and known.shape == space.shape:
        return space.stored_parameters(points).astype(float)
    return np.array([known(space.configuration(as_point(p))) for p in points], dtype=float)


def allowed(problem: Problem, points: Points) -> NDArray[np.bool_]:
    """Says which valid points of shape (n, d) satisfy every constraint, shape (n,)."""
    fine = np.ones(len(points), dtype=bool)
    for constraint in problem.constraints:
        fine[fine] = known_values(constraint.objective, problem.space, points[fine]) <= constraint.maximum
    return fine


def costs(problem: Problem, points: Points) -> Array:
    """Returns the known second objective, oriented so that smaller is better, shape (n,); zeros where there is none."""
    if len(problem.objectives) == 1:
        return np.zeros(len(points))
    second = problem.objectives[1]
    return -orient(known_values(second, problem.space, points)[:, None], [second])[:, 0]


def reference_point(problem: Problem, history: Sequence[Trial], seen: Observations, cost: Array) -> tuple[float, float]:
    """Returns the worst quality and the worst cost that still count, both as `observe` and `costs` orient them.

    The problem's own reference where it has one. Otherwise the best quality of a completed trial that inserts nothing
    (the frozen probe; a study shows it although it lies in no space), else the worst quality of the observed front less
    a tenth of the front's range; and the largest cost in `cost`, a sample of what the space allows, plus a tenth.

    Args:
        problem: The problem.
        history: Final trials.
        seen: The history's observations, at least one.
        cost: Costs, shape (n,), of many allowed points, the observed ones included.
    """
    if problem.reference is not None:
        given = orient(problem.reference, problem.objectives)
        return float(given[0]), -float(given[1]) if len(given) > 1 else 1.0
    first = problem.objectives[0]
    most = float(cost.max()) + 0.1 if len(problem.objectives) > 1 else 1.0
    bare = [t for t in history if t.status is TrialStatus.COMPLETED and not t.configuration.placements]
    probed = [value for t in bare if math.isfinite(value := t.objectives.get(first.name, math.nan))]
    if probed:
        return max(float(orient([value], [first])[0]) for value in probed), most
    front = seen.quality[nondominated(np.column_stack([seen.quality, -costs(problem, seen.points)]))]
    return float(front.min() - 0.1 * max(np.ptp(front), np.ptp(seen.quality) * 0.1, 1e-6)), most
