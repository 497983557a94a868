"""Full fine-tuning in torch: private copies of every parameter, rebound by reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from autopeft.modules.full.spec import FullFineTuning
from autopeft.modules.layers import ModuleLayer, RebindingLayer
from autopeft.shapes import Slot, SlotShape


def _owners(backbone: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Yields (full name, owning module, attribute) of every parameter, shared ones under each of their names."""
    for prefix, owner in backbone.named_modules():
        if "autopeft_sidecar" in prefix:  # inserted parts are not the backbone's
            continue
        for name in list(owner._parameters):
            if owner._parameters[name] is not None:
                yield (f"{prefix}.{name}" if prefix else name), owner, name


class PrivateBackbone(RebindingLayer):
    """Trained copies of a backbone's parameters; the shared tensors are kept by reference and come back at unbind."""

    def __init__(self) -> None:
        super().__init__()
        self.copies = nn.ParameterDict()
        self._shared: dict[str, nn.Parameter] = {}

    def bind(self, backbone: nn.Module) -> None:
        """See `RebindingLayer.bind`."""
        by_identity: dict[int, nn.Parameter] = {}
        for name, owner, attribute in list(_owners(backbone)):
            shared = owner._parameters[attribute]
            assert shared is not None
            key = name.replace(".", "/")
            if key not in self.copies:
                # Two names of one tensor (tied embeddings) must stay one tensor in the copy.
                self.copies[key] = by_identity.setdefault(id(shared), nn.Parameter(shared.detach().clone()))
            self._shared[key] = shared
            owner._parameters[attribute] = self.copies[key]

    def unbind(self, backbone: nn.Module) -> None:
        """See `RebindingLayer.unbind`."""
        for key, shared in self._shared.items():
            path, _, attribute = key.replace("/", ".").rpartition(".")
            backbone.get_submodule(path)._parameters[attribute] = shared
        self._shared = {}

    def stored_state(self) -> dict[str, torch.Tensor]:
        """Returns every trained parameter under its name in the backbone."""
        return {name.replace("/", "."): tensor.detach() for name, tensor in self.copies.items()}

    def load_stored(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Fills the copies; call before or after `bind`."""
        for name, tensor in tensors.items():
            key = name.replace(".", "/")
            if key in self.copies:
                self.copies[key].data.copy_(tensor)
            else:
                self.copies[key] = nn.Parameter(tensor.clone())


def build(module: FullFineTuning, shapes: Mapping[Slot, SlotShape]) -> dict[Slot, ModuleLayer]:  # noqa: ARG001
    """Builds the (still empty) private copy; `bind` fills it."""
    return {slot: PrivateBackbone() for slot in shapes}
