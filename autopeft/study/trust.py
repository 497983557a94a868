"""Which function may run a study's jobs: a study is data, and opening a stranger's must run no code of theirs."""

from __future__ import annotations

from importlib.metadata import entry_points

from autopeft.errors import StudyError
from autopeft.study.definition import EVALUATE

GROUP = "autopeft.evaluate"
"""Entry-point group in which an installed package registers functions that run jobs."""


def permitted(reference: str, trusted: bool, where: str) -> str:
    """Returns the function a study names, as "package.module:function", where it may be run.

    That is the one of this package, one that an installed package registers in the group "autopeft.evaluate", and any
    other where the caller vouches for it. Nothing is imported.

    Args:
        reference: What the study names.
        trusted: Whether the caller vouches for it.
        where: The study, for the message.

    Raises:
        StudyError: Nobody has vouched for the function.

    Example:
        >>> permitted("autopeft.worker:evaluate", False, "runs/a")
        'autopeft.worker:evaluate'
    """
    if trusted or reference == EVALUATE or any(e.value == reference for e in entry_points(group=GROUP)):
        return reference
    raise StudyError(
        f"the study runs its trials with '{reference}', which is not part of autopeft",
        where=where,
        cure="if you know that function, open the study with trust_evaluate=True, or give --trust-evaluate",
    )
