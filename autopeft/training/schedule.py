"""The learning rate over a run: a pure function of the step, so a run that goes on needs nothing but its step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from autopeft.setting import Recipe


@dataclass(frozen=True)
class Schedule:
    """How many steps a run has, and the learning rate at each.

    Attributes:
        per_epoch: Steps of one pass over the examples.
        epochs: Passes.
        warmup: Steps over which the rate rises.
    """

    per_epoch: int
    epochs: int
    warmup: int

    @staticmethod
    def of(examples: int, epochs: int, recipe: Recipe) -> Schedule:
        """Returns the schedule of `epochs` passes over `examples` examples."""
        per_epoch = math.ceil(examples / recipe.batch_size)
        return Schedule(per_epoch, epochs, max(1, round(recipe.warmup * epochs * per_epoch)))

    @property
    def total(self) -> int:
        """Steps in all."""
        return self.epochs * self.per_epoch

    def until(self, share: float) -> int:
        """Returns the step after which a part of the run ends: rounded up, so it is never without a step.

        Example:
            >>> [Schedule(5, 2, 1).until(share) for share in (0.01, 0.3, 0.31, 1.0)]
            [1, 3, 4, 10]
        """
        return math.ceil(round(share * self.total, 9))

    def share(self, step: int) -> float:
        """Returns the learning rate at a step, from 0, as a share of its peak: linear up to `warmup`, then to 0.

        Example:
            >>> [round(Schedule(5, 1, 2).share(step), 2) for step in range(5)]
            [0.5, 1.0, 0.75, 0.5, 0.25]
        """
        total = self.epochs * self.per_epoch
        return min(1.0, (step + 1) / self.warmup, (total - step) / max(1, total - self.warmup + 1))
