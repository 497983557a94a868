"""Makes our adapters loadable by plain peft: `import autopeft.peft` registers one composite PEFT type.

After that `peft.PeftModel.from_pretrained(backbone, folder)` loads what `Adapter.save` wrote: on a bare `AutoModel`
the hidden states are the adapter's and `logits` applies the saved head; on a stock `AutoModelForSequenceClassification`
the model's own forward gives the adapter's logits.

peft's enum of types is closed, so it is extended through its private maps, here and nowhere else;
`tests/contracts/test_peft.py` fails loudly on a peft release that changes them. Checked with peft 0.21.2.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import peft
import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import PeftType, register_peft_method
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from autopeft.adapters import build_head
from autopeft.adapters.files import CONFIG, require_safe_config, require_safe_weights
from autopeft.backbones import attach, backbone_in, drop_unused_prefixes
from autopeft.backbones.sidecar import SIDECAR, Host, Sidecar, host, restore, sidecar_of
from autopeft.configuration import Configuration
from autopeft.errors import InputError
from autopeft.heads.layer import HeadLayer
from autopeft.heads.spec import Head
from autopeft.training.loop import loss_of
from autopeft.untrusted import read_json

NAME = "AUTOPEFT"


def _extend_enum() -> PeftType:
    """Adds our member to peft's enum; a second call finds it there."""
    if NAME in PeftType.__members__:
        return PeftType[NAME]
    member = str.__new__(PeftType, NAME)
    member._name_, member._value_ = NAME, NAME
    PeftType._member_map_[NAME] = member
    PeftType._value2member_map_[NAME] = member
    PeftType._member_names_.append(NAME)
    return member


AUTOPEFT = _extend_enum()


@dataclass
class AutoPeftConfig(PeftConfig):
    """peft's view of an adapter's configuration file; fields as in `Adapter.config`.

    Attributes:
        format: Version of the layout.
        configuration: `Configuration.to_dict()`; kept in its stored form.
        head: `Head.to_dict()`, or None for none.
        labels: Class names; empty for regression.
        backbone: {"sha256": ...} of the backbone's weights.
        max_length: Tokens a text is cut to.
        pairs: Whether it was trained on pairs of texts.
        provenance: How the adapter came about.
        weights_sha256: SHA-256 of the weights file, checked by `autopeft.adapters.load` only.

    Raises:
        InputError: An unknown key, a value of another type, or something to import (`require_safe_config`).
    """

    format: int = 1
    configuration: dict[str, Any] = field(default_factory=dict)
    head: dict[str, Any] | None = None
    labels: list[str] = field(default_factory=list)
    backbone: dict[str, Any] = field(default_factory=dict)
    max_length: int = 128
    pairs: bool = False
    provenance: dict[str, Any] = field(default_factory=dict)
    weights_sha256: str | None = None

    def __new__(cls, *args: Any, **kwargs: Any) -> AutoPeftConfig:  # noqa: ARG004 - they are __init__'s
        """Refuses unknown keys, which peft would drop with a warning after its own first try."""
        require_safe_config(kwargs, {f.name for f in fields(cls)}, CONFIG)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except ValueError as error:
            raise InputError(str(error), where=CONFIG, cure="save the adapter again") from None
        self.weights_sha256 = None  # of the file it was read with; what peft saves later is another one
        self.peft_type = AUTOPEFT
        self.configuration = Configuration.from_dict(self.configuration).stored_form().to_dict()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], subfolder: str | None = None, **kwargs: Any
    ) -> AutoPeftConfig:
        """Reads the configuration of a folder, or of the hub, as peft does; first looks at what lies in the folder.

        Raises:
            InputError: The weights in the folder are a pickle, or the configuration is not safe to follow.
        """
        folder = Path(pretrained_model_name_or_path, subfolder or "")
        if (folder / CONFIG).is_file():
            read_json(folder / CONFIG)
            require_safe_weights(folder)
        return super().from_pretrained(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)


class PeftSidecar(Sidecar, BaseTunerLayer):
    """A sidecar that peft switches, disables, freezes and deletes like its own layers."""

    adapter_layer_names = ("layouts",)

    @property
    def weight(self) -> torch.Tensor:
        """There is no wrapped layer: the sidecar sits beside it, not around it."""
        raise AttributeError("a sidecar wraps no layer")

    def chosen(self) -> list[str]:
        """Returns the layouts peft has activated."""
        return [] if self.disable_adapters else list(self.active_adapters)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        if device is not None and adapter_name in self.layouts:
            self.layouts[adapter_name].to(device)


class HeadHost(Host):
    """A bare backbone that carries the head; its forward stays its own."""


