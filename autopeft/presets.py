"""Configurations of the literature, ready to train: what a search has to beat. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from autopeft.configuration import Configuration, Placement, Training, uniform
from autopeft.errors import InputError, nearest
from autopeft.modules import (
    LINEAR_SITES,
    BitFit,
    FullFineTuning,
    LayerNormTuning,
    Lora,
    ParallelAdapter,
    PeftModule,
    Prefix,
    SerialAdapter,
)
from autopeft.shapes import BackboneShape, Slot


def _everywhere(shape: BackboneShape, module: PeftModule, rate: float) -> Configuration:
    """Puts one module at every slot it can sit at."""
    return Configuration(tuple(Placement(slot, module) for slot in shape if slot.site in module.sites), Training(rate))


PRESETS: dict[str, Callable[[BackboneShape, float], Configuration]] = {
    "probe": lambda shape, rate: Configuration((), Training(rate)),
    "lora": lambda shape, rate: uniform(
        shape, [("attention.query", Lora(8)), ("attention.value", Lora(8))], Training(rate)
    ),
    "lora_all_linear": lambda shape, rate: uniform(shape, [(site, Lora(8)) for site in LINEAR_SITES], Training(rate)),
    "serial": lambda shape, rate: uniform(shape, [("ffn", SerialAdapter(48))], Training(rate)),
    "parallel": lambda shape, rate: uniform(shape, [("ffn", ParallelAdapter(48))], Training(rate)),
    "prefix": lambda shape, rate: uniform(shape, [("attention", Prefix(20))], Training(rate)),
    "mam": lambda shape, rate: uniform(
        shape, [("attention", Prefix(30)), ("ffn", ParallelAdapter(48))], Training(rate)
    ),
    "bitfit": lambda shape, rate: _everywhere(shape, BitFit(), rate),
    "layer_norm": lambda shape, rate: _everywhere(shape, LayerNormTuning(), rate),
    "full": lambda shape, rate: Configuration(
        (Placement(Slot("backbone", 0, "all"), FullFineTuning()),), Training(rate)
    ),
}


def preset(name: str, shape: BackboneShape, learning_rate: float) -> Configuration:
    """Returns a named configuration of the literature for a backbone.

    Args:
        name: "probe" (head only), "lora" (r=8 on query and value, arXiv 2106.09685), "lora_all_linear" (r=8 on all six
            Linears), "serial" (b=48), "parallel" (b=48), "prefix" (p=20), "mam" (arXiv 2110.04366),
            "bitfit" (all biases of layers and LayerNorms, arXiv 2106.10199), "layer_norm" (all LayerNorms), "full".
        shape: The backbone's shape.
        learning_rate: Its peak learning rate.

    Raises:
        InputError: The name is not known.

    Example:
        >>> preset("lora", shape, 1e-3).count(shape).stored  # doctest: +SKIP
        73728
    """
    if name not in PRESETS:
        raise InputError(f"unknown preset '{name}'", cure=nearest(name, PRESETS))
    return PRESETS[name](shape, learning_rate)


BASELINES: Mapping[str, tuple[float, ...]] = {
    "probe": (1e-3,),
    "lora": (3e-3,),
    "lora_all_linear": (1e-3, 3e-3, 1e-2),
    "serial": (3e-3,),
    "full": (1e-4, 3e-4),
}
"""What every search is held against: preset to the learning rates tried; the best on validation is the baseline."""


def usual_baselines(shape: BackboneShape) -> tuple[tuple[str, Configuration], ...]:
    """Returns `baselines` of those in `BASELINES` that fit the backbone: a width of 32 has no bottleneck of 48."""
    fitting = {name: rates for name, rates in BASELINES.items() if _fits(name, shape)}
    return baselines(shape, fitting)


def _fits(name: str, shape: BackboneShape) -> bool:
    try:
        preset(name, shape, BASELINES[name][0]).check(shape)
    except InputError:
        return False
    return True


def baselines(
    shape: BackboneShape, rates: Mapping[str, Sequence[float]] = BASELINES
) -> tuple[tuple[str, Configuration], ...]:
    """Returns pairs of name and configuration; of several rates each is a pair of its own, named "lora@0.003".

    Args:
        shape: The backbone's shape.
        rates: Preset name to learning rates.

    Raises:
        InputError: A preset is unknown or does not fit the backbone.

    Example:
        >>> [name for name, _ in baselines(shape, {"probe": (1e-3,), "lora": (1e-3, 3e-3)})]  # doctest: +SKIP
        ['probe', 'lora@0.001', 'lora@0.003']
    """
    made = []
    for name, grid in rates.items():
        for rate in grid:
            configuration = preset(name, shape, rate)
            try:
                configuration.check(shape)
            except InputError as refusal:
                where, cure = f"baselines.{name}", "leave this baseline out"
                raise InputError(refusal.what, where=where, cure=cure) from None
            made.append((name if len(grid) == 1 else f"{name}@{rate:g}", configuration))
    return tuple(made)
