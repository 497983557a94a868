"""Where hidden states are kept between trials: files that all processes map, and this process's memory.

Files come first: their pages are the machine's memory all the same, once for all processes, given back where it is
short, and gone from a process as soon as its trial lets go of them. A process keeps arrays of its own where files
cannot be had: no budget for them, a full disk, a folder on a network's disk.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
from collections import OrderedDict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final, final

import torch

from autopeft.backbones.shared import CACHE, cache_folder
from autopeft.errors import InputError
from autopeft.quantities import bytes_of
from autopeft.study.executors import memory
from autopeft.study.filesystem import filesystem_of, is_network
from autopeft.training.state_files import Fill, StateFiles

MEMORY: Final = "AUTOPEFT_CACHE_MEMORY"
"""Environment variable: bytes of arrays in the memory of one process; default 1/16 of what it may have."""
DISK: Final = "AUTOPEFT_CACHE_DISK"
"""Environment variable: bytes of all files; default a tenth of the free disk."""
_SHARE_OF_MEMORY, _SHARE_OF_DISK = 16, 10


@final
class StateCache:
    """Arrays of hidden states by name; the least recently used leave first.

    Args:
        files: Where the files are, or None for none.
        memory_budget: Bytes of arrays in the memory of this process.

    Example:
        >>> cache = StateCache(None, 1 << 30)
        >>> cache.get("a" * 8, {}, (2, 1), torch.float32, lambda put: put(0, torch.ones(2, 1)))
        tensor([[1.],
                [1.]])
    """

    def __init__(self, files: StateFiles | None, memory_budget: int) -> None:
        self._files, self._budget = files, memory_budget
        self._arrays: OrderedDict[str, torch.Tensor] = OrderedDict()

    def get(
        self, name: str, key: dict[str, Any], shape: tuple[int, int], dtype: torch.dtype, fill: Fill
    ) -> torch.Tensor | None:
        """Returns an array that nobody may write to, computed where it is not there; None where there is no room.

        Args:
            name: What it is kept under: letters and digits, those of a checksum of `key`.
            key: What it is.
            shape: Rows and width.
            dtype: Type of its numbers.
            fill: Computes it.
        """
        if name in self._arrays:
            self._arrays.move_to_end(name)
            return self._arrays[name]
        if self._files is not None:
            found = self._files.read(name)
            if found is None:
                found = self._files.write(name, key, shape, dtype, fill)
            if found is not None and (tuple(found.shape), found.dtype) == (shape, dtype):
                return found
        return self._keep(name, shape, dtype, fill)

    def idle(self, names: Collection[str]) -> int:
        """Returns the bytes of this process's memory that hold arrays other than those named."""
        return sum(array.nbytes for name, array in self._arrays.items() if name not in names)

    def _keep(self, name: str, shape: tuple[int, int], dtype: torch.dtype, fill: Fill) -> torch.Tensor | None:
        size = shape[0] * shape[1] * dtype.itemsize
        if size > self._budget:
            return None
        while self._arrays and self.idle(()) + size > self._budget:
            self._arrays.popitem(last=False)
        try:
            array = torch.empty(shape, dtype=dtype)
        except (MemoryError, RuntimeError):  # torch raises the second where an allocation is refused
            return None

        def put(first: int, rows: torch.Tensor) -> None:
            array[first : first + len(rows)] = rows

        fill(put)
        self._arrays[name] = array
        return array


def cache_of(environment: Mapping[str, str] = os.environ) -> StateCache:
    """Returns an empty cache with the budgets of this machine, or those of the environment.

    Args:
        environment: May hold AUTOPEFT_CACHE, AUTOPEFT_CACHE_MEMORY and AUTOPEFT_CACHE_DISK; a budget of 0 is none.

    Raises:
        InputError: A budget is no size.
    """
    folder = cache_folder("states", environment)
    own, disk = _budget(environment, MEMORY), _budget(environment, DISK)
    if own is None:
        own = _memory_of_process() // _SHARE_OF_MEMORY
    if disk is None:
        # On a network's disk the pages are no other machine's memory, and reading them anew is slow.
        disk = (
            0
            if not environment.get(CACHE) and is_network(filesystem_of(folder) or "")
            else _free(folder) // _SHARE_OF_DISK
        )
    return StateCache(StateFiles(folder, disk) if disk else None, own)


_CACHES: Final[dict[tuple[str | None, ...], StateCache]] = {}


def cache_of_process() -> StateCache:
    """Returns the one cache of this process, made on first use; raises InputError as `cache_of` does."""
    key = tuple(os.environ.get(name) for name in (CACHE, MEMORY, DISK, "XDG_CACHE_HOME"))
    if key not in _CACHES:
        _CACHES[key] = cache_of()
    return _CACHES[key]


def _budget(environment: Mapping[str, str], name: str) -> int | None:
    given = environment.get(name, "").strip()
    if not given:
        return None
    try:
        return 0 if given == "0" else bytes_of(given, name)
    except InputError as error:
        raise InputError(error.what, where=name, cure="write 8GB or 512MiB, or 0 for none") from None


def _memory_of_process() -> int:
    limit = resource.getrlimit(resource.RLIMIT_DATA)[0]
    sizes = [memory.total(), None if limit == resource.RLIM_INFINITY else limit]
    return min((size for size in sizes if size is not None), default=0)


def _free(folder: Path) -> int:
    """Returns what is free beside the files, and what they have already."""
    held = 0
    for path in folder.glob("*"):
        with contextlib.suppress(OSError):
            held += path.lstat().st_size
    for existing in (folder, *folder.parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(existing).free + held
    return 0
