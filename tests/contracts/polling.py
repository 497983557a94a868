"""Polling an executor until something has happened; shared by the tests of executors."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from autopeft.job import Job
from autopeft.study.executors.base import Event, Executor, Failed, Finished, Lost, Resources
from tests.contracts.cheap_jobs import some_job

PATIENCE = 60.0  # seconds after which a test gives up; no test measures time


def collect(executor: Executor, endings: int) -> list[Event]:
    """Polls until that many jobs have ended."""
    events: list[Event] = []
    deadline = time.monotonic() + PATIENCE
    while sum(isinstance(e, Finished | Failed | Lost) for e in events) < endings:
        assert time.monotonic() < deadline, f"only {events}"
        events += executor.poll(0.1)
    return events


def poll_for(executor: Executor, kind: type[Event]) -> list[Event]:
    """Polls until an event of that kind has come."""
    events: list[Event] = []
    deadline = time.monotonic() + PATIENCE
    while not any(isinstance(e, kind) for e in events):
        assert time.monotonic() < deadline, f"only {events}"
        events += executor.poll(0.1)
    return events


def ending(executor: Executor) -> Event:
    """Polls until a job has ended; returns how."""
    return collect(executor, 1)[-1]


def result(executor: Executor, job: Job | None = None, resources: Resources = Resources()) -> Event:  # noqa: B008
    """Runs one job; returns how it ended."""
    executor.submit(job or some_job(), resources)
    return ending(executor)


def failure(executor: Executor) -> tuple[str, str]:
    """Runs one job that has to fail; returns the kind and the message."""
    event = result(executor)
    assert isinstance(event, Failed), event
    return event.failure.kind, event.failure.message


def alive(process: int) -> bool:
    """Says whether a process is there and no zombie."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{process}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
