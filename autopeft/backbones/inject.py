"""Inject a configuration's modules into a backbone and eject them again, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel

from autopeft.backbones import layouts
from autopeft.backbones.attention import carry_prefixes, drop_unused_prefixes
from autopeft.backbones.sidecar import (
    SIDECAR,
    AttentionHost,
    FfnBlockHost,
    FfnOutputBlockHost,
    LinearHost,
    Sidecar,
    host,
    release,
)
from autopeft.configuration import Configuration, Placement
from autopeft.errors import InputError
from autopeft.families import Family, family_of, shape_of
from autopeft.heads.layer import HeadLayer
from autopeft.modules.build import build
from autopeft.modules.layers import ModuleLayer, PrivateCopies
from autopeft.shapes import EMBEDDINGS, WHOLE, BackboneShape, Slot

Built = list[tuple[Placement, ModuleLayer]]


@dataclass(frozen=True)
class Injection:
    """The modules of one configuration in one model.

    Attributes:
        model: The bare backbone they sit in.
        configuration: What was injected.
        name: Name of the layout.
        built: Placements and their layers, in canonical order.
        hosts: The modules that were made hosts.
        ejected: Not empty once it was ejected; another layout may have taken the name since.
    """

    model: PreTrainedModel
    configuration: Configuration
    name: str
    built: tuple[tuple[Placement, ModuleLayer], ...]
    hosts: tuple[nn.Module, ...]
    ejected: list[bool] = field(default_factory=list, repr=False, compare=False)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yields every trained parameter once, shared ones under their first name."""
        seen: set[int] = set()
        for placement, layer in self.built:
            for name, parameter in layer.named_parameters():
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield f"{placement.slot}.{placement.module.kind}.{name}", parameter

    def stored_state(self) -> dict[str, torch.Tensor]:
        """Returns the tensors to save, named SLOT.KIND.TENSOR, reparameterisations ejected."""
        return {
            f"{placement.slot}.{placement.module.kind}.{name}": tensor
            for placement, layer in self.built
            for name, tensor in layer.stored_state().items()
        }

    def eject(self) -> None:
        """Takes the modules out; without other layouts the backbone is then bit for bit what it was.

        Layouts may leave in any order; the last injected of those that stay is the active one. A second call does
        nothing.
        """
        if self.ejected:
            return
        self.ejected.append(True)
        layouts.remove(self.model, self.name)
        for module in self.hosts:
            release(module, self.name)
        drop_unused_prefixes(self.model)


def trained_parameters(injection: Injection, head: HeadLayer) -> dict[str, nn.Parameter]:
    """Returns what a run trains, by name: every parameter of the modules once, and the head's."""
    return {**dict(injection.named_parameters()), **{f"head.{k}": p for k, p in head.named_parameters()}}


def backbone_in(model: PreTrainedModel) -> PreTrainedModel:
    """Returns the bare backbone inside a task model, or the model itself."""
    return cast(PreTrainedModel, getattr(model, model.base_model_prefix, model))


def shape_in(model: PreTrainedModel) -> BackboneShape:
    """Returns the shape of a loaded model; raises InputError for a family without a map."""
    return shape_of(model.config.to_dict())


def inject(
    model: PreTrainedModel,
    configuration: Configuration,
    *,
    name: str = "default",
    tensors: Mapping[str, torch.Tensor] | None = None,
) -> Injection:
    """Builds a configuration's modules and attaches them to a backbone, whose own parameters are frozen.

    The configuration is checked and every layer is built before the first one is attached, so a refusal leaves the
    model as it was. A module that trains parameters of the backbone itself does so in private copies: the shared
    tensors are not written to, and `eject` puts the very same ones back.

    Args:
        model: A transformers model of a known family, bare or with a task head.
        configuration: What to insert.
        name: Name of the layout; several layouts can share a model, and the last one injected is active: of the
            others nothing takes part in the forward pass. Private copies of the backbone's own parameters are in place
            while their layout is active.
        tensors: Stored tensors to load, named as `Injection.stored_state` names them; None: fresh weights, drawn from
            torch's global generator in canonical order (seed it first).

    Raises:
        InputError: The configuration does not fit the model, the name is taken, or tensors are missing, superfluous or
            of another shape.

    Example:
        >>> injection = inject(model, configuration); ...; injection.eject()  # doctest: +SKIP
    """
    backbone = backbone_in(model)
    layouts.require_room(backbone, name)
    with layouts.put_back(backbone):  # private copies are made of the shared parameters
        injection = attach(model, configuration, name=name, tensors=tensors)
    layouts.push(backbone, name, [layer for _, layer in injection.built if isinstance(layer, PrivateCopies)])
    return injection


