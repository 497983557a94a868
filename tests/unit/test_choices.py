"""What is decided once when a study is made: by what the cache saves, stored, and kept where the study is there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autopeft import spaces
from autopeft.cli.settings import parse, recipe_of
from autopeft.configuration import Configuration, Placement, Training
from autopeft.errors import InputError, StudyError
from autopeft.estimate import FLOAT, kept_floats, memory_of
from autopeft.families import shape_of
from autopeft.lengths import Lengths
from autopeft.modules import Lora
from autopeft.operations import caches, filling, linear_weights, seconds_of
from autopeft.presets import preset
from autopeft.processor import has_bfloat16
from autopeft.search.halving import HalvingSearch
from autopeft.setting import Recipe, Setting, describe_recipe
from autopeft.shapes import Slot
from autopeft.study import choices
from autopeft.study.definition import StudyDefinition
from autopeft.study.study import Study
from autopeft.trial import Budget
from tests.contracts.cheap_jobs import setting
from tests.contracts.cheap_studies import definition

WIDTH, DEPTH = 32, 4
SHAPE = shape_of(
    {
        "model_type": "bert",
        "hidden_size": WIDTH,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": 4,
        "intermediate_size": 2 * WIDTH,
    }
)
TEXTS = {"train": Lengths(100, 10.0, 20, 640, 20), "validation": Lengths(50, 10.0, 20, 640, 20)}
TOKENS = 1500  # of both splits


def at(layer: int) -> Configuration:
    return Configuration((Placement(Slot("encoder", layer, "attention.query"), Lora(2)),), Training(1e-3))


def study_of(recipe: Recipe = Recipe(), layers: tuple[int, ...] | None = None, **changes: Any) -> StudyDefinition:  # noqa: B008
    made = setting()
    made = replace(made, backbone=replace(made.backbone, shape=SHAPE), recipe=recipe)
    space = spaces.lora_only(ranks=(0, 1, 2), learning_rate=1e-3, layers=layers).on(SHAPE)
    return definition(setting=made, space=space, texts=TEXTS, **changes)


# -- operations, by closed form --


def test_layers_below_the_lowest_module_are_not_counted_with_the_cache() -> None:
    plain, cached = (study_of(Recipe(cache=cache)).setting for cache in (False, True))
    weights = DEPTH * (4 * WIDTH * WIDTH + 2 * WIDTH * 2 * WIDTH)
    assert linear_weights(SHAPE) == weights
    forward = 2 * weights + 4 * 10 * WIDTH * DEPTH  # per token in a text of 10
    for layer in range(DEPTH):
        above = (DEPTH - layer) / DEPTH
        trained = at(layer).count(SHAPE).trained
        for made, computed in ((plain, 1.0), (cached, above)):
            # Two epochs of 1,000 tokens forward and backward, 500 tokens scored, at 0.6 operations a second.
            step, scored = forward * (computed + above) + 4 * trained, forward * computed + 2 * trained
            expected = (2 * 1000 * step + 500 * scored) / 0.6
            assert seconds_of(made, Budget(0, 2), TEXTS, at(layer), 1.0) == pytest.approx(expected, rel=1e-12)


def test_bfloat16_makes_the_frozen_products_faster_and_nothing_else() -> None:
    plain, fast = (study_of(Recipe(precision=p)).setting for p in ("float32", "bfloat16"))
    saved = seconds_of(plain, Budget(0, 1), TEXTS, at(0), 1.0) - seconds_of(fast, Budget(0, 1), TEXTS, at(0), 1.0)
    # Forward and backward of 1,000 tokens, forward of 500, 2 operations a weight.
    assert saved == pytest.approx((2 * 1000 + 500) * 2 * linear_weights(SHAPE) * (1 - 1 / 3.5) / 0.6, rel=1e-9)


def test_filling_counts_each_height_once() -> None:
    made = study_of(Recipe(cache=True)).setting
    forward = 2 * linear_weights(SHAPE) + 4 * 10 * WIDTH * DEPTH
    some = [at(0), at(1), at(3), at(3), preset("probe", SHAPE, 1e-3), preset("full", SHAPE, 1e-3)]
    assert filling(made, TEXTS, some, 1.0) == pytest.approx(TOKENS * forward * (1 / 4 + 3 / 4 + 1) / 0.6, rel=1e-12)
    assert filling(replace(made, recipe=Recipe(cache=False)), TEXTS, some, 1.0) == 0.0


def test_a_part_of_a_budget_takes_that_part_of_the_steps_and_is_not_scored() -> None:
    made = study_of().setting
    full, none = (seconds_of(made, Budget(0, 2), texts, at(1), 1.0) for texts in (TEXTS, without_validation()))
    quarter = seconds_of(made, Budget(0, 2, 0.25), TEXTS, at(1), 1.0)
    assert quarter == pytest.approx(none / 4, rel=1e-12)
    assert none < full


def without_validation() -> dict[str, Lengths]:
    return {**TEXTS, "validation": Lengths.of([])}


def test_checkpointing_computes_what_is_trained_once_more() -> None:
    plain, again = (study_of(Recipe(gradient_checkpointing=on)).setting for on in (False, True))
    more = seconds_of(again, Budget(0, 1), TEXTS, at(1), 1.0) - seconds_of(plain, Budget(0, 1), TEXTS, at(1), 1.0)
    forward = 2 * linear_weights(SHAPE) + 4 * 10 * WIDTH * DEPTH
    assert more == pytest.approx(1000 * forward * 3 / 4 / 0.6, rel=1e-9)


def test_what_trains_nothing_reads_the_last_layer_and_what_trains_everything_nothing() -> None:
    probe, full = (preset(name, SHAPE, 1e-3) for name in ("probe", "full"))
    assert caches(Recipe(cache=True), SHAPE, probe)
    assert seconds_of(study_of(Recipe(cache=True)).setting, Budget(0, 2), TEXTS, probe, 1.0) == 0.0
    assert not caches(Recipe(cache=True), SHAPE, full)


# -- what is decided --


def test_the_cache_is_taken_where_it_saves_time_and_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    high = study_of(layers=(2, 3))
    assert choices.decided(high).setting.recipe.cache is True
    assert choices.decided(study_of(layers=(0,))).setting.recipe.cache is False  # nothing lies below
    assert choices.decided(study_of(Recipe(dropout=0.1), layers=(2, 3))).setting.recipe.cache is False
    # Two heights of 1,500 tokens.
    saved, size = choices.saving(high)
    assert size == 2 * TOKENS * WIDTH * FLOAT
    assert 0.2 < saved < 0.5
    monkeypatch.setattr(choices, "MOST", size - 1)
    assert choices.decided(high).setting.recipe.cache is False


def test_one_trial_does_not_pay_for_filling_the_cache() -> None:
    few = study_of(layers=(3,), trials=1, budget=Budget(0, 1))
    assert choices.saving(few)[0] < choices.WORTH
    assert choices.saving(replace(few, trials=60))[0] > choices.WORTH


def test_trials_that_are_left_early_save_less() -> None:
    """Eight begun, two of them brought from a quarter to the end: 8 quarters and 2 rests, and the cache filled once."""
    full = study_of(layers=(3,), trials=8)
    halving = replace(full, searcher=HalvingSearch(keep=0.25))
    with_it, without = (study_of(Recipe(cache=cache), layers=(3,)).setting for cache in (True, False))
    configurations = [full.space.configuration(point) for point in full.space.enumerate()]

    def taken(setting: Setting, share: float) -> float:
        budget = replace(full.budget, share=share)
        return sum(seconds_of(setting, budget, TEXTS, c, 1.0) for c in configurations) / len(configurations)

    filled = filling(with_it, TEXTS, configurations, 1.0)
    before, after = (8 * taken(s, 0.25) + 2 * (taken(s, 1.0) - taken(s, 0.25)) for s in (without, with_it))
    assert choices.saving(halving)[0] == pytest.approx(1 - (after + filled) / before, rel=1e-9)
    assert choices.saving(full)[0] == pytest.approx(
        1 - (8 * taken(with_it, 1.0) + filled) / (8 * taken(without, 1.0)), rel=1e-9
    )
    assert choices.decided(full).setting.recipe.cache
    few = replace(halving, trials=1)
    assert not choices.decided(few).setting.recipe.cache


@pytest.mark.parametrize("asked", [True, False])
def test_what_is_asked_for_is_kept(asked: bool) -> None:
    recipe = Recipe(cache=asked, precision="bfloat16")
    for layers in ((0,), (2, 3)):
        assert choices.decided(study_of(recipe, layers)).setting.recipe == recipe


@pytest.mark.parametrize(("told", "expected"), [("avx2 avx512_bf16", "bfloat16"), ("avx2 avx512f", "float32")])
def test_auto_is_what_the_processor_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, expected: str
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags\t\t: fpu {told}\n\nprocessor : 1\nflags\t\t: fpu {told}\n")
    monkeypatch.setattr(choices, "has_bfloat16", lambda: has_bfloat16(tmp_path / "cpuinfo"))
    assert choices.decided(study_of(Recipe(precision="auto"))).setting.recipe.precision == expected


def test_one_core_without_the_instructions_is_one_too_many(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("flags : amx_bf16\nflags : avx2\n")
    assert not has_bfloat16(tmp_path / "cpuinfo")


def test_texts_nobody_has_counted_leave_it_open() -> None:
    assert choices.decided(replace(study_of(layers=(2, 3)), texts={})).setting.recipe.cache is None


# -- kept with the study --


def test_the_choice_is_stored_and_the_same_words_go_on(tmp_path: Path) -> None:
    wanted = study_of(layers=(2, 3))
    Study.start(tmp_path / "a", wanted).close()
    with Study.open(tmp_path / "a", readonly=True, trust_evaluate=True) as study:
        assert study.definition.setting.recipe.cache is True
        assert StudyDefinition.from_dict(study.definition.to_dict()) == study.definition
        first = study.definition.id
    for asked in (None, True):
        with Study.start(tmp_path / "a", replace_recipe(wanted, cache=asked)) as study:
            assert study.definition.id == first
    with pytest.raises(StudyError, match=r"setting\.recipe\.cache: True here, False asked for"):
        Study.start(tmp_path / "a", replace_recipe(wanted, cache=False))


def test_a_study_from_before_goes_on_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = study_of(layers=(2, 3))
    with monkeypatch.context() as before:
        before.setattr("autopeft.study.study.decided", lambda definition: definition)
        Study.start(tmp_path / "a", wanted).close()
    for asked in (None, False):
        with Study.start(tmp_path / "a", replace_recipe(wanted, cache=asked)) as study:
            assert study.definition.id == wanted.id
            assert not study.definition.setting.recipe.cache
    with pytest.raises(StudyError, match=r"setting\.recipe\.cache: None here, True asked for"):
        Study.start(tmp_path / "a", replace_recipe(wanted, cache=True))


def replace_recipe(wanted: StudyDefinition, **changes: Any) -> StudyDefinition:
    return replace(wanted, setting=replace(wanted.setting, recipe=replace(wanted.setting.recipe, **changes)))


def test_a_machine_without_the_instructions_goes_on_in_the_stored_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = study_of(Recipe(precision="auto"))
    monkeypatch.setattr(choices, "has_bfloat16", lambda: True)
    Study.start(tmp_path / "a", wanted).close()
    monkeypatch.setattr(choices, "has_bfloat16", lambda: False)
    with Study.start(tmp_path / "a", wanted) as study:
        assert study.definition.setting.recipe.precision == "bfloat16"


# -- written and read --


@pytest.mark.parametrize(("written", "meant"), [("auto", None), (True, True), (False, False)])
def test_the_file_says_auto_for_open(written: object, meant: bool | None) -> None:
    assert recipe_of(parse({"training": {"cache": written}})).cache is meant
    assert recipe_of(parse({})) == Recipe(precision="auto")


def test_a_wrong_precision_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"training\.precision: unknown precision 'bf16'; did you mean 'bfloat16'"):
        recipe_of(parse({"training": {"precision": "bf16"}}))


def test_a_recipe_is_told_in_one_line() -> None:
    told = describe_recipe(Recipe(cache=True, precision="bfloat16").to_dict())
    assert "cache on" in told
    assert "precision bfloat16" in told
    assert "four bit" not in told


# -- memory, by closed form --


def test_memory_follows_the_choices() -> None:
    made = study_of().setting
    plain = memory_of(made, TEXTS, at(1))
    linear = linear_weights(SHAPE)

    def part(name: str, configuration: Configuration = at(1), **choice: Any) -> int:  # noqa: B008 - a frozen value
        found = memory_of(replace(made, recipe=Recipe(**choice)), TEXTS, configuration)
        return int(getattr(found, name))

    assert plain.cached == 0
    assert part("cached", cache=True) == TOKENS * WIDTH * FLOAT
    assert part("cached", at(0), cache=True) == 0
    assert part("backbone", precision="bfloat16") - plain.backbone == 2 * linear
    # Half a byte a weight, and one float32 for 64 of them.
    assert part("backbone", four_bit=True) == FLOAT * (SHAPE.total_parameters - linear) + linear // 2 + linear // 16


def test_checkpointing_keeps_the_inputs_of_the_layers_and_the_inside_of_one() -> None:
    made = study_of().setting
    again = replace(made, recipe=Recipe(gradient_checkpointing=True))
    one = kept_floats(made, at(DEPTH - 1), 4, 10)  # a single layer
    assert kept_floats(again, at(DEPTH - 1), 4, 10) == one + 4 * 10 * WIDTH
    lora = preset("lora", SHAPE, 1e-3)
    assert kept_floats(again, lora, 4, 10) < kept_floats(made, lora, 4, 10)


def test_a_difference_names_what_was_asked_for_also_where_it_is_not_written() -> None:
    made = definition()
    rounded = replace(made, setting=replace(made.setting, recipe=replace(made.setting.recipe, precision="bfloat16")))
    assert rounded.differences(made) == ["setting.recipe.precision: 'bfloat16' here, 'float32' asked for"]


def test_where_trials_may_run_on_a_gpu_auto_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    made = definition()
    asked = replace(made, setting=replace(made.setting, recipe=replace(made.setting.recipe, precision="auto")))
    monkeypatch.setattr(choices, "has_bfloat16", lambda: True)
    for gpu, taken in ((False, "bfloat16"), (True, "float32")):
        monkeypatch.setattr(choices, "has_gpu", lambda gpu=gpu: gpu)
        assert choices.decided(asked).setting.recipe.precision == taken
