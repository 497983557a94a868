"""The results file: rows that are there are not measured again."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).resolve().parent / "results" / "speed.json"
ENGINE = ("worker.py", "adapters", "backbones", "heads", "modules", "search", "spaces", "study", "training")
"""What of the package decides the cost of a trial."""


def digest_of_engine() -> str:
    """Returns 12 hexadecimal digits of the source of `ENGINE`: rows of another engine are measured again."""
    source = hashlib.sha256()
    for name in ENGINE:
        place = ROOT / "autopeft" / name
        for file in [place] if place.is_file() else sorted(place.rglob("*.py")):
            source.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes())
    return source.hexdigest()[:12]


def commit() -> str:
    """Returns the commit, with "+" where the working tree differs from it."""
    found = [
        subprocess.run(["git", *asked], capture_output=True, text=True, cwd=ROOT, check=False).stdout.strip()
        for asked in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no", "autopeft"))
    ]
    return found[0] + ("+" if found[1] else "")


def machine() -> dict[str, Any]:
    """Returns what is said of the machine: no name, no path."""
    model = "unknown"
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    return {
        "architecture": platform.machine(),
        "processor": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


HEAD = ("command", "commit", "engine", "versions", "machine")


class OutOfTimeError(Exception):
    """The time asked for is over; what is missing is measured by the next call."""


@final
class Record:
    """Rows of one results file, written after each.

    Args:
        path: The file.
        command: The command that makes it.
        minutes: Wall minutes after which nothing more is begun.
        reading: Whether nothing is measured: the rows are taken for those of the package they were made with, and what
            the file says of commit, versions and machine stays.
    """

    def __init__(self, path: Path, command: str, minutes: float = float("inf"), reading: bool = False) -> None:
        self._path, self._command = path, command
        self._end = time.monotonic() + 60 * minutes
        old = json.loads(path.read_text()) if path.exists() else {}
        self.rows: list[dict[str, Any]] = old.get("rows", [])
        self.summary: dict[str, Any] = old.get("summary", {})
        self._head = {name: old[name] for name in HEAD} if reading and old else {}
        self.engine = self._head.get("engine") or digest_of_engine()

    def find(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """Returns the row with these fields, or None."""
        return next((row for row in self.rows if all(row.get(k) == v for k, v in key.items())), None)

    def of(self, **key: Any) -> list[dict[str, Any]]:
        """Returns all rows with these fields; rows of an earlier engine are left out."""
        fresh = (row for row in self.rows if row.get("engine", self.engine) == self.engine)
        return [row for row in fresh if all(row.get(k) == v for k, v in key.items())]

    def add(self, row: dict[str, Any]) -> None:
        """Adds a row, in the place of an older one for the same work, and writes the file."""
        self.rows = [r for r in self.rows if not _same(r, row)] + [row]
        self.write()
        print(" ".join(_lines(row)), flush=True)

    def forget(self, parts: Sequence[str]) -> None:
        """Drops the rows of these parts."""
        self.rows = [row for row in self.rows if row["part"] not in parts]

    def require_time(self) -> None:
        """Raises OutOfTimeError where the time is over."""
        if time.monotonic() > self._end:
            raise OutOfTimeError

    def write(self) -> None:
        """Writes the file, whole or not at all."""
        content = {
            "command": self._command,
            "commit": commit(),
            "engine": self.engine,
            "versions": {n: version(n) for n in ("autopeft", "torch", "transformers", "peft", "accelerate", "numpy")},
            "machine": machine(),
            "data": "$AUTOPEFT_DATA/data",
            **self._head,
            "summary": self.summary,
            "rows": self.rows,
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        partial.replace(self._path)


KEY = ("part", "id", "loop", "seed", "repeat")
"""What names a row; rows of the lean loop carry "engine" beside it."""


def _same(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    return all(left.get(k) == right.get(k) for k in KEY)


def _lines(row: Mapping[str, Any]) -> Iterator[str]:
    for name in (*KEY, "quality", "cpu_seconds"):
        if row.get(name) is not None:
            yield f"{name}={row[name]:.4g}" if isinstance(row[name], float) else f"{name}={row[name]}"


def say(text: str) -> None:
    """Prints to standard error: standard output has the table."""
    print(text, file=sys.stderr, flush=True)
