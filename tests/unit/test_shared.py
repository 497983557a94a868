"""Weights that processes share: what is mapped, that nobody writes to it, and that results are those of separate runs.

What is mapped is read from /proc, so these tests need Linux.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from autopeft import worker
from autopeft.backbones import load, load_backbone
from autopeft.backbones.shared import CACHE, SHARE, cache_folder, private_tensors, read_through, share_weights
from autopeft.configuration import Configuration, Placement, Training
from autopeft.job import Job, Outcome
from autopeft.modules import Lora
from autopeft.presets import preset
from autopeft.setting import Setting, describe_backbone
from autopeft.shapes import Slot
from autopeft.study.executors.base import Failed, Finished, Lost
from autopeft.study.executors.process import ProcessExecutor
from autopeft.trial import Budget
from tests import models
from tests.unit import shared_jobs
from tests.unit.test_adapters import backbone
from tests.unit.test_training import setting

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is mapped")
__all__ = ["backbone", "setting"]


def half(folder: Path, place: Path) -> Path:
    """Returns a copy of a backbone with weights in half precision, which have to be converted on loading."""
    place.mkdir()
    for path in folder.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    tensors = {name: t.half() if t.is_floating_point() else t for name, t in load_file(place / WEIGHTS).items()}
    save_file(tensors, place / WEIGHTS, metadata={"format": "pt"})
    return place


WEIGHTS = "model.safetensors"


def loaded(folder: Path) -> PreTrainedModel:
    return load_backbone(describe_backbone(str(folder)))


def test_a_float32_checkpoint_is_mapped_as_it_is(backbone: Path) -> None:
    """What transformers does; if a release stopped mapping, each worker would hold all weights for itself."""
    model = loaded(backbone)
    assert sum(t.numel() for t in model.parameters()) > 10_000
    assert not [name for name, _ in model.named_parameters() if name in private_tensors(model)]
    assert share_weights(model, "key", folder=backbone / "none", least=1 << 20) == 0
    assert not (backbone / "none").exists()


def test_all_weights_count_from_the_beginning_whichever_layers_run(tmp_path: Path) -> None:
    """Mapped pages are a process's memory once read: what ran before must not tell in what a trial is charged."""
    path = tmp_path / "many.safetensors"
    save_file({"weight": torch.zeros(1 << 22)}, path)
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(load_file(path)["weight"])
    assert resident(path) < 1 << 20
    read_through(module)
    assert resident(path) >= 1 << 24


