"""Prefixes in torch: flat, or reparameterised by one MLP per group while training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from autopeft.modules.layers import AttentionLayer, ModuleLayer
from autopeft.modules.prefix.spec import Prefix
from autopeft.shapes import Slot, SlotShape


def _per_head(flat: torch.Tensor, heads: int) -> torch.Tensor:
    """(p, heads * head_dim) -> (heads, p, head_dim)."""
    return flat.view(flat.shape[0], heads, -1).transpose(0, 1)


class FlatPrefix(AttentionLayer):
    """Keys and values of shape (p, kv_heads * head_dim), trained as they are."""

    def __init__(self, module: Prefix, shape: SlotShape) -> None:
        super().__init__()
        self.heads = shape.kv_heads
        width = shape.kv_heads * shape.head_dim
        self.key = nn.Parameter(torch.randn(module.length, width) * module.init_std)
        self.value = nn.Parameter(torch.randn(module.length, width) * module.init_std)

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        """See `AttentionLayer.forward`."""
        return _per_head(self.key, self.heads), _per_head(self.value, self.heads)


class PrefixMlp(nn.Module):
    """The group's shared part: Embedding(p, d) -> Linear(d, m) -> tanh -> Linear(m, sum of 2 d_kv)."""

    def __init__(self, module: Prefix, d: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(module.length, d) * module.init_std)
        self.inner = nn.Linear(d, module.mlp)
        self.outer = nn.Linear(module.mlp, width)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Returns columns `start` to `stop` of the MLP's output, shape (p, stop - start)."""
        hidden = torch.tanh(self.inner(self.embedding))
        return functional.linear(hidden, self.outer.weight[start:stop], self.outer.bias[start:stop])


class MlpPrefix(AttentionLayer):
    """One layer's keys and values, computed from the group's MLP; saved flat."""

    def __init__(self, shared: PrefixMlp, shape: SlotShape, start: int) -> None:
        super().__init__()
        self.shared = shared
        self.heads = shape.kv_heads
        self.start, self.width = start, shape.kv_heads * shape.head_dim

    def _flat(self) -> tuple[torch.Tensor, torch.Tensor]:
        key, value = self.shared.rows(self.start, self.start + 2 * self.width).split(self.width, dim=1)
        return key, value

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        """See `AttentionLayer.forward`."""
        key, value = self._flat()
        return _per_head(key, self.heads), _per_head(value, self.heads)

    @torch.no_grad()
    def stored_state(self) -> dict[str, torch.Tensor]:
        """Returns the flat prefix the MLP computes now; the MLP itself is discarded."""
        key, value = self._flat()
        return {"key": key.contiguous(), "value": value.contiguous()}


def build(module: Prefix, shapes: Mapping[Slot, SlotShape]) -> dict[Slot, ModuleLayer]:
    """Builds the prefixes of one group: flat ones share nothing, reparameterised ones share one MLP."""
    if not module.mlp:
        return {slot: FlatPrefix(module, shape) for slot, shape in shapes.items()}
    widths = [2 * s.kv_heads * s.head_dim for s in shapes.values()]
    shared = PrefixMlp(module, next(iter(shapes.values())).d_in, sum(widths))
    starts = [sum(widths[:i]) for i in range(len(widths))]
    return {slot: MlpPrefix(shared, shape, start) for (slot, shape), start in zip(shapes.items(), starts, strict=True)}
