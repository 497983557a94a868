"""How long a trial will take, by counted operations and the speed of a matrix product measured on the spot. Torch-free.

`docs/estimate.md` says how well that holds.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Final

import numpy as np

from autopeft.configuration import Configuration, lowest_layer
from autopeft.lengths import Texts
from autopeft.modules import LINEAR_SITES, FullFineTuning
from autopeft.setting import Recipe, Setting
from autopeft.shapes import BackboneShape
from autopeft.trial import Budget

EFFICIENCY: Final = 0.6
"""Speed of a training step relative to a bare matrix product: measured with all-MiniLM-L6-v2 on short questions."""

BFLOAT16: Final = 3.5
"""How many times faster the products of the frozen Linears are in bfloat16 on a processor that can, casts included."""


def seconds_of(setting: Setting, budget: Budget, texts: Texts, configuration: Configuration, speed: float) -> float:
    """Returns the CPU time of training and scoring one configuration, divided by what its threads gain.

    Forward 2 operations per weight and token, backward as much again down to the lowest module. With the cache the
    layers below that module are not computed; what computing them once costs is told by `filling`. A trial that is left
    before its end is not scored.

    Args:
        setting: Backbone, head and recipe.
        budget: Examples, epochs, and the part of the steps that is done.
        texts: Lengths of the texts.
        configuration: What is trained.
        speed: Operations per second of a matrix product (`matrix_speed`).
    """
    shape, recipe = setting.backbone.shape, setting.recipe
    trained = configuration.count(shape).trained
    full = any(isinstance(p.module, FullFineTuning) for p in configuration.placements)
    above = 1.0 - lowest_layer(configuration, shape) / _depth(shape)
    computed = above if caches(setting.recipe, shape, configuration) else 1.0
    train, validation = texts["train"], texts["validation"]
    forward = _forward(shape, train.mean, recipe)
    again = above if recipe.gradient_checkpointing else 0.0
    step = forward * (computed + above + again) + 4.0 * trained * (0.0 if full else 1.0) + (forward if full else 0.0)
    examples = min(budget.examples or train.texts, train.texts)
    passes = budget.epochs * budget.share if configuration.placements else 1.0
    operations = train.mean * examples * passes * step
    if budget.full:
        scored = computed * forward + 2.0 * (0 if full else trained)
        operations += validation.mean * validation.texts * scored
    return operations / (EFFICIENCY * speed * gained(recipe))


def filling(setting: Setting, texts: Texts, configurations: Iterable[Configuration], speed: float) -> float:
    """Returns the CPU time in which the cache is filled for all of some configurations.

    For each height at which one of them begins, the layers below it are computed once for every text.

    Args:
        setting: Backbone, head and recipe.
        texts: Lengths of the texts.
        configurations: What is trained.
        speed: Operations per second of a matrix product.
    """
    shape = setting.backbone.shape
    heights = {lowest_layer(c, shape) for c in configurations if caches(setting.recipe, shape, c)}
    below = sum(heights) / _depth(shape)
    operations = (
        sum(split.texts * split.mean * _forward(shape, split.mean, setting.recipe) for split in texts.values()) * below
    )
    return operations / (EFFICIENCY * speed * gained(setting.recipe))


def caches(recipe: Recipe, shape: BackboneShape, configuration: Configuration) -> bool:
    """Says whether hidden states are read from a cache where this is trained.

    They are where the recipe says so, nothing below the lowest module is stochastic, and some layer lies below it.
    """
    return bool(recipe.cache) and recipe.dropout == 0.0 and lowest_layer(configuration, shape) > 0


def linear_weights(shape: BackboneShape) -> int:
    """Returns the weights of all Linears inside the layers: what a token is multiplied with."""
    return sum(s.d_in * s.d_out for slot, s in shape.slots.items() if slot.site in LINEAR_SITES)


def matrix_speed() -> float:
    """Returns the floating point operations per CPU-second of a float32 matrix product; takes about 50 ms.

    Best of several, in CPU time of all threads, so that other work on the machine counts little.
    """
    rng = np.random.default_rng(0)
    rows, inner, columns = 256, 384, 1536
    left, right = rng.standard_normal((rows, inner), np.float32), rng.standard_normal((inner, columns), np.float32)
    best, end = float("inf"), time.perf_counter() + 0.05
    while time.perf_counter() < end:
        began = time.process_time()
        _ = left @ right
        best = min(best, time.process_time() - began)
    return 2.0 * rows * inner * columns / max(best, 1e-9)


def gained(recipe: Recipe) -> float:
    """Returns how much faster the threads of a trial are than one."""
    return 1.0 + 0.8 * (recipe.threads - 1)


def _forward(shape: BackboneShape, length: float, recipe: Recipe) -> float:
    """Returns the operations of one token in a text of some length, through all layers, as many as take its time."""
    products = 2.0 * linear_weights(shape) / (BFLOAT16 if recipe.precision == "bfloat16" else 1.0)
    return products + 4.0 * length * shape.width * _depth(shape)


def _depth(shape: BackboneShape) -> int:
    return shape.layers(next(iter(shape.stacks)))
