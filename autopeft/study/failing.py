"""When failures in a row mean that going on is pointless. Torch-free."""

from __future__ import annotations

import re

from autopeft.trial import Failure, Trial

FAILING = 5
"""A run whose first trials, this many of them, fail alike is stopped."""
FAILING_LATER = 10
"""A run is stopped at any time where this many trials in a row fail in ways no configuration explains."""
REFUSED = "refused"
OWN_DOING = ("nan", "infinite", "timed_out")
"""Failures of trials that did train: they say something of the configuration."""


class Failures:
    """Watches the trials of a run end.

    Args:
        known: Trials that were refused before and are tried once more: that they are refused again is no news.

    Attributes:
        row: The trials that failed in a row, once there are enough of them to stop; else empty. It grows where more of
            them come to light at the same time.
    """

    def __init__(self, known: frozenset[int] = frozenset()) -> None:
        self.row: list[Trial] = []
        self._known = known
        self._from_start: list[Trial] | None = []
        self._later: list[Trial] = []

    @property
    def first(self) -> Failure | None:
        """The first failure of the row."""
        return self.row[0].failure if self.row else None

    def see(self, trial: Trial) -> None:
        """Takes note of a trial in a final state."""
        if trial.failure is None:
            self._from_start, self._later = None, []
            return
        if trial.number in self._known and trial.failure.kind == REFUSED:
            return
        if trial.failure.kind in OWN_DOING:
            self._later = []
        else:
            self._later.append(trial)
        if self._from_start is not None:
            self._from_start.append(trial)
            kin = {_kin(t.failure) for t in self._from_start if t.failure}
            if len(self._from_start) == FAILING and len(kin) == 1:
                self.row = self._from_start
        if len(self._later) == FAILING_LATER and not self.row:
            self.row = self._later


def _kin(failure: Failure) -> tuple[str, str]:
    """What failures that are alike share: numbers in the message, such as sizes and addresses, may differ."""
    return failure.kind, re.sub(r"0x[0-9a-fA-F]+|\d+", "#", failure.message)
