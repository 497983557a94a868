"""Weights that the processes of one machine hold in memory once: mapped from a file, each page until it is written.

A float32 checkpoint in safetensors needs nothing: transformers maps the file, copy on write, and every process that
maps it reads the same pages. What a process has of its own (weights whose type was converted on loading, an old
checkpoint that cannot be mapped) is written to one file below the cache folder, once, and mapped in its place.

A mapping is private: no process can change what another one reads, whatever it does.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from mmap import PAGESIZE
from pathlib import Path
from typing import Final

import torch
from torch import nn

CACHE: Final = "AUTOPEFT_CACHE"
"""Environment variable: the folder in place of `autopeft` in the user's cache folder."""
SHARE: Final = "AUTOPEFT_SHARED_WEIGHTS"
"""Environment variable: "off" keeps private weights private."""
LEAST: Final = 16 << 20
"""Bytes of private weights below which no file is made."""
_ALIGNED: Final = 64
_MAPS: Final = Path("/proc/self/maps")


def cache_folder(part: str, environment: Mapping[str, str] = os.environ) -> Path:
    """Returns where files that can be made again are kept: a folder of its own for each kind of them.

    Args:
        part: Kind of the files: "weights" or "states".
        environment: Environment variables: AUTOPEFT_CACHE, then XDG_CACHE_HOME.

    Example:
        >>> cache_folder("states", {"AUTOPEFT_CACHE": "/var/tmp/mine"}).as_posix()
        '/var/tmp/mine/states'
    """
    if named := environment.get(CACHE):
        return Path(named).expanduser() / part
    home = environment.get("XDG_CACHE_HOME") or str(Path("~").expanduser() / ".cache")
    return Path(home) / "autopeft" / part


def make_private(folder: Path) -> bool:
    """Makes a folder that only this user can enter, whatever the umask; says whether nobody else can write there.

    A folder that is there stays as it is, and so do those above it; missing ones are made private too.
    """
    try:
        for path in reversed((folder, *folder.parents)):
            if not path.exists():
                path.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and is_own(found) and not found.st_mode & 0o022


def is_own(found: os.stat_result) -> bool:
    """Says whether a file or folder belongs to this user; always where a system has no users of that kind."""
    return not hasattr(os, "geteuid") or found.st_uid == os.geteuid()


def private_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns the parameters and buffers that do not lie in a mapped file, by name.

    Tied ones are told under their first name.

    Raises:
        OSError: This system does not tell what is mapped (it is not Linux).
    """
    mapped = _Mapped()
    found: dict[tuple[int, int], tuple[str, torch.Tensor]] = {}
    for name, tensor in _tensors(model):
        if not mapped.holds(tensor):
            found.setdefault(_place(tensor), (name, tensor))
    return dict(found.values())


def read_through(model: nn.Module) -> None:
    """Reads one number of every page of the weights in the machine's memory, so that all of them are this process's.

    Mapped pages count as a process's memory once it has read them. Without this, the measured memory of a trial would
    tell which layers the trials before it had run. Pages of a file stay shared, and the system may take them back.

    Args:
        model: A loaded model.

    Cost: a page fault for every few pages.
    """
    for _, tensor in _tensors(model):
        flat = tensor.detach().view(-1)
        flat[:: max(1, PAGESIZE // tensor.element_size())].clone()
        flat[-1:].clone()


def share_weights(model: nn.Module, key: str, *, folder: Path | None = None, least: int = LEAST) -> int:
    """Puts the weights that only this process holds where all processes of this machine hold them once.

    They are written to one file, or compared byte for byte with the file that another process has written; then the
    model's tensors lie in a mapping of that file. Names, identities and values stay. Where there is no room, no
    permission or no way to tell what is mapped, everything stays as it is: only memory is at stake.

    Args:
        model: A loaded model; tensors on other devices are left alone.
        key: What the file is named by: equal for equal weights, such as their fingerprint and type.
        folder: Where the file lies; None for the cache folder.
        least: Private bytes below which nothing is done.

    Returns:
        The bytes that are shared now and were not before.

    Cost: one read of what is private, one write in the first process of all.

    Example:
        >>> share_weights(model, f"{backbone.sha256}-float32")  # doctest: +SKIP
        0
    """
    if folder is None and os.environ.get(SHARE) == "off":
        return 0
    place = folder / "weights" if folder else cache_folder("weights")
    try:
        private = private_tensors(model)
    except OSError:
        return 0
    if sum(tensor.nbytes for tensor in private.values()) < least:
        return 0
    try:
        mapping = _mapped_copy(place / f"{key}.raw", private)
    except (OSError, RuntimeError):  # torch tells by a RuntimeError what the system refused
        return 0
    if mapping is None:
        return 0
    offsets = _offsets(private)
    by_place = {_place(tensor): offsets[name] for name, tensor in private.items()}
    moved = [(tensor, by_place[_place(tensor)]) for _, tensor in _tensors(model) if _place(tensor) in by_place]
    for tensor, offset in moved:
        tensor.data = _view(mapping, offset, tensor)
    return sum(tensor.nbytes for tensor in private.values())


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields what can lie in a file as it is: contiguous tensors in the machine's memory, under each of their names."""
    for named in (model.named_parameters, model.named_buffers):
        for name, tensor in named(remove_duplicate=False):
            if tensor.numel() and tensor.device.type == "cpu" and tensor.is_contiguous():
                yield name, tensor


