"""On a GPU: the results of a CPU, bfloat16, trials together, checkpoints, and memory by device. `make test-gpu`."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from autopeft import worker
from autopeft.backbones import load_backbone
from autopeft.errors import MissingExtra
from autopeft.job import SILENT, JobStopped, Outcome
from autopeft.setting import Recipe, Setting, describe_backbone
from autopeft.study.executors.base import Device, Failed, Finished, Resources
from autopeft.study.executors.process import ProcessExecutor
from autopeft.together import evaluate_together
from autopeft.training.device import reading
from autopeft.training.precision import computing
from tests import models
from tests.contracts.polling import result
from tests.unit import test_stacked as stacked
from tests.unit.test_adapters import backbone
from tests.unit.test_together import LATE, THIRD, Kept, three
from tests.unit.test_training import job, setting

__all__ = ["backbone", "setting"]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def fresh() -> None:
    worker.forget()


def on_gpu(model: PreTrainedModel) -> PreTrainedModel:
    return copy.deepcopy(model).to(DEVICE)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("family", models.FAMILIES)
def test_training_equals_that_of_a_cpu(family: str) -> None:
    model = models.tiny_model(family, torch.float32)
    gpu = on_gpu(model)
    for configuration in stacked.CONFIGURATIONS[:3]:
        expected = stacked.alone(model, configuration, stacked.texts(model))
        found = stacked.alone(gpu, configuration, stacked.texts(gpu))
        assert found.losses[:1] == pytest.approx(expected.losses[:1], rel=1e-5)
        assert found.losses == pytest.approx(expected.losses, rel=1e-4)
        assert relative(found.outputs, expected.outputs) < 1e-3


def test_fresh_weights_are_those_of_a_cpu() -> None:
    model = models.tiny_model("bert", torch.float32)
    gpu = on_gpu(model)
    made = [stacked.stacked_of(m, stacked.CONFIGURATIONS) for m in (model, gpu)]
    for k in range(len(stacked.CONFIGURATIONS)):
        cpu, other = (stacked.weights_of(one, k) for one in made)
        assert all(torch.equal(other[name].cpu(), tensor) for name, tensor in cpu.items())


def test_stacked_equals_separate_in_float64() -> None:
    gpu = on_gpu(models.tiny_model("bert", torch.float64))
    for found, configuration in zip(
        stacked.together(gpu, stacked.CONFIGURATIONS, stacked.texts(gpu)), stacked.CONFIGURATIONS, strict=True
    ):
        separate = stacked.alone(gpu, configuration, stacked.texts(gpu))
        assert found.losses == pytest.approx(separate.losses, rel=0, abs=1e-9)
        assert all((found.weights[name] - t).abs().max() < 1e-9 for name, t in separate.weights.items())


def test_stacked_equals_separate_in_float32() -> None:
    gpu = on_gpu(models.tiny_model("bert", torch.float32))
    for found, configuration in zip(
        stacked.together(gpu, stacked.CONFIGURATIONS, stacked.texts(gpu)), stacked.CONFIGURATIONS, strict=True
    ):
        separate = stacked.alone(gpu, configuration, stacked.texts(gpu))
        assert np.mean(found.losses) == pytest.approx(np.mean(separate.losses), rel=1e-6)


def test_one_that_diverges_disturbs_nobody() -> None:
    gpu = on_gpu(models.tiny_model("bert", torch.float64))
    made = stacked.stacked_of(gpu, stacked.CONFIGURATIONS)
    losses: dict[int, list[float]] = {k: [] for k in range(len(stacked.CONFIGURATIONS))}
    left = []
    for event in stacked.train_stacked(
        stacked.texts(gpu), made, stacked.RECIPE, rows=np.arange(50), epochs=stacked.EPOCHS, seed=stacked.SEED
    ):
        if isinstance(event, stacked.Diverged):
            left.append(event.number)
        elif isinstance(event, stacked.StackedStep):
            for k, loss in event.losses.items():
                losses[k].append(loss)
            if event.step == 7:
                with torch.no_grad():
                    made.weights.matrix[1][made.weights.real[1]] = float("nan")
    made.eject()
    assert left == [1]
    for k in (0, 2, 3, 4):
        separate = stacked.alone(gpu, stacked.CONFIGURATIONS[k], stacked.texts(gpu))
        assert losses[k] == pytest.approx(separate.losses, rel=0, abs=1e-9)


def test_bfloat16_trains_to_losses_close_to_those_of_float32() -> None:
    gpu = on_gpu(models.tiny_model("bert", torch.float32))
    configuration = stacked.CONFIGURATIONS[0]
    expected = stacked.alone(gpu, configuration, stacked.texts(gpu))
    with computing(gpu, "bfloat16"):
        found = stacked.alone(gpu, configuration, stacked.texts(gpu))
        beside = stacked.together(gpu, stacked.CONFIGURATIONS, stacked.texts(gpu))[0]
    assert found.losses != expected.losses
    assert np.mean(found.losses) == pytest.approx(np.mean(expected.losses), rel=0.05)
    assert np.mean(beside.losses) == pytest.approx(np.mean(found.losses), rel=0.05)


@pytest.mark.gpu
def test_losses_are_read_as_they_are() -> None:
    values = torch.randn(1000, device=DEVICE)
    read = reading(values)
    values.zero_()  # launched later: what was there before is read
    assert any(read())


@pytest.mark.gpu
def test_a_worker_trains_on_the_gpu_and_tells_its_memory(setting: Setting) -> None:
    outcome = worker.evaluate(job(setting))
    assert worker.load_setting(setting).model.device.type == "cuda"
    assert outcome.detail["device_memory"] > 0
    assert outcome.files


def test_jobs_together_are_those_alone(setting: Setting) -> None:
    jobs = three(setting)
    for one, outcome in zip(jobs, evaluate_together(jobs, [SILENT] * 3), strict=True):
        assert isinstance(outcome, Outcome)
        assert outcome.detail["curve"] == pytest.approx(worker.evaluate(one).detail["curve"], rel=1e-4)


def test_a_job_goes_on_from_its_checkpoint(setting: Setting) -> None:
    whole, report = worker.evaluate(job(setting)), Kept(stop=5)
    repeated = worker.evaluate(job(setting))
    with pytest.raises(JobStopped):
        worker.evaluate(job(setting), report)
    again = worker.evaluate(job(setting, checkpoint=report.checkpoints[-1]))
    assert again.detail["curve"] == pytest.approx(whole.detail["curve"], rel=1e-4)
    if repeated.files == whole.files:  # some kernels add in another order each time; then no bit can be promised
        assert again.files == whole.files


def test_hidden_states_kept_in_memory_are_those_of_the_gpu(setting: Setting) -> None:
    cached = replace(setting, recipe=replace(setting.recipe, cache=True))
    for configuration in (LATE, THIRD):
        plain, kept = worker.evaluate(job(setting, configuration)), worker.evaluate(job(cached, configuration))
        assert kept.detail["curve"] == pytest.approx(plain.detail["curve"], rel=1e-4)


@pytest.mark.gpu
def test_layers_computed_again_need_less_memory(setting: Setting) -> None:
    peaks = []
    for again in (False, True):
        gpu = on_gpu(models.tiny_model("bert", torch.float32))
        if again:
            gpu.gradient_checkpointing_enable({"use_reentrant": False})
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        stacked.together(gpu, stacked.CONFIGURATIONS, stacked.texts(gpu))
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] < peaks[0]


@pytest.mark.gpu
def test_four_bits_hold_the_frozen_weights(backbone: Path) -> None:
    described = describe_backbone(str(backbone))
    try:
        model = load_backbone(described, four_bit=True, device="cuda:0")
    except MissingExtra as missing:
        pytest.skip(str(missing))
    kinds = {type(module).__name__ for module in model.modules()}
    assert "Linear4bit" in kinds
    found = stacked.together(model, stacked.CONFIGURATIONS[:2], stacked.texts(model))
    assert all(np.isfinite(one.losses).all() for one in found)


@pytest.mark.gpu
def test_a_job_larger_than_every_device_is_refused_and_one_that_fits_runs(setting: Setting) -> None:
    memory = torch.cuda.get_device_properties(0).total_memory
    executor = ProcessExecutor("autopeft.worker:evaluate", 1, 1, devices=(Device("0", memory),))
    try:
        refused = result(executor, job(setting), Resources(1, 2 * memory))
        assert isinstance(refused, Failed)
        assert refused.failure.kind == "refused"
        done = result(executor, job(setting), Resources(1, memory // 100))
        assert isinstance(done, Finished), done
        assert done.outcome.detail["device_memory"] > 0
    finally:
        executor.close()


@pytest.mark.gpu
def test_a_batch_that_does_not_fit_is_out_of_memory(setting: Setting) -> None:
    recipe = Recipe(batch_size=16, max_length=40)
    jobs = three(replace(setting, recipe=recipe))
    worker.load_setting(jobs[0].setting)
    torch.cuda.empty_cache()
    fraction = torch.cuda.memory_allocated() / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(fraction)
    try:
        with pytest.raises(torch.cuda.OutOfMemoryError):
            evaluate_together(jobs, [SILENT] * 3)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
