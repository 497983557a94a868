"""Serial and parallel bottleneck adapters in torch; equations in `spec.py`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch

import torch
from torch import nn
from torch.nn import functional

from autopeft.modules.adapter.spec import ParallelAdapter, SerialAdapter
from autopeft.modules.base import PeftModule
from autopeft.modules.layers import FfnLayer, ModuleLayer
from autopeft.shapes import Slot, SlotShape


class SerialLayer(FfnLayer):
    """W_up relu(W_down LN(h + x)): down is (b, d), up is (d, b)."""

    def __init__(self, module: SerialAdapter, shape: SlotShape) -> None:
        super().__init__()
        self.down = nn.Linear(shape.d_in, module.bottleneck)
        self.up = nn.Linear(module.bottleneck, shape.d_out)
        nn.init.normal_(self.down.weight, std=module.init_std)
        nn.init.normal_(self.up.weight, std=0.0 if module.zero_up else module.init_std)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.bias)

    def forward(self, h: torch.Tensor, x: torch.Tensor, norm: nn.Module) -> torch.Tensor:
        """See `FfnLayer.forward`."""
        term: torch.Tensor = self.up(functional.relu(self.down(norm(h + x))))
        return term


class ParallelLayer(FfnLayer):
    """s W_up relu(W_down x): down is (b, d), up is (d, b)."""

    def __init__(self, module: ParallelAdapter, shape: SlotShape) -> None:
        super().__init__()
        self.scale = module.scale
        self.down = nn.Linear(shape.d_in, module.bottleneck)
        self.up = nn.Linear(module.bottleneck, shape.d_out)
        nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, h: torch.Tensor, x: torch.Tensor, norm: nn.Module) -> torch.Tensor:  # noqa: ARG002
        """See `FfnLayer.forward`."""
        term: torch.Tensor = self.scale * self.up(functional.relu(self.down(x)))
        return term


@singledispatch
def _layer(module: PeftModule, shape: SlotShape) -> ModuleLayer:  # noqa: ARG001
    raise TypeError(f"{module.kind} is not a bottleneck adapter")


_layer.register(SerialAdapter, SerialLayer)
_layer.register(ParallelAdapter, ParallelLayer)


def build(module: PeftModule, shapes: Mapping[Slot, SlotShape]) -> dict[Slot, ModuleLayer]:
    """Builds one adapter per slot; nothing is shared."""
    return {slot: _layer(module, shape) for slot, shape in shapes.items()}
