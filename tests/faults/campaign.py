"""The fault campaign: does harm to real studies, resumes them, and counts what was lost.

    python -m tests.faults.campaign [--short] [--only NAME ...] [--out FILE] [--table FILE]

Every row of the result is a kind of fault: how often it was tried, how often the study ended as if nothing had
happened, and how many finished trials were lost. It exits with 1 where something did not survive.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

from tests.contracts.test_interleavings import LONG, SHORT
from tests.faults import cluster, damage, kills, training, workers
from tests.faults.runs import ROOT, Scene, Skipped, Tally

Fault = Callable[[Scene], Tally]
LIMIT = 600
"""Seconds after which one kind of fault is given up."""


def any_order(scene: Scene) -> Tally:
    """Random orders of asking, telling, losing, killing, rebuilding (tests/contracts/test_interleavings.py)."""
    tally, sequences = Tally(), scene.often(LONG, SHORT)
    with tally.attempt("interleavings", times=sequences):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", INTERLEAVINGS],
            env={**os.environ, "FAULTS": "short" if scene.short else "full"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-1500:]
    return tally


INTERLEAVINGS = "tests/contracts/test_interleavings.py"
FAULTS: dict[str, Fault] = {
    **kills.FAULTS,
    **damage.FAULTS,
    **workers.FAULTS,
    **training.FAULTS,
    **cluster.FAULTS,
    "any-order": any_order,
}


def tried(name: str, short: bool) -> dict[str, Any]:
    """Tries one kind of fault; returns its row."""
    place = Path(tempfile.mkdtemp(prefix=f"fault-{name}-"))
    began = time.monotonic()
    skipped, reason, tally = 0, "", Tally()
    before = signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(LIMIT)
    try:
        tally = FAULTS[name](Scene(place, random.Random(f"faults {name}"), short))
    except Skipped as why:
        skipped, reason = 1, str(why)
    except TimeoutError as error:
        tally.tried, tally.wrong = max(1, tally.tried), [*tally.wrong, str(error)]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        if not tally.wrong:
            shutil.rmtree(place, ignore_errors=True)
    tally.tried = max(tally.tried, len(tally.wrong))
    return {
        "id": name,
        "fault": " ".join((FAULTS[name].__doc__ or "").split()),
        "tried": tally.tried,
        "survived": tally.tried - min(tally.tried, len(tally.wrong)),
        "lost_records": tally.lost,
        "skipped": skipped,
        "reason": reason or "; ".join(tally.wrong)[:2000],
        "seen": dict(sorted(tally.seen.items())),
        "seconds": round(time.monotonic() - began, 1),
    }


def _too_long(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"took longer than {LIMIT} s")


def result(rows: Sequence[dict[str, Any]], short: bool) -> dict[str, Any]:
    """Returns the content of the result file."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=False)
    return {
        "command": "make test-faults" + (" FAULTS=short" if short else ""),
        "commit": commit.stdout.strip(),
        "versions": {name: version(name) for name in ("autopeft", "torch", "transformers", "numpy", "ray")},
        "machine": {"architecture": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
        "rows": list(rows),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the rows for a document."""
    lines = ["| fault | what is done | tried | survived | lost records |", "|---|---|---|---|---|"]
    for row in rows:
        text = f"{row['fault']} Skipped: {row['reason']}" if row["skipped"] else row["fault"]
        lines.append(f"| `{row['id']}` | {text} | {row['tried']} | {row['survived']} | {row['lost_records']} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--only", nargs="*", default=list(FAULTS), choices=list(FAULTS), metavar="NAME")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path, help="only print the table of a result file")
    given = parser.parse_args()
    if given.table:
        print(table(json.loads(given.table.read_text())["rows"]))
        return 0
    rows = []
    for name in given.only:
        rows.append(tried(name, given.short))
        row = rows[-1]
        what = f"skipped: {row['reason']}" if row["skipped"] else f"{row['survived']} of {row['tried']} survived"
        print(f"{name:24} {what}, {row['lost_records']} lost, {row['seconds']} s", flush=True)
        if row["reason"] and not row["skipped"]:
            print(f"    {row['reason']}", flush=True)
        if given.out:
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_text(json.dumps(result(rows, given.short), indent=1) + "\n")
    return int(any(row["survived"] < row["tried"] or row["lost_records"] > row["tried"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
