"""Bayesian search with known costs: a Gaussian process models the quality only. Torch-free.

The equations, and what was measured, are in docs/search.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from autopeft.errors import InputError
from autopeft.search.acquisition import Staircase, noisy_improvement
from autopeft.search.base import Searcher, register_searcher
from autopeft.search.gp import Block, GaussianProcess, Prior, fit
from autopeft.search.lattice import Candidates, by_size, climb
from autopeft.search.observations import Observations, costs, keys, observe, reference_point, visited
from autopeft.search.random import proposals
from autopeft.spaces.base import Points, Space
from autopeft.trial import Problem, Proposal, Trial

Array = NDArray[np.float64]


@register_searcher("bayes")
@dataclass(frozen=True)
class BayesSearch(Searcher):
    """Expected hypervolume improvement with a modelled quality and a known cost.

    Objectives: the quality alone, or the quality and one known objective (such as stored parameters). Anything else is
    refused with an InputError.

    Attributes:
        initial: Trials before the model is used, spread over the sizes of configurations.
        draws: Functions drawn from the posterior per suggestion.
        pool: Random points the local search may start from.
        starts: Points the local search starts from, beside the current front.
        steps: Largest number of moves of the local search.

    Example:
        >>> BayesSearch(initial=8).initial
        8
    """

    initial: int = 10
    draws: int = 16
    pool: int = 1024
    starts: int = 10
    steps: int = 12
    variant: str = "sum"

    def suggest(
        self, problem: Problem, history: Sequence[Trial], pending: Sequence[Trial], n: int, rng: np.random.Generator
    ) -> list[Proposal]:
        require_known_cost(problem)
        trials = [*history, *pending]
        taken = visited(problem.space, trials)
        candidates = Candidates(problem, frozenset(taken))
        pool = candidates.draw(max(self.pool, 64 * n), True, rng)
        seen = observe(problem, history)
        early = max(0, min(n, self.initial - len(taken))) if len(seen) else n
        chosen = by_size(problem, pool, early, len(trials), rng)
        if early < n and len(pool) > 0:
            waiting = [p for t in pending if (p := problem.space.point(t.configuration)) is not None]
            busy = np.array(waiting, dtype=np.int64).reshape(-1, pool.shape[1])
            busy = np.concatenate([busy, chosen])
            chosen = np.concatenate([chosen, self._modelled(problem, history, seen, busy, candidates, pool, n - early, rng)])
        return proposals(problem, chosen, rng)

    def _modelled(
        self,
        problem: Problem,
        history: Sequence[Trial],
        seen: Observations,
        busy: Points,
        candidates: Candidates,
        pool: Points,
        n: int,
        rng: np.random.Generator,
    ) -> Points:
        """Chooses up to n points, shape (m, d), one after the other; each joins the pending ones for the next."""
        gp = fit_quality(problem.space, seen, self.variant)
        space = problem.space
        reference = reference_point(
            problem, history, seen, np.concatenate([costs(problem, pool), costs(problem, seen.points)])
        )
        chosen: list[NDArray[np.int64]] = []
        for _ in range(n):
            pending = np.concatenate([busy, np.array(chosen, dtype=np.int64).reshape(-1, pool.shape[1])])
            paths = gp.paths(features(space, pending), self.draws, rng)
            known = np.concatenate([seen.points, pending])
            cost = costs(problem, known)
            staircases = [Staircase.of(values, cost, reference) for values in paths.values.T]

            def value(points: Points, paths=paths, staircases=staircases) -> Array:
                return noisy_improvement(paths, staircases, features(space, points), costs(problem, points))

            free = Candidates(problem, candidates.taken | frozenset(keys(pending)))
            fresh = pool[free.mask(pool)]
            best = fresh[np.argsort(-value(fresh), kind="stable")[: self.starts]] if len(fresh) else fresh
            mean = paths.values.mean(axis=1)
            front = known[on_front(mean, cost)]
            found, _ = climb(free, np.concatenate([best, front]), value, self.steps, self.starts)
            if len(found) == 0:
                break
            chosen.append(found[0])
        return np.array(chosen, dtype=np.int64).reshape(-1, pool.shape[1])


def posterior_quality(problem: Problem, history: Sequence[Trial]) -> Mapping[str, tuple[float, float]]:
    """Returns the model's mean and standard deviation of the quality of every configuration observed.

    Choosing the final set by it, and not by noisy measurements, avoids most of the winner's curse.

    Returns:
        Configuration id to (mean, deviation), in the units and direction of the first objective; empty where nothing
        was observed.

    Example:
        >>> best = {i: m for i, (m, _) in posterior_quality(problem, trials).items()}  # doctest: +SKIP
        >>> ParetoFront.of(trials, problem.objectives, best)  # doctest: +SKIP
    """
    seen = observe(problem, history)
    if len(seen) == 0:
        return MappingProxyType({})
    mean, deviation = fit_quality(problem.space, seen).predict(features(problem.space, seen.points))
    sign = 1.0 if problem.objectives[0].direction == "maximize" else -1.0
    return {
        problem.space.configuration(tuple(int(i) for i in p)).id: (sign * float(m), float(s))
        for p, m, s in zip(seen.points, mean, deviation, strict=True)
    }


def on_front(quality, cost):
    from autopeft.pareto import nondominated
    return nondominated(np.column_stack([quality, -cost]))


def require_known_cost(problem: Problem) -> None:
    """Raises InputError where the problem is not (quality) or (quality, one known objective)."""
    objectives = problem.objectives
    if objectives[0].known is not None or len(objectives) > 2 or any(o.known is None for o in objectives[1:]):
        raise InputError(
            f"'bayes' takes a measured quality and at most one known objective, not {[o.name for o in objectives]}",
            where="search.searcher",
            cure="keep quality and parameters, bound the others by constraints, or use searcher 'random'",
        )


def features(space: Space, points: Points) -> Array:
    """Returns the model's inputs for points (n, d): the encoded point, then a summary (`summary`)."""
    return np.hstack([space.encode_rows(points), summary(space, points)])


