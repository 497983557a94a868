"""Training K configurations in one batch: `loop.train` for a stack. Each goes its own way, as it would alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from autopeft.backbones import trained_parameters
from autopeft.backbones.stacked import Stack
from autopeft.errors import InputError, TrainingError
from autopeft.setting import Recipe
from autopeft.training.batches import bucketed, by_length
from autopeft.training.device import reading
from autopeft.training.loop import diverged, set_dropout
from autopeft.training.random_states import random_states
from autopeft.training.schedule import Schedule
from autopeft.training.sources import Source
from autopeft.training.state import State, require_fit

BETAS: Final = (0.9, 0.999)
EPSILON: Final = 1e-8
"""AdamW's constants, those of torch."""


@dataclass(frozen=True)
class StackedStep:
    """One optimiser step of all configurations that are in the stack.

    Attributes:
        epoch: Number of the pass it belongs to, from 1.
        step: Optimiser steps so far.
        losses: Mean loss of the batch, by number of the configuration.
        state: Gives the state that the run of one configuration is in now; call it before the next step.
    """

    epoch: int
    step: int
    losses: Mapping[int, float]
    state: Callable[[int], State]


@dataclass(frozen=True)
class StackedEpoch:
    """One pass over the training examples.

    Attributes:
        epoch: Number of the pass, from 1.
        losses: Mean training loss over its examples, by number of the configuration.
        steps: Optimiser steps so far.
    """

    epoch: int
    losses: Mapping[int, float]
    steps: int


@dataclass(frozen=True)
class Diverged:
    """A configuration has left the stack since its loss is NaN or infinite; the others go on.

    Attributes:
        number: Number of the configuration.
        error: What a separate run raises.
    """

    number: int
    error: TrainingError


