"""A study whose process is killed, interrupted or doubled ends as if nothing had happened; with real processes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from autopeft.study.study import Study
from autopeft.trial import TrialStatus
from tests.contracts.cheap_jobs import ROOT
from tests.contracts.cheap_studies import table

PATIENCE = 120.0  # seconds after which a test gives up; no test measures time
TRIALS = 8


def command(folder: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "tests.e2e.cheap_study", str(folder), *options]


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "CHEAP_JOBS_LOG": str(folder.with_suffix(".log"))}


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(folder, *options),
        cwd=ROOT,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(folder: Path, *options: str) -> dict[str, object]:
    done = subprocess.run(
        command(folder, *options), cwd=ROOT, env=environment(folder), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def begun(folder: Path) -> list[list[str]]:
    """The marks jobs left when they began: trial number, configuration, process."""
    log = folder.with_suffix(".log")
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    return [line.split() for line in lines if line.endswith("\n")]


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "the study does not get on"
        time.sleep(0.002)


def wait_for(folder: Path, process: subprocess.Popen[str], jobs: int) -> None:
    """Waits until that many jobs have begun, or the process has ended."""
    wait_until(lambda: process.poll() is not None or len(begun(folder)) >= jobs)


def gone(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def result(folder: Path) -> list[dict[str, object]]:
    with Study.open(folder, readonly=True) as study:
        assert study.damaged == ()
        return [dict(row) for row in table(study.trials)]


def adapters(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.glob("trials/[0-9]*/*") if p.is_file()}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    folder = tmp_path_factory.mktemp("reference") / "study"
    finish(folder, "--executor", "inline")
    rows = result(folder)
    assert [row["status"] for row in rows] == ["completed"] * (TRIALS + 1)
    return rows


# -- kill -9 --


@pytest.mark.parametrize(
    "point",
    [
        "make:before:1",  # before there is a database
        "make:after:1",
        "add:before:2",  # a proposal that was never stored
        "add:after:4",  # a queued trial that never ran
        "advance:after:5",  # a running trial
        "write:before:3",  # a finished job whose result is lost
        "fsync:before:10",  # in the midst of writing a folder
        "replace:after:4",  # a folder complete, its row still running
        "advance:after:8",  # a completed trial, the next not proposed
        "advance:after:18",  # the last one
    ],
)
def test_killed_at_a_given_point_it_ends_with_the_same_table(
    tmp_path: Path, uninterrupted: list[dict[str, object]], point: str
) -> None:
    folder = tmp_path / "study"
    killed = start(folder, "--executor", "inline", "--kill", point)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    finish(folder, "--executor", "inline")
    assert result(folder) == uninterrupted


def test_killed_five_times_at_random_it_ends_with_the_same_table_and_no_finished_trial_is_touched(
    tmp_path: Path, uninterrupted: list[dict[str, object]]
) -> None:
    folder, draw = tmp_path / "study", random.Random(0)
    kept: dict[str, bytes] = {}
    for kill in range(5):
        process = start(folder)
        wait_for(folder, process, 2 * kill + 1)
        time.sleep(draw.uniform(0.0, 0.1))
        process.kill()
        process.communicate()
        with Study.open(folder, readonly=True) as study:
            finished = {f"trials/{t.number:04d}/" for t in study.trials if t.status is TrialStatus.COMPLETED}
        kept |= {name: content for name, content in adapters(folder).items() if name[:12] in finished}
    finish(folder)
    assert result(folder) == uninterrupted
    final = adapters(folder)
    assert kept
    assert kept == {name: final[name] for name in kept}
    wait_until(lambda: all(gone(int(worker)) for _, _, worker in begun(folder)))


def test_two_workers_killed_lose_and_double_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    for kill in range(3):
        process = start(folder, "--workers", "2")
        wait_for(folder, process, 3 * kill + 1)
        process.kill()
        process.communicate()
    finish(folder, "--workers", "2")
    with Study.open(folder, readonly=True) as study:
        assert [t.number for t in study.trials] == list(range(TRIALS + 1))
        assert {t.status for t in study.trials} == {TrialStatus.COMPLETED}
        assert len({t.configuration.id for t in study.trials}) == TRIALS + 1
        assert len([e for e in study.events if e.kind == "completed"]) == TRIALS + 1
    # A number always stands for one configuration, however often it was begun.
    assert len({number for number, _, _ in begun(folder)}) == len({(n, c) for n, c, _ in begun(folder)}) == TRIALS + 1
    wait_until(lambda: all(gone(int(worker)) for _, _, worker in begun(folder)))


def test_a_bayesian_search_killed_while_it_models_proposes_the_same(tmp_path: Path) -> None:
    options = ("--executor", "inline", "--searcher", "bayes", "--trials", "6")
    finish(tmp_path / "whole", *options)
    killed = start(tmp_path / "killed", *options, "--kill", "add:before:6")
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    finish(tmp_path / "killed", *options)
    assert result(tmp_path / "killed") == result(tmp_path / "whole")


# -- no space --


@pytest.mark.parametrize("largest", [30_000, 60_000, 120_000])
def test_where_the_disk_takes_no_more_it_says_so_and_loses_nothing_finished(
    tmp_path: Path, uninterrupted: list[dict[str, object]], largest: int
) -> None:
    folder = tmp_path / "study"
    stopped = start(folder, "--executor", "inline", "--largest-file", str(largest))
    _, errors = stopped.communicate()
    assert stopped.returncode == 2
    assert len(errors.splitlines()) == 1
    assert "cannot be" in errors
    kept = adapters(folder)
    finish(folder, "--executor", "inline")
    assert result(folder) == uninterrupted
    # What had been finished is as it was; only a trial whose row could not be written is made anew, equal but for cost.
    rewritten = {name[:12] for name, content in kept.items() if adapters(folder)[name] != content}
    assert len(rewritten) <= 1


# -- Ctrl-C and SIGTERM --


@pytest.mark.parametrize("executor", ["inline", "process"])
def test_ctrl_c_once_finishes_the_running_trial_and_stops_resumable(
    tmp_path: Path, uninterrupted: list[dict[str, object]], executor: str
) -> None:
    folder = tmp_path / "study"
    process = start(folder, "--executor", executor)
    wait_until(lambda: len(begun(folder)) >= 3)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it: to the whole group
    output, errors = process.communicate()
    assert process.returncode == 130
    # Whether a trial was still running then is a matter of moments.
    assert errors in ("", "finishing the 1 running trials; Ctrl-C again stops now\n")
    assert json.loads(output)["stopped"] == "interrupted"
    with Study.open(folder, readonly=True) as study:
        assert {t.status for t in study.trials} == {TrialStatus.COMPLETED}
        assert 3 <= len(study.trials) == len(begun(folder)) <= TRIALS
    finish(folder, "--executor", executor)
    rows = result(folder)
    for row, expected in zip(rows, uninterrupted, strict=True):
        row["detail"], expected = {}, {**expected, "detail": {}}
        assert row == expected


@pytest.mark.parametrize(
    ("signals", "exit_code", "reason"),
    [([signal.SIGINT, signal.SIGINT], 130, "Ctrl-C, twice"), ([signal.SIGTERM], 143, "SIGTERM")],
)
def test_stopped_now_it_leaves_no_process_and_can_be_resumed(
    tmp_path: Path, signals: list[signal.Signals], exit_code: int, reason: str
) -> None:
    folder = tmp_path / "study"
    process = start(folder, "--job", "hang", "--workers", "2")
    wait_until(lambda: len(begun(folder)) == 2)
    for number in signals:
        os.killpg(process.pid, number)
        time.sleep(0.5)  # two signals at once may be merged into one
    output, errors = process.communicate()
    told = "finishing the 2 running trials; Ctrl-C again stops now\n" if exit_code == 130 else ""
    assert (process.returncode, errors) == (exit_code, told)
    assert json.loads(output)["completed"] == 0
    assert all(gone(int(worker)) for _, _, worker in begun(folder))
    with Study.open(folder, readonly=True) as study:
        assert Counter(t.status for t in study.trials) == {TrialStatus.INTERRUPTED: 2}
        assert {e.detail["reason"] for e in study.events if e.kind == "interrupted"} == {reason}
    with Study.open(folder) as study:
        assert Counter(t.status for t in study.trials) == {TrialStatus.QUEUED: 2}
        assert study.missing == TRIALS - 1


# -- two searches --


def test_a_second_search_on_the_same_study_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    first = start(folder, "--trials", "60")  # enough for the second to start in, on a busy machine too
    wait_until(lambda: begun(folder))
    second = start(folder)
    output, errors = second.communicate()
    assert (second.returncode, output) == (2, "")
    assert f"the study is being written by process {first.pid}" in errors
    assert len(errors.splitlines()) == 1
    output, _ = first.communicate()
    assert json.loads(output) == {"stopped": "finished", "completed": 60 + 1, "failed": 0}
