"""The task head in torch; see `spec.py`."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from autopeft.families import StockHead
from autopeft.heads.spec import Head

_ACTIVATIONS = {"tanh": torch.tanh, "relu": functional.relu, "gelu": functional.gelu}


class HeadLayer(nn.Module):
    """Pools the last hidden states and maps them to outputs.

    Args:
        head: The specification.
        width: Width of the hidden states.
        outputs: Number of classes, or 1.
        stock: The family's stock head; used by the kind "transformers" only.

    Weights are drawn from torch's global generator (normal, 0.02); biases start at 0.
    """

    def __init__(self, head: Head, width: int, outputs: int, stock: StockHead) -> None:
        super().__init__()
        self.kind = head.kind
        self.activation = stock.activation
        self.dense = nn.Linear(width, width) if head.kind == "transformers" else None
        self.output = nn.Linear(width, outputs)
        for linear in (self.dense, self.output):
            if linear is not None:
                nn.init.normal_(linear.weight, std=0.02)
                nn.init.zeros_(linear.bias)

    def start_from(self, backbone: nn.Module, stock: StockHead) -> None:
        """Takes over the pretrained dense Linear where the family has one (BERT's pooler)."""
        if self.dense is not None and stock.pretrained_dense:
            pretrained = backbone.get_submodule(stock.pretrained_dense)
            self.dense.load_state_dict(pretrained.state_dict())

    def features(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Returns what the output Linear reads, shape (batch, width).

        Args:
            hidden: Last hidden states, shape (batch, tokens, width).
            mask: 1 at real tokens, 0 at padding, shape (batch, tokens).
        """
        pooled = self.pooled(hidden, mask)
        return pooled if self.dense is None else self.activate(self.dense(pooled))

    def pooled(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Returns one vector per text, before any Linear, shape (batch, width); arguments as in `features`."""
        if self.kind == "mean":
            weights = mask.to(hidden.dtype).unsqueeze(-1)
            return (hidden * weights).sum(dim=1) / weights.sum(dim=1)
        return hidden[:, 0]

    def activate(self, inner: torch.Tensor) -> torch.Tensor:
        """Returns what follows the dense Linear, of any shape."""
        return _ACTIVATIONS[self.activation](inner)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Returns outputs of shape (batch, outputs); arguments as in `features`."""
        outputs: torch.Tensor = self.output(self.features(hidden, mask))
        return outputs
