"""Whole searches: the same random proposals, halved and cached by this package, trained one by one by the Trainers.

Per task and seed the lean search is run in one process. The regret is against all its configurations at the full
budget, trained by the lean loop with the cache: those that were promoted have been, the others are trained beside it,
and one promoted configuration is trained again to show that going on from a rung gives the very same quality. The
Trainers are timed on some of the configurations, chosen by lowest layer, and the rest follows from a linear model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from autopeft.configuration import Configuration
from benchmarks.speed.costs import CostModel, Regret, features, left_out_errors, regret, stratified
from benchmarks.speed.pieces import Piece, Stages
from benchmarks.speed.processes import measure
from benchmarks.speed.record import Record
from benchmarks.speed.sixteen import lean_loop, run_lean, run_trainer
from benchmarks.speed.workloads import FOLDER, Workload

KEEP = 1 / 6
"""Share of the configurations that go on from a quarter of the budget."""


def stages(
    record: Record,
    workloads: Sequence[Workload],
    trials: int,
    timed: int,
    complete: str | None,
    precisions: tuple[str, ...] = ("float32",),
) -> Stages:
    """Yields the pieces, seed by seed: lean searches, Trainers, the rest at the full budget; a complete baseline last.

    Args:
        record: Its rows name the configurations that the later stages train.
        workloads: Tasks and seeds.
        trials: Configurations per search.
        timed: Configurations per task that the Trainers are timed on, at the lowest of its seeds.
        complete: Trainer that trains all configurations of the first workload, or None.
        precisions: Those of the lean searches, "float32" first; in the last, the default of a new study here, all
            searches are run and all configurations trained in full, in the others the first seed of each task.
    """
    loop, precision = lean_loop(precisions[-1]), precisions[-1]
    lowest_seed = {data: min(w.seed for w in workloads if w.data == data) for data in {w.data for w in workloads}}
    for seed in sorted({w.seed for w in workloads}):
        group = [w for w in workloads if w.seed == seed]
        yield [
            Piece("search", w.name, loop, partial(run_search, w, trials, precision), seed=w.seed, own=True)
            for w in group
        ]
        yield [
            Piece("search", f"{w.name} {c.id}", trainer, partial(run_trainer, w, trainer, c, w.seed), seed=w.seed)
            for w in group
            if w.seed == lowest_seed[w.data]
            for c in stratified(proposals(lean_row(record, w, loop)), w.described().shape, timed)
            for trainer in ("plain", "tuned")
        ]
        yield [
            Piece("search", w.name, "full", partial(run_full, w, lean_row(record, w, loop), precision), seed=w.seed,
                  own=True)
            for w in group
        ]  # fmt: skip
    yield [
        Piece("search", w.name, lean_loop(p), partial(run_search, w, trials, p), seed=w.seed, own=True)
        for w in workloads
        for p in precisions[:-1]
        if w.seed == lowest_seed[w.data]
    ]
    if complete:
        w = workloads[0]
        yield [
            Piece("search", f"{w.name} {c.id}", complete, partial(run_trainer, w, complete, c, w.seed),
                  seed=w.seed)
            for c in proposals(lean_row(record, w, loop))
        ]  # fmt: skip


def main_loop(record: Record) -> str:
    """Returns the loop that a new study on this machine takes: the one in which all searches were run."""
    loops = {row["loop"] for row in record.of(part="search", engine=record.engine)}
    return next((loop for loop in sorted(loops, reverse=True) if loop.startswith("lean")), "lean")


def lean_row(record: Record, workload: Workload, loop: str | None = None) -> dict[str, Any]:
    """Returns the row of a workload's lean search by the package as it is; None: in the loop of `main_loop`."""
    loop = loop or main_loop(record)
    row = record.find({"part": "search", "id": workload.name, "loop": loop, "engine": record.engine})
    if row is None:
        raise LookupError(f"no {loop} search of {workload.name}")
    return row


