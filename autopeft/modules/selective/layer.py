"""Selective methods in torch: private copies of the named parameters of the module at the slot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import final

from torch import nn

from autopeft.errors import InputError
from autopeft.modules.layers import ModuleLayer, PrivateCopies
from autopeft.modules.selective.spec import BitFit, LayerNormTuning
from autopeft.shapes import Slot, SlotShape


@final
class PrivateNamed(PrivateCopies):
    """Trained copies of some parameters of one module.

    Args:
        names: Their names in the module.
    """

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__()
        self._names = names

    def chosen(self, host: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
        """Yields the named parameters; raises InputError where the module has none of a name."""
        for name in sorted(self._names):
            if host._parameters.get(name) is None:
                what = f"this {type(host).__name__} has no {name}"
                raise InputError(what, cure="leave the module out at this slot")
            yield name, host, name


def build(module: BitFit | LayerNormTuning, shapes: Mapping[Slot, SlotShape]) -> dict[Slot, ModuleLayer]:
    """Builds the (still empty) private copies."""
    return {slot: PrivateNamed(module.trains_own) for slot in shapes}
