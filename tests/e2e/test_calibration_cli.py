"""`--workers auto` and `plan --calibrate` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autopeft.study import calibration
from autopeft.study.calibration import CALIBRATED, Calibration, Pace
from autopeft.study.study import Study
from tests.e2e.conftest import Run


def test_workers_are_measured_by_each_run_and_threads_only_when_a_study_is_made(
    cli: Run, base: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The measurement itself is replaced by figures (tests/unit/test_calibration.py has a real one)."""
    asked = []

    def measured(_: object, *, threads: int | None, most: int | None, **__: object) -> Calibration:
        asked.append((threads, most))
        two = Pace(1, threads or 2, 30.0)
        return Calibration((Pace(2, threads or 1, 20.0), two), 2, 8, 1.0)

    monkeypatch.setattr(calibration, "calibrate", measured)
    folder = tmp_path / "study"
    once = ("search", *base, "--study", folder, "--baselines", "none", "--workers", "auto", "--executor", "inline")
    first = cli(*once, "--trials", 1)
    assert first.exit_code == 0, first.output
    again = cli(*once, "--trials", 2)
    assert again.exit_code == 0, again.output
    alone = cli("search", "--study", folder, "--workers", "auto", "--trials", 3)
    assert alone.exit_code == 0, alone.output
    nothing = cli("search", "--study", folder, "--workers", "auto")
    assert nothing.exit_code == 0
    assert asked == [(None, 1), (2, 1), (2, None)]
    with Study.open(folder, readonly=True) as study:
        assert study.definition.setting.recipe.threads == 2
        events = [event for event in study.events if event.kind == CALIBRATED]
        assert [event.detail["workers"] for event in events] == [1, 1, 1]
        assert len(study.trials) == 3
    assert "1 worker x 2 threads, measured: 1 x 2 30, 2 x 2 20 examples/s" in " ".join(
        cli("status", folder).output.split()
    )
    assert json.loads(cli("status", folder, "--json").stdout)["calibration"]["threads"] == 2
    number = cli(*once, "--trials", 4, "--workers", 1)  # how many workers may differ from run to run
    assert number.exit_code == 0, number.output
    with Study.open(folder, readonly=True) as study:
        assert (study.definition.setting.recipe.threads, len(study.trials)) == (2, 4)
    other = cli(*once, "--trials", 4, "--threads", 1)
    assert other.exit_code != 0
    assert "threads: 2 here, 1 asked for" in " ".join(other.output.split())


def test_where_it_cannot_be_measured_auto_is_refused_before_anything_is_made(
    cli: Run, base: tuple[str, ...], tmp_path: Path
) -> None:
    folder = tmp_path / "study"
    for flags, says in (
        (("--workers", "auto", "--executor", "ray"), "Ray's workers may run on others"),
        (("--workers", "auto", "--devices", "0"), "auto measures trials in processes of their own on the CPU"),
        (("--workers", "many"), "'many' is no number of workers"),
        (("--workers", "0"), "0 workers can run nothing"),
    ):
        refused = cli("search", *base, "--study", folder, *flags)
        assert refused.exit_code == 2
        assert says in " ".join(refused.output.split())
        assert not folder.exists()


def test_plan_measures_only_when_asked(cli: Run, base: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    made = Calibration((Pace(1, 2, 30.0),), 2, 8, 1.0)
    monkeypatch.setattr(calibration, "usable_cores", lambda: 6)
    told = cli("plan", *base, "--baselines", "none", "--workers", "auto", "--threads", 2, "--json")
    assert told.exit_code == 0, told.output
    plain = json.loads(told.stdout)
    assert plain["workers"] == 3
    assert "calibration" not in plain
    monkeypatch.setattr(calibration, "calibrate", lambda *_, **__: made)
    measured = json.loads(
        cli("plan", *base, "--baselines", "none", "--workers", "auto", "--calibrate", "--json").stdout
    )
    assert (measured["workers"], measured["calibration"]["threads"]) == (1, 2)
