"""Finds a public data set under AUTOPEFT_DATA and checks its files against data.toml.

Run `python -m benchmarks.data` to check all of them.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def listing() -> dict[str, Any]:
    """Returns data.toml: set name to its title, origin, commit, path, licence and the sha256 of its files."""
    return tomllib.loads((ROOT / "benchmarks" / "data.toml").read_text(encoding="utf-8"))


def root() -> Path:
    """Returns the folder that holds `data`: AUTOPEFT_DATA, by default `shared` beside the repository."""
    return Path(os.environ.get("AUTOPEFT_DATA", ROOT.parent / "shared"))


def faults(name: str, folder: Path) -> Iterator[str]:
    """Yields what differs between the files of a set in `folder` and the listing."""
    for file, expected in listing()[name]["sha256"].items():
        path = folder / file
        if not path.is_file():
            yield f"{name}/{file} is missing"
        elif hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            yield f"{name}/{file} is not the file that the results were made with"


def dataset(name: str) -> Path:
    """Returns the folder of a set after checking its files; ends the program with the reason where one differs."""
    folder = root() / "data" / name
    found = list(faults(name, folder))
    if found:
        origin = listing()[name]["origin"]
        sys.exit("; ".join(found) + f". Set AUTOPEFT_DATA to the folder that holds data/{name} (from {origin}).")
    return folder


if __name__ == "__main__":
    for each in listing():
        print(each, "ok" if dataset(each) else "")
