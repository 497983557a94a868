"""A real search that is interrupted and killed ends, with the same command, as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from autopeft.study.study import Study
from autopeft.trial import TrialStatus

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 240.0  # seconds after which the test gives up; it measures no time
TRIALS = 6


def start(base: tuple[str, ...], folder: Path) -> subprocess.Popen[str]:
    flags = ("--study", str(folder), "--trials", str(TRIALS), "--baselines", "lora")
    return subprocess.Popen(
        [sys.executable, "-m", "autopeft.cli", "search", *base, *flags],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that a signal meets this process alone
    )


def wait_for_lines(process: subprocess.Popen[str], n: int) -> None:
    """Reads until n trials have been reported."""
    assert process.stdout is not None
    seen = 0
    for line in process.stdout:
        seen += line.startswith("trial ")
        if seen == n:
            return
    raise AssertionError(process.stderr.read() if process.stderr else "")


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, stderr = process.communicate(timeout=PATIENCE)
    return process.returncode, stderr


def table(folder: Path) -> list[dict[str, Any]]:
    """Every trial with its adapter's weights, measured time and memory left out."""
    rows = []
    with Study.open(folder, readonly=True) as study:
        assert not study.damaged
        for trial in study.trials:
            row = trial.to_dict()
            del row["cost"]
            row["objectives"] = {k: v for k, v in row["objectives"].items() if k not in ("seconds", "memory")}
            row["files"] = [(p.name, p.read_bytes()) for p in sorted(study.folder(trial.number).glob("adapter*"))]
            rows.append(row)
    return rows


def children(process: int) -> list[int]:
    """Process ids whose parent is the given one, as Linux tells."""
    path = Path(f"/proc/{process}/task/{process}/children")
    return [int(n) for n in path.read_text().split()] if path.exists() else []


def test_interrupted_and_killed_it_ends_with_the_same_table(base: tuple[str, ...], tmp_path: Path) -> None:
    code, stderr = end(start(base, tmp_path / "whole"))
    assert code == 0, stderr

    folder = tmp_path / "broken"
    first = start(base, folder)
    wait_for_lines(first, 2)
    first.send_signal(signal.SIGINT)
    code, stderr = end(first)
    assert code == 130
    assert "the same command goes on" in stderr
    with Study.open(folder, readonly=True) as study:
        before = [t for t in study.trials if t.status is TrialStatus.COMPLETED]
        assert 2 <= len(before) < TRIALS + 1
        assert not any(t.status is TrialStatus.RUNNING for t in study.trials)  # the running trial was finished

    second = start(base, folder)
    wait_for_lines(second, 1)
    time.sleep(random.Random(os.getpid()).uniform(0.0, 0.2))  # some moment of the next trials
    workers = children(second.pid)
    second.kill()
    assert end(second)[0] == -signal.SIGKILL
    deadline = time.monotonic() + PATIENCE
    while any(Path(f"/proc/{pid}").exists() for pid in workers):  # workers end with their driver
        assert time.monotonic() < deadline
        time.sleep(0.05)

    code, stderr = end(start(base, folder))
    assert code == 0, stderr
    found = table(folder)
    assert [row["number"] for row in found] == list(range(TRIALS + 1))
    assert {row["status"] for row in found} == {"completed"}
    assert found == table(tmp_path / "whole")
