"""What a trial will need before it is run: memory part by part, and time (`autopeft.operations`). Torch-free.

What autograd keeps for the backward pass follows from which modules sit where, so it is counted, not guessed: float for
float what torch keeps (`tests/unit/test_estimate.py`). Two things are measured constants: the process without a
backbone, and what the C library's allocator holds beside what is in use.
`docs/estimate.md` says how, on what, and how well the sum meets measured peaks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from autopeft.configuration import Configuration, lowest_layer
from autopeft.lengths import Texts
from autopeft.modules import FullFineTuning, Lora, ParallelAdapter, Prefix, SerialAdapter
from autopeft.operations import caches, linear_weights, seconds_of
from autopeft.setting import Setting
from autopeft.shapes import EMBEDDINGS, Slot
from autopeft.trial import Budget

FLOAT: Final = 4
"""Bytes of a float32: what is trained and computed."""
BRAIN: Final = 2
"""Bytes of a bfloat16: a second copy of the frozen Linears, where these are computed in it."""
FOUR_BIT: Final = 0.5 + FLOAT / 64
"""Bytes of a weight in 4 bits, with one float32 per 64 of them."""
ID: Final = 8
"""Bytes of a token id, and of a token type."""
ADAMW: Final = 3
"""Floats per trained parameter beside its weight: gradient and two moments."""
PROBE: Final = 3
"""Copies of the features that fitting the frozen probe holds, in float64."""
PROCESS: Final = 431_000_000
"""Python, torch and transformers as imported (386 MB), code that only training touches (24), the tokenizer (21)."""
MAPPED: Final = 32 << 20
"""Blocks above this come straight from the kernel and go back to it: glibc's largest threshold."""
HOLES: Final = 0.28
"""Bytes of the heap that lie idle, per live byte."""
CHURN: Final = 0.91
"""Bytes of the heap that lie idle, per byte of a module's passing results."""
PASSED: Final = 3
"""Passing results of a module, each as wide as its output: its own, scaled or normalised, and the sum."""
ADDING: Final = (Lora, SerialAdapter, ParallelAdapter)
"""Modules that add to a result of the backbone."""


@dataclass(frozen=True)
class Memory:
    """Peak memory of a trial in a fresh worker, part by part, in bytes.

    Attributes:
        process: Python, torch and transformers with the code that ran, and the tokenizer.
        backbone: Its weights.
        data: The tokenised training and validation texts.
        cached: Hidden states below the lowest module, which are kept between epochs and trials.
        trained: Weights, gradients and AdamW's moments of what is trained, the head included.
        activations: What autograd keeps of the longest batch, and what is computed meanwhile; or what scoring needs.
        slack: What the allocator holds beside that.
    """

    process: int
    backbone: int
    data: int
    cached: int
    trained: int
    activations: int
    slack: int

    @property
    def total(self) -> int:
        """Bytes of the process at its peak: what a trial reports as "memory"."""
        return sum(asdict(self).values())

    @property
    def accelerator(self) -> int:
        """Bytes on a device: without the process, the data and the slack of the machine's allocator.

        Not measured; the device's own context, libraries and allocator take several hundred megabytes more.
        """
        return self.backbone + self.cached + self.trained + self.activations


@dataclass(frozen=True)
class Estimate:
    """What a trial is expected to take.

    Attributes:
        seconds: CPU time of training and scoring at the given speed, divided by what its threads gain.
        memory: Peak memory, part by part.
    """

    seconds: float
    memory: Memory


def estimate(setting: Setting, budget: Budget, texts: Texts, configuration: Configuration, speed: float) -> Estimate:
    """Returns the estimate for one configuration.

    Args:
        setting: Backbone, head and recipe.
        budget: Examples and epochs.
        texts: Lengths of the texts (`lengths_of`).
        configuration: What is trained.
        speed: Floating point operations per second of a matrix product (`matrix_speed`).

    Example:
        >>> estimate(setting, budget, texts, configuration, matrix_speed()).memory.total  # doctest: +SKIP
        981000000
    """
    return Estimate(seconds_of(setting, budget, texts, configuration, speed), memory_of(setting, texts, configuration))


