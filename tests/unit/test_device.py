"""What a GPU needs and a CPU can show: layers computed again, the refusal of 4 bits, reading losses late."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from autopeft import spaces, worker
from autopeft.backbones import load_backbone
from autopeft.errors import InputError, TrainingError
from autopeft.presets import preset
from autopeft.search.base import make_searcher
from autopeft.setting import Recipe, Setting, describe_backbone
from autopeft.study.definition import StudyDefinition
from autopeft.training.device import device_of_worker, device_peak_bytes, reading
from tests import models
from tests.unit import test_stacked as stacked
from tests.unit.test_adapters import backbone
from tests.unit.test_training import job, setting

__all__ = ["backbone", "setting"]


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_layers_computed_again_give_the_same_losses_and_weights(family: str) -> None:
    plain, again = models.tiny_model(family), models.tiny_model(family)
    again.gradient_checkpointing_enable({"use_reentrant": False})
    configuration = stacked.CONFIGURATIONS[0]
    expected = stacked.alone(plain, configuration, stacked.texts(plain))
    for found in (
        stacked.alone(again, configuration, stacked.texts(again)),
        stacked.together(again, stacked.CONFIGURATIONS[:2], stacked.texts(again))[0],
    ):
        assert found.losses == pytest.approx(expected.losses, rel=0, abs=1e-9)
        assert all((found.weights[name] - tensor).abs().max() < 1e-9 for name, tensor in expected.weights.items())


def test_layers_are_computed_again_while_training_only(setting: Setting) -> None:
    calls: dict[bool, int] = {}
    for chosen in (False, True):
        worker.forget()
        asked = replace(setting, recipe=Recipe(batch_size=16, max_length=40, gradient_checkpointing=chosen))
        loaded = worker.load_setting(asked)
        counted: list[int] = []
        loaded.model.encoder.layer[2].intermediate.register_forward_hook(lambda *of, to=counted: to.append(1))
        outcome = worker.evaluate(job(asked))
        calls[chosen] = len(counted)
        worker.forget()
    steps, scored = 3 * -(-outcome.detail["examples"] // 16), 2
    assert calls[False] == steps + scored
    assert calls[True] == 2 * steps + scored


def test_four_bits_are_refused_where_there_is_no_cuda(backbone: Path, setting: Setting) -> None:
    described = describe_backbone(str(backbone))
    with pytest.raises(InputError, match="4-bit weights need a CUDA device"):
        load_backbone(described, four_bit=True, device="cpu")
    if not torch.cuda.is_available():
        with pytest.raises(TrainingError, match=r"training\.four_bit.*CUDA") as refused:
            worker.evaluate(job(replace(setting, recipe=replace(setting.recipe, four_bit=True))))
        assert refused.value.kind == "refused"


def test_what_trains_weights_held_in_4_bits_is_refused_before_anything_is_loaded(setting: Setting) -> None:
    small = replace(setting, recipe=replace(setting.recipe, four_bit=True))
    full = preset("full", setting.backbone.shape, 1e-3)
    with pytest.raises(TrainingError, match=r"training\.four_bit: full fine-tuning.*false") as refused:
        worker.evaluate(job(small, full))
    assert refused.value.kind == "refused"
    setting.recipe.require(full)
    for name in ("bitfit", "layer_norm"):
        small.recipe.require(preset(name, setting.backbone.shape, 1e-3))


def test_a_study_in_4_bits_takes_no_baseline_that_trains_all_weights(setting: Setting) -> None:
    def study(four_bit: bool) -> StudyDefinition:
        recipe = replace(setting.recipe, four_bit=four_bit)
        full = (("full", preset("full", setting.backbone.shape, 1e-3)),)
        space = spaces.lora_only(ranks=(0, 1), learning_rate=1e-3).on(setting.backbone.shape)
        return StudyDefinition(replace(setting, recipe=recipe), space, make_searcher("random"), 1, baselines=full)

    assert study(four_bit=False).baselines
    with pytest.raises(InputError, match=r"training\.four_bit: full fine-tuning.*the baselines"):
        study(four_bit=True)


def test_a_worker_computes_where_its_executor_put_it() -> None:
    expected = "cuda:0" if torch.cuda.is_available() else "cpu"
    assert str(device_of_worker()) == expected


def test_numbers_are_read_as_they_are() -> None:
    values = torch.tensor([0.1, float("nan"), 3.0])
    assert np.array_equal(reading(values)(), values.tolist(), equal_nan=True)
    assert device_peak_bytes(torch.device("cpu")) == 0
