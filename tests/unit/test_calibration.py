"""How workers and threads are chosen: what is tried, what counts as equal, and one real measurement."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from autopeft import spaces
from autopeft.errors import StudyError
from autopeft.search.base import make_searcher
from autopeft.setting import Setting
from autopeft.study import calibration
from autopeft.study.calibration import (
    Calibration,
    Pace,
    calibrate,
    candidates,
    most_workers,
    told,
    usable_cores,
)
from autopeft.study.definition import StudyDefinition
from autopeft.study.ledger import SECONDS
from autopeft.tasks.load import load_source
from tests.unit.test_adapters import backbone
from tests.unit.test_training import setting

__all__ = ["backbone", "setting"]


@pytest.mark.parametrize(
    ("cores", "most", "threads", "pairs"),
    [
        (1, 8, None, [(1, 1)]),
        (2, 8, None, [(2, 1), (1, 2), (1, 1)]),
        (2, 1, None, [(1, 1), (1, 2)]),
        (6, 99, None, [(6, 1), (3, 2), (1, 4), (1, 6), (3, 1), (1, 1)]),
        (16, 5, None, [(5, 1), (5, 2), (4, 4), (2, 8), (1, 16), (2, 1), (1, 1)]),
        (8, 99, 2, [(4, 2), (2, 2), (1, 2)]),
        (2, 99, 4, [(1, 4)]),
    ],
)
def test_candidates_use_no_more_cores_than_there_are(
    cores: int, most: int, threads: int | None, pairs: list[tuple[int, int]]
) -> None:
    found = candidates(cores, most, threads)
    assert sorted(found) == sorted(pairs)
    assert found[0] == pairs[0]
    assert all(w * t <= cores for w, t in found if w > 1)


def test_the_fastest_is_chosen_and_of_equals_the_one_with_the_fewest_processes() -> None:
    def chosen(*paces: tuple[int, int, float]) -> tuple[int, int]:
        best = Calibration(tuple(Pace(*pace) for pace in paces), 4, 4, 1.0).chosen
        return best.workers, best.threads

    assert chosen((4, 1, 100.0), (2, 2, 90.0), (1, 4, 60.0)) == (4, 1)
    assert chosen((4, 1, 100.0), (2, 2, 97.5), (1, 4, 60.0)) == (2, 2)
    assert chosen((4, 1, 100.0), (2, 2, 96.9), (1, 4, 60.0)) == (4, 1)
    assert chosen((1, 2, 100.0), (1, 1, 100.0)) == (1, 1)


def test_a_calibration_is_recorded_as_json_without_looking_like_the_cost_of_a_trial() -> None:
    made = Calibration((Pace(2, 1, 150.25), Pace(1, 2, 18.0)), 2, 8, 21.5)
    detail = json.loads(json.dumps(made.to_dict()))
    assert (detail["workers"], detail["threads"]) == (2, 1)
    assert SECONDS not in detail  # the ledger adds these up as the time of trials
    assert told(detail) == "2 workers x 1 thread, measured: 2 x 1 150, 1 x 2 18 examples/s"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 1000),
        ({"cpu.max": "max 100000\n"}, 1000),
        ({"cpu.max": "250000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1000),
        ({"cpu.max": "nonsense\n"}, 1000),
    ],
)
def test_usable_cores_are_those_of_the_process_and_of_its_control_group(
    tmp_path: Path, files: dict[str, str], cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(1000)))  # more than any limit here
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert usable_cores(tmp_path) == cores


def definition(setting: Setting, trials: int = 6) -> StudyDefinition:
    from autopeft.lengths import lengths_of

    shape = setting.backbone.shape
    task = load_source(setting.source, rows=setting.rows)
    return StudyDefinition(
        setting, spaces.autopeft().on(shape), make_searcher("random"), trials, texts=lengths_of(setting, task)
    )


def test_memory_and_trials_limit_the_workers(setting: Setting) -> None:
    made = definition(setting)
    assert most_workers(made, None) == 6
    assert most_workers(made, 1 << 50) == 6
    assert most_workers(made, 1) == 1
    two = most_workers(made, 2 * (1 << 30))  # a worker takes over 0.4 GB, most of it Python and its libraries
    assert 2 <= two <= 5


def test_a_real_measurement_trains_in_as_many_processes_at_once(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "usable_cores", lambda: 2)
    lines: list[str] = []
    made = calibrate(definition(setting), window=0.3, say=lines.append)
    assert [(p.workers, p.threads) for p in made.paces] == [(2, 1), (1, 2), (1, 1)]
    assert all(p.examples_per_second > 0 for p in made.paces)
    assert len(lines) == 3
    assert made.chosen in made.paces
    assert made.took > 0


def test_what_cannot_train_ends_the_measurement(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "usable_cores", lambda: 1)
    other = replace(setting, backbone=replace(setting.backbone, sha256="0" * 64))
    with pytest.raises(StudyError, match=r"the measurement failed: refused: .* weights have SHA-256"):
        calibrate(definition(other), window=0.1)
