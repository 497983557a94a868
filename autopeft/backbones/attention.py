"""Prefixes through transformers' attention interface: the prefix goes in front of the keys, positions do not move.

One attention function and one mask function are registered per base implementation. The function looks for the
sidecar of the calling attention module and is the base function where there is none. The mask of the real tokens is
unchanged and padded with "visible" in front, so padded batches and causal masks stay right.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from autopeft.backbones.sidecar import AttentionHost, sidecar_of
from autopeft.errors import InputError

PREFIXED: Final = {"sdpa": "autopeft_sdpa", "eager": "autopeft_eager"}
"""Base attention implementation to the one of ours that also carries prefixes."""

AttentionFunction = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]


def with_prefix(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Puts the calling module's prefixes in front of its keys and values.

    Args:
        module: The attention module; its sidecar holds the prefixes.
        query: Shape (batch, heads, q, head_dim).
        key: Shape (batch, kv_heads, k, head_dim).
        value: Same shape as `key`.
        mask: Boolean (True: visible) or additive, shape (batch or 1, heads or 1, q, k), or None: all visible, or
            causal where the module says so.

    Returns:
        Keys, values and mask, longer by the prefix.
    """
    sidecar = sidecar_of(module)
    prefixes = sidecar.prefixes() if sidecar is not None else []
    if not prefixes:
        return key, value, mask
    batch, length = key.shape[0], sum(k.shape[-2] for k, _ in prefixes)
    # An absent mask of a causal module means tril over the true keys: make it explicit before the prefix moves it.
    if mask is None and getattr(module, "is_causal", False) and query.shape[2] > 1:
        causal = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=key.device).tril()
        mask = causal[None, None]
    visible = sidecar.visible() if sidecar is not None else None
    if visible is not None:
        mask = _hidden_in_front(visible.repeat_interleave(batch // len(visible), dim=0), mask, query, key.shape[2])
    elif mask is not None:
        mask = functional.pad(mask, (length, 0), value=True if mask.dtype == torch.bool else 0.0)
    keys = [_per_row(k.to(key.dtype), batch) for k, _ in prefixes]
    values = [_per_row(v.to(value.dtype), batch) for _, v in prefixes]
    return torch.cat([*keys, key], dim=2), torch.cat([*values, value], dim=2), mask


def _per_row(part: torch.Tensor, batch: int) -> torch.Tensor:
    """(heads, p, d), or (K, heads, p, d) for K equal parts of the batch, -> (batch, heads, p, d)."""
    return part.expand(batch, -1, -1, -1) if part.dim() == 3 else part.repeat_interleave(batch // len(part), dim=0)


def _hidden_in_front(visible: torch.Tensor, mask: torch.Tensor | None, query: torch.Tensor, keys: int) -> torch.Tensor:
    """Puts (batch, p) in front of a mask over `keys` keys; where there is none, all of them are visible."""
    if mask is None:  # additive: every implementation reads it
        mask = query.new_zeros(1, 1, query.shape[2], keys)
    front = visible
    if mask.dtype != torch.bool:
        front = torch.zeros(visible.shape, dtype=mask.dtype, device=mask.device)
        front = front.masked_fill(~visible, torch.finfo(mask.dtype).min)
    batch, (_, heads, queries, _) = len(visible), mask.shape
    front = front[:, None, None].expand(-1, heads, queries, -1)
    return torch.cat([front, mask.expand(batch, -1, -1, -1)], dim=-1)


def _own_eager(module: torch.nn.Module) -> AttentionFunction:
    # Every modelling file of transformers defines its own eager function; the host class is ours, its base is theirs.
    for cls in type(module).__mro__:
        found = getattr(sys.modules[cls.__module__], "eager_attention_forward", None)
        if found is not None:
            function: AttentionFunction = found
            return function
    raise InputError(f"{type(module).__name__} has no eager attention", cure='load the backbone with "sdpa"')


def _carrying(base_of: Callable[[torch.nn.Module], AttentionFunction]) -> AttentionFunction:
    """Returns the attention function that adds the prefixes and leaves the rest to the base function of a module."""

    def attend(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        key, value, attention_mask = with_prefix(module, query, key, value, attention_mask)
        return base_of(module)(module, query, key, value, attention_mask, **kwargs)

    return attend


AttentionInterface.register("autopeft_sdpa", _carrying(lambda _: sdpa_attention_forward))
AttentionInterface.register("autopeft_eager", _carrying(_own_eager))
for _base, _ours in PREFIXED.items():
    AttentionMaskInterface.register(_ours, ALL_MASK_ATTENTION_FUNCTIONS[_base])


def implementation(model: PreTrainedModel) -> str:
    """Returns the name of the model's attention implementation."""
    return str(model.config._attn_implementation)


def carry_prefixes(model: PreTrainedModel) -> None:
    """Switches the model to the attention function that carries prefixes.

    Raises:
        InputError: The implementation has no counterpart that carries prefixes.
    """
    base = implementation(model)
    if base in PREFIXED:
        model.set_attn_implementation(PREFIXED[base])
    elif base not in PREFIXED.values():
        raise InputError(
            f"prefixes do not work with attention '{base}'",
            where="attn_implementation",
            cure=f"load the backbone with one of: {', '.join(PREFIXED)}",
        )


def drop_unused_prefixes(model: PreTrainedModel) -> None:
    """Switches back to the base implementation once no module of the model hosts a prefix."""
    chosen = implementation(model)
    if chosen in PREFIXED.values() and not any(isinstance(module, AttentionHost) for module in model.modules()):
        model.set_attn_implementation(chosen.removeprefix("autopeft_"))
