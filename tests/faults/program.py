"""Runs a study of `tests.faults.jobs` to its end: the program that the campaign kills, starves and deceives.

    python -m tests.faults.program FOLDER [--job steady] [--trials 20] [--workers 1] [--executor process]
        [--kill any:37 | commit:5:0.0002 | after:1.5] [--clock] [--time-limit S] [--memory-limit BYTES] [--silence S]

--kill: the process kills itself at the 37th moment of `tests.faults.moments`, or within its 5th transaction's commit,
0.2 ms after that began, or so many seconds after it began. --clock: the clock jumps by a day, back and forth.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import signal
import sys
import threading
import time
from dataclasses import replace

from autopeft.errors import AutoPeftError
from autopeft.study.executors.base import Executor
from autopeft.study.executors.choice import make_executor
from autopeft.study.executors.process import ProcessExecutor
from autopeft.study.limits import Terms
from autopeft.study.study import Study
from tests.contracts.cheap_studies import definition
from tests.faults.jobs import HERE
from tests.faults.moments import watched

TRIALS = 20


class Killer:
    """Counts moments, and kills this process at one of them."""

    def __init__(self, order: str) -> None:
        kind, _, rest = order.partition(":")
        self.count, self.at, self.delay, self.kind = 0, -1, 0.0, kind
        if kind == "after":
            self.kill_in(float(rest))
        elif kind == "commit":
            number, _, delay = rest.partition(":")
            self.at, self.delay = int(number), float(delay)
        elif kind == "any":
            self.at = int(rest)

    def __call__(self, name: str) -> None:
        if self.kind == "commit" and name != "before COMMIT":
            return
        self.count += 1
        if self.count == self.at:
            if self.kind == "commit":
                self.kill_in(self.delay)
            else:
                os.kill(os.getpid(), signal.SIGKILL)

    def kill_in(self, seconds: float) -> None:
        timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))
        timer.daemon = True
        timer.start()


def deceive() -> None:
    """Makes the clock jump by a day, forward and back, every few times it is read."""
    true, calls = time.time, itertools.count()
    time.time = lambda: true() + 86400.0 * (next(calls) // 7 % 3 - 1)


def executor_of(given: argparse.Namespace, evaluate: str) -> Executor:
    if given.executor == "process":
        limits = {"time_limit": given.time_limit, "memory_limit": given.memory_limit}
        return ProcessExecutor(evaluate, given.workers, **limits, silence_limit=given.silence)
    return make_executor(given.executor, evaluate, given.workers, 1)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--job", default="steady")
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--executor", default="process")
    parser.add_argument("--kill", default="")
    parser.add_argument("--clock", action="store_true")
    parser.add_argument("--time-limit", type=float)
    parser.add_argument("--memory-limit", type=int)
    parser.add_argument("--silence", type=float, default=300.0)
    given = parser.parse_args()
    killer = Killer(given.kill)
    if given.clock:
        deceive()
    evaluate = f"{HERE}:{given.job}"
    made = replace(definition(trials=given.trials), evaluate=evaluate)
    with contextlib.ExitStack() as stack:
        stack.enter_context(watched(killer))
        try:
            study = stack.enter_context(Study.start(given.folder, made))
            executor = executor_of(given, evaluate)
            stack.callback(executor.close)
            report = study.run(given.workers, executor, terms=Terms(checkpoint_seconds=0.0))
        except AutoPeftError as error:
            print(error, file=sys.stderr)
            return error.exit_code
    told = {"stopped": report.stopped, "completed": report.completed, "failed": report.failed, "moments": killer.count}
    print(json.dumps(told))
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
