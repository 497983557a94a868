"""Several layouts on one model: a stack of names at its root; the top one is active on every sidecar."""

from __future__ import annotations

from typing import Final

from torch import nn

from autopeft.backbones.sidecar import Sidecar
from autopeft.errors import InputError

LAYOUTS: Final = "autopeft_layouts"
"""Attribute of the backbone that holds pairs (name, whether it rebinds the backbone's own parameters)."""


def stack(backbone: nn.Module) -> list[tuple[str, bool]]:
    """Returns the layouts in order of injection."""
    return list(backbone.__dict__.get(LAYOUTS, ()))


def require_room(backbone: nn.Module, name: str) -> None:
    """Raises InputError where a layout of this name, or one that rebinds the backbone, is in place."""
    for present, rebinds in stack(backbone):
        if present == name:
            raise InputError("a layout of this name is in place", where=name, cure="eject it, or use another name")
        if rebinds:
            raise InputError("full fine-tuning has rebound the backbone", where=present, cure="eject it first")


def push(backbone: nn.Module, name: str, rebinds: bool) -> None:
    """Puts a layout on top, which makes it the active one."""
    _replace(backbone, [*stack(backbone), (name, rebinds)])


def remove(backbone: nn.Module, name: str) -> None:
    """Takes a layout off, wherever it is; the top of the rest is active then."""
    _replace(backbone, [entry for entry in stack(backbone) if entry[0] != name])


def _replace(backbone: nn.Module, entries: list[tuple[str, bool]]) -> None:
    if entries:
        backbone.__dict__[LAYOUTS] = entries
    else:
        backbone.__dict__.pop(LAYOUTS, None)
    for module in backbone.modules():
        if isinstance(module, Sidecar):
            module.active = entries[-1][0] if entries else None
