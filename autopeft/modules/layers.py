"""The torch side of a PEFT module: what each site expects of the layer that sits there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

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


class PrivateCopies(ModuleLayer, ABC):
    """Trains private copies of exactly some of the backbone's own parameters; the shared tensors stay as they are.

    The copies are made when the layer meets its host, and take the places of the shared parameters by reference as long
    as it is bound. `unbind` puts the very same shared tensors back. Binding again goes on with the copies as they are.
    """

    def __init__(self) -> None:
        super().__init__()
        self.copies = nn.ParameterDict()
        self._shared: list[tuple[nn.Module, str, nn.Parameter, str]] = []

    @abstractmethod
    def chosen(self, host: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
        """Yields (name, owning module, attribute) of every parameter to copy.

        Args:
            host: The module at the slot, or the whole backbone.
        """

    def copy_from(self, host: nn.Module) -> None:
        """Makes the copies, and remembers whose they are; the host computes as before until `bind`."""
        by_identity: dict[int, nn.Parameter] = {}
        for name, owner, attribute in list(self.chosen(host)):
            shared = owner._parameters[attribute]
            assert shared is not None
            key = name.replace(".", "/")  # a dictionary of parameters takes no dots
            # Two names of one tensor (tied embeddings) stay one tensor in the copy.
            self.copies[key] = by_identity.setdefault(id(shared), nn.Parameter(shared.detach().clone()))
            self._shared.append((owner, attribute, shared, key))

    def bind(self) -> None:
        """Puts the copies in place of the shared parameters."""
        for owner, attribute, _, key in self._shared:
            owner._parameters[attribute] = self.copies[key]

    def unbind(self) -> None:
        """Puts the very same shared parameters back."""
        for owner, attribute, shared, _ in self._shared:
            owner._parameters[attribute] = shared

    def stored_state(self) -> dict[str, torch.Tensor]:
        """Returns every trained parameter under its name in the host; the tensors are those that are trained."""
        return {key.replace("/", "."): tensor.detach() for key, tensor in self.copies.items()}
