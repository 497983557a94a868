"""Jobs that cost nothing: quality by a formula, and every way a job can go wrong.

The functions are named as "tests.contracts.cheap_jobs:NAME" and run in worker processes, which therefore import
little; studies of them are in `cheap_studies`.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from autopeft.configuration import Configuration, Training
from autopeft.errors import TrainingError
from autopeft.families import shape_of
from autopeft.job import SILENT, Job, JobStopped, Outcome, Report
from autopeft.setting import Backbone, Setting
from autopeft.tasks.base import TaskSource
from autopeft.trial import Budget, Cost

HERE = "tests.contracts.cheap_jobs"
ROOT = Path(__file__).resolve().parents[2]
SHAPE = shape_of(
    {
        "model_type": "bert",
        "hidden_size": 12,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "vocab_size": 100,
        "max_position_embeddings": 128,
        "type_vocab_size": 2,
    }
)
SOURCE = TaskSource(train="reviews.csv", text="review", label="stars")
TASK: Mapping[str, Any] = {
    "source": vars(SOURCE).copy(),
    "kind": "classification",
    "labels": ["bad", "good"],
    "metric": "accuracy",
    "sizes": {"train": 2, "validation": 1, "selection": 1, "test": 1},
    "fingerprint": "f" * 64,
}
ROWS = {"train": (0, 1), "validation": (2,), "selection": (3,), "test": (4,)}


def setting() -> Setting:
    return Setting(Backbone("small-bert", "0" * 64, SHAPE), SOURCE, TASK, ROWS)


def some_job(number: int = 0, rate: float = 1e-3) -> Job:
    return Job(number, Configuration((), Training(rate)), Budget(0, 1), 0, setting())


# -- jobs --


def formula(job: Job, report: Report = SILENT) -> Outcome:
    """Quality from the configuration and the seed alone; the adapter's bytes follow from both too."""
    began = time.perf_counter()
    count = job.configuration.count(SHAPE).stored
    step = math.log10(job.configuration.training.learning_rate) + 3.0
    quality = 0.9 - 0.3 / (1.0 + count / 50.0) - 0.05 * step**2 + 1e-4 * (job.seed % 97)
    seconds = time.perf_counter() - began
    return Outcome(
        {"quality": quality, "parameters": float(count), "seconds": seconds},
        Cost(seconds, seconds, 1),
        {"scores": dict.fromkeys(job.splits, quality), "threads": os.environ.get("OMP_NUM_THREADS")},
        {"adapter.safetensors": f"{job.configuration.id} {job.seed}".encode()},
    )


def slow(job: Job, report: Report = SILENT) -> Outcome:
    """Leaves its mark in the file named by CHEAP_JOBS_LOG at its start, and takes about 50 ms."""
    log(f"{job.number} {job.configuration.id} {os.getpid()}")
    time.sleep(0.05)
    return formula(job)


def log(line: str) -> None:
    path = os.environ.get("CHEAP_JOBS_LOG")
    if path:
        with Path(path).open("a") as stream:
            stream.write(line + "\n")


def reports(job: Job, report: Report = SILENT) -> Outcome:
    """Three steps, each with a line and a checkpoint that goes from one to many messages of a pipe in size."""
    for step in range(3):
        report.progress(f"step {step}")
        report.checkpoint({"step": str(step).encode(), "weights/all": bytes(1000**step)})
    return formula(job)


def until_stopped(job: Job, report: Report = SILENT) -> Outcome:
    """Counts from where its checkpoint is; without one it counts until it is asked to stop."""
    step = int(job.checkpoint.get("step", b"0"))
    deadline = time.monotonic() + 60.0
    while not job.checkpoint and time.monotonic() < deadline:
        step += 1
        report.progress(f"step {step}")
        if report.stopping:
            report.checkpoint({"step": str(step).encode()})
            raise JobStopped
        time.sleep(0.005)
    return replace(formula(job), detail={"step": step})


def stopped_only_again(job: Job, report: Report = SILENT) -> Outcome:
    """Without a checkpoint it takes 50 ms and does not listen; with one it stops at once where it is asked to."""
    if not job.checkpoint:
        time.sleep(0.05)
    elif report.stopping:
        raise JobStopped
    return formula(job)


def mixed(job: Job, report: Report = SILENT) -> Outcome:
    """By its number: silent success, success with reports, an error, no memory, no outcome."""
    kinds = (formula, reports, raise_error, raise_memory_error, return_nothing)
    return kinds[job.number % len(kinds)](job, report)


def meet(job: Job, report: Report = SILENT) -> Outcome:
    """Ends once as many jobs as CHEAP_JOBS_MEET says have begun; tells its devices and its process."""
    log(f"{job.number} {os.getpid()}")
    deadline = time.monotonic() + 60.0
    path = Path(os.environ["CHEAP_JOBS_LOG"])
    while len(path.read_text().splitlines()) < int(os.environ["CHEAP_JOBS_MEET"]):
        if time.monotonic() > deadline:
            raise TimeoutError("the others did not begin")
        time.sleep(0.01)
    return devices(job)


def devices(job: Job, report: Report = SILENT) -> Outcome:
    """Tells what its process may see of the accelerators, and its process."""
    return replace(formula(job), detail={"devices": os.environ.get("CUDA_VISIBLE_DEVICES"), "process": os.getpid()})


