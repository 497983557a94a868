"""Where a training run is, as a value: all it takes to go on from there, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from autopeft.errors import StudyError
from autopeft.training.random_states import RandomStates, require_order, require_random_states, set_random_states
from autopeft.training.schedule import Schedule

MOMENTS: Final = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps of a parameter that has had a gradient."""

_CURE: Final = "begin the trial anew"


@dataclass(frozen=True)
class State:
    """A run between two steps.

    A run that goes on from here takes the very steps that it would have taken: same machine type, same libraries, same
    number of threads. The trained parameters are all that a run changes, so no buffer is kept; a module whose buffers
    change while it trains would have to add them.

    To continue a run at a larger budget, as successive halving does, all of this stays but `schedule`: the learning
    rate falls to 0 at the schedule's last step. A rung that is to be continued must therefore be trained with the
    schedule of the full budget and be left early (then nothing differs, and the continued run equals the one that was
    never stopped), or the rate jumps where the new schedule begins. A budget of fewer examples has other batches; it
    can be continued at the end of an epoch only.

    Attributes:
        schedule: Steps of the run; the step gives the learning rate, so nothing else is kept of it.
        epoch: The epoch it is in, from 1.
        done: Batches of this epoch that are done, from 1; after the last one the epoch's end is still to be told.
        curve: Mean training loss of every epoch before this one.
        summed: Training loss of this epoch so far, summed over its examples.
        order: State of the data-order generator (numpy's PCG64) at the start of this epoch: the same batches are cut
            again and the first `done` of them are left out.
        tensors: "weights.PARAMETER" and AdamW's "step.", "exp_avg." and "exp_avg_sq.PARAMETER" where it has had a
            gradient. These are the run's own tensors: they change at its next step.
        random: The global generators.
        losses: Training loss of every step so far. A rung of successive halving is ranked by the later half of them.
    """

    schedule: Schedule
    epoch: int
    done: int
    curve: tuple[float, ...]
    summed: float
    order: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]
    random: RandomStates
    losses: tuple[float, ...]

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return (self.epoch - 1) * self.schedule.per_epoch + self.done


def tensors_of(trained: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Returns the tensors of a state: views of the live ones, nothing is copied."""
    found = {f"weights.{name}": parameter.detach() for name, parameter in trained.items()}
    for name, parameter in trained.items():
        kept = optimizer.state.get(parameter, {})
        found.update({f"{key}.{name}": value for key, value in kept.items()})
    return found


def restore(
    state: State,
    schedule: Schedule,
    trained: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    order: np.random.Generator,
) -> None:
    """Puts weights, moments and generators where the state has them; raises what `require_fit` raises before that."""
    require_fit(state, trained, schedule)
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(state.tensors[f"weights.{name}"])
            if f"step.{name}" not in state.tensors:
                continue
            step, *moments = (state.tensors[f"{key}.{name}"] for key in MOMENTS)
            # In the parameter's own layout: elementwise kernels round alike only where they see the same strides.
            fresh = (torch.zeros_like(parameter, memory_format=torch.preserve_format).copy_(m) for m in moments)
            kept = (step.to(parameter.device, copy=True), *fresh)
            optimizer.state[parameter] = dict(zip(MOMENTS, kept, strict=True))
    order.bit_generator.state = dict(state.order)
    set_random_states(state.random)


def require_fit(state: State, trained: Mapping[str, nn.Parameter], schedule: Schedule) -> None:
    """Checks that a run of this schedule over these parameters can go on from the state; changes nothing.

    Cost: one pass over the tensors.

    Raises:
        StudyError: Another schedule, an impossible position, tensors that are missing, superfluous, of another shape or
            type or not finite, or states that no generator can have.
    """
    if state.schedule != schedule:
        raise StudyError(f"made for {state.schedule}, this run has {schedule}", where="schedule", cure=_CURE)
    if not (1 <= state.epoch <= schedule.epochs and 1 <= state.done <= schedule.per_epoch):
        raise StudyError(f"no step {state.done} of epoch {state.epoch}", where="position", cure=_CURE)
    if len(state.curve) != state.epoch - 1 or not all(map(math.isfinite, (*state.curve, state.summed))):
        raise StudyError("the losses are not those of the epochs before", where="curve", cure=_CURE)
    if len(state.losses) != state.step or not all(map(math.isfinite, state.losses)):
        raise StudyError("the losses are not those of the steps before", where="losses", cure=_CURE)
    require_order(state.order)
    require_random_states(state.random)
    _require_tensors(state, trained)


def _require_tensors(state: State, trained: Mapping[str, nn.Parameter]) -> None:
    left = dict(state.tensors)
    for name, parameter in trained.items():
        moved = [key for key in MOMENTS if f"{key}.{name}" in left]
        for key in ("weights", *(MOMENTS if moved else ())):
            where, tensor = f"{key}.{name}", left.pop(f"{key}.{name}", None)
            if tensor is None:
                raise StudyError("the tensor is missing", where=where, cure=_CURE)
            shape, kind = ((), torch.float32) if key == "step" else (tuple(parameter.shape), parameter.dtype)
            if tuple(tensor.shape) != shape or tensor.dtype != kind:
                found = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
                raise StudyError(f"the tensor is {found}, not {kind} of {shape}", where=where, cure=_CURE)
            if not bool(tensor.isfinite().all()) or (key == "exp_avg_sq" and bool((tensor < 0).any())):
                raise StudyError("the tensor has values that no run goes on from", where=where, cure=_CURE)
            if key == "step" and not 1 <= float(tensor) <= state.step:
                raise StudyError(f"{float(tensor):g} steps of {state.step}", where=where, cure=_CURE)
    if left:
        raise StudyError(f"{len(left)} tensors belong to nothing", where=min(left), cure=_CURE)
