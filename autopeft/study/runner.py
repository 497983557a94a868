"""What a study does while it runs: which trial is next, which are tried again, with which executor. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

from autopeft.errors import InputError
from autopeft.study.definition import StudyDefinition
from autopeft.study.driver import RunReport, TrainingStoppedError, Watch, drive
from autopeft.study.executors.base import Executor
from autopeft.study.executors.choice import make_executor
from autopeft.study.ledger import Ledger
from autopeft.study.planning import baseline_proposals, final_proposals, finals_of, propose, yet_to_propose
from autopeft.study.store import TEST_OPENED, Store
from autopeft.trial import Trial, TrialStatus

ExecutorChoice = Executor | Literal["process", "inline"]


class Runner:
    """Runs the trials of one study.

    Args:
        store: Where they are kept.
        ledger: Writes their life cycle.
        permitted: Returns the function that runs jobs, by name; raises StudyError where it must not be run.
    """

    def __init__(self, store: Store, ledger: Ledger, permitted: Callable[[], str]) -> None:
        self._store, self._ledger, self._permitted = store, ledger, permitted

    def ask(self, n: int) -> list[Trial]:
        """Has the searcher propose, and queues what it proposed (see `Study.ask`)."""
        return self._ledger.add(propose(self._definition, self._store.trials(), self._store.next_number(), n))

    def search(self, workers: int, executor: ExecutorChoice | None, watch: Watch | None) -> RunReport:
        """Trains baselines and search trials until the total is reached (see `Study.run`)."""
        with_executor = self._prepared(workers, executor)
        try:
            self._ledger.requeue_all({"reason": "it is run again"})
            self._ledger.repeat({"reason": "it failed by what surrounds it and is tried again"})
            self._ledger.add(baseline_proposals(self._definition, self._store.trials()))
            report = drive(self._ledger, self._following, with_executor, watch or _silent)
        finally:
            if with_executor is not executor:
                with_executor.close()
        return replace(report, stopped="exhausted") if report.stopped == "finished" and self._missing else report

    def finals(
        self,
        number: int,
        seeds: int,
        splits: tuple[str, ...],
        workers: int,
        executor: ExecutorChoice | None,
        watch: Watch | None,
    ) -> list[Trial]:
        """Trains a trial's configuration anew with fresh seeds (see `Study.train`)."""
        chosen = self._store.trial(number)
        if chosen.proposal.purpose == "final":
            of = chosen.proposal.note.get("of")
            raise InputError(f"trial {number} is a final one itself", where="trial", cure=f"name trial {of}")
        with_executor = self._prepared(workers, executor)
        try:
            numbers = self._queue_finals(chosen, [self._definition.seed + 1 + k for k in range(seeds)], splits)

            def following() -> Trial | None:
                return next((t for t in self._queued() if t.number in numbers), None)

            report = drive(self._ledger, following, with_executor, watch or _silent)
        finally:
            if with_executor is not executor:
                with_executor.close()
        if report.stopped in ("interrupted", "terminated"):
            raise TrainingStoppedError(report)
        return [self._store.trial(n) for n in numbers]

    def _queue_finals(self, chosen: Trial, wanted: Sequence[int], splits: tuple[str, ...]) -> list[int]:
        """Queues the final trials that are missing; returns the numbers of all, one per seed."""
        self._ledger.requeue_all({"reason": "it is run again"})
        known = finals_of(self._store.trials(), chosen.number, splits)
        missing = [seed for seed in wanted if seed not in known]
        if missing and "test" in splits:
            self._store.note(TEST_OPENED, chosen.number, {"seeds": missing})
        self._ledger.add(final_proposals(chosen, missing, splits))
        known = finals_of(self._store.trials(), chosen.number, splits)
        return [known[seed].number for seed in wanted]

    def _prepared(self, workers: int, executor: ExecutorChoice | None) -> Executor:
        if isinstance(executor, Executor):
            return executor
        threads = self._definition.setting.recipe.threads
        return make_executor(executor or "process", self._permitted(), workers, threads)

    def _following(self) -> Trial | None:
        """Returns the next trial of a search: what waits already, or a new proposal while the total allows."""
        waiting = next((t for t in self._queued() if t.proposal.purpose != "final"), None)
        if waiting is not None or self._missing == 0:
            return waiting
        return next(iter(self.ask(1)), None)

    def _queued(self) -> Iterator[Trial]:
        return (t for t in self._store.trials() if t.status is TrialStatus.QUEUED)

    @property
    def _definition(self) -> StudyDefinition:
        return self._ledger.definition

    @property
    def _missing(self) -> int:
        return yet_to_propose(self._definition, self._store.trials())


def _silent(event: object, trial: Trial) -> None:
    """Stands for nobody who watches."""
