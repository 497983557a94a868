"""Hidden states kept between trials: the same training, the same bytes wherever they are, no harm from disks."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autopeft import processor, worker
from autopeft.backbones import inject
from autopeft.backbones.shared import CACHE, share_weights
from autopeft.configuration import Configuration, Placement, Training
from autopeft.errors import InputError
from autopeft.families import StockHead
from autopeft.heads import Head
from autopeft.heads.layer import HeadLayer
from autopeft.job import Job, Outcome
from autopeft.modules import FullFineTuning, Lora, ParallelAdapter, Prefix, SerialAdapter
from autopeft.setting import Recipe, Setting
from autopeft.shapes import Slot
from autopeft.training import state_cache, state_files, states
from autopeft.training.batches import Tokens
from autopeft.training.loop import EpochDone, train
from autopeft.training.sources import Texts
from autopeft.training.state_cache import StateCache, cache_of
from autopeft.training.state_files import Put, StateFiles
from autopeft.training.states import Cached, compute, obstacle, reuse
from autopeft.trial import Budget
from tests import models
from tests.unit.test_adapters import backbone
from tests.unit.test_checkpoints import Listener, stopped
from tests.unit.test_training import setting, some_tokens

__all__ = ["backbone", "setting"]

HIGH = Configuration(
    (
        Placement(Slot("encoder", 1, "attention"), Prefix(3)),
        Placement(Slot("encoder", 2, "ffn"), SerialAdapter(4)),
        Placement(Slot("encoder", 2, "ffn"), ParallelAdapter(4)),
        Placement(Slot("encoder", 2, "attention.query"), Lora(2)),
    ),
    Training(1e-2),
)
TOP = Configuration((Placement(Slot("encoder", 2, "attention.value"), Lora(2)),), Training(1e-2))
FULL = Configuration((Placement(Slot("backbone", 0, "all"), FullFineTuning()),), Training(1e-3))


def job(setting: Setting, configuration: Configuration = HIGH, **changes: Any) -> Job:
    cached = replace(setting, recipe=replace(setting.recipe, cache=True))
    return replace(Job(0, configuration, Budget(0, 2), 3, cached, ("validation", "selection")), **changes)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own for each test; the process's cache of another folder is another cache."""
    monkeypatch.setenv(CACHE, str(tmp_path))
    monkeypatch.delenv(state_cache.MEMORY, raising=False)
    monkeypatch.delenv(state_cache.DISK, raising=False)
    return tmp_path / "states"


def result(outcome: Outcome) -> tuple[Any, ...]:
    return dict(outcome.files), outcome.objectives["quality"], dict(outcome.detail)


# -- the source --


def held(model: Any, tokens: Tokens, layer: int) -> torch.Tensor:
    array = torch.full((int(tokens.starts[-1]), models.WIDTH), torch.nan, dtype=model.dtype)

    def put(first: int, rows: torch.Tensor) -> None:
        array[first : first + len(rows)] = rows

    compute(model, tokens, layer, put)
    return array


@pytest.mark.parametrize("family", models.FAMILIES)
def test_states_of_all_texts_are_those_of_each_text_alone(family: str) -> None:
    """Reference: transformers' own hidden states of one text without padding; the last are those after all layers."""
    tokens, model = some_tokens(9), models.tiny_model(family)
    arrays = [held(model, tokens, layer) for layer in range(models.LAYERS + 1)]
    for row in range(len(tokens)):
        start, stop = tokens.starts[row : row + 2]
        alone = model(input_ids=tokens.ids[start:stop][None], output_hidden_states=True)
        expected = [*alone.hidden_states[:-1], alone.last_hidden_state]
        for array, one in zip(arrays, expected, strict=True):
            assert (array[start:stop] - one[0]).abs().max() < 1e-9


