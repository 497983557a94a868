"""What a piece of work costs the process: CPU time, wall time, peak memory."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from autopeft.trial import Cost


def start() -> Callable[[], Cost]:
    """Starts measuring; calling the result gives the cost since then.

    The peak is that of the resident memory since the start where the kernel lets a process reset it (Linux), and of
    the process's whole life elsewhere.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    cpu, wall = time.process_time(), time.perf_counter()
    return lambda: Cost(time.process_time() - cpu, time.perf_counter() - wall, _peak_bytes())


def _peak_bytes() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
