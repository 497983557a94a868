"""What peft users expect of a composite adapter, with the installed peft, on every family."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification

pytest.importorskip("peft")

from peft import PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType
from safetensors.torch import load_file, save_file

import autopeft.peft
from autopeft.adapters import Adapter, build_head, load
from autopeft.backbones import inject
from autopeft.configuration import Configuration, Placement
from autopeft.errors import InputError
from autopeft.heads import Head
from autopeft.heads.spec import HeadKind
from autopeft.modules import Lora, ParallelAdapter, Prefix, SerialAdapter
from autopeft.shapes import Slot
from tests import models
from tests.contracts.test_modules import shake

MIXED = Configuration(
    (
        Placement(Slot("encoder", 0, "ffn"), SerialAdapter(5, zero_up=False)),
        Placement(Slot("encoder", 0, "ffn"), ParallelAdapter(3)),
        Placement(Slot("encoder", 1, "attention"), Prefix(4, mlp=7), "prefix"),
        Placement(Slot("encoder", 2, "attention"), Prefix(4, mlp=7), "prefix"),
        Placement(Slot("encoder", 2, "attention.query"), Lora(2)),
        Placement(Slot("encoder", 1, "ffn.down"), Lora(4)),
    )
)


class Saved:
    """A stock classifier on disk, an adapter for it on disk, and the outputs both must reproduce."""

    def __init__(self, folder: Path, family: str, kind: HeadKind) -> None:
        self.model, self.adapter = str(folder / "model"), str(folder / "adapter")
        models.tiny_classifier(family).save_pretrained(self.model)
        bare = self.bare()
        torch.manual_seed(0)
        injection, head = inject(bare, MIXED), build_head(Head(kind), bare, 3)
        shake(injection)
        with torch.no_grad():
            self.hidden = bare(**models.inputs()).last_hidden_state
            self.logits = head(self.hidden, models.inputs()["attention_mask"])
        tensors = {**injection.stored_state(), **{f"head.{k}": v for k, v in head.state_dict().items()}}
        labels = ("a", "b", "c")
        Adapter(MIXED.stored_form(), Head(kind), labels, self.model, None, "0" * 64, 64, False, tensors, {}).save(
            self.adapter
        )

    def bare(self) -> torch.nn.Module:
        return AutoModel.from_pretrained(self.model).eval()

    def classifier(self) -> torch.nn.Module:
        return AutoModelForSequenceClassification.from_pretrained(self.model).eval()


@pytest.fixture(
    scope="module", params=[(f, k) for f in models.FAMILIES for k in ("mean", "cls", "transformers")], ids=str
)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return Saved(tmp_path_factory.mktemp("saved"), *request.param)


def hidden_of(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(**models.inputs()).last_hidden_state


def test_the_private_maps_of_peft_are_as_expected() -> None:
    """A peft release that changes its enum or its maps must fail here first."""
    assert PeftType("AUTOPEFT") is PeftType["AUTOPEFT"] is autopeft.peft.AUTOPEFT
    assert "AUTOPEFT" in list(PeftType)
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType("AUTOPEFT")] is autopeft.peft.AutoPeftConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING[PeftType("AUTOPEFT")] is autopeft.peft.AutoPeftTuner


@pytest.mark.parametrize("low_memory", [False, True])
def test_bare_backbone_gives_the_same_hidden_states_and_logits(saved: Saved, low_memory: bool) -> None:
    model = PeftModel.from_pretrained(saved.bare(), saved.adapter, low_cpu_mem_usage=low_memory)
    assert torch.equal(hidden_of(model), saved.hidden)
    with torch.no_grad():
        assert torch.equal(autopeft.peft.logits(model, **models.inputs()), saved.logits)


def test_stock_classifier_gives_the_same_logits(saved: Saved) -> None:
    model = PeftModel.from_pretrained(saved.classifier(), saved.adapter)
    with torch.no_grad():
        assert torch.equal(model(**models.inputs()).logits, saved.logits)
        with model.disable_adapter():
            assert torch.equal(model(**models.inputs()).logits, saved.classifier()(**models.inputs()).logits)


def test_disable_switch_delete_unload(saved: Saved) -> None:
    base = hidden_of(saved.bare())
    model = PeftModel.from_pretrained(saved.bare(), saved.adapter)
    with model.disable_adapter():
        assert torch.equal(hidden_of(model), base)
    assert torch.equal(hidden_of(model), saved.hidden)
    model.load_adapter(saved.adapter, "second")
    model.set_adapter("second")
    assert torch.equal(hidden_of(model), saved.hidden)
    model.delete_adapter("default")
    assert torch.equal(hidden_of(model), saved.hidden)
    bare = model.unload()
    assert type(bare) is type(saved.bare())
    assert bare.config._attn_implementation == "sdpa"
    assert torch.equal(hidden_of(bare), base)


def test_merging_is_refused_with_the_reason(saved: Saved) -> None:
    model = PeftModel.from_pretrained(saved.bare(), saved.adapter)
    with pytest.raises(InputError, match="cannot be merged"):
        model.merge_and_unload()
    assert torch.equal(hidden_of(model), saved.hidden)


def test_peft_saves_what_it_loaded(saved: Saved, tmp_path: Path) -> None:
    PeftModel.from_pretrained(saved.bare(), saved.adapter).save_pretrained(tmp_path)
    assert load_file(tmp_path / "adapter_model.safetensors").keys() == load(saved.adapter).tensors.keys()
    again = PeftModel.from_pretrained(saved.bare(), str(tmp_path))
    assert torch.equal(hidden_of(again), saved.hidden)
    ours = load(tmp_path)
    injection, _ = ours.attach(bare := saved.bare())
    assert torch.equal(hidden_of(bare), saved.hidden)
    injection.eject()


def test_training_goes_on_and_touches_only_the_adapter(saved: Saved) -> None:
    model = PeftModel.from_pretrained(saved.classifier(), saved.adapter, is_trainable=True)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert sum(model.get_parameter(name).numel() for name in trained) == sum(
        t.numel() for t in load(saved.adapter).tensors.values()
    )
    assert all("autopeft_sidecar" in name for name in trained)
    loss = model(**models.inputs(), labels=torch.tensor([0, 2])).loss
    loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_low_rank_sizes_are_the_configured_ones(saved: Saved) -> None:
    """Sizes three ways: the configuration, the tensors' shapes, the scaling at run time."""
    tensors = load(saved.adapter).tensors
    assert tensors["encoder.2.attention.query.lora.a"].shape == (2, models.WIDTH)
    assert tensors["encoder.1.ffn.down.lora.a"].shape == (4, models.FFN)
    model = PeftModel.from_pretrained(saved.bare(), saved.adapter)
    layers = [m for m in model.modules() if type(m).__name__ == "LoraLayer"]
    assert sorted(m.a.shape[0] for m in layers) == [2, 4]
    assert {m.scaling for m in layers} == {2.0}  # alpha defaults to 2 r


