"""Prints the tables of docs/first_search.md from the results files.

python -m benchmarks.first_search.table
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from autopeft.pareto import hypervolume

RESULTS = Path(__file__).resolve().parent / "results"
MARKS = (10, 20, 30, 40, 50, 60)
REFERENCE = (0.65, -6.5)
"""Accuracy, and minus log10 of stored parameters (about 3.2 M), from which hypervolume is counted."""


def spread(split: dict[str, float | None]) -> str:
    """Returns mean and standard deviation in points."""
    deviation = "" if split["sd"] is None else f" ± {100 * split['sd']:.1f}"
    return f"{100 * (split['mean'] or 0.0):.1f}{deviation}"


def finals(record: dict[str, Any]) -> list[str]:
    """Returns the table of the final points and baselines, in order of parameters."""
    lines = [
        "| what | configuration | stored | in the search | validation | selection | test |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(record["finals"], key=lambda r: (r["parameters"], r["name"])):
        name = f"**{row['name']}** {row['of']}" if row["name"] == "front" else f"baseline {row['name']}"
        scores = " | ".join(spread(row["splits"][split]) for split in ("validation", "selection", "test"))
        searched = f"{100 * row['searched_quality']:.1f}"
        lines.append(f"| {name} | {row['description']} | {row['parameters']:,.0f} | {searched} | {scores} |")
    return lines


def anytime(records: dict[str, dict[str, Any]]) -> list[str]:
    """Returns the table of the hypervolume after so many search trials."""
    lines = [f"| searcher | {' | '.join(str(n) for n in MARKS)} |", "|---" * (len(MARKS) + 1) + "|"]
    for name, record in records.items():
        lines.append(f"| {name} | " + " | ".join(f"{volume(record, n):.3f}" for n in MARKS) + " |")
    return lines


def volume(record: dict[str, Any], trials: int) -> float:
    """Returns the hypervolume of the first search trials over `REFERENCE`, in accuracy times decades."""
    searched = [r for r in record["rows"] if r["purpose"] == "search" and r["quality"] is not None][:trials]
    points = [(r["quality"], -math.log10(max(r["parameters"], 1000.0))) for r in searched]
    return hypervolume(points, REFERENCE)


def main() -> None:
    """Prints both tables."""
    records = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    for name, record in records.items():
        cost = sum(r["cpu_seconds"] for r in record["rows"])
        print(f"{name}: {record['phase']}, commit {record['commit'][:12]}, {cost:,.0f} CPU-s, {record['command']}\n")
        if record["finals"]:
            print("\n".join(finals(record)), end="\n\n")
    print("\n".join(anytime(records)))


if __name__ == "__main__":
    main()
