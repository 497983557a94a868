"""From what a user writes for a trial to the trial: a number, "knee" or "best". No torch."""

from __future__ import annotations

from autopeft.errors import InputError, nearest
from autopeft.study.study import Study
from autopeft.trial import Trial

NAMES = ("knee", "best")


def choose(study: Study, which: str, max_parameters: str | None = None) -> Trial:
    """Returns the chosen trial.

    Args:
        study: The study.
        which: A number, "knee" (best compromise of the front) or "best" (best quality of the front).
        max_parameters: Largest number of stored parameters for "best", or a share such as "0.5%".

    Raises:
        InputError: Neither, or the front is empty.
        StudyError: There is no trial of that number.
    """
    if max_parameters is not None and which != "best":
        raise InputError(f"a bound chooses among the best, not '{which}'", where="--max-parameters", cure="say best")
    if which == "knee":
        return study.front.knee().trial
    if which == "best":
        return study.front.pick(max_parameters=max_parameters).trial
    if not which.isdigit():
        cure = f"write a number, {nearest(which, NAMES)}"
        raise InputError(f"'{which}' names no trial", where="TRIAL", cure=cure)
    return study.trial(int(which))
