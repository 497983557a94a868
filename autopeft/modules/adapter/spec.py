"""Bottleneck adapters around the feed-forward block: serial and parallel. Torch-free.

d is the hidden width, b the bottleneck; one site holds 2 d b + b + d parameters (both Linears have biases).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autopeft.errors import InputError
from autopeft.modules.base import ParameterCount, PeftModule, as_floats, register, require_at_least_one
from autopeft.shapes import SlotShape


def _bottleneck_count(bottleneck: int, shapes: Sequence[SlotShape]) -> ParameterCount:
    return ParameterCount.same(sum((s.d_in + s.d_out) * bottleneck + bottleneck + s.d_out for s in shapes))


def _check_bottleneck(kind: str, bottleneck: int, shape: SlotShape) -> None:
    if bottleneck > shape.d_in:
        raise InputError(
            f"bottleneck {bottleneck} of {kind} is larger than the width {shape.d_in}",
            cure=f"use a bottleneck from 1 to {shape.d_in}",
        )


@register("serial_adapter")
@dataclass(frozen=True)
class SerialAdapter(PeftModule):
    """Serial adapter: h + W_up relu(W_down LN(h + x)), h the FFN output, x its input (arXiv 2301.12132, sec. 3.1).

    LN is the backbone's own frozen LayerNorm after the FFN. It adds its term to the FFN output, before that LayerNorm.

    Attributes:
        bottleneck: Width b of the hidden layer, 1 to d.
        init_std: Standard deviation of the normal initialisation; biases start at 0.
        zero_up: Start W_up at zero, so that the start is exactly the identity; False draws it like W_down, as the
            paper's released code does (a start close to the identity).

    Example:
        >>> SerialAdapter(bottleneck=48).bottleneck
        48
    """

    sites = frozenset({"ffn"})
    layer = "autopeft.modules.adapter.layer"
    stackable = True
    bottleneck: int
    init_std: float = 0.02
    zero_up: bool = True

    def __post_init__(self) -> None:
        require_at_least_one(self.bottleneck, "bottleneck")
        as_floats(self, "init_std")

    def count(self, shapes: Sequence[SlotShape]) -> ParameterCount:
        return _bottleneck_count(self.bottleneck, shapes)

    def check(self, shape: SlotShape) -> None:
        _check_bottleneck(self.kind, self.bottleneck, shape)


@register("parallel_adapter")
@dataclass(frozen=True)
class ParallelAdapter(PeftModule):
    """Scaled parallel adapter: adds s W_up relu(W_down x) to the FFN output, x the FFN input (arXiv 2110.04366, eq. 8).

    Attributes:
        bottleneck: Width b of the hidden layer, 1 to d.
        scale: The factor s, 4 in the AutoPEFT space (arXiv 2301.12132). W_down starts Kaiming-uniform(a=sqrt 5),
            W_up at zero: the start is the identity.

    Example:
        >>> ParallelAdapter(bottleneck=48).scale
        4.0
    """

    sites = frozenset({"ffn"})
    layer = "autopeft.modules.adapter.layer"
    stackable = True
    bottleneck: int
    scale: float = 4.0

    def __post_init__(self) -> None:
        require_at_least_one(self.bottleneck, "bottleneck")
        as_floats(self, "scale")

    def count(self, shapes: Sequence[SlotShape]) -> ParameterCount:
        return _bottleneck_count(self.bottleneck, shapes)

    def check(self, shape: SlotShape) -> None:
        _check_bottleneck(self.kind, self.bottleneck, shape)
