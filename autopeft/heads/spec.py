"""Specification of the task head on top of the last hidden states. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from autopeft.errors import InputError, nearest

HeadKind = Literal["mean", "cls", "transformers"]


@dataclass(frozen=True)
class Head:
    """How the last hidden states (batch, tokens, width) become outputs (batch, classes).

    Attributes:
        kind: "mean" (a Linear on the masked mean over tokens), "cls" (a Linear on the first token) or "transformers"
            (the stock task head of the family, for people who must load without us; for BERT: pooler and classifier).

    Example:
        >>> Head("mean").count(width=384, outputs=6)
        2310
    """

    kind: HeadKind = "mean"

    def __post_init__(self) -> None:
        if self.kind not in get_args(HeadKind):
            raise InputError(f"unknown head '{self.kind}'", where="head", cure=nearest(self.kind, get_args(HeadKind)))

    def count(self, width: int, outputs: int) -> int:
        """Returns the number of trained parameters of the head."""
        dense = width * width + width if self.kind == "transformers" else 0
        return dense + width * outputs + outputs

    def to_dict(self) -> dict[str, Any]:
        """Returns a JSON-able form."""
        return {"kind": self.kind}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Head:
        """Inverse of `to_dict`."""
        return Head(**data)
