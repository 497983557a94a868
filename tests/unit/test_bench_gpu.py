"""The benchmark of a GPU, on whatever there is: that it runs and says what it claims to say, not how fast."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autopeft.setting import Recipe
from autopeft.training.device import device_of_worker
from benchmarks.gpu.run import TINY, configurations_of, flop_of, measure, model_of, tokens_of


def test_it_measures_trials_alone_and_together() -> None:
    plan = replace(TINY, together=(1, 2), alone=1, steps=1, matmul=(64,))
    rows = list(measure(plan, compiled=False))
    assert [row["together"] for row in rows] == [0, 1, 2]
    for row in rows:
        per_trial = row["seconds_per_step"] / max(1, row["together"])
        assert row["configurations_per_hour"] == pytest.approx(3600 / (per_trial * 189))  # 63 steps x 3 epochs
        assert row["against_alone"] == pytest.approx(
            row["configurations_per_hour"] / rows[0]["configurations_per_hour"]
        )
        assert row["share_of_peak"] > 0


def test_a_step_counts_the_products_of_the_frozen_layers_at_least() -> None:
    model, tokens = model_of(3, 32, 4, device_of_worker()), tokens_of(96)
    flop = flop_of(model, tokens, configurations_of(model, 1), Recipe(batch_size=16))
    real = tokens.lengths.mean() * 16  # padding comes on top
    frozen = real * 3 * 2 * (4 * 32 * 32 + 2 * 32 * 128)  # forward products of three layers
    assert frozen < flop < 8 * frozen
