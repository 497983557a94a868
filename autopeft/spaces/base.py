"""The contract of a space: a finite lattice of points, each of which is one configuration. Torch-free."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from autopeft.configuration import Configuration
from autopeft.shapes import BackboneShape

Point = tuple[int, ...]
"""One lattice point: for each dimension the index of the chosen value."""


@dataclass(frozen=True)
class Dimension:
    """One decision of a space.

    Attributes:
        name: Name in tables, such as "serial" or "layer 3".
        values: The choices, in order.
        kind: "size" (ordered sizes), "switch" (off, on), "rate" (ordered learning rates) or "choice" (unordered).
        layer: Layer the decision belongs to, or None for the whole network.
    """

    name: str
    values: tuple[Any, ...]
    kind: Literal["size", "switch", "rate", "choice"]
    layer: int | None = None


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
    def valid(self, point: Point) -> bool:
        """Says whether the point is a configuration of its own (not everything off, no redundant choice)."""

    @abstractmethod
    def configuration(self, point: Point) -> Configuration:
        """Returns the configuration at a valid point."""

    @abstractmethod
    def point(self, configuration: Configuration) -> Point | None:
        """Returns the point of a configuration, or None where the space does not contain it."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Returns a JSON-able form that `spaces.space_from_dict` reads."""

    @cached_property
    def widths(self) -> NDArray[np.int64]:
        """Number of values per dimension, shape (d,)."""
        return np.array([len(d.values) for d in self.dimensions])

    def __contains__(self, configuration: object) -> bool:
        return isinstance(configuration, Configuration) and self.point(configuration) is not None

    def sample(self, rng: np.random.Generator) -> Configuration:
        """Draws one valid configuration uniformly over the valid points, by rejection.

        Args:
            rng: The only source of randomness.
        """
        while True:
            point = tuple(int(rng.integers(n)) for n in self.widths)
            if self.valid(point):
                return self.configuration(point)

    def encode(self, configurations: Sequence[Configuration]) -> NDArray[np.float64]:
        """Returns an (n, d) array with entries in [0, 1]: index / (number of values - 1) per dimension.

        Raises:
            KeyError: A configuration is not in the space.
        """
        rows = np.zeros((len(configurations), len(self.dimensions)))
        for row, configuration in zip(rows, configurations, strict=True):
            point = self.point(configuration)
            if point is None:
                raise KeyError(f"configuration {configuration.id} is not in this space")
            row[:] = np.asarray(point) / np.maximum(self.widths - 1, 1)
        return rows

    def decode(self, row: NDArray[np.float64]) -> Configuration | None:
        """Returns the configuration nearest to an encoded row of shape (d,), or None where that point is not valid."""
        indices = np.rint(np.clip(row, 0.0, 1.0) * np.maximum(self.widths - 1, 1)).astype(int)
        point = tuple(int(i) for i in indices)
        return self.configuration(point) if self.valid(point) else None

    def moves(self, point: Point) -> Iterator[Point]:
        """Yields the valid points one move away, without repeats.

        A move is one step along an ordered dimension, another value of a switch or choice, or a swap of everything
        two layers decided (single flips cannot move a module between layers at equal cost).
        """
        seen = {point}
        for candidate in (*self._steps(point), *self._swaps(point)):
            if candidate not in seen and self.valid(candidate):
                seen.add(candidate)
                yield candidate

    def neighbours(self, configuration: Configuration) -> list[Configuration]:
        """Returns the configurations one move away (see `moves`); raises KeyError for a configuration outside."""
        point = self.point(configuration)
        if point is None:
            raise KeyError(f"configuration {configuration.id} is not in this space")
        return [self.configuration(p) for p in self.moves(point)]

    def enumerate(self) -> Iterator[Point]:
        """Yields every valid point in lexicographic order; cost proportional to the full lattice."""
        for index in np.ndindex(*(int(n) for n in self.widths)):
            if self.valid(index):
                yield tuple(int(i) for i in index)

    def _steps(self, point: Point) -> Iterator[Point]:
        for axis, dimension in enumerate(self.dimensions):
            here, last = point[axis], len(dimension.values) - 1
            near = (here - 1, here + 1) if dimension.kind in ("size", "rate") else range(last + 1)
            for value in near:
                if 0 <= value <= last:
                    yield (*point[:axis], value, *point[axis + 1 :])

    def _swaps(self, point: Point) -> Iterator[Point]:
        axes: dict[int, list[int]] = {}
        for axis, dimension in enumerate(self.dimensions):
            if dimension.layer is not None:
                axes.setdefault(dimension.layer, []).append(axis)
        layers = list(axes.values())
        for i, left in enumerate(layers):
            for right in layers[i + 1 :]:
                swapped = list(point)
                for a, b in zip(left, right, strict=True):
                    swapped[a], swapped[b] = swapped[b], swapped[a]
                yield tuple(swapped)


class SpaceTemplate(ABC):
    """A space before it knows its backbone: what `spaces.autopeft()` returns; `on(shape)` makes the space."""

    @abstractmethod
    def on(self, shape: BackboneShape) -> Space:
        """Returns the space for a backbone; raises InputError where it does not fit."""


def dimension_table(space: Space) -> list[Mapping[str, Any]]:
    """Returns one JSON-able row per dimension, for `plan` and reports."""
    return [{"name": d.name, "kind": d.kind, "values": list(d.values)} for d in space.dimensions]
