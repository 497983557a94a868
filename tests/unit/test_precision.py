"""Products of the frozen Linears in bfloat16: what changes, by how much, and what must not."""

from __future__ import annotations

import copy
import hashlib
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from autopeft import adapters, tasks, worker
from autopeft.backbones import inject
from autopeft.configuration import Configuration, Placement, Training
from autopeft.errors import TrainingError
from autopeft.job import SILENT, Job, JobStopped, Report, predictions_digest
from autopeft.modules import FullFineTuning, Lora, ParallelAdapter, Prefix, SerialAdapter
from autopeft.processor import has_bfloat16
from autopeft.setting import Precision, Setting
from autopeft.shapes import Slot
from autopeft.training import precision
from autopeft.training.precision import RoundedLinear, computing, require_supported, set_precision, supported
from autopeft.trial import Budget
from tests import models
from tests.contracts.test_modules import shake
from tests.unit.test_adapters import backbone
from tests.unit.test_training import job, setting

__all__ = ["backbone", "setting"]

EVERYWHERE = Configuration(
    (
        *(
            Placement(Slot("encoder", 1, site), Lora(2))
            for site in (
                "attention.query",
                "attention.key",
                "attention.value",
                "attention.output",
                "ffn.up",
                "ffn.down",
            )
        ),
        Placement(Slot("encoder", 0, "ffn"), SerialAdapter(4)),
        Placement(Slot("encoder", 2, "ffn"), ParallelAdapter(4)),
        Placement(Slot("encoder", 0, "attention"), Prefix(3)),
    ),
    Training(1e-2),
)
FULL = Configuration((Placement(Slot("backbone", 0, "all"), FullFineTuning()),), Training(1e-3))
TOLERANCE = 0.02
"""Of the largest value: 5 half steps of bfloat16 (2^-8 each) for 3 layers of 6 products."""


def hidden(model: nn.Module) -> torch.Tensor:
    result: torch.Tensor = model(**models.inputs()).last_hidden_state
    return result


def rounded_linear(d_in: int, d_out: int) -> RoundedLinear:
    torch.manual_seed(0)
    linear = RoundedLinear(d_in, d_out)
    linear.requires_grad_(False)
    linear.__dict__[precision._ROUNDED] = {}
    return linear


