"""How a search is run, from its settings: limits, executor, devices. None of it is part of what the study is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autopeft.cli.settings import SearchSettings
    from autopeft.study.calibration import Calibration
    from autopeft.study.definition import StudyDefinition
    from autopeft.study.executors.base import Device, Executor
    from autopeft.study.limits import Terms
    from autopeft.study.study import Study

HOW = (
    "workers",
    "executor",
    "address",
    "devices",
    "devices_per_trial",
    "together",
    "budget",
    "budget_cost",
    "time_limit",
    "memory_limit",
    "checkpoint_every",
    "synchronous",
)
"""Keys of `search` that may differ from one run of a study to the next."""


def workers_of(search: SearchSettings) -> int:
    """Returns the number of workers; 1 as long as nobody has measured how many there shall be."""
    return 1 if search.workers == "auto" else search.workers


def planned_workers(search: SearchSettings, threads: int) -> int:
    """Returns the number of workers to plan with: the one asked for, or for "auto" as many as have cores."""
    from autopeft.study.calibration import usable_cores

    return max(1, usable_cores() // threads) if search.workers == "auto" else search.workers


def measured(
    definition: StudyDefinition, search: SearchSettings, threads: int | None, trust_remote_code: bool, quiet: bool
) -> Calibration:
    """Measures how many workers with how many threads are fastest; raises StudyError where it cannot.

    Args:
        definition: The study.
        search: How it is run: "inline" has one worker.
        threads: The only number of threads allowed, or None.
        trust_remote_code: Whether code that comes with the backbone may run.
        quiet: Whether to say nothing meanwhile.
    """
    from autopeft.cli.console import say
    from autopeft.errors import InputError
    from autopeft.study.calibration import calibrate
    from autopeft.study.definition import EVALUATE

    if definition.evaluate != EVALUATE:
        what = f"auto measures this package's training, and the study runs {definition.evaluate}"
        raise InputError(what, where="search.workers", cure="give a number")
    if not quiet:
        say("measuring workers x threads, about half a minute ...", stderr=True)
    return calibrate(
        definition,
        threads=threads,
        most=1 if search.executor == "inline" else None,
        trust_remote_code=trust_remote_code,
        say=lambda line: None if quiet else say(f"  {line}", stderr=True),
    )


def with_threads(definition: StudyDefinition, threads: int) -> StudyDefinition:
    """Returns a definition whose trials have this number of threads."""
    from dataclasses import replace

    setting = definition.setting
    return replace(definition, setting=replace(setting, recipe=replace(setting.recipe, threads=threads)))


def with_workers(search: SearchSettings, calibration: Calibration) -> SearchSettings:
    """Returns how a search is run, with as many workers as were found to be fastest, if that was to be measured."""
    chosen = calibration.chosen.workers
    return search.model_copy(update={"workers": chosen}) if search.workers == "auto" else search


def terms_of(search: SearchSettings, trust_remote_code: bool) -> Terms:
    """Returns the terms of a run; raises InputError for a duration or size that is none."""
    from autopeft.quantities import bytes_of, seconds_of
    from autopeft.study.limits import Limits, Terms

    def seconds(name: str) -> float | None:
        value = getattr(search, name)
        return None if value is None else seconds_of(value, f"search.{name}")

    limits = Limits(
        seconds("budget"),
        seconds("budget_cost"),
        seconds("time_limit"),
        None if search.memory_limit is None else bytes_of(search.memory_limit, "search.memory_limit"),
    )
    every = seconds_of(search.checkpoint_every, "search.checkpoint_every")
    return Terms(limits, checkpoint_seconds=every, trust_remote_code=trust_remote_code, synchronous=search.synchronous)


def devices_of(search: SearchSettings) -> tuple[Device, ...]:
    """Returns the declared devices, written "0" or "0:80GB"; raises InputError for a name given twice."""
    from autopeft.errors import InputError
    from autopeft.quantities import bytes_of
    from autopeft.study.executors.base import Device

    found = []
    for text in search.devices:
        name, _, memory = str(text).partition(":")
        found.append(Device(name.strip(), bytes_of(memory, "search.devices") if memory else 0))
    names = [device.name for device in found]
    if len(set(names)) < len(names) or not all(names):
        raise InputError(f"the devices {names} repeat or lack a name", where="search.devices", cure="write 0,1")
    return tuple(found)


def require_runnable(search: SearchSettings) -> None:
    """Raises InputError where no search can be run as asked, whatever its study."""
    from autopeft.errors import InputError
    from autopeft.study.executors.choice import OF_ONE_PROCESS, require_choice

    if search.workers == "auto" and search.executor == "ray":
        what = "auto measures this machine, and Ray's workers may run on others"
        raise InputError(what, where="search.workers", cure="give a number, such as the cluster's cores")
    if search.workers == "auto" and (search.executor not in ("process", "inline") or search.devices):
        what = "auto measures trials in processes of their own on the CPU, one at a time in each"
        raise InputError(what, where="search.workers", cure="give a number")
    workers = workers_of(search)
    if workers < 1:
        what = f"{workers} workers can run nothing"
        raise InputError(what, where="search.workers", cure="use 1 or more")
    if search.devices_per_trial and not search.devices and search.executor == "process":
        what = "devices per trial without devices"
        raise InputError(what, where="search.devices_per_trial", cure="name them: --devices 0,1")
    if search.workers == "auto" and search.together > 1:
        what = f"auto measures trials one at a time, and {search.together} are trained together"
        raise InputError(what, where="search.workers", cure="leave it out")
    asked = [name for name in OF_ONE_PROCESS if getattr(search, name)]
    require_choice(search.executor, workers, search.address, search.together, asked)
    terms_of(search, trust_remote_code=False)
    devices_of(search)


def with_devices(terms: Terms, study: Study, search: SearchSettings) -> Terms:
    """Returns terms under which trials ask for their share of the declared devices and are held to their memory."""
    from dataclasses import replace

    from autopeft.study.executors.base import Resources
    from autopeft.study.needs import resources_of

    definition = study.definition
    count = search.devices_per_trial or 1
    if not search.devices:
        return terms
    if not definition.texts:
        return replace(terms, resources=Resources(count))
    needed = resources_of(definition.setting, definition.texts, count, accelerated=True)
    return replace(terms, resources=needed)


def executor_of(study: Study, search: SearchSettings, terms: Terms) -> Executor:
    """Returns the executor a search asks for; the caller closes it."""
    from autopeft.study.executors.choice import make_executor

    return make_executor(
        search.executor,
        study.evaluate,
        workers_of(search),
        study.definition.setting.recipe.threads,
        time_limit=terms.limits.trial_seconds,
        memory_limit=terms.limits.trial_memory,
        devices=devices_of(search),
        devices_per_trial=search.devices_per_trial,
        address=search.address,
        together=search.together,
    )
