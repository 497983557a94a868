"""Studies of cheap jobs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from autopeft import spaces
from autopeft.search.random import RandomSearch
from autopeft.study.definition import StudyDefinition
from autopeft.trial import Budget, Cost, Trial
from tests.contracts.cheap_jobs import HERE, SHAPE, setting


def definition(job: str = "formula", **changes: Any) -> StudyDefinition:
    """A study of cheap jobs: random search unless `changes` says otherwise."""
    made = StudyDefinition(
        setting=setting(),
        space=spaces.autopeft(prefix=False).on(SHAPE),
        searcher=RandomSearch(stratified=False),
        trials=12,
        budget=Budget(0, 1),
        evaluate=f"{HERE}:{job}",
    )
    return replace(made, **changes)


def table(trials: tuple[Trial, ...]) -> list[dict[str, Any]]:
    """What must not differ between two runs of one study: everything but cost and measured time."""
    rows = []
    for trial in trials:
        row = replace(trial, cost=Cost()).to_dict()
        row["objectives"] = {k: v for k, v in row["objectives"].items() if k not in ("seconds", "memory")}
        rows.append(row)
    return rows
