"""Metrics against closed forms worked by hand and against textbook definitions written out here."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from autopeft.errors import InputError
from autopeft.tasks.metrics import DEFAULT_METRIC, METRICS, metric_for

CLASSIFICATION = [name for name, metric in METRICS.items() if "classification" in metric.kinds]
REGRESSION = [name for name, metric in METRICS.items() if "regression" in metric.kinds]


def of(name: str, targets, predictions) -> float:
    return METRICS[name].function(np.asarray(targets), np.asarray(predictions))


def test_accuracy_by_hand() -> None:
    assert of("accuracy", [0, 1, 2, 2, 1], [0, 2, 2, 2, 0]) == pytest.approx(3 / 5)


def test_f1_of_two_classes_counts_class_one_as_positive() -> None:
    # true positives 2, false positives 1, false negatives 2: F1 = 2*2 / (2*2 + 1 + 2).
    assert of("f1", [1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 1, 0]) == pytest.approx(4 / 7)
    # The other class would give 2*1 / (2*1 + 2 + 1) = 2/5.
    assert of("macro_f1", [1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 1, 0]) == pytest.approx((4 / 7 + 2 / 5) / 2)


def test_f1_of_three_classes_is_macro() -> None:
    targets, predictions = [0, 0, 1, 2, 2], [0, 1, 1, 2, 0]
    # Class 0: tp 1 fp 1 fn 1 -> 1/2; class 1: tp 1 fp 1 -> 2/3; class 2: tp 1 fn 1 -> 2/3.
    assert of("f1", targets, predictions) == pytest.approx((1 / 2 + 2 / 3 + 2 / 3) / 3)


def test_matthews_of_two_classes_is_the_phi_coefficient() -> None:
    # tp 3, tn 2, fp 1, fn 2: (3*2 - 1*2) / sqrt(4 * 5 * 3 * 4).
    targets, predictions = [1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 1, 0, 0]
    assert of("matthews", targets, predictions) == pytest.approx(4 / math.sqrt(240))


def gorodkin(targets: list[int], predictions: list[int], classes: int) -> float:
    """R_K from the confusion matrix by its triple sum: Gorodkin (2004), eq. 8."""
    C = np.zeros((classes, classes))
    for t, p in zip(targets, predictions, strict=True):
        C[t, p] += 1
    over = range(classes)
    top = sum(C[k, k] * C[m, n] - C[n, k] * C[k, m] for k in over for m in over for n in over)

    def side(M) -> float:
        return sum(M[k].sum() * sum(M[j].sum() for j in over if j != k) for k in over)

    bottom = math.sqrt(side(C)) * math.sqrt(side(C.T))
    return float(top / bottom) if bottom else 0.0


@pytest.mark.parametrize("seed", range(5))
def test_matthews_equals_the_triple_sum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    targets, predictions = rng.integers(0, 4, 60), rng.integers(0, 4, 60)
    mixed = np.where(rng.random(60) < 0.5, targets, predictions)
    expected = gorodkin(targets.tolist(), mixed.tolist(), 4)
    assert of("matthews", targets, mixed) == pytest.approx(expected, abs=1e-12)


def test_f1_equals_its_definition_over_all_small_cases() -> None:
    for targets in itertools.product((0, 1), repeat=4):
        for predictions in itertools.product((0, 1), repeat=4):
            both = sum(t == p == 1 for t, p in zip(targets, predictions, strict=True))
            precision = both / sum(predictions) if sum(predictions) else 0.0
            recall = both / sum(targets) if sum(targets) else 0.0
            expected = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
            assert of("f1", targets, predictions) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(3))
def test_correlations_equal_scipy_with_ties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=80).round(1)
    y = (x + rng.normal(size=80)).round(1)
    assert of("pearson", x, y) == pytest.approx(scipy.stats.pearsonr(x, y).statistic, abs=1e-12)
    assert of("spearman", x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=1e-12)


def test_spearman_by_hand() -> None:
    # No ties: 1 - 6 * sum d^2 / (n (n^2 - 1)), ranks differ by 1, 1, 0, 0.
    assert of("spearman", [1.0, 2.0, 3.0, 9.0], [5.0, 4.0, 7.0, 8.0]) == pytest.approx(1 - 6 * 2 / (4 * 15))


def test_r2_by_hand() -> None:
    # Squared error 1, squared deviation of 1, 2, 3 is 2.
    assert of("r2", [1.0, 2.0, 3.0], [1.0, 2.0, 2.0]) == pytest.approx(0.5)


@pytest.mark.parametrize("name", METRICS)
def test_perfect_predictions_score_one(name: str) -> None:
    targets = np.array([0, 1, 1, 0, 1]) if name in CLASSIFICATION else np.array([0.5, 2.0, 1.0, 3.0])
    assert of(name, targets, targets) == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["matthews", "pearson", "spearman"])
def test_constant_predictions_or_targets_score_zero(name: str) -> None:
    varied, constant = [0, 1, 1, 0, 1], [1, 1, 1, 1, 1]
    assert of(name, varied, constant) == 0.0
    assert of(name, constant, varied) == 0.0


def test_a_constant_that_is_no_binary_fraction_scores_zero() -> None:
    # The mean of n times 0.1 is not always 0.1, so a test for zero variance would miss it.
    assert of("pearson", [1.0, 2.0, 4.0], [0.1, 0.1, 0.1]) == 0.0


@pytest.mark.parametrize("name", REGRESSION)
def test_a_prediction_that_is_nan_shows(name: str) -> None:
    assert math.isnan(of(name, [1.0, 2.0, 3.0], [1.0, float("nan"), 2.0]))


def test_every_metric_is_better_when_higher_and_defaults_exist() -> None:
    assert {metric.better for metric in METRICS.values()} == {"higher"}
    assert all(kind in METRICS[name].kinds for kind, name in DEFAULT_METRIC.items())


def test_metric_for_resolves() -> None:
    assert metric_for(None, "classification", 3) == "accuracy"
    assert metric_for(None, "regression", 0) == "spearman"
    assert metric_for("f1", "classification", 2) == "f1"
    assert metric_for("f1", "classification", 3) == "macro_f1"


def test_metric_for_refuses_what_does_not_fit() -> None:
    with pytest.raises(InputError, match=r"task\.metric: metric 'pearson' does not fit a classification task"):
        metric_for("pearson", "classification", 2)
    with pytest.raises(InputError, match="did you mean 'accuracy'"):
        metric_for("acuracy", "classification", 2)
