"""K configurations on one backbone in one batch: rows k B to (k + 1) B belong to configuration k.

Every frozen layer is launched once over K B rows. Layers below the lowest module of all K are computed once on B rows,
and repeated where the first module sits. The weights of one kind at one slot are multiplied as one batched product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from autopeft.backbones import layouts
from autopeft.backbones.inject import Injection, attach, backbone_in, trained_parameters
from autopeft.backbones.sidecar import Sidecar, sidecar_of
from autopeft.backbones.stacked_modules import TOGETHER, HeadsTogether, Plan, Together
from autopeft.backbones.stacked_weights import Weights
from autopeft.configuration import Configuration
from autopeft.errors import InputError
from autopeft.families import family_of
from autopeft.heads.layer import HeadLayer
from autopeft.modules.layers import ModuleLayer
from autopeft.shapes import Slot


class StackedSidecar(Sidecar):
    """A sidecar whose layouts are K configurations, all of them active, each on its own rows."""

    def __init__(self, slot: str) -> None:
        super().__init__(slot)
        self.together: list[Together] = []

    def chosen(self) -> list[str]:
        """See `Sidecar.chosen`."""
        return list(self.layouts)

    def add_to_ffn(self, h: torch.Tensor, x: torch.Tensor, norm: nn.Module) -> torch.Tensor:
        """See `Sidecar.add_to_ffn`."""
        terms = [kind.add_to_ffn(h, x, norm) for kind in self.together]
        return _sum(h, terms)

    def add_to_linear(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """See `Sidecar.add_to_linear`."""
        return _sum(y, [kind.add_to_linear(x) for kind in self.together])

    def prefixes(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Returns keys and values, each (K, kv_heads, p, head_dim), p the longest of the K."""
        return [(key, value) for key, value, _ in self._present()]

    def visible(self) -> torch.Tensor | None:
        """See `Sidecar.visible`."""
        real = [real for _, _, real in self._present()]
        return torch.cat(real, dim=1) if real else None

    def _present(self) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        return [found for kind in self.together if (found := kind.prefix()) is not None]


