"""How the command line runs a search: what a refused command leaves alone, limits, a driver that died."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from autopeft.study.study import Study
from tests.contracts.cheap_jobs import ROOT
from tests.contracts.cheap_studies import definition
from tests.e2e.conftest import Run


def test_a_refused_command_changes_nothing_and_no_trials_means_those_it_has(
    cli: Run, base: tuple[str, ...], tmp_path: Path
) -> None:
    folder = tmp_path / "study"
    once = ("search", *base, "--study", folder, "--baselines", "none")
    refused = cli(*once, "--trials", 2, "--executor", "slurm")
    assert (refused.exit_code, folder.exists()) == (2, False)
    assert cli(*once, "--trials", 2).exit_code == 0
    assert cli(*once, "--budget", "soon").exit_code == 2
    again = cli(*once)
    assert again.exit_code == 0
    assert "2 of 2 trials done" in again.output
    with Study.open(folder, readonly=True) as study:
        assert (study.definition.trials, len(study.trials)) == (2, 2)


def test_a_budget_of_time_and_the_stop_file_end_a_search_that_goes_on_later(
    cli: Run, base: tuple[str, ...], tmp_path: Path
) -> None:
    folder = tmp_path / "study"
    once = ("search", *base, "--study", folder, "--trials", 3, "--baselines", "none")
    spent = cli(*once, "--budget", "1e-9", "--json")
    told = json.loads(spent.stdout)
    assert (spent.exit_code, told["stopped"], told["missing"]) == (0, "budget", 3)
    (folder / "stop").touch()
    stopped = cli(*once)
    assert stopped.exit_code == 0
    assert f"stopped by the file {folder / 'stop'}, with 3 trials to go" in stopped.output
    (folder / "stop").unlink()
    assert json.loads(cli(*once, "--json").stdout)["missing"] == 0


def test_a_worker_smaller_than_a_trial_is_refused_before_it_starts(
    cli: Run, base: tuple[str, ...], tmp_path: Path
) -> None:
    folder = tmp_path / "study"
    ended = cli("search", *base, "--study", folder, "--trials", 1, "--baselines", "none", "--memory-limit", "50MB")
    assert ended.exit_code == 1
    with Study.open(folder, readonly=True) as study:
        (trial,) = study.trials
        assert trial.failure is not None
        assert trial.failure.kind == "refused"
        assert [t.number for t in study.repeatable] == [0]


def test_status_tells_that_the_process_is_gone(cli: Run, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    Study.start(folder, definition("hang", trials=1)).close()
    code = f"from autopeft.study.study import Study\nStudy.open({str(folder)!r}, trust_evaluate=True).run()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CHEAP_JOBS_LOG": str(tmp_path / "log")}
    with subprocess.Popen([sys.executable, "-c", code], env=environment) as driver:
        try:
            while not (tmp_path / "log").exists():
                assert driver.poll() is None
            alive = json.loads(cli("status", folder, "--json").stdout)
        finally:
            driver.send_signal(signal.SIGKILL)
    dead = json.loads(cli("status", folder, "--json").stdout)
    assert (alive["driver_died"], dead["driver_died"]) == (False, True)
    assert dead["states"]["running"] == 1
    assert "the process that ran them is gone" in cli("status", folder).output


def test_ctrl_c_tells_what_it_waits_for(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    Study.start(folder, definition("slow", trials=40)).close()
    code = (
        "import os, signal\n"
        "from autopeft.study.executors.base import Started\n"
        "from autopeft.study.study import Study\n"
        "def once(event, trial):\n"
        "    if isinstance(event, Started): os.kill(os.getpid(), signal.SIGINT)\n"
        f"report = Study.open({str(folder)!r}, trust_evaluate=True).run(progress=once)\n"
        "raise SystemExit(report.exit_code)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 130
    assert "finishing the 1 running trials; Ctrl-C again stops now" in ended.stderr