def memory_of(setting: Setting, texts: Texts, configuration: Configuration) -> Memory:
    """Returns the peak memory of a trial, an estimate; grows with batch size, length and what is trained.

    Args:
        setting: Backbone, head and recipe.
        texts: Lengths of the texts.
        configuration: What is trained.

    Cost: well under a millisecond.
    """
    shape, head = setting.backbone.shape, setting.head
    train, validation = texts["train"], texts["validation"]
    probe = not configuration.placements and head.kind != "transformers"
    batch = min(setting.recipe.batch_size, train.texts)
    training = _Phase() if probe else _training(setting, configuration, batch, train.longest)
    scored = max((train, validation) if probe else (validation,), key=lambda split: split.widest)
    scoring = _scoring(setting, configuration, scored.widest // max(1, scored.widest_length), scored.widest_length)
    features = 2 * FLOAT * PROBE * train.texts * shape.width if probe else 0
    live = max(training.live, scoring.live) + features
    # Scoring finds the heap as training left it: full of holes that its larger blocks do not fit into.
    larger = scored.widest > batch * train.longest
    heap = training.heap + scoring.heap if larger else max(training.heap, scoring.heap)
    return Memory(
        process=PROCESS,
        backbone=_backbone_bytes(setting),
        data=int(2 * ID * sum(split.texts * split.mean for split in texts.values())),
        cached=cached_bytes(setting, texts) if caches(setting.recipe, shape, configuration) else 0,
        trained=FLOAT * (1 + ADAMW) * (configuration.count(shape).trained + head.count(shape.width, setting.outputs)),
        activations=live,
        slack=max(0, max(training.heap + training.mapped, heap + scoring.mapped) + features - live),
    )


def _backbone_bytes(setting: Setting) -> int:
    shape, linear = setting.backbone.shape, linear_weights(setting.backbone.shape)
    if setting.recipe.four_bit:
        return int(FLOAT * (shape.total_parameters - linear) + FOUR_BIT * linear)
    return FLOAT * shape.total_parameters + (BRAIN * linear if setting.recipe.precision == "bfloat16" else 0)


def cached_bytes(setting: Setting, texts: Texts) -> int:
    """Returns the bytes of the hidden states of all texts at one height: what the cache holds for one lowest layer."""
    return int(FLOAT * setting.backbone.shape.width * sum(split.texts * split.mean for split in texts.values()))


@dataclass(frozen=True)
class _Phase:
    """What training or scoring takes for its activations, in bytes.

    Blocks up to `MAPPED` come out of one heap. There, batches of different lengths leave holes that are not given back:
    more of them the more is alive, and the more the modules allocate and free at each step.

    Attributes:
        live: What is alive at the peak.
        mapped: What of that is in blocks above `MAPPED`.
        passed: What modules allocate and free, all layers added.
    """

    live: int = 0
    mapped: int = 0
    passed: int = 0

    @property
    def heap(self) -> int:
        """What the heap grows to."""
        return int((1 + HOLES) * (self.live - self.mapped) + CHURN * self.passed)


def _training(setting: Setting, configuration: Configuration, batch: int, length: int) -> _Phase:
    shape, tokens = setting.backbone.shape, batch * length
    kept = kept_floats(setting, configuration, batch, length)
    passing, blocks = _passing(setting, configuration, batch, length)
    passed = sum(PASSED * shape.at(p.slot).d_out for p in configuration.placements if isinstance(p.module, ADDING))
    return _Phase(FLOAT * (kept + passing), FLOAT * blocks, FLOAT * tokens * passed)


def _scoring(setting: Setting, configuration: Configuration, batch: int, length: int) -> _Phase:
    passing, blocks = _passing(setting, configuration, batch, length)
    return _Phase(FLOAT * passing, FLOAT * blocks)


def _passing(setting: Setting, configuration: Configuration, batch: int, length: int) -> tuple[int, int]:
    """Returns the floats that are alive only inside a layer, at their most, and those of them in blocks above `MAPPED`.

    Either GELU's input and result beside three of the layer's own width; or queries, keys, values, input and result of
    the attention, and beside these keys, values and mask with the prefix in front.
    """
    shape, tokens = setting.backbone.shape, batch * length
    d, f = shape.width, max(s.d_in for slot, s in shape.slots.items() if slot.site == "ffn.down")
    prefix = max((p.module.length for p in configuration.placements if isinstance(p.module, Prefix)), default=0)
    keys = batch * (length + prefix)
    ffn, attention = [tokens * f] * 2 + [tokens * d] * 3, [tokens * d] * 5
    attention += [keys * d, keys * d, keys * length] if prefix else []
    most = max(ffn, attention, key=sum)
    return sum(most), sum(block for block in most if FLOAT * block > MAPPED)


def largest_batch(setting: Setting, texts: Texts, some: Sequence[Configuration], limit: int) -> int:
    """Returns the largest batch size, up to the setting's, with which all of some configurations fit; 0 for none.

    Args:
        setting: Backbone, head and recipe.
        texts: Lengths of the texts.
        some: The configurations.
        limit: Bytes a worker may have.
    """

    def fits(batch: int) -> bool:
        smaller = replace(setting, recipe=replace(setting.recipe, batch_size=batch))
        return all(memory_of(smaller, texts, c).total <= limit for c in some)

    # The first batch size that does not fit, less 1: memory grows with the batch.
    return bisect_left(range(1, setting.recipe.batch_size + 1), True, key=lambda batch: not fits(batch))


def kept_floats(setting: Setting, configuration: Configuration, batch: int, length: int) -> int:
    """Returns how many floats autograd keeps between the forward and the backward pass of one batch.

    A frozen Linear keeps nothing, a trained one its input; LayerNorm its input, mean and deviation; GELU its input;
    attention queries, keys, values, result and one number per head and token, and the mask. All that only from the
    first module on: below it nothing is trained, and nothing kept.

    Args:
        setting: The backbone, and the dropout.
        configuration: What is trained.
        batch: Texts.
        length: Tokens of each, padding included.
    """
    shape = setting.backbone.shape
    stack = next(iter(shape.stacks))
    tokens = batch * length
    full = any(isinstance(p.module, FullFineTuning) for p in configuration.placements)
    lowest = lowest_layer(configuration, shape)
    below = full or any(p.slot.stack == EMBEDDINGS for p in configuration.placements)
    kept = []
    for index in range(lowest, shape.layers(stack)):
        modules = [p for p in configuration.placements if (p.slot.stack, p.slot.index) == (stack, index)]
        here = {(p.slot.site, p.module.kind): p.module for p in modules if not full}
        kept.append(_Layer(setting, stack, index, here, below or index > lowest, full).floats(batch, length))
    width = shape.width if full else shape.norms.get(Slot(EMBEDDINGS, 0, "norm"), shape.width)
    embedded = tokens * (width + 2 + (width if setting.recipe.dropout else 0)) if below else 0
    if setting.recipe.gradient_checkpointing and kept:  # the inputs of all layers, and the inside of one
        return embedded + len(kept) * tokens * shape.width + max(kept)
    return embedded + sum(kept)


@dataclass(frozen=True)
class _Layer:
    """One layer of the backbone, with what is inserted there.

    Attributes:
        setting: The backbone, and the dropout.
        stack: Its stack.
        index: Its number.
        modules: What sits there, by site and kind.
        reached: Whether its input needs a gradient.
        full: Whether its own weights are trained.
    """

    setting: Setting
    stack: str
    index: int
    modules: Mapping[tuple[str, str], Any]
    reached: bool
    full: bool = False

    def floats(self, batch: int, length: int) -> int:
        """Returns what it keeps for a batch of texts of this length."""
        shape = self.setting.backbone.shape
        attention, down = (shape.at(Slot(self.stack, self.index, site)) for site in ("attention", "ffn.down"))
        d, f, dropout = attention.d_in, down.d_in, self.setting.recipe.dropout > 0
        tokens = batch * length
        sites = {site for (site, _), module in self.modules.items() if not module.trains_own}
        own = {site for (site, _), module in self.modules.items() if module.trains_own}
        trained = sites | own  # a bias needs no input of its Linear, but all that comes after it needs a gradient
        prefix = sum(m.length for m in self.modules.values() if isinstance(m, Prefix))
        query, key, value = (self.reached or f"attention.{part}" in trained for part in ("query", "key", "value"))
        key, value = key or prefix > 0, value or prefix > 0
        projected = {"attention.query", "attention.key", "attention.value"} & sites
        attends = query or key or value
        first = attends or "attention.output" in trained or "norm1" in own
        up = first or "ffn.up" in trained
        keys, wide = batch * (length + prefix), attention.kv_heads * attention.head_dim
        dropped = (attends or "attention.output" in trained) + (up or "ffn.down" in trained) if dropout else 0
        kept = 0
        if attends and dropout:  # each product keeps the factor whose partner needs a gradient
            scores = attention.heads * length * keys
            kept += tokens * d * key + keys * wide * (query + (query or key)) + scores * (2 * (query or key) + value)
        elif attends:
            kept += tokens * (d + attention.heads) + 2 * keys * wide + length * keys
        if "attention.output" in sites or self.full or (attends and not dropout):
            kept += tokens * d
        inputs = {
            "x": d if projected or self.full else 0,
            "ffn": d if self.full or "ffn.up" in sites or ("ffn", "parallel_adapter") in self.modules else 0,
            "gelu": f if self.full or "ffn.down" in sites else 0,
            "norms": (d + 2) * (1 + first),
            "activation": f if up else 0,
            "dropouts": d * dropped,
            "modules": sum(self._inside(m, up or "ffn.down" in trained) for m in self.modules.values()),
        }
        return kept + tokens * sum(inputs.values())

    def _inside(self, module: Any, before: bool) -> int:
        """Returns what a module keeps per token, without its input where others keep that too."""
        d = self.setting.backbone.shape.width
        if isinstance(module, SerialAdapter):
            return int(module.bottleneck) + d + (d + 2 if before else 0)
        if isinstance(module, ParallelAdapter):
            return int(module.bottleneck)
        return int(module.rank) if isinstance(module, Lora) else 0