class Stack:
    """K configurations in one backbone; made by `stack`.

    Attributes:
        model: The backbone they sit in.
        injections: One per configuration, by its number, also of those that have left.
        heads: Their heads, likewise.
        members: Numbers of the configurations that are in the stack, in the order of their rows.
        weights: What is trained; the parameters of injections and heads follow at `write_back`.
        lowest: Lowest layer with a module; layers below are computed on B rows.
    """

    def __init__(self, model: PreTrainedModel, injections: Sequence[Injection], heads: Sequence[HeadLayer]) -> None:
        self.model, self.injections, self.heads = model, tuple(injections), tuple(heads)
        self.members = list(range(len(injections)))
        plan = Plan(
            [trained_parameters(i, h) for i, h in zip(injections, heads, strict=True)],
            [_layers(i) for i in injections],
        )
        self._together = _gather(injections, plan)
        modules = len(plan.places)
        self._head = HeadsTogether(heads, plan)
        self.weights = plan.weights = Weights(plan.places, modules)
        family = family_of(model.config.model_type)
        (stack_name,) = {p.slot.stack for i in injections for p in i.configuration.placements}
        layers = cast(nn.ModuleList, model.get_submodule(family.stacks[stack_name]))
        self.lowest = min(p.slot.index for i in injections for p in i.configuration.placements)
        repeat = _Repeat(layers[self.lowest], lambda: len(self.members))
        self._hooks = [layer.register_forward_pre_hook(repeat, with_kwargs=True) for layer in layers[self.lowest :]]

    @property
    def rates(self) -> list[tuple[float, float]]:
        """Peak learning rates of modules and of the head, by row."""
        training = [self.injections[k].configuration.training for k in self.members]
        return [(t.learning_rate, t.rate_of_head) for t in training]

    def outputs(self, last: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Returns what the heads make of the last hidden states, shape (K, B, outputs).

        Args:
            last: Shape (K B, tokens, width).
            mask: 1 at real tokens, 0 at padding, shape (B, tokens).
        """
        return self._head(last, mask.repeat(len(self.members), 1))

    def leave(self, numbers: Sequence[int]) -> None:
        """Takes configurations out of the stack, their parameters written back; what stays is not changed by it."""
        kept = [row for row, k in enumerate(self.members) if k not in numbers]
        for row, k in enumerate(self.members):
            if k in numbers:
                self.weights.write_back(row)
        self.members = [self.members[row] for row in kept]
        if not kept:
            return
        self.weights.keep(kept)
        for kind in self._together:
            kind.keep(kept)

    def write_back(self) -> None:
        """Copies what was trained into the parameters of injections and heads."""
        for row in range(len(self.members)):
            self.weights.write_back(row)

    def eject(self) -> None:
        """Takes everything out; the backbone is then bit for bit what it was."""
        for hook in self._hooks:
            hook.remove()
        for injection in self.injections:
            injection.eject()


def stack(
    model: PreTrainedModel,
    configurations: Sequence[Configuration],
    head_of: Callable[[], HeadLayer],
    begin: Callable[[int], None],
) -> Stack:
    """Injects K configurations side by side; rows k B to (k + 1) B of every layer from the lowest module on are k's.

    Args:
        model: The backbone, without layouts.
        configurations: What to insert; each has a module, and only modules of `TOGETHER`.
        head_of: Builds a head.
        begin: Called with k before the modules and the head of configuration k are drawn: seeds torch as a separate run
            would, so that the fresh weights are those of a separate run.

    Raises:
        InputError: A configuration cannot be stacked or does not fit the model, or the model has modules already; the
            model is then as it was.

    Example:
        >>> s = stack(model, configurations, build, lambda k: seed_all(0)); ...; s.eject()  # doctest: +SKIP
    """
    backbone = backbone_in(model)
    if present := layouts.stack(backbone):
        raise InputError("a layout is in place", where=present[0][0], cure="eject it")
    injections: list[Injection] = []
    heads: list[HeadLayer] = []
    try:
        for k, configuration in enumerate(configurations):
            _require_stackable(configuration)
            begin(k)
            injections.append(attach(backbone, configuration, name=f"stacked_{k}", make_sidecar=StackedSidecar))
            heads.append(head_of())
        return Stack(backbone, injections, heads)
    except BaseException:
        for injection in injections:
            injection.eject()
        raise


def _require_stackable(configuration: Configuration) -> None:
    if not configuration.placements:
        raise InputError("a configuration without modules has nothing to stack", cure="train it alone")
    for placement in configuration.placements:
        if not placement.module.stackable:
            what = f"{placement.module.kind} cannot be trained beside other configurations"
            raise InputError(what, where=str(placement.slot), cure="train it alone")


def _layers(injection: Injection) -> list[ModuleLayer]:
    return [layer for _, layer in injection.built]


def _gather(injections: Sequence[Injection], plan: Plan) -> list[Together]:
    """Makes one `Together` per slot and class of layer, and hangs it into the slot's sidecar."""
    found: dict[tuple[Slot, type[ModuleLayer]], list[ModuleLayer | None]] = {}
    sidecars: dict[Slot, StackedSidecar] = {}
    for k, injection in enumerate(injections):
        for (placement, layer), module in zip(injection.built, injection.hosts, strict=True):
            own = found.setdefault((placement.slot, type(layer)), [None] * len(injections))
            own[k] = layer
            sidecars[placement.slot] = cast(StackedSidecar, sidecar_of(module))
    made = []
    for (slot, kind), layers in found.items():
        made.append(TOGETHER[kind](layers, plan))
        sidecars[slot].together.append(made[-1])
    return made


class _Repeat:
    """Repeats what a layer is given for B rows: before the lowest module its input and the mask, later the mask.

    Args:
        lowest: The lowest layer with a module: the one that is given B rows.
        times: Gives K.
    """

    def __init__(self, lowest: nn.Module, times: Callable[[], int]) -> None:
        self._lowest, self._times = lowest, times
        self._rows = 0
        self._known: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(
        self, layer: nn.Module, given: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        rows = (given[0] if given else named["hidden_states"]).shape[0]
        if layer is self._lowest:
            self._rows, self._known = rows, []
        return tuple(map(self._repeated, given)), {name: self._repeated(value) for name, value in named.items()}

    def _repeated(self, value: Any) -> Any:
        times = self._times()
        if times == 1 or not isinstance(value, torch.Tensor) or value.dim() < 2 or value.shape[0] != self._rows:
            return value
        for original, repeated in self._known:
            if original is value:
                return repeated
        self._known.append((value, value.repeat(times, *[1] * (value.dim() - 1))))
        return self._known[-1][1]


def _sum(total: torch.Tensor, terms: Sequence[torch.Tensor | None]) -> torch.Tensor:
    for term in terms:
        total = total if term is None else total + term
    return total
