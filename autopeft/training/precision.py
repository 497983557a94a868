"""Products of the frozen Linears in bfloat16, on machines with instructions for them.

What is bfloat16: input and weight of every Linear of the backbone's layers, and the gradient that goes through it. Sums
within a product are float32; its result is rounded to bfloat16 once and is float32 again from there on. Everything else
is float32: residual sums, norms, activations, attention, the inserted modules, the head, the loss, and all gradients of
trained parameters. Where the backbone's own weights are trained they stay float32, and are rounded anew at each step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, cast, final

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from autopeft.backbones import backbone_in
from autopeft.backbones.sidecar import Host, host_class
from autopeft.errors import TrainingError
from autopeft.families import family_of
from autopeft.processor import has_bfloat16
from autopeft.setting import Precision

_ROUNDED: Final = "autopeft_rounded"
"""Attribute with the rounded copies of frozen parameters; no buffers, so that no state of the model knows of them."""


@final
class RoundedLinear(nn.Linear):
    """A Linear whose product is bfloat16, shape (..., d_in) -> (..., d_out), for inputs and results of another type."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See `torch.nn.Linear`."""
        weight, bias = self.weight, cast(nn.Parameter | None, self.bias)
        # A trained bias moves by less than a step of bfloat16: it is added in its own precision.
        apart = bias is not None and bias.requires_grad
        inside = None if bias is None or apart else self._rounded("bias", bias)
        y = functional.linear(x.bfloat16(), self._rounded("weight", weight), inside).to(x.dtype)
        return y + bias if bias is not None and apart else y

    def _rounded(self, name: str, parameter: nn.Parameter) -> torch.Tensor:
        if parameter.requires_grad:
            return parameter.bfloat16()
        kept: dict[str, _Rounded] = self.__dict__[_ROUNDED]
        found = kept.get(name)
        # Private copies take the place of a parameter and leave it again; a model may move, or load other weights.
        if found is None or not found.of(parameter):
            with torch.inference_mode(mode=False):  # what is made in that mode can have no part in a backward pass
                found = kept[name] = _Rounded(parameter, parameter._version, parameter.detach().bfloat16())
        return found.copy


@final
@dataclass(frozen=True, eq=False)
class _Rounded:
    """A frozen parameter, which of its values was rounded, and the copy."""

    parameter: nn.Parameter
    version: int
    copy: torch.Tensor

    def of(self, parameter: nn.Parameter) -> bool:
        """Says whether it is the copy of what a parameter is now."""
        same = self.parameter is parameter and self.version == parameter._version
        return same and self.copy.device == parameter.device


def set_precision(model: PreTrainedModel, precision: Precision) -> None:
    """Has the Linears of a backbone's layers compute in a precision from now on, with modules in it or without.

    With "float32" they are what they were before, bit for bit. Parameters, their names and `state_dict` stay as they
    are in any case; Linears of other classes are left alone.

    Args:
        model: A transformers model of a known family.
        precision: "bfloat16", or "float32" for the type of the parameters.

    Cost: with "bfloat16" a rounded copy of the weights that are frozen, 2 bytes each, made when first used.
    """
    base = RoundedLinear if precision == "bfloat16" else nn.Linear
    for linear in _linears(model):
        if base is RoundedLinear:
            linear.__dict__.setdefault(_ROUNDED, {})
        else:
            linear.__dict__.pop(_ROUNDED, None)
        linear.__class__ = _with_base(type(linear), base)


@contextmanager
def computing(model: PreTrainedModel, precision: Precision) -> Iterator[None]:
    """Computes the Linears of a backbone's layers in a precision while a block runs (`set_precision`).

    Example:
        >>> with computing(model, "bfloat16"):  # doctest: +SKIP
        ...     hidden = model(**inputs).last_hidden_state
    """
    before: Precision = "bfloat16" if any(isinstance(m, RoundedLinear) for m in _linears(model)) else "float32"
    set_precision(model, precision)
    try:
        yield
    finally:
        set_precision(model, before)


def supported(device: torch.device) -> bool:
    """Says whether a device has instructions for products of bfloat16; without them they are slower than float32."""
    return bool(torch.cuda.is_bf16_supported(including_emulation=False)) if device.type == "cuda" else has_bfloat16()


def require_supported(precision: Precision, device: torch.device) -> None:
    """Raises TrainingError, kind "refused", where a trial in this precision would be slower than in float32.

    The trial is not lost: where a study is run again, it tries again what was refused.
    """
    if precision == "bfloat16" and not supported(device):
        where = "GPU" if device.type == "cuda" else "processor"
        raise TrainingError(
            f"the study computes in bfloat16, for which this {where} has no instructions: it would take 4 to 7 times as"
            " long as in float32",
            kind="refused",
            where="training.precision",
            cure="run it where there are (avx512_bf16 or amx_bf16 in /proc/cpuinfo), or start another in float32",
        )


def require_four_bits(four_bit: bool, device: torch.device) -> None:
    """Raises TrainingError, kind "refused", where weights are to be held in 4 bits and the device is no GPU.

    A study may be made on a machine without one; it is refused where it is run.
    """
    if four_bit and device.type != "cuda":
        raise TrainingError(
            "the study holds its weights in 4 bits, which needs a CUDA device, and none is in use",
            kind="refused",
            where="training.four_bit",
            cure="run it where there is one, or start another study with four_bit: false",
        )


def _linears(model: PreTrainedModel) -> list[nn.Linear]:
    """Returns the Linears of the layers, but for those of classes that are neither torch's nor ours."""
    backbone = backbone_in(model)
    family = family_of(backbone.config.model_type)
    layers = [layer for stack in family.stacks.values() for layer in cast(nn.ModuleList, backbone.get_submodule(stack))]
    found = [layer.get_submodule(path) for layer in layers for path in family.linears.values()]
    return [cast(nn.Linear, module) for module in found if _base(type(module)) in (nn.Linear, RoundedLinear)]


def _base(cls: type) -> type:
    """Returns a class without the mixin of a host."""
    return cls.__bases__[1] if issubclass(cls, Host) else cls


def _with_base(cls: type, base: type) -> type:
    """Returns a class of Linears with another base under its mixin, if it has one."""
    return host_class(cls.__bases__[0], base) if issubclass(cls, Host) else base