def test_a_loaded_backbone_has_been_read_through(backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[torch.nn.Module] = []
    monkeypatch.setattr(load, "read_through", read.append)
    model = loaded(backbone)
    assert [id(other) for other in read] == [id(model)]


def resident(path: Path) -> int:
    """Returns the bytes of a mapped file that are in this process's memory."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    places = [i for i, line in enumerate(lines) if line.endswith(str(path))]
    return sum(1024 * int(next(x for x in lines[i:] if x.startswith("Rss:")).split()[1]) for i in places)


def test_converted_weights_are_put_into_one_file_that_others_map(backbone: Path, tmp_path: Path) -> None:
    folder, place = half(backbone, tmp_path / "half"), tmp_path / "cache"
    first, second = loaded(folder), loaded(folder)
    before, identities = shared_jobs.digest(first), [id(p) for p in first.parameters()]
    private = private_tensors(first)
    assert {name for name, _ in first.named_parameters()} <= set(private)
    assert share_weights(first, "key", folder=place, least=0) == sum(t.nbytes for t in private.values())
    (file,) = place.rglob("*.raw")
    written = file.stat().st_mtime_ns, file.stat().st_ino
    assert share_weights(second, "key", folder=place, least=0) > 0
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == written
    for model in (first, second):
        assert not private_tensors(model)
        assert shared_jobs.digest(model) == before
        assert all(p.data_ptr() % 64 == 0 and p.is_contiguous() for p in model.parameters())
    assert [id(p) for p in first.parameters()] == identities
    with torch.no_grad():  # even who writes to them changes nobody else's weights
        first.embeddings.word_embeddings.weight.zero_()
    assert shared_jobs.digest(second) == before
    assert shared_jobs.digest(loaded(folder)) == before


@pytest.mark.parametrize("damage", ["changed", "cut", "folder"])
def test_a_file_that_holds_something_else_is_made_anew(backbone: Path, tmp_path: Path, damage: str) -> None:
    folder, place = half(backbone, tmp_path / "half"), tmp_path / "cache"
    first = loaded(folder)
    before = shared_jobs.digest(first)
    share_weights(first, "key", folder=place, least=0)
    (file,) = place.rglob("*.raw")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.unlink()
    if damage == "folder":
        file.mkdir()
    else:
        file.write_bytes(content if damage == "changed" else content[:-64])
    second = loaded(folder)
    shared = share_weights(second, "key", folder=place, least=0)
    assert (shared > 0) == (damage != "folder")  # where no file can be made the weights stay where they are
    assert shared_jobs.digest(second) == shared_jobs.digest(first) == before


def test_tied_tensors_stay_one_tensor(tmp_path: Path) -> None:
    model = models.tiny_model("bert", torch.float32)
    model.pooler.dense.weight = model.encoder.layer[0].attention.output.dense.weight
    before = shared_jobs.digest(model)
    share_weights(model, "key", folder=tmp_path, least=0)
    assert model.pooler.dense.weight is model.encoder.layer[0].attention.output.dense.weight
    assert not private_tensors(model)
    assert shared_jobs.digest(model) == before
    (file,) = tmp_path.rglob("*.raw")
    sizes = {id(t): -(-t.nbytes // 64) * 64 for t in (*model.parameters(), *model.buffers())}
    assert file.stat().st_size == sum(sizes.values())


def test_the_cache_folder_can_be_named_or_turned_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder("states", {CACHE: str(tmp_path)}) == tmp_path / "states"
    assert cache_folder("states", {"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "autopeft" / "states"
    monkeypatch.setenv(CACHE, str(tmp_path))
    monkeypatch.setenv(SHARE, "off")
    model = models.tiny_model("bert", torch.float32)
    assert share_weights(model, "key", least=0) == 0
    assert private_tensors(model)
    assert not list(tmp_path.iterdir())


def test_weights_are_not_mapped_where_others_may_write(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights").chmod(0o770)
    model = models.tiny_model("bert", torch.float32)
    assert share_weights(model, "key", folder=tmp_path, least=0) == 0
    (tmp_path / "weights").chmod(0o700)
    assert share_weights(model, "key", folder=tmp_path, least=0) > 0


def configurations(setting: Setting) -> dict[str, Configuration]:
    shape = setting.backbone.shape
    slots = [Slot("encoder", i, f"attention.{site}") for i in range(3) for site in ("query", "value")]
    lora = Configuration(tuple(Placement(slot, Lora(2)) for slot in slots), Training(1e-2))
    return {"lora": lora, **{name: preset(name, shape, 1e-2) for name in ("bitfit", "layer_norm", "full")}}


def outcomes(executor: ProcessExecutor, jobs: list[Job]) -> Iterator[Outcome]:
    """Runs jobs at once and yields their outcomes in order of number."""
    for job in jobs:
        executor.submit(job)
    found: dict[int, Outcome] = {}
    while len(found) < len(jobs):
        for event in executor.poll(60):
            assert not isinstance(event, Failed | Lost), event
            if isinstance(event, Finished):
                found[event.number] = event.outcome
    yield from (found[number] for number in sorted(found))


@pytest.mark.parametrize("converted", [False, True])
def test_trials_side_by_side_on_shared_weights_equal_separate_runs(
    setting: Setting, backbone: Path, tmp_path: Path, converted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, adapters included; nobody writes a byte of the weights, in memory or on disk."""
    if converted:
        described = describe_backbone(str(half(backbone, tmp_path / "half")))
        setting = replace(setting, backbone=described)
        monkeypatch.setenv(shared_jobs.SHARE, str(tmp_path / "cache"))
        (tmp_path / "cache").mkdir()
    lora, *others = configurations(setting).values()
    pairs = [pair for other in (others[:1] if converted else others) for pair in (lora, other)]
    jobs = [Job(n, configuration, Budget(64, 2), 7, setting) for n, configuration in enumerate(pairs)]
    worker._LOADED.clear()
    alone = [worker.evaluate(job) for job in jobs]
    weights = Path(setting.backbone.reference, WEIGHTS)
    on_disk = hashlib.sha256(weights.read_bytes()).hexdigest()
    (tmp_path / "together").mkdir()
    monkeypatch.setenv(shared_jobs.TOGETHER, str(tmp_path / "together"))
    executor = ProcessExecutor("tests.unit.shared_jobs:evaluate", workers=2)
    try:
        together = [o for n in range(0, len(jobs), 2) for o in outcomes(executor, jobs[n : n + 2])]
        assert len(executor.processes) == 2
    finally:
        executor.close()
    for outcome, expected in zip(together, alone, strict=True):
        assert outcome.objectives["quality"] == expected.objectives["quality"]
        assert outcome.detail["predictions"] == expected.detail["predictions"]
        assert outcome.detail["curve"] == expected.detail["curve"]
        assert outcome.files == expected.files
        assert outcome.detail["written"] == 0
        assert not [name for name in outcome.detail["private"] if not name.endswith("_ids")]
    assert len({outcome.detail[when] for outcome in together for when in ("before", "after")}) == 1
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == on_disk
    assert len({outcome.detail["curve"][-1] for outcome in alone}) == len({c.id for c in pairs})
