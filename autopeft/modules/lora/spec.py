"""Low-rank adaptation of a Linear. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autopeft.errors import InputError
from autopeft.modules.base import ParameterCount, PeftModule, as_floats, register, require_at_least_one
from autopeft.shapes import SlotShape

LINEAR_SITES = ("attention.query", "attention.key", "attention.value", "attention.output", "ffn.up", "ffn.down")


@register("lora")
@dataclass(frozen=True)
class Lora(PeftModule):
    """LoRA: adds (alpha / r) B A x to the output of a Linear (arXiv 2106.09685, eq. 3).

    A starts Kaiming-uniform(a=sqrt 5), B at zero: the start is the identity. One d_in x d_out Linear holds
    r (d_in + d_out) parameters.

    Attributes:
        rank: The rank r, 1 to min(d_in, d_out).
        alpha: Numerator of the scaling; 0 means 2 r, so that the scaling is 2 at every rank.

    Example:
        >>> Lora(rank=8).scaling
        2.0
    """

    sites = frozenset(LINEAR_SITES)
    layer = "autopeft.modules.lora.layer"
    stackable = True
    rank: int
    alpha: float = 0.0

    def __post_init__(self) -> None:
        require_at_least_one(self.rank, "rank")
        as_floats(self, "alpha")

    @property
    def scaling(self) -> float:
        """The factor alpha / r in front of B A x."""
        return (self.alpha or 2.0 * self.rank) / self.rank

    def count(self, shapes: Sequence[SlotShape]) -> ParameterCount:
        return ParameterCount.same(sum(self.rank * (s.d_in + s.d_out) for s in shapes))

    def check(self, shape: SlotShape) -> None:
        most = min(shape.d_in, shape.d_out)
        if self.rank > most:
            raise InputError(f"rank {self.rank} is larger than min(d_in, d_out) = {most}", cure=f"use 1 to {most}")