def hang(job: Job, report: Report = SILENT) -> Outcome:
    """Sleeps without end where no Python signal handler would be run, and says that it began."""
    log(f"{job.number} {job.configuration.id} {os.getpid()}")
    ctypes.CDLL(None).sleep(600)
    return formula(job)


def raise_error(job: Job, report: Report = SILENT) -> Outcome:
    raise ValueError(f"no weights in shard {job.number}\nsecond line")


def raise_training_error(job: Job, report: Report = SILENT) -> Outcome:
    raise TrainingError("the loss is not a number", kind="nan")


def raise_memory_error(job: Job, report: Report = SILENT) -> Outcome:
    raise MemoryError


def allocate(job: Job, report: Report = SILENT) -> Outcome:
    """Asks for 64 GiB."""
    bytearray(1 << 36)
    return formula(job)


def share_memory(job: Job, report: Report = SILENT) -> Outcome:
    """Takes 128 MiB that do not count as data, and keeps them for a minute."""
    with mmap.mmap(-1, 128 << 20) as shared:
        for _ in range(128):
            shared.write(b"x" * (1 << 20))
        time.sleep(60.0)
    return formula(job)


KEPT: list[bytes] = []


def leak(job: Job, report: Report = SILENT) -> Outcome:
    """Keeps 300 MiB from the second job of its process on; tells its process."""
    KEPT.append(b"x" * ((300 << 20) if KEPT else 1))
    return replace(formula(job), detail={"process": os.getpid()})


def outgrow(job: Job, report: Report = SILENT) -> Outcome:
    """Takes 1 GiB."""
    KEPT.append(b"x" * (1 << 30))
    return formula(job)


def stand_still(job: Job, report: Report = SILENT) -> Outcome:
    """Is stopped as by a debugger: no thread of its process runs any more."""
    os.kill(os.getpid(), signal.SIGSTOP)
    return formula(job)


def hang_with_a_child(job: Job, report: Report = SILENT) -> Outcome:
    """Starts a process that outlives it, names it in the log, and hangs."""
    child = subprocess.Popen(["sleep", "600"])
    log(f"{job.number} {os.getpid()} {child.pid}")
    time.sleep(600)
    return formula(job)


def leave_a_child(job: Job, report: Report = SILENT) -> Outcome:
    """Crashes and leaves a process that has inherited all its files."""
    child = os.fork()
    if child == 0:
        time.sleep(600)
    log(f"{job.number} {os.getpid()} {child}")
    os._exit(3)


def leave(job: Job, report: Report = SILENT) -> Outcome:
    print("the last words of the worker", file=sys.stderr, flush=True)
    os._exit(3)


def ask_to_exit(job: Job, report: Report = SILENT) -> Outcome:
    sys.exit(1)


def fault(job: Job, report: Report = SILENT) -> Outcome:
    ctypes.string_at(0)
    return formula(job)


def killed_from_outside(job: Job, report: Report = SILENT) -> Outcome:
    os.kill(os.getpid(), signal.SIGKILL)
    return formula(job)


def killed_once(job: Job, report: Report = SILENT) -> Outcome:
    """Is killed the first time it runs in the folder named by CHEAP_JOBS_LOG, and succeeds after that."""
    mark = Path(os.environ["CHEAP_JOBS_LOG"])
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return formula(job)


def return_nothing(job: Job, report: Report = SILENT) -> Outcome:
    return None  # type: ignore[return-value]


def return_a_function(job: Job, report: Report = SILENT) -> Outcome:
    """Something that can neither travel between processes nor be stored."""
    return replace(formula(job), detail={"curve": lambda: 0})


class Explosive:
    """Travels well, and raises where it arrives."""

    def __reduce__(self) -> tuple[Any, ...]:
        return explode, ()


def explode() -> None:
    raise RuntimeError("it was no outcome")


def return_an_explosive(job: Job, report: Report = SILENT) -> Outcome:
    return replace(formula(job), detail={"curve": Explosive()})


def cost_not_a_number(job: Job, report: Report = SILENT) -> Outcome:
    return replace(formula(job), cost=Cost(math.nan, 1.0, 1))


def no_cost(job: Job, report: Report = SILENT) -> Outcome:
    return replace(formula(job), cost=None)  # type: ignore[arg-type]


def file_outside(job: Job, report: Report = SILENT) -> Outcome:
    return replace(formula(job), files={"../x": b"x"})


def file_of_text(job: Job, report: Report = SILENT) -> Outcome:
    return replace(formula(job), files={"a": "text"})  # type: ignore[dict-item]


def file_and_folder(job: Job, report: Report = SILENT) -> Outcome:
    return replace(formula(job), files={"a": b"x", "a/b": b"x"})


def not_a_number(job: Job, report: Report = SILENT) -> Outcome:
    return replace(formula(job), objectives={"quality": math.nan}, detail={"curve": [0.5, math.nan]})


def infinite(job: Job, report: Report = SILENT) -> Outcome:
    return replace(formula(job), objectives={"quality": math.inf})


def no_quality(job: Job, report: Report = SILENT) -> Outcome:
    return replace(formula(job), objectives={})


def every_third_fails(job: Job, report: Report = SILENT) -> Outcome:
    if job.number % 3 == 0:
        raise ValueError("a third of them fail")
    return formula(job)


def load(folder: Path) -> bytes:
    """Stands for `autopeft.adapters.load`: the bytes that `formula` left."""
    return (folder / "adapter.safetensors").read_bytes()
