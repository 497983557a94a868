"""Files of hidden states that the processes of one machine share: a raw array, and JSON that says what it is.

A file is written under a temporary name and renamed, the array before its JSON. What cannot be read, is not what was
written, or belongs to somebody else is not used. The processes map the files, so their pages are in memory once for all
of them, and the system takes them back where it needs the room.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import torch

from autopeft.backbones.shared import is_own, make_private
from autopeft.errors import AutoPeftError
from autopeft.untrusted import read_json, require_form

FORM: Final = {"form": int, "key": {str: object}, "dtype": str, "shape": [int], "bytes": int, "sha256": str}
"""What the JSON beside an array looks like (`autopeft.untrusted.require_form`)."""
DTYPES: Final = {"float32": torch.float32, "float64": torch.float64}
_FORM_NUMBER = 1
_ARRAY, _DESCRIPTION, _PART = ".states", ".json", ".part"
_ABANDONED_SECONDS = 86400.0
_SPARE = 1 << 30
"""Bytes of the disk that are left free."""

Put = Callable[[int, torch.Tensor], None]
"""Takes rows of an array: the number of the first one, and the rows, contiguous, shape (n, width)."""
Fill = Callable[[Put], None]
"""Computes an array and puts all of it, in any order."""


@final
@dataclass(frozen=True)
class StateFiles:
    """A folder of arrays, of which the least recently used leave when it becomes too large.

    Attributes:
        folder: Where they are; made with mode 0700.
        budget: Bytes that all of them may take.
        checked: Files whose content this process has compared with its checksum.
    """

    folder: Path
    budget: int
    checked: set[tuple[int, ...]] = field(default_factory=set, repr=False, compare=False)

    def has_room(self, size: int) -> bool:
        """Says whether an array of `size` bytes may be written, after others have left."""
        if size > self.budget or not make_private(self.folder):
            return False
        try:
            return size + _SPARE <= shutil.disk_usage(self.folder).free + sum(found.st_size for _, found in self._all())
        except OSError:
            return False

    def read(self, name: str) -> torch.Tensor | None:
        """Maps an array, shape (rows, width), read-only; None where there is none that can be used.

        Args:
            name: Name it was written under.

        Cost: the first time in a process, one pass over the file to compare it with its checksum.
        """
        if not make_private(self.folder):
            return None
        try:
            described = read_json(self._description(name))
            require_form(described, FORM, "states")
            return self._map(name, described)
        except FileNotFoundError:
            return None
        except (AutoPeftError, OSError, ValueError, TypeError, KeyError):
            self.remove(name)
            return None

    def write(
        self, name: str, key: dict[str, Any], shape: tuple[int, int], dtype: torch.dtype, fill: Fill
    ) -> torch.Tensor | None:
        """Computes an array straight into a file and maps it; None where the disk does not take it.

        Two processes that write the same at the same time leave one of two equal files.

        Args:
            name: Name to write it under.
            key: What it is, for people.
            shape: Rows and width.
            dtype: Type of its numbers.
            fill: Computes it.
        """
        size = shape[0] * shape[1] * dtype.itemsize
        if str(dtype).removeprefix("torch.") not in DTYPES or not self.has_room(size):
            return None
        try:
            self._make_room(size)
            with self._temporary() as (part, file):
                _fill(file.fileno(), fill)
                if os.fstat(file.fileno()).st_size != size:
                    raise OSError("the array is not whole")
                file.seek(0)
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                self.checked.add(_identity(os.fstat(file.fileno())))
                # Its own file, whoever may put another in its place.
                array = _mapped(file, shape, dtype)
                part.replace(self._array(name))
            described = {
                "form": _FORM_NUMBER,
                "key": key,
                "dtype": str(dtype).removeprefix("torch."),
                "shape": list(shape),
                "bytes": size,
                "sha256": sha256,
            }
            with self._temporary() as (part, file):
                file.write(json.dumps(described).encode())
                part.replace(self._description(name))
        except OSError:
            return None
        return array

    def remove(self, name: str) -> None:
        """Deletes an array; processes that have mapped it keep what they have."""
        for path in (self._description(name), self._array(name)):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def _map(self, name: str, described: dict[str, Any]) -> torch.Tensor:
        (rows, width), dtype = described["shape"], DTYPES[described["dtype"]]
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        with FileIO(os.open(self._array(name), flags)) as file:
            found = os.fstat(file.fileno())
            size = rows * width * dtype.itemsize
            if not stat.S_ISREG(found.st_mode) or not is_own(found) or size <= 0 or found.st_size != size:
                raise ValueError("another size")
            if described["form"] != _FORM_NUMBER or described["bytes"] != size:
                raise ValueError("another form")
            if _identity(found) not in self.checked:
                if hashlib.file_digest(file, "sha256").hexdigest() != described["sha256"]:
                    raise ValueError("another content")
                self.checked.add(_identity(found))
            array = _mapped(file, (rows, width), dtype)
        with contextlib.suppress(OSError):
            os.utime(self._description(name))  # the order in which they leave
        return array

    def _make_room(self, size: int) -> None:
        """Deletes what was used least recently until an array of `size` bytes fits, and what was left half written."""
        for path in self.folder.glob(f"*{_PART}"):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < time.time() - _ABANDONED_SECONDS:
                    path.unlink()
        free = shutil.disk_usage(self.folder).free - _SPARE
        held = sorted(self._all(), key=lambda entry: self._used(entry[0]))
        total = sum(found.st_size for _, found in held)
        for name, found in held:
            if total + size <= self.budget and size <= free:
                return
            self.remove(name)
            total, free = total - found.st_size, free + found.st_size

    def _all(self) -> Iterator[tuple[str, os.stat_result]]:
        for path in self.folder.glob(f"*{_ARRAY}"):
            with contextlib.suppress(OSError):
                yield path.name.removesuffix(_ARRAY), path.lstat()

    def _used(self, name: str) -> float:
        try:
            return self._description(name).stat().st_mtime
        except OSError:
            return 0.0

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[tuple[Path, FileIO]]:
        """Yields a new file, which is deleted unless it was renamed in the block."""
        handle, name = tempfile.mkstemp(_PART, "", self.folder)
        try:
            with FileIO(handle, "r+") as file:
                yield Path(name), file
        finally:
            with contextlib.suppress(OSError):
                Path(name).unlink(missing_ok=True)

    def _array(self, name: str) -> Path:
        return self.folder / f"{name}{_ARRAY}"

    def _description(self, name: str) -> Path:
        return self.folder / f"{name}{_DESCRIPTION}"


def _mapped(file: FileIO, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    mapped = np.memmap(file, str(dtype).removeprefix("torch."), "r", shape=shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch knows no read-only tensors; nothing writes to this one
        return torch.from_numpy(mapped)


def _fill(file: int, fill: Fill) -> None:
    # Written, not mapped: where the disk is full a write fails, and a mapping kills the process.
    def put(first: int, rows: torch.Tensor) -> None:
        content = memoryview(rows.numpy()).cast("B")
        offset = first * rows.shape[1] * rows.element_size()
        while content:
            done = os.pwrite(file, content, offset)
            content, offset = content[done:], offset + done

    fill(put)


def _identity(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
