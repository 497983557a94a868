"""The shape of a backbone as plain numbers: which slots it has and how wide they are. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
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
}
"""What `BackboneShape.to_dict` looks like (`autopeft.untrusted.require_form`)."""
_SLOT = re.compile(r"^(?P<stack>[a-z][a-z0-9_]*)\.(?P<index>\d+)\.(?P<site>[a-z0-9_.]+)$")


@dataclass(frozen=True, order=True)
class Slot:
    """A place in the backbone where a module attaches.

    Attributes:
        stack: Stack of layers, such as "encoder"; "backbone" (index 0) stands for the whole model.
        index: Layer index in the stack, counted from the input, from 0.
        site: Site in the layer: "ffn", "attention", "attention.query", "ffn.up" ...

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
        slots: Shape of every slot.
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

    @cached_property
    def stacks(self) -> dict[str, int]:
        """Number of layers per stack, without the whole-backbone slot."""
        depth: dict[str, int] = {}
        for slot in self.slots:
            if slot.stack != "backbone":
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
        depth = 1 if slot.stack == "backbone" else self.layers(slot.stack)
        if slot.index >= depth:
            raise InputError(
                f"layer {slot.index} does not exist",
                where=str(slot),
                cure=f"'{slot.stack}' has layers 0 to {depth - 1}",
            )
        sites = {s.site for s in self.slots if s.stack == slot.stack}
        raise InputError(f"{self.family} has no site '{slot.site}'", where=str(slot), cure=nearest(slot.site, sites))

    def __iter__(self) -> Iterator[Slot]:
        return iter(self.slots)

    def to_dict(self) -> dict[str, Any]:
        """Returns a JSON-able form; zero fields are left out."""
        return {
            "family": self.family,
            "total_parameters": self.total_parameters,
            "width": self.width,
            "positions": self.positions,
            "slots": {str(slot): {k: v for k, v in vars(s).items() if v} for slot, s in self.slots.items()},
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> BackboneShape:
        """Inverse of `to_dict`; raises ValueError or InputError where it is not the form of a shape."""
        require_form(data, FORM, "shape")
        sizes = [data["total_parameters"], data["width"], *(fields["d_in"] for fields in data["slots"].values())]
        if min(sizes) < 1 or any(n < 0 for fields in data["slots"].values() for n in fields.values()):
            raise ValueError("shape holds a width or a number of parameters that is too small")
        slots = {Slot.parse(name): SlotShape(**fields) for name, fields in data["slots"].items()}
        return BackboneShape(data["family"], slots, data["total_parameters"], data["width"], data.get("positions", 0))