class TaskHost(Host):
    """A stock sequence classifier whose logits come from the adapter's head."""

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        heads = [layer for layer in self._sidecar().layers() if isinstance(layer, HeadLayer)]
        if not heads:
            return super().forward(  # type: ignore[misc]
                input_ids=input_ids, attention_mask=attention_mask, labels=labels, **kwargs
            )
        kwargs.pop("return_dict", None)
        backbone = backbone_in(cast(PreTrainedModel, self))
        output = backbone(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        found = heads[0](output.last_hidden_state, _mask(attention_mask, output.last_hidden_state))
        loss = None if labels is None else loss_of(found, labels)
        return SequenceClassifierOutput(
            loss=loss, logits=found, hidden_states=output.get("hidden_states"), attentions=output.get("attentions")
        )


class AutoPeftTuner(BaseTuner):
    """peft's tuner for the composite type: injection and key names are ours, the rest is peft's."""

    prefix = "autopeft_"
    tuner_layer_cls = PeftSidecar
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012

    def _prepare_adapter_config(self, peft_config: AutoPeftConfig, model_config: dict[str, Any]) -> AutoPeftConfig:  # noqa: ARG002
        return peft_config

    def _check_target_module_exists(self, peft_config: AutoPeftConfig, key: str) -> bool:  # noqa: ARG002
        return False

    def _create_and_replace(self, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        raise TypeError("a composite adapter is injected as a whole, see inject_adapter")

    def inject_adapter(
        self,
        model: PreTrainedModel,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,  # noqa: ARG002
        low_cpu_mem_usage: bool = False,  # noqa: ARG002
        state_dict: Mapping[str, torch.Tensor] | None = None,  # noqa: ARG002
    ) -> None:
        """Inserts the configuration's modules and, where there is one, the head."""
        config: AutoPeftConfig = self.peft_config[adapter_name]
        configuration = Configuration.from_dict(config.configuration)
        own = next((p for p in configuration.placements if p.module.trains_own), None)
        if own is not None:
            what = f"{own.module.kind} trains parameters of the backbone itself, which is no adapter to peft"
            raise InputError(what, where=str(own.slot), cure="load it with autopeft.adapters.load")
        backbone = backbone_in(model)
        head = None
        if config.head is not None:
            head = build_head(Head.from_dict(config.head), backbone, len(config.labels) or 1)
        injection = attach(model, configuration, name=adapter_name, make_sidecar=PeftSidecar)
        if head is not None:
            mixin = TaskHost if type(model).__name__.endswith("ForSequenceClassification") else HeadHost
            host(model, mixin, "", PeftSidecar).add(adapter_name, "head", head)
        self.targeted_module_names = [str(p.slot) for p, _ in injection.built]
        self.set_adapter(self.active_adapters)
        self._mark_only_adapters_as_trainable(model)
        if config.inference_mode:
            self.set_requires_grad(adapter_name, requires_grad=False)

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: AutoPeftConfig,  # noqa: ARG003
        adapter_name: str,
        state_dict: Mapping[str, torch.Tensor],
        unwanted_adapter_names: list[str],  # noqa: ARG003
    ) -> dict[str, torch.Tensor]:
        return {stored: state_dict[key] for stored, key in _keys(model, adapter_name)}

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:  # noqa: ARG003
        return key

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls,
        model: nn.Module,
        config: AutoPeftConfig,  # noqa: ARG003
        adapter_name: str,
        state_dict: Mapping[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """Maps file names to model keys; refuses what is missing, superfluous or of another shape (peft would not)."""
        keys, present = dict(_keys(model, adapter_name)), model.state_dict()
        for name in sorted(keys.keys() ^ state_dict.keys()):
            what = "tensor is missing" if name in keys else "tensor belongs to no module"
            raise InputError(what, where=name, cure="save the adapter again")
        for name, key in keys.items():
            if state_dict[name].shape != present[key].shape:
                shapes = f"{tuple(state_dict[name].shape)}, the configuration needs {tuple(present[key].shape)}"
                raise InputError(f"tensor has shape {shapes}", where=name, cure="save the adapter again")
        return {keys[name]: tensor for name, tensor in state_dict.items()}

    def _check_merge_allowed(self) -> None:
        raise InputError("a composite adapter cannot be merged", cure="use unload() to take it out instead")

    def _unload_and_optionally_merge(self, merge: bool = True, **kwargs: Any) -> PreTrainedModel:  # noqa: ARG002
        if merge:
            self._check_merge_allowed()
        model = cast(PreTrainedModel, self.model)
        for module in list(model.modules()):
            restore(module)
        drop_unused_prefixes(backbone_in(model))
        del model.peft_config
        return model


def logits(model: PeftModel, **inputs: torch.Tensor) -> torch.Tensor:
    """Returns the adapter's logits, shape (batch, classes), for a bare backbone loaded through peft.

    Args:
        model: What `PeftModel.from_pretrained` returned for a bare `AutoModel`.
        **inputs: What the tokenizer returned.

    Raises:
        InputError: The active adapter carries no head.

    Example:
        >>> logits(model, **tokenizer(["a text"], return_tensors="pt"))  # doctest: +SKIP
    """
    sidecar = sidecar_of(model.get_base_model())
    heads = [layer for layer in sidecar.layers() if isinstance(layer, HeadLayer)] if sidecar else []
    if not heads:
        raise InputError("the active adapter has no head", cure="load one that was saved with a head")
    hidden = model(**inputs).last_hidden_state
    found: torch.Tensor = heads[0](hidden, _mask(inputs.get("attention_mask"), hidden))
    return found


def _mask(mask: torch.Tensor | None, hidden: torch.Tensor) -> torch.Tensor:
    return mask if mask is not None else hidden.new_ones(hidden.shape[:2])


def _keys(model: nn.Module, adapter_name: str) -> Iterator[tuple[str, str]]:
    """Yields (name in the file, key in the model's state_dict) of every tensor of an adapter."""
    for path, module in model.named_modules():
        if not isinstance(module, PeftSidecar) or adapter_name not in module.layouts:
            continue
        for name in module.layouts[adapter_name].state_dict():
            yield (f"{module.slot}.{name}" if module.slot else name), f"{path}.layouts.{adapter_name}.{name}"


if AUTOPEFT not in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING:
    register_peft_method(name=NAME.lower(), config_cls=AutoPeftConfig, model_cls=AutoPeftTuner, prefix="autopeft_")

__all__ = ["AUTOPEFT", "SIDECAR", "AutoPeftConfig", "AutoPeftTuner", "logits"]
