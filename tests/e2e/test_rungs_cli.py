"""What the command line says of a search with rungs."""

from __future__ import annotations

import json
from pathlib import Path

from autopeft.job import Outcome
from autopeft.search.halving import HalvingSearch
from autopeft.study.study import Study
from autopeft.trial import TRAINING_LOSS, Cost
from tests.contracts.cheap_jobs import SHAPE
from tests.contracts.cheap_studies import definition
from tests.e2e.conftest import Run


def begun(folder: Path) -> None:
    """Four configurations left at a quarter, 2 s each; one of the two that go on has ended, after 10 s."""
    told = definition(searcher=HalvingSearch(keep=0.5), trials=4)
    with Study.start(folder, told) as study:
        for number in range(5):
            (trial,) = study.ask(1)
            study.begin(number)
            full = trial.proposal.budget.full
            measured = {"quality": 0.7} if full else {TRAINING_LOSS: 0.25 + number / 16}
            objectives = {**measured, "parameters": float(trial.configuration.count(SHAPE).stored)}
            detail = {"curve": [0.5, 0.375, 0.3125] if full else [] if number else [0.5]}
            study.tell(number, Outcome(objectives, Cost(1.0, 10.0 if full else 2.0), detail))


def test_status_tells_the_time_left_by_the_times_of_the_rungs(cli: Run, tmp_path: Path) -> None:
    begun(tmp_path / "study")
    value = json.loads(cli("status", tmp_path / "study", "--json").stdout)
    assert value["rungs"] == {"0.25": 4, "1": 1}
    assert value["promotions_left"] == 1
    assert value["seconds_per_rung"] == {"0.25": 2.0, "1": 10.0}
    assert value["seconds_left_one_worker"] == 10.0
    told = " ".join(cli("status", tmp_path / "study").output.split())
    assert "about 10 s for one worker, at the mean time of a trial of each rung" in told


def test_show_tells_what_a_rung_is_ranked_by_apart_from_the_epochs(cli: Run, tmp_path: Path) -> None:
    begun(tmp_path / "study")
    texts = [" ".join(cli("show", tmp_path / "study", n).output.split()) for n in (0, 1, 4)]
    assert "training loss 0.5000 ranked by training loss 0.2500, the mean over the later half of its steps" in texts[0]
    assert "training loss no epoch was ended ranked by training loss 0.3125" in texts[1]
    assert "training loss 0.5000 0.3750 0.3125 files" in texts[2]
    assert "ranked by" not in texts[2]
    # A rung has no adapter and no result to come to again: what is offered has to work.
    assert "to train its configuration in full: autopeft train" in texts[0]
    assert "--same-seed" not in texts[0]
    assert "autopeft predict" not in texts[0]
    assert "--same-seed" in texts[2]
