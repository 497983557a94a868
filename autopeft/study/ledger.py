"""How trials move through their life cycle: every step is on disk before it is acted on. Torch-free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from autopeft.errors import AutoPeftError, StudyError
from autopeft.job import Job, Outcome, Start
from autopeft.redaction import redacted
from autopeft.study.definition import StudyDefinition, library_versions
from autopeft.study.failing import OWN_DOING, REFUSED
from autopeft.study.folders import canonical
from autopeft.study.limits import Terms
from autopeft.study.outcomes import ended
from autopeft.study.planning import kept_checkpoints, left_early
from autopeft.study.store import Store
from autopeft.trial import Cost, Failure, Proposal, Trial, TrialStatus, require_transition

RETRIES = 2
"""How often a trial is run again after its worker vanished; once more and it counts as crashed."""

SECONDS = "seconds"
"""Key in the detail of an event: how long an attempt at a trial kept a worker."""
WORKED = "worked"
ALIKE = "first trials failed alike"
REMOTE_CODE = "remote code allowed"


@dataclass(frozen=True)
class Ended:
    """How a queued or running trial ended.

    Attributes:
        number: The trial.
        result: What came of it.
        cost: What a failed trial had used; an outcome has its own.
        seconds: How long it kept a worker, where a driver has seen that.
    """

    number: int
    result: Outcome | Failure
    cost: Cost | None = None
    seconds: float | None = None


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

    def begin(self, number: int, terms: Terms = Terms()) -> Job:  # noqa: B008 - a frozen value
        """Marks a queued trial as running and returns its job, which goes on from the trial's last checkpoint."""
        return self.begin_all([number], terms)[0]

    def begin_all(self, numbers: Sequence[int], terms: Terms) -> list[Job]:
        """Marks queued trials as running, in one transaction, and returns their jobs in the same order."""
        with self._store.transaction():
            running = [self._store.advance(replace(self.trial(n), status=TrialStatus.RUNNING)) for n in numbers]
        return [self._job(trial, terms) for trial in running]

    def _job(self, trial: Trial, terms: Terms) -> Job:
        proposal = trial.proposal
        return Job(
            trial.number,
            proposal.configuration,
            proposal.budget,
            proposal.seed,
            self._definition.setting,
            splits=tuple(proposal.note.get("splits", ("validation",))),
            checkpoint=self._store.checkpoints.read(trial),
            start=self._start(proposal),
            checkpoint_seconds=terms.checkpoint_seconds,
            trust_remote_code=terms.trust_remote_code,
        )

    def _start(self, proposal: Proposal) -> Start | None:
        """Returns where a promotion begins; None where what its parent left is lost: it begins anew, at its cost."""
        if proposal.parent is None:
            return None
        parent = next((t for t in self._store.trials() if t.number == proposal.parent), None)
        files = self._store.checkpoints.read(parent) if parent is not None else {}
        return Start(parent.proposal.budget, files) if parent is not None and files else None

    def tell(
        self, number: int, result: Outcome | Failure, cost: Cost | None = None, seconds: float | None = None
    ) -> Trial:
        """Records how one trial ended (see `tell_all` and `Ended`)."""
        return self.tell_all([Ended(number, result, cost, seconds)])[0]

    def tell_all(self, endings: Sequence[Ended]) -> list[Trial]:
        """Records how queued or running trials ended: their folders first, then, in one transaction, their states.

        Killed between the two, the trials are still running in the database: the next opening completes those that were
        completed from their folders, and the others are run again. Where the disk refuses some, the rest is recorded
        before the error is raised.

        Args:
            endings: Distinct trials.

        Returns:
            Their final records, in the same order.

        Raises:
            StudyError: A trial has ended already, or the disk refuses.
        """
        problem = self._definition.problem()
        records = []
        for end in endings:
            trial = self.trial(end.number)
            final = ended(trial, end.result, problem)
            kept = isinstance(end.result, Outcome) and final.status is TrialStatus.COMPLETED
            files = end.result.files if isinstance(end.result, Outcome) and kept else {}
            records.append(_Record(trial, replace(final, cost=end.cost) if end.cost else final, files, end.seconds))
        return self._end(records)

    def prune(self, number: int, reason: str, result: Outcome | None = None) -> Trial:
        """Records that a queued or running trial was ended early, since going on with it did not pay."""
        trial = self.trial(number)
        final = ended(trial, result, self._definition.problem()) if result else trial
        pruned = replace(final, status=TrialStatus.PRUNED, failure=None)
        return self._end([_Record(trial, pruned, {}, None, {"reason": reason})])[0]

    def _end(self, records: Sequence[_Record]) -> list[Trial]:
        for record in records:
            require_transition(record.began.status, record.final.status, record.final.number)
        refused = self._store.trial_folders.write_all([(record.final, record.files) for record in records])
        written = [record for record in records if record.final.number not in refused]
        try:
            with self._store.transaction():
                for record in written:
                    self._advance(record)
        except StudyError:
            if len(written) < 2:
                raise
            for record in written:  # a disk that is nearly full may still take some
                self._advance(record)
        for record in written:
            self._forget(record.final)
        if refused:
            raise next(iter(refused.values()))
        return [record.final for record in records]

    def _forget(self, trial: Trial) -> None:
        """Removes the checkpoint that an ended trial made, unless that is its result, and the one it began from."""
        if not left_early(trial):
            self._store.checkpoints.delete(trial.number)
        refused = trial.failure is not None and trial.failure.kind == REFUSED
        if trial.proposal.parent is not None and not refused:
            self._store.checkpoints.delete(trial.proposal.parent)

    def clear(self) -> None:
        """Removes the checkpoints that nothing will read any more, such as those of a search that is over."""
        trials, next_number = self._store.trials(), self._store.next_number()
        ended = {t.number for t in trials if t.status.final}.intersection(self._store.checkpoints.numbers())
        for number in ended - kept_checkpoints(self._definition, trials, next_number) if ended else ():
            self._store.checkpoints.delete(number)

    def _advance(self, record: _Record) -> None:
        spent = record.final.cost.seconds if record.seconds is None else record.seconds
        steps = [record.began, record.final] if record.began is not record.trial else [record.final]
        self._store.advance(*steps, detail={**record.detail, SECONDS: round(spent, 3)})

    def keep(self, number: int, files: Mapping[str, bytes]) -> Trial:
        """Writes a checkpoint of a running trial; returns the trial."""
        trial = self.trial(number)
        try:
            self._store.checkpoints.write(trial, files)
        except AutoPeftError as error:
            # Nothing depends on a checkpoint but the time of a later attempt: a full disk shall not end the trial.
            if not self._store.events("checkpoint refused", number):
                with suppress(AutoPeftError):
                    self._store.note("checkpoint refused", number, {"reason": str(error)})
        return trial

    def spent(self) -> tuple[float, int]:
        """Returns the seconds that workers have spent on trials so far, and the number of attempts, lost ones too."""
        charged = [e for e in self._store.events() if e.kind not in (TrialStatus.QUEUED, TrialStatus.RUNNING)]
        seconds = sum(float(event.detail.get(SECONDS, 0.0)) for event in charged)
        return seconds, sum(SECONDS in event.detail and event.kind != WORKED for event in charged)

    def charge(self, seconds: float) -> None:
        """Records time of trials that still run, where there is any."""
        if seconds > 0:
            self._store.note(WORKED, detail={SECONDS: round(seconds, 3)})

    def lose(self, number: int, reason: str, seconds: float = 0.0) -> Trial:
        """Records that a worker vanished: the trial is queued again, or failed after `RETRIES` further attempts."""
        events = self._store.events(trial=number)
        tried = max((i for i, e in enumerate(events) if e.kind == "failed"), default=0)  # earlier runs do not count
        lost = [e for e in events[tried:] if e.kind == "interrupted" and e.detail.get("lost")]
        # A trial that gets on from one loss to the next is not what kills its workers.
        mark = self._store.checkpoints.mark(number)
        losses = sum(e.detail.get("checkpoint") == mark for e in lost[-RETRIES:])
        if losses >= RETRIES:
            failure = Failure("crashed", f"its worker vanished {losses + 1} times: {reason}")
            return self.tell(number, failure, seconds=seconds)
        detail = {"reason": redacted(reason), "lost": True, "checkpoint": mark, SECONDS: round(seconds, 3)}
        return self._requeue(self.trial(number), detail)

    def interrupt(self, number: int, reason: str, seconds: float = 0.0) -> Trial:
        """Records that a running trial was given up; it is queued when the study is next opened for writing."""
        given_up = replace(self.trial(number), status=TrialStatus.INTERRUPTED)
        return self._store.advance(given_up, detail={"reason": reason, SECONDS: round(seconds, 3)})

    def resume(self) -> None:
        """Queues what an earlier process left unfinished and clears up; notes that, and libraries that have changed."""
        # What a process left that was killed between the end of a trial and the removal of its checkpoint.
        self.clear()
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
        again = {"reason": "it was interrupted and is run again"}
        return [self._requeue(t, detail if t.status is TrialStatus.RUNNING else again).number for t in unfinished]

    def repeatable(self) -> list[Trial]:
        """Returns the failed trials that the next run tries again: what surrounded them failed, as far as one can tell.

        Those are refused ones (missing or changed data, an absent backbone) and those of a run that was stopped since
        they failed in a row: once, for if they do so again the cause is theirs. Those that trained until a number was
        not finite or the time was over are not repeated. Final trials are not among them: `Study.train` proposes those
        anew.
        """
        rows: Counter[int] = Counter()
        waiting: set[int] = set()
        for event in self._store.events():
            if event.kind == ALIKE:
                waiting |= set(event.detail["trials"])
                rows.update(set(event.detail["trials"]) - set(event.detail.get(REFUSED, ())))
            elif event.kind == TrialStatus.QUEUED:
                waiting -= {event.trial}
        failed = [t for t in self._store.trials() if t.failure is not None and t.proposal.purpose != "final"]
        refused = [t for t in failed if t.failure and t.failure.kind == REFUSED]
        in_a_row = [t for t in failed if t.number in waiting and rows[t.number] == 1]
        again = {t.number for t in in_a_row if t.failure and t.failure.kind not in OWN_DOING}
        again |= {t.number for t in refused}
        return [t for t in failed if t.number in again]

    def repeat(self, detail: Mapping[str, Any]) -> frozenset[int]:
        """Queues every repeatable trial again, without its failure.

        Returns:
            Those that had been refused while others of their run were not: their own needs may be the cause, so they
            shall be tried after all others.
        """
        found = self.repeatable()
        for trial in found:
            self._store.advance(Trial(trial.number, trial.proposal), detail=detail)
        stopped = {number for event in self._store.events(ALIKE) for number in event.detail["trials"]}
        alone = [t for t in found if t.failure and t.failure.kind == REFUSED and t.number not in stopped]
        return frozenset(t.number for t in alone)

    def note_alike(self, row: Sequence[Trial]) -> None:
        """Records that a run was stopped since these trials failed in a row, and which of them were refused."""
        refused = [t.number for t in row if t.failure and t.failure.kind == REFUSED]
        self._store.note(ALIKE, detail={"trials": [t.number for t in row], REFUSED: refused})

    def note_remote_code(self) -> None:
        """Records that a run was allowed to run code that comes with the backbone."""
        self._store.note(REMOTE_CODE, detail={"backbone": self._definition.setting.backbone.reference})

    def _requeue(self, trial: Trial, detail: Mapping[str, Any]) -> Trial:
        interrupted = [replace(trial, status=TrialStatus.INTERRUPTED)] if trial.status is TrialStatus.RUNNING else []
        return self._store.advance(*interrupted, replace(trial, status=TrialStatus.QUEUED), detail=detail)


@dataclass(frozen=True)
class _Record:
    """The end of a trial, about to be written: as it was, as it is now, its files, its seconds, why."""

    trial: Trial
    final: Trial
    files: Mapping[str, bytes]
    seconds: float | None
    detail: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def began(self) -> Trial:
        """The trial while it ran; one that was told without being begun runs for that moment."""
        queued = self.trial.status is TrialStatus.QUEUED
        return replace(self.trial, status=TrialStatus.RUNNING) if queued else self.trial
