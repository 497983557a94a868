"""Configurations of the literature, ready to train: what a search has to beat. Torch-free."""

from __future__ import annotations

from collections.abc import Callable

from autopeft.configuration import Configuration, Placement, Training, uniform
from autopeft.errors import InputError, nearest
from autopeft.modules import LINEAR_SITES, FullFineTuning, Lora, ParallelAdapter, Prefix, SerialAdapter
from autopeft.shapes import BackboneShape, Slot

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
    "full": lambda shape, rate: Configuration(
        (Placement(Slot("backbone", 0, "all"), FullFineTuning()),), Training(rate)
    ),
}


def preset(name: str, shape: BackboneShape, learning_rate: float) -> Configuration:
    """Returns a named configuration of the literature for a backbone.

    Args:
        name: "probe" (head only), "lora" (r=8 on query and value, arXiv 2106.09685), "lora_all_linear" (r=8 on all six
            Linears), "serial" (b=48), "parallel" (b=48), "prefix" (p=20), "mam" (arXiv 2110.04366), "full".
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
