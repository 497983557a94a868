"""Adapters of modules that train parameters of the backbone itself, and studies from before their slots."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModel

import autopeft.peft  # noqa: F401 - registers the composite type
from autopeft import spaces, worker
from autopeft.adapters import load
from autopeft.errors import InputError
from autopeft.job import Job
from autopeft.presets import preset
from autopeft.search.base import make_searcher
from autopeft.setting import Setting
from autopeft.shapes import BackboneShape
from autopeft.study.definition import StudyDefinition
from autopeft.trial import Budget
from tests.unit.test_adapters import backbone
from tests.unit.test_training import setting

__all__ = ["backbone", "setting"]


@pytest.mark.parametrize("name", ["bitfit", "layer_norm"])
def test_an_adapter_stores_only_what_is_trained_and_loads_to_the_same_predictions(
    setting: Setting, backbone: Path, tmp_path: Path, name: str
) -> None:
    configuration = preset(name, setting.backbone.shape, 1e-2)
    worker._LOADED.clear()
    outcome = worker.evaluate(Job(0, configuration, Budget(64, 2), 3, setting, splits=("validation", "test")))
    for file, content in outcome.files.items():
        (tmp_path / file).write_bytes(content)
    adapter = load(tmp_path)
    stored = {key: t for key, t in adapter.tensors.items() if not key.startswith("head.")}
    assert sum(t.numel() for t in stored.values()) == configuration.count(setting.backbone.shape).stored
    assert all(key.split(".")[-2] == configuration.placements[0].module.kind for key in stored)
    model, tokenizer = adapter.load_backbone()
    before = {key: t.clone() for key, t in model.state_dict().items()}
    texts = ["the film was very very good", "bad"]
    trained = adapter.predict(texts, backbone=(model, tokenizer)).outputs
    zeroed = replace(adapter, tensors={k: v * 0 if k in stored else v for k, v in adapter.tensors.items()})
    assert np.abs(zeroed.predict(texts, backbone=(model, tokenizer)).outputs - trained).max() > 1e-4
    assert np.array_equal(adapter.predict(texts).outputs, trained)
    assert all(torch.equal(t, before[key]) for key, t in model.state_dict().items())
    with pytest.raises(InputError, match=f"{name} trains parameters of the backbone itself"):
        PeftModel.from_pretrained(AutoModel.from_pretrained(backbone), tmp_path)


def test_a_shape_from_before_norms_were_slots_is_read_and_makes_the_same_study(setting: Setting) -> None:
    shape = setting.backbone.shape
    assert BackboneShape.from_dict(shape.to_dict()) == shape
    old = BackboneShape.from_dict({k: v for k, v in shape.to_dict().items() if k != "norms"})
    assert old.norms == {}
    assert old.slots == shape.slots
    made = [
        StudyDefinition(
            replace(setting, backbone=replace(setting.backbone, shape=s)),
            spaces.autopeft().on(s),
            make_searcher("random"),
            trials=3,
        )
        for s in (old, shape)
    ]
    assert made[0].id == made[1].id
    assert made[0].differences(made[1]) == []
    assert StudyDefinition.from_dict(made[1].to_dict()) == made[1]
    with pytest.raises(InputError, match=r"embeddings\.0\.norm: bert has no stack 'embeddings'"):
        preset("layer_norm", shape, 1e-3).check(old)
