"""Run a part of a backbone: up to a layer, from a layer on, or its last layer for the first position only.

For the time of one forward pass some layers of the stack are replaced in its list, never changed: masks, positions and
all that comes before and after the layers stay transformers' own, and so do modules injected into the layers that run.
Nothing here knows a family beyond its map. When that is exact is in docs/design/0007-states.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast, final

import torch
from torch import nn
from transformers import PreTrainedModel

from autopeft.configuration import Configuration
from autopeft.errors import InputError
from autopeft.families import family_of
from autopeft.heads.spec import Head

_CURE = "switch the cache off for this backbone"
_POSITION_WISE = frozenset(
    ("bitfit", "full_fine_tuning", "layer_norm", "lora", "parallel_adapter", "prefix", "serial_adapter")
)


def depth(model: PreTrainedModel) -> int:
    """Returns the number of layers of a backbone with one stack; raises InputError where layers cannot be left out."""
    return len(_stack(model))


def states_at(model: PreTrainedModel, layer: int, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Returns the hidden states that enter a layer, shape (batch, tokens, width); the layers from it on do not run.

    Args:
        model: The bare backbone.
        layer: Number of the layer; that of the layers for the last hidden states.
        inputs: Keyword arguments of the backbone, as `Tokens.inputs` gives them.

    Raises:
        InputError: There is no such layer, layers are shared, or a layer returns something else than a tensor.

    Example:
        >>> states_at(model, 2, tokens.inputs(rows)).shape  # doctest: +SKIP
        torch.Size([4, 17, 384])
    """
    stack = _stack(model)
    _require_layer(stack, layer)
    if layer == len(stack):
        last: torch.Tensor = model(**inputs).last_hidden_state
        return last
    entered = _Entered()
    with _replaced(stack, {layer: entered, **{i: _Passed() for i in range(layer + 1, len(stack))}}):
        shape = model(**inputs).last_hidden_state.shape
    # What loops over layers that return tuples takes the first element of what stands in for them: the first text.
    if not isinstance(entered.states, torch.Tensor) or entered.states.shape != shape:
        raise InputError("its layers return more than hidden states", where=type(model).__name__, cure=_CURE)
    return entered.states


def last_from(
    model: PreTrainedModel, layer: int, states: torch.Tensor, inputs: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """Returns the last hidden states, shape (batch, tokens, width), computed from those that enter a layer.

    The layers below it do not run. At padding, `states` may hold anything finite: nobody reads it.

    Args:
        model: The bare backbone, with or without modules in the layers from this one on.
        layer: Number of the layer; that of the layers returns `states`.
        states: What `states_at` returns for it, shape (batch, tokens, width).
        inputs: Keyword arguments of the backbone, for the masks.

    Raises:
        InputError: There is no such layer, or layers are shared.
    """
    stack = _stack(model)
    _require_layer(stack, layer)
    if layer == len(stack):
        return states
    passed: dict[int, nn.Module] = {i: _Passed() for i in range(layer)}
    if layer:
        passed[layer - 1] = _Given(states)
    with _replaced(stack, passed):
        last: torch.Tensor = model(**inputs).last_hidden_state
    return last


@contextmanager
def first_position(model: PreTrainedModel) -> Iterator[None]:
    """While the block runs, the last layer computes its first position only: last hidden states (batch, 1, width).

    Keys and values are still those of all positions. See `reads_first_only` for when that is exact.

    Raises:
        InputError: The family's map does not say where a layer can be narrowed.
    """
    path = family_of(model.config.model_type).narrowed
    if not path:
        raise InputError("its layers cannot be narrowed to one position", where=type(model).__name__)
    module = list(_stack(model))[-1].get_submodule(path)
    hook = module.register_forward_pre_hook(_first)
    try:
        yield
    finally:
        hook.remove()


def reads_first_only(model: PreTrainedModel, configuration: Configuration, head: Head) -> bool:
    """Says whether a head reads the first position only and each module acts on every position for itself.

    Then nothing that the last layer computes of other positions after its attention reaches the head.
    """
    return (
        head.kind in ("cls", "transformers")
        and bool(family_of(model.config.model_type).narrowed)
        and all(p.module.kind in _POSITION_WISE for p in configuration.placements)
    )


def _first(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:  # noqa: ARG001 - the signature is torch's
    return tuple(value[:, :1] for value in inputs)


@final
class _Passed(nn.Module):
    """In place of a layer that does not run: returns what it is given."""

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return hidden_states


@final
class _Given(nn.Module):
    """In place of the layer below the first one that runs: returns the states given to it."""

    def __init__(self, states: torch.Tensor) -> None:
        super().__init__()
        self.states = states

    def forward(self, *_: Any, **__: Any) -> torch.Tensor:
        return self.states


@final
class _Entered(nn.Module):
    """In place of the first layer that does not run: keeps what would have entered it."""

    def __init__(self) -> None:
        super().__init__()
        self.states: Any = None

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        self.states = hidden_states
        return hidden_states


def _stack(model: PreTrainedModel) -> nn.ModuleList:
    stacks = family_of(model.config.model_type).stacks
    if len(stacks) != 1:
        raise InputError(f"it has {len(stacks)} stacks of layers, not one", where=type(model).__name__, cure=_CURE)
    stack = cast(nn.ModuleList, model.get_submodule(next(iter(stacks.values()))))
    if len({id(layer) for layer in stack}) < len(stack):
        raise InputError("its layers share weights", where=type(model).__name__, cure=_CURE)
    return stack


def _require_layer(stack: nn.ModuleList, layer: int) -> None:
    if not 0 <= layer <= len(stack):
        raise InputError(f"there is no layer {layer}", cure=f"use 0 to {len(stack)}")


@contextmanager
def _replaced(stack: nn.ModuleList, others: Mapping[int, nn.Module]) -> Iterator[None]:
    """Puts other modules into the list while the block runs; the list then is the very one it was."""
    own = stack.__dict__["_modules"]
    stack.__dict__["_modules"] = {name: others.get(index, layer) for index, (name, layer) in enumerate(own.items())}
    try:
        yield
    finally:
        stack.__dict__["_modules"] = own
