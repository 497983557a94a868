"""From what a job returned to the record of its trial. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from autopeft.job import Outcome
from autopeft.redaction import redacted
from autopeft.study.folders import canonical, require_files
from autopeft.trial import DETAIL_FORM, TRAINING_LOSS, Cost, Failure, Problem, Trial, TrialStatus
from autopeft.untrusted import require_form


def ended(trial: Trial, result: Outcome | Failure, problem: Problem) -> Trial:
    """Returns the final record of a trial.

    Secrets are taken out of what a failure says. Objectives that are known functions of the configuration are filled
    in. A number that is not finite fails the trial, since no front and no model could use it; so does an objective that
    is missing (the quality at the full budget, the training loss at a part of it), and whatever else cannot be stored:
    a record that the disk refused each time would stop the study for good.

    Args:
        trial: The record before.
        result: What came of its job.
        problem: Names the objectives.
    """
    if isinstance(result, Failure):
        clean = replace(result, message=redacted(result.message), traceback=redacted(result.traceback))
        return replace(trial, status=TrialStatus.FAILED, failure=clean)
    try:
        objectives = {_name(name): float(value) for name, value in result.objectives.items()}
        detail = _finite(dict(result.detail))
        canonical(detail)
        require_form(detail, DETAIL_FORM, "detail")
        cost = _cost(result.cost)
        require_files(result.files)
    except (TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
        failure: Failure | None = Failure("error", f"what the job returned cannot be stored ({error})")
        return replace(trial, status=TrialStatus.FAILED, failure=failure)
    objectives |= {o.name: float(o.known(trial.configuration)) for o in problem.objectives if o.known is not None}
    failure = _unusable(objectives, problem, trial.proposal.budget.full)
    if failure is not None:
        return replace(trial, status=TrialStatus.FAILED, failure=failure, cost=cost, detail=detail)
    return replace(trial, status=TrialStatus.COMPLETED, objectives=objectives, cost=cost, detail=detail)


def _unusable(objectives: Mapping[str, float], problem: Problem, full: bool) -> Failure | None:
    quality, *others = [objective.name for objective in problem.objectives]
    for name in (quality if full else TRAINING_LOSS, *others):
        if name not in objectives:
            return Failure("error", f"the job returned no '{name}'")
    for name, value in objectives.items():
        if math.isnan(value):
            return Failure("nan", f"{name} is not a number")
        if math.isinf(value):
            return Failure("infinite", f"{name} is infinite")
    return None


def _name(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no name of an objective")
    return value


def _cost(cost: Cost) -> Cost:
    found = Cost(float(cost.cpu_seconds), float(cost.seconds), int(cost.peak_bytes))
    if not (math.isfinite(found.cpu_seconds) and math.isfinite(found.seconds)):
        raise ValueError(f"its cost is not finite: {found.cpu_seconds} s of CPU in {found.seconds} s")
    return found


def _finite(value: Any) -> Any:
    """JSON has no NaN: a curve that ends in one keeps its place with null."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
