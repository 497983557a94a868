"""A trial stopped anywhere goes on from there, bit for bit; a checkpoint that cannot be used changes nothing."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import platform
import random
import signal
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from autopeft import worker
from autopeft.backbones import inject, load_backbone, trained_parameters
from autopeft.configuration import Configuration, Placement, Training
from autopeft.errors import StudyError
from autopeft.heads import Head
from autopeft.job import Job, JobStopped, Outcome, Report
from autopeft.modules import FullFineTuning, Lora, ParallelAdapter, Prefix, SerialAdapter
from autopeft.setting import Setting
from autopeft.shapes import Slot
from autopeft.study.executors.base import Checkpoint, Event, Failed, Finished, Lost, Progress
from autopeft.study.executors.process import ProcessExecutor
from autopeft.training import cost, course
from autopeft.training.checkpoint import STATE, TENSORS, identity_of, pack, unpack
from autopeft.training.random_states import random_states, require_random_states, seed_all, set_random_states
from autopeft.training.schedule import Schedule
from autopeft.training.state import require_fit
from autopeft.trial import Budget, Cost
from tests.unit.test_adapters import backbone
from tests.unit.test_training import regression, setting

__all__ = ["backbone", "setting"]

Files = Mapping[str, bytes]

PAPER = Configuration(
    (
        Placement(Slot("encoder", 0, "attention"), Prefix(3, mlp=8), "p"),
        Placement(Slot("encoder", 2, "attention"), Prefix(3, mlp=8), "p"),
        Placement(Slot("encoder", 1, "ffn"), SerialAdapter(4)),
        Placement(Slot("encoder", 2, "ffn"), ParallelAdapter(4)),
    ),
    Training(1e-2),
)
LORA = Configuration(
    tuple(Placement(Slot("encoder", i, f"attention.{site}"), Lora(2)) for i in range(3) for site in ("query", "value")),
    Training(1e-2),
)
FULL = Configuration((Placement(Slot("backbone", 0, "all"), FullFineTuning()),), Training(1e-3))
CONFIGURATIONS = {"paper": PAPER, "lora": LORA, "full": FULL}
EXAMPLES, EPOCHS, PER_EPOCH = 72, 3, 5  # batches of 16: four full ones and one of 8
TOTAL = EPOCHS * PER_EPOCH
POSITIONS = (1, PER_EPOCH + 2, 2 * PER_EPOCH, TOTAL)


class Listener(Report):
    """Keeps what it is told, and asks to stop after some step."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.messages: list[str] = []
        self.checkpoints: list[Files] = []
        self.asked = 0
        self._stop_after = stop_after

    def progress(self, message: str) -> None:
        self.messages.append(message)

    def checkpoint(self, files: Files) -> None:
        self.checkpoints.append(dict(files))

    @property
    def stopping(self) -> bool:
        self.asked += 1
        return self.asked == self._stop_after


def make(setting: Setting, configuration: Configuration = PAPER, seed: int = 5, **changes: Any) -> Job:
    noisy = replace(setting, recipe=replace(setting.recipe, dropout=0.2, weight_decay=0.01))
    return replace(Job(0, configuration, Budget(EXAMPLES, EPOCHS), seed, noisy), **changes)


def elsewhere() -> None:
    """Leaves nothing of this process for the next attempt: a fresh backbone, generators in some other state."""
    worker._LOADED.clear()
    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)  # noqa: NPY002


def stopped(job: Job, after: int) -> Files:
    """Runs a job until it is asked to stop, and returns what it hands over."""
    listener = Listener(after)
    with pytest.raises(JobStopped):
        worker.evaluate(job, listener)
    (files,) = listener.checkpoints
    return files


def steps(files: Files) -> int:
    return state_of(files)["epoch"] * PER_EPOCH - PER_EPOCH + state_of(files)["done"]


def state_of(files: Files) -> dict[str, Any]:
    return json.loads(files[STATE])


def without_cost(files: Files) -> tuple[dict[str, Any], bytes]:
    content = state_of(files)
    return {name: value for name, value in content.items() if name not in ("spent", "digest")}, files[TENSORS]


