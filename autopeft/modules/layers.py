"""The torch side of a PEFT module: what each site expects of the layer that sits there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import nn


class ModuleLayer(nn.Module, ABC):
    """One placement's trained part."""

    def stored_state(self) -> dict[str, torch.Tensor]:
        """Returns the tensors to save, named as in the layer built from the specification's stored form."""
        return {name: tensor.detach() for name, tensor in self.state_dict().items()}


class FfnLayer(ModuleLayer):
    """Sits at "ffn": adds a term to the FFN's output, before the residual sum and the LayerNorm."""

    @abstractmethod
    def forward(self, h: torch.Tensor, x: torch.Tensor, norm: nn.Module) -> torch.Tensor:
        """Returns the term to add, shape (batch, tokens, d).

        Args:
            h: FFN output, shape (batch, tokens, d).
            x: FFN input, same shape.
            norm: The backbone's frozen LayerNorm that follows the FFN.
        """


class AttentionLayer(ModuleLayer):
    """Sits at "attention": gives keys and values in front of the layer's own."""

    @abstractmethod
    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns keys and values, each of shape (kv_heads, p, head_dim)."""


class LinearLayer(ModuleLayer):
    """Sits at a projection: adds a term to a Linear's output."""

    @abstractmethod
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the term to add, shape (..., d_out), for the Linear's input of shape (..., d_in)."""


class RebindingLayer(ModuleLayer):
    """Sits at the whole backbone: trains private copies of its own parameters, rebound in place of the shared ones."""

    @abstractmethod
    def bind(self, backbone: nn.Module) -> None:
        """Puts the private copies in place of the shared parameters."""

    @abstractmethod
    def unbind(self, backbone: nn.Module) -> None:
        """Puts the very same shared parameters back."""

    @abstractmethod
    def load_stored(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Fills the private copies from stored tensors; called before `bind`."""
