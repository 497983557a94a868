"""Batches, the loop, the probe, and what a worker does with a job."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import shutil
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import dynamic_module_utils

from autopeft import adapters, tasks, worker
from autopeft.backbones import inject, load_backbone
from autopeft.configuration import Configuration, Placement, Training
from autopeft.errors import InputError, TrainingError
from autopeft.families import StockHead
from autopeft.heads import Head
from autopeft.heads.layer import HeadLayer
from autopeft.job import Job, JobStopped, Outcome, Report
from autopeft.modules import FullFineTuning, Lora, Prefix, SerialAdapter
from autopeft.setting import Recipe, Setting, describe_backbone
from autopeft.shapes import Slot
from autopeft.training.batches import Tokens, bucketed, by_length
from autopeft.training.loop import EpochDone, predict, train
from autopeft.training.probe import PENALTIES, fit_probe
from autopeft.training.sources import Texts
from autopeft.trial import Budget
from tests import models
from tests.unit.test_adapters import WORDS, backbone

__all__ = ["backbone"]


def some_tokens(n: int = 50) -> Tokens:
    """Texts of 3 to 9 tokens; the class is whether token 7 is present."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 10, size=n)
    rows = [rng.integers(8, 90, size=length) for length in lengths]
    for row in rows[::2]:
        row[1] = 7
    starts = np.concatenate([[0], np.cumsum(lengths)])
    targets = torch.tensor([int(7 in row) for row in rows])
    return Tokens(torch.tensor(np.concatenate(rows)), None, starts, targets, pad=0)


def test_a_batch_is_padded_to_its_longest_text() -> None:
    tokens = some_tokens()
    rows = np.array([3, 11, 4])
    inputs = tokens.inputs(rows)
    assert inputs["input_ids"].shape == (3, tokens.lengths[rows].max())
    assert inputs["attention_mask"].sum(dim=1).tolist() == tokens.lengths[rows].tolist()
    for i, row in enumerate(rows):
        length = tokens.lengths[row]
        assert inputs["input_ids"][i, :length].tolist() == tokens.ids[tokens.starts[row] :][:length].tolist()
        assert not inputs["input_ids"][i, length:].any()


def test_an_epoch_visits_every_row_once_with_little_padding_and_another_order_each_time() -> None:
    tokens = some_tokens(200)
    rng = np.random.default_rng(1)
    first, second = (bucketed(tokens, np.arange(200), 8, rng) for _ in range(2))
    assert sorted(np.concatenate(first)) == list(range(200)) == sorted(np.concatenate(second))
    assert [b.tolist() for b in first] != [b.tolist() for b in second]
    padding = lambda batches: sum(len(b) * tokens.lengths[b].max() - tokens.lengths[b].sum() for b in batches)  # noqa: E731
    assert padding(first) < 0.5 * padding(bucketed(tokens, np.arange(200), 8, rng, pool=1))
    assert padding(by_length(tokens, 8)) <= padding(first)


def test_predictions_come_in_the_order_of_the_split_whatever_the_batches() -> None:
    tokens, model = some_tokens(), models.tiny_model("bert", torch.float32)
    head = HeadLayer(Head(), models.WIDTH, 2, StockHead("", "", "tanh"))
    together = predict(Texts(model, tokens), head, size=16)
    alone = np.concatenate([predict(Texts(model, tokens_of(tokens, i)), head) for i in range(len(tokens))])
    assert np.abs(together - alone).max() < 1e-5


def tokens_of(tokens: Tokens, row: int) -> Tokens:
    start, stop = tokens.starts[row : row + 2]
    return Tokens(tokens.ids[start:stop], None, np.array([0, stop - start]), tokens.targets[row : row + 1], pad=0)