def _place(tensor: torch.Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.nbytes


def _mapped_copy(path: Path, tensors: Mapping[str, torch.Tensor]) -> torch.UntypedStorage | None:
    """Returns a private mapping of a file that holds these tensors, byte for byte; None where it does not come about.

    A file that holds something else (damaged, of another release) is replaced by a new one; whoever maps the old one
    keeps it.
    """
    if not make_private(path.parent):
        return None
    with _only_one(path.with_suffix(".lock")):
        for written in (False, True):
            if written:
                _write(path, tensors)
            size = _size(tensors)
            if path.is_file() and path.stat().st_size == size:
                mapping = torch.UntypedStorage.from_file(str(path), False, size)
                if _holds(mapping, tensors):
                    return mapping
    return None


@contextlib.contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Lets one process at a time through, so that all of them map one file; the lock ends with its process."""
    import fcntl

    with path.open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _offsets(tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    offsets, end = {}, 0
    for name, tensor in tensors.items():
        offsets[name] = end
        end += -(-tensor.nbytes // _ALIGNED) * _ALIGNED
    return offsets


def _size(tensors: Mapping[str, torch.Tensor]) -> int:
    return sum(-(-tensor.nbytes // _ALIGNED) * _ALIGNED for tensor in tensors.values())


def _write(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".new")
    try:
        with os.fdopen(handle, "wb") as stream:
            for tensor in tensors.values():
                stream.write(_bytes(tensor).numpy().data)
                stream.write(bytes(-tensor.nbytes % _ALIGNED))
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, 0o400)  # noqa: PTH101 - a name of the standard library's, not a path of ours
        os.replace(name, path)  # noqa: PTH105
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)  # noqa: PTH108
        raise


def _holds(mapping: torch.UntypedStorage, tensors: Mapping[str, torch.Tensor]) -> bool:
    offsets = _offsets(tensors)
    return all(
        torch.equal(_bytes(_view(mapping, offsets[name], tensor)), _bytes(tensor)) for name, tensor in tensors.items()
    )


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _view(mapping: torch.UntypedStorage, offset: int, like: torch.Tensor) -> torch.Tensor:
    """Returns the tensor of one shape and type that begins at an offset in bytes."""
    start = offset // like.element_size()
    return torch.empty(0, dtype=like.dtype).set_(mapping, start, like.shape, like.stride())


class _Mapped:
    """The address ranges of this process that are mappings of files."""

    def __init__(self) -> None:
        ranges = []
        for line in _MAPS.read_text().splitlines():
            addresses, _, _, _, inode, *name = line.split(maxsplit=5)
            if inode != "0" and name and not name[0].startswith("/dev/zero"):
                start, _, end = addresses.partition("-")
                ranges.append((int(start, 16), int(end, 16)))
        ranges.sort()
        self._starts, self._ends = [start for start, _ in ranges], [end for _, end in ranges]

    def holds(self, tensor: torch.Tensor) -> bool:
        """Says whether all of a tensor lies in one range."""
        first = tensor.data_ptr()
        place = bisect_right(self._starts, first) - 1
        return place >= 0 and first + tensor.nbytes <= self._ends[place]
