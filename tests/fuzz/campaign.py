"""The long form of the fuzzing: every reader for its share of the time, each in a process of its own.

    python -m tests.fuzz.campaign --seconds 480 --out benchmarks/fuzz/results/fuzz.json

Input n of a reader is made by the seed "READER n", so a fault is repeated with --reader NAME --input N, which shows it
with its traceback. `make fuzz` runs this.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any

import torch

from autopeft.errors import AutoPeftError
from tests.fuzz.readers import Reader, Readers, prepare

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 60
"""Seconds that one input may take; a machine under load needs some."""
MOST_MEMORY = 3 << 30
"""Bytes that reading may add to the process."""

SLOW = (
    "repair_verb",
    "study_archive",
    "study_checkpoint",
    "study_database",
    "study_json",
    "study_records",
    "study_verbs",
)
COSTLY = 3
"""Times the seconds of a reader whose inputs take more than most."""


class TookTooLong(Exception):  # noqa: N818
    """Raised by the alarm."""


def tried(reader: Reader, rng: Random, place: Path) -> bool:
    """Has one input read; returns whether it was accepted, False where it was refused, and raises for a fault."""
    place.mkdir()
    try:
        reader.attempt(place, rng)
    except AutoPeftError as refusal:
        str(refusal).encode(errors="backslashreplace")
        return False
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return True


@contextmanager
def bounded() -> Iterator[None]:
    """Bounds memory and time of what is read inside; restores both."""
    used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    old = signal.signal(signal.SIGALRM, _too_long)
    resource.setrlimit(resource.RLIMIT_DATA, (used + MOST_MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


def _too_long(*_: object) -> None:
    raise TookTooLong(f"one input took more than {LONGEST} s")


def run(reader: Reader, seconds: float, folder: Path, report: Any) -> dict[str, Any]:
    """Tries inputs until the time is over; returns the row of the reader."""
    row: dict[str, Any] = {"id": reader.name, "inputs": 0, "refused": 0, "accepted": 0, "tracebacks": 0, "faults": {}}
    until = time.monotonic() + seconds
    with bounded():
        while time.monotonic() < until:
            number = row["inputs"]
            row["inputs"] += 1
            report(number)
            signal.alarm(LONGEST)
            try:
                row["accepted" if tried(reader, seeded(reader, number), folder / f"{number}") else "refused"] += 1
            except Exception as error:
                row["tracebacks"] += 1
                where = traceback.extract_tb(error.__traceback__)[-1]
                kind = f"{type(error).__name__} at {Path(where.filename).name}:{where.name}"
                row["faults"].setdefault(kind, [number, f"{error}"[:300]])
            signal.alarm(0)
    return row


def seeded(reader: Reader, number: int) -> Random:
    """Returns the generator of one input."""
    return Random(f"{reader.name} {number}")


def quiet() -> None:
    """Keeps libraries from telling what they think of the inputs."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)


def in_a_process(reader: Reader, seconds: float, folder: Path) -> dict[str, Any]:
    """Runs one reader in a fork, so that a crash ends it alone and memory does not add up."""
    result, progress = folder / "row.json", folder / "input"
    folder.mkdir()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 2)
            row = run(reader, seconds, folder, lambda number: progress.write_text(str(number)))
            result.write_text(json.dumps(row))
            status = 0
        finally:
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    if ended == 0:
        return dict(json.loads(result.read_text()))
    number = int(progress.read_text())
    name = signal.Signals(ended & 0x7F).name if ended & 0x7F else f"exit status {ended >> 8}"
    fault = {f"the process died with {name}": [number, ""]}
    return {
        "id": reader.name, "inputs": number + 1, "refused": 0, "accepted": 0, "tracebacks": 1, "faults": fault,
    }  # fmt: skip


def main() -> int:
    """Runs the campaign, or one input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=480.0, help="for all readers together")
    parser.add_argument("--out", type=Path, help="JSON file of the result")
    parser.add_argument("--reader", action="append", help="only this one; may be repeated")
    parser.add_argument("--input", type=int, help="only this input, with its traceback")
    given = parser.parse_args()
    quiet()
    # Studies sync every write; in memory that takes no time.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="autopeft-fuzz-", dir=memory) as name:
        place = Path(name)
        made = Readers(prepare(place))
        chosen = [reader for reader in made.all if not given.reader or reader.name in given.reader]
        if given.input is not None:
            print("accepted" if tried(chosen[0], seeded(chosen[0], given.input), place / "one") else "refused")
            return 0
        rows = []
        shares = {reader.name: COSTLY if reader.name in SLOW else 1 for reader in chosen}
        for reader in chosen:
            seconds = given.seconds * shares[reader.name] / sum(shares.values())
            row = in_a_process(reader, seconds, place / f"of {reader.name}")
            rows.append(row)
            print(
                "{id:30} {inputs:7} inputs {refused:7} refused {accepted:7} accepted {tracebacks:5} tracebacks".format(
                    **row
                )
            )
            for kind, (number, text) in row["faults"].items():
                print(f"    {kind} (input {number}): {text}")
            sys.stdout.flush()
    if given.out is not None:
        write(given.out, rows)
    return 1 if any(row["tracebacks"] for row in rows) else 0


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes the rows with what they were measured with."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=False)
    content = {
        "command": f"python -m tests.fuzz.campaign {' '.join(sys.argv[1:])}",
        "commit": commit.stdout.strip(),
        "versions": {n: version(n) for n in ("autopeft", "peft", "pyarrow", "safetensors", "torch", "transformers")},
        "machine": {"architecture": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
        "rows": rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
