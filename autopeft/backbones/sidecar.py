"""How modules attach: the host gets a child, the sidecar, and a class that calls it.

The host's class becomes a subclass of (mixin, its own class); its parameter names, hooks and identity stay. Removing
the last sidecar puts the class back, so the model is bit for bit the one it was. Everything lives in the module tree:
deep copies, pickling between processes, `state_dict` and `torch.compile` see it (docs/design/0002).
"""

from __future__ import annotations

from typing import Any, Final, cast

import torch
from torch import nn

from autopeft.errors import InputError
from autopeft.modules.layers import AttentionLayer, FfnLayer, LinearLayer

SIDECAR: Final = "autopeft_sidecar"
"""Name of the child that holds the inserted layers."""


class Sidecar(nn.Module):
    """The inserted layers of one host: layout name -> module kind -> layer.

    Args:
        slot: Text form of the slot the host stands for; "" for the root of a model, which carries a head.
    """

    def __init__(self, slot: str) -> None:
        super().__init__()
        self.slot = slot
        self.layouts = nn.ModuleDict()
        self.active: str | None = None

    def add(self, name: str, kind: str, layer: nn.Module) -> None:
        """Adds a layer to the layout `name`; which layout is active is decided for the whole model."""
        if name not in self.layouts:
            self.layouts[name] = nn.ModuleDict()
        cast(nn.ModuleDict, self.layouts[name])[kind] = layer

    def chosen(self) -> list[str]:
        """Returns the names of the layouts that take part in the forward pass."""
        return [] if self.active is None else [self.active]

    def layers(self) -> list[nn.Module]:
        """Returns the layers of the chosen layouts, in order of insertion."""
        present = [cast(nn.ModuleDict, self.layouts[name]) for name in self.chosen() if name in self.layouts]
        return [layer for layout in present for layer in layout.values()]

    def add_to_ffn(self, h: torch.Tensor, x: torch.Tensor, norm: nn.Module) -> torch.Tensor:
        """Returns h plus every layer's term; all terms read the same h and x of shape (batch, tokens, d)."""
        total = h
        for layer in self.layers():
            if isinstance(layer, FfnLayer):
                total = total + layer(h, x, norm)
        return total

    def add_to_linear(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Returns y plus every layer's term, for a Linear's output y and input x."""
        for layer in self.layers():
            if isinstance(layer, LinearLayer):
                y = y + layer(x)
        return y

    def prefixes(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Returns keys and values of every prefix, each of shape (kv_heads, p, head_dim).

        A sidecar of K configurations gives (K, kv_heads, p, head_dim), for as many equal parts of the batch.
        """
        return [layer() for layer in self.layers() if isinstance(layer, AttentionLayer)]

    def visible(self) -> torch.Tensor | None:
        """Returns which positions of all prefixes may be seen, shape (K, sum of p), or None where all may."""
        return None


def sidecar_of(module: nn.Module) -> Sidecar | None:
    """Returns the module's sidecar, or None."""
    return cast(Sidecar | None, module._modules.get(SIDECAR))


class Host:
    """Common part of the mixins: rebuilding a host class that has no importable name."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuild, type(self).__bases__, self.__dict__

    def _sidecar(self) -> Sidecar:
        return cast(Sidecar, cast(nn.Module, self)._modules[SIDECAR])


class LinearHost(Host):
    """A Linear that adds its sidecar's terms."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = super().forward(x)  # type: ignore[misc]
        return self._sidecar().add_to_linear(y, x)


class FfnOutputBlockHost(Host):
    """An output block LN(dropout(dense(z)) + x) that adds its sidecar's terms before the sum."""

    def forward(self, hidden_states: torch.Tensor, input_tensor: torch.Tensor) -> torch.Tensor:
        block = cast(Any, self)
        h = block.dropout(block.dense(hidden_states))
        normed: torch.Tensor = block.LayerNorm(
            self._sidecar().add_to_ffn(h, input_tensor, block.LayerNorm) + input_tensor
        )
        return normed


class FfnBlockHost(Host):
    """An FFN block h(x) whose layer adds x and normalises; the norm is known by reference, not as a child."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h: torch.Tensor = super().forward(x)  # type: ignore[misc]
        return self._sidecar().add_to_ffn(h, x, cast(Any, self).autopeft_norm[0])


class AttentionHost(Host):
    """An attention module whose prefixes are read by our attention function; refuses to drop them silently."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        chosen = str(cast(Any, self).config._attn_implementation)
        if self._sidecar().layers() and not chosen.startswith("autopeft_"):
            raise InputError(
                f"attention was set to '{chosen}', which would drop the prefixes",
                where="attn_implementation",
                cure=f"set_attn_implementation('autopeft_{chosen}')",
            )
        return super().forward(*args, **kwargs)  # type: ignore[misc]


_HOST_CLASSES: dict[tuple[type, type], type] = {}


def host_class(mixin: type, original: type) -> type:
    """Returns the subclass (mixin, original), made once per pair."""
    if (mixin, original) not in _HOST_CLASSES:
        _HOST_CLASSES[mixin, original] = _derive(mixin, original)
    return _HOST_CLASSES[mixin, original]


def _derive(mixin: type, original: type) -> type:
    return type(f"AutoPeft{original.__name__}", (mixin, original), {"__module__": original.__module__})


def _rebuild(mixin: type, original: type) -> nn.Module:
    cls = host_class(mixin, original)
    return cast(nn.Module, object.__new__(cls))


def host(module: nn.Module, mixin: type, slot: str, make_sidecar: type[Sidecar] = Sidecar) -> Sidecar:
    """Makes the module a host, unless it is one, and returns its sidecar."""
    present = sidecar_of(module)
    if present is not None:
        return present
    sidecar = make_sidecar(slot)
    module.add_module(SIDECAR, sidecar)
    module.__class__ = host_class(mixin, type(module))
    return sidecar


def release(module: nn.Module, name: str) -> None:
    """Removes the layout `name`; without any layout left the module gets its own class back."""
    sidecar = sidecar_of(module)
    if sidecar is None:
        return
    if name in sidecar.layouts:
        del sidecar.layouts[name]
    if not len(sidecar.layouts):
        restore(module)


def restore(module: nn.Module) -> None:
    """Takes the sidecar off whatever it holds and gives the module its own class back."""
    if sidecar_of(module) is not None:
        del module._modules[SIDECAR]
        module.__dict__.pop("autopeft_norm", None)
        module.__class__ = type(module).__bases__[1]