@pytest.mark.parametrize("layer", range(1, models.LAYERS + 1))
@pytest.mark.parametrize("family", models.FAMILIES)
def test_a_cached_batch_is_the_batch(family: str, layer: int) -> None:
    tokens, model = some_tokens(40), models.tiny_model(family)
    rows = np.array([7, 3, 3, 39, 0])
    kept = Cached(model, tokens, layer, held(model, tokens, layer))
    whole, partial = Texts(model, tokens).hidden(rows), kept.hidden(rows)
    mask = whole.mask.bool()
    assert torch.equal(whole.mask, partial.mask)
    assert (whole.last[mask] - partial.last[mask]).abs().max() < 1e-9


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_fifty_steps_of_training_have_the_same_losses(family: str) -> None:
    losses = []
    for layer in (None, 1):
        model, tokens = models.tiny_model(family, torch.float32), some_tokens(40)
        source = Texts(model, tokens) if layer is None else Cached(model, tokens, layer, held(model, tokens, layer))
        torch.manual_seed(0)
        injection = inject(model, replace(HIGH, training=Training(1e-3)))
        head = HeadLayer(Head(), models.WIDTH, 2, StockHead("", "", "tanh"))
        events = train(source, injection, head, Recipe(batch_size=8), rows=np.arange(40), epochs=10, seed=0)
        losses.append([event.loss for event in events if isinstance(event, EpochDone)])
    assert abs(np.mean(losses[0]) - np.mean(losses[1])) < 1e-6
    assert losses[0][-1] < losses[0][0]
    assert losses[0] != [losses[0][0]] * 10


# -- a trial --


