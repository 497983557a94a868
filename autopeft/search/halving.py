"""Successive halving: many configurations begun, few brought to their end. Torch-free.

Which ranking was chosen, and what was measured, is in docs/search.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from autopeft.errors import InputError
from autopeft.pareto import nondominated, orient
from autopeft.search.base import Searcher, register_searcher
from autopeft.search.random import RandomSearch
from autopeft.trial import TRAINING_LOSS, Budget, Objective, Problem, Proposal, Trial, TrialStatus

Array = NDArray[np.float64]


@register_searcher("halving")
@dataclass(frozen=True)
class HalvingSearch(Searcher):
    """Random configurations, of which only the most promising go on to the next rung (arXiv 1502.07943).

    A rung is a share of the optimiser steps of the full budget. Its trials are ranked by `ranking`, on training loss
    and the other objectives, and a share of them is promoted: a trial of the next rung that goes on from the state they
    were left in. A trial that failed is not promoted. Promotions are proposed once the whole rung is known, and before
    that where what is still to come cannot change them.

    Attributes:
        rungs: Shares of the budget, ascending; the last is 1.
        keep: Share of the configurations that go on from one rung to the next, rounded to whole ones, at least one.
        stratified: As for `RandomSearch`, which proposes the configurations.

    Example:
        >>> HalvingSearch().plan(60)
        ((0.25, 60), (1.0, 15))
    """

    promotes: ClassVar[bool] = True

    rungs: tuple[float, ...] = (0.25, 1.0)
    keep: float = 0.25
    stratified: bool = True

    def __post_init__(self) -> None:
        where = "search.options"
        if not isinstance(self.rungs, Sequence) or isinstance(self.rungs, str):
            raise InputError(f"{self.rungs!r} is no list", where=f"{where}.rungs", cure="write [0.25, 1], for example")
        object.__setattr__(self, "rungs", tuple(_share(rung, f"{where}.rungs") for rung in self.rungs))
        if list(self.rungs) != sorted(set(self.rungs)) or self.rungs[-1:] != (1.0,):
            raise InputError(
                f"{list(self.rungs)} do not ascend to 1", where=f"{where}.rungs", cure="write [0.25, 1], for example"
            )
        object.__setattr__(self, "keep", _share(self.keep, f"{where}.keep"))

    def plan(self, trials: int) -> tuple[tuple[float, int], ...]:
        return tuple((rung, self._quota(k, trials)) for k, rung in enumerate(self.rungs))

    def promotions_left(self, problem: Problem, trials: Sequence[Trial]) -> int:
        own = [t for t in trials if t.proposal.purpose == "search"]
        begun = sum(t.proposal.parent is None for t in own)
        total = max(begun, min(problem.trials or 0, problem.space.size))
        return sum(step.left for step in self._steps(problem, own, total, total - begun))

    def suggest(
        self, problem: Problem, history: Sequence[Trial], pending: Sequence[Trial], n: int, rng: np.random.Generator
    ) -> list[Proposal]:
        own = sorted((t for t in [*history, *pending] if t.proposal.purpose == "search"), key=lambda t: t.number)
        begun = sum(t.proposal.parent is None for t in own)
        room = n if problem.trials is None else min(n, problem.trials - begun)
        if room > 0:
            lowest = replace(problem, budget=self._budget(problem, 0))
            fresh = RandomSearch(self.stratified).suggest(lowest, history, pending, room, rng)
            if fresh:
                return fresh
        # Nothing more is begun: the total is reached, or the space is exhausted.
        return [p for step in self._steps(problem, own, begun, 0) for p in step.proposals][:n]

    def _steps(self, problem: Problem, own: Sequence[Trial], total: int, coming: int) -> list[_Step]:
        """Returns what goes on from each rung but the last; `coming` trials of the first have yet to be proposed."""
        steps = []
        for k in range(len(self.rungs) - 1):
            here, above = self._budget(problem, k), self._budget(problem, k + 1)
            at = [t for t in own if t.proposal.budget == here]
            known = [t for t in at if t.status is TrialStatus.COMPLETED]
            unknown = sum(not t.status.final for t in at) + coming
            promoted = {t.proposal.parent for t in own if t.proposal.budget == above and t.proposal.parent is not None}
            quota = min(self._quota(k + 1, total), len(known) + unknown)
            # All of the rung are ranked, those that went on before included: without them the next layer would come up.
            chosen = [t for t in _certain(problem.objectives, known, unknown, quota) if t.number not in promoted]
            left = max(0, quota - len(promoted))
            proposals = [Proposal(t.configuration, above, t.proposal.seed, parent=t.number) for t in chosen[:left]]
            steps.append(_Step(proposals, left))
            coming = left
        return steps

    def _quota(self, rung: int, total: int) -> int:
        """Returns how many of `total` configurations reach a rung."""
        return max(min(total, 1), round(total * self.keep**rung))

    def _budget(self, problem: Problem, rung: int) -> Budget:
        return replace(problem.budget, share=self.rungs[rung])


@dataclass(frozen=True)
class _Step:
    """What goes on from one rung to the next: what can be proposed now, and how many are left to propose at most."""

    proposals: Sequence[Proposal]
    left: int


def ranking(objectives: Sequence[Objective], trials: Sequence[Trial]) -> list[int]:
    """Ranks trials of one rung, the most promising first.

    They are sorted into layers: the front over training loss and the other objectives, the front of the rest, and so
    on; within a layer by the loss. The loss alone would leave the small configurations behind, which a front needs.

    Args:
        objectives: Of the problem; the first, the quality, is replaced by the training loss.
        trials: Completed trials of one rung.

    Returns:
        Their indices.

    Cost: O(n^2 m) for n trials and m objectives.
    """
    values = _oriented(objectives, trials)
    left, order = np.arange(len(values)), []
    while len(left):
        front = nondominated(values[left])
        layer, left = left[front], left[~front]
        order += [int(i) for i in layer[np.argsort(-values[layer, 0], kind="stable")]]
    return order


def _certain(objectives: Sequence[Objective], known: Sequence[Trial], unknown: int, quota: int) -> list[Trial]:
    """Returns the trials that go on whatever the unknown ones bring, the most promising first.

    A trial that another dominates stays behind it; each other one, and each unknown one, may come before it.

    Args:
        objectives: Of the problem.
        known: Completed trials of the rung, those that went on before included.
        unknown: How many trials of the rung have yet to end.
        quota: How many of the rung go on.
    """
    order = ranking(objectives, known)
    if unknown:
        values = _oriented(objectives, known)
        behind = ((values[:, None] >= values[None]).all(axis=2) & (values[:, None] > values[None]).any(axis=2)).sum(1)
        order = [i for i in order if len(known) - 1 - behind[i] + unknown < quota]
    return [known[i] for i in order[:quota]]


def _oriented(objectives: Sequence[Objective], trials: Sequence[Trial]) -> Array:
    """Returns what trials of a rung are compared on, shape (n, m): larger is better, the loss is the first column."""
    first = Objective(TRAINING_LOSS, "minimize")
    columns = [first, *objectives[1:]]
    rows = [[float(trial.objectives[o.name]) for o in columns] for trial in trials]
    return orient(np.array(rows).reshape(-1, len(columns)), columns)


def _share(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 < value <= 1.0:
        raise InputError(f"{value!r} is no share", where=where, cure="use a number above 0 and up to 1")
    return float(value)
