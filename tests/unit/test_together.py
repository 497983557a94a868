"""Several jobs in one batch, as a worker runs them: each comes to what it would have come to alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load

from autopeft import spaces, tasks, worker
from autopeft.cli.running import executor_of
from autopeft.cli.settings import SearchSettings
from autopeft.configuration import Configuration, Placement, Training
from autopeft.errors import TrainingError
from autopeft.job import SILENT, Job, JobStopped, Outcome, Report, Start
from autopeft.modules import Lora, ParallelAdapter, Prefix, SerialAdapter
from autopeft.presets import preset
from autopeft.setting import Setting
from autopeft.shapes import Slot
from autopeft.study.limits import Terms
from autopeft.study.study import Study
from autopeft.together import evaluate_together
from autopeft.trial import Budget
from tests.unit.test_adapters import backbone
from tests.unit.test_training import MIXED, job, setting

__all__ = ["backbone", "setting"]

LATE = Configuration(
    (Placement(Slot("encoder", 2, "ffn"), ParallelAdapter(3)), Placement(Slot("encoder", 1, "ffn"), SerialAdapter(2))),
    Training(3e-3),
)
THIRD = Configuration(
    (Placement(Slot("encoder", 2, "attention.value"), Lora(4)), Placement(Slot("encoder", 1, "attention"), Prefix(5))),
    Training(5e-3),
)


class Kept(Report):
    """Keeps what a job reports; asks it to stop at the `stop`-th question."""

    def __init__(self, stop: int = 0) -> None:
        self.messages: list[str] = []
        self.checkpoints: list[Mapping[str, bytes]] = []
        self._stop, self._asked = stop, 0

    def progress(self, message: str) -> None:
        self.messages.append(message)

    def checkpoint(self, files: Mapping[str, bytes]) -> None:
        self.checkpoints.append(dict(files))

    @property
    def stopping(self) -> bool:
        self._asked += 1
        return self._asked == self._stop


def three(setting: Setting, **changes: object) -> list[Job]:
    return [job(setting, c, number=k, **changes) for k, c in enumerate((MIXED, LATE, THIRD))]


def same(found: Outcome | Exception, expected: Outcome, others: Sequence[Job]) -> None:
    assert isinstance(found, Outcome), found
    assert found.objectives.keys() == expected.objectives.keys()
    assert found.objectives["parameters"] == expected.objectives["parameters"]
    assert found.detail["curve"] == pytest.approx(expected.detail["curve"], rel=1e-5)
    for name in ("scores", "counts", "examples"):
        assert found.detail[name] == expected.detail[name]
    assert found.detail["together"] == [other.number for other in others]
    assert found.files.keys() == expected.files.keys()
    for name, content in expected.files.items():
        if name.endswith(".safetensors"):
            tensors, own = load(content), load(found.files[name])
            assert own.keys() == tensors.keys()
            assert all((own[n] - t).abs().max() < 2e-5 for n, t in tensors.items())


def test_each_job_comes_to_what_it_comes_to_alone(setting: Setting) -> None:
    jobs, reports = three(setting), [Kept(), Kept(), Kept()]
    found = evaluate_together(jobs, reports)
    for one, outcome, report in zip(jobs, found, reports, strict=True):
        same(outcome, worker.evaluate(one), jobs)
        assert report.messages[-1] == "scoring"


def test_with_the_cache_and_fewer_examples_as_well(setting: Setting) -> None:
    cached = replace(setting, recipe=replace(setting.recipe, cache=True))
    jobs = [job(cached, c, number=k, budget=Budget(60, 3)) for k, c in enumerate((LATE, THIRD))]
    for one, outcome in zip(jobs, evaluate_together(jobs, [SILENT] * 2), strict=True):
        assert isinstance(outcome, Outcome)
        assert outcome.detail["cache"]["layer"] == 1
        same(outcome, worker.evaluate(one), jobs)


def test_numbers_come_back_in_their_own_unit(setting: Setting, tmp_path: Path) -> None:
    lines = ["text,label", *(f"good {i} text,{1000 + 10 * (i % 7)}.5" for i in range(200))]
    path = tmp_path / "numbers.csv"
    path.write_text("\n".join(lines))
    task = tasks.load(str(path), text="text", label="label", kind="regression")
    numbers = replace(setting, source=task.source, task=task.to_dict(), rows=task.rows)
    jobs = three(numbers)
    for one, outcome in zip(jobs, evaluate_together(jobs, [SILENT] * 3), strict=True):
        alone = worker.evaluate(one)
        assert isinstance(outcome, Outcome)
        assert outcome.detail["scores"] == pytest.approx(alone.detail["scores"], abs=1e-4)


def test_one_that_fails_and_one_that_is_stopped_leave_the_third_alone(setting: Setting) -> None:
    jobs = three(setting)
    wild = replace(jobs[0], configuration=replace(MIXED, training=Training(1e30)))
    reports = [Kept(), Kept(stop=4), Kept()]
    failed, stopped, third = evaluate_together([wild, *jobs[1:]], reports)
    assert isinstance(failed, TrainingError)
    with pytest.raises(TrainingError) as alone:
        worker.evaluate(wild)
    assert (failed.kind, str(failed)) == (alone.value.kind, str(alone.value))
    assert isinstance(stopped, JobStopped)
    same(third, worker.evaluate(jobs[2]), jobs)

    # What was stopped goes on alone, and in a batch beside one that begins anew.
    again = replace(jobs[1], checkpoint=reports[1].checkpoints[-1])
    whole = worker.evaluate(jobs[1])
    assert worker.evaluate(again).detail["curve"] == pytest.approx(whole.detail["curve"], rel=1e-5)
    beside, fresh = evaluate_together([again, jobs[2]], [SILENT] * 2)
    for outcome, expected in ((beside, whole), (fresh, worker.evaluate(jobs[2]))):
        assert isinstance(outcome, Outcome)
        assert outcome.detail["curve"] == pytest.approx(expected.detail["curve"], rel=1e-5)


def test_where_all_are_stopped_each_goes_on_from_there(setting: Setting) -> None:
    jobs, reports = three(setting), [Kept(stop=4), Kept(stop=4), Kept(stop=4)]
    found = evaluate_together(jobs, reports)
    assert [type(one) for one in found] == [JobStopped] * 3
    again = [replace(one, checkpoint=report.checkpoints[-1]) for one, report in zip(jobs, reports, strict=True)]
    for one, outcome in zip(jobs, evaluate_together(again, [SILENT] * 3), strict=True):
        same(outcome, worker.evaluate(one), jobs)


def test_where_all_diverge_each_has_its_error(setting: Setting) -> None:
    jobs = [replace(one, configuration=replace(one.configuration, training=Training(1e30))) for one in three(setting)]
    for one, found in zip(jobs, evaluate_together(jobs, [SILENT] * 3), strict=True):
        with pytest.raises(TrainingError) as alone:
            worker.evaluate(one)
        assert isinstance(found, TrainingError)
        assert (found.kind, str(found)) == (alone.value.kind, str(alone.value))


def test_a_part_of_the_budget_is_handed_over_and_gone_on_from_together(setting: Setting) -> None:
    part = Budget(0, 3, share=0.25)
    reports = [Kept(), Kept(), Kept()]
    early = evaluate_together(three(setting, budget=part), reports)
    for one, outcome in zip(three(setting, budget=part), early, strict=True):
        assert isinstance(outcome, Outcome)
        expected = worker.evaluate(one).objectives["training_loss"]
        assert outcome.objectives["training_loss"] == pytest.approx(expected, rel=1e-6)
        assert not outcome.files
    later = [
        replace(one, start=Start(part, report.checkpoints[-1]))
        for one, report in zip(three(setting), reports, strict=True)
    ]
    for one, outcome in zip(three(setting), evaluate_together(later, [SILENT] * 3), strict=True):
        same(outcome, worker.evaluate(one), later)


def test_a_study_comes_to_the_same_trials_and_says_which_ran_together(setting: Setting, tmp_path: Path) -> None:
    tables = []
    for together in (1, 3):
        task = tasks.load_source(setting.source, rows=setting.rows)
        space = spaces.autopeft(learning_rate=[1e-3, 1e-2])
        with Study.create(
            tmp_path / str(together),
            backbone=setting.backbone,
            task=task,
            space=space,
            trials=5,
            recipe=setting.recipe,
            budget=Budget(0, 2),
            searcher="random",
            baselines=(("fft", preset("full", setting.backbone.shape, 1e-4)),),
        ) as study:
            search = SearchSettings(together=together, executor="inline")
            executor = executor_of(study, search, Terms())
            assert study.run(executor=executor).completed == 6
            executor.close()
            tables.append(study.trials)
    alone, beside = tables
    assert [t.configuration.id for t in alone] == [t.configuration.id for t in beside]
    for one, other in zip(alone, beside, strict=True):
        assert other.objectives["quality"] == pytest.approx(one.objectives["quality"], abs=1e-12)
        assert other.detail["curve"] == pytest.approx(one.detail["curve"], rel=1e-5)
    assert all("together" not in t.detail for t in alone)
    batches = [t.detail.get("together", [t.number]) for t in beside]
    assert batches[0] == [0]  # full fine-tuning cannot
    assert max(map(len, batches)) == 3
    assert all(t.number in batch for t, batch in zip(beside, batches, strict=True))


def test_the_cost_is_shared(setting: Setting) -> None:
    jobs = three(setting)
    outcomes = [o for o in evaluate_together(jobs, [SILENT] * 3) if isinstance(o, Outcome)]
    spent = [o.cost.cpu_seconds for o in outcomes]
    assert len(spent) == 3
    assert max(spent) < 2 * min(spent)
    assert np.isfinite(spent).all()
    assert json.dumps([o.detail for o in outcomes])
