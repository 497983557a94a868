"""The trained weights of K configurations in one matrix: row k holds those of configuration k, padded with zeros."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

EVERYTHING: Final = slice(None)


@dataclass(frozen=True)
class Piece:
    """What one configuration has at one place of the matrix.

    Attributes:
        name: Name of its parameter, as `backbones.trained_parameters` names it.
        parameter: The parameter.
        rows: The part of its first dimension that lies here; the rest lies elsewhere.
    """

    name: str
    parameter: nn.Parameter
    rows: slice

    @property
    def value(self) -> torch.Tensor:
        """Its numbers as they are now, a view."""
        return self.parameter.detach()[self.rows]


@dataclass(frozen=True)
class Place:
    """Some columns of the matrix: one tensor of every configuration that has it.

    Attributes:
        shape: The largest shape over the configurations.
        pieces: By position of the configuration; None where it has nothing here.
    """

    shape: tuple[int, ...]
    pieces: tuple[Piece | None, ...]

    @staticmethod
    def of(pieces: Sequence[Piece | None]) -> Place:
        """Returns the place that is large enough for all of them; at least one is not None."""
        shapes = [piece.value.shape for piece in pieces if piece is not None]
        return Place(tuple(max(sizes) for sizes in zip(*shapes, strict=True)), tuple(pieces))

    @property
    def size(self) -> int:
        """Number of columns."""
        return math.prod(self.shape)

    @property
    def decays(self) -> bool:
        """Whether weight decay applies: to matrices, not to biases."""
        return len(self.shape) > 1


class Weights:
    """All trained weights of K configurations as one leaf of autograd, shape (K, columns).

    One matrix makes clipping, AdamW and the check for NaN a few operations whatever K is, and keeps them apart: row k
    depends on configuration k alone. Entries that belong to no parameter are 0 and stay 0.

    Args:
        places: What the columns mean; those of heads last.
        modules: How many of the places belong to modules.

    Cost: the padded size, K times the sum of the largest shapes.
    """

    def __init__(self, places: Sequence[Place], modules: int) -> None:
        self.places = tuple(places)
        self.module_columns = sum(place.size for place in places[:modules])
        reference = next(p for p in places[0].pieces if p is not None).value
        rows, columns = len(places[0].pieces), sum(place.size for place in places)
        self.matrix = torch.zeros(rows, columns, dtype=reference.dtype, device=reference.device)
        self.real = torch.zeros(rows, columns, dtype=torch.bool, device=reference.device)
        self._starts = [sum(place.size for place in places[:i]) for i in range(len(places))]
        for k in range(rows):
            for index, piece in self._pieces(k):
                self._region(self.matrix, k, index).copy_(piece.value)
                self._region(self.real, k, index).fill_(True)
        self.matrix.requires_grad_()
        self.views: list[torch.Tensor] = []

    def unpack(self) -> None:
        """Makes `views` anew, one tensor of shape (K, *shape) per place: to be called before every forward pass."""
        parts = self.matrix.split([place.size for place in self.places], dim=1)
        self.views = [part.view(-1, *place.shape) for part, place in zip(parts, self.places, strict=True)]

    def decaying(self) -> torch.Tensor:
        """Returns 1 at columns that weight decay applies to, 0 elsewhere, shape (columns,)."""
        marks = [torch.full((place.size,), float(place.decays)) for place in self.places]
        return torch.cat(marks).to(self.matrix)

    def tensors(self, k: int, matrix: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns what row k of a matrix laid out like this one says, by name of the parameter and in its shape."""
        found: dict[str, torch.Tensor] = {}
        for index, piece in self._pieces(k):
            whole = found.setdefault(piece.name, torch.empty_like(piece.parameter.detach()))
            whole[piece.rows] = self._region(matrix.detach(), k, index)
        return found

    @torch.no_grad()
    def put(self, k: int, matrix: torch.Tensor, tensors: Mapping[str, torch.Tensor]) -> None:
        """Inverse of `tensors`: fills row k of a matrix laid out like this one."""
        for index, piece in self._pieces(k):
            self._region(matrix, k, index).copy_(tensors[piece.name][piece.rows])

    @torch.no_grad()
    def write_back(self, k: int) -> None:
        """Copies row k into the parameters of its configuration."""
        for index, piece in self._pieces(k):
            piece.value.copy_(self._region(self.matrix, k, index))

    def keep(self, rows: Sequence[int]) -> None:
        """Drops all rows but these."""
        self.places = tuple(Place(p.shape, tuple(p.pieces[k] for k in rows)) for p in self.places)
        self.matrix = self.matrix.detach()[list(rows)].requires_grad_()
        self.real = self.real[list(rows)]
        self.views = []

    def _pieces(self, k: int) -> list[tuple[int, Piece]]:
        return [(i, piece) for i, place in enumerate(self.places) if (piece := place.pieces[k]) is not None]

    def _region(self, matrix: torch.Tensor, k: int, index: int) -> torch.Tensor:
        """Returns the view of a matrix that holds the piece of configuration k at one place."""
        place, start = self.places[index], self._starts[index]
        piece = place.pieces[k]
        assert piece is not None
        whole = matrix.detach()[k, start : start + place.size].view(place.shape)
        return whole[tuple(slice(0, n) for n in piece.value.shape)]
