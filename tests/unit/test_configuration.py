"""Configurations as values: equality, identity, JSON, checks, presets."""

from __future__ import annotations

import hashlib
import json
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.configuration import Configuration, Placement, Training, describe, uniform
from autopeft.errors import InputError, nearest
from autopeft.families import shape_of
from autopeft.heads import Head
from autopeft.modules import Lora, ParallelAdapter, Prefix, SerialAdapter
from autopeft.presets import PRESETS, baselines, preset, usual_baselines
from autopeft.setting import Backbone, Recipe, Setting
from autopeft.shapes import BackboneShape, Slot
from autopeft.tasks.base import TaskSource
from autopeft.trial import Budget

SHAPE = shape_of({"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4})

sizes = st.integers(min_value=1, max_value=32)
layers = st.integers(min_value=0, max_value=2)
placements = st.one_of(
    st.builds(lambda i, b: Placement(Slot("encoder", i, "ffn"), SerialAdapter(b)), layers, sizes),
    st.builds(lambda i, b: Placement(Slot("encoder", i, "ffn"), ParallelAdapter(b)), layers, sizes),
    st.builds(lambda i, p: Placement(Slot("encoder", i, "attention"), Prefix(p)), layers, sizes),
    st.builds(lambda i, r: Placement(Slot("encoder", i, "attention.query"), Lora(r)), layers, sizes),
)
configurations = st.builds(
    Configuration,
    st.lists(placements, max_size=6, unique_by=lambda p: (p.slot, p.module.kind)).map(tuple),
    st.builds(Training, st.sampled_from([1e-4, 1e-3, 3e-2]), st.sampled_from([None, 1e-2])),
)


@given(configurations)
def test_json_restores_an_equal_value_with_the_same_id(configuration: Configuration) -> None:
    again = Configuration.from_dict(json.loads(json.dumps(configuration.to_dict())))
    assert again == configuration
    assert again.id == configuration.id
    configuration.check(SHAPE)


@given(configurations, configurations)
def test_ids_differ_exactly_where_values_do(left: Configuration, right: Configuration) -> None:
    assert (left.id == right.id) == (left == right)


def test_order_of_placements_does_not_matter() -> None:
    parts = [
        Placement(Slot("encoder", 1, "ffn"), SerialAdapter(4)),
        Placement(Slot("encoder", 1, "ffn"), ParallelAdapter(4)),
        Placement(Slot("encoder", 0, "attention"), Prefix(2)),
    ]
    assert len({Configuration(order).id for order in permutations(parts)}) == 1


def test_id_is_pinned() -> None:
    """Ids name trials and files of earlier studies: a change of the canonical form must be noticed."""
    chosen = Configuration((Placement(Slot("encoder", 0, "ffn"), SerialAdapter(48)),), Training(1e-3))
    canonical = (
        '{"placements":[{"group":"","module":{"bottleneck":48,"init_std":0.02,"kind":"serial_adapter","zero_up":true},'
        '"slot":"encoder.0.ffn"}],"training":{"head_learning_rate":null,"learning_rate":0.001}}'
    )
    assert chosen.id == hashlib.sha256(canonical.encode()).hexdigest()[:16]


def test_one_kind_sits_once_at_a_slot() -> None:
    slot = Slot("encoder", 0, "ffn")
    with pytest.raises(InputError, match=r"encoder\.0\.ffn: two modules of kind 'serial_adapter'"):
        Configuration((Placement(slot, SerialAdapter(4)), Placement(slot, SerialAdapter(8))))


def test_modules_of_a_group_must_agree() -> None:
    mixed = Configuration(
        (
            Placement(Slot("encoder", 0, "attention"), Prefix(4, mlp=8), "g"),
            Placement(Slot("encoder", 1, "attention"), Prefix(5, mlp=8), "g"),
        )
    )
    with pytest.raises(InputError, match="g: modules of one group differ"):
        mixed.check(SHAPE)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"placements": [{"slot": "encoder", "module": {"kind": "lora", "rank": 2}}]}, "'encoder' is not a slot"),
        ({"placements": [{"slot": "encoder.0.ffn", "module": {"kind": "serial"}}]}, "mean 'serial_adapter'"),
        ({"placements": [{"slot": "encoder.0.ffn", "module": {"kind": "lora", "rnak": 2}}]}, "did you mean 'rank'"),
        ({"placements": [{"slot": "encoder.0.ffn", "module": {"kind": "lora", "rank": 0}}]}, "rank must be an integer"),
        ({"placements": [{"slot": "encoder.0.ffn", "module": {"kind": "lora", "rank": 2.5}}]}, "rank must be an inte"),
        ({"training": {"learning_rate": -1.0}}, "-1.0 is not a learning rate"),
        ({"training": {"learning_rate": float("nan")}}, "nan is not a learning rate"),
    ],
)
def test_bad_input_is_refused_with_the_cure(data: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Configuration.from_dict(data)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([], "list instead of an object"),
        ({"placments": []}, "unknown key 'placments'; did you mean 'placements'"),
        ({"placements": {}}, "placements is not a list"),
        ({"placements": ["x"]}, "placement: str instead of an object"),
        ({"placements": [{"module": {"kind": "lora", "rank": 2}}]}, "'slot' is missing"),
        ({"placements": [{"slot": "encoder.0.ffn", "module": {"kind": "serial_adapter"}}]}, "bottleneck"),
        ({"placements": [{"slot": "encoder.0.ffn", "module": {"kind": ["l"]}}]}, "unknown module kind"),
        ({"placements": [{"slot": "encoder.0.ffn", "module": {"kind": "lora", "rank": 2, 3: 2}}]}, "no field '3'"),
        ({"placements": [{"slot": "a.0.b", "module": {"kind": "lora", "rank": 2, "alpha": float("inf")}}]}, "inf is"),
        (
            {"placements": [{"slot": "a.0.b", "module": {"kind": "prefix", "length": 2, "mlp": "q"}}]},
            "width of the MLP",
        ),
        ({"training": {"lr": 1}}, "unknown key 'lr'"),
        ({"training": {"learning_rate": "fast"}}, "'fast' is not a learning rate"),
        ({"training": {"learning_rate": None}}, "None is not a learning rate"),
    ],
)
def test_what_is_no_configuration_at_all_is_refused_too(data: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        Configuration.from_dict(data)


def test_whole_numbers_and_floats_are_one_value_with_one_id() -> None:
    slot = Slot("encoder", 0, "ffn")
    whole = Configuration((Placement(slot, ParallelAdapter(4, scale=4)),), Training(1, 2))
    assert whole.id == Configuration((Placement(slot, ParallelAdapter(4, scale=4.0)),), Training(1.0, 2.0)).id


@pytest.mark.parametrize("values", [(-1, 3), (0, 0)])
def test_budgets_that_train_nothing_are_refused(values: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="training"):
        Budget(*values)


def test_texts_longer_than_the_backbone_has_positions_for_are_refused() -> None:
    shape = shape_of({"model_type": "roberta", "max_position_embeddings": 514})
    assert shape.positions == 512  # as RoBERTa's own documentation says: 514 rows, the first two serve no text
    source = TaskSource("a.csv", "text", "label")
    with pytest.raises(InputError, match="513 tokens, but the backbone has 512 positions; use at most 512"):
        Setting(Backbone("b", "0", shape), source, {}, {}, recipe=Recipe(max_length=513))


def test_usual_baselines_are_those_that_fit() -> None:
    assert {name.split("@")[0] for name, _ in usual_baselines(SHAPE)} == {"probe", "lora", "lora_all_linear", "full"}
    with pytest.raises(InputError, match=r"baselines\.serial: bottleneck 48 .* leave this baseline out"):
        baselines(SHAPE)


def test_description_names_what_a_person_asks_for() -> None:
    chosen = uniform(SHAPE, [("ffn", SerialAdapter(4)), ("attention.query", Lora(2))], Training(3e-3))
    assert describe(chosen) == "lora@query 2, serial 4 in 0 1 2 · lr 0.003"
    assert describe(preset("full", SHAPE, 1e-4)) == "full_fine_tuning in the whole backbone · lr 0.0001"


@pytest.mark.parametrize("name", PRESETS)
def test_presets_fit_every_backbone_that_is_wide_enough(name: str) -> None:
    base = shape_of({"model_type": "distilbert"})
    preset(name, base, 1e-3).check(base)


def test_unknown_names_come_with_the_nearest_one() -> None:
    with pytest.raises(InputError, match="did you mean 'lora'"):
        preset("loar", SHAPE, 1e-3)
    with pytest.raises(InputError, match="unknown head 'men'; did you mean 'mean'"):
        Head("men")  # type: ignore[arg-type]
    assert nearest("zzz", ["b", "a"]) == "known: a, b"


@pytest.mark.parametrize(
    ("field", "value"),
    [("batch_size", 0), ("threads", 0), ("warmup", 1.0), ("dropout", -0.1), ("clip", -1.0), ("weight_decay", -5.0)],
)
def test_recipes_that_cannot_train_are_refused(field: str, value: float) -> None:
    with pytest.raises(InputError, match=f"training.{field}"):
        Recipe(**{field: value})  # type: ignore[arg-type]


def test_a_head_for_everyone_grows_with_its_kind() -> None:
    assert Head("mean").count(384, 6) == Head("cls").count(384, 6) == 384 * 6 + 6
    assert Head("transformers").count(384, 6) == 384 * 384 + 384 + 384 * 6 + 6


def test_a_rate_for_the_head_is_never_a_backbones() -> None:
    assert Training(1e-4).rate_of_head == 1e-3
    assert Training(1e-2).rate_of_head == 1e-2
    assert Training(1e-2, 1e-5).rate_of_head == 1e-5


def test_shape_survives_json() -> None:
    assert BackboneShape.from_dict(json.loads(json.dumps(SHAPE.to_dict()))) == SHAPE
    assert SHAPE.stacks == {"encoder": 3}


def test_an_unknown_site_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"no site 'attention.qery'; did you mean 'attention.query'"):
        SHAPE.at(Slot("encoder", 0, "attention.qery"))
