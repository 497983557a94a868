"""Compares searchers on synthetic landscapes whose true front is known.

    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/synthetic_search/run.py --instances 5

A score is the noise-free hypervolume of the chosen set divided by that of the true front. "raw" chooses the front of
the noisy observations, "posterior" the front by the model's mean. The instances (seeds 0, 1, ...) were not used for
tuning; those used for it have seeds from 1000 on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from landscape import Landscape, draw

from autopeft.pareto import ParetoFront
from autopeft.search import Searcher, make_searcher, posterior_quality
from autopeft.trial import Budget, Objective, Problem, StoredParameters, Trial, TrialStatus

HERE = Path(__file__).resolve().parent
MARKS = (20, 30, 60, 100)
SEARCHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "random, uniform": ("random", {"stratified": False}),
    "random, stratified": ("random", {}),
    "bayes": ("bayes", {}),
}


def problem_of(landscape: Landscape) -> Problem:
    """Returns the search problem of a landscape: accuracy, and exact stored parameters."""
    known = StoredParameters(landscape.space.shape)
    objectives = (Objective("quality", "maximize"), Objective("parameters", "minimize", known=known, log=True))
    return Problem(landscape.space, objectives, Budget(1, 1), reference=landscape.reference)


def search(landscape: Landscape, searcher: Searcher, trials: int, seed: int) -> tuple[list[Trial], list[float]]:
    """Runs one search, one trial at a time; returns the trials and the CPU seconds of every suggestion."""
    problem, space = problem_of(landscape), landscape.space
    noise = np.random.default_rng([seed, 99])
    history: list[Trial] = []
    seconds = []
    while len(history) < trials:
        start = time.process_time()
        proposal = searcher.suggest(problem, history, [], 1, np.random.default_rng([seed, len(history)]))[0]
        seconds.append(time.process_time() - start)
        point = np.array([space.point(proposal.configuration)])
        quality = float(landscape.quality(point)[0] + landscape.noise * noise.standard_normal())
        objectives = {"quality": quality, "parameters": float(space.stored_parameters(point)[0])}
        history.append(Trial(len(history), proposal, TrialStatus.COMPLETED, objectives))
    return history, seconds


def scores(landscape: Landscape, history: list[Trial]) -> tuple[float, float]:
    """Returns the score of the front of the noisy observations, and of the front by posterior mean."""
    problem = problem_of(landscape)
    believed = {name: mean for name, (mean, _) in posterior_quality(problem, history).items()}
    fronts = (ParetoFront.of(history, problem.objectives, quality) for quality in (None, believed))
    points = ([landscape.space.point(t.configuration) for t in front] for front in fronts)
    raw, posterior = (landscape.volume(np.array(p)) / landscape.best_volume for p in points)
    return raw, posterior


def row(
    family: str, seed: int, name: str, history: list[Trial], seconds: list[float], land: Landscape
) -> dict[str, Any]:
    """Returns one result row after as many trials as the history has."""
    raw, posterior = scores(land, history)
    return {
        "id": f"{family}/{seed}/{name}/{len(history)}",
        "family": family,
        "seed": seed,
        "searcher": name,
        "trials": len(history),
        "raw": round(raw, 4),
        "posterior": round(posterior, 4),
        "cpu_seconds": round(float(np.mean(seconds[-10:])), 4),
    }


def main() -> None:
    """Runs all searches and writes results/synthetic_search.json; prints the means as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=5, help="instances per family")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "synthetic_search.json")
    options = parser.parse_args()
    rows = []
    for family in ("paper", "lora_rate"):
        for seed in range(options.instances):
            land = draw(family, seed)
            for name, (kind, settings) in SEARCHERS.items():
                history, seconds = search(land, make_searcher(kind, **settings), max(MARKS), seed)
                rows += [row(family, seed, name, history[:n], seconds[:n], land) for n in MARKS]
        table(rows, family)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=HERE, check=False)
    record = {
        "command": f"python benchmarks/synthetic_search/run.py --instances {options.instances}",
        "commit": commit.stdout.strip(),
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__},
        "machine": {
            "architecture": platform.machine(),
            "cores": os.cpu_count(),
            "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        },
        "rows": rows,
    }
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(json.dumps(record, indent=1) + "\n")


def table(rows: list[dict[str, Any]], family: str) -> None:
    """Prints mean scores (raw / posterior) of one family, one line per searcher."""
    sys.stdout.write(f"{family}: raw / posterior after {', '.join(str(n) for n in MARKS)} trials\n")
    for name in SEARCHERS:
        cells = []
        for n in MARKS:
            of = [r for r in rows if (r["family"], r["searcher"], r["trials"]) == (family, name, n)]
            cells.append(f"{np.mean([r['raw'] for r in of]):.3f} / {np.mean([r['posterior'] for r in of]):.3f}")
        sys.stdout.write(f"  {name:20s} {'   '.join(cells)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