def test_a_product_is_that_of_the_rounded_numbers_summed_in_float32_and_rounded_once() -> None:
    """Reference: the exact sum in float64 of what rounding leaves; one rounding is at most half a step, 2^-8 of it."""
    linear, x = rounded_linear(300, 40), torch.randn(5, 7, 300)
    weight, bias = (p.bfloat16().double() for p in (linear.weight, linear.bias))
    exact = x.bfloat16().double() @ weight.T + bias
    found = linear(x)
    assert found.dtype == torch.float32
    assert torch.equal(found, found.bfloat16().float())
    assert bool(((found.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-4).all())
    # Sums in bfloat16 would be off by far more than that.
    assert float((found.double() - nn.functional.linear(x, linear.weight, linear.bias)).abs().max()) > 1e-3


def test_the_gradient_goes_back_through_the_rounded_weight() -> None:
    linear, x = rounded_linear(30, 20), torch.randn(4, 30, requires_grad=True)
    upper = torch.randn(4, 20)
    linear(x).backward(upper)
    exact = upper.bfloat16().double() @ linear.weight.bfloat16().double()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
    assert bool(((x.grad.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-4).all())


@pytest.mark.parametrize("family", models.FAMILIES)
def test_every_family_is_near_float32_and_comes_back_bit_for_bit(family: str) -> None:
    model = models.tiny_model(family, torch.float32)
    with torch.no_grad():  # its weights are so large that attention is all or nothing, and one step decides which
        for parameter in model.parameters():
            parameter.mul_(0.5 if parameter.ndim > 1 else 1.0)
    parameters, classes = dict(model.named_parameters()), [type(m) for m in model.modules()]
    before, names = hidden(model), list(model.state_dict())
    with computing(model, "bfloat16"):
        inside = hidden(model)
        rounded = [m for m in model.modules() if isinstance(m, RoundedLinear)]
        assert list(model.state_dict()) == names
        assert len(rounded) == 6 * models.LAYERS
        with computing(model, "float32"):
            assert torch.equal(hidden(model), before)
        assert torch.equal(hidden(model), inside)
    assert inside.dtype == torch.float32
    assert 1e-5 < float((inside - before).abs().max() / before.abs().max()) < TOLERANCE
    assert torch.equal(hidden(model), before)
    assert [type(m) for m in model.modules()] == classes
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())
    assert not any(precision._ROUNDED in m.__dict__ for m in model.modules())


def test_float32_changes_nothing() -> None:
    model = models.tiny_model("bert", torch.float32)
    classes = [type(m) for m in model.modules()]
    with computing(model, "float32"):
        assert [type(m) for m in model.modules()] == classes


@pytest.mark.parametrize("first", ["modules", "precision"])
def test_modules_train_in_float32_wherever_they_sit(first: str) -> None:
    """In both orders of injecting and of setting the precision, and of taking them back."""
    model = models.tiny_model("bert", torch.float32)
    before = hidden(model)
    results = {}
    both: tuple[Precision, ...] = ("float32", "bfloat16")
    for chosen in both:
        if first == "precision":
            set_precision(model, chosen)
        torch.manual_seed(0)
        injection = inject(model, EVERYWHERE)
        shake(injection)
        if first == "modules":
            set_precision(model, chosen)
        with torch.inference_mode():  # scoring first must not spoil what is kept for training
            hidden(model)
        output = hidden(model)
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
        gradients = {name: p.grad for name, p in injection.named_parameters()}
        results[chosen] = (output.detach(), gradients)
        assert all(p.dtype == torch.float32 for _, p in injection.named_parameters())
        assert all(p.grad is None for name, p in model.named_parameters() if "sidecar" not in name)
        if first == "modules":
            set_precision(model, "float32")
        injection.eject()
        set_precision(model, "float32")
        assert torch.equal(hidden(model), before)
        assert not any(isinstance(m, RoundedLinear) or hasattr(m, "_sidecar") for m in model.modules())
    (expected, wide), (found, narrow) = results["float32"], results["bfloat16"]
    assert 0 < float((found - expected).abs().max() / expected.abs().max()) < TOLERANCE
    for name, gradient in narrow.items():
        other = wide[name]
        assert gradient is not None
        assert other is not None
        assert gradient.dtype == torch.float32
        assert nn.functional.cosine_similarity(gradient.flatten(), other.flatten(), dim=0) > 0.99, name


def test_trained_weights_of_the_backbone_stay_float32_and_are_rounded_anew_at_each_step() -> None:
    model = models.tiny_model("bert", torch.float32)
    before = hidden(model)
    with computing(model, "bfloat16"):
        frozen = hidden(model)
        injection = inject(model, FULL)
        assert torch.equal(hidden(model), frozen)  # the same numbers, rounded alike, until a step is made
        hidden(model)[:, 0, :5].sum().backward()
        trained = dict(injection.named_parameters())
        weight = next(p for name, p in trained.items() if name.endswith("intermediate/dense/weight"))
        assert weight.grad is not None
        assert weight.dtype == weight.grad.dtype == torch.float32
        with torch.no_grad():
            weight.mul_(2.0)
        assert not torch.equal(hidden(model), frozen)
        injection.eject()
        assert torch.equal(hidden(model), frozen)
    assert torch.equal(hidden(model), before)


def test_a_trained_bias_moves_by_less_than_a_step_of_bfloat16() -> None:
    linear, x = rounded_linear(30, 20), torch.randn(4, 30)
    linear.bias.data.fill_(1.0)
    linear.bias.requires_grad_(True)
    before = linear(x).detach()
    with torch.no_grad():
        linear.bias.add_(2**-12)
    assert torch.allclose(linear(x) - before, torch.tensor(2.0**-12), atol=2**-18)
    linear(x).sum().backward()
    assert linear.bias.grad is not None
    assert torch.equal(linear.bias.grad, torch.full((20,), 4.0))


def test_other_weights_are_rounded_again() -> None:
    model = models.tiny_model("bert", torch.float32)
    other = {name: tensor * 1.5 for name, tensor in model.state_dict().items()}
    with computing(model, "bfloat16"):
        hidden(model)
        model.load_state_dict(other)
        assert torch.equal(hidden(model), hidden(copied := copy.deepcopy(model)))
    fresh = models.tiny_model("bert", torch.float32)
    fresh.load_state_dict(other)
    with computing(fresh, "bfloat16"):
        assert torch.equal(hidden(fresh), hidden(copied))


@pytest.fixture
def rounded(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> Setting:
    """A setting in bfloat16, on a processor that is slow at it or not."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda: True)
    return replace(setting, recipe=replace(setting.recipe, precision="bfloat16"))


def test_a_trial_in_bfloat16_comes_near_the_one_in_float32(setting: Setting, rounded: Setting) -> None:
    wide, narrow = (worker.evaluate(job(s, EVERYWHERE, budget=Budget(0, 1))) for s in (setting, rounded))
    assert narrow.files["adapter_model.safetensors"] != wide.files["adapter_model.safetensors"]
    assert narrow.detail["curve"] == pytest.approx(wide.detail["curve"], rel=0.02)
    assert worker.evaluate(job(setting, EVERYWHERE, budget=Budget(0, 1))).files == wide.files


def test_a_trial_with_the_cache_is_near_the_one_without(setting: Setting, rounded: Setting) -> None:
    """A batch of other texts may round a sum the other way, so cached and not cached differ by single steps."""
    high = Configuration((Placement(Slot("encoder", 2, "ffn"), SerialAdapter(4)),), Training(1e-2))
    kept = replace(rounded, recipe=replace(rounded.recipe, cache=True))
    wide = replace(setting, recipe=replace(setting.recipe, cache=True))
    plain, cached, other, again = (worker.evaluate(job(s, high)) for s in (rounded, kept, wide, kept))
    assert cached.detail["cache"]["layer"] == 2
    assert cached.detail["curve"] == pytest.approx(plain.detail["curve"], rel=5e-3)
    assert cached.detail["curve"] != other.detail["curve"]
    assert again.files == cached.files


class Stopping(Report):
    """Asks to stop after the first epoch's second step and keeps the checkpoint."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.asked = 0

    def progress(self, message: str) -> None:
        pass

    def checkpoint(self, files: object) -> None:
        self.kept = dict(files)  # type: ignore[call-overload]

    @property
    def stopping(self) -> bool:
        self.asked += 1
        return self.asked > 5


@pytest.mark.parametrize("configuration", [EVERYWHERE, FULL], ids=["modules", "full"])
def test_a_trial_goes_on_from_its_checkpoint_bit_for_bit(rounded: Setting, configuration: Configuration) -> None:
    whole = worker.evaluate(job(rounded, configuration))
    report = Stopping()
    with pytest.raises(JobStopped):
        worker.evaluate(job(rounded, configuration), report)
    assert report.kept
    rest = worker.evaluate(job(rounded, configuration, checkpoint=report.kept))
    assert rest.files == whole.files
    assert rest.detail == whole.detail


def test_an_adapter_predicts_what_was_scored_in_the_precision_of_its_study(rounded: Setting, tmp_path: Path) -> None:
    outcome = worker.evaluate(job(rounded, EVERYWHERE))
    for name, content in outcome.files.items():
        (tmp_path / name).write_bytes(content)
    adapter = adapters.load(tmp_path)
    task = tasks.load_source(rounded.source, rows=rounded.rows)
    texts = task.splits["validation"].texts
    assert adapter.trained_in == "bfloat16"
    found = adapter.predict(texts, precision=adapter.trained_in)
    indices = np.array([task.labels.index(label) for label in found.labels])
    assert predictions_digest(indices) == outcome.detail["predictions"]["validation"]
    wide = adapter.predict(texts).outputs
    assert 0 < np.abs(wide - found.outputs).max() < TOLERANCE
    # Float32 is float32, whatever the backbone it is given was computing in, and that one goes on as it was.
    model, tokenizer = adapter.load_backbone()
    set_precision(model, "bfloat16")
    assert np.array_equal(adapter.predict(texts, backbone=(model, tokenizer)).outputs, wide)
    again = adapter.predict(texts, backbone=(model, tokenizer), precision="bfloat16")
    assert np.array_equal(again.outputs, found.outputs)
    assert any(isinstance(m, RoundedLinear) for m in model.modules())
    assert "trained and scored in bfloat16" in (tmp_path / "README.md").read_text()


def test_an_adapter_of_a_study_in_float32_says_nothing_of_precision(setting: Setting, tmp_path: Path) -> None:
    outcome = worker.evaluate(job(setting, EVERYWHERE))
    for name, content in outcome.files.items():
        (tmp_path / name).write_bytes(content)
    assert adapters.load(tmp_path).trained_in == "float32"
    assert "bfloat16" not in (tmp_path / "README.md").read_text()


def digest_of(job: Job) -> str:
    """Runs in a process of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "has_bfloat16", lambda: True)
        outcome = worker.evaluate(job, SILENT)
    return hashlib.sha256(outcome.files["adapter_model.safetensors"]).hexdigest()


def test_another_process_trains_the_same_bits(rounded: Setting) -> None:
    own = worker.evaluate(job(rounded, EVERYWHERE)).files["adapter_model.safetensors"]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(digest_of, job(rounded, EVERYWHERE)).result() == hashlib.sha256(own).hexdigest()


def test_a_machine_without_the_instructions_refuses(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    worker._LOADED.clear()
    monkeypatch.setattr(precision, "has_bfloat16", lambda: has_bfloat16(tmp_path / "none"))
    require_supported("float32", torch.device("cpu"))
    assert not supported(torch.device("cpu"))
    narrow = replace(setting, recipe=replace(setting.recipe, precision="bfloat16"))
    with pytest.raises(TrainingError, match="this processor has no instructions") as caught:
        worker.evaluate(job(narrow))
    assert caught.value.kind == "refused"
    assert np.isfinite(worker.evaluate(job(setting)).objectives["quality"])
