"""Full fine-tuning in torch: private copies of every parameter of the backbone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import final

from torch import nn

from autopeft.modules.full.spec import FullFineTuning
from autopeft.modules.layers import ModuleLayer, PrivateCopies
from autopeft.shapes import Slot, SlotShape


@final
class PrivateBackbone(PrivateCopies):
    """Trained copies of all parameters of a backbone."""

    def chosen(self, host: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
        """Yields every parameter, shared ones under each of their names; inserted parts are not the backbone's."""
        for prefix, owner in host.named_modules():
            if "autopeft_sidecar" in prefix:
                continue
            for name in list(owner._parameters):
                if owner._parameters[name] is not None:
                    yield (f"{prefix}.{name}" if prefix else name), owner, name


def build(module: FullFineTuning, shapes: Mapping[Slot, SlotShape]) -> dict[Slot, ModuleLayer]:  # noqa: ARG001
    """Builds the (still empty) private copy."""
    return {slot: PrivateBackbone() for slot in shapes}
