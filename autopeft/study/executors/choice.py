"""Executors by name. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence

from autopeft.errors import InputError, nearest
from autopeft.study.executors.base import Device, Executor
from autopeft.study.executors.inline import InlineExecutor
from autopeft.study.executors.process import ProcessExecutor


def make_executor(
    name: str,
    evaluate: str,
    workers: int,
    threads: int,
    *,
    time_limit: float | None = None,
    memory_limit: int | None = None,
    devices: Sequence[Device] = (),
    address: str | None = None,
) -> Executor:
    """Returns an executor.

    Args:
        name: "process" or "inline".
        evaluate: Function that runs a job, as "package.module:function".
        workers: Jobs at once; 1 for "inline".
        threads: Threads of one job, for "process".

    Raises:
        InputError: An unknown name, or a number of workers it cannot have.
    """
    if workers < 1:
        raise InputError(f"{workers} workers can run nothing", where="workers", cure="use 1 or more")
    if name == "process":
        return ProcessExecutor(evaluate, workers, threads, time_limit, memory_limit, devices=devices)
    if name != "inline":
        raise InputError(f"unknown executor '{name}'", where="executor", cure=nearest(name, ("process", "inline")))
    if workers > 1:
        raise InputError("the inline executor runs one trial at a time", where="workers", cure='use "process"')
    return InlineExecutor(evaluate)