def proposals(row: Mapping[str, Any]) -> list[Configuration]:
    """Returns the configurations that a lean search proposed, in order, without the promotions."""
    return [Configuration.from_dict(t["configuration"]) for t in row["trials"] if t["parent"] is None]


def run_search(workload: Workload, trials: int, precision: str = "float32") -> dict[str, Any]:
    """Runs a lean search in a fresh process."""
    options = {"keep": KEEP}
    spec = {
        "workload": asdict(workload),
        "folder": str(FOLDER / "studies" / f"{workload.name}-{precision}"),
        "precision": precision,
        "trials": trials,
        "seed": workload.seed,
        "options": options,
    }
    done = measure("lean_search", spec)
    return {
        "budget": {"examples": workload.train, "epochs": workload.epochs},
        "options": options,
        "cpu_seconds": done.cpu_seconds,
        "peak_bytes": done.peak_bytes,
        "trials": done.rows[-1]["trials"],
    }


def run_full(workload: Workload, row: Mapping[str, Any], precision: str) -> dict[str, Any]:
    """Trains at the full budget what the search did not, and one that it did."""
    promoted = full_trials(row)
    chosen = [c for c in proposals(row) if c.id not in promoted]
    again = next((c for c in proposals(row) if c.id in promoted), None)
    seeds = {t["seed"] for t in row["trials"]}
    if len(seeds) != 1:
        raise ValueError(f"the trials of a search have one seed, found {sorted(seeds)}")
    done = run_lean(workload, [*chosen, *([again] if again else [])], seed=seeds.pop(), precision=precision)
    if again:
        done["again"] = {**done["trials"].pop(), "before": promoted[again.id]["quality"]}
    return done


def full_trials(row: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the completed trials of a search's full budget, by configuration."""
    return {
        t["id"]: t
        for t in row["trials"]
        if t["budget"].get("share", 1.0) == 1.0 and t["quality"] is not None
    }  # fmt: skip


def regret_of(
    search: Mapping[str, Any], whole: Mapping[str, Any], full: Mapping[str, Any], parameters: Mapping[str, float]
) -> Regret:
    """Returns what a lean search lost, in qualities of the loop in which all configurations were trained.

    Args:
        search: Its row.
        whole: The row of the lean search in that loop: the same one, or that of the same proposals.
        full: The row of what that one did not train fully.
        parameters: Stored parameters by configuration.
    """
    found = full_trials(search)
    quality = {t["configuration"]: t["quality"] for t in full["trials"]}
    quality |= {name: t["quality"] for name, t in full_trials(whole).items()}
    names = sorted(quality)
    values = [quality[n] for n in names], [parameters[n] for n in names]
    return regret(*values, [i for i, n in enumerate(names) if n in found])


def baseline_cost(
    record: Record, workload: Workload, timed_on: Workload, timed: int, loop: str
) -> tuple[float, dict[str, Any]]:
    """Returns the CPU seconds of a whole search under a Trainer, from the model of those that were timed.

    Args:
        record: Rows of this part.
        workload: Its proposals are summed.
        timed_on: The workload of the same task on which the Trainers were timed.
        timed: How many were.
        loop: "plain" or "tuned".

    Returns:
        The seconds, one start of a process included, and how well the model fits.
    """
    shape = timed_on.described().shape
    chosen = stratified(proposals(lean_row(record, timed_on)), shape, timed)
    rows = [record.find({"part": "search", "id": f"{timed_on.name} {c.id}", "loop": loop}) for c in chosen]
    found = [row for row in rows if row is not None]
    known = [features(Configuration.from_dict(row["configuration"]), shape) for row in found]
    seconds = [row["cpu_seconds"] for row in found]
    model = CostModel.fit(known, seconds)
    start = min(row["process_seconds"] - row["cpu_seconds"] for row in found)
    errors = left_out_errors(known, seconds)
    total = start + float(model([features(c, shape) for c in proposals(lean_row(record, workload))]).sum())
    return total, {
        "weights": (model.weights / model.scales).tolist(),
        "start": start,
        "left_out_errors": errors.round(4).tolist(),
    }
