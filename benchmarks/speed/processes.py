"""Runs a piece of work in a fresh process of one thread, and measures the whole of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.speed.record import ROOT

THREADS = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""What makes every library of a process use one thread and no network."""


@dataclass(frozen=True)
class Whole:
    """What a process did.

    Attributes:
        rows: The JSON objects it printed, one per line.
        cpu_seconds: CPU seconds of the process and its children, from its start to its end.
        peak_bytes: Largest resident memory.
    """

    rows: list[dict[str, Any]]
    cpu_seconds: float
    peak_bytes: int


def measure(module: str, spec: Mapping[str, Any]) -> Whole:
    """Runs `python -m benchmarks.speed.<module> spec.json` and returns what it printed and what it cost.

    Args:
        module: Name of the module.
        spec: What it reads.

    Raises:
        RuntimeError: It failed; with the end of what it printed to standard error.
    """
    with tempfile.TemporaryDirectory() as folder:
        path, out, err = (Path(folder) / name for name in ("spec.json", "out", "err"))
        path.write_text(json.dumps(spec))
        with out.open("wb") as standard, err.open("wb") as errors:
            child = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", f"benchmarks.speed.{module}", str(path)],
                stdout=standard, stderr=errors, cwd=ROOT, env={**os.environ, **THREADS},
            )  # fmt: skip
            try:
                _, status, usage = os.wait4(child.pid, 0)
            except BaseException:
                child.kill()
                child.wait()
                raise
            child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise RuntimeError(f"{module} ended with {child.returncode}: {err.read_text()[-2000:]}")
        rows = [json.loads(line) for line in out.read_text().splitlines() if line.startswith("{")]
    return Whole(rows, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
