"""Where the driver's time goes: seconds within some functions, those of others within them left out."""

from __future__ import annotations

import functools
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from autopeft.study import runner
from autopeft.study.checkpoints import Checkpoints
from autopeft.study.executors.simulated import SimulatedExecutor
from autopeft.study.folders import TrialFolders
from autopeft.study.store import Store

PARTS: tuple[tuple[str, Any, tuple[str, ...]], ...] = (
    ("suggest", runner, ("propose",)),
    ("store", Store, ("add", "advance", "next_number", "transaction", "_transaction")),
    ("folder", TrialFolders, ("write_all",) if hasattr(TrialFolders, "write_all") else ("write",)),
    ("folder", Checkpoints, ("read", "write", "delete")),
    ("simulation", SimulatedExecutor, ("submit", "poll")),
)


def own_clock() -> Callable[[], float]:
    """Returns a clock of this thread: real seconds without those in which it was ready and other processes ran.

    Computing and waiting for the disk count; that the machine is shared with others does not. Linux only: it is the
    second number of /proc/thread-self/schedstat.
    """
    descriptor = os.open("/proc/thread-self/schedstat", os.O_RDONLY)

    def now() -> float:
        return time.perf_counter() - int(os.pread(descriptor, 100, 0).split()[1]) / 1e9

    return now


class Stopwatch:
    """Adds up seconds by part while it is `running`; for one thread, the driver's.

    Args:
        clock: Gives them.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[tuple[str, float]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Times the functions in `PARTS` until the end of the block; what is in none of them is "rest"."""
        found = [(part, owner, name) for part, owner, names in PARTS for name in names if hasattr(owner, name)]
        kept = [(owner, name, getattr(owner, name)) for _, owner, name in found]
        try:
            for part, owner, name in found:
                setattr(owner, name, self._timed(part, getattr(owner, name)))
            with self.part("rest"):
                yield
        finally:
            for owner, name, original in kept:
                setattr(owner, name, original)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Counts a block as a part; what runs around it stands still meanwhile."""
        now = self._clock()
        if self._open:
            outer, since = self._open[-1]
            self.seconds[outer] += now - since
        self._open.append((name, now))
        try:
            yield
        finally:
            now = self._clock()
            _, since = self._open.pop()
            self.seconds[name] += now - since
            if self._open:
                self._open[-1] = (self._open[-1][0], now)

    def _timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:
            with self.part(part):
                return function(*arguments, **options)

        return timed
