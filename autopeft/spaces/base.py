"""The contract of a space: a finite lattice of points, each of which is one configuration. Torch-free."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from autopeft.configuration import Configuration
from autopeft.errors import InputError
from autopeft.shapes import BackboneShape

Point = tuple[int, ...]
"""One lattice point: for each dimension the index of the chosen value."""

Points = NDArray[np.int64]
"""Many lattice points, shape (n, d)."""

ENUMERABLE = 200_000
"""Largest lattice that code walks through point by point where random draws find nothing."""


@dataclass(frozen=True)
class Dimension:
    """One decision of a space.

    Attributes:
        name: Name in tables, such as "serial" or "layer 3".
        values: The choices, in order.
        kind: "size" (ordered sizes), "switch" (off, on), "rate" (ordered learning rates) or "choice" (unordered).
        layer: Layer the decision belongs to, or None for the whole network.
        part: What it sizes ("serial", "lora" ...), equal for all layers; "" for switches and rates.
    """

    name: str
    values: tuple[Any, ...]
    kind: Literal["size", "switch", "rate", "choice"]
    layer: int | None = None
    part: str = ""


class Space(ABC):
    """The set of configurations a search may visit; a frozen value over a backbone's shape.

    A subclass is a frozen dataclass that names its dimensions, says which points are valid, and maps valid points to
    configurations and back. Everything else (sampling, encoding, membership, neighbours) follows from that and is
    written once, here. Distinct valid points always give distinct configurations.
    """

    kind: ClassVar[str]
    shape: BackboneShape

    @property
    @abstractmethod
    def dimensions(self) -> tuple[Dimension, ...]:
        """The decisions, in the order of a point's indices."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of valid points, by closed form."""

    @abstractmethod
    def valid_rows(self, points: Points) -> NDArray[np.bool_]:
        """Says for points of shape (n, d) which are configurations of their own (not everything off), shape (n,)."""

    @abstractmethod
    def configuration(self, point: Point) -> Configuration:
        """Returns the configuration at a valid point."""

    @abstractmethod
    def point(self, configuration: Configuration) -> Point | None:
        """Returns the point of a configuration, or None where the space does not contain it."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Returns a JSON-able form that `spaces.space_from_dict` reads."""

    def stored_parameters(self, points: Points) -> NDArray[np.int64]:
        """Returns the exact stored parameters of valid points of shape (n, d), shape (n,).

        Equal to `configuration(point).count(shape).stored`; subclasses override it with something faster.
        """
        return np.array([self.configuration(as_point(p)).count(self.shape).stored for p in points], dtype=np.int64)

    def valid(self, point: Point) -> bool:
        """Says whether one point is valid (see `valid_rows`)."""
        return bool(self.valid_rows(np.array([point], dtype=np.int64))[0])

    @cached_property
    def widths(self) -> NDArray[np.int64]:
        """Number of values per dimension, shape (d,)."""
        return np.array([len(d.values) for d in self.dimensions], dtype=np.int64)

    def __contains__(self, configuration: object) -> bool:
        return isinstance(configuration, Configuration) and self.point(configuration) is not None

    def sample(self, rng: np.random.Generator) -> Configuration:
        """Draws one valid configuration uniformly over the valid points, by rejection.

        Args:
            rng: The only source of randomness.

        Raises:
            InputError: The space is empty, or its valid points are too rare to draw.
        """
        for _ in range(64):
            points = rng.integers(self.widths, size=(64, len(self.widths)))
            accepted = points[self.valid_rows(points)]
            if len(accepted):
                return self.configuration(as_point(accepted[0]))
        if math.prod(int(n) for n in self.widths) <= ENUMERABLE:
            remaining = list(self.enumerate())
            if remaining:
                return self.configuration(remaining[int(rng.integers(len(remaining)))])
        raise InputError("no valid point was found in this space", where=self.kind, cure="allow more sizes or layers")

    def encode(self, configurations: Sequence[Configuration]) -> NDArray[np.float64]:
        """Returns an (n, d) array with entries in [0, 1] (see `encode_rows`).

        Raises:
            KeyError: A configuration is not in the space.
        """
        return self.encode_rows(np.array([self._require(c) for c in configurations]).reshape(-1, len(self.widths)))

    def encode_rows(self, points: Points) -> NDArray[np.float64]:
        """Returns points of shape (n, d) scaled to [0, 1]: index / (number of values - 1) per dimension."""
        return points / np.maximum(self.widths - 1, 1)

    def decode(self, row: NDArray[np.float64]) -> Configuration | None:
        """Returns the configuration nearest to an encoded row of shape (d,), or None where that point is not valid."""
        point = as_point(np.rint(np.clip(row, 0.0, 1.0) * np.maximum(self.widths - 1, 1)))
        return self.configuration(point) if self.valid(point) else None

    def moves(self, point: Point) -> Iterator[Point]:
        """Yields the valid points one move away, without repeats.

        A move is one step along an ordered dimension, another value of a switch or choice, or a swap of everything
        two layers decided (single flips cannot move a module between layers at equal cost).
        """
        rows, _ = self.move_rows(np.array([point], dtype=np.int64))
        for candidate in dict.fromkeys(as_point(row) for row in rows):
            if candidate != point:
                yield candidate

    def move_rows(self, points: Points) -> tuple[Points, NDArray[np.int64]]:
        """Returns the valid points one move away from any row of points (n, d); repeats are possible.

        Returns:
            The points, shape (m, d), and for each the row of `points` it was reached from, shape (m,).
        """
        found, origins = [], []
        rows = np.arange(len(points))
        for axis, dimension in enumerate(self.dimensions):
            ordered, last = dimension.kind in ("size", "rate"), len(dimension.values) - 1
            for offset in (-1, 1) if ordered else range(1, last + 1):
                value = points[:, axis] + offset if ordered else (points[:, axis] + offset) % (last + 1)
                inside = (value >= 0) & (value <= last)
                moved = points[inside]
                moved[:, axis] = value[inside]
                found.append(moved)
                origins.append(rows[inside])
        for left, right in self._swaps:
            differ = (points[:, left] != points[:, right]).any(axis=1)
            moved = points[differ]
            moved[:, left], moved[:, right] = moved[:, right], moved[:, left]
            found.append(moved)
            origins.append(rows[differ])
        everything, origin = np.concatenate(found), np.concatenate(origins)
        valid = self.valid_rows(everything)
        return everything[valid], origin[valid]

    def neighbours(self, configuration: Configuration) -> list[Configuration]:
        """Returns the configurations one move away (see `moves`); raises KeyError for a configuration outside."""
        return [self.configuration(p) for p in self.moves(self._require(configuration))]

    def enumerate(self) -> Iterator[Point]:
        """Yields every valid point in lexicographic order; cost proportional to the full lattice."""
        for rows in self._blocks():
            yield from map(as_point, rows)

    def every_point(self) -> Points:
        """Returns what `enumerate` yields as one array, shape (size, d); much faster where all are wanted."""
        return np.concatenate(list(self._blocks()))

    def _blocks(self) -> Iterator[Points]:
        widths = tuple(int(n) for n in self.widths)
        total = math.prod(widths)
        for start in range(0, total, 4096):
            flat = np.arange(start, min(start + 4096, total))
            rows = np.stack(np.unravel_index(flat, widths), axis=1).astype(np.int64)
            yield rows[self.valid_rows(rows)]

    def _require(self, configuration: Configuration) -> Point:
        point = self.point(configuration)
        if point is None:
            raise KeyError(f"configuration {configuration.id} is not in this space")
        return point

    @cached_property
    def _swaps(self) -> tuple[tuple[list[int], list[int]], ...]:
        axes: dict[int, list[int]] = {}
        for axis, dimension in enumerate(self.dimensions):
            if dimension.layer is not None:
                axes.setdefault(dimension.layer, []).append(axis)
        return tuple(itertools.combinations(axes.values(), 2))


def as_point(row: NDArray[Any]) -> Point:
    """Returns one row of a points array, shape (d,), as a tuple of Python integers."""
    return tuple(int(i) for i in row)


class SpaceTemplate(ABC):
    """A space before it knows its backbone: what `spaces.autopeft()` returns; `on(shape)` makes the space."""

    @abstractmethod
    def on(self, shape: BackboneShape) -> Space:
        """Returns the space for a backbone; raises InputError where it does not fit."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Returns a JSON-able form that `spaces.template_from_dict` reads."""


def dimension_table(space: Space) -> list[Mapping[str, Any]]:
    """Returns one JSON-able row per dimension, for `plan` and reports."""
    return [{"name": d.name, "kind": d.kind, "values": list(d.values)} for d in space.dimensions]
