"""K configurations in one batch: losses, weights and outputs of separate runs, and nobody disturbs another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from autopeft.adapters import build_head
from autopeft.backbones import inject, trained_parameters
from autopeft.backbones.stacked import Stack, stack
from autopeft.configuration import Configuration, Placement, Training
from autopeft.errors import InputError
from autopeft.heads import Head
from autopeft.modules import FullFineTuning, Lora, ParallelAdapter, PeftModule, Prefix, SerialAdapter
from autopeft.setting import Recipe
from autopeft.shapes import Slot
from autopeft.training.batches import Tokens
from autopeft.training.loop import EpochDone, StepDone, predict, train
from autopeft.training.random_states import seed_all
from autopeft.training.sources import Texts
from autopeft.training.stacked import Diverged, StackedEpoch, StackedStep, predict_stacked, train_stacked
from autopeft.training.state import State
from tests import models
from tests.unit.test_training import some_tokens

RECIPE = Recipe(batch_size=5, warmup=0.2, weight_decay=0.05, clip=0.3)
SEED, EPOCHS = 3, 5


def at(index: int, site: str, module: PeftModule, group: str = "") -> Placement:
    return Placement(Slot("encoder", index, site), module, group)


def of(rate: float, *placements: Placement, head: float | None = None) -> Configuration:
    return Configuration(placements, Training(rate, head))


CONFIGURATIONS = (
    of(1e-2, at(1, "ffn", SerialAdapter(4)), at(1, "ffn", ParallelAdapter(2)), at(2, "attention", Prefix(3))),
    of(3e-3, at(1, "ffn", SerialAdapter(7, zero_up=False)), at(2, "attention", Prefix(5)), head=1e-2),
    of(
        2e-2,
        at(1, "attention.query", Lora(2)),
        at(1, "attention.value", Lora(3, alpha=9.0)),
        at(2, "ffn.up", Lora(1)),
        at(2, "ffn", ParallelAdapter(6, scale=2.0)),
    ),
    of(5e-3, at(1, "attention", Prefix(2, mlp=6), "p"), at(2, "attention", Prefix(2, mlp=6), "p")),
    of(
        1e-2,
        at(2, "attention", Prefix(4, mlp=3), "p"),
        at(1, "attention.query", Lora(5)),
        at(2, "ffn", SerialAdapter(1)),
    ),
)
"""Every kind of module, of several sizes, at slots that some have and others have not; the lowest is layer 1."""


@dataclass(frozen=True)
class Ended:
    """What came of one configuration: loss of every step, mean loss of every epoch, weights, outputs."""

    losses: list[float]
    curve: list[float]
    weights: dict[str, torch.Tensor]
    outputs: NDArray[np.float32]


def texts(model: PreTrainedModel, tokens: Tokens | None = None) -> Texts:
    return Texts(model, some_tokens() if tokens is None else tokens)


def head_of(model: PreTrainedModel, kind: str = "mean", outputs: int = 2) -> Callable[[], nn.Module]:
    return lambda: build_head(Head(kind), model, outputs)  # type: ignore[arg-type]


def stacked_of(
    model: PreTrainedModel, configurations: Sequence[Configuration], kind: str = "mean", outputs: int = 2
) -> Stack:
    return stack(model, configurations, head_of(model, kind, outputs), lambda k: seed_all(SEED))  # type: ignore[arg-type]


def alone(
    model: PreTrainedModel, configuration: Configuration, source: Texts, kind: str = "mean", outputs: int = 2
) -> Ended:
    seed_all(SEED)
    injection = inject(model, configuration)
    head = build_head(Head(kind), model, outputs)  # type: ignore[arg-type]
    losses, curve = [], []
    for event in train(source, injection, head, RECIPE, rows=np.arange(50), epochs=EPOCHS, seed=SEED):
        if isinstance(event, StepDone):
            losses = list(event.state().losses)
        else:
            curve.append(event.loss)
    weights = {name: p.detach().clone() for name, p in trained_parameters(injection, head).items()}
    predicted = predict(source, head)
    injection.eject()
    return Ended(losses, curve, weights, predicted)


def together(
    model: PreTrainedModel, configurations: Sequence[Configuration], source: Texts, kind: str = "mean", outputs: int = 2
) -> list[Ended]:
    made = stacked_of(model, configurations, kind, outputs)
    losses: list[list[float]] = [[] for _ in configurations]
    curves: list[list[float]] = [[] for _ in configurations]
    for event in train_stacked(source, made, RECIPE, rows=np.arange(50), epochs=EPOCHS, seed=SEED):
        assert not isinstance(event, Diverged)
        for k, loss in event.losses.items():
            (losses if isinstance(event, StackedStep) else curves)[k].append(loss)
    predicted = predict_stacked(source, made)
    weights = [weights_of(made, k) for k in range(len(configurations))]
    made.eject()
    return [Ended(losses[k], curves[k], weights[k], predicted[k]) for k in range(len(configurations))]


def weights_of(made: Stack, k: int) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in trained_parameters(made.injections[k], made.heads[k]).items()}


@pytest.mark.parametrize(
    ("family", "attention", "head"),
    [("bert", "sdpa", "mean"), ("bert", "eager", "transformers"), ("distilbert", "sdpa", "cls")],
)
def test_stacked_equals_separate_in_float64(family: str, attention: str, head: str) -> None:
    model = models.tiny_model(family, torch.float64, attention)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = together(model, CONFIGURATIONS, texts(model), head)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.config._attn_implementation == attention
    for configuration, one in zip(CONFIGURATIONS, found, strict=True):
        separate = alone(model, configuration, texts(model), head)
        assert len(one.losses) == 50
        assert separate.curve[-1] < separate.curve[0]
        assert one.losses == pytest.approx(separate.losses, rel=0, abs=1e-9)
        assert one.curve == pytest.approx(separate.curve, rel=0, abs=1e-9)
        assert one.weights.keys() == separate.weights.keys()
        for name, tensor in separate.weights.items():
            assert (one.weights[name] - tensor).abs().max() < 1e-9, name
        assert np.abs(one.outputs - separate.outputs).max() < 1e-6  # outputs are kept in float32


def test_stacked_equals_separate_in_float32() -> None:
    model = models.tiny_model("bert", torch.float32)
    for one, configuration in zip(together(model, CONFIGURATIONS, texts(model)), CONFIGURATIONS, strict=True):
        separate = alone(model, configuration, texts(model))
        mean, expected = np.mean(one.losses), np.mean(separate.losses)
        assert abs(mean - expected) / expected < 1e-6
        assert np.abs(one.outputs - separate.outputs).max() < 1e-4 * np.abs(separate.outputs).max()


def test_fresh_weights_are_those_of_a_separate_run() -> None:
    model = models.tiny_model("bert")
    made = stacked_of(model, CONFIGURATIONS)
    found = [weights_of(made, k) for k in range(len(CONFIGURATIONS))]
    made.eject()
    for configuration, drawn in zip(CONFIGURATIONS, found, strict=True):
        seed_all(SEED)
        injection = inject(model, configuration)
        head = head_of(model)()
        own = trained_parameters(injection, head)  # type: ignore[arg-type]
        assert all(torch.equal(drawn[name], parameter) for name, parameter in own.items())
        injection.eject()


def test_layers_below_the_lowest_module_see_each_text_once() -> None:
    model = models.tiny_model("bert")
    made = stacked_of(model, CONFIGURATIONS)
    rows: list[int] = []
    for layer in model.encoder.layer:
        layer.register_forward_hook(lambda layer, given, found: rows.append(len(found)))
    made.weights.unpack()
    last = texts(model).hidden(np.arange(4)).last
    assert rows == [4, 4 * len(CONFIGURATIONS), 4 * len(CONFIGURATIONS)]
    assert len(last) == 4 * len(CONFIGURATIONS)


def test_what_is_padded_stays_zero() -> None:
    model = models.tiny_model("bert")
    made = stacked_of(model, CONFIGURATIONS)
    for _ in train_stacked(texts(model), made, RECIPE, rows=np.arange(50), epochs=1, seed=SEED):
        pass
    assert not made.weights.real.all()
    assert not made.weights.matrix[~made.weights.real].any()


@pytest.mark.parametrize("value", [float("nan"), 1e308])
def test_one_that_diverges_leaves_and_disturbs_nobody(value: float) -> None:
    model = models.tiny_model("bert")
    made = stacked_of(model, CONFIGURATIONS)
    events = train_stacked(texts(model), made, RECIPE, rows=np.arange(50), epochs=EPOCHS, seed=SEED)
    losses: dict[int, list[float]] = {k: [] for k in range(len(CONFIGURATIONS))}
    left: dict[int, Diverged] = {}
    for event in events:
        if isinstance(event, StackedStep):
            for k, loss in event.losses.items():
                losses[k].append(loss)
            if event.step == 7:
                with torch.no_grad():
                    made.weights.matrix[1][made.weights.real[1]] = value
        elif isinstance(event, Diverged):
            left[event.number] = event
    assert list(left) == [1]
    assert "at step 8 of 50" in str(left[1].error)
    assert left[1].error.kind in ("nan", "infinite")
    assert made.members == [0, 2, 3, 4]
    assert len(losses[1]) == 7
    found = {k: weights_of(made, k) for k in made.members}
    made.eject()
    for k, weights in found.items():
        separate = alone(model, CONFIGURATIONS[k], texts(model))
        assert losses[k] == pytest.approx(separate.losses, rel=0, abs=1e-9)
        assert all((weights[name] - tensor).abs().max() < 1e-9 for name, tensor in separate.weights.items())


def test_a_caller_takes_one_out_and_it_keeps_what_it_had_learnt() -> None:
    model = models.tiny_model("bert")
    made = stacked_of(model, CONFIGURATIONS)
    last = None
    for event in train_stacked(texts(model), made, RECIPE, rows=np.arange(50), epochs=EPOCHS, seed=SEED):
        if isinstance(event, StackedStep) and event.step == 20:
            made.leave([0, 3])
        last = event
    assert isinstance(last, StackedEpoch)
    assert set(last.losses) == {1, 2, 4}
    early, late = weights_of(made, 3), weights_of(made, 4)
    made.eject()
    expected = _separately_until(model, CONFIGURATIONS[3], 20)
    assert all((early[name] - tensor).abs().max() < 1e-9 for name, tensor in expected.items())
    separate = alone(model, CONFIGURATIONS[4], texts(model))
    assert all((late[name] - tensor).abs().max() < 1e-9 for name, tensor in separate.weights.items())


def _separately_until(model: PreTrainedModel, configuration: Configuration, step: int) -> dict[str, torch.Tensor]:
    seed_all(SEED)
    injection = inject(model, configuration)
    head = build_head(Head(), model, 2)
    for _ in train(texts(model), injection, head, RECIPE, rows=np.arange(50), epochs=EPOCHS, seed=SEED, until=step):
        pass
    injection.eject()
    return {name: p.detach() for name, p in trained_parameters(injection, head).items()}


def test_a_state_of_one_goes_on_alone_and_in_another_stack() -> None:
    model = models.tiny_model("bert")
    whole = together(model, CONFIGURATIONS, texts(model))
    made = stacked_of(model, CONFIGURATIONS)
    states: list[State] = []
    for event in train_stacked(texts(model), made, RECIPE, rows=np.arange(50), epochs=EPOCHS, seed=SEED, until=13):
        if isinstance(event, StackedStep) and event.step == 13:
            states = [copied(event.state(k)) for k in range(len(CONFIGURATIONS))]
    made.eject()

    chosen = (4, 1)
    made = stacked_of(model, [CONFIGURATIONS[k] for k in chosen])
    curves: list[list[float]] = [list(states[k].curve) for k in chosen]
    for event in train_stacked(
        texts(model), made, RECIPE, rows=np.arange(50), epochs=EPOCHS, seed=SEED, states=[states[k] for k in chosen]
    ):
        if isinstance(event, StackedEpoch):
            for k, loss in event.losses.items():
                curves[k].append(loss)
    for position, k in enumerate(chosen):
        assert curves[position] == pytest.approx(whole[k].curve, rel=0, abs=1e-9)
        _assert_near(weights_of(made, position), whole[k].weights)
    made.eject()

    seed_all(SEED)
    injection = inject(model, CONFIGURATIONS[3])
    head = build_head(Head(), model, 2)
    events = train(texts(model), injection, head, RECIPE, rows=np.arange(50), epochs=EPOCHS, seed=SEED, state=states[3])
    curve = [*states[3].curve, *(event.loss for event in events if isinstance(event, EpochDone))]
    assert curve == pytest.approx(whole[3].curve, rel=0, abs=1e-9)
    _assert_near({n: p.detach() for n, p in trained_parameters(injection, head).items()}, whole[3].weights)


def copied(state: State) -> State:
    return replace(state, tensors={name: tensor.clone() for name, tensor in state.tensors.items()})


def _assert_near(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all((found[name] - tensor).abs().max() < 1e-9 for name, tensor in expected.items())


def test_numbers_as_targets_and_a_single_configuration() -> None:
    model, tokens = models.tiny_model("distilbert"), some_tokens()
    numbers = replace(tokens, targets=tokens.targets.double() - 0.5)
    (one,) = together(model, CONFIGURATIONS[:1], texts(model, numbers), outputs=1)
    separate = alone(model, CONFIGURATIONS[0], texts(model, numbers), outputs=1)
    assert one.losses == pytest.approx(separate.losses, rel=0, abs=1e-9)
    _assert_near(one.weights, separate.weights)


FULL = of(1e-3, Placement(Slot("backbone", 0, "all"), FullFineTuning()))
TWO_GROUPS = of(1e-3, at(0, "attention", Prefix(2, mlp=3), "p"), at(1, "attention", Prefix(2, mlp=3), "q"))


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        (FULL, "full_fine_tuning cannot be trained beside other configurations"),
        (Configuration(), "without modules has nothing to stack"),
        (TWO_GROUPS, "two reparameterised groups"),
    ],
)
def test_what_cannot_be_stacked_is_refused_and_the_model_stays_as_it_was(
    configuration: Configuration, message: str
) -> None:
    model = models.tiny_model("bert")
    classes = [type(module) for module in model.modules()]
    with pytest.raises(InputError, match=message):
        stacked_of(model, [CONFIGURATIONS[0], configuration])
    assert [type(module) for module in model.modules()] == classes


def test_a_model_that_has_modules_and_a_recipe_with_dropout_are_refused() -> None:
    model = models.tiny_model("bert")
    injection = inject(model, CONFIGURATIONS[0])
    with pytest.raises(InputError, match="a layout is in place"):
        stacked_of(model, CONFIGURATIONS)
    injection.eject()
    made = stacked_of(model, CONFIGURATIONS)
    with pytest.raises(InputError, match="dropout"):
        next(train_stacked(texts(model), made, Recipe(dropout=0.1), rows=np.arange(9), epochs=1, seed=0))
