"""Hidden states below the lowest inserted layer, computed once per split and kept between epochs and trials.

They are a function of the backbone, the texts and the layer alone: always computed from the texts, for the whole split,
in batches by length, with nothing inserted. So a trial's result does not depend on which trial needed them first, nor
on where they are kept. docs/design/0007-states.md says when they are used and what is charged to a trial.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Final, final

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from autopeft.backbones.partial import depth, last_from, states_at
from autopeft.configuration import Configuration, lowest_layer
from autopeft.errors import InputError
from autopeft.processor import identity
from autopeft.setting import Setting
from autopeft.training.batches import Tokens, by_length
from autopeft.training.sources import Hidden, Source, Texts
from autopeft.training.state_cache import StateCache
from autopeft.training.state_files import DTYPES, Put

BATCH: Final = 64
"""Texts that are computed together; part of what the values depend on."""
WASTED: Final = 4
"""A split is not computed as a whole for a trial that reads less than this part of it."""
_FORM_NUMBER = 1


@final
@dataclass(frozen=True)
class Cached(Source):
    """Runs the backbone from one layer on.

    Attributes:
        layer: The first layer that runs; the number of layers where none does.
        states: Hidden states that enter it, all texts end to end, shape (total tokens, width); never written to.
    """

    layer: int
    states: torch.Tensor

    def hidden(self, rows: NDArray[np.int64]) -> Hidden:
        """See `Source.hidden`."""
        inputs = {name: tensor.to(self.device) for name, tensor in self.tokens.inputs(rows).items()}
        places, _ = self.tokens.places(rows)
        # In one step from the store into a tensor of the batch's own; 4 times faster than indexing with two dimensions.
        states = self.states.index_select(0, places.view(-1)).view(*places.shape, -1).to(self.device)
        return Hidden(last_from(self.model, self.layer, states, inputs), inputs["attention_mask"])


@dataclass(frozen=True)
class Reuse:
    """What a trial reads from the cache.

    Attributes:
        layer: The first layer that runs; None where every layer does.
        reason: Why every layer runs, or why those of some splits do.
        states: Hidden states by split.
        idle: Bytes of the process's memory that hold states of other trials.
    """

    layer: int | None = None
    reason: str = ""
    states: Mapping[str, torch.Tensor] = field(default_factory=dict)
    idle: int = 0

    def source(self, model: PreTrainedModel, name: str, tokens: Tokens) -> Source:
        """Returns how a split is read.

        Args:
            model: The backbone, with its modules.
            name: Name of the split.
            tokens: The split.
        """
        if self.layer is None or name not in self.states:
            return Texts(model, tokens)
        return Cached(model, tokens, self.layer, self.states[name])

    def detail(self) -> dict[str, Any]:
        """Returns what the trial's record says of it."""
        found: dict[str, Any] = {"layer": self.layer}
        if self.layer is not None:
            found["splits"] = sorted(self.states)
        return {**found, "reason": self.reason} if self.reason else found


def obstacle(configuration: Configuration, setting: Setting, remote_code: bool) -> str:
    """Returns why nothing below a configuration's lowest layer can be kept, or "" where it can.

    Args:
        configuration: What is trained.
        setting: Backbone and recipe.
        remote_code: Whether code that came with the backbone is in use.
    """
    if not setting.recipe.cache:
        return "the recipe says so"
    if setting.recipe.dropout > 0:
        return f"dropout {setting.recipe.dropout:g} makes the layers below differ from step to step"
    if remote_code:
        return "code that came with the backbone runs, and nothing tells one version of it from another"
    if lowest_layer(configuration, setting.backbone.shape) == 0:
        return "layer 0 is trained or has a module, so nothing lies below"
    return ""


def reuse(
    cache: StateCache,
    model: PreTrainedModel,
    configuration: Configuration,
    setting: Setting,
    splits: Mapping[str, tuple[Tokens, int]],
    *,
    remote_code: bool = False,
) -> Reuse:
    """Returns the hidden states that a trial reads, computed where they are not kept yet.

    Args:
        cache: Where they are kept.
        model: The backbone, with nothing inserted.
        configuration: What will be inserted.
        setting: What the backbone and the texts are.
        splits: The tokenised splits, and how many texts of each the trial reads, repetitions counted.
        remote_code: Whether code that came with the backbone is in use.

    Cost: nothing where they are there; one forward pass through the layers below for each split that is not.
    """
    reason = obstacle(configuration, setting, remote_code)
    if reason:
        return Reuse(reason=reason)
    layer = lowest_layer(configuration, setting.backbone.shape)
    try:
        depth(model)
        if str(model.dtype).removeprefix("torch.") not in DTYPES:
            return Reuse(reason=f"hidden states of type {model.dtype} are not kept")
        found, names, refused = {}, [], []
        for split, (tokens, read) in splits.items():
            if WASTED * read < len(tokens):
                refused.append(f"{split}: {read} of {len(tokens)} texts are read")
                continue
            key = _key(model, setting, tokens, layer)
            name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
            states = _states(cache, name, key, model, tokens, layer, setting.backbone.shape.width)
            if states is None:
                refused.append(f"{split}: there is no room for its hidden states")
                continue
            found[split] = states
            names.append(name)
    except InputError as refusal:
        return Reuse(reason=refusal.what)
    return Reuse(layer if found else None, "; ".join(refused), found, cache.idle(names))


def compute(model: PreTrainedModel, tokens: Tokens, layer: int, put: Put) -> None:
    """Computes the hidden states that enter a layer, of all texts, and puts them where those of each text belong.

    Args:
        model: The backbone, with nothing inserted below the layer; it is left in evaluation mode.
        tokens: The split.
        layer: Number of the layer.
        put: Takes the hidden states of each text, shape (its tokens, width), with the offset of its first token.
    """
    model.eval()
    # Not in inference mode: what was computed there can have no part in a backward pass.
    with torch.no_grad():
        for rows in by_length(tokens, BATCH):
            inputs = {name: tensor.to(model.device) for name, tensor in tokens.inputs(rows).items()}
            states = states_at(model, layer, inputs).to(model.dtype).cpu().contiguous()
            for row, of_text in zip(rows, states, strict=True):
                put(int(tokens.starts[row]), of_text[: tokens.lengths[row]])


def _states(
    cache: StateCache, name: str, key: dict[str, Any], model: PreTrainedModel, tokens: Tokens, layer: int, width: int
) -> torch.Tensor | None:
    shape = (int(tokens.starts[-1]), width)
    return cache.get(name, key, shape, model.dtype, lambda put: compute(model, tokens, layer, put))


def _key(model: PreTrainedModel, setting: Setting, tokens: Tokens, layer: int) -> dict[str, Any]:
    """Returns all that the values depend on, down to the last bit."""
    configured = {name: value for name, value in model.config.to_dict().items() if not name.startswith("_")}
    recipe = setting.recipe
    return {
        "form": _FORM_NUMBER,
        "layer": layer,
        "batch": BATCH,
        "backbone": setting.backbone.sha256,
        "config": hashlib.sha256(json.dumps(configured, sort_keys=True, default=str).encode()).hexdigest(),
        "attention": str(model.config._attn_implementation),
        "tokens": tokens.digest,
        "dtype": str(model.dtype),
        "precision": recipe.precision,
        "four_bit": recipe.four_bit,
        # Sums of floats depend on the number of threads, and on the kernels that libraries choose for a processor.
        "threads": recipe.threads,
        "device": _device(model.device),
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{identity()} {torch.backends.cpu.get_cpu_capability()}"
