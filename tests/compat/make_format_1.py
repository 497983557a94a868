# mypy: ignore-errors
"""Makes the study in `studies/format-1`, with the code of the last commit whose studies had format 1.

    git worktree add OLD cc2b3e0
    cd OLD && PYTHONPATH=. python .../tests/compat/make_format_1.py .../tests/compat/studies/format-1

Its last process kills itself while a trial runs, so the write-ahead log is part of the study. What the study holds is
written to `expected.json` beside it, by the same old code. The study is not made again: it stands for studies that
exist.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections import deque
from pathlib import Path

from autopeft.presets import preset
from autopeft.study.definition import library_versions
from autopeft.study.executors.base import Event, Executor, Failed, Finished, Started
from autopeft.study.study import Study
from autopeft.trial import Failure
from tests.contracts.cheap_jobs import SHAPE, formula
from tests.contracts.cheap_studies import definition

TRACEBACK = 'Traceback (most recent call last):\n  File "worker.py", line 7, in evaluate\n'
FAILURES = {
    3: Failure("error", "ValueError: no weights in shard 3", f"{TRACEBACK}ValueError: no weights in shard 3\n"),
    4: Failure("out_of_memory", "MemoryError", f"{TRACEBACK}MemoryError\n"),
    5: Failure("nan", "quality is not a number"),
    6: Failure("infinite", "quality is infinite"),
    7: Failure("crashed", "signal SIGSEGV", "Fatal Python error: Segmentation fault\n"),
    8: Failure("timed_out", "no sign of life for 60 s"),
    9: Failure("refused", "train.csv: the file is missing"),
}


class Scripted(Executor):
    """Runs jobs here and fails the trials in `FAILURES`; with these texts, as a real traceback names a machine."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()

    @property
    def capacity(self) -> int:
        return 1

    def submit(self, job) -> None:  # the contract of that time
        self._events.append(Started(job.number))
        failure = FAILURES.get(job.number)
        self._events.append(Failed(job.number, failure) if failure else Finished(job.number, formula(job)))

    def poll(self, timeout: float) -> list[Event]:
        return [self._events.popleft()] if self._events else []

    def kill(self, number: int) -> None:
        self._events.clear()

    def close(self) -> None:
        pass


def make(folder: Path) -> None:
    """Everything but the last process."""
    wanted = definition(trials=10, baselines=(("probe", preset("probe", SHAPE, 1e-3)),), versions=library_versions())
    with Study.start(folder, wanted) as study:
        study.run(executor=Scripted())
        best = study.front.knee().trial.number
        study.train(best, seeds=1, executor=Scripted())
        study.open_test(best, seeds=1, executor=Scripted())
        study._ledger.redefine(study.definition.extended(13))
        study._ledger.note_alike([3])
    connection = sqlite3.connect(folder / "study.sqlite")
    with connection:
        connection.execute("UPDATE trials SET record = '{}' WHERE number = 1")
    connection.close()
    Study.open(folder).close()  # sets the row apart and restores it from its folder


def end(folder: Path) -> None:
    """The last process: leaves a trial interrupted, one running and one queued, and kills itself."""
    study = Study.open(folder)
    first, second, _ = study.ask(3)
    study.begin(first.number)
    study._ledger.interrupt(first.number, "Ctrl-C, twice")
    study.begin(second.number)
    expect(folder)
    os.kill(os.getpid(), signal.SIGKILL)


def expect(folder: Path) -> None:
    """Writes what the study holds."""
    with Study.open(folder, readonly=True) as study:
        content = {
            "trials": [trial.to_dict() for trial in study.trials],
            "events": [[event.kind, event.trial, dict(event.detail)] for event in study.events],
            "definition": study.definition.id,
            "front": [trial.number for trial in study.front.trials],
            "quarantined": [str(damage) for damage in study._store.quarantined()],
        }
    (folder / "expected.json").write_text(json.dumps(content, sort_keys=True, separators=(",", ":")) + "\n")


def main() -> None:
    folder = Path(sys.argv[1])
    if len(sys.argv) > 2:
        end(folder)
    make(folder)
    subprocess.run([sys.executable, __file__, str(folder), "end"], check=False)
    for name in ("study.lock", "study.sqlite-shm"):  # they belong to the machine
        (folder / name).unlink()


if __name__ == "__main__":
    main()
