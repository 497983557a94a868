"""Executors by name. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence

from autopeft.errors import InputError, nearest
from autopeft.study.executors.base import Device, Executor
from autopeft.study.executors.inline import InlineExecutor
from autopeft.study.executors.process import ProcessExecutor
from autopeft.study.executors.ray import RayExecutor
from autopeft.study.executors.stacked import StackedExecutor

EXECUTORS = ("inline", "process", "ray")
ALONE = "autopeft.worker:evaluate"
TOGETHER = "autopeft.together:evaluate_together"
"""What runs several jobs at once; each of them is what `ALONE` does with it."""

_VISIBLE = "set CUDA_VISIBLE_DEVICES for the command instead"
OF_ONE_PROCESS = {
    "time_limit": "leave it out",
    "memory_limit": "leave it out",
    "devices": _VISIBLE,
    "devices_per_trial": _VISIBLE,
}
"""Keys of `search` that hold for a process with one trial, and what to do without."""


def make_executor(
    name: str,
    evaluate: str,
    workers: int,
    threads: int,
    *,
    time_limit: float | None = None,
    memory_limit: int | None = None,
    devices: Sequence[Device] = (),
    devices_per_trial: int | None = None,
    address: str | None = None,
    together: int = 1,
) -> Executor:
    """Returns an executor.

    Args:
        name: One of `EXECUTORS`.
        evaluate: Function that runs a job, as "package.module:function".
        workers: Jobs at once; 1 for "inline".
        threads: Threads of one job; "inline" runs with those of this process.
        time_limit: Seconds one job may take, or None; "inline" has no limits.
        memory_limit: Bytes one worker process may hold, or None.
        devices: Accelerators of this machine, for "process"; a Ray cluster knows its own.
        devices_per_trial: Accelerators that Ray reserves for each worker; None for none.
        address: Ray cluster to run on, for "ray": "auto" or "host:port"; None for one of our own on this machine.
        together: Trials in one batch; above 1 they run in this process, whichever of the others is named, and can
            have neither limits nor devices.

    Raises:
        InputError: An unknown name, something that it cannot have, or an address that none answers.
        MissingExtra: "ray", where Ray is not installed.

    Example:
        >>> make_executor("inline", "autopeft.worker:evaluate", workers=1, threads=1).capacity
        1
    """
    asked = {
        "time_limit": time_limit,
        "memory_limit": memory_limit,
        "devices": devices,
        "devices_per_trial": devices_per_trial,
    }
    require_choice(name, workers, address, together, [key for key, value in asked.items() if value])
    if together > 1:
        if evaluate != ALONE:
            what = f"trials run by {evaluate} cannot be trained together"
            raise InputError(what, where="search.together", cure="use 1")
        return StackedExecutor(evaluate, TOGETHER, together)
    if name == "ray":
        return RayExecutor(
            evaluate, workers, threads, time_limit, memory_limit, devices=devices_per_trial or 0, address=address
        )
    if name == "process":
        return ProcessExecutor(evaluate, workers, threads, time_limit, memory_limit, devices=devices)
    return InlineExecutor(evaluate)


def require_choice(name: str, workers: int, address: str | None, together: int = 1, asked: Sequence[str] = ()) -> None:
    """Raises InputError for an executor that cannot be made as asked; starts nothing.

    Args:
        name: As for `make_executor`, like what follows.
        workers: Jobs at once.
        address: Ray cluster to run on.
        together: Trials in one batch.
        asked: Which of `OF_ONE_PROCESS` are asked for.
    """
    if name not in EXECUTORS:
        raise InputError(f"unknown executor '{name}'", where="executor", cure=nearest(name, EXECUTORS))
    if workers < 1:
        raise InputError(f"{workers} workers can run nothing", where="workers", cure="use 1 or more")
    if address is not None and name != "ray":
        raise InputError(f"the {name} executor has no address", where="address", cure='use the executor "ray"')
    if together < 1:
        raise InputError(f"{together} trials together", where="search.together", cure="use 1 or more")
    if together > 1 and (workers > 1 or name == "ray"):
        what = f"{together} trials are trained together in one process" + (", not on Ray" if name == "ray" else "")
        raise InputError(what, where="search.together", cure="use one worker, or train them apart: --together 1")
    if together > 1 and asked:
        what = f"{together} trials are trained together in one process, and this is for trials that have one each"
        cure = OF_ONE_PROCESS[asked[0]]
        raise InputError(what, where=f"search.{asked[0]}", cure=f"{cure}, or train them apart: --together 1")
    if name == "inline" and workers > 1:
        raise InputError("the inline executor runs one trial at a time", where="workers", cure='use "process"')
