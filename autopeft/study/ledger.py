"""How trials move through their life cycle: every step is on disk before it is acted on. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from autopeft.job import Job, Outcome
from autopeft.study.definition import StudyDefinition, library_versions
from autopeft.study.folders import canonical
from autopeft.study.outcomes import ended
from autopeft.study.store import Store
from autopeft.trial import Failure, Proposal, Trial, TrialStatus, require_transition

RETRIES = 2
"""How often a trial is run again after its worker vanished; once more and it counts as crashed."""

REFUSED = "refused"
ALIKE = "first trials failed alike"


class Ledger:
    """Writes the trials of one study.

    Args:
        store: Where they are kept.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._definition = StudyDefinition.from_dict(store.definition())

    @property
    def definition(self) -> StudyDefinition:
        """What the study is."""
        return self._definition

    def redefine(self, definition: StudyDefinition) -> None:
        """Replaces the definition, where it differs; only the total of trials and local paths may."""
        if canonical(definition.to_dict()) == canonical(self._definition.to_dict()):
            return
        self._store.redefine(definition.to_dict())
        self._definition = definition

    def trial(self, number: int) -> Trial:
        """Returns a trial as recorded; raises StudyError where there is none of that number."""
        return self._store.trial(number)

    def add(self, proposals: Sequence[Proposal]) -> list[Trial]:
        """Numbers proposals and queues them, in one transaction."""
        first = self._store.next_number()
        added = [Trial(first + k, proposal) for k, proposal in enumerate(proposals)]
        if added:
            self._store.add(added)
        return added

    def begin(self, number: int) -> Job:
        """Marks a queued trial as running and returns its job."""
        proposal = self._store.advance(replace(self.trial(number), status=TrialStatus.RUNNING)).proposal
        splits = tuple(proposal.note.get("splits", ("validation",)))
        setting = self._definition.setting
        return Job(number, proposal.configuration, proposal.budget, proposal.seed, setting, splits)

    def tell(self, number: int, result: Outcome | Failure) -> Trial:
        """Records how a queued or running trial ended: its folder first, then its state.

        Killed between the two, the trial is still running in the database: it is run again and replaces the folder.
        """
        trial = self.trial(number)
        running = [replace(trial, status=TrialStatus.RUNNING)] if trial.status is TrialStatus.QUEUED else []
        final = ended(trial, result, self._definition.problem())
        require_transition(running[0].status if running else trial.status, final.status, number)
        files = result.files if isinstance(result, Outcome) and final.status is TrialStatus.COMPLETED else {}
        self._store.trial_folders.write(final, files)
        return self._store.advance(*running, final)

    def lose(self, number: int, reason: str) -> Trial:
        """Records that a worker vanished: the trial is queued again, or failed after `RETRIES` further attempts."""
        events = self._store.events(trial=number)
        tried = max((i for i, e in enumerate(events) if e.kind == "failed"), default=0)  # earlier runs do not count
        losses = sum(bool(e.detail.get("lost")) for e in events[tried:] if e.kind == "interrupted")
        if losses >= RETRIES:
            return self.tell(number, Failure("crashed", f"its worker vanished {losses + 1} times: {reason}"))
        return self._requeue(self.trial(number), {"reason": reason, "lost": True})

    def interrupt(self, number: int, reason: str) -> Trial:
        """Records that a running trial was given up; it is queued when the study is next opened for writing."""
        given_up = replace(self.trial(number), status=TrialStatus.INTERRUPTED)
        return self._store.advance(given_up, detail={"reason": reason})

    def resume(self) -> None:
        """Queues what an earlier process left unfinished; notes that, and libraries that have changed since."""
        unfinished = self.requeue_all({"reason": "the process that ran it is gone"})
        if unfinished:
            self._store.note("resumed", detail={"trials": unfinished})
        before, now = dict(self._definition.versions), library_versions()
        noted = self._store.events("versions changed")
        if noted:
            before = dict(noted[-1].detail)
        if before and before != now:
            self._store.note("versions changed", detail=now)

    def requeue_all(self, detail: Mapping[str, Any]) -> list[int]:
        """Queues every running and interrupted trial again; returns their numbers."""
        unfinished = [t for t in self._store.trials() if t.status in (TrialStatus.RUNNING, TrialStatus.INTERRUPTED)]
        return [self._requeue(trial, detail).number for trial in unfinished]

    def repeatable(self) -> list[Trial]:
        """Returns the failed trials that the next run tries again: what surrounded them failed, as far as one can tell.

        Those are refused ones (missing or changed data, an absent backbone) and those of a run that was stopped since
        its first trials failed alike. Final trials are not among them: `Study.train` proposes those anew.
        """
        stopped: set[int] = set()
        for event in self._store.events():
            if event.kind == ALIKE:
                stopped |= set(event.detail["trials"])
            elif event.kind == "queued":
                stopped -= {event.trial}
        failed = (t for t in self._store.trials() if t.failure is not None and t.proposal.purpose != "final")
        return [t for t in failed if t.number in stopped or (t.failure and t.failure.kind == REFUSED)]

    def repeat(self, detail: Mapping[str, Any]) -> list[int]:
        """Queues every repeatable trial again, without its failure; returns their numbers."""
        found = self.repeatable()
        for trial in found:
            self._store.advance(Trial(trial.number, trial.proposal), detail=detail)
        return [trial.number for trial in found]

    def note_alike(self, numbers: Sequence[int]) -> None:
        """Records that a run was stopped since these trials, its first, failed alike."""
        self._store.note(ALIKE, detail={"trials": list(numbers)})

    def _requeue(self, trial: Trial, detail: Mapping[str, Any]) -> Trial:
        interrupted = [replace(trial, status=TrialStatus.INTERRUPTED)] if trial.status is TrialStatus.RUNNING else []
        return self._store.advance(*interrupted, replace(trial, status=TrialStatus.QUEUED), detail=detail)
