"""Checkpoints in a study: which one is read back, after which accident. Real files, real kills."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from autopeft.errors import InputError
from autopeft.study.checkpoints import Checkpoints
from tests.contracts.cheap_jobs import ROOT
from tests.contracts.test_store import queued

FIRST = {"state.safetensors": b"1" * 5000, "random/torch": b"\0\1"}
SECOND = {"state.safetensors": b"2" * 4000}


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_the_last_one_is_read_back_as_it_was(checkpoints: Checkpoints, tmp_path: Path) -> None:
    assert checkpoints.read(queued(7)) == {}
    checkpoints.write(queued(7), FIRST)
    assert Checkpoints(tmp_path).read(queued(7)) == FIRST
    checkpoints.write(queued(7), SECOND)
    assert checkpoints.read(queued(7)) == SECOND
    assert names(tmp_path) == ["0007"]
    assert checkpoints.damaged == []


def test_one_of_another_proposal_is_none(checkpoints: Checkpoints) -> None:
    """The same number may stand for another configuration, where the last transactions were lost."""
    checkpoints.write(queued(7), FIRST)
    other = replace(queued(8), number=7)
    assert checkpoints.read(other) == {}
    assert checkpoints.damaged == []
    assert checkpoints.read(queued(7)) == FIRST
    checkpoints.write(other, SECOND)
    assert checkpoints.read(other) == SECOND


def test_one_that_was_copied_to_another_trial_is_none(checkpoints: Checkpoints, tmp_path: Path) -> None:
    trial = queued(7)
    checkpoints.write(trial, FIRST)
    shutil.copytree(tmp_path / "checkpoints" / "0007", tmp_path / "checkpoints" / "0008")
    assert checkpoints.read(replace(trial, number=8)) == {}


@pytest.mark.parametrize("file", ["checkpoint.json", "state.safetensors", "random/torch"])
@pytest.mark.parametrize("harm", ["flipped", "cut", "gone"])
def test_a_damaged_one_is_set_apart_and_the_trial_begins_anew(
    checkpoints: Checkpoints, tmp_path: Path, file: str, harm: str
) -> None:
    checkpoints.write(queued(7), FIRST)
    path = tmp_path / "checkpoints" / "0007" / file
    content = path.read_bytes()
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-1] + (bytes([content[-1] ^ 4]) if harm == "flipped" else b""))
    if (file, harm) == ("checkpoint.json", "cut"):  # its last byte ends the line
        path.write_bytes(content[:-3])
    assert checkpoints.read(queued(7)) == {}
    (damage,) = checkpoints.damaged
    assert damage.name == "checkpoints/0007"
    assert damage.reason.endswith("; trial 7 begins anew")
    assert (tmp_path / "quarantine" / "checkpoints-0007").is_dir()
    assert checkpoints.read(queued(7)) == {}
    assert len(checkpoints.damaged) == 1
    checkpoints.write(queued(7), SECOND)
    assert checkpoints.read(queued(7)) == SECOND


@pytest.mark.parametrize("name", ["../out", "checkpoint.json", "a/../../x", ""])
def test_names_that_leave_the_folder_are_refused(checkpoints: Checkpoints, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"checkpoint of trial 7.*not a name"):
        checkpoints.write(queued(7), {name: b"x"})
    assert list(tmp_path.iterdir()) == []


def test_what_is_over_is_removed(checkpoints: Checkpoints, tmp_path: Path) -> None:
    checkpoints.prune(set())
    for number in (1, 2, 30000):
        checkpoints.write(replace(queued(3), number=number), FIRST)
    shutil.copytree(tmp_path / "checkpoints" / "0002", tmp_path / "checkpoints" / ".0005.new")
    assert list(checkpoints.numbers()) == [1, 2, 5, 30000]
    checkpoints.prune({2, 30000, 99})
    assert names(tmp_path) == ["0002", "30000"]
    checkpoints.delete(2)
    checkpoints.delete(2)
    assert names(tmp_path) == ["30000"]


KILLED = """
import os, signal, sys
from pathlib import Path
from autopeft.study.checkpoints import Checkpoints
from tests.contracts.test_checkpoint_store import SECOND, queued
from autopeft.study import checkpoints, folders
calls = 0
def counted(original):
    def call(*arguments, **options):
        global calls
        calls += 1
        if calls == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)
    return call
os.fsync = counted(os.fsync)
Path.rename = counted(Path.rename)
checkpoints.shutil.rmtree = counted(checkpoints.shutil.rmtree)
Checkpoints(Path(sys.argv[1])).write(queued(7), SECOND)
print(calls, flush=True)
"""


def test_killed_at_any_step_of_writing_there_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    """Every sync, renaming and removal of a write is a step; one process for each, killed before it."""
    seen = []
    for step in range(1, 100):
        folder = tmp_path / str(step)
        folder.mkdir()
        Checkpoints(folder).write(queued(7), FIRST)
        command = [sys.executable, "-c", KILLED, str(folder), str(step)]
        done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
        checkpoints = Checkpoints(folder)
        found = checkpoints.read(queued(7))
        assert checkpoints.damaged == []
        if done.returncode == 0:
            assert found == SECOND
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert found in (FIRST, SECOND)
        seen.append(found == SECOND)
        checkpoints.write(queued(7), SECOND)
        assert checkpoints.read(queued(7)) == SECOND
        assert set(names(folder)) <= {"0007", ".0007.old"}
    assert seen == sorted(seen)  # first the old one, from some step on the new one
    assert {False, True} == set(seen)
