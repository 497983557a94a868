"""Reads SQLite's write-ahead log: where it is damaged, and the pages in it. Torch-free.

SQLite takes the first frame whose checksum fails for the end of the log. That is right after a power cut, and silently
drops every transaction behind a damaged frame otherwise. The layout is in https://www.sqlite.org/fileformat2.html#walformat.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

_HEADER = struct.Struct(">8I")
_FRAME = struct.Struct(">6I")
_MAGIC = 0x377F0682  # plus one where the words of checksums are big-endian
_SIZES = frozenset(1 << k for k in range(9, 17))

Words = NDArray[np.uint32]


@dataclass(frozen=True)
class Frame:
    """One page in a log.

    Attributes:
        page: Number of the page, from 1.
        commits: Whether a transaction ends with it.
        current: Whether it belongs to this log, and not to one that was in the file before.
        sound: Whether SQLite reads it: its checksum and those of all frames before it are right.
        content: The page.
    """

    page: int
    commits: bool
    current: bool
    sound: bool
    content: bytes


def frames_of(log: bytes, page_size: int) -> tuple[Frame, ...]:
    """Returns the complete frames of a log, in order.

    Args:
        log: Content of the -wal file.
        page_size: Of the database, used where the log's header is damaged.
    """
    if len(log) < _HEADER.size:
        return ()
    magic, _, size, _, salt, pepper, *stated = _HEADER.unpack_from(log)
    order = ">" if magic & 1 else "<"
    sound, began = header_is_sound(log), np.array(stated, np.uint32)
    size = size if sound else page_size
    found = []
    for start in range(_HEADER.size, len(log) - _FRAME.size - size + 1, _FRAME.size + size):
        page, commit, first, second, *stated = _FRAME.unpack_from(log, start)
        content = log[start + _FRAME.size : start + _FRAME.size + size]
        current = (first, second) == (salt, pepper)
        if sound and current:
            words = np.frombuffer(log[start : start + 8] + content, f"{order}u4").astype(np.uint32)
            began = _added(words, began)
            sound = began.tolist() == stated
        else:
            sound = False
        found.append(Frame(page, commit > 0, current, sound, content))
    return tuple(found)


def header_is_sound(log: bytes) -> bool:
    """Says whether SQLite takes a file for a log at all."""
    if len(log) < _HEADER.size:
        return False
    magic, _, size, _, _, _, *stated = _HEADER.unpack_from(log)
    words = np.frombuffer(log, ">u4" if magic & 1 else "<u4", 6).astype(np.uint32)
    return magic & ~1 == _MAGIC and size in _SIZES and _added(words, np.zeros(2, np.uint32)).tolist() == stated


def _added(words: Words, began: Words) -> Words:
    """Returns the running checksum after more words, shape (2 n,).

    SQLite's recurrence s0 += x + s1, s1 += y + s0 is linear modulo 2^32: s -> M s + (x, x + y), M = [[1, 1], [1, 2]].
    """
    pairs = words.reshape(-1, 2)
    powers = _powers(len(pairs))
    added = np.stack([pairs[:, 0], pairs[:, 0] + pairs[:, 1]], axis=1)
    moved = (powers[:-1][::-1] * added[:, None, :]).sum(axis=(0, 2), dtype=np.uint32)
    result: Words = (powers[-1] * began[None, :]).sum(axis=1, dtype=np.uint32) + moved
    return result


@lru_cache(maxsize=8)
def _powers(n: int) -> NDArray[Any]:
    """Returns M^0 ... M^n, shape (n + 1, 2, 2), modulo 2^32."""
    made = np.zeros((n + 1, 2, 2), np.uint32)
    made[0] = np.eye(2)
    step = np.array([[1, 1], [1, 2]], np.uint32)
    for k in range(n):
        made[k + 1] = made[k] @ step
    return made
