"""One writer per study: a lock of the operating system that dies with its owner. Torch-free."""

from __future__ import annotations

import errno
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import final

from autopeft.errors import StudyError

try:
    import fcntl
except ImportError:  # pragma: no cover - only where the system has no POSIX locks
    fcntl = None  # type: ignore[assignment]

LOCK_NAME = "study.lock"
ELSEWHERE = "make the study on a local disk and copy its directory here when it is done"


@final
class WriterLock:
    """Holds `study.lock` of a study directory until `release`, or until this process dies in any way.

    Who holds it is told by the kernel alone: no time and no process number is compared, so a clock that jumps changes
    nothing. A process forked by the owner does not hold it: it closes its copy of the descriptor at once.

    Args:
        folder: The study directory.

    Raises:
        StudyError: Another process holds it (the message names it), or the file system refuses it.

    Example:
        >>> lock = WriterLock(Path("runs/reviews"))  # doctest: +SKIP
        >>> lock.release()  # doctest: +SKIP
    """

    def __init__(self, folder: Path) -> None:
        if fcntl is None:  # pragma: no cover
            raise StudyError("this system has no POSIX file locks", where=str(folder), cure="use Linux, macOS or WSL")
        # The file is never removed: a lock on a removed file would exclude nobody.
        self._fd: int | None = None
        try:
            self._fd = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            _HELD.add(self)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise self._refusal(error, folder) from None
        with suppress(OSError):  # on a full disk nobody can be told who holds it
            os.ftruncate(self._fd, 0)
            since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
            os.pwrite(self._fd, f"{os.getpid()} on {platform.node() or 'this machine'} since {since}".encode(), 0)

    def _refusal(self, error: OSError, folder: Path) -> StudyError:
        """Gives up; returns what to tell: who holds the lock, or why there can be none here."""
        held = self._fd is not None and error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
        self.release()
        if held:
            cure = "wait for it or stop it (Ctrl-C there); reading verbs work meanwhile"
            return StudyError(f"the study is being written by process {owner(folder)}", where=str(folder), cure=cure)
        none = error.errno in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
        return StudyError(
            f"the study cannot be locked for writing ({error.strerror or error})",
            where=str(folder / LOCK_NAME),
            cure=f"this file system has no locks: {ELSEWHERE}" if none else "check that this folder can be written",
        )

    def release(self) -> None:
        """Gives the lock back; safe to call twice."""
        _HELD.discard(self)
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    @contextmanager
    def released_on_error(self) -> Iterator[None]:
        """Gives the lock back where the block fails, and keeps it otherwise."""
        try:
            yield
        except BaseException:
            self.release()
            raise


def owner(folder: Path) -> str:
    """Returns what the last owner of a study's lock wrote: "4711 on node7 since 2026-11-20 09:30:00 UTC"."""
    try:
        text = (folder / LOCK_NAME).read_bytes()[:200].decode(errors="replace").strip()
    except OSError:
        text = ""
    return "".join(c for c in text if c.isprintable()) or "unknown"


def has_died(folder: Path) -> bool:
    """Says whether the last owner of a study's lock was a process of this machine that is no more.

    By the process number it wrote, so it may take a new process of that number for the owner; it changes nothing.
    """
    found = re.match(r"(\d+) on (\S+) ", owner(folder))
    if not found or found.group(2) != platform.node():
        return False
    try:
        os.kill(int(found.group(1)), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


_HELD: set[WriterLock] = set()


def _let_go() -> None:
    """In a forked child: a descriptor it inherited would keep the lock when its owner is dead."""
    for lock in list(_HELD):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
