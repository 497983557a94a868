"""What a study is, as one JSON-able value: everything that decides its trials. Torch-free."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from typing import Any

from autopeft.configuration import Configuration
from autopeft.errors import InputError, nearest
from autopeft.search.base import Searcher, make_searcher
from autopeft.setting import Setting
from autopeft.shapes import BackboneShape
from autopeft.spaces import space_from_dict
from autopeft.spaces.base import Space
from autopeft.study.folders import canonical, checksum
from autopeft.trial import Budget, Constraint, Objective, Problem, StoredParameters
from autopeft.version import __version__

EVALUATE = "autopeft.worker:evaluate"


OBJECTIVES: Mapping[str, Callable[[BackboneShape], Objective]] = {
    "quality": lambda shape: Objective("quality", "maximize"),
    "parameters": lambda shape: Objective("parameters", "minimize", StoredParameters(shape), log=True),
    "seconds": lambda shape: Objective("seconds", "minimize", log=True),
    "memory": lambda shape: Objective("memory", "minimize", log=True),
}
"""What a study can ask for: "quality" (the task's metric), stored "parameters", "seconds" and "memory" (bytes)."""


@dataclass(frozen=True)
class StudyDefinition:
    """Everything that decides which trials a study makes and how they come out.

    Attributes:
        setting: Backbone, task, head and recipe.
        space: Where to search.
        searcher: How to search.
        trials: Total number of search trials; the one field that may change later (`extended`).
        objectives: Names in `OBJECTIVES`; the first is "quality".
        constraints: Upper bounds by objective that is known without a trial, as given: a number, or for "parameters" a
            percentage of the backbone such as "0.5%".
        budget: Fidelity of a full trial.
        seed: Seeds the searcher, and is the training seed of every search trial and baseline.
        baselines: Pairs of name and configuration to train beside the search.
        evaluate: Function a worker calls with a job, as "package.module:function".
        versions: Library versions at creation; a record, no part of `id`.

    Raises:
        InputError: An unknown objective or a bound that cannot be held.

    Example:
        >>> StudyDefinition.from_dict(study.definition.to_dict()) == study.definition  # doctest: +SKIP
        True
    """

    setting: Setting
    space: Space
    searcher: Searcher
    trials: int
    objectives: tuple[str, ...] = ("quality", "parameters")
    constraints: Mapping[str, str | float] = field(default_factory=dict)
    budget: Budget = field(default_factory=lambda: Budget(0, 3))
    seed: int = 0
    baselines: tuple[tuple[str, Configuration], ...] = ()
    evaluate: str = EVALUATE
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.trials < 0:
            raise InputError(f"{self.trials} trials cannot be run", where="search.trials", cure="use 0 or more")
        if self.seed < 0:
            raise InputError(f"{self.seed} is not a seed", where="search.seed", cure="use 0 or more")
        if self.objectives[:1] != ("quality",) or len(set(self.objectives)) < len(self.objectives):
            raise InputError(
                f"the objectives {list(self.objectives)} do not begin with quality, or repeat one",
                where="search.objectives",
                cure='write "quality" first and each other one once',
            )
        names = [name for name, _ in self.baselines]
        if len(set(names)) < len(names):
            raise InputError("two baselines have one name", where="search.baselines", cure="give each its own")
        if ":" not in self.evaluate:
            raise InputError(f"'{self.evaluate}' names no function", where="evaluate", cure="write package.module:name")
        for _, configuration in self.baselines:
            configuration.check(self.setting.backbone.shape)
        self.problem()

    @cached_property
    def id(self) -> str:
        """Content hash of what decides the trials: all fields except `trials` and `versions`."""
        return checksum(self._identity())[:16]

    def problem(self) -> Problem:
        """Returns the problem the searcher solves; raises InputError for an unknown objective or bad bound."""
        shape = self.setting.backbone.shape
        objectives = tuple(_objective(name, shape, "search.objectives") for name in self.objectives)
        bounds = tuple(self._bound(name, value) for name, value in self.constraints.items())
        return Problem(self.space, objectives, self.budget, bounds)

    def extended(self, trials: int) -> StudyDefinition:
        """Returns the same study with another total of search trials."""
        return replace(self, trials=trials)

    def differences(self, other: StudyDefinition) -> list[str]:
        """Returns one line per field in which the two make different trials: "search.seed: 0 here, 1 asked for"."""
        return list(_differences(self._identity(), other._identity(), ""))

    def to_dict(self) -> dict[str, Any]:
        """Returns a JSON-able form."""
        return {
            "setting": self.setting.to_dict(),
            "space": self.space.to_dict(),
            "searcher": {"kind": self.searcher.kind, "options": _options(self.searcher)},
            "trials": self.trials,
            "objectives": list(self.objectives),
            "constraints": dict(self.constraints),
            "budget": vars(self.budget).copy(),
            "seed": self.seed,
            "baselines": [{"name": name, "configuration": c.to_dict()} for name, c in self.baselines],
            "evaluate": self.evaluate,
            "versions": dict(self.versions),
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> StudyDefinition:
        """Inverse of `to_dict`; raises InputError for names this release does not know."""
        searcher = data["searcher"]
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in searcher["options"].items()}
        return StudyDefinition(
            setting=Setting.from_dict(data["setting"]),
            space=space_from_dict(data["space"]),
            searcher=make_searcher(searcher["kind"], **options),
            trials=data["trials"],
            objectives=tuple(data["objectives"]),
            constraints=dict(data["constraints"]),
            budget=Budget(**data["budget"]),
            seed=data["seed"],
            baselines=tuple((b["name"], Configuration.from_dict(b["configuration"])) for b in data["baselines"]),
            evaluate=data["evaluate"],
            versions=dict(data["versions"]),
        )

    def _identity(self) -> dict[str, Any]:
        told = {k: v for k, v in self.to_dict().items() if k not in ("trials", "versions")}
        return dict(json.loads(canonical(told)))  # lists and tuples are one thing there

    def _bound(self, name: str, value: str | float) -> Constraint:
        shape, where = self.setting.backbone.shape, f"search.constraints.{name}"
        objective = _objective(name, shape, where)
        if objective.known is None:
            raise InputError(f"{name} is measured by a trial, so no proposal can be held to a bound", where=where)
        return Constraint(objective, parameter_bound(value, shape, where))


def parameter_bound(value: str | float, shape: BackboneShape, where: str = "parameters") -> float:
    """Returns a bound as a number of parameters.

    Args:
        value: A number, or a percentage of the backbone's parameters such as "0.5%".
        shape: The backbone.
        where: What the error message names.

    Raises:
        InputError: It is neither, or not above 0.

    Example:
        >>> parameter_bound("50%", BackboneShape("bert", {}, 1000, 8))
        500.0
    """
    text = str(value).strip()
    share = text.endswith("%")
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        number = 0.0
    if not 0.0 < number < float("inf"):
        raise InputError(
            f"{value!r} is no bound", where=where, cure='write a number above 0, or a share such as "0.5%"'
        )
    return number / 100.0 * shape.total_parameters if share else number


def library_versions() -> dict[str, str]:
    """Returns the versions of this package, Python and the libraries that decide numbers; imports none of them."""
    found = {"autopeft": __version__, "python": platform.python_version()}
    for name in ("numpy", "scipy", "torch", "transformers", "peft"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _options(searcher: Searcher) -> dict[str, Any]:
    return {f.name: getattr(searcher, f.name) for f in fields(searcher)} if is_dataclass(searcher) else {}


def _objective(name: str, shape: BackboneShape, where: str) -> Objective:
    if name not in OBJECTIVES:
        raise InputError(f"unknown objective '{name}'", where=where, cure=nearest(name, OBJECTIVES))
    return OBJECTIVES[name](shape)


def _differences(here: Any, there: Any, path: str) -> Iterator[str]:
    if isinstance(here, Mapping) and isinstance(there, Mapping):
        for key in sorted({*here, *there}):
            yield from _differences(here.get(key), there.get(key), f"{path}.{key}" if path else key)
    elif here != there:
        yield f"{path}: {_short(here)} here, {_short(there)} asked for"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:40]}... ({len(text)} characters)"
