# mypy: ignore-errors
"""Makes the study in `studies/format-2`, with the code of the last commit whose recipes had no later choices.

    mkdir OLD && git archive 99de447 | tar x -C OLD
    cd OLD && OMP_NUM_THREADS=1 PYTHONPATH=. python .../tests/compat/make_format_2.py .../tests/compat/studies/format-2

Format 2 is still written: this study stands for those that know neither `precision`, `cache` and what came with them in
their recipe, nor parts of a budget. Its last process kills itself while a trial runs, so the write-ahead log is part of
the study. What the study holds is written to `expected.json` beside it, by the same old code, and under "end" the table
that the old code came to where it went on with a copy. The study is not made again.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections import deque
from dataclasses import replace
from pathlib import Path

from autopeft.lengths import Lengths
from autopeft.presets import preset
from autopeft.setting import Recipe
from autopeft.study.definition import library_versions
from autopeft.study.executors.base import Event, Executor, Failed, Finished, Resources, Started
from autopeft.study.study import Study
from autopeft.trial import Budget, Failure
from tests.contracts.cheap_jobs import SHAPE, formula, setting
from tests.contracts.cheap_studies import definition, table

TRACEBACK = 'Traceback (most recent call last):\n  File "worker.py", line 7, in evaluate\n'
FAILURES = {
    3: Failure("error", "ValueError: no weights in shard 3", f"{TRACEBACK}ValueError: no weights in shard 3\n"),
    4: Failure("out_of_memory", "MemoryError", f"{TRACEBACK}MemoryError\n"),
    5: Failure("nan", "quality is not a number"),
    8: Failure("timed_out", "no sign of life for 60 s"),
    9: Failure("refused", "train.csv: the file is missing"),
}


NOTHING = Resources()


class Scripted(Executor):
    """Runs jobs here and fails the trials in `FAILURES`; with these texts, as a real traceback names a machine."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()

    @property
    def capacity(self) -> int:
        return 1

    def submit(self, job, resources=NOTHING) -> None:
        self._events.append(Started(job.number))
        failure = FAILURES.get(job.number)
        self._events.append(Failed(job.number, failure) if failure else Finished(job.number, formula(job)))

    def poll(self, timeout: float) -> list[Event]:
        return [self._events.popleft()] if self._events else []

    def kill(self, number: int) -> None:
        self._events.clear()

    def stop(self, number: int) -> None:
        pass

    def close(self) -> None:
        pass


def make(folder: Path) -> None:
    """Everything but the last process."""
    recipe = Recipe(batch_size=8, max_length=64, dropout=0.1)
    wanted = definition(
        setting=replace(setting(), recipe=recipe),
        budget=Budget(0, 2),
        trials=10,
        baselines=(("probe", preset("probe", SHAPE, 1e-3)),),
        versions=library_versions(),
        texts={"train": Lengths(2, 5.0, 6, 12, 6), "validation": Lengths(1, 5.0, 5, 5, 5)},
    )
    with Study.start(folder, wanted) as study:
        study.run(executor=Scripted())
        best = study.front.knee().trial.number
        study.train(best, seeds=1, executor=Scripted())
        study.open_test(best, seeds=1, executor=Scripted())
        study._ledger.redefine(study.definition.extended(13))
        study._ledger.note_alike([study.trial(3)])
    connection = sqlite3.connect(folder / "study.sqlite")
    with connection:
        connection.execute("UPDATE trials SET record = '{}' WHERE number = 1")
    connection.close()
    Study.open(folder).close()  # sets the row apart and restores it from its folder


def end(folder: Path) -> None:
    """The last process: leaves a trial interrupted, one running with a checkpoint and one queued, and kills itself."""
    study = Study.open(folder)
    first, second, _ = study.ask(3)
    study.begin(first.number)
    study._ledger.interrupt(first.number, "Ctrl-C, twice")
    study.begin(second.number)
    study._ledger.keep(second.number, {"step": b"7"})
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
    write(folder, content)


def go_on(folder: Path) -> None:
    """Adds to `expected.json` the table to which this code brings a copy of the study."""
    content = json.loads((folder / "expected.json").read_text())
    with tempfile.TemporaryDirectory() as place:
        copy = Path(shutil.copytree(folder, Path(place) / "copy"))
        with Study.open(copy, trust_evaluate=True) as study:
            study.run(executor="inline")
            content["end"] = table(study.trials)
    write(folder, content)


def write(folder: Path, content) -> None:
    (folder / "expected.json").write_text(json.dumps(content, sort_keys=True, separators=(",", ":")) + "\n")


def main() -> None:
    folder = Path(sys.argv[1])
    if len(sys.argv) > 2:
        end(folder)
    make(folder)
    subprocess.run([sys.executable, __file__, str(folder), "end"], check=False)
    for name in ("study.lock", "study.sqlite-shm"):  # they belong to the machine
        (folder / name).unlink()
    go_on(folder)


if __name__ == "__main__":
    main()