def attach(
    model: PreTrainedModel,
    configuration: Configuration,
    *,
    name: str,
    tensors: Mapping[str, torch.Tensor] | None = None,
    make_sidecar: type[Sidecar] = Sidecar,
) -> Injection:
    """Does what `inject` does without deciding which layout is active: for sidecars that know it themselves.

    Args:
        model: As for `inject`.
        configuration: As for `inject`.
        name: As for `inject`.
        tensors: As for `inject`.
        make_sidecar: Class of the sidecars.

    Raises:
        InputError: As for `inject`.
    """
    backbone = backbone_in(model)
    family, shape = family_of(backbone.config.model_type), shape_in(backbone)
    configuration.check(shape)
    built = _build(configuration, shape)
    reference = next(backbone.parameters())
    for _, layer in built:
        place_beside(layer, reference)
    for placement, layer in built:
        if isinstance(layer, PrivateCopies):
            _copy(backbone, family, placement.slot, layer)
    if tensors is not None:
        load_tensors(built, tensors)
    if any(p.slot.site == "attention" for p, _ in built):
        carry_prefixes(backbone)
    for path, parameter in backbone.named_parameters():
        if SIDECAR not in path:
            parameter.requires_grad_(False)
    hosts = []
    for placement, layer in built:
        if isinstance(layer, PrivateCopies):
            continue  # bound when its layout is active
        module, mixin = _seam(backbone, family, placement.slot)
        host(module, mixin, str(placement.slot), make_sidecar).add(name, placement.module.kind, layer)
        hosts.append(module)
    return Injection(backbone, configuration, name, tuple(built), tuple(hosts))


def place_beside(layer: nn.Module, reference: torch.Tensor) -> None:
    """Moves a fresh layer to a tensor's device and type; on the meta device it stays, its weights are yet to come."""
    on_meta = any(p.is_meta for p in layer.parameters())
    layer.to(dtype=reference.dtype, device=None if on_meta else reference.device)


def load_tensors(built: Built, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copies stored tensors into built layers; checks every name and shape before it changes the first one.

    Raises:
        InputError: Tensors are missing, superfluous or of another shape.
    """
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
    expected: set[str] = set()
    for placement, layer in built:
        prefix = f"{placement.slot}.{placement.module.kind}."
        targets = layer.stored_state() if isinstance(layer, PrivateCopies) else layer.state_dict()
        for key, target in targets.items():
            expected.add(prefix + key)
            given = tensors.get(prefix + key)
            if given is None:
                raise InputError("tensor is missing", where=prefix + key, cure="save the adapter again")
            if given.shape != target.shape:
                raise InputError(
                    f"tensor has shape {tuple(given.shape)}, the configuration needs {tuple(target.shape)}",
                    where=prefix + key,
                    cure="use the weights saved with this configuration",
                )
            pairs.append((target, given))
    if extra := sorted(tensors.keys() - expected):
        raise InputError(f"{len(extra)} tensors belong to no module", where=extra[0], cure="save the adapter again")
    with torch.no_grad():
        for target, given in pairs:
            target.copy_(given)


def _build(configuration: Configuration, shape: BackboneShape) -> Built:
    layers: dict[tuple[Slot, str], ModuleLayer] = {}
    for members in configuration.groups:
        module = members[0].module
        for slot, layer in build(module, {p.slot: shape.at(p.slot) for p in members}).items():
            layers[slot, module.kind] = layer
    return [(p, layers[p.slot, p.module.kind]) for p in configuration.placements]


def _copy(backbone: nn.Module, family: Family, slot: Slot, layer: PrivateCopies) -> None:
    try:
        layer.copy_from(_own(backbone, family, slot))
    except InputError as refusal:
        raise InputError(refusal.what, where=str(slot), cure=refusal.cure) from None


def _own(backbone: nn.Module, family: Family, slot: Slot) -> nn.Module:
    """Returns the module at a slot whose own parameters are trained: a Linear, a LayerNorm, or the whole backbone."""
    if slot.stack == WHOLE:
        return backbone
    if slot.stack == EMBEDDINGS:
        return backbone.get_submodule(family.embeddings[slot.site])
    layer = cast(nn.ModuleList, backbone.get_submodule(family.stacks[slot.stack]))[slot.index]
    return layer.get_submodule({**family.linears, **family.norms}[slot.site])


def _seam(backbone: nn.Module, family: Family, slot: Slot) -> tuple[nn.Module, type]:
    layer = cast(nn.ModuleList, backbone.get_submodule(family.stacks[slot.stack]))[slot.index]
    if slot.site == "attention":
        return layer.get_submodule(family.attention), AttentionHost
    if slot.site == "ffn":
        module = layer.get_submodule(family.ffn.module)
        if family.ffn.form == "output_block":
            return module, FfnOutputBlockHost
        module.__dict__["autopeft_norm"] = (layer.get_submodule(family.ffn.norm),)
        return module, FfnBlockHost
    return layer.get_submodule(family.linears[slot.site]), LinearHost
