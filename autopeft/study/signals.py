"""Ctrl-C once, twice, and SIGTERM, while a study runs. Torch-free."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self


class StopNow(BaseException):
    """Raised out of a wait to stop at once; not an `Exception`, so that no job can take it for its own."""


class StopRequests:
    """Notes the wish to stop, within a `with` block; outside the main thread it notes nothing.

    The first SIGINT asks to stop after the running trials, the second and any SIGTERM to stop now. `StopNow` is raised
    only inside `waiting`, so that no transaction is cut in two.

    Attributes:
        soon: Whether no further trial shall begin.
        now: Whether running trials shall be given up.
        terminated: Whether a SIGTERM asked.
        count: How many requests have come.
    """

    def __init__(self) -> None:
        self.soon = self.now = self.terminated = False
        self.count = 0
        self._waiting = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Marks a block that may be left by `StopNow` at any moment."""
        self._waiting = True
        try:
            self.raise_if_now()
            yield
        finally:
            self._waiting = False

    def raise_if_now(self) -> None:
        """Raises StopNow where that was asked for."""
        if self.now:
            raise StopNow

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature is Python's
        self.count += 1
        self.terminated = self.terminated or number == signal.SIGTERM
        self.now = self.now or self.soon or self.terminated
        self.soon = True
        if self.now and self._waiting:
            self._waiting = False  # once: what follows is the orderly end
            raise StopNow
