"""The shape of a backbone as plain numbers: which slots it has and how wide they are. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any

from autopeft.errors import InputError, nearest
from autopeft.untrusted import require_form

FORM = {
    "family": str,
    "total_parameters": int,
    "width": int,
    "positions?": int,
    "slots": {
        str: {"d_in": int, "d_out": int, "heads?": int, "kv_heads?": int, "head_dim?": int, "parameters?": int},
    },
    "norms?": {str: int},
}
"""What `BackboneShape.to_dict` looks like (`autopeft.untrusted.require_form`)."""
WHOLE = "backbone"
"""Stack of the one slot that stands for the whole model."""
EMBEDDINGS = "embeddings"
"""Stack of what lies below the first layer."""
_SLOT = re.compile(r"^(?P<stack>[a-z][a-z0-9_]*)\.(?P<index>\d+)\.(?P<site>[a-z0-9_.]+)$")


@dataclass(frozen=True, order=True)
class Slot:
    """A place in the backbone where a module attaches.

    Attributes:
        stack: Stack of layers, such as "encoder"; "embeddings" (index 0) lies below the first one, "backbone" (index 0)
            stands for the whole model.
        index: Layer index in the stack, counted from the input, from 0.
        site: Site in the layer: "ffn", "attention", "attention.query", "ffn.up", "norm1", "norm2" ...

    Example:
        >>> str(Slot("encoder", 3, "attention.query"))
        'encoder.3.attention.query'
    """

    stack: str
    index: int
    site: str

    def __str__(self) -> str:
        return f"{self.stack}.{self.index}.{self.site}"

    @staticmethod
    def parse(text: str) -> Slot:
        """Reads the text form of a slot; raises InputError where it is not one."""
        found = _SLOT.match(text)
        if found is None:
            raise InputError(f"'{text}' is not a slot", cure="write STACK.LAYER.SITE, such as 'encoder.0.ffn'")
        return Slot(found["stack"], int(found["index"]), found["site"])


@dataclass(frozen=True)
class SlotShape:
    """Widths at one slot, in numbers of features.

    Attributes:
        d_in: Width of what a module at the slot reads.
        d_out: Width of what it writes.
        heads: Attention heads (attention sites only).
        kv_heads: Key and value heads (fewer than `heads` with grouped queries).
        head_dim: Width of one head.
        parameters: Parameters of the backbone that the slot holds (the whole-backbone slot only).
    """

    d_in: int
    d_out: int
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    parameters: int = 0


@dataclass(frozen=True)
class BackboneShape:
    """Slots and widths of a backbone, enough to count and search without loading it.

    Attributes:
        family: Name of the family map, such as "bert".
        slots: Shape of every slot but the LayerNorms'.
        norms: Width of the LayerNorm at each slot that is one; empty in studies from before they were slots.
        total_parameters: Parameters of the bare `AutoModel`, pooler included; percentages refer to it.
        width: Width of the last hidden states.
        positions: Longest text in tokens it has positions for, or 0 where it is not known.

    Example:
        >>> shape.layers("encoder")  # doctest: +SKIP
        6
    """

    family: str
    slots: Mapping[Slot, SlotShape]
    total_parameters: int
    width: int
    positions: int = 0
    norms: Mapping[Slot, int] = field(default_factory=dict)

    @cached_property
    def stacks(self) -> dict[str, int]:
        """Number of layers per stack, without embeddings and the whole-backbone slot."""
        depth: dict[str, int] = {}
        for slot in self.slots:
            if slot.stack not in (WHOLE, EMBEDDINGS):
                depth[slot.stack] = max(depth.get(slot.stack, 0), slot.index + 1)
        return depth

    def layers(self, stack: str) -> int:
        """Returns the number of layers of `stack`; raises InputError for an unknown stack."""
        if stack not in self.stacks:
            raise InputError(f"{self.family} has no stack '{stack}'", cure=nearest(stack, self.stacks))
        return self.stacks[stack]

    def at(self, slot: Slot) -> SlotShape:
        """Returns the shape at `slot`; raises InputError naming the layers or sites that exist."""
        if slot in self.slots:
            return self.slots[slot]
        if slot in self.norms:
            return SlotShape(self.norms[slot], self.norms[slot])
        one = any(s.stack == slot.stack for s in self) and slot.stack in (WHOLE, EMBEDDINGS)
        depth = 1 if one else self.layers(slot.stack)
        if slot.index >= depth:
            raise InputError(
                f"layer {slot.index} does not exist",
                where=str(slot),
                cure=f"'{slot.stack}' has layers 0 to {depth - 1}",
            )
        sites = {s.site for s in self if s.stack == slot.stack}
        raise InputError(f"{self.family} has no site '{slot.site}'", where=str(slot), cure=nearest(slot.site, sites))

    def __iter__(self) -> Iterator[Slot]:
        return chain(self.slots, self.norms)

    def to_dict(self) -> dict[str, Any]:
        """Returns a JSON-able form; zero fields are left out."""
        norms = {"norms": {str(slot): width for slot, width in self.norms.items()}} if self.norms else {}
        return {
            "family": self.family,
            "total_parameters": self.total_parameters,
            "width": self.width,
            "positions": self.positions,
            "slots": {str(slot): {k: v for k, v in vars(s).items() if v} for slot, s in self.slots.items()},
            **norms,
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> BackboneShape:
        """Inverse of `to_dict`; raises ValueError or InputError where it is not the form of a shape."""
        require_form(data, FORM, "shape")
        norms = {Slot.parse(name): width for name, width in data.get("norms", {}).items()}
        sizes = [data["total_parameters"], data["width"], *(fields["d_in"] for fields in data["slots"].values())]
        sizes += norms.values()
        if min(sizes) < 1 or any(n < 0 for fields in data["slots"].values() for n in fields.values()):
            raise ValueError("shape holds a width or a number of parameters that is too small")
        slots = {Slot.parse(name): SlotShape(**fields) for name, fields in data["slots"].items()}
        total, width = data["total_parameters"], data["width"]
        return BackboneShape(data["family"], slots, total, width, data.get("positions", 0), norms)
