"""A backbone run in two parts is the backbone: same numbers, same gradients, and nothing of it is left behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from autopeft.backbones import Injection, inject
from autopeft.backbones.partial import depth, first_position, last_from, reads_first_only, states_at
from autopeft.configuration import Configuration, Placement, lowest_layer
from autopeft.errors import InputError
from autopeft.families import shape_of
from autopeft.heads import Head
from autopeft.modules import FullFineTuning, Lora, ParallelAdapter, PeftModule, Prefix, SerialAdapter
from autopeft.shapes import Slot
from tests import models

KINDS: dict[str, PeftModule] = {
    "ffn": SerialAdapter(4, zero_up=False),
    "attention": Prefix(3),
    "attention.query": Lora(2),
    "attention.key": Lora(2),
    "attention.value": Lora(2),
    "attention.output": Lora(2),
    "ffn.up": Lora(2),
    "ffn.down": Lora(2),
}


def everywhere(first: int) -> Configuration:
    """Every kind of module at every site of the layers from `first` on."""
    slots = [Placement(Slot("encoder", i, site), m) for i in range(first, models.LAYERS) for site, m in KINDS.items()]
    return Configuration((*slots, *(Placement(Slot("encoder", i, "ffn"), ParallelAdapter(4)) for i in range(first, 3))))


def shake(injection: Injection) -> None:
    """Moves every parameter off its start, where half of them do nothing."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, parameter in injection.named_parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))


def real(values: torch.Tensor) -> torch.Tensor:
    """The rows of real tokens."""
    return values[models.inputs()["attention_mask"].bool()]


def gradients(injection: Injection, last: torch.Tensor) -> list[torch.Tensor]:
    weights = torch.linspace(-1.0, 1.0, last.shape[-1], dtype=last.dtype)
    return list(torch.autograd.grad((last @ weights).square().sum(), [p for _, p in injection.named_parameters()]))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", models.FAMILIES)
def test_both_parts_together_are_the_backbone_at_every_boundary(family: str, attention: str) -> None:
    model, inputs = models.tiny_model(family, attention=attention), models.inputs()
    assert depth(model) == models.LAYERS
    with torch.no_grad():
        whole = model(**inputs).last_hidden_state
        for layer in range(models.LAYERS + 1):
            states = states_at(model, layer, inputs)
            # The cache keeps nothing for padding; whatever stands there must not be read.
            states = states.masked_fill(inputs["attention_mask"][..., None] == 0, 7.0)
            assert (real(last_from(model, layer, states, inputs)) - real(whole)).abs().max() < 1e-9
        # The input of the first layer is what the embeddings give, behind ELECTRA's projection.
        embedded = model.embeddings(inputs["input_ids"])
        embedded = model.embeddings_project(embedded) if family == "electra" else embedded
        assert torch.equal(states_at(model, 0, inputs), embedded)


@pytest.mark.parametrize("layer", range(models.LAYERS))
@pytest.mark.parametrize("family", models.FAMILIES)
def test_modules_above_the_boundary_compute_and_learn_the_same(family: str, layer: int) -> None:
    model, inputs = models.tiny_model(family), models.inputs()
    with torch.no_grad():
        states = states_at(model, layer, inputs)
    injection = inject(model, everywhere(layer))
    shake(injection)
    whole, partial = model(**inputs).last_hidden_state, last_from(model, layer, states, inputs)
    assert (real(partial) - real(whole)).abs().max() < 1e-9
    for one, other in zip(gradients(injection, real(whole)), gradients(injection, real(partial)), strict=True):
        assert (one - other).abs().max() < 1e-9 * max(1.0, float(one.abs().max()))


def test_a_layer_on_the_other_side_does_not_run() -> None:
    model, inputs = models.tiny_model("bert"), models.inputs()
    layers, ran = list(model.encoder.layer), []
    for number, layer in enumerate(layers):
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))
    states = states_at(model, 1, inputs)
    assert ran == [0]
    ran.clear()
    last_from(model, 1, states, inputs)
    assert ran == [1, 2]
    ran.clear()
    assert last_from(model, 3, states, inputs) is states
    assert ran == []


class BrokenError(RuntimeError):
    pass


