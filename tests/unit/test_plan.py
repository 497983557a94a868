"""What `plan` says before a search: exact extremes, and operations by closed form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from autopeft.bounds import SAMPLE, check_bounds, extreme, sample
from autopeft.errors import InputError
from autopeft.families.describe import shape_of
from autopeft.operations import linear_weights
from autopeft.spaces import ModulesTemplate, autopeft, per_layer
from autopeft.study.definition import StudyDefinition
from autopeft.study.study import Study
from tests.contracts.cheap_studies import definition

SMALL = shape_of(
    {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
)
LARGE_SPACES = {
    "shared": autopeft(lora=True),
    "per layer": per_layer(parallel=False, serial=(0, 1, 8), prefix=(0, 2), lora=(0, 1)),
    "one MLP for all prefixes": ModulesTemplate(learning_rates=(1e-4, 1e-3, 3e-3), prefix_mlp=8),
}


@pytest.mark.parametrize("name", LARGE_SPACES)
def test_extremes_are_those_of_all_points(name: str) -> None:
    space = LARGE_SPACES[name].on(SMALL)
    assert space.size > SAMPLE  # otherwise nothing is climbed
    points = sample(space)
    assert len(points) == SAMPLE
    everything = space.stored_parameters(np.array(list(space.enumerate())))
    assert extreme(space, points, -1) == everything.min()
    assert extreme(space, points, 1) == everything.max()


def test_a_small_space_is_counted_whole() -> None:
    space = autopeft(learning_rate=1e-3, serial=(0, 4), parallel=False, prefix=False).on(SMALL)
    assert len(sample(space)) == space.size == 2**3 - 1


def test_the_weights_of_the_layers_are_those_of_their_linears() -> None:
    # Four projections of d x d and two of d x f in each of 3 layers.
    assert linear_weights(SMALL) == 3 * (4 * 32 * 32 + 2 * 32 * 48)


@pytest.mark.parametrize("name", LARGE_SPACES)
def test_a_bound_that_nothing_keeps_is_refused_and_the_smallest_is_allowed(name: str) -> None:
    space = LARGE_SPACES[name].on(SMALL)
    smallest = int(space.stored_parameters(np.array(list(space.enumerate()))).min())
    check(definition(space=space))
    check(definition(space=space, constraints={"parameters": smallest}))
    with pytest.raises(InputError, match=f"the smallest configuration of this space has {smallest} parameters"):
        check(definition(space=space, constraints={"parameters": smallest - 1}))


def check(study: StudyDefinition) -> None:
    check_bounds(study.problem(), study.constraints)


def test_a_study_is_not_made_with_a_bound_that_nothing_keeps(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no configuration keeps the bound 1: .*smallest configuration") as refusal:
        Study.start(tmp_path / "study", definition(constraints={"parameters": 1}))
    assert refusal.value.where == "search.constraints.parameters"
    assert not (tmp_path / "study").exists()
