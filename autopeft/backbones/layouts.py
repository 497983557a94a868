"""Several layouts on one model: a stack of names at its root; the top one is active.

Active means: every sidecar calls its layers, and its private copies are in place of the backbone's own parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from torch import nn

from autopeft.backbones.sidecar import Sidecar
from autopeft.errors import InputError
from autopeft.modules.layers import PrivateCopies

LAYOUTS: Final = "autopeft_layouts"
"""Attribute of the backbone that holds pairs (name, private copies of the backbone's own parameters)."""
Entry = tuple[str, tuple[PrivateCopies, ...]]


def stack(backbone: nn.Module) -> list[Entry]:
    """Returns the layouts in order of injection."""
    return list(backbone.__dict__.get(LAYOUTS, ()))


def require_room(backbone: nn.Module, name: str) -> None:
    """Raises InputError where a layout of this name is in place."""
    if any(present == name for present, _ in stack(backbone)):
        raise InputError("a layout of this name is in place", where=name, cure="eject it, or use another name")


@contextmanager
def put_back(backbone: nn.Module) -> Iterator[None]:
    """Has the shared parameters in their places while a block runs, whatever layout is active."""
    _unbind(backbone)
    try:
        yield
    finally:
        _bind(backbone)


def push(backbone: nn.Module, name: str, copies: Sequence[PrivateCopies]) -> None:
    """Puts a layout on top, which makes it the active one."""
    _replace(backbone, [*stack(backbone), (name, tuple(copies))])


def remove(backbone: nn.Module, name: str) -> None:
    """Takes a layout off, wherever it is; the top of the rest is active then."""
    _replace(backbone, [entry for entry in stack(backbone) if entry[0] != name])


def _replace(backbone: nn.Module, entries: list[Entry]) -> None:
    _unbind(backbone)
    if entries:
        backbone.__dict__[LAYOUTS] = entries
    else:
        backbone.__dict__.pop(LAYOUTS, None)
    for module in backbone.modules():
        if isinstance(module, Sidecar):
            module.active = entries[-1][0] if entries else None
    _bind(backbone)


def _bind(backbone: nn.Module) -> None:
    for layer in stack(backbone)[-1][1] if stack(backbone) else ():
        layer.bind()


def _unbind(backbone: nn.Module) -> None:
    for layer in stack(backbone)[-1][1] if stack(backbone) else ():
        layer.unbind()
