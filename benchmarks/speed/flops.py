"""How many floating-point operations a trial needs: every matrix product, forward and backward, at real tokens.

A product of (m, k) and (k, n) is 2 m k n operations. Padding counts nothing, nor do sums, norms, activations, the
optimiser and what attention computes again in its backward pass: what is counted is what the arithmetic asks for, so
the rate that comes of it is below what the processor did.

Backward, a product is counted for each operand that a gradient is wanted of: the input where something below is
trained, the weight where it is trained itself. So nothing is counted below the lowest module, and in its layer only
what lies between it and the output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autopeft.configuration import Configuration
from autopeft.shapes import BackboneShape, Slot
from benchmarks.speed.workloads import Workload


@dataclass(frozen=True)
class Flops:
    """Operations as a function of a text's length T: `tokens` x T + `squares` x T^2 + `texts`.

    Attributes:
        tokens: Per token.
        squares: Per pair of tokens of one text.
        texts: Per text.
    """

    tokens: float = 0.0
    squares: float = 0.0
    texts: float = 0.0

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.tokens + other.tokens, self.squares + other.squares, self.texts + other.texts)

    def of(self, tokens: float, squares: float, texts: float) -> float:
        """Returns the operations of many texts: the sum of their lengths, of the lengths squared, their number."""
        return self.tokens * tokens + self.squares * squares + self.texts * texts


@dataclass(frozen=True)
class Pass:
    """Operations of one text through the backbone and back.

    Attributes:
        forward: Without gradients, all layers and the head.
        backward: What the gradient adds.
        below: Part of `forward` in the layers below the lowest module, which a cache saves.
    """

    forward: Flops
    backward: Flops
    below: Flops


@dataclass
class _Layer:
    """Adds up one layer: its products forward, and those wanted backward."""

    forward: Flops = field(default_factory=Flops)
    backward: Flops = field(default_factory=Flops)

    def linear(self, size: float, wanted: bool, weight: bool = False) -> None:
        """A Linear of `size` weights whose input's gradient is `wanted`, and its own where `weight` says so."""
        self.forward += Flops(tokens=2 * size)
        self.backward += Flops(tokens=2 * size * (wanted + weight))

    def lora(self, rank: int, d_in: int, d_out: int, wanted: bool) -> None:
        """A pair of Linears d_in -> rank -> d_out, both trained."""
        self.linear(rank * d_in, wanted, weight=True)
        self.linear(rank * d_out, True, weight=True)


def passes(configuration: Configuration, shape: BackboneShape, outputs: int) -> Pass:
    """Counts one text's way through a backbone of post-LN encoder layers.

    Args:
        configuration: LoRA, serial and parallel adapters, prefixes, in any layers.
        shape: The backbone's shape, of one stack.
        outputs: Width of the head's output.

    Raises:
        ValueError: The configuration has a module of another kind.
    """
    ((stack, layers),) = shape.stacks.items()
    modules: dict[int, dict[tuple[str, str], Any]] = {i: {} for i in range(layers)}
    for placement in configuration.placements:
        modules[placement.slot.index][placement.slot.site, placement.module.kind] = placement.module
    lowest = min((p.slot.index for p in configuration.placements), default=layers)
    forward = below = backward = Flops()
    for index in range(layers):
        layer = _layer(shape, stack, index, modules[index], inside=index > lowest)
        forward += layer.forward
        below += layer.forward if index < lowest else Flops()
        backward += layer.backward if index >= lowest else Flops()
    head = 2.0 * shape.width * outputs
    return Pass(forward + Flops(texts=head), backward + Flops(texts=head * (1 + bool(configuration.placements))), below)


def _layer(
    shape: BackboneShape, stack: str, index: int, modules: Mapping[tuple[str, str], Any], inside: bool
) -> _Layer:
    known = {"lora", "serial_adapter", "parallel_adapter", "prefix"}
    for _, kind in modules:
        if kind not in known:
            raise ValueError(f"no count of operations for {kind}")
    count = _Layer()
    wants = {"x": inside}

    def linear(site: str, source: str, target: str) -> None:
        at = shape.at(Slot(stack, index, site))
        count.linear(at.d_in * at.d_out, wants[source])
        lora = modules.get((site, "lora"))
        if lora:
            count.lora(lora.rank, at.d_in, at.d_out, wants[source])
        wants[target] = wants[source] or bool(lora)

    for name in ("query", "key", "value"):
        linear(f"attention.{name}", "x", name)
    prefix = modules.get(("attention", "prefix"))
    _attention(count, wants, shape.at(Slot(stack, index, "attention")), prefix.length if prefix else 0)
    linear("attention.output", "mixed", "attended")
    wants["y"] = inside or wants["attended"]
    linear("ffn.up", "y", "wide")
    linear("ffn.down", "wide", "h")
    for kind, wanted in (("parallel_adapter", wants["y"]), ("serial_adapter", wants["y"] or wants["h"])):
        adapter = modules.get(("ffn", kind))
        if adapter:
            count.lora(adapter.bottleneck, shape.width, shape.width, wanted)
    return count


def _attention(count: _Layer, wants: dict[str, bool], at: Any, prefix: int) -> None:
    width = at.heads * at.head_dim
    query, key, value = (wants[name] for name in ("query", "key", "value"))
    # Forward: scores and their product with the values, T x (T + p) each.
    one = Flops(squares=2.0 * width, tokens=2.0 * width * prefix)
    count.forward += one + one
    trained = prefix > 0
    scores = query or key or trained
    for wanted in (scores, query, key or trained, value or trained):
        count.backward += one if wanted else Flops()
    wants["mixed"] = scores or value


def trial_flops(
    configuration: Configuration, workload: Workload, tokens: Mapping[str, int], squares: Mapping[str, int]
) -> float:
    """Returns the operations of a whole trial without a cache: all epochs, and one scoring of the validation texts.

    Args:
        configuration: What is trained.
        workload: The task.
        tokens: Real tokens of "train" and "validation".
        squares: Sums of the squared lengths.
    """
    one = passes(configuration, workload.described().shape, len(workload.task().labels))
    training = (one.forward + one.backward).of(tokens["train"], squares["train"], workload.train)
    scoring = one.forward.of(tokens["validation"], squares["validation"], workload.validation)
    return workload.epochs * training + scoring


def lengths(values: Sequence[int]) -> tuple[int, int, int]:
    """Returns the sum of lengths, of their squares, and their number: the arguments of `Flops.of`.

    Example:
        >>> lengths([3, 4])
        (7, 25, 2)
    """
    return sum(values), sum(v * v for v in values), len(values)
