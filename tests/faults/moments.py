"""Moments inside a process that no signal from outside could hit: around every step that reaches the disk."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

Seen = Callable[[str], None]
"""Called at each moment with its name, such as "before rename"."""

_CALLS = ("fsync", "rename", "replace", "mkdir", "unlink")
_STATEMENTS = ("BEGIN", "INSERT", "DELETE", "COMMIT")


@contextmanager
def watched(seen: Seen) -> Iterator[None]:
    """Calls `seen` before and after each file operation and each SQL statement that writes, in this process."""

    class Watched(sqlite3.Connection):
        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            word = sql.lstrip().split(" ", 1)[0].upper()
            if word not in _STATEMENTS:
                return super().execute(sql, *values)
            seen(f"before {word}")
            result = super().execute(sql, *values)
            seen(f"after {word}")
            return result

    def around(name: str) -> Callable[..., Any]:
        original = getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            seen(f"before {name}")
            result = original(*arguments, **options)
            seen(f"after {name}")
            return result

        return call

    def connect(*arguments: Any, **options: Any) -> sqlite3.Connection:
        return original_connect(*arguments, **{"factory": Watched, **options})

    original_connect = sqlite3.connect
    patches = [mock.patch.object(os, name, around(name)) for name in _CALLS]
    patches.append(mock.patch.object(sqlite3, "connect", connect))
    try:
        for patch in patches:
            patch.start()
        yield
    finally:
        for patch in reversed(patches):
            patch.stop()