def test_loop_equals_plain_adamw_written_out() -> None:
    """One batch an epoch: the loop's weights must equal torch's AdamW driven by hand with the same schedule."""
    tokens, results = some_tokens(16), []
    chosen = Configuration((Placement(Slot("encoder", 1, "ffn"), SerialAdapter(4)),), Training(2e-2, 5e-2))
    recipe = Recipe(batch_size=16, warmup=0.25, weight_decay=0.1, clip=0.5)
    for by_hand in (False, True):
        model = models.tiny_model("bert", torch.float32)
        torch.manual_seed(0)
        injection, head = inject(model, chosen), HeadLayer(Head(), models.WIDTH, 2, StockHead("", "", "tanh"))
        if by_hand:
            _plain_adamw(model, injection, head, tokens, epochs=8)
        else:
            events = train(Texts(model, tokens), injection, head, recipe, rows=np.arange(16), epochs=8, seed=0)
            losses = [event.loss for event in events if isinstance(event, EpochDone)]
            assert losses[-1] < losses[0]
        results.append([p.detach().clone() for _, p in injection.named_parameters()] + list(head.parameters()))
    for left, right in zip(*results, strict=True):
        assert torch.allclose(left, right, atol=1e-6, rtol=1e-5)


def _plain_adamw(model: torch.nn.Module, injection: object, head: HeadLayer, tokens: Tokens, epochs: int) -> None:
    modules = [p for _, p in injection.named_parameters()]  # type: ignore[attr-defined]
    groups = [
        {"params": [p], "lr": rate, "weight_decay": 0.1 if p.ndim > 1 else 0.0, "peak": rate}
        for parameters, rate in ((modules, 2e-2), (head.parameters(), 5e-2))
        for p in parameters
    ]
    optimizer = torch.optim.AdamW(groups)
    inputs = tokens.inputs(np.arange(16))
    for step in range(epochs):
        share = min((step + 1) / 2, (8 - step) / 7)  # warm-up over 2 of 8 steps, then linearly to 0 at step 8
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * min(1.0, share)
        optimizer.zero_grad()
        hidden = model(**inputs).last_hidden_state
        torch.nn.functional.cross_entropy(head(hidden, inputs["attention_mask"]), tokens.targets[:16]).backward()
        torch.nn.utils.clip_grad_norm_([*modules, *head.parameters()], 0.5)
        optimizer.step()


def test_dropout_is_off_by_default_and_reaches_attention_when_asked() -> None:
    tokens, curves = some_tokens(32), []
    for dropout in (0.0, 0.0, 0.5):
        model = models.tiny_model("bert", torch.float32)
        torch.manual_seed(0)
        injection = inject(model, Configuration((Placement(Slot("encoder", 1, "ffn"), SerialAdapter(4)),)))
        head = HeadLayer(Head(), models.WIDTH, 2, StockHead("", "", "tanh"))
        torch.manual_seed(len(curves))
        recipe = Recipe(dropout=dropout)
        events = train(Texts(model, tokens), injection, head, recipe, rows=np.arange(32), epochs=2, seed=0)
        curves.append([event.loss for event in events if isinstance(event, EpochDone)])
        assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {dropout}
    assert curves[0] == curves[1] != curves[2]


@pytest.mark.parametrize(("value", "kind"), [(float("nan"), "nan"), (float("inf"), "infinite")])
def test_a_loss_that_is_not_finite_stops_at_once(value: float, kind: str) -> None:
    model, tokens = models.tiny_model("bert", torch.float32), some_tokens(32)
    injection, head = inject(model, Configuration()), HeadLayer(Head(), models.WIDTH, 2, StockHead("", "", "tanh"))
    with torch.no_grad():
        # A bias of inf gives inf - inf = nan; two classes at -1e30 and +1e38 give a loss beyond float32.
        head.output.bias.copy_(torch.tensor([value, 0.0]) if kind == "nan" else torch.tensor([-3e38, 3e38]))
    with pytest.raises(TrainingError, match="at step 1 of 2; lower the learning rate") as caught:
        list(train(Texts(model, tokens), injection, head, Recipe(), rows=np.arange(32), epochs=2, seed=0))
    assert caught.value.kind == kind


