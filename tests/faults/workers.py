"""Faults of jobs and of the processes that run them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from autopeft.study.study import Study
from tests.faults.program import TRIALS
from tests.faults.runs import Run, Scene, Skipped, Tally, begun, finish, require_whole

BAD = range(2, TRIALS, 5)
"""Numbers of the trials that go wrong (`tests.faults.jobs.some`)."""


def kind_of(job: str, kind: str, options: tuple[object, ...], scene: Scene) -> Tally:
    """Four of twenty trials go wrong in one way: they fail with that kind, and the others are as ever."""
    tally = Tally()
    for workers in (1, 2)[: scene.often(2, 1)]:
        folder = scene.place / f"{job}{workers}"
        with tally.attempt(f"{job} with {workers} workers", times=len(BAD)):
            told = finish(folder, "--job", job, "--workers", workers, *options)
            assert (told["completed"], told["failed"]) == (TRIALS - len(BAD), len(BAD))
            require_whole(folder, states=dict.fromkeys(BAD, kind))
            with Study.open(folder, readonly=True) as study:
                assert all(t.failure.message for t in study.trials if t.failure)
    return tally


def kernel_out_of_memory(scene: Scene) -> Tally:
    """The kernel kills a worker whose control group has too little memory: out_of_memory, and the study goes on."""
    tally = Tally()
    with memory_group(256 << 20) as enter:
        folder = scene.place / "kernel"
        with tally.attempt("control group", times=len(BAD)):
            code, told, errors = Run(folder, "--job", "some_grow", before=enter).end()
            assert (code, errors) == (0, ""), (code, errors)
            assert (told["completed"], told["failed"]) == (TRIALS - len(BAD), len(BAD)), told
            require_whole(folder, states=dict.fromkeys(BAD, "out_of_memory"))
    return tally


@contextlib.contextmanager
def memory_group(limit: int) -> Iterator[Callable[[], None]]:
    """Makes a control group of so many bytes; yields what puts a process in it. Raises Skipped where that cannot be."""
    group = _group()
    if group is None:
        raise Skipped("this system lets nobody make a control group for memory")
    second = (group / "memory.max").exists()
    try:
        (group / ("memory.max" if second else "memory.limit_in_bytes")).write_text(str(limit))
        with contextlib.suppress(OSError):
            (group / ("memory.swap.max" if second else "memory.swappiness")).write_text("0")
        yield lambda: (group / "cgroup.procs").write_text(str(os.getpid())) and None
    except OSError as error:
        raise Skipped(f"the control group cannot be limited ({error})") from None
    finally:
        deadline = time.monotonic() + 10.0
        while group.exists() and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                group.rmdir()
            time.sleep(0.05)


def _group() -> Path | None:
    roots = {"memory": Path("/sys/fs/cgroup/memory"), "": Path("/sys/fs/cgroup")}
    own = Path("/proc/self/cgroup")
    for line in own.read_text().splitlines() if own.exists() else ():
        _, controllers, name = line.split(":", 2)
        if controllers in roots:
            parent = roots[controllers] / name.lstrip("/")
            group = parent / f"autopeft-faults-{os.getpid()}"
            with contextlib.suppress(OSError):
                group.mkdir()
                if (group / "memory.max").exists() or (group / "memory.limit_in_bytes").exists():
                    return group
                group.rmdir()
    return None


def stopped_worker(scene: Scene) -> Tally:
    """A worker is stopped (SIGSTOP) and says nothing more: its trial is run again, from its checkpoint."""
    tally = Tally()
    for k in range(scene.often(3, 1)):
        folder = scene.place / f"stopped{k}"
        with tally.attempt(f"stopped worker {k}"):
            finish(folder, "--job", "some_stand_still", "--silence", 4, "--workers", 1 + k % 2)
            require_whole(folder)
            with Study.open(folder, readonly=True) as study:
                again = [e.trial for e in study.events if e.kind == "interrupted" and e.detail.get("lost")]
                assert again == [BAD[0]], again
    return tally


def killed_workers(scene: Scene) -> Tally:
    """Workers are killed at random moments, no trial more than once: each goes on from its checkpoint."""
    tally = Tally()
    for k in range(scene.often(4, 1)):
        folder = scene.place / f"workers{k}"
        kills: dict[int, int] = {}
        with tally.attempt(f"killed workers {k}", times=0):
            run = Run(folder, "--workers", 1 + k % 2)
            while run.process.poll() is None:
                time.sleep(scene.draw.uniform(0.1, 0.5))
                for number, process in begun(folder)[-1:]:
                    if number not in kills:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(process, signal.SIGKILL)
                            kills[number] = process
            code, told, errors = run.end()
            tally.tried += len(kills)
            assert (code, told.get("stopped")) == (0, "finished"), (code, told, errors)
            require_whole(folder)
            with Study.open(folder, readonly=True) as study:
                again = {e.trial for e in study.events if e.kind == "interrupted" and e.detail.get("lost")}
                assert len(again) <= len(kills)  # one may have gone on to its next trial by then
                tally.seen["run again"] += len(again)
    return tally


FAULTS = {
    "out-of-memory": partial(kind_of, "some_grow", "out_of_memory", ("--memory-limit", 600 << 20)),
    "kernel-out-of-memory": kernel_out_of_memory,
    "nan": partial(kind_of, "some_nan", "nan", ()),
    "infinite": partial(kind_of, "some_infinite", "infinite", ()),
    "segfault": partial(kind_of, "some_fault", "crashed", ()),
    "abort": partial(kind_of, "some_abort", "crashed", ()),
    "hang": partial(kind_of, "some_hang", "timed_out", ("--time-limit", 3)),
    "worker-stopped": stopped_worker,
    "worker-killed": killed_workers,
    "worker-killed-three-times": partial(kind_of, "some_are_killed", "crashed", ()),
}
TEXTS = {
    "out-of-memory": "Trials take memory beyond the limit of a worker: out_of_memory.",
    "nan": "A metric is not a number: nan.",
    "infinite": "A metric is infinite: infinite.",
    "segfault": "Workers die of SIGSEGV: crashed.",
    "abort": "Workers die of SIGABRT: crashed.",
    "hang": "Trials hang in foreign code that holds the interpreter's lock: timed_out.",
    "worker-killed-three-times": "A trial's worker is killed each time: crashed, after three attempts.",
}
for _name, _text in TEXTS.items():
    FAULTS[_name].__doc__ = _text
