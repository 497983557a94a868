"""What a piece of work costs the process: CPU time, wall time, peak memory."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import final

from autopeft.trial import Cost


@final
class Meter:
    """Measures what is done from now on.

    The peak is that of the resident memory while it runs where the kernel lets a process reset it (Linux), and of the
    process's whole life elsewhere. What others have freed and the allocator still holds is given back first, where it
    is glibc's, so that the peak does not tell who ran before.

    Args:
        share: Part of the times that counts: of work that several jobs have done together each bears its share.

    Example:
        >>> meter = Meter()
        >>> meter.read().seconds < 60
        True
    """

    def __init__(self, share: float = 1.0) -> None:
        self._before, self._share = Cost(), share
        _give_back()
        self._begin()

    def _begin(self) -> None:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def read(self) -> Cost:
        """Returns the cost so far."""
        cpu, wall = time.process_time() - self._cpu, time.perf_counter() - self._wall
        return together(self._before, Cost(cpu * self._share, wall * self._share, _peak_bytes()))

    def share(self, share: float) -> None:
        """Counts another part of the times from now on."""
        if share != self._share:
            self._before, self._share = self.read(), share
            self._begin()

    def add(self, cost: Cost) -> None:
        """Adds what an earlier attempt spent on work that is not done again."""
        self._before = together(self._before, cost)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[Cost]:
        """Yields the cost so far and measures nothing while the block runs."""
        self._before = self.read()
        try:
            yield self._before
        finally:
            self._begin()


def together(first: Cost, second: Cost) -> Cost:
    """Returns the cost of two pieces of work, one after the other: sums of times, the larger peak.

    Example:
        >>> together(Cost(1.0, 2.0, 5), Cost(1.0, 1.0, 7))
        Cost(cpu_seconds=2.0, seconds=3.0, peak_bytes=7)
    """
    return Cost(
        first.cpu_seconds + second.cpu_seconds,
        first.seconds + second.seconds,
        max(first.peak_bytes, second.peak_bytes),
    )


def _give_back() -> None:
    """Has glibc return free pages of its heaps to the system; other allocators have no such function."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _peak_bytes() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