@pytest.mark.parametrize(("change", "says"), [("drop", "is missing"), ("extra", "belongs to no"), ("cut", "has shape")])
def test_damaged_weights_are_refused(saved: Saved, tmp_path: Path, change: str, says: str) -> None:
    tensors = dict(load(saved.adapter).tensors)
    name = "encoder.0.ffn.serial_adapter.down.weight"
    if change == "drop":
        del tensors[name]
    elif change == "extra":
        tensors["encoder.0.ffn.unknown"] = torch.zeros(1)
    else:
        tensors[name] = tensors[name][:-1].contiguous()
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text((Path(saved.adapter) / "adapter_config.json").read_text())
    with pytest.raises(InputError, match=says):
        PeftModel.from_pretrained(saved.bare(), str(tmp_path))


def test_fresh_process_needs_only_the_import(tmp_path: Path) -> None:
    saved = Saved(tmp_path, "bert", "mean")
    expected = tmp_path / "expected.json"
    expected.write_text(json.dumps(saved.hidden.flatten().tolist()))
    script = (
        "import sys, json, torch, autopeft.peft\n"
        "from peft import PeftModel\n"
        "from transformers import AutoModel\n"
        "model = PeftModel.from_pretrained(AutoModel.from_pretrained(sys.argv[1]).eval(), sys.argv[2])\n"
        "ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 0, 0, 0]])\n"
        "hidden = model(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state\n"
        "expected = torch.tensor(json.load(open(sys.argv[3])))\n"
        "print((hidden.flatten() - expected).abs().max().item())\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, saved.model, saved.adapter, str(expected)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(run.stdout.split()[-1]) == 0.0
