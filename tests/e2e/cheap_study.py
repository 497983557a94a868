"""Runs a study of cheap jobs to its end, or until it is killed: the program that the tests beside it kill.

    python -m tests.e2e.cheap_study FOLDER [--job slow] [--trials 8] [--workers 1] [--executor process]
        [--searcher random] [--kill FUNCTION:WHEN:N] [--largest-file BYTES]

With --kill the process kills itself before or after the Nth call of a function, a moment no signal from outside could
hit. With --largest-file it cannot write files beyond that many bytes, as if the disk were full.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from autopeft.errors import AutoPeftError
from autopeft.presets import preset
from autopeft.search.base import make_searcher
from autopeft.study.study import Study
from tests.contracts.cheap_jobs import SHAPE
from tests.contracts.cheap_studies import definition

POINTS = {
    "add": "autopeft.study.store:Store.add",
    "advance": "autopeft.study.store:Store.advance",
    "write": "autopeft.study.folders:TrialFolders.write",
    "replace": "autopeft.study.folders:TrialFolders._replace",
    "make": "autopeft.study.store:Store._make",
    "fsync": "os:fsync",
}


def arm(point: str) -> None:
    """Makes the process kill itself around the nth call of a function."""
    name, when, count = point.split(":")
    module, _, path = POINTS[name].partition(":")
    *outer, last = path.split(".")
    owner: Any = importlib.import_module(module)
    for part in outer:
        owner = getattr(owner, part)
    original: Callable[..., Any] = getattr(owner, last)
    calls = 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == int(count) and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*arguments, **options)
        if calls == int(count) and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, last, staticmethod(counted) if name == "make" else counted)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--job", default="slow")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--executor", default="process")
    parser.add_argument("--searcher", default="random")
    parser.add_argument("--kill")
    parser.add_argument("--largest-file", type=int)
    given = parser.parse_args()
    if given.kill:
        arm(given.kill)
    if given.largest_file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (given.largest_file, given.largest_file))
    made = definition("slow", trials=given.trials, baselines=(("probe", preset("probe", SHAPE, 1e-3)),))
    if given.searcher != "random":
        made = replace(made, searcher=make_searcher(given.searcher, initial=3))
    try:
        with Study.start(given.folder, replace(made, evaluate=made.evaluate.replace("slow", given.job))) as study:
            report = study.run(given.workers, given.executor)
    except AutoPeftError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(json.dumps({"stopped": report.stopped, "completed": report.completed, "failed": report.failed}))
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
