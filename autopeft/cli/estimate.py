"""What a search will cost, before anything is trained: parameters exactly, time and memory roughly. No torch."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autopeft.configuration import Configuration, Placement, Training
from autopeft.errors import InputError
from autopeft.families import locate
from autopeft.modules import LINEAR_SITES, FullFineTuning
from autopeft.shapes import BackboneShape, Slot
from autopeft.spaces.base import ENUMERABLE, Point, Points, Space, as_point
from autopeft.spaces.parts import PartsSpace
from autopeft.study.definition import StudyDefinition
from autopeft.tasks import Task
from autopeft.trial import Problem

SAMPLE = 2000
TEXTS = 400
EFFICIENCY = 0.6
"""Speed of a training step relative to a bare matrix product: measured with all-MiniLM-L6-v2 on short questions."""
PROCESS_BYTES = 480e6
"""Resident memory of a worker before the backbone is loaded: Python, torch and transformers."""


@dataclass(frozen=True)
class Range:
    """Smallest, median and largest of something over a space; None where no point was seen that tells."""

    minimum: float | None
    median: float | None
    maximum: float | None


@dataclass(frozen=True)
class Plan:
    """What is known before a search.

    Attributes:
        size: Number of configurations.
        parameters: Stored parameters of what the constraints allow.
        counted: Points the median was taken over.
        exact: Whether those are all points.
        allowed: Share of those points that the constraints allow.
        tokens: Mean tokens of a text.
        speed: Floating point operations per CPU-second in a matrix product, measured now.
        seconds: Time of one trial.
        memory: Peak memory of one worker, in bytes.
        total_seconds: Time of the search with its baselines; None where that of a trial is unknown.
    """

    size: int
    parameters: Range
    counted: int
    exact: bool
    allowed: float
    tokens: float
    speed: float
    seconds: Range
    memory: Range
    total_seconds: float | None


def plan(definition: StudyDefinition, task: Task, workers: int) -> Plan:
    """Returns the plan of a study; trains nothing. Cost: under a second for `SAMPLE` points."""
    space, problem = definition.space, definition.problem()
    points = sample(space)
    stored = space.stored_parameters(points)
    inside = _within(problem, stored)
    chosen, counts = points[inside], stored[inside]
    tokens = token_lengths(definition, task)
    speed = matrix_speed()
    cost = [_Cost.of(definition, task, space.configuration(as_point(p)), tokens, speed) for p in chosen[:200]]
    baselines = [_Cost.of(definition, task, c, tokens, speed) for _, c in definition.baselines]
    searched = definition.trials * float(np.mean([c.seconds for c in cost])) if cost else None
    exact = len(points) == space.size
    known = _range([int(n) for n in counts])
    low, high = known.minimum, known.maximum
    if not exact:
        low = extreme(space, points, -1)
        high = high if definition.constraints else extreme(space, points, 1)
    return Plan(
        size=space.size,
        parameters=Range(low, known.median, high),
        counted=len(points),
        exact=exact,
        allowed=float(inside.mean()),
        tokens=float(tokens.mean()),
        speed=speed,
        seconds=_range([c.seconds for c in cost]),
        memory=_range([c.memory for c in cost]),
        total_seconds=None if searched is None else (searched + sum(c.seconds for c in baselines)) / workers,
    )


def check_bounds(definition: StudyDefinition) -> None:
    """Raises InputError where no configuration of the space keeps the constraints.

    Cost: nothing without constraints; a second at most where no random configuration keeps them.
    """
    problem, bounds = definition.problem(), definition.constraints
    if not bounds:
        return
    points = sample(definition.space)
    if _within(problem, definition.space.stored_parameters(points)).any():
        return
    smallest = extreme(definition.space, points, -1)
    if _within(problem, np.array([smallest])).all():
        return
    raise InputError(
        f"no configuration keeps the bound {bounds['parameters']}: the smallest configuration of this space has "
        f"{smallest:,} parameters",
        where="search.constraints.parameters",
        cure=f"use {smallest} or more, or allow smaller sizes or fewer layers",
    )


def sample(space: Space) -> Points:
    """Returns all valid points of a small space, or `SAMPLE` random ones (seed 0), shape (n, d)."""
    if space.size <= SAMPLE and int(np.prod(space.widths.astype(float))) <= ENUMERABLE:
        return np.array(list(space.enumerate()), dtype=np.int64)
    rng = np.random.default_rng(0)
    found: list[Points] = []
    for _ in range(64):
        points = rng.integers(space.widths, size=(SAMPLE, len(space.widths)))
        found.append(points[space.valid_rows(points)])
        if sum(map(len, found)) >= SAMPLE:
            break
    return np.concatenate(found)[:SAMPLE]


def extreme(space: Space, points: Points, sign: int) -> int:
    """Returns the smallest (sign -1) or largest (1) stored count of the space.

    Counts grow with every size and every layer, so moves that improve lead from any point to the extreme, with one
    exception: the last part that is on cannot be switched off for a smaller one. So the smallest is also looked for
    from each part alone.

    Args:
        space: The space.
        points: Some of its points, shape (n, d).
        sign: Which extreme.
    """
    start = points[[int(np.argmax(sign * space.stored_parameters(points)))]]
    alone = [np.array([p], dtype=np.int64) for p in _parts_alone(space)] if sign < 0 else []
    return sign * max(_climbed(space, point, sign) for point in (start, *alone))


def _climbed(space: Space, point: Points, sign: int) -> int:
    value = sign * int(space.stored_parameters(point)[0])
    while True:
        moved, _ = space.move_rows(point)
        counts = sign * space.stored_parameters(moved)
        if not len(counts) or counts.max() <= value:
            return value
        point, value = moved[[int(np.argmax(counts))]], int(counts.max())


def _parts_alone(space: Space) -> Iterator[Point]:
    """Yields the points with one part at its smallest size in one layer, where the space contains them."""
    if not isinstance(space, PartsSpace):
        return
    for part in space.parts:
        for size in part.levels[:1]:
            slots = [Slot(space.stack, space.layers[0], site) for site in part.sites]
            placements = tuple(Placement(slot, part.module(size), part.group) for slot in slots)
            point = space.point(Configuration(placements, Training(space.learning_rates[0])))
            if point is not None:
                yield point


def token_lengths(definition: StudyDefinition, task: Task) -> NDArray[np.float64]:
    """Returns the tokens of up to `TEXTS` training texts, counted by the backbone's own tokenizer.

    Where that has no `tokenizer.json`: four tokens for three words.
    """
    examples = task.splits["train"]
    rows = np.linspace(0, len(examples) - 1, min(TEXTS, len(examples))).astype(int)
    pairs = examples.pairs
    texts = [examples.texts[i] + (f" {pairs[i]}" if pairs else "") for i in rows]
    recipe, backbone = definition.setting.recipe, definition.setting.backbone
    file = locate(backbone.reference, backbone.revision) / "tokenizer.json"
    try:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        counts = [len(encoding.ids) for encoding in tokenizer.encode_batch(texts)]
    except Exception:  # the library raises bare exceptions for files it does not know
        counts = [round(4 / 3 * len(text.split())) + 2 for text in texts]
    return np.asarray(np.minimum(np.array(counts, dtype=float), recipe.max_length))


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


@dataclass(frozen=True)
class _Cost:
    seconds: float
    memory: float

    @staticmethod
    def of(
        definition: StudyDefinition, task: Task, configuration: Configuration, tokens: NDArray[np.float64], speed: float
    ) -> _Cost:
        """Counts operations: forward 2 per weight and token; backward as much again down to the lowest module."""
        shape, recipe = definition.setting.backbone.shape, definition.setting.recipe
        trained = configuration.count(shape).trained
        full = any(isinstance(p.module, FullFineTuning) for p in configuration.placements)
        stack = next(iter(shape.stacks))
        depth = shape.layers(stack)
        lowest = 0 if full else min((p.slot.index for p in configuration.placements), default=depth)
        share = 1.0 - lowest / depth
        width, mean = shape.width, float(tokens.mean())
        forward = 2.0 * linear_weights(shape) + 4.0 * mean * width * depth
        step = forward * (1 + share) + 4.0 * trained * (0.0 if full else 1.0) + (forward if full else 0.0)
        examples = definition.budget.examples or len(task.splits["train"])
        epochs = definition.budget.epochs if configuration.placements else 1
        operations = mean * (examples * epochs * step + len(task.splits["validation"]) * (forward + 2.0 * trained))
        threads = 1.0 + 0.8 * (recipe.threads - 1)
        weights = 4.0 * shape.total_parameters
        longest = float(np.sort(tokens)[-recipe.batch_size :].mean())
        heads = next(s.heads for s in shape.slots.values() if s.heads)
        kept = recipe.batch_size * longest * (14.0 * width * share * depth + 6.0 * width) * 4.0
        kept += recipe.batch_size * 2.0 * heads * longest**2 * share * depth * 4.0
        memory = PROCESS_BYTES + weights + kept + trained * 16.0 - (4.0 * trained if full else 0.0)
        return _Cost(operations / (EFFICIENCY * speed * threads), memory)


def linear_weights(shape: BackboneShape) -> int:
    """Returns the weights of all Linears inside the layers: what a token is multiplied with."""
    return sum(s.d_in * s.d_out for slot, s in shape.slots.items() if slot.site in LINEAR_SITES)


def _within(problem: Problem, stored: NDArray[np.int64]) -> NDArray[np.bool_]:
    bounds = [c.maximum for c in problem.constraints if c.objective.name == "parameters"]
    return stored <= min(bounds, default=np.inf)


def _range(values: Sequence[float]) -> Range:
    if not values:
        return Range(None, None, None)
    return Range(min(values), float(np.median(values)), max(values))


def as_json(value: Any) -> Any:
    """Returns nested dataclasses as JSON values."""
    return json.loads(json.dumps(value, default=vars))