def same(left: Outcome, right: Outcome) -> bool:
    quality = left.objectives["quality"] == right.objectives["quality"]
    return quality and left.detail == right.detail and left.files == right.files


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_trial_stopped_anywhere_takes_the_very_steps_it_would_have_taken(setting: Setting, name: str) -> None:
    """Weights, moments, generators and losses are compared after every step, the adapter's bytes at the end."""
    job = make(setting, CONFIGURATIONS[name])
    undisturbed, every = worker.evaluate(job), Listener()
    assert same(worker.evaluate(replace(job, checkpoint_seconds=0.0), every), undisturbed)
    expected = {steps(files): without_cost(files) for files in every.checkpoints}
    assert sorted(expected) == list(range(1, TOTAL + 1))
    for position in POSITIONS:
        elsewhere()
        files = stopped(job, position)
        assert without_cost(files) == expected[position]
        elsewhere()
        rest = Listener()
        again = worker.evaluate(replace(job, checkpoint=files, checkpoint_seconds=0.0), rest)
        assert same(again, undisturbed)
        assert rest.messages[0] == f"goes on after step {position}/{TOTAL}"
        assert {steps(f): without_cost(f) for f in rest.checkpoints} == {
            step: content for step, content in expected.items() if step > position
        }


def test_a_trial_stopped_again_and_again_gives_the_same(setting: Setting) -> None:
    job = make(setting)
    files: Files = {}
    for _ in range(TOTAL):
        elsewhere()
        files = stopped(replace(job, checkpoint=files), after=1)
    assert steps(files) == TOTAL
    assert same(worker.evaluate(replace(job, checkpoint=files)), worker.evaluate(job))


def test_numbers_as_targets_go_on_too(backbone: Path, tmp_path: Path) -> None:
    job = make(regression(backbone, tmp_path, 1000.0))
    expected = worker.evaluate(job)
    for position in POSITIONS:
        files = stopped(job, position)
        elsewhere()
        assert same(worker.evaluate(replace(job, checkpoint=files)), expected)


