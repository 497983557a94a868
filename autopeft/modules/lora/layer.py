"""LoRA in torch; equation in `spec.py`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from autopeft.modules.layers import LinearLayer, ModuleLayer
from autopeft.modules.lora.spec import Lora
from autopeft.shapes import Slot, SlotShape


class LoraLayer(LinearLayer):
    """(alpha / r) B A x: A is (r, d_in), B is (d_out, r)."""

    def __init__(self, module: Lora, shape: SlotShape) -> None:
        super().__init__()
        self.scaling = module.scaling
        self.a = nn.Parameter(torch.empty(module.rank, shape.d_in))
        self.b = nn.Parameter(torch.zeros(shape.d_out, module.rank))
        nn.init.kaiming_uniform_(self.a, a=5**0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See `LinearLayer.forward`."""
        return functional.linear(functional.linear(x, self.a), self.b) * self.scaling


def build(module: Lora, shapes: Mapping[Slot, SlotShape]) -> dict[Slot, ModuleLayer]:
    """Builds one pair A, B per slot; nothing is shared."""
    return {slot: LoraLayer(module, shape) for slot, shape in shapes.items()}
