"""When failures in a row mean that going on is pointless. Torch-free."""

from __future__ import annotations

import re

from autopeft.trial import Failure, Trial

FAILING = 5
"""A run whose first trials, this many of them, fail alike is stopped."""
FAILING_LATER = 10
"""A run is stopped at any time where this many trials in a row fail in ways no configuration explains."""
OWN_DOING = ("nan", "infinite", "timed_out")
"""Failures of trials that did train: they say something of the configuration."""


class Failures:
    """Watches the trials of a run end.

    Attributes:
        row: Numbers of the trials that failed in a row, once there are enough of them to stop; else empty.
        first: The first failure of that row.
    """

    def __init__(self) -> None:
        self.row: tuple[int, ...] = ()
        self.first: Failure | None = None
        self._from_start: list[Trial] | None = []
        self._later: list[Trial] = []

    def see(self, trial: Trial) -> None:
        """Takes note of a trial in a final state."""
        if trial.failure is None:
            self._from_start, self._later = None, []
            return
        self._later = [] if trial.failure.kind in OWN_DOING else [*self._later, trial]
        if self._from_start is not None:
            self._from_start.append(trial)
            kin = {_kin(t.failure) for t in self._from_start if t.failure}
            if len(self._from_start) == FAILING and len(kin) == 1:
                self._stop(self._from_start)
        if len(self._later) == FAILING_LATER:
            self._stop(self._later)

    def _stop(self, row: list[Trial]) -> None:
        self.row, self.first = tuple(t.number for t in row), row[0].failure


def _kin(failure: Failure) -> tuple[str, str]:
    """What failures that are alike share: numbers in the message, such as sizes and addresses, may differ."""
    return failure.kind, re.sub(r"0x[0-9a-fA-F]+|\d+", "#", failure.message)
