"""Full fine-tuning as a module: every backbone parameter is trained, in a private copy. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autopeft.modules.base import ParameterCount, PeftModule, register
from autopeft.shapes import SlotShape


@register("full_fine_tuning")
@dataclass(frozen=True)
class FullFineTuning(PeftModule):
    """Trains a private copy of every backbone parameter; the shared backbone stays as it was.

    It is the reference every PEFT configuration is compared with. It sits at the slot "backbone.0.all".

    Example:
        >>> FullFineTuning().sites
        frozenset({'all'})
    """

    sites = frozenset({"all"})
    layer = "autopeft.modules.full.layer"
    trains_own = frozenset({"*"})

    def count(self, shapes: Sequence[SlotShape]) -> ParameterCount:
        return ParameterCount.same(sum(s.parameters for s in shapes))

    def check(self, shape: SlotShape) -> None:
        """Fits every backbone."""
