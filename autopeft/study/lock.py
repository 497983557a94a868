"""One writer per study: a lock of the operating system that dies with its owner. Torch-free."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autopeft.errors import StudyError

try:
    import fcntl
except ImportError:  # pragma: no cover - only where the system has no POSIX locks
    fcntl = None  # type: ignore[assignment]

LOCK_NAME = "study.lock"


class WriterLock:
    """Holds `study.lock` of a study directory until `release`, or until this process dies in any way.

    Args:
        folder: The study directory.

    Raises:
        StudyError: Another process holds it (the message names its id), or the file system refuses it.

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
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise self._refusal(error, folder) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, str(os.getpid()).encode(), 0)

    def _refusal(self, error: OSError, folder: Path) -> StudyError:
        """Gives up; returns what to tell: who holds the lock, or why there can be none here."""
        held = self._fd is not None and error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
        owner = os.pread(self._fd, 32, 0).decode(errors="replace").strip() if held and self._fd is not None else ""
        self.release()
        if held:
            cure = "wait for it or stop it (Ctrl-C there); reading verbs work meanwhile"
            return StudyError(
                f"the study is being written by process {owner or 'unknown'}", where=str(folder), cure=cure
            )
        return StudyError(
            f"the study cannot be locked for writing ({error.strerror or error})",
            where=str(folder / LOCK_NAME),
            cure="check that this folder and file can be written, on a file system that has locks",
        )

    def release(self) -> None:
        """Gives the lock back; safe to call twice."""
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
