"""Studies with rungs: a promotion equals the trial that was never left, whatever happens in between."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autopeft import spaces
from autopeft.errors import StudyError
from autopeft.report.summary import summarise
from autopeft.search.halving import HalvingSearch
from autopeft.search.random import RandomSearch
from autopeft.study.definition import StudyDefinition
from autopeft.study.executors.inline import InlineExecutor
from autopeft.study.limits import STOP_FILE
from autopeft.study.repair import check, repair
from autopeft.study.study import Study
from autopeft.trial import Budget, Failure, Problem, Proposal, Trial, TrialStatus
from tests.contracts.cheap_jobs import SHAPE
from tests.contracts.cheap_studies import definition, table
from tests.contracts.stepwise_jobs import HERE, STEPS, chain_of, chained, steps_logged
from tests.faults.moments import watched

TOTAL = 8
PLACE = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=PLACE) as name:
        yield Path(name)


def made(job: str = "chained", **changes: Any) -> StudyDefinition:
    searcher = HalvingSearch(keep=0.5, stratified=False)
    return definition(evaluate=f"{HERE}:{job}", **{"searcher": searcher, "trials": TOTAL, **changes})


def run(folder: Path, told: StudyDefinition, **how: Any) -> Study:
    study = Study.start(folder, told)
    study.run(executor=how.pop("executor", "inline"), **how)
    return study


def checkpoints(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "checkpoints").glob("*"))


def test_half_of_the_configurations_go_on_from_where_they_were_left(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHEAP_JOBS_LOG", str(place / "log"))
    with run(place / "study", made()) as study:
        assert [t.proposal.budget.share for t in study.trials] == [0.25] * TOTAL + [1.0] * (TOTAL // 2)
        assert study.begun == TOTAL
        assert study.left == study.missing == study.promotions_left == 0
        steps = steps_logged(place / "log")
        for trial in study.trials:
            assert steps[trial.number] == (list(range(2)) if trial.proposal.parent is None else list(range(2, STEPS)))
            if trial.scored:
                assert trial.detail["chain"] == chain_of(trial.configuration)
        for trial in study.trials[TOTAL:]:
            parent = study.trial(trial.proposal.parent or 0)
            assert (parent.configuration, parent.proposal.seed) == (trial.configuration, trial.proposal.seed)
        assert checkpoints(study.path) == []
        assert study.run(executor="inline").stopped == "finished"
        assert len(study.trials) == TOTAL + TOTAL // 2


def test_with_two_rungs_below_the_last_each_goes_on_from_the_one_before(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHEAP_JOBS_LOG", str(place / "log"))
    searcher = HalvingSearch((0.1, 0.5, 1), keep=0.5)
    with run(place / "study", made(searcher=searcher)) as study:
        assert [t.proposal.budget.share for t in study.trials] == [0.1] * 8 + [0.5] * 4 + [1.0] * 2
        steps = steps_logged(place / "log")
        assert [steps[n] for n in (0, 8, 12)] == [[0], [1, 2], [3, 4, 5]]
        assert all(t.detail["chain"] == chain_of(t.configuration) for t in study.trials[12:])
        assert checkpoints(study.path) == []


def test_only_full_trials_are_on_the_front_and_in_the_report(place: Path) -> None:
    with run(place / "study", made()) as study:
        scored = {t.number for t in study.trials if t.proposal.budget.full}
        assert {t.number for t in study.front} <= scored
        assert study.front.knee().trial.number in scored
        summary = summarise(study)
        assert {row.trial for row in summary.front} <= scored
        assert set(summary.anytime.trials) == scored
        assert {row.trial for row in summary.trials if row.quality is not None} == scored
        assert summary.progress["search"] == TOTAL
        shares = {row.trial: row.share for row in summary.trials}
        assert shares == {t.number: t.proposal.budget.share for t in study.trials}
        finals = study.train(0, seeds=1, executor="inline")  # of a rung's trial: trained in full
        assert [t.proposal.budget.full for t in finals] == [True]


def test_two_processes_try_the_same_configurations_and_give_the_same_results(place: Path) -> None:
    with run(place / "one", made()) as one, run(place / "two", made(), executor="process", workers=2) as two:
        rows = []
        for study in (one, two):
            results = {(t.configuration.id, t.proposal.budget): t.detail["chain"] for t in study.trials}
            assert len(results) == len(study.trials)
            rows.append(results)
        assert rows[0] == rows[1]


def test_killed_at_any_moment_it_ends_with_the_same_table(place: Path) -> None:
    """The folder as it is between two steps that reach the disk is what a process killed with SIGKILL leaves."""
    told = made(trials=4)
    with run(place / "whole", told) as study:
        expected = table(study.trials)
    copies: list[Path] = []
    count, copying = 0, False

    def seen(name: str) -> None:
        nonlocal count, copying
        count += not copying
        if not copying and count % 9 == 0 and (place / "study" / "study.json").exists():
            copying = True  # the copy itself reaches the disk too
            copies.append(place / f"moment-{count}")
            shutil.copytree(place / "study", copies[-1])
            copying = False

    with watched(seen):
        run(place / "study", told).close()
    assert len(copies) > 20
    promoted = 0
    for copy in copies:
        (copy / "lock").unlink(missing_ok=True)
        with Study.open(copy, trust_evaluate=True) as study:
            promoted += sum(t.proposal.parent is not None for t in study.trials) > 0
            study.run(executor="inline")
            assert table(study.trials) == expected
            assert checkpoints(copy) == []
        shutil.rmtree(copy)
    assert 5 < promoted < len(copies)


@pytest.mark.parametrize("harm", ["gone", "damaged", "of another trial"])
def test_a_promotion_without_its_parents_checkpoint_begins_anew_with_the_same_result(
    place: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    with run(place / "whole", made()) as study:
        expected = table(study.trials)
    folder = place / "study"
    study = begun_only(folder)
    (promotion,) = study.ask(1)
    kept = folder / "checkpoints" / f"{promotion.proposal.parent:04d}"
    assert kept.is_dir()
    if harm == "gone":
        shutil.rmtree(kept)
    elif harm == "damaged":
        (kept / "chain").write_bytes(b"x" * 64)
    else:
        other = folder / "checkpoints" / f"{(promotion.proposal.parent or 0) ^ 1:04d}"
        shutil.rmtree(kept)
        shutil.copytree(other, kept)
    monkeypatch.setenv("CHEAP_JOBS_LOG", str(place / "log"))
    with study:
        study.run(executor="inline")
        assert steps_logged(place / "log")[promotion.number] == list(range(STEPS))
        assert table(study.trials) == expected
        assert bool(study.damaged) == (harm == "damaged")
        assert checkpoints(folder) == []


def begun_only(folder: Path) -> Study:
    """A study whose first rung has just ended."""
    study = Study.start(folder, made())
    executor = InlineExecutor(chained)

    def stop(event: object, trial: Trial) -> None:
        if trial.number == TOTAL - 1 and trial.status.final:
            (folder / STOP_FILE).touch()

    report = study.run(executor=executor, progress=stop)
    assert report.stopped == "stop file"  # there is more to do, although no configuration is missing
    (folder / STOP_FILE).unlink()
    assert len(study.trials) == TOTAL
    assert study.promotions_left == TOTAL // 2
    assert len(checkpoints(folder)) == TOTAL
    return study


def test_a_rebuilt_study_goes_on_with_its_promotions(place: Path) -> None:
    with run(place / "whole", made()) as study:
        expected = table(study.trials)
    folder = place / "study"
    begun_only(folder).close()
    assert check(folder).healthy
    (folder / "study.sqlite").unlink()
    repair(folder)
    with Study.open(folder, trust_evaluate=True) as study:
        assert len(checkpoints(folder)) == TOTAL
        study.run(executor="inline")
        assert table(study.trials) == expected


def test_a_damaged_checkpoint_of_a_rung_is_found_and_set_apart(place: Path) -> None:
    begun_only(place / "study").close()
    (place / "study" / "checkpoints" / "0003" / "chain").write_bytes(b"x")
    (finding,) = repair(place / "study").findings
    assert finding.name == "checkpoints/0003"
    assert check(place / "study").healthy


def test_more_trials_later_are_begun_and_promoted(place: Path) -> None:
    with run(place / "study", made(trials=4)) as study:
        first = table(study.trials)
        study.run(executor="inline", trials=TOTAL)
        assert table(study.trials)[: len(first)] == first
        assert study.begun == TOTAL
        assert sum(t.proposal.budget.full for t in study.trials) == TOTAL // 2
        assert all(t.detail["chain"] == chain_of(t.configuration) for t in study.trials if t.scored)
        assert checkpoints(study.path) == []


def test_failed_trials_are_not_promoted_and_the_search_ends(place: Path) -> None:
    with run(place / "study", made("chained_some_fail", trials=9)) as study:
        failed = {t.number for t in study.trials if t.status is TrialStatus.FAILED}
        assert failed
        assert not failed & {t.proposal.parent for t in study.trials}
        assert sum(t.scored for t in study.trials) == min(4, 9 - len(failed))
        assert study.promotions_left == 0
        assert checkpoints(study.path) == []


def test_every_configuration_of_a_small_space_is_begun_and_the_share_kept_is_of_those(place: Path) -> None:
    template = spaces.autopeft(learning_rate=1e-3, serial=(1, 3, 6), parallel=False, prefix=False, layers=(0, 1))
    space = template.on(SHAPE)
    assert space.size == 9  # three subsets of two layers, three sizes
    with run(place / "study", made(space=space, trials=50)) as study:
        assert study.begun == space.size
        assert sum(t.scored for t in study.trials) == 4
        assert study.run(executor="inline").stopped == "exhausted"


def test_a_failed_promotion_counts_as_promoted_and_its_start_is_removed(place: Path) -> None:
    study = begun_only(place / "study")
    with study:
        (promotion,) = study.ask(1)
        assert study.begin(promotion.number).start is not None
        study.tell(promotion.number, Failure("nan", "no"))
        assert f"{promotion.proposal.parent:04d}" not in checkpoints(study.path)
        study.run(executor="inline")
        assert sum(t.proposal.parent is not None for t in study.trials) == TOTAL // 2


def test_a_promotion_whose_worker_vanishes_begins_from_its_parent_until_it_has_a_checkpoint(place: Path) -> None:
    with begun_only(place / "study") as study:
        (promotion,) = study.ask(1)
        first = study.begin(promotion.number)
        assert first.start is not None
        study._ledger.lose(promotion.number, "killed")
        assert study.begin(promotion.number).start == first.start
        study._ledger.keep(promotion.number, {"steps": b"3", "chain": b"x"})
        study._ledger.lose(promotion.number, "killed")
        again = study.begin(promotion.number)
        assert again.start == first.start  # the second choice, should its own be of no use
        assert again.checkpoint == {"steps": b"3", "chain": b"x"}


def test_a_searcher_may_only_continue_completed_trials_once(place: Path) -> None:
    class Wrong(RandomSearch):
        kind = "random"
        promotes = True
        wish: Proposal

        def suggest(self, problem: Problem, *others: Any, **more: Any) -> list[Proposal]:
            return [Wrong.wish]

    with begun_only(place / "study") as study:
        (promotion,) = study.ask(1)
        other = next(t for t in study.trials if t.number != promotion.proposal.parent)
        wishes = (
            promotion.proposal,  # promoted already
            replace(promotion.proposal, parent=99),  # no such trial
            replace(promotion.proposal, parent=other.number),  # of another configuration
            Proposal(other.configuration, Budget(7, 1), 0, parent=other.number),  # on more examples
            replace(other.proposal, parent=other.number),  # no larger share
        )
        study._ledger.redefine(replace(study.definition, searcher=Wrong()))
        for wish in wishes:
            Wrong.wish = wish
            with pytest.raises(StudyError, match="cannot be continued so"):
                study.ask(1)


def test_what_is_left_to_promote_is_told_whatever_the_searcher_does(place: Path) -> None:
    class Silent(RandomSearch):
        kind = "random"

        def suggest(self, problem: Problem, *others: Any, **more: Any) -> list[Proposal]:
            pytest.fail("one that promotes nothing need not be asked")

    class Wrong(HalvingSearch):
        kind = "halving"

        def suggest(self, problem: Problem, *others: Any, **more: Any) -> list[Proposal]:
            return [Proposal(trials[0].configuration, Budget(7, 1), 0, parent=0)]

    with Study.start(place / "plain", definition(trials=TOTAL)) as study:
        study._ledger.redefine(replace(study.definition, searcher=Silent()))
        assert study.promotions_left == 0
    with begun_only(place / "study") as study:
        trials = study.trials
        study._ledger.redefine(replace(study.definition, searcher=Wrong(keep=0.5, stratified=False)))
        assert study.promotions_left == TOTAL // 2
