"""Pareto fronts and hypervolume, exact for any number of objectives. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autopeft.errors import InputError, nearest
from autopeft.trial import Objective, Trial


def dominates(left: ArrayLike, right: ArrayLike) -> bool:
    """Says whether `left` is at least as good everywhere and better somewhere; larger is better, shapes (m,).

    Example:
        >>> dominates([2, 1], [1, 1])
        True
    """
    a, b = np.asarray(left, dtype=float), np.asarray(right, dtype=float)
    return bool((a >= b).all() and (a > b).any())


def nondominated(points: ArrayLike) -> NDArray[np.bool_]:
    """Marks the points no other dominates; of equal points only the first is marked.

    Args:
        points: Shape (n, m), larger is better in every column.

    Returns:
        Shape (n,).

    Cost: O(f n m) for f marked points.

    Example:
        >>> nondominated([[1, 0], [0, 1], [0, 0]]).tolist()
        [True, True, False]
    """
    values = np.asarray(points, dtype=float)
    marked = np.zeros(len(values), dtype=bool)
    # In descending lexicographic order nothing dominates an earlier point; the sort is stable, so first ties win.
    waiting = (
        np.lexsort(tuple(-values[:, k] for k in reversed(range(values.shape[1])))) if len(values) else np.arange(0)
    )
    while len(waiting):
        best = waiting[0]
        marked[best] = True
        waiting = waiting[(values[waiting] > values[best]).any(axis=1)]
    return marked


def hypervolume(points: ArrayLike, reference: ArrayLike) -> float:
    """Volume between a reference point and the surface of the points that are better than it.

    Args:
        points: Shape (n, m), larger is better in every column, finite.
        reference: Shape (m,).

    Returns:
        The exact m-dimensional volume; points not better than the reference in every column add nothing.

    Cost: O(n log n) for two objectives, O(n^(m-1) log n) by slicing for more.

    Example:
        >>> hypervolume([[2.0, 1.0], [1.0, 2.0]], [0.0, 0.0])
        3.0
    """
    values, corner = np.asarray(points, dtype=float), np.asarray(reference, dtype=float)
    if values.size == 0:
        return 0.0
    if not (np.isfinite(values).all() and np.isfinite(corner).all()):
        raise InputError("a hypervolume needs finite numbers", where="hypervolume", cure="leave failed trials out")
    return _volume(values[(values > corner).all(axis=1)] - corner)


def _volume(values: NDArray[np.float64]) -> float:
    """Hypervolume over the origin of points (n, m) that are positive everywhere."""
    if len(values) == 0:
        return 0.0
    if values.shape[1] == 1:
        return float(values.max())
    values = values[np.argsort(-values[:, -1], kind="stable")]
    depths = values[:, -1] - np.append(values[1:, -1], 0.0)
    if values.shape[1] == 2:
        return float(np.maximum.accumulate(values[:, 0]) @ depths)
    # Between two heights of the last objective the cross-section is that of all points at least as high.
    return float(sum(_volume(values[: i + 1, :-1]) * depth for i, depth in enumerate(depths) if depth > 0.0))


def orient(values: ArrayLike, objectives: Sequence[Objective]) -> NDArray[np.float64]:
    """Turns raw objective values into numbers that are better when larger.

    Args:
        values: Shape (n, m) or (m,): one column per objective.
        objectives: Their directions; a `log` objective is compared on log10, of at least 1.

    Example:
        >>> orient([[0.9, 1000.0]], [Objective("q", "maximize"), Objective("p", "minimize", log=True)]).tolist()
        [[0.9, -3.0]]
    """
    raw = np.array(values, dtype=float)
    for k, objective in enumerate(objectives):
        if objective.log:
            raw[..., k] = np.log10(np.maximum(raw[..., k], 1.0))
        if objective.direction == "minimize":
            raw[..., k] = -raw[..., k]
    return raw


@dataclass(frozen=True)
class ParetoFront:
    """The trials no other trial beats.

    Attributes:
        trials: Non-dominated completed trials, best first objective first.
        objectives: What they are compared on.
        values: Raw objective values, one tuple per trial in the order of `objectives`.

    Example:
        >>> front = ParetoFront.of(study.trials, objectives)  # doctest: +SKIP
        >>> front.pick({"parameters": 100_000}).configuration  # doctest: +SKIP
    """

    trials: tuple[Trial, ...]
    objectives: tuple[Objective, ...]
    values: tuple[tuple[float, ...], ...]

    @staticmethod
    def of(
        trials: Sequence[Trial], objectives: Sequence[Objective], quality: Mapping[str, float] | None = None
    ) -> ParetoFront:
        """Returns the front of the completed trials.

        Args:
            trials: Any trials; those not completed, or at a part of the budget only, are left out.
            objectives: What they are compared on; every completed trial has a finite value for each.
            quality: Replaces the measured first objective, by configuration id (such as a model's posterior mean);
                trials it does not name are left out. Of several trials of one configuration the first is kept.

        Raises:
            InputError: An objective is missing from a trial, or not finite.
        """
        completed = [t for t in trials if t.scored]
        if quality is not None:
            first = {t.configuration.id: t for t in reversed(completed)}
            completed = [t for t in completed if t.configuration.id in quality and first[t.configuration.id] is t]
        rows = [_values(t, objectives, quality) for t in completed]
        oriented = orient(np.array(rows).reshape(-1, len(objectives)), objectives)
        kept = sorted(np.flatnonzero(nondominated(oriented)), key=lambda i: (*(-oriented[i]), completed[i].number))
        return ParetoFront(tuple(completed[i] for i in kept), tuple(objectives), tuple(rows[i] for i in kept))

    def __len__(self) -> int:
        return len(self.trials)

    def __iter__(self) -> Iterator[Trial]:
        return iter(self.trials)

    def oriented(self) -> NDArray[np.float64]:
        """Returns the values as `orient` gives them, shape (n, m): larger is better."""
        return orient(np.array(self.values).reshape(-1, len(self.objectives)), self.objectives)

    def hypervolume(self, reference: Sequence[float]) -> float:
        """Returns the hypervolume over a reference point of raw values; `log` objectives count in log10 units.

        Args:
            reference: One raw value per objective, such as (accuracy of the frozen probe, parameters of the backbone).
        """
        return hypervolume(self.oriented(), orient(reference, self.objectives))

    def knee(self) -> Trial:
        """Returns the trial with the largest sum of objectives, each scaled to [0, 1] over the front.

        For two objectives it is the point farthest above the line between the front's ends. Raises InputError where
        the front is empty.
        """
        values = self._require()
        span = np.ptp(values, axis=0)
        scaled = (values - values.min(axis=0)) / np.where(span > 0, span, 1.0)
        return self.trials[int(np.argmax(scaled.sum(axis=1)))]

    def pick(self, maximum: Mapping[str, float] | None = None) -> Trial:
        """Returns the trial with the best first objective among those within bounds.

        Args:
            maximum: Largest raw value allowed, by name of objective; nothing bounds nothing.

        Raises:
            InputError: An unknown objective, or no trial within the bounds (the message names the smallest value).
        """
        self._require()
        names = [o.name for o in self.objectives]
        raw = np.array(self.values)
        within = np.ones(len(raw), dtype=bool)
        for name, bound in (maximum or {}).items():
            if name not in names:
                raise InputError(f"unknown objective '{name}'", where="pick", cure=nearest(name, names))
            column = raw[:, names.index(name)]
            if not (column <= bound).any():
                raise InputError(
                    f"no trial of the front has {name} of at most {bound:g}",
                    where="pick",
                    cure=f"the smallest is {column.min():g}",
                )
            within &= column <= bound
        if not within.any():
            raise InputError("no trial of the front is within all bounds", where="pick", cure="raise one of them")
        return self.trials[int(np.flatnonzero(within)[0])]

    def _require(self) -> NDArray[np.float64]:
        if not self.trials:
            raise InputError("the front is empty", where="front", cure="complete at least one trial")
        return self.oriented()


def _values(trial: Trial, objectives: Sequence[Objective], quality: Mapping[str, float] | None) -> tuple[float, ...]:
    row = []
    for k, objective in enumerate(objectives):
        replaced = quality[trial.configuration.id] if quality is not None and k == 0 else None
        value = trial.objectives.get(objective.name) if replaced is None else replaced
        where = f"trial {trial.number}"
        if value is None:
            raise InputError(f"it has no objective '{objective.name}'", where=where, cure="leave it out of the front")
        if not math.isfinite(value):
            raise InputError(f"{objective.name} is {value}", where=where, cure="record such a trial as failed")
        row.append(float(value))
    return tuple(row)
