"""Prefix tuning: trained keys and values in front of a layer's own. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from autopeft.modules.base import ParameterCount, PeftModule, as_floats, register, require_at_least_one
from autopeft.shapes import SlotShape


@register("prefix")
@dataclass(frozen=True)
class Prefix(PeftModule):
    """Prefix: p keys and p values per head, concatenated in front of the layer's own (arXiv 2101.00190, eq. 3).

    No position shifts and the real tokens' mask is unchanged. With `mlp` the prefixes of one group come, while
    training, from Embedding(p, d) -> Linear(d, mlp) -> tanh -> Linear(mlp, sum of 2 d_kv over the group's layers);
    what is stored is flat: 2 p d_kv per layer.

    Attributes:
        length: Number p of prefix positions.
        mlp: Width of the reparameterising MLP while training (800 in the paper's released code), or 0 for none.
        init_std: Standard deviation of the normal initialisation of flat prefixes and of the MLP's embedding.

    Example:
        >>> Prefix(length=6, mlp=800).stored_form()
        Prefix(length=6, mlp=0, init_std=0.02)
    """

    sites = frozenset({"attention"})
    layer = "autopeft.modules.prefix.layer"
    stackable = True
    identity_at_start = False
    length: int
    mlp: int = 0
    init_std: float = 0.02

    def __post_init__(self) -> None:
        require_at_least_one(self.length, "prefix length")
        as_floats(self, "init_std")
        if self.mlp != 0:
            require_at_least_one(self.mlp, "width of the MLP")

    def count(self, shapes: Sequence[SlotShape]) -> ParameterCount:
        width = sum(2 * s.kv_heads * s.head_dim for s in shapes)
        stored = self.length * width
        if not self.mlp:
            return ParameterCount.same(stored)
        d, m = shapes[0].d_in, self.mlp
        return ParameterCount(stored, self.length * d + (d * m + m) + (m * width + width), stored)

    def check(self, shape: SlotShape) -> None:
        """Any length fits any attention."""

    def stored_form(self) -> Prefix:
        return replace(self, mlp=0)
