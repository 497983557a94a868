"""Joins specifications and layers: the one place that imports a module's torch file, on first build."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import cast

from autopeft.modules.base import PeftModule
from autopeft.modules.layers import ModuleLayer
from autopeft.shapes import Slot, SlotShape


def build(module: PeftModule, shapes: Mapping[Slot, SlotShape]) -> dict[Slot, ModuleLayer]:
    """Builds the layers of one group at once, so that they can share weights.

    Args:
        module: The specification all placements of the group share.
        shapes: Shape of every slot of the group, in canonical order.

    Weights are drawn from torch's global generator: seed it first.

    Example:
        >>> build(Lora(8), {Slot("encoder", 0, "attention.query"): SlotShape(64, 64)})  # doctest: +SKIP
    """
    layer_file = importlib.import_module(module.layer)
    return cast(dict[Slot, ModuleLayer], layer_file.build(module, shapes))