def test_probe_finds_the_optimum_of_its_convex_problem() -> None:
    """At the optimum the gradient of mean loss + penalty |W|^2 vanishes; here for separable 2-class data."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 5, generator=generator, dtype=torch.float64)
    targets = (inputs[:, 0] + 0.3 * torch.randn(200, generator=generator, dtype=torch.float64) > 0).long()
    head = HeadLayer(Head(), 5, 2, StockHead("", "", "tanh")).double()
    loss = fit_probe(head, inputs, targets, seed=0)
    accuracy = ((inputs @ head.output.weight.T + head.output.bias).argmax(1) == targets).double().mean().item()
    assert accuracy > 0.85
    assert loss < 0.35
    logits = inputs @ head.output.weight.T + head.output.bias
    data_gradient = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, targets), head.output.weight)[0]
    residuals = [(data_gradient + 2 * p * head.output.weight).abs().max().item() for p in PENALTIES]
    assert min(residuals) < 1e-7
    assert sorted(residuals)[1] > 1e-5  # the other penalties are told apart


@pytest.fixture
def setting(backbone: Path, tmp_path: Path) -> Setting:
    rng = np.random.default_rng(0)
    path = tmp_path / "reviews.csv"
    lines = ["text,label"]
    for i in range(200):
        words = [WORDS[j] for j in rng.integers(0, len(WORDS), size=5)] + [str(i)]
        lines.append(f"{' '.join(words)},{'yes' if words.count('good') >= 1 else 'no'}")
    path.write_text("\n".join(lines))
    task = tasks.load(str(path), text="text", label="label")
    described = describe_backbone(str(backbone))
    return Setting(described, task.source, task.to_dict(), task.rows, recipe=Recipe(batch_size=16, max_length=40))


MIXED = Configuration(
    (
        Placement(Slot("encoder", 0, "attention"), Prefix(3, mlp=8), "p"),
        Placement(Slot("encoder", 1, "ffn"), SerialAdapter(4)),
        Placement(Slot("encoder", 1, "attention.query"), Lora(2)),
    ),
    Training(1e-2),
)


def job(setting: Setting, configuration: Configuration = MIXED, seed: int = 0, **changes: object) -> Job:
    return replace(Job(0, configuration, Budget(0, 3), seed, setting, ("validation", "selection")), **changes)  # type: ignore[arg-type]


def test_the_same_job_gives_the_same_bytes_whatever_ran_before(setting: Setting) -> None:
    first = worker.evaluate(job(setting))
    worker.evaluate(
        job(setting, Configuration((Placement(Slot("backbone", 0, "all"), FullFineTuning()),), Training(1e-3)))
    )
    other = worker.evaluate(job(setting, seed=1))
    again = worker.evaluate(job(setting))
    assert again.files == first.files
    assert again.objectives["quality"] == first.objectives["quality"]
    assert again.detail == first.detail
    assert other.files != first.files


def test_an_outcome_says_what_was_measured(setting: Setting) -> None:
    outcome = worker.evaluate(job(setting))
    stored = MIXED.count(setting.backbone.shape).stored
    assert outcome.objectives["parameters"] == stored
    assert outcome.objectives["quality"] == outcome.detail["scores"]["validation"]
    assert set(outcome.detail["scores"]) == {"validation", "selection"}
    assert len(outcome.detail["curve"]) == 3
    assert outcome.detail["curve"][-1] < outcome.detail["curve"][0]
    assert set(outcome.files) == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert outcome.cost.cpu_seconds > 0
    assert outcome.cost.peak_bytes > 1e6


def test_saved_files_predict_what_was_scored(setting: Setting, tmp_path: Path) -> None:
    outcome = worker.evaluate(job(setting))
    for name, content in outcome.files.items():
        (tmp_path / name).write_bytes(content)
    adapter = adapters.load(tmp_path)
    task = tasks.load_source(setting.source, rows=setting.rows)
    split = task.splits["validation"]
    predicted = adapter.predict(split.texts).labels
    truth = [task.labels[i] for i in split.targets]
    assert np.mean([p == t for p, t in zip(predicted, truth, strict=True)]) == outcome.objectives["quality"]


def test_training_learns_what_a_frozen_probe_of_this_backbone_cannot(setting: Setting) -> None:
    probe = worker.evaluate(job(setting, Configuration()))
    assert len(probe.detail["curve"]) == 1
    assert probe.objectives["parameters"] == 0
    full = Configuration((Placement(Slot("backbone", 0, "all"), FullFineTuning()),), Training(3e-3))
    tuned = worker.evaluate(job(setting, full, budget=Budget(0, 10)))
    assert tuned.objectives["quality"] > max(0.9, probe.objectives["quality"])


def test_budget_limits_the_examples(setting: Setting) -> None:
    assert worker.evaluate(job(setting, budget=Budget(40, 1))).detail["examples"] == 40
    assert worker.evaluate(job(setting, budget=Budget(10_000, 1))).detail["examples"] == setting.task["sizes"]["train"]


def test_a_failed_job_leaves_the_backbone_clean(setting: Setting) -> None:
    good = worker.evaluate(job(setting)).files
    with pytest.raises(TrainingError):
        worker.evaluate(job(setting, replace(MIXED, training=Training(1e30, 1e30))))
    assert worker.evaluate(job(setting)).files == good


def test_a_last_step_that_ruins_the_weights_is_noticed(setting: Setting) -> None:
    once = replace(MIXED, training=Training(1e30, 1e30))
    with pytest.raises(TrainingError, match="not finite after training") as caught:
        worker.evaluate(job(setting, once, budget=Budget(16, 1)))  # 16 examples, batch 16: one step, its loss is fine
    assert caught.value.kind in ("nan", "infinite")


def test_changed_data_is_refused(setting: Setting) -> None:
    worker._LOADED.clear()
    path = Path(setting.source.train)
    path.write_text(path.read_text().replace("good", "bad"))
    with pytest.raises(TrainingError, match="the data changed") as caught:
        worker.evaluate(job(setting))
    assert caught.value.kind == "refused"


def regression(backbone: Path, folder: Path, scale: float) -> Setting:
    rng = np.random.default_rng(0)
    path = folder / f"scores{scale:g}.csv"
    lines = ["text,score"]
    for i in range(240):
        words = [WORDS[j] for j in rng.integers(0, len(WORDS), size=6)] + [str(i)]
        lines.append(f"{' '.join(words)},{scale * (words.count('good') - words.count('bad') + 0.25)}")
    path.write_text("\n".join(lines))
    task = tasks.load(str(path), text="text", label="score", kind="regression", metric="r2")
    return Setting(
        describe_backbone(str(backbone)),
        task.source,
        task.to_dict(),
        task.rows,
        recipe=Recipe(batch_size=16, max_length=40),
    )


def test_regression_beats_the_mean_whatever_the_unit(backbone: Path, tmp_path: Path) -> None:
    qualities = []
    for scale in (1.0, 1000.0):
        outcome = worker.evaluate(job(regression(backbone, tmp_path, scale), budget=Budget(0, 8)))
        qualities.append(outcome.objectives["quality"])
    assert qualities[0] > 0.2  # predicting the mean has an R2 of 0
    assert qualities[1] == pytest.approx(qualities[0], abs=1e-3)


def test_two_studies_in_one_process_keep_their_own_metric(setting: Setting) -> None:
    accuracy = worker.evaluate(job(setting)).objectives["quality"]
    source = replace(setting.source, metric="matthews")
    task = tasks.load_source(source, rows=setting.rows)
    other = replace(setting, source=source, task=task.to_dict())
    assert worker.evaluate(job(other)).objectives["quality"] != accuracy
    assert worker.evaluate(job(setting)).objectives["quality"] == accuracy


def test_a_failed_trial_with_dropout_does_not_change_the_next_probe(setting: Setting) -> None:
    noisy = replace(setting, recipe=replace(setting.recipe, dropout=0.5))
    before = worker.evaluate(job(noisy, Configuration())).detail
    with pytest.raises(TrainingError):
        worker.evaluate(job(noisy, replace(MIXED, training=Training(1e30, 1e30))))
    assert worker.evaluate(job(noisy, Configuration())).detail == before


def test_weights_missing_from_a_checkpoint_are_noticed(backbone: Path, tmp_path: Path) -> None:
    shutil.copytree(backbone, tmp_path / "b")
    weights = load_file(tmp_path / "b" / "model.safetensors")
    for part, fine in (("pooler.", True), ("encoder.layer.2.", False)):
        kept = {name: tensor for name, tensor in weights.items() if not name.startswith(part)}
        save_file(kept, tmp_path / "b" / "model.safetensors", metadata={"format": "pt"})
        described = describe_backbone(str(tmp_path / "b"))
        if fine:
            torch.manual_seed(7)
            first, second = load_backbone(described), load_backbone(described)
            assert torch.equal(first.pooler.dense.weight, second.pooler.dense.weight)
        else:
            with pytest.raises(InputError, match=r"lacks 16 weights, the first is 'encoder\.layer\.2"):
                load_backbone(described)


REMOTE = """
from pathlib import Path
from transformers import BertModel
Path({mark!r}).touch()
class Marked(BertModel):
    pass
