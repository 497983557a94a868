"""Synthetic landscapes whose true Pareto front is known exactly: what a searcher is measured on.

Two families. "paper": 12 layers at width 768, the AutoPEFT space with prefix lengths up to 192, fixed learning rate
(4,455,360 points). "lora_rate": 6 layers at width 384, with LoRA ranks and five learning rates besides. Quality is a
closed form of the point, plus N(0, noise) when observed. Given how many layers are on, quality rises with one number,
"use", so the best subset of every size carries the whole front: it is exact without enumerating the space.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autopeft import spaces
from autopeft.pareto import hypervolume, nondominated
from autopeft.shapes import BackboneShape, Slot, SlotShape
from autopeft.spaces import SharedSizesSpace

COST_LIMIT = 7.6
PREFIX_LENGTHS = (0, 1, 3, 6, 12, 24, 48, 96, 192)


def encoder_shape(depth: int, width: int) -> BackboneShape:
    """Returns the shape of a BERT-like encoder: `depth` layers of `width` features."""
    slots = {}
    for i in range(depth):
        for site in ("query", "key", "value", "output"):
            slots[Slot("encoder", i, f"attention.{site}")] = SlotShape(width, width)
        slots[Slot("encoder", i, "attention")] = SlotShape(width, width, 12, 12, width // 12)
        slots[Slot("encoder", i, "ffn")] = SlotShape(width, width)
    return BackboneShape("bert", slots, 12 * depth * width * width, width)


@dataclass(frozen=True)
class Landscape:
    """One instance: a space, the numbers drawn for it, its noise.

    Attributes:
        space: The space searched.
        drawn: Parameters of the closed form.
        noise: Standard deviation of one observation, in points of accuracy.
    """

    space: SharedSizesSpace
    drawn: dict[str, Any]
    noise: float

    @property
    def reference(self) -> tuple[float, float]:
        """Reference point: accuracy of the bare backbone, and 10^7.6 parameters."""
        return float(self.drawn["base"]), 10.0**COST_LIMIT

    def use(self, bits: NDArray[np.int64]) -> NDArray[np.float64]:
        """Returns how much of the backbone's capacity the layers switched on reach, shape (n,), for bits (n, L)."""
        weights, harm = self.drawn["weights"], self.drawn["harm"]
        overlap = (bits[:, 1:] * bits[:, :-1]) @ np.minimum(weights[1:], weights[:-1])
        return np.asarray(bits @ (weights - harm) - 0.25 * overlap)

    def quality(self, points: NDArray[np.int64]) -> NDArray[np.float64]:
        """Returns the noise-free accuracy of points (n, d), in points, shape (n,)."""
        depth, space, a = len(self.space.layers), self.space, self.drawn
        bits = points[:, :depth]
        sizes = {p.name: np.array(p.sizes)[points[:, depth + k]] for k, p in enumerate(space.parts)}
        u = a["serial"] * np.log1p(sizes["serial"] / 3) / np.log1p(16)
        v = a["parallel"] * np.log1p(sizes["parallel"] / 3) / np.log1p(16)
        t = a["prefix"] * np.log1p(sizes["prefix"] / 3) / np.log1p(8)
        total = u + v + t + a["synergy"] * np.sqrt(v * t) - a["clash"] * np.minimum(u, v)
        if "lora" in sizes:
            w = a["lora"] * np.log1p(sizes["lora"]) / np.log1p(16)
            total = total + w - a["clash"] * np.minimum(w, u + v)
            rate = np.log10(np.array(space.learning_rates))[points[:, -1]]
            best = (a["rates"][0] * (u + v) + a["rates"][1] * t + a["rates"][2] * w) / (u + v + t + w)
            total = total * np.exp(-0.5 * ((rate - best) / a["rate_width"]) ** 2)
        g = 1 - np.exp(-2.2 * np.maximum(total, 0))
        gained = a["gain"] * (1 - np.exp(-3.2 * g * np.maximum(self.use(bits), 0))) / (1 - np.exp(-3.2))
        heavy = 2 * np.maximum(0, np.log10(space.stored_parameters(points) / 2e6)) ** 2
        long = 0.6 * np.maximum(0, np.log2(np.maximum(sizes["prefix"], 1) / 48)) * bits.mean(axis=1)
        return np.asarray(a["base"] + gained - heavy - long)

    def volume(self, points: NDArray[np.int64]) -> float:
        """Returns the noise-free hypervolume of points (n, d) over (accuracy, log10 of at least 1000 parameters)."""
        if len(points) == 0:
            return 0.0
        cost = np.log10(np.maximum(self.space.stored_parameters(points), 1000))
        return hypervolume(np.column_stack([self.quality(points), -cost]), [self.reference[0], -COST_LIMIT])

    @cached_property
    def best_volume(self) -> float:
        """Hypervolume of the true front: the best subset of every number of layers, times all sizes and rates."""
        depth = len(self.space.layers)
        bits = np.array(list(itertools.product((0, 1), repeat=depth)))[1:]
        use, count = self.use(bits), bits.sum(axis=1)
        best = np.array([bits[count == n][np.argmax(use[count == n])] for n in range(1, depth + 1)])
        rest = np.array(list(np.ndindex(*(int(n) for n in self.space.widths[depth:]))))
        points = np.hstack([np.repeat(best, len(rest), axis=0), np.tile(rest, (len(best), 1))])
        points = points[self.space.valid_rows(points)]
        cost = np.log10(np.maximum(self.space.stored_parameters(points), 1000))
        values = np.column_stack([self.quality(points), -cost])
        return hypervolume(values[nondominated(values)], [self.reference[0], -COST_LIMIT])


def draw(family: str, seed: int) -> Landscape:
    """Draws one instance of a family ("paper" or "lora_rate"); the seed controls every number of it."""
    rng = np.random.default_rng(seed)
    if family == "paper":
        template = spaces.autopeft(learning_rate=1e-4, prefix=PREFIX_LENGTHS)
        space, noise = template.on(encoder_shape(12, 768)), 1.0
    else:
        template = spaces.autopeft(lora=True, prefix=PREFIX_LENGTHS)
        space, noise = template.on(encoder_shape(6, 384)), 0.6
    assert isinstance(space, SharedSizesSpace)
    depth = len(space.layers)
    weights = rng.uniform(0.02, 0.12, depth)
    order = rng.permutation(depth)
    strong = (1.0, 0.75, 0.55, 0.4)[: max(2, depth // 3)]
    weights[order[: len(strong)]] = strong
    weights /= weights.sum()
    harm = np.zeros(depth)
    harmful = order[len(strong) : len(strong) + depth // 6]
    harm[harmful] = rng.uniform(0.02, 0.05, len(harmful))
    drawn: dict[str, Any] = {"weights": weights, "harm": harm}
    bounds = {
        "serial": (0.35, 0.6),
        "parallel": (0.35, 0.6),
        "prefix": (0.15, 0.35),
        "synergy": (0.05, 0.2),
        "clash": (0.15, 0.35),
        "base": (60, 70),
        "gain": (16, 24),
    }
    if family == "lora_rate":
        bounds |= {"lora": (0.35, 0.6), "rate_width": (0.6, 1.0)}
        drawn["rates"] = np.array([-2.9, -2.4, -2.7]) + rng.uniform(-0.3, 0.3, 3)
    drawn |= {name: rng.uniform(low, high) for name, (low, high) in bounds.items()}
    return Landscape(space, drawn, noise)