def test_a_backbone_that_draws_from_any_generator_goes_on_alike(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def noisy(self: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        drawn = random.gauss(0, 1) + np.random.standard_normal()  # noqa: NPY002
        return x * (1 + 0.05 * drawn) if self.training else x

    monkeypatch.setattr(torch.nn.Dropout, "forward", noisy)
    job = make(setting, LORA)
    expected = worker.evaluate(job)
    elsewhere()
    files = stopped(job, PER_EPOCH + 2)
    elsewhere()
    assert same(worker.evaluate(replace(job, checkpoint=files)), expected)


def until(executor: ProcessExecutor, *kinds: type[Event]) -> list[Event]:
    """Polls until an event of one of the kinds has come; returns all that came."""
    events: list[Event] = []
    for _ in range(600):
        events += executor.poll(0.1)
        if any(isinstance(event, kinds) for event in events):
            return events
    raise AssertionError(f"no {kinds} in a minute; came: {events}")


def test_stopped_in_one_process_and_killed_in_the_next_it_ends_in_a_third(setting: Setting) -> None:
    job = make(setting, budget=Budget(EXAMPLES, 40), checkpoint_seconds=0.02)
    executor = ProcessExecutor("autopeft.worker:evaluate")
    try:
        executor.submit(job)
        until(executor, Checkpoint)  # it is in the middle of its training
        executor.stop(job.number)
        *_, kept, lost = until(executor, Finished, Failed, Lost)
        assert isinstance(kept, Checkpoint), kept
        assert isinstance(lost, Lost), lost
        assert lost.stopped
        (first,) = executor.processes
        os.kill(first, signal.SIGKILL)
        executor.submit(replace(job, checkpoint=kept.files))
        told = until(executor, Checkpoint)
        assert first not in executor.processes
        executor.kill(job.number)
    finally:
        executor.close()
    going_on = f"goes on after step {steps(kept.files)}/{40 * PER_EPOCH}"
    assert going_on in [event.message for event in told if isinstance(event, Progress)]
    last = [event for event in told if isinstance(event, Checkpoint)][-1]
    assert steps(kept.files) < steps(last.files) < 40 * PER_EPOCH
    assert same(worker.evaluate(replace(job, checkpoint=last.files)), worker.evaluate(job))


# -- when --


def test_nothing_is_kept_where_nobody_asks(setting: Setting) -> None:
    listener = Listener()
    worker.evaluate(make(setting), listener)
    assert listener.checkpoints == []
    assert listener.asked == TOTAL


def test_it_tells_where_it_is_and_not_more_than_once_a_second(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(x / 4 for x in range(10_000))  # a quarter of a second per look at the clock
    monkeypatch.setattr(course.time, "monotonic", lambda: next(clock))
    listener = Listener()
    worker.evaluate(make(setting), listener)
    told = [m for m in listener.messages if m.startswith("epoch")]
    assert told == [f"epoch {math.ceil(s / PER_EPOCH)}/{EPOCHS}, step {s}/{TOTAL}" for s in range(1, TOTAL + 1, 4)]


def test_a_long_training_is_kept_once_more_before_it_is_scored(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each, expected in ((1.0, [4, 8, 12, TOTAL]), (4.0, [])):  # 15 steps take 3.75 s
        seconds = iter(x / 4 for x in range(10_000))
        monkeypatch.setattr(course.time, "monotonic", lambda seconds=seconds: next(seconds))
        listener = Listener()
        worker.evaluate(make(setting, checkpoint_seconds=each), listener)
        assert [steps(files) for files in listener.checkpoints] == expected


def test_the_frozen_probe_neither_keeps_nor_reads_a_checkpoint(setting: Setting) -> None:
    job, listener = make(setting, Configuration()), Listener(1)
    expected = worker.evaluate(job)
    assert same(worker.evaluate(replace(job, checkpoint={"x": b""}, checkpoint_seconds=0.0), listener), expected)
    assert listener.checkpoints == []


def test_the_cost_of_what_is_not_done_again_is_added(setting: Setting) -> None:
    job = make(setting)
    state, spent, _ = unpack(stopped(job, TOTAL), identity_of(job))
    assert spent.cpu_seconds > 0
    files = pack(state, identity_of(job), Cost(1e6, 2e6, 1 << 60))
    outcome = worker.evaluate(replace(job, checkpoint=files))
    assert outcome.cost.cpu_seconds > 1e6
    assert 2e6 < outcome.objectives["seconds"] < outcome.cost.seconds
    assert outcome.cost.peak_bytes == outcome.objectives["memory"] == 1 << 60
    fresh = worker.evaluate(replace(job, checkpoint={**files, TENSORS: b""}))  # it counts only where it is used
    assert fresh.cost.cpu_seconds < 1e6


def test_a_stopped_meter_measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(cost.time, "perf_counter", lambda: clock[0])
    meter = cost.Meter()
    clock[0] += 2
    with meter.stopped() as spent:
        clock[0] += 5
    clock[0] += 3
    assert spent.seconds == 2
    assert meter.read().seconds == 5


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators keep what is freed as they like")
def test_what_others_have_freed_is_not_in_the_peak() -> None:
    blocks = [bytearray(1 << 14) for _ in range(1 << 13)]  # 128 MB, in blocks too small for mappings of their own
    pins = [bytearray(1 << 14)]  # the heap cannot shrink from its end
    held = cost.Meter().read().peak_bytes
    del blocks
    assert held - cost.Meter().read().peak_bytes > 100e6
    assert pins


# -- checkpoints that cannot be used --


def sealed(content: Mapping[str, Any], weights: bytes | None, files: Files) -> dict[str, bytes]:
    """Files changed by someone who knows how they are checked."""
    tensors = files[TENSORS] if weights is None else weights
    changed = {**content, "sha256": hashlib.sha256(tensors).hexdigest()}
    changed.pop("digest", None)
    text = json.dumps(changed, sort_keys=True, separators=(",", ":"))
    return {
        STATE: json.dumps({**changed, "digest": hashlib.sha256(text.encode()).hexdigest()}).encode(),
        TENSORS: tensors,
    }


def with_state(**changes: Any) -> Callable[[Files], Files]:
    return lambda files: sealed({**state_of(files), **changes}, None, files)


def with_inner(name: str, **changes: Any) -> Callable[[Files], Files]:
    return lambda files: sealed({**state_of(files), name: {**state_of(files)[name], **changes}}, None, files)


def with_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Files], Files]:
    def changed(files: Files) -> Files:
        tensors = load_tensors(files[TENSORS])
        change(tensors)
        return sealed({**state_of(files), "names": sorted(tensors)}, save_tensors(tensors), files)

    return changed


def with_raw_tensors(raw: Callable[[bytes], bytes]) -> Callable[[Files], Files]:
    return lambda files: sealed(state_of(files), raw(files[TENSORS]), files)


def flipped(raw: bytes) -> bytes:
    middle = len(raw) // 2
    return raw[:middle] + bytes([raw[middle] ^ 4]) + raw[middle + 1 :]


A_WEIGHT = "weights.encoder.1.ffn.serial_adapter.down.weight"
A_SQUARE = A_WEIGHT.replace("weights", "exp_avg_sq")
A_STEP = A_WEIGHT.replace("weights", "step")


def numpy_at(position: int) -> Callable[[Files], Files]:
    def changed(files: Files) -> Files:
        content = state_of(files)
        content["numpy"]["state"]["pos"] = position
        return sealed(content, None, files)

    return changed


UNUSABLE: dict[str, tuple[Callable[[Files], Files], str]] = {
    "no state": (lambda f: {TENSORS: f[TENSORS]}, "has the files"),
    "a third file": (lambda f: {**f, "../x": b""}, "has the files"),
    "truncated state": (lambda f: {**f, STATE: f[STATE][:-7]}, "damaged"),
    "flipped state": (lambda f: {**f, STATE: flipped(f[STATE])}, "damaged|cannot be read"),
    "empty state": (lambda f: {**f, STATE: b""}, "damaged"),
    "no text": (lambda f: {**f, STATE: b"\xff\xfe\x00"}, "damaged"),
    "a list": (lambda f: {**f, STATE: b"[]"}, "damaged: no object"),
    "deep": (lambda f: {**f, STATE: b"[" * 1_000_000}, "damaged"),
    "long": (lambda f: {**f, STATE: b" " * (5 << 20)}, "too many"),
    "long number": (lambda f: {**f, STATE: b'{"format": 1, "x": ' + b"9" * 100_000 + b"}"}, "damaged"),
    "no number": (lambda f: {**f, STATE: f[STATE].replace(b'"summed": ', b'"summed": NaN, "x": ')}, "damaged"),
    "later format": (with_state(format=3), "format 3 is not known"),
    "truncated tensors": (lambda f: {**f, TENSORS: f[TENSORS][:-9]}, "damaged"),
    "flipped tensors": (lambda f: {**f, TENSORS: flipped(f[TENSORS])}, "damaged"),
    "empty tensors": (with_raw_tensors(lambda raw: b""), "cannot be read"),
    "huge header": (with_raw_tensors(lambda raw: struct.pack("<Q", 1 << 60) + raw[8:]), "a header of"),
    "broken header": (with_raw_tensors(lambda raw: raw[:9] + b"}" + raw[10:]), "cannot be read"),
    "other names": (with_state(names=["a"]), "other tensors"),
    "missing tensor": (with_tensors(lambda t: t.pop(A_WEIGHT)), "the tensor is missing"),
    "missing moment": (with_tensors(lambda t: t.pop(A_SQUARE)), "the tensor is missing"),
    "missing generator": (with_tensors(lambda t: t.pop("generators.torch")), "a field is missing"),
    "extra tensor": (with_tensors(lambda t: t.update({"weights.x": torch.zeros(1)})), "belong to nothing"),
    "wrong type": (with_tensors(lambda t: t.update({A_WEIGHT: t[A_WEIGHT].double()})), "float64"),
    "wrong shape": (with_tensors(lambda t: t.update({A_WEIGHT: t[A_WEIGHT].flatten()})), "of shape"),
    "not finite": (with_tensors(lambda t: t[A_WEIGHT].fill_(math.nan)), "no run goes on from"),
    "below zero": (with_tensors(lambda t: t[A_SQUARE].fill_(-1)), "no run goes on from"),
    "more steps": (with_tensors(lambda t: t[A_STEP].fill_(1000)), "1000 steps of 7"),
    "short generator": (with_tensors(lambda t: t.update({"generators.torch": t["generators.torch"][:9]})), "generator"),
    "numbers as generator": (with_tensors(lambda t: t.update({"generators.torch": torch.zeros(5056)})), "generator"),
    "a device more": (with_tensors(lambda t: t.update({"generators.cuda.0": torch.zeros(16).byte()})), "CUDA devices"),
    "other rates": (with_inner("schedule", warmup=1000), "made for"),
    "more schedule": (with_inner("schedule", x=1), "a field is missing or of the wrong type"),
    "after the end": (with_state(epoch=EPOCHS + 1), "no step"),
    "before the start": (with_state(done=0), "no step"),
    "a long curve": (with_state(curve=[1.0] * 9), "losses"),
    "true": (with_state(epoch=True), "no whole number"),
    "no sum": (with_state(summed="1"), "no finite number"),
    "another generator": (with_inner("order", bit_generator="MT19937"), "generator"),
    "a word too long": (with_inner("order", uinteger=1 << 40), "generator"),
    "half a generator": (with_state(python=[3, [1, 2], None]), "generator"),
    "beyond the key": (numpy_at(1 << 30), "position in it"),
    "before the key": (numpy_at(-5), "position in it"),
    "cost below zero": (with_inner("spent", seconds=-1), "a cost below 0"),
    "no job": (with_state(identity=None), "which job"),
    "other seed": (with_inner("identity", seed=6), "a job with seed 6, this one has 5"),
    "other configuration": (with_inner("identity", configuration=LORA.id), "configuration"),
    "other budget": (with_inner("identity", budget={"examples": 72, "epochs": 4}), "epochs': 4"),
    "other setting": (with_inner("identity", setting="0" * 64), "setting"),
    "other torch": (with_inner("identity", versions={"torch": "1.0"}), "versions"),
}


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    """What all cases share, made once: the first one fills it."""
    return {}


@pytest.fixture
def case(setting: Setting, kept: dict[str, Any]) -> Iterator[tuple[Job, Files, Callable[[Files], None]]]:
    """A job, its checkpoint after 7 steps, and a function that raises unless the job can go on from some files."""
    if not kept:
        kept["job"] = make(setting)
        kept["files"] = stopped(kept["job"], 7)
        kept["model"] = load_backbone(setting.backbone)
    job: Job = kept["job"]
    injection = inject(kept["model"], job.configuration)
    head = worker.build_head(Head(), kept["model"], 2)
    schedule = Schedule.of(EXAMPLES, EPOCHS, job.setting.recipe)

    def usable(files: Files) -> None:
        state, _, _ = unpack(files, identity_of(job))
        require_fit(state, trained_parameters(injection, head), schedule)

    yield job, kept["files"], usable
    injection.eject()


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_cannot_be_used_is_refused_and_says_why(case: Any, name: str) -> None:
    _, files, usable = case
    usable(files)
    change, words = UNUSABLE[name]
    with pytest.raises(StudyError, match=words):
        usable(change(files))


@pytest.mark.parametrize(
    "name", ["deep", "huge header", "flipped tensors", "other seed", "not finite", "beyond the key"]
)
def test_a_trial_whose_checkpoint_cannot_be_used_begins_anew_and_says_so(setting: Setting, name: str) -> None:
    job, listener = make(setting, checkpoint={}), Listener()
    change, _ = UNUSABLE[name]
    bad = change(stopped(job, 7))
    assert same(worker.evaluate(replace(job, checkpoint=bad), listener), worker.evaluate(job))
    assert listener.messages[0].startswith("begins anew, the checkpoint cannot be used: ")
    assert listener.asked == TOTAL


def test_a_checkpoint_of_another_job_is_not_used(setting: Setting) -> None:
    job = make(setting)
    others = (
        replace(job, seed=6),
        replace(job, budget=Budget(EXAMPLES, 4)),
        make(setting, replace(PAPER, training=Training(2e-2))),
        replace(job, setting=replace(job.setting, recipe=replace(job.setting.recipe, clip=0.5))),
        replace(job, trust_remote_code=not job.trust_remote_code),
    )
    for other in others:
        with pytest.raises(StudyError, match="the checkpoint is of a job with"):
            unpack(stopped(other, 2), identity_of(job))


LEAVES = (None, True, "", "x", -1, 0, 1, 2**31, 2**70, -(2**70), 0.5, 1e308, [], {}, [[]], {"x": 1})


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from paths(inner, (*path, key))
    elif isinstance(value, list):
        for index in {0, 1, len(value) - 1} & set(range(len(value))):
            yield from paths(value[index], (*path, index))


def test_any_field_may_hold_anything_and_is_refused_or_harmless(case: Any) -> None:
    """Every field, one at a time, takes every odd value: only StudyError may come of it, or a state that can be set."""
    job, files, usable = case
    content, tried, refused = state_of(files), 0, 0
    for path in paths(content):
        for leaf in LEAVES:
            changed = copy.deepcopy({"": content})
            inner: Any = changed
            for key in ("", *path)[:-1]:
                inner = inner[key]
            inner[("", *path)[-1]] = leaf
            if not isinstance(changed[""], dict):
                continue
            tried += 1
            bad = sealed(changed[""], None, files)
            try:
                usable(bad)
                set_random_states(unpack(bad, identity_of(job))[0].random)
                torch.rand(3), random.random(), np.random.standard_normal(700)  # noqa: NPY002
            except StudyError:
                refused += 1
    assert tried > 800
    assert refused > 0.8 * tried
    seed_all(0)


def test_states_of_generators_are_tried_where_they_do_no_harm() -> None:
    seed_all(3)
    taken = random_states()
    drawn = torch.rand(3), random.random(), np.random.standard_normal(3)  # noqa: NPY002
    now = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    require_random_states(taken)
    assert torch.equal(torch.get_rng_state(), now[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == now[1:]  # noqa: NPY002
    set_random_states(taken)
    assert torch.equal(torch.rand(3), drawn[0])
    assert random.random() == drawn[1]
    assert np.array_equal(np.random.standard_normal(3), drawn[2])  # noqa: NPY002