"""


@pytest.fixture
def foreign(setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    """A setting whose backbone and tokenizer bring code that leaves a mark when it is imported."""
    folder = tmp_path / "foreign"
    shutil.copytree(setting.backbone.reference, folder)
    for name, of in (
        ("config.json", {"AutoModel": "m.Marked"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["t.Marked", "t.Marked"]}),
    ):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, "auto_map": of}))
    for name in ("m", "t"):
        (folder / f"{name}.py").write_text(REMOTE.format(mark=str(tmp_path / f"{name}.ran")))
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [*sys.path])  # the cache is added to it
    return replace(setting, backbone=describe_backbone(str(folder)))


def test_code_that_comes_with_a_backbone_runs_only_where_it_is_asked_for(foreign: Setting, tmp_path: Path) -> None:
    def provenance(outcome: Outcome) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(outcome.files["adapter_config.json"])["provenance"]
        return found

    own = worker.evaluate(job(foreign))
    assert "remote_code" not in provenance(own)
    assert list(tmp_path.glob("*.ran")) == []
    trusted = worker.evaluate(job(foreign, trust_remote_code=True))
    assert provenance(trusted)["remote_code"] is True
    assert [mark.name for mark in tmp_path.glob("*.ran")] == ["m.ran"]  # the tokenizer's is never asked for
    assert worker.load_setting(foreign, trust_remote_code=True).model.__class__.__name__ == "Marked"
    assert worker.load_setting(foreign).model.__class__.__name__ == "BertModel"
    assert worker.evaluate(job(foreign)).files == own.files
    assert trusted.objectives["quality"] == own.objectives["quality"]  # what it inherits is BERT


def test_trust_where_there_is_no_code_changes_nothing(setting: Setting) -> None:
    assert worker.evaluate(job(setting, trust_remote_code=True)).files == worker.evaluate(job(setting)).files


def test_trusted_code_that_is_absent_is_refused(foreign: Setting) -> None:
    (Path(foreign.backbone.reference) / "m.py").unlink()
    with pytest.raises(InputError, match="its code cannot be used"):
        worker.evaluate(job(foreign, trust_remote_code=True))


def resident() -> int:
    """Resident bytes once all that can be given back has been given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class StopAfter(Report):
    def __init__(self, steps: int) -> None:
        self.left = steps

    def progress(self, message: str) -> None:
        pass

    def checkpoint(self, files: Mapping[str, bytes]) -> None:
        pass

    @property
    def stopping(self) -> bool:
        self.left -= 1
        return self.left == 0


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_fifty_trials_in_one_process_take_no_more_memory_than_ten(setting: Setting) -> None:
    """Trials of every kind and ending: trained, fully fine-tuned, failed, stopped, and two slower probes."""
    full = Configuration((Placement(Slot("backbone", 0, "all"), FullFineTuning()),), Training(1e-3))
    ruined = replace(MIXED, training=Training(1e30, 1e30))
    found = {}
    for i in range(1, 51):
        configuration = Configuration() if i in (2, 22) else (MIXED, full, MIXED, ruined, full)[i % 5]
        ending = (
            pytest.raises(TrainingError) if i % 5 == 3 else pytest.raises(JobStopped) if i % 5 == 4 else nullcontext()
        )
        with ending:
            few = job(setting, configuration, seed=i, budget=Budget(32, 2), checkpoint_seconds=0.0)
            worker.evaluate(few, StopAfter(2 if i % 5 == 4 else -1))
        if i in (10, 50):
            found[i] = (
                resident(),
                sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects()),
                len(gc.get_objects()),
            )
    assert found[50][0] < 1.02 * found[10][0]
    # The tiny models' share of the process is small: what is left of a trial shows as objects long before.
    assert found[50][1] == found[10][1]
    assert found[50][2] < found[10][2] + 400