def test_the_backbone_is_itself_again_even_after_an_exception() -> None:
    model, inputs = models.tiny_model("bert"), models.inputs()
    whole, stack = model(**inputs).last_hidden_state, model.encoder.layer
    modules, layers, before = stack._modules, list(stack), dict(model.named_modules())

    def fail(*_: Any) -> None:
        raise BrokenError

    states = states_at(model, 2, inputs)
    for layer in (0, 2):
        hook = layers[layer].register_forward_pre_hook(fail)
        with pytest.raises(BrokenError):
            last_from(model, 2, states, inputs) if layer else states_at(model, 2, inputs)
        with pytest.raises(BrokenError), first_position(model):
            model(**inputs)
        hook.remove()
    assert stack._modules is modules
    assert all(one is other for one, other in zip(stack, layers, strict=True))
    assert dict(model.named_modules()) == before
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert torch.equal(model(**inputs).last_hidden_state, whole)


@pytest.mark.parametrize("family", models.FAMILIES)
def test_the_last_layer_for_the_first_position_only_is_exact(family: str) -> None:
    model, inputs = models.tiny_model(family), models.inputs()
    injection = inject(model, everywhere(0))
    shake(injection)
    whole = model(**inputs).last_hidden_state[:, :1]
    with first_position(model):
        narrow = model(**inputs).last_hidden_state
    assert narrow.shape == (2, 1, models.WIDTH)
    assert (narrow - whole).abs().max() < 1e-9
    for one, other in zip(gradients(injection, whole), gradients(injection, narrow), strict=True):
        assert (one - other).abs().max() < 1e-9 * max(1.0, float(one.abs().max()))


def test_a_head_that_reads_all_positions_gets_them() -> None:
    model = models.tiny_model("bert")
    assert [reads_first_only(model, everywhere(0), Head(kind)) for kind in ("mean", "cls", "transformers")] == [
        False,
        True,
        True,
    ]
    full = Configuration((Placement(Slot("backbone", 0, "all"), FullFineTuning()),))
    assert reads_first_only(model, full, Head("cls"))


def test_modules_that_nobody_knows_get_all_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SerialAdapter, "kind", "somebody_elses")
    assert not reads_first_only(models.tiny_model("bert"), everywhere(2), Head("cls"))


def test_layers_that_share_weights_are_refused() -> None:
    model = models.tiny_model("bert")
    model.encoder.layer[2] = model.encoder.layer[1]
    with pytest.raises(InputError, match="share weights"):
        states_at(model, 1, models.inputs())
    with pytest.raises(InputError, match="share weights"):
        last_from(model, 1, torch.zeros(2, 7, models.WIDTH, dtype=torch.float64), models.inputs())


@pytest.mark.parametrize("layer", [-1, 4])
def test_a_layer_that_is_not_there_is_refused(layer: int) -> None:
    with pytest.raises(InputError, match=f"no layer {layer}.*use 0 to 3"):
        states_at(models.tiny_model("bert"), layer, models.inputs())


class InATuple(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        return (self.layer(*args, **kwargs), None)


class Unpacking(nn.Module):
    """An encoder as it was in older releases of transformers: its layers return tuples."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.layer = nn.ModuleList(InATuple(layer) for layer in encoder.layer)

    def forward(self, hidden: torch.Tensor, **kwargs: Any) -> Any:
        for layer in self.layer:
            hidden = layer(hidden, kwargs["attention_mask"])[0]
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden)


def test_layers_that_return_more_than_hidden_states_are_refused() -> None:
    model: PreTrainedModel = models.tiny_model("electra")
    whole = model(**models.inputs()).last_hidden_state
    model.encoder = Unpacking(model.encoder)
    assert torch.equal(model(**models.inputs()).last_hidden_state, whole)
    with pytest.raises(InputError, match="return more than hidden states"):
        states_at(model, 1, models.inputs())


def test_the_lowest_layer() -> None:
    shape = shape_of(models.tiny_config("bert").to_dict())
    assert lowest_layer(Configuration(), shape) == 3
    assert lowest_layer(everywhere(1), shape) == 1
    assert lowest_layer(Configuration((Placement(Slot("encoder", 2, "ffn.up"), Lora(2)),)), shape) == 2
    assert lowest_layer(Configuration((Placement(Slot("backbone", 0, "all"), FullFineTuning()),)), shape) == 0
    outside = Placement(Slot("embeddings", 0, "norm"), Lora(2))
    assert lowest_layer(Configuration((outside, *everywhere(1).placements)), shape) == 0
