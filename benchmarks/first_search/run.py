"""A real search on TREC (coarse labels), against baselines trained at the same budget.

    python -m benchmarks.first_search.run --workers 2

Backbone all-MiniLM-L6-v2, the paper's space plus LoRA plus the learning rate, 512 training questions, 3 epochs, batch
32, quality = accuracy on 1,500 other training questions. The search never sees the selection split (1,500 questions)
nor the official test split (500); the final points and the best of each baseline are trained with 3 fresh seeds and
scored on both. The study lies under runs/ and a killed run goes on with the same command; the results file is written
after each phase and says how far it got. About 40 CPU-minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from autopeft import Study, spaces, tasks
from autopeft.configuration import describe
from autopeft.pareto import ParetoFront
from autopeft.presets import baselines
from autopeft.report.summary import summarise
from autopeft.report.svg import front_svg
from autopeft.search import posterior_quality
from autopeft.setting import describe_backbone
from autopeft.spaces.base import dimension_table
from autopeft.trial import Trial, TrialStatus
from benchmarks.data import dataset

HERE = Path(__file__).resolve().parent
RATES = {
    "probe": (1e-3,),
    **dict.fromkeys(("lora", "lora_all_linear", "serial"), (1e-3, 3e-3, 1e-2)),
    "full": (1e-4, 3e-4, 1e-3),
}
"""Learning rates of the baselines: for each method three of the space's own; the probe has none to tune."""


def best_baselines(study: Study) -> list[tuple[str, Trial]]:
    """Returns each method's trial at the rate that validated best."""
    found: dict[str, Trial] = {}
    for trial in study.baselines:
        method = str(trial.proposal.note["name"]).split("@")[0]
        if trial.status is TrialStatus.COMPLETED and (
            method not in found or trial.objectives["quality"] > found[method].objectives["quality"]
        ):
            found[method] = trial
    return list(found.items())


def chosen_points(study: Study, most: int) -> list[Trial]:
    """Returns the front by posterior mean quality, thinned evenly in order of parameters to at most `most` points."""
    problem = study.definition.problem()
    searched = [t for t in study.trials if t.proposal.purpose == "search"]
    believed = {name: mean for name, (mean, _) in posterior_quality(problem, searched).items()}
    front = sorted(ParetoFront.of(searched, problem.objectives, believed), key=lambda t: t.objectives["parameters"])
    keep = np.unique(np.rint(np.linspace(0, len(front) - 1, min(most, len(front)))).astype(int))
    return [front[i] for i in keep]


def row(trial: Trial, name: str) -> dict[str, Any]:
    """Returns one result row of the form every results file has."""
    return {
        "id": trial.number,
        "name": name,
        "purpose": trial.proposal.purpose,
        "configuration": trial.configuration.to_dict(),
        "description": describe(trial.configuration),
        "seed": trial.proposal.seed,
        "budget": trial.proposal.budget.to_dict(),
        "status": str(trial.status),
        "quality": trial.objectives.get("quality"),
        "scores": dict(trial.detail.get("scores", {})),
        "parameters": trial.objectives.get("parameters"),
        "cpu_seconds": round(trial.cost.cpu_seconds, 2),
    }


def final_row(name: str, of: Trial, finals: Sequence[Trial]) -> dict[str, Any]:
    """Returns mean and standard deviation (n - 1) over the fresh seeds, per split."""
    done = [t for t in finals if t.status is TrialStatus.COMPLETED]
    scores = {split: [t.detail["scores"][split] for t in done] for split in done[0].detail["scores"]} if done else {}
    return {
        "name": name,
        "of": of.number,
        "description": describe(of.configuration),
        "parameters": of.objectives["parameters"],
        "searched_quality": of.objectives["quality"],
        "seeds": [t.proposal.seed for t in done],
        "splits": {
            split: {"mean": float(np.mean(v)), "sd": float(np.std(v, ddof=1)) if len(v) > 1 else None}
            for split, v in scores.items()
        },
    }


def record(study: Study, command: str, phase: str, finals: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the content of the results file."""
    names = {t.number: str(t.proposal.note.get("name", "")) for t in study.trials}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=HERE, check=False)
    return {
        "command": command,
        "phase": phase,
        "commit": commit.stdout.strip(),
        "versions": {n: version(n) for n in ("autopeft", "torch", "transformers", "numpy", "scipy")},
        "machine": {"architecture": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
        "data": "$AUTOPEFT_DATA/data/trec",
        "task": {k: study.definition.setting.task[k] for k in ("metric", "sizes", "fingerprint")},
        "space": dimension_table(study.definition.space),
        "space_size": study.definition.space.size,
        "searcher": study.definition.searcher.kind,
        "finals": finals,
        "rows": [row(t, names[t.number]) for t in study.trials],
    }


def main() -> None:
    """Runs or resumes the search, the baselines and the final trainings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searcher", default="bayes")
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--points", type=int, default=6, help="final points trained with fresh seeds; 0: none")
    options = parser.parse_args()
    folder = dataset("trec")
    task = tasks.load(
        str(folder / "train.jsonl"),
        test=str(folder / "test.jsonl"),
        text="text",
        label="label",
        train_size=512,
        validation_size=1500,
        selection_size=1500,
    )
    backbone = describe_backbone("demo")
    name = f"{options.searcher}_{options.seed}"
    results = HERE / "results" / f"{name}.json"
    results.parent.mkdir(exist_ok=True)
    command = f"python -m benchmarks.first_search.run {' '.join(sys.argv[1:])}".strip()

    with Study.create(
        f"runs/first_search/{name}",
        backbone=backbone,
        task=task,
        space=spaces.autopeft(lora=True),
        trials=options.trials,
        searcher=options.searcher,
        seed=options.seed,
        baselines=baselines(backbone.shape, RATES) if options.points else (),
    ) as study:

        def save(phase: str, finals: list[dict[str, Any]]) -> None:
            results.write_text(json.dumps(record(study, command, phase, finals), indent=1) + "\n")
            print(phase, flush=True)

        def watch(_: object, trial: Trial) -> None:
            if trial.status.final:
                quality = trial.objectives.get("quality", float("nan"))
                print(f"{trial.number:4d} {quality:.4f} {describe(trial.configuration)}", flush=True)

        report = study.run(workers=options.workers, progress=watch)
        save(f"search {report.stopped}", [])
        if report.exit_code or not options.points:
            sys.exit(report.exit_code)
        finals: list[dict[str, Any]] = []
        contenders = [("front", t) for t in chosen_points(study, options.points)] + best_baselines(study)
        for label, trial in contenders:
            trained = study.open_test(trial.number, seeds=3, workers=options.workers, progress=watch)
            finals.append(final_row(label, trial, trained))
            save(f"{len(finals)} of {len(contenders)} final points", finals)
        save("complete", finals)
        (HERE / "results" / f"{name}.svg").write_text(front_svg(summarise(study)))


if __name__ == "__main__":
    main()
