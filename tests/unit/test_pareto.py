"""Fronts and hypervolume against brute force, closed forms and inclusion-exclusion."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from autopeft.configuration import Configuration, Training
from autopeft.errors import InputError
from autopeft.pareto import ParetoFront, dominates, hypervolume, nondominated, orient
from autopeft.trial import Budget, Objective, Proposal, Trial, TrialStatus

OBJECTIVES = (Objective("quality", "maximize"), Objective("parameters", "minimize", log=True))


def trial(number: int, quality: float, parameters: float, status: TrialStatus = TrialStatus.COMPLETED) -> Trial:
    proposal = Proposal(Configuration((), Training(1e-3 * (number + 1))), Budget(0, 1), number)
    return Trial(number, proposal, status, {"quality": quality, "parameters": parameters})


def points(most: int, objectives: int) -> st.SearchStrategy[np.ndarray]:
    # Small whole numbers make ties and duplicates frequent, and volumes exact.
    return st.integers(0, most).flatmap(lambda n: arrays(np.float64, (n, objectives), elements=st.integers(0, 5)))


def by_counting(values: np.ndarray) -> int:
    """Volume of a union of boxes from the origin to whole-numbered corners: the unit cells inside any of them."""
    cells = itertools.product(range(5), repeat=values.shape[1])
    return sum(any(all(c + 1 <= v for c, v in zip(cell, p, strict=True)) for p in values) for cell in cells)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4).flatmap(lambda m: points(7, m)))
def test_hypervolume_counts_unit_cells(values: np.ndarray) -> None:
    assert hypervolume(values, np.zeros(values.shape[1])) == by_counting(values)


@settings(max_examples=30, deadline=None)
@given(points(6, 3), st.integers(-3, 5))
def test_hypervolume_of_points_with_a_shifted_reference(values: np.ndarray, corner: int) -> None:
    shifted = np.maximum(values - corner, 0)
    expected = sum(
        (-1) ** (k + 1) * np.prod(np.min(np.array(chosen), axis=0))
        for k in range(1, len(values) + 1)
        for chosen in itertools.combinations(shifted, k)
    )  # inclusion and exclusion of the boxes
    assert hypervolume(values, [corner] * 3) == pytest.approx(expected)


def test_hypervolume_of_a_known_staircase() -> None:
    # n points (i/n, (n + 1 - i)/n) leave boxes of width 1/n: sum_i (n + 1 - i)/n^2 = (n + 1)/(2 n).
    n = 50
    steps = np.arange(1, n + 1)
    assert hypervolume(np.column_stack([steps / n, (n + 1 - steps) / n]), [0, 0]) == pytest.approx((n + 1) / (2 * n))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4).flatmap(lambda m: points(8, m)))
def test_nondominated_equals_the_definition(values: np.ndarray) -> None:
    marked = nondominated(values)
    for i, point in enumerate(values):
        beaten = any(dominates(other, point) for other in values)
        repeated = any((values[j] == point).all() for j in range(i))
        assert marked[i] == (not beaten and not repeated)


def test_dominates_needs_one_strict_gain() -> None:
    assert dominates([1, 2], [1, 1])
    assert not dominates([1, 1], [1, 1])
    assert not dominates([2, 0], [1, 1])


def test_orientation_and_logarithm() -> None:
    assert orient([[0.5, 100.0], [0.7, 0.0]], OBJECTIVES).tolist() == [[0.5, -2.0], [0.7, 0.0]]
    # Rectangles over log10 parameters: (0.6 - 0.5)(5 - 3) + (0.8 - 0.6)(5 - 4).
    front = ParetoFront.of([trial(0, 0.6, 1e3), trial(1, 0.8, 1e4)], OBJECTIVES)
    assert front.hypervolume((0.5, 1e5)) == pytest.approx(0.1 * 2 + 0.2 * 1)


def test_the_front_keeps_completed_trials_and_one_of_equals() -> None:
    trials = [
        trial(0, 0.5, 100),
        trial(1, 0.9, 1000),
        trial(2, 0.9, 1000),
        trial(3, 0.4, 200),
        trial(4, 1.0, 1, TrialStatus.FAILED),
    ]
    front = ParetoFront.of(trials, OBJECTIVES)
    assert [t.number for t in front] == [1, 0]
    assert front.values == ((0.9, 1000.0), (0.5, 100.0))
    assert [t.number for t in ParetoFront.of(trials[::-1], OBJECTIVES)] == [2, 0]


def test_replaced_quality_decides_the_front() -> None:
    trials = [trial(0, 0.9, 100), trial(1, 0.8, 200), trial(2, 0.99, 50)]
    believed = {trials[0].configuration.id: 0.6, trials[1].configuration.id: 0.7}
    front = ParetoFront.of(trials, OBJECTIVES, believed)
    assert [(t.number, v[0]) for t, v in zip(front, front.values, strict=True)] == [(1, 0.7), (0, 0.6)]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(InputError, match="trial 1"):
        ParetoFront.of([trial(0, 0.5, 1), trial(1, bad, 1)], OBJECTIVES)
    with pytest.raises(InputError):
        hypervolume([[bad, 1.0]], [0, 0])


def test_pick_and_knee() -> None:
    front = ParetoFront.of([trial(0, 0.5, 1e2), trial(1, 0.9, 1e3), trial(2, 0.95, 1e6)], OBJECTIVES)
    assert front.pick().number == 2
    assert front.pick({"parameters": 1e6 - 1}).number == 1
    assert front.pick({"parameters": 100}).number == 0
    assert front.knee().number == 1
    with pytest.raises(InputError, match="the smallest is 100"):
        front.pick({"parameters": 99})
    with pytest.raises(InputError, match="did you mean 'parameters'"):
        front.pick({"parametres": 1})


def test_an_empty_front() -> None:
    front = ParetoFront.of([], OBJECTIVES)
    assert len(front) == 0
    assert front.hypervolume((0.0, 10.0)) == 0.0
    for ask in (front.pick, front.knee):
        with pytest.raises(InputError, match="empty"):
            ask()
