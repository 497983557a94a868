"""Faults of real training: killed within it, and driven to numbers that are none."""

from __future__ import annotations

import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from autopeft.study.study import Study
from autopeft.trial import Cost, TrialStatus
from tests.faults.real import materials
from tests.faults.runs import Run, Scene, Tally

REAL = "tests.faults.real"


def table(folder: Path) -> list[dict[str, Any]]:
    """Every trial with the digest of its adapter; measured time and memory left out."""
    rows = []
    with Study.open(folder, readonly=True) as study:
        assert study.damaged == ()
        for trial in study.trials:
            row = replace(trial, cost=Cost()).to_dict()
            row["objectives"] = {k: v for k, v in row["objectives"].items() if k not in ("seconds", "memory")}
            row["files"] = {p.name: p.read_bytes() for p in study.folder(trial.number).glob("adapter*")}
            rows.append(row)
    return rows


def killed_while_training(scene: Scene) -> Tally:
    """kill -9 within real training: it goes on from a checkpoint, and the adapters are equal bit for bit."""
    tally = Tally()
    materials(scene.place)
    whole, folder = scene.place / "whole", scene.place / "killed"
    began = time.monotonic()
    code, _, errors = Run(whole, module=REAL).end()
    assert code == 0, errors
    seconds = time.monotonic() - began
    for k in range(scene.often(5, 1)):
        with tally.attempt(f"kill {k}"):
            run = Run(folder, module=REAL)
            kept = len(list(folder.glob("trials/[0-9]*")))
            run.wait_until(lambda n=kept: _checkpointed(folder) or len(list(folder.glob("trials/[0-9]*"))) > n)  # type: ignore[misc]
            time.sleep(scene.draw.uniform(0.0, seconds / 10))
            tally.seen["with a checkpoint"] += _checkpointed(folder)
            run.process.kill()
            code, _, errors = run.end()
            assert code in (-signal.SIGKILL, 0), errors
    with tally.attempt("the end", times=0):
        code, _, errors = Run(folder, module=REAL).end()
        assert code == 0, errors
        before, after = table(whole), table(folder)
        tally.lost = sum(a != b for a, b in zip(before, after, strict=True))
        assert before == after, "the tables differ"
        assert all(row["files"] for row in before)
    return tally


def _checkpointed(folder: Path) -> bool:
    return any(folder.glob("checkpoints/[0-9]*/checkpoint.json"))


def absurd_rates(scene: Scene) -> Tally:
    """Real training with absurd learning rates: nan or infinite is told, and the other trials are trained."""
    tally = Tally()
    materials(scene.place)
    with tally.attempt("absurd", times=2):
        code, told, errors = Run(scene.place / "absurd", "--absurd", "--epochs", 2, "--trials", 2, module=REAL).end()
        assert (code, told["completed"], told["failed"]) == (0, 2, 2), (code, told, errors)
        with Study.open(scene.place / "absurd", readonly=True) as study:
            kinds = [t.failure.kind for t in study.trials if t.failure]
            tally.seen.update(kinds)
            assert set(kinds) <= {"nan", "infinite"}, kinds
            assert [t.status for t in study.trials[2:]] == 2 * [TrialStatus.COMPLETED]
    return tally


FAULTS = {"kill-9-while-training": killed_while_training, "absurd-learning-rate": absurd_rates}
