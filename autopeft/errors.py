"""Errors a user can act on: each message says what is wrong, where, and how to cure it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Literal

FailureKind = Literal["error", "out_of_memory", "nan", "infinite", "crashed", "timed_out", "refused"]
"""Why a trial failed: an exception, no memory left, a number that is NaN or infinite, a dead process, a time limit, or
something around it (data, backbone, disk, device) that made it impossible to run."""


class AutoPeftError(Exception):
    """Base of every error this package raises on purpose.

    Args:
        what: What is wrong, in one sentence.
        where: The file, key, column or slot it concerns.
        cure: What the user can do about it.

    Example:
        >>> print(InputError("unknown metric 'acuracy'", where="task.metric", cure="use 'accuracy'"))
        task.metric: unknown metric 'acuracy'; use 'accuracy'
    """

    exit_code: int = 1

    def __init__(self, what: str, *, where: str | None = None, cure: str | None = None) -> None:
        self.what, self.where, self.cure = what, where, cure
        super().__init__((f"{where}: " if where else "") + what + (f"; {cure}" if cure else ""))


class InputError(AutoPeftError):
    """Something the user supplied is refused before any work is done (exit code 2)."""

    exit_code = 2


class StudyError(AutoPeftError):
    """The study on disk does not allow the operation (another space, a second writer, a damaged record)."""

    exit_code = 2


class MissingExtra(AutoPeftError):  # noqa: N818
    """An optional dependency is not installed; the message names the extra that brings it.

    Example:
        >>> raise MissingExtra("peft", extra="peft")  # doctest: +SKIP
    """

    exit_code = 2

    def __init__(self, package: str, *, extra: str) -> None:
        super().__init__(f"'{package}' is not installed", cure=f"pip install 'autopeft[{extra}]'")


class TrainingError(AutoPeftError):
    """Training of one configuration cannot go on; `kind` is the failure kind recorded with the trial."""

    def __init__(
        self, what: str, *, kind: FailureKind = "error", where: str | None = None, cure: str | None = None
    ) -> None:
        super().__init__(what, where=where, cure=cure)
        self.kind = kind


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns advice naming the known value closest to `name`, or the whole list where none is close.

    Example:
        >>> nearest("qery", ["query", "key"])
        "did you mean 'query'? (known: key, query)"
    """
    ordered = sorted(known)
    close = difflib.get_close_matches(name, ordered, n=1, cutoff=0.5)
    listing = f"known: {', '.join(ordered)}"
    return f"did you mean '{close[0]}'? ({listing})" if close else listing