def test_a_trial_is_the_same_to_the_last_bit_wherever_its_states_are(
    setting: Setting, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = worker.evaluate(job(setting))
    assert computed.detail["cache"] == {"layer": 1, "splits": ["selection", "train", "validation"]}
    assert len(list(folder.glob("*.states"))) == 3
    monkeypatch.setattr(states, "states_at", None)  # from here on nothing may be computed anew
    assert result(worker.evaluate(job(setting))) == result(computed)
    state_cache._CACHES.clear()
    assert result(worker.evaluate(job(setting))) == result(computed)
    monkeypatch.undo()
    monkeypatch.setenv(CACHE, str(folder.parent))
    monkeypatch.setenv(state_cache.DISK, "0")
    in_memory = worker.evaluate(job(setting))
    monkeypatch.setattr(states, "states_at", None)
    again = worker.evaluate(job(setting))
    assert result(in_memory) == result(again) == result(computed)


def test_another_process_reads_what_this_one_wrote_and_trains_the_same(setting: Setting, folder: Path) -> None:
    mine = worker.evaluate(job(setting))
    before = {path.name: path.read_bytes() for path in folder.glob("*.states")}
    code = (
        "import json, sys, hashlib; from dataclasses import replace; from autopeft import worker\n"
        "from autopeft.training import states; from autopeft.setting import Setting\n"
        "from tests.unit.test_states import HIGH; from autopeft.job import Job; from autopeft.trial import Budget\n"
        "states.states_at = None\n"
        "setting = Setting.from_dict(json.load(sys.stdin))\n"
        "files = worker.evaluate(Job(0, HIGH, Budget(0, 2), 3, setting, ('validation', 'selection'))).files\n"
        "print(hashlib.sha256(files['adapter_model.safetensors']).hexdigest())"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(job(setting).setting.to_dict()),
        capture_output=True,
        text=True,
        # The folder of the run's own conftest goes with that process; this test's folder is asked for by name.
        env={**os.environ, CACHE: str(folder.parent), "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split()[-1] == hashlib.sha256(mine.files["adapter_model.safetensors"]).hexdigest()
    assert {path.name: path.read_bytes() for path in folder.glob("*.states")} == before


def test_a_trial_is_the_same_whoever_asked_first_and_what_ran_before(setting: Setting, folder: Path) -> None:
    first = worker.evaluate(job(setting, TOP))
    for path in folder.glob("*"):
        path.unlink()
    worker.evaluate(job(setting, HIGH))
    worker.evaluate(job(setting, FULL))
    assert result(worker.evaluate(job(setting, TOP))) == result(first)
    assert len({path.stem for path in folder.glob("*.states")}) == 6  # three splits at layers 1 and 2


def test_a_trial_that_goes_on_from_a_checkpoint_is_the_same(setting: Setting) -> None:
    whole = worker.evaluate(job(setting))
    files = stopped(job(setting), after=5)
    rest = Listener()
    assert result(worker.evaluate(job(setting, checkpoint=files), rest)) == result(whole)
    assert any(message.startswith("goes on after step 5/") for message in rest.messages)


def test_the_cache_changes_a_trial_by_rounding_only(setting: Setting) -> None:
    kept, plain = worker.evaluate(job(setting)), worker.evaluate(replace(job(setting), setting=setting))
    assert "cache" not in plain.detail
    assert np.abs(np.subtract(kept.detail["curve"], plain.detail["curve"])).max() < 1e-6
    assert kept.objectives["parameters"] == plain.objectives["parameters"]


@pytest.mark.parametrize("kind", ["cls", "transformers"])
def test_a_head_on_the_first_position_is_trained_the_same(setting: Setting, kind: Any) -> None:
    first = replace(setting, head=Head(kind))
    for configuration in (TOP, Configuration(), FULL):
        kept = worker.evaluate(job(first, configuration))
        plain = worker.evaluate(replace(job(first, configuration), setting=first))
        assert np.abs(np.subtract(kept.detail["curve"], plain.detail["curve"])).max() < 1e-5
        assert kept.objectives["quality"] == plain.objectives["quality"]


def test_the_probe_reads_states_behind_the_last_layer(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = worker.evaluate(job(setting, Configuration()))
    assert probe.detail["cache"]["layer"] == models.LAYERS
    monkeypatch.setattr(worker.load_setting(job(setting).setting).model, "forward", None)  # no layer has to run
    assert result(worker.evaluate(job(setting, Configuration()))) == result(probe)


def test_a_trial_without_room_runs_every_layer_and_says_so(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(state_cache.DISK, "0")
    monkeypatch.setenv(state_cache.MEMORY, "0")
    outcome = worker.evaluate(job(setting))
    assert outcome.detail["cache"]["layer"] is None
    assert "no room" in outcome.detail["cache"]["reason"]
    assert np.abs(np.subtract(outcome.detail["curve"], worker.evaluate(job(setting)).detail["curve"])).max() < 1e-6


def test_a_large_split_of_which_little_is_read_is_not_computed(setting: Setting) -> None:
    outcome = worker.evaluate(job(setting, budget=Budget(16, 1)))
    size = setting.task["sizes"]["train"]
    assert outcome.detail["cache"] == {
        "layer": 1,
        "splits": ["selection", "validation"],
        "reason": f"train: 16 of {size} texts are read",
    }


def test_memory_that_holds_states_of_other_trials_is_not_charged(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(state_cache.DISK, "0")
    worker.evaluate(job(setting, TOP))
    loaded = worker.load_setting(job(setting).setting)
    splits = {name: (loaded.split(name), 1000) for name in ("train", "validation", "selection")}
    own = sum(4 * models.WIDTH * int(tokens.starts[-1]) for tokens, _ in splits.values())
    found = reuse(state_cache.cache_of_process(), loaded.model, HIGH, job(setting).setting, splits)
    assert found.idle == own
    outcome = worker.evaluate(job(setting))
    assert outcome.cost.peak_bytes - outcome.objectives["memory"] >= own


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists what a process has mapped")
def test_a_worker_between_trials_has_nothing_mapped(setting: Setting, folder: Path) -> None:
    worker.evaluate(job(setting))
    worker.evaluate(job(setting))
    assert list(folder.glob("*.states"))
    assert str(folder) not in Path("/proc/self/maps").read_text()


def test_computing_states_is_in_the_cost_and_not_in_the_seconds(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*arguments: Any) -> None:
        compute(*arguments)
        end = time.process_time() + 0.5
        while time.process_time() < end:
            pass

    monkeypatch.setattr(states, "compute", slow)
    outcome = worker.evaluate(job(setting, splits=("validation",)))
    assert outcome.cost.cpu_seconds >= 1.0  # two splits
    assert outcome.cost.seconds - outcome.objectives["seconds"] >= 1.0


@pytest.mark.parametrize(
    ("configuration", "recipe", "remote", "reason"),
    [
        (HIGH, Recipe(), False, "recipe"),
        (HIGH, Recipe(cache=True, dropout=0.1), False, "dropout 0.1"),
        (HIGH, Recipe(cache=True), True, "code that came with"),
        (FULL, Recipe(cache=True), False, "nothing lies below"),
        (HIGH, Recipe(cache=True), False, ""),
        (Configuration(), Recipe(cache=True), False, ""),
    ],
)
def test_it_is_off_where_something_below_changes(
    setting: Setting, configuration: Configuration, recipe: Recipe, remote: bool, reason: str
) -> None:
    found = obstacle(configuration, replace(setting, recipe=replace(recipe, max_length=40)), remote)
    assert reason in found
    assert bool(reason) == bool(found)


def test_dropout_turns_it_off(setting: Setting, folder: Path) -> None:
    noisy = replace(setting, recipe=replace(setting.recipe, dropout=0.2))
    outcome = worker.evaluate(job(noisy))
    assert outcome.detail["cache"]["layer"] is None
    assert "dropout" in outcome.detail["cache"]["reason"]
    assert not folder.exists()


def test_whatever_the_values_depend_on_is_in_the_key(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, asked = worker.load_setting(setting), setting
    tokens, other = loaded.split("train"), loaded.split("validation")

    def key(setting: Setting = asked, tokens: Tokens = tokens, layer: int = 1) -> str:
        return json.dumps(states._key(loaded.model, setting, tokens, layer))

    keys = [
        key(),
        key(layer=2),
        key(tokens=other),
        key(tokens=replace(tokens, ids=tokens.ids.flip(0))),
        key(tokens=replace(tokens, types=torch.zeros_like(tokens.ids))),
        key(replace(setting, backbone=replace(setting.backbone, sha256="0" * 64))),
        key(replace(setting, recipe=replace(setting.recipe, threads=2))),
        key(replace(setting, recipe=replace(setting.recipe, precision="bfloat16"))),
    ]
    assert len(set(keys)) == len(keys)
    assert key(tokens=replace(tokens, targets=tokens.targets.flip(0))) == keys[0]  # the targets are not read
    assert str(setting.source.train) not in keys[0]
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(states, "identity", lambda: "another processor")
        assert key() != keys[0]
    eps = loaded.model.config.layer_norm_eps
    try:
        loaded.model.config.layer_norm_eps = 1e-3
        assert key() != keys[0]
    finally:
        loaded.model.config.layer_norm_eps = eps


CPU = """processor: {n}
vendor_id: AuthenticAMD
cpu family: 25
model: 17
model name: A
cpu MHz: {mhz}
flags: fpu avx512f
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [("AuthenticAMD", "GenuineIntel"), ("model: 17", "model: 18"), ("avx512f", "avx512f avx512_bf16"), ("A\n", "B\n")],
)
def test_a_processor_is_known_by_what_its_kernels_are_chosen_by(tmp_path: Path, before: str, after: str) -> None:
    def identity(text: str) -> str:
        (tmp_path / "cpuinfo").write_text(text)
        return processor.identity(tmp_path / "cpuinfo")

    one = CPU.format(n=0, mhz=2000)
    assert identity(one) == identity(one + CPU.format(n=1, mhz=3100.5))
    assert identity(one) != identity(one.replace(before, after))
    assert processor.identity(tmp_path / "none") == processor.identity(tmp_path / "none") != identity(one)


# -- where they are kept --


def ones(rows: int, value: float = 1.0) -> Callable[[Put], None]:
    def fill(put: Put) -> None:
        put(1, torch.full((rows - 1, 4), value))
        put(0, torch.full((1, 4), value))

    return fill


def refuse(put: Put) -> None:
    raise AssertionError("computed anew")


def files_in(folder: Path, budget: int = 1 << 20) -> StateFiles:
    return StateFiles(folder, budget)


def test_memory_keeps_what_was_used_last() -> None:
    cache = StateCache(None, 2 * 10 * 16)

    def get(name: str, fill: Callable[[Put], None]) -> torch.Tensor | None:
        return cache.get(name, {}, (10, 4), torch.float32, fill)

    for name in ("a", "b"):
        assert get(name, ones(10)) is not None
    get("a", refuse)
    get("c", ones(10))  # b leaves
    get("a", refuse)
    get("c", refuse)
    assert cache.idle(("a",)) == 160
    with pytest.raises(AssertionError, match="computed anew"):
        get("b", refuse)
    assert cache.get("d", {}, (21, 4), torch.float32, ones(21)) is None
    assert cache.idle(()) <= 320


def test_the_disk_keeps_what_was_used_last(folder: Path) -> None:
    files = files_in(folder, 2 * 160)
    for age, name in enumerate(("a", "b")):
        files.write(name, {}, (10, 4), torch.float32, ones(10))
        os.utime(folder / f"{name}.json", (1000 + age, 1000 + age))
    kept = files.read("a")
    assert files.write("c", {}, (10, 4), torch.float32, ones(10, 3.0)) is not None
    assert sorted(path.name for path in folder.iterdir()) == ["a.json", "a.states", "c.json", "c.states"]
    assert files.write("d", {}, (21, 4), torch.float32, ones(21)) is None
    files.write("e", {}, (20, 4), torch.float32, ones(20))
    assert sorted(path.name for path in folder.iterdir()) == ["e.json", "e.states"]
    assert kept is not None
    assert kept.sum() == 40  # whoever has mapped it keeps it


@pytest.fixture
def written(folder: Path) -> Path:
    files_in(folder).write("a", {"layer": 1}, (10, 4), torch.float32, ones(10))
    found = files_in(folder).read("a")
    assert found is not None
    assert torch.equal(found, torch.ones(10, 4))
    return folder


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes(content)


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def described(**changes: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path = path.with_suffix(".json")
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


DAMAGE: dict[str, Callable[[Path], None]] = {
    "a bit": flip,
    "cut": lambda path: os.truncate(path, 100),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"0000"),
    "gone": Path.unlink,
    "a link": link,
    "a folder": lambda path: (path.unlink(), path.mkdir(), None)[-1],
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path), None)[-1],
    "no JSON": lambda path: path.with_suffix(".json").write_text("{") and None,
    "another shape": described(shape=[4, 10]),
    "a huge shape": described(shape=[1 << 60, 1 << 60]),
    "a negative shape": described(shape=[-10, -4]),
    "one number": described(shape=[40]),
    "another type": described(dtype="object"),
    "another form": described(form=2),
    "another checksum": described(sha256="0" * 64),
    "no key": described(more=1),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_that_is_not_what_was_written_is_not_used(written: Path, damage: str) -> None:
    DAMAGE[damage](written / "a.states")
    found = files_in(written).read("a")
    if damage == "another shape":  # as many numbers, with their checksum: the cache asks for the shape it knows
        cache = StateCache(files_in(written), 0)
        assert cache.get("a", {}, (10, 4), torch.float32, ones(10)) is None
        return
    assert found is None
    if damage not in ("a folder",):
        again = files_in(written).write("a", {}, (10, 4), torch.float32, ones(10, 2.0))
        assert again is not None
        assert again.sum() == 80


def test_others_may_neither_read_nor_write_there(written: Path) -> None:
    assert written.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o077 for path in written.iterdir()} == {0}
    written.chmod(0o777)
    assert files_in(written).read("a") is None
    assert files_in(written).write("b", {}, (10, 4), torch.float32, refuse) is None
    written.chmod(0o700)
    assert files_in(written).read("a") is not None
    other = written.with_name("link")
    other.symlink_to(written)
    assert files_in(other).read("a") is None


def test_a_disk_that_takes_no_more_costs_the_cache_and_nothing_else(folder: Path) -> None:
    """A limit on the size of files makes the write itself fail, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    cache = StateCache(files_in(folder), 160)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        found = cache.get("a", {}, (10, 4), torch.float32, ones(10))
        assert StateCache(files_in(folder), 0).get("b", {}, (10, 4), torch.float32, ones(10)) is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert found is not None
    assert found.sum() == 40
    assert list(folder.iterdir()) == []


def test_a_computation_that_fails_leaves_no_file(folder: Path) -> None:
    with pytest.raises(AssertionError, match="computed anew"):
        files_in(folder).write("a", {}, (10, 4), torch.float32, refuse)
    assert list(folder.iterdir()) == []


def test_what_was_left_half_written_goes_after_a_day(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    for name, age in (("old.part", state_files._ABANDONED_SECONDS + 60), ("new.part", 0)):
        (folder / name).write_bytes(b"0" * 10)
        then = (folder / name).stat().st_mtime - age
        os.utime(folder / name, (then, then))
    files_in(folder).write("a", {}, (10, 4), torch.float32, ones(10))
    assert sorted(path.name for path in folder.iterdir()) == ["a.json", "a.states", "new.part"]


def test_two_that_write_the_same_at_once_both_get_it(folder: Path) -> None:
    meet, found = threading.Barrier(2), []

    def fill(put: Put) -> None:
        meet.wait(30)
        ones(1000)(put)

    def work() -> None:
        found.append(files_in(folder).write("a", {}, (1000, 4), torch.float32, fill))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [None if one is None else one.sum() for one in found] == [4000, 4000]
    last = files_in(folder).read("a")
    assert last is not None
    assert last.sum() == 4000
    assert sorted(path.name for path in folder.iterdir()) == ["a.json", "a.states"]


@pytest.mark.parametrize("made", [False, True], ids=["made by us", "made by hand"])
@pytest.mark.parametrize("mask", [0o002, 0o022, 0o000])
def test_files_are_kept_whatever_the_umask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: int, made: bool
) -> None:
    place = tmp_path / "some" / "cache"
    monkeypatch.setenv(CACHE, str(place))
    before = os.umask(mask)
    try:
        if made:
            place.mkdir(parents=True)
        assert share_weights(torch.nn.Linear(64, 64), "key", least=1) == 4 * 64 * 65
        cache = cache_of()
        assert cache.get("a", {}, (10, 4), torch.float32, ones(10)) is not None
    finally:
        os.umask(before)
    assert cache.idle(()) == 0
    assert sorted(path.name for path in place.iterdir()) == ["states", "weights"]
    modes = {path.name: path.stat().st_mode & 0o777 for path in (place.parent, place, *place.iterdir())}
    own = {"states": 0o700, "weights": 0o700}
    ours = 0o777 & ~mask if made else 0o700
    assert modes == {"some": ours, "cache": ours, **own}


def test_budgets_come_from_the_environment(tmp_path: Path) -> None:
    cache = cache_of({"AUTOPEFT_CACHE": str(tmp_path), "AUTOPEFT_CACHE_MEMORY": "1KiB", "AUTOPEFT_CACHE_DISK": "2KiB"})
    assert (cache._budget, cache._files) == (1024, StateFiles(tmp_path / "states", 2048))
    assert cache_of({"AUTOPEFT_CACHE": str(tmp_path), "AUTOPEFT_CACHE_DISK": "0"})._files is None
    default = cache_of({"XDG_CACHE_HOME": str(tmp_path)})
    assert default._budget > 1 << 20
    if default._files is not None:  # there is none on a network's disk
        assert default._files.folder == tmp_path / "autopeft" / "states"
    with pytest.raises(InputError, match=r"AUTOPEFT_CACHE_DISK: 'much' is no .*write 8GB"):
        cache_of({"AUTOPEFT_CACHE_DISK": "much"})
