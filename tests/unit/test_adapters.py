"""Saving, loading and asking an adapter; what damaged or foreign folders give."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from autopeft.adapters import Adapter, build_head, load
from autopeft.backbones import inject
from autopeft.configuration import Configuration, Placement
from autopeft.errors import InputError
from autopeft.heads import Head
from autopeft.modules import Lora, Prefix
from autopeft.setting import describe_backbone
from autopeft.shapes import Slot
from tests import models
from tests.contracts.test_modules import shake

SMALL = Configuration(
    (
        Placement(Slot("encoder", 0, "attention"), Prefix(4)),
        Placement(Slot("encoder", 2, "attention.value"), Lora(2)),
    )
)
WORDS = ["the", "film", "was", "good", "bad", "very", "long"]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    models.tiny_model("bert", torch.float32).save_pretrained(folder)
    vocabulary = {"[PAD]": 0, "[UNK]": 1, **{word: i + 2 for i, word in enumerate(WORDS)}}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(backbone: Path) -> Adapter:
    described = describe_backbone(str(backbone))
    model = models.tiny_model("bert", torch.float32)
    torch.manual_seed(0)
    injection, head = inject(model, SMALL), build_head(Head(), model, 2)
    shake(injection)
    return Adapter(
        configuration=SMALL,
        head=Head(),
        labels=("bad", "good"),
        reference=str(backbone),
        revision=None,
        sha256=described.sha256,
        max_length=16,
        pairs=False,
        tensors={**injection.stored_state(), **{f"head.{k}": v for k, v in head.state_dict().items()}},
        provenance={"metric": "accuracy", "scores": {"validation": 0.5}, "counts": {"stored": 384}},
    )


def test_saved_and_loaded_it_predicts_the_same(adapter: Adapter, tmp_path: Path) -> None:
    texts = ["the film was very very good", "bad"]
    before = adapter.predict(texts)
    loaded = load(adapter.save(tmp_path / "a"))
    after = loaded.predict(texts)
    assert after.labels == before.labels
    assert np.array_equal(after.outputs, before.outputs)
    assert after.outputs.sum(axis=1) == pytest.approx([1, 1])
    assert loaded.configuration == adapter.configuration
    assert loaded.provenance == adapter.provenance


def test_a_text_gets_the_same_answer_in_any_batch(adapter: Adapter) -> None:
    texts = ["the film was very very good", "bad", "very long film"]
    together = adapter.predict(texts).outputs
    alone = np.concatenate([adapter.predict([text]).outputs for text in texts])
    assert np.abs(together - alone).max() < 1e-5  # float32, the tolerance of the design


def test_an_adapter_from_before_a_field_existed_still_loads(adapter: Adapter, tmp_path: Path) -> None:
    path = adapter.save(tmp_path) / "adapter_config.json"
    old = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("pairs", "weights_sha256")}
    path.write_text(json.dumps(old))
    assert load(tmp_path).pairs is False


def test_equal_adapters_give_equal_bytes(adapter: Adapter) -> None:
    again = replace(adapter, tensors=dict(reversed(adapter.tensors.items())))
    assert again.files() == adapter.files()


def test_nothing_to_predict_is_no_error(adapter: Adapter) -> None:
    assert adapter.predict([]).outputs.shape == (0, 2)


def test_pairs_of_another_length_are_refused(adapter: Adapter) -> None:
    on_pairs = replace(adapter, pairs=True)
    with pytest.raises(InputError, match="2 texts but 1 second texts"):
        on_pairs.predict(["a", "b"], ["c"])
    with pytest.raises(InputError, match="was trained on pairs of texts"):
        on_pairs.predict(["a"])
    with pytest.raises(InputError, match="was trained on single texts"):
        adapter.predict(["a"], ["b"])


def test_predicting_leaves_a_given_backbone_as_it_was(adapter: Adapter) -> None:
    model, tokenizer = adapter.load_backbone()
    names = [name for name, _ in model.named_modules()]
    adapter.predict(["good"], backbone=(model, tokenizer))
    assert [name for name, _ in model.named_modules()] == names
    assert model.config._attn_implementation == "sdpa"


def test_another_backbone_is_refused(adapter: Adapter) -> None:
    with pytest.raises(InputError, match="weights have SHA-256"):
        replace(adapter, sha256="0" * 64).predict(["good"])


def test_an_adapter_trained_with_foreign_code_wants_it_allowed_again(adapter: Adapter) -> None:
    foreign = replace(adapter, provenance={**adapter.provenance, "remote_code": True})
    with pytest.raises(InputError, match="--trust-remote-code"):
        foreign.predict(["a text"])
    model, _ = foreign.load_backbone(trust_remote_code=True)
    assert type(model).__module__.startswith("transformers.")  # this backbone brings no code of its own


def test_the_card_names_no_path_and_all_that_matters(adapter: Adapter, backbone: Path) -> None:
    card = adapter.files()["README.md"].decode()
    assert str(backbone.parent) not in card
    assert backbone.name in card
    for fact in (adapter.sha256, adapter.configuration.id, "accuracy on validation | 0.5000", "stored 384"):
        assert fact in card


def test_the_card_of_the_demo_backbone_says_where_it_is(adapter: Adapter) -> None:
    card = replace(adapter, reference="demo", labels=("a|b", "<script>\n")).files()["README.md"].decode()
    assert 'base_model: "sentence-transformers/all-MiniLM-L6-v2"' in card
    assert "AutoModel.from_pretrained(get_model_path())" in card
    assert "| labels | a&#124;b, &lt;script&gt; |" in card


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("adapter_config.json", None, "has no adapter_config.json"),
        ("adapter_config.json", b"{", "not JSON"),
        ("adapter_config.json", b'{"peft_type": "LORA"}', "peft_type is 'LORA'"),
        ("adapter_config.json", b"[1]", "peft_type is None"),
        ("adapter_model.safetensors", None, "weights cannot be read"),
        ("adapter_model.safetensors", b"\x80\x04pickle", "a pickle under the name of safetensors"),
    ],
)
def test_damaged_folders_are_refused(
    adapter: Adapter, tmp_path: Path, name: str, content: bytes | None, says: str
) -> None:
    folder = adapter.save(tmp_path)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=says):
        load(folder)


def test_one_flipped_bit_is_noticed(adapter: Adapter, tmp_path: Path) -> None:
    weights = adapter.save(tmp_path) / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    with pytest.raises(InputError, match="weights are not those that were saved"):
        load(tmp_path)


@pytest.mark.parametrize("cut", [1, 9, 200])
def test_truncated_weights_are_refused(adapter: Adapter, tmp_path: Path, cut: int) -> None:
    weights = adapter.save(tmp_path) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-cut])
    with pytest.raises(InputError, match="weights cannot be read"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("format", 99), ("configuration", {"placements": [{"slot": "x", "module": {"kind": "lora", "rank": 2}}]}),
     ("configuration", {"placements": [{"slot": "encoder.0.ffn", "module": {"kind": "os.system"}}]}),
     ("labels", None), ("head", {"kind": "mine"})],
)  # fmt: skip
def test_configurations_that_make_no_sense_are_refused(
    adapter: Adapter, tmp_path: Path, key: str, value: object
) -> None:
    path = adapter.save(tmp_path) / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(InputError):
        load(tmp_path)