def summary(space: Space, points: Points) -> Array:
    encoded = space.encode_rows(points)
    stored = np.log10(np.maximum(space.stored_parameters(points), 1)) / 3.0
    layers: dict[int, list[int]] = {}
    for axis, dimension in enumerate(space.dimensions):
        if dimension.layer is not None:
            layers.setdefault(dimension.layer, []).append(axis)
    columns = [stored]
    if layers:
        activity = np.stack([encoded[:, axes].mean(axis=1) for axes in layers.values()], axis=1)
        position = np.linspace(0.0, 1.0, activity.shape[1])
        total = activity.sum(axis=1)
        depth = np.where(total > 0, activity @ position / np.maximum(total, 1e-9), 0.5)
        columns += [activity.mean(axis=1), depth]
    columns += [encoded[:, a] for a, d in enumerate(space.dimensions) if d.kind == "rate"]
    return np.stack(columns, axis=1)


def fit_quality(space: Space, seen: Observations, variant: str = "sum") -> GaussianProcess:
    """Fits the model of the quality to at least one observation."""
    x = features(space, seen.points)
    d, p = len(space.dimensions), x.shape[1]
    V = {
        "x": Prior((Block(tuple(range(d))),)),
        "sum": Prior((Block(tuple(range(d)), amplitude=.7), Block(tuple(range(d, p)), amplitude=.7, length_scale=1.0, spread=.7))),
        "all": Prior((Block(tuple(range(p))),)),
    }
    return fit(x, clip_low(seen.quality), V[variant], seen.repeats)


def clip_low(quality: Array) -> Array:
    low, mid = np.quantile(quality, [.25, .5])
    q3 = np.quantile(quality, .75)
    return np.maximum(quality, low - 1.5 * (q3 - low))