class StackedAdamW:
    """AdamW on the matrix of a stack: every row with its own rates and its own clipping (arXiv 1711.05101).

    What torch's AdamW does with the parameters of one configuration, this does with one row. Steps and operations do
    not depend on the number of configurations.

    Args:
        stacked: The configurations.
        recipe: Gives weight decay and clipping.
    """

    def __init__(self, stacked: Stack, recipe: Recipe) -> None:
        self._stacked, self._recipe = stacked, recipe
        self.members = list(stacked.members)
        matrix = stacked.weights.matrix.detach()
        self.first, self.second = torch.zeros_like(matrix), torch.zeros_like(matrix)
        self._decaying = stacked.weights.decaying() * recipe.weight_decay

    def follow(self) -> None:
        """Drops the rows of configurations that have left the stack."""
        if self.members != self._stacked.members:
            rows = [self.members.index(k) for k in self._stacked.members]
            self.first, self.second = self.first[rows], self.second[rows]
            self.members = list(self._stacked.members)

    @torch.no_grad()
    def step(self, number: int, share: float) -> None:
        """Clips the gradients of every row and takes the step `number`, from 1, at a share of the peak rates."""
        weights = self._stacked.weights
        gradient, matrix = weights.matrix.grad, weights.matrix.detach()
        assert gradient is not None
        gradient = gradient.mul_(weights.real)
        norms = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
        gradient.mul_((self._recipe.clip / (norms + 1e-6)).clamp_(max=1.0))
        self.first.lerp_(gradient, 1 - BETAS[0])
        self.second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        one, two = 1 - BETAS[0] ** number, 1 - BETAS[1] ** number
        peaks = torch.tensor(self._stacked.rates, dtype=torch.float64)
        cut = weights.module_columns
        for column, part in ((0, slice(0, cut)), (1, slice(cut, None))):
            rate = (peaks[:, column, None] * share).to(matrix)
            if self._recipe.weight_decay:
                matrix[:, part].mul_(1 - rate * self._decaying[part])
            scale = self.second[:, part].sqrt().div_(math.sqrt(two)).add_(EPSILON)
            matrix[:, part].sub_(self.first[:, part].div(scale).mul_(rate / one))
        weights.matrix.grad = None

    def state_of(self, k: int, step: int) -> dict[str, torch.Tensor]:
        """Returns weights and moments of configuration k, as `training.state.tensors_of` names them."""
        weights, row = self._stacked.weights, self.members.index(k)
        parts = {"weights": weights.matrix, "exp_avg": self.first, "exp_avg_sq": self.second}
        found = {f"{key}.{n}": t for key, matrix in parts.items() for n, t in weights.tensors(row, matrix).items()}
        names = weights.tensors(row, weights.matrix)
        return {**found, **{f"step.{name}": torch.tensor(float(step)) for name in names}}

    def restore(self, k: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Inverse of `state_of`."""
        weights, row = self._stacked.weights, self.members.index(k)
        for key, matrix in (("weights", weights.matrix), ("exp_avg", self.first), ("exp_avg_sq", self.second)):
            own = {name.removeprefix(f"{key}."): t for name, t in tensors.items() if name.startswith(f"{key}.")}
            weights.put(row, matrix, own)


def train_stacked(
    source: Source,
    stacked: Stack,
    recipe: Recipe,
    *,
    rows: NDArray[np.int64],
    epochs: int,
    seed: int,
    states: Sequence[State] | None = None,
    until: int | None = None,
) -> Iterator[StackedStep | StackedEpoch | Diverged]:
    """Trains all configurations of a stack on the same batches; each ends as it would have ended alone.

    Losses and weights are those of separate runs up to the rounding of sums in another order. Between two events a
    caller may take configurations out (`Stack.leave`); it ends once none is left. What was trained is written back to
    the parameters at the end.

    Args:
        source: The training split, read through the backbone that the modules sit in; one whose forward pass begins
            at or below `stacked.lowest`.
        stacked: The configurations; each has its own rates, head and clipping.
        recipe: How to train, without dropout.
        rows: Training rows to use.
        epochs: Passes over them.
        seed: Controls the order of the data, the same for all.
        states: Where to go on from, one for each member of the stack, all after the same step; None: the first step.
        until: Step after which to leave; None: the last one.

    Yields:
        One event per step and per epoch, and one for each configuration whose loss is no number.

    Raises:
        InputError: The recipe has dropout: its random numbers would not be those of separate runs.
        StudyError: A state is not one of this run.

    Cost: one forward and backward pass over K B rows a step, below the lowest module over B.
    """
    if recipe.dropout > 0:
        raise InputError("dropout differs from that of separate runs", where="training.dropout", cure="use 0")
    rng, schedule = np.random.default_rng([seed, 1]), Schedule.of(len(rows), epochs, recipe)
    run = _Run(stacked, StackedAdamW(stacked, recipe), schedule)
    first, done = run.restore(states, rng) if states else (1, 0)
    last = schedule.total if until is None else until
    set_dropout(source.model, 0.0)
    for epoch in range(first, epochs + 1):
        order = rng.bit_generator.state
        for chosen in bucketed(source.tokens, rows, recipe.batch_size, rng)[done:]:
            step = (epoch - 1) * schedule.per_epoch + done
            run.optimizer.follow()
            if step >= last or not stacked.members:
                stacked.write_back()
                return
            losses = run.step(source, chosen, step)
            done += 1
            yield from run.leave_where_diverged(losses, step)
            if stacked.members:
                finite = {k: losses[k] for k in stacked.members}
                run.add(finite, len(chosen))
                yield StackedStep(epoch, step + 1, finite, run.state_at(epoch, done, order))
        yield StackedEpoch(epoch, run.close_epoch(len(rows)), epoch * schedule.per_epoch)
        done = 0
    stacked.write_back()


class _Run:
    """What a run of a stack remembers from step to step."""

    def __init__(self, stacked: Stack, optimizer: StackedAdamW, schedule: Schedule) -> None:
        self._stacked, self.optimizer, self._schedule = stacked, optimizer, schedule
        self._curves: dict[int, list[float]] = {k: [] for k in stacked.members}
        self._losses: dict[int, list[float]] = {k: [] for k in stacked.members}
        self._summed = dict.fromkeys(stacked.members, 0.0)

    def restore(self, states: Sequence[State], order: np.random.Generator) -> tuple[int, int]:
        """Puts everything where the states have it; returns epoch and batches done."""
        if len({(state.epoch, state.done) for state in states}) != 1:
            raise InputError("the states are not after one step", where="states", cure="train them apart")
        for k, state in zip(self._stacked.members, states, strict=True):
            require_fit(state, trained_parameters(self._stacked.injections[k], self._stacked.heads[k]), self._schedule)
        for k, state in zip(self._stacked.members, states, strict=True):
            self.optimizer.restore(k, state.tensors)
            self._curves[k], self._summed[k], self._losses[k] = [*state.curve], state.summed, [*state.losses]
        order.bit_generator.state = dict(states[0].order)
        return states[0].epoch, states[0].done

    def step(self, source: Source, rows: NDArray[np.int64], step: int) -> dict[int, float]:
        """Takes one step with every member; returns the losses before it."""
        self._stacked.weights.unpack()
        hidden = source.hidden(rows)
        targets = source.tokens.targets[rows].to(source.device)
        losses = losses_of(self._stacked.outputs(hidden.last, hidden.mask), targets)
        read = reading(losses)
        losses.sum().backward()
        self.optimizer.step(step + 1, self._schedule.share(step))
        return dict(zip(self._stacked.members, read(), strict=True))

    def leave_where_diverged(self, losses: Mapping[int, float], step: int) -> Iterator[Diverged]:
        """Takes out the configurations whose loss is no number."""
        lost = [k for k, loss in losses.items() if not math.isfinite(loss)]
        if lost:
            self._stacked.leave(lost)
            self.optimizer.follow()
        for k in lost:
            yield Diverged(k, diverged(losses[k], step, self._schedule.total))

    def add(self, losses: Mapping[int, float], examples: int) -> None:
        """Adds the losses of one batch to those of the epoch."""
        for k, loss in losses.items():
            self._summed[k] += loss * examples
            self._losses[k].append(loss)

    def close_epoch(self, examples: int) -> dict[int, float]:
        """Returns the mean losses of the epoch and begins another."""
        means = {k: self._summed[k] / examples for k in self._stacked.members}
        for k, mean in means.items():
            self._curves[k].append(mean)
            self._summed[k] = 0.0
        return means

    def state_at(self, epoch: int, done: int, order: Mapping[str, object]) -> Callable[[int], State]:
        """Returns what gives the state of a configuration after `done` batches of an epoch."""

        def state(k: int) -> State:
            step = (epoch - 1) * self._schedule.per_epoch + done
            tensors, curve, losses = self.optimizer.state_of(k, step), self._curves[k], self._losses[k]
            now = random_states()
            return State(self._schedule, epoch, done, tuple(curve), self._summed[k], order, tensors, now, tuple(losses))

        return state


def losses_of(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Returns the mean loss of every configuration, shape (K,); see `loop.loss_of`.

    Args:
        outputs: Shape (K, batch, classes) or (K, batch, 1).
        targets: Shape (batch,); integers mean classes.
    """
    wide = outputs if outputs.dtype == torch.float64 else outputs.float()
    if targets.is_floating_point():
        return (wide.squeeze(-1) - targets.to(wide.dtype)).square().mean(dim=1)
    count = len(outputs)
    single = functional.cross_entropy(wide.flatten(0, 1), targets.repeat(count), reduction="none")
    return single.view(count, -1).mean(dim=1)


@torch.inference_mode()
def predict_stacked(source: Source, stacked: Stack, size: int = 64) -> dict[int, NDArray[np.float32]]:
    """Returns the outputs of every member for every text, shape (n, outputs), by number, in the order of the split.

    Args:
        source: The split, read through the backbone with the stack.
        stacked: The configurations.
        size: Texts per batch, the same for all; batches are cut by length.
    """
    source.model.eval()
    stacked.weights.unpack()
    width = stacked.heads[0].output.out_features
    outputs = np.zeros((len(stacked.members), len(source.tokens), width), dtype=np.float32)
    for rows in by_length(source.tokens, size):
        hidden = source.hidden(rows)
        outputs[:, rows] = stacked.outputs(hidden.last, hidden.mask).float().cpu().numpy()
    stacked.weights.views = []
    return dict(zip(stacked.members, outputs, strict=True))
