"""Selective methods: a few of the backbone's own parameters are trained, in private copies. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autopeft.modules.base import ParameterCount, PeftModule, register
from autopeft.modules.lora.spec import LINEAR_SITES
from autopeft.shapes import SlotShape

NORM_SITES = ("norm", "norm1", "norm2")
"""LayerNorms: of the embeddings ("embeddings.0.norm"), after a layer's attention, after its FFN."""


@register("bitfit")
@dataclass(frozen=True)
class BitFit(PeftModule):
    """BitFit: trains the bias at its slot, of a Linear or of a LayerNorm (arXiv 2106.10199, section 3).

    The paper trains all of them: in each layer those of query, key, value, attention output, both Linears of the FFN
    and both LayerNorms, and the LayerNorm of the embeddings; `presets.preset("bitfit", ...)` is that. Biases outside
    (the pooler's, ELECTRA's projection of its embeddings) belong to no slot and stay. The bias of the key cancels in
    the softmax: it is trained, stored and counted as in the paper, and changes nothing. A slot of width d holds d
    parameters.

    Example:
        >>> BitFit().count([SlotShape(64, 128)]).stored
        128
    """

    sites = frozenset((*LINEAR_SITES, *NORM_SITES))
    layer = "autopeft.modules.selective.layer"
    trains_own = frozenset({"bias"})

    def count(self, shapes: Sequence[SlotShape]) -> ParameterCount:
        return ParameterCount.same(sum(s.d_out for s in shapes))

    def check(self, shape: SlotShape) -> None:
        """Fits every backbone whose Linears have biases; all families of this release do."""


@register("layer_norm")
@dataclass(frozen=True)
class LayerNormTuning(PeftModule):
    """LayerNorm tuning: trains weight and bias of the LayerNorm at its slot (arXiv 2312.11420).

    `presets.preset("layer_norm", ...)` trains all of the backbone, that of the embeddings included. A serial adapter in
    the same layer reads the LayerNorm as it is trained. A LayerNorm of width d holds 2 d parameters.

    Example:
        >>> LayerNormTuning().count([SlotShape(64, 64)]).stored
        128
    """

    sites = frozenset(NORM_SITES)
    layer = "autopeft.modules.selective.layer"
    trains_own = frozenset({"weight", "bias"})

    def count(self, shapes: Sequence[SlotShape]) -> ParameterCount:
        return ParameterCount.same(sum(2 * s.d_out for s in shapes))

    def check(self, shape: SlotShape) -> None:
        """Fits every LayerNorm."""
