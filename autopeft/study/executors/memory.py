"""How much memory there is, who has it, and whether the kernel took it back. Torch-free.

Read from the files of Linux: /proc and control groups, version 1 and 2. Where one is missing its figure is unknown:
0 for what a process has, None for a limit.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from autopeft.trial import Cost

_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")
# Version 1 writes a limit nobody set as the largest multiple of a page in 63 bits.
_UNLIMITED = 1 << 60


def as_text(size: int) -> str:
    """Returns a number of bytes for a person.

    Example:
        >>> as_text(3 << 29)
        '1.5 GiB'
    """
    power = min(4, max(0, (int(size).bit_length() - 1) // 10))
    return f"{size} bytes" if power == 0 else f"{size / 1024**power:.1f} {'KMGT'[power - 1]}iB"


# -- one process --


def resident(process: int | None = None) -> int:
    """Returns the resident bytes of a process, of this one by default; 0 where that is unknown."""
    try:
        return int((_PROC / str(process or "self") / "statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError, ValueError):
        return 0


def cpu_seconds(process: int) -> float:
    """Returns the CPU time of a process and of its ended children, also of one that is dead but not yet waited for."""
    try:
        # The name, in parentheses, may hold anything; utime, stime, cutime and cstime are fields 14 to 17 of proc(5).
        fields = (_PROC / str(process) / "stat").read_text().rpartition(")")[2].split()
        return sum(int(ticks) for ticks in fields[11:15]) / _TICKS
    except (OSError, IndexError, ValueError):
        return 0.0


def resident_after_cleaning(before: int = 0, spare: int = 64 << 20) -> int:
    """Gives free memory back to the system and returns the resident bytes of this process.

    Garbage is collected where that leaves more than `before + spare` bytes: with large libraries loaded a collection
    takes a fifth of a second.

    Args:
        before: The least that this returned before.
        spare: Bytes above that which are let pass.
    """
    _trim()
    if resident() > before + spare:
        gc.collect()
        _trim()
    return resident()


def _trim() -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # glibc only


def measure() -> Callable[[], Cost]:
    """Starts measuring this process; calling the result gives the cost since then.

    The peak is that since the start where the kernel lets a process reset it (Linux), of its whole life elsewhere.
    """
    with contextlib.suppress(OSError):
        (_PROC / "self/clear_refs").write_text("5")
    cpu, wall = time.process_time(), time.perf_counter()
    return lambda: Cost(time.process_time() - cpu, time.perf_counter() - wall, _peak())


def _peak() -> int:
    with contextlib.suppress(OSError, IndexError, ValueError):
        lines = (_PROC / "self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# -- the machine and its control groups --


def total(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int | None:
    """Returns the bytes this process could ever have: those of the machine or the least limit of its control groups."""
    sizes = [_meminfo(proc).get("MemTotal"), *(limit for limit, _ in _limits(proc, cgroups))]
    return min((size for size in sizes if size is not None), default=None)


def available(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int | None:
    """Returns the bytes that are free now, or can be freed at once, within every limit."""
    sizes = [_meminfo(proc).get("MemAvailable"), *(max(0, limit - used) for limit, used in _limits(proc, cgroups))]
    return min((size for size in sizes if size is not None), default=None)


def oom_kills(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int:
    """Returns how often the kernel has killed for want of memory, in this process's control group.

    Processes that it starts belong to the same. Where the group does not tell, it is the count of the whole machine.
    """
    for folder, second in _folders(proc, cgroups):
        count = _value(folder / ("memory.events" if second else "memory.oom_control"), "oom_kill")
        if count is not None:
            return count
    return _value(proc / "vmstat", "oom_kill") or 0


def _meminfo(proc: Path) -> dict[str, int]:
    sizes: dict[str, int] = {}
    with contextlib.suppress(OSError):
        for line in (proc / "meminfo").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in ("MemTotal", "MemAvailable"):
                sizes[name] = int(rest.split()[0]) * 1024
    return sizes


def _folders(proc: Path, cgroups: Path) -> list[tuple[Path, bool]]:
    """Returns the control groups of this process, innermost first, and whether they are version 2.

    In a container the path may be that of the host, which is not to be seen from inside: what exists is taken.
    """
    found: list[tuple[Path, bool]] = []
    with contextlib.suppress(OSError):
        for line in (proc / "self/cgroup").read_text().splitlines():
            number, controllers, name = line.split(":", 2)
            if "memory" in controllers.split(","):
                root, second = cgroups / "memory", False
            elif number == "0":
                root, second = cgroups, True
            else:
                continue
            folder = root / name.lstrip("/")
            within = (path for path in (folder, *folder.parents) if path.is_relative_to(root))
            found += [(path, second) for path in within if path.is_dir()]
    return found


def _limits(proc: Path, cgroups: Path) -> list[tuple[int, int]]:
    """Returns (limit, bytes used that cannot be freed at once) of every control group that has a limit."""
    limits: list[tuple[int, int]] = []
    for folder, second in _folders(proc, cgroups):
        limit = _value(folder / ("memory.max" if second else "memory.limit_in_bytes"))
        used = _value(folder / ("memory.current" if second else "memory.usage_in_bytes"))
        if limit is None or used is None or limit >= _UNLIMITED:
            continue
        file_cache = _value(folder / "memory.stat", "inactive_file" if second else "total_inactive_file") or 0
        limits.append((limit, max(0, used - file_cache)))
    return limits


def _value(path: Path, key: str | None = None) -> int | None:
    """Reads a file of one number, or of lines of a key and a number; None where it is not there or says "max"."""
    with contextlib.suppress(OSError, ValueError):
        text = path.read_text()
        if key is None:
            return int(text)
        for line in text.splitlines():
            name, _, number = line.partition(" ")
            if name == key:
                return int(number)
    return None


class OutOfMemoryWatch:
    """Tells a process that the kernel killed for want of memory from one that somebody killed.

    Both die of SIGKILL. The kernel only counts those that it kills, whichever they are, so the window of time in which
    the count is compared is kept short.
    """

    WINDOW = 30.0
    """Seconds by which the news of a death may be late; a large process takes some to die."""

    def __init__(self) -> None:
        self._readings: deque[tuple[float, int]] = deque()

    def restart(self) -> None:
        """Forgets what is older than a second: no process ran that could have been killed."""
        if self._readings and time.monotonic() > self._readings[-1][0] + 1.0:
            self._readings.clear()

    def look(self) -> None:
        """Reads the count, at most once a second; to be called as long as processes run."""
        now = time.monotonic()
        if self._readings and now < self._readings[-1][0] + 1.0:
            return
        self._readings.append((now, oom_kills()))
        while len(self._readings) > 1 and self._readings[1][0] < now - self.WINDOW:
            self._readings.popleft()

    def rose(self) -> bool:
        """Says whether the kernel has killed a process since the oldest look that counts."""
        return bool(self._readings) and oom_kills() > self._readings[0][1]
