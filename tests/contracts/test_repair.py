"""Repairing studies: what is restored from where, set apart, remembered. Every damage is done to real files."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from autopeft.cli import app
from autopeft.errors import StudyError
from autopeft.study.database import DATABASE
from autopeft.study.folders import read_sealed
from autopeft.study.repair import check, repair
from autopeft.study.store import DEFINITION, TEST_OPENED, Store
from autopeft.trial import Failure, Trial, TrialStatus
from tests.contracts.test_store import DEFINED, alter, completed, finish, queued

RUNNING, FAILED, INTERRUPTED = TrialStatus.RUNNING, TrialStatus.FAILED, TrialStatus.INTERRUPTED


def failed(number: int) -> Trial:
    return replace(queued(number), status=FAILED, failure=Failure("nan", "the loss is not a number"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A closed study with two completed trials, a failed, a running, an interrupted and a queued one, and events."""
    path = tmp_path / "study"
    with Store.create(path, DEFINED) as store:
        store.add([queued(n) for n in range(6)])
        finish(store, 0)
        finish(store, 1)
        store.trial_folders.write(failed(2), {})
        store.advance(replace(queued(2), status=RUNNING), failed(2))
        store.advance(replace(queued(3), status=RUNNING))
        lost = [replace(queued(4), status=RUNNING), replace(queued(4), status=INTERRUPTED)]
        store.advance(*lost, queued(4), *lost, detail={"lost": True})
        store.note(TEST_OPENED, 1, {"seeds": [5]})
        store.note("first trials failed alike", detail={"trials": [2]})
        store.checkpoints.write(replace(queued(3), status=RUNNING), {"state": b"half-way"})
    return path


@pytest.fixture
def before(folder: Path) -> list[object]:
    return contents(folder)


def contents(folder: Path) -> list[object]:
    with Store.open(folder, readonly=True) as store:
        kinds = [(e.kind, e.trial, e.time, dict(e.detail)) for e in store.events() if e.kind != "rebuilt"]
        return [store.trials(), kinds, store.definition()]


def files(folder: Path) -> dict[str, bytes]:
    """All files but the lock and those that SQLite makes to read."""
    paths = (p for p in folder.rglob("*") if p.is_file() and not p.name.endswith(("-shm", "-wal", ".lock")))
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


def records(folder: Path) -> list[object]:
    return [read_sealed(path) for path in sorted(folder.glob("trials/*/trial.json"))]


def overwrite(path: Path, place: int, content: bytes) -> None:
    with path.open("r+b") as stream:
        stream.seek(place)
        stream.write(content)


def test_a_healthy_study_is_left_as_it_is(folder: Path) -> None:
    was = files(folder)
    report = check(folder)
    assert (report.healthy, report.trials, report.events, report.folders, report.checkpoints) == (True, 6, 21, 3, 1)
    assert repair(folder).healthy
    assert files(folder) == was


# -- the database --

RUINS: dict[str, Callable[[Path], object]] = {
    "no header": lambda path: overwrite(path, 0, b"\0" * 100),
    "no first page": lambda path: overwrite(path, 0, bytes(range(256)) * 16),
    "a table renamed": lambda path: path.write_bytes(
        path.read_bytes().replace(b"CREATE TABLE trials", b"CREATE TABLE trialz")
    ),
    "no UTF-8": lambda path: path.write_bytes(
        path.read_bytes().replace(b"INTEGER PRIMARY KEY", b"INTEGER PRIMARY KE\xbc")
    ),
    "format 130": lambda path: overwrite(path, 63, b"\x82"),
    "format 0": lambda path: overwrite(path, 63, b"\0"),
    "texts as UTF-16": lambda path: overwrite(path, 59, b"\2"),
    "read by no release": lambda path: overwrite(path, 19, b"\7"),
}


@pytest.mark.parametrize("ruin", RUINS, ids=lambda name: name.replace(" ", "-"))
def test_a_ruined_database_is_made_anew_with_every_trial_and_event(
    folder: Path, before: list[object], ruin: str
) -> None:
    RUINS[ruin](folder / DATABASE)
    ruined = (folder / DATABASE).read_bytes()
    with pytest.raises(StudyError, match="autopeft repair"):
        Store.open(folder)
    looked = check(folder)
    assert (len(looked.findings), looked.findings[0].name, looked.trials) == (1, DATABASE, 6)
    assert (folder / DATABASE).read_bytes() == ruined
    done = repair(folder)
    assert [f.name for f in done.findings] == [DATABASE]
    assert (folder / str(done.kept)).read_bytes() == ruined
    assert contents(folder) == before
    assert check(folder).healthy


def test_the_log_of_a_ruined_database_is_read_too(folder: Path, tmp_path: Path) -> None:
    with Store.open(folder) as store:
        store.add([queued(6)])
        finish(store, 5)
        store.note("the last thing that happened")
        copy = Path(shutil.copytree(folder, tmp_path / "killed"))
        trials, events = store.trials(), store.events()
    assert (copy / f"{DATABASE}-wal").stat().st_size > 0
    overwrite(copy / DATABASE, 0, b"\0" * 4096)
    repair(copy)
    with Store.open(copy) as store:
        assert store.trials() == trials
        assert store.events()[: len(events)] == events


def test_without_a_database_finished_trials_come_from_their_folders(folder: Path) -> None:
    (folder / DATABASE).unlink()
    with pytest.raises(StudyError, match="database is gone"):
        Store.open(folder)
    with pytest.raises(StudyError, match="a study here already"):
        Store.create(folder, DEFINED)
    assert [f.name for f in check(folder).findings] == [DATABASE]
    repair(folder)
    with Store.open(folder) as store:
        assert store.trials() == (completed(0), completed(1), failed(2))


def test_long_records_that_fill_several_pages_are_found(folder: Path) -> None:
    long = replace(failed(3), failure=Failure("error", "long", "x" * 50_000))
    with Store.open(folder) as store:
        store.advance(long)
        store.trial_folders.write(long, {})
    shutil.rmtree(folder / "trials")
    overwrite(folder / DATABASE, 0, b"\0" * 100)
    repair(folder)
    with Store.open(folder) as store:
        assert store.trial(3) == long


def test_of_several_versions_of_a_trial_the_last_is_taken(folder: Path, tmp_path: Path) -> None:
    """The database holds an older version, intact, and the log many more."""
    with Store.open(folder) as store:
        for _ in range(20):
            store.advance(replace(queued(3), status=INTERRUPTED), queued(3), replace(queued(3), status=RUNNING))
        store.advance(replace(queued(3), status=INTERRUPTED))
        killed = Path(shutil.copytree(folder, tmp_path / "killed"))
    for ruined in (folder, killed):
        overwrite(ruined / DATABASE, 0, b"\0" * 100)
        with Store.rebuild(ruined) as store:
            assert store.trial(3).status is INTERRUPTED
            assert len(store.events(trial=3)) == 2 + 60 + 1


def test_a_completed_folder_ends_a_trial_whose_row_is_behind(folder: Path) -> None:
    with Store.open(folder) as store:
        store.trial_folders.write(completed(3), {"adapter.safetensors": b"w"})
    with Store.open(folder) as store:
        assert store.trial(3) == completed(3)
        assert store.damaged == ()
        assert [e.kind for e in store.events(trial=3)] == ["queued", "running", "completed"]


def test_the_folder_of_a_failure_that_is_tried_again_ends_nothing(folder: Path) -> None:
    with Store.open(folder) as store:
        store.advance(queued(2))
    with Store.open(folder) as store:
        assert store.trial(2).status is TrialStatus.QUEUED
    assert check(folder).healthy


# -- rows --


def test_a_row_that_vanished_is_missed(folder: Path) -> None:
    for statement in ("DELETE FROM trials WHERE number = 1", "DELETE FROM trials WHERE number = 4"):
        alter(folder, statement)
    alter(folder, "DELETE FROM events WHERE id = 3")
    assert {f.name for f in check(folder).findings} == {"trial 1", "trial 4", "event 3"}
    with Store.open(folder) as store:
        reasons = {d.name: d.reason for d in store.damaged}
        assert reasons == {
            "trial 1": "is missing; restored from its folder",
            "trial 4": "is missing; left out",
            "event 3": "is missing; left out",
        }
        assert store.trial(1) == completed(1)
        assert store.next_number() == 6
    assert check(folder).healthy


def test_a_folder_that_the_database_does_not_know_is_taken_up(folder: Path) -> None:
    """As where the last transactions of a log are lost: its number must not be given again."""
    with Store.open(folder) as store:
        note = {"of": 0, "splits": ["validation", "test"]}
        trial = replace(completed(9), proposal=replace(queued(9).proposal, purpose="final", note=note))
        store.trial_folders.write(trial, {"a": b"w"})
    assert [(f.name, f.reason) for f in check(folder).findings] == [("trial 9", "is not in the database")]
    with Store.open(folder) as store:
        assert store.trial(9) == trial
        assert store.next_number() == 10
        assert [e.trial for e in store.events(TEST_OPENED)] == [1, 0]


def test_a_row_under_a_wrong_number_is_put_back(folder: Path) -> None:
    alter(folder, "UPDATE trials SET number = 77 WHERE number = 5")
    with Store.open(folder) as store:
        assert store.trial(5) == queued(5)
        assert [t.number for t in store.trials()] == list(range(6))


def test_what_is_set_apart_is_sealed_itself(folder: Path) -> None:
    alter(folder, "UPDATE trials SET record = '{}' WHERE number = 4")
    with Store.open(folder) as store:
        assert [str(d) for d in store.quarantined()] == ["trial 4: does not match its checksum; left out"]
    alter(folder, "UPDATE quarantine SET record = replace(record, 'trial 4', 'trial 3') WHERE id = 1")
    with Store.open(folder, readonly=True) as store:
        assert [str(d) for d in store.quarantined()] == ["quarantine 1: does not match its checksum"]
        assert store.next_number() == 6


# -- folders --


def test_a_damaged_trial_json_is_written_anew_from_the_row(folder: Path) -> None:
    was = records(folder)
    for number, content in ((0, b""), (1, b"\xff"), (2, b"{}")):
        (folder / "trials" / f"000{number}" / "trial.json").write_bytes(content)
    assert len(check(folder).findings) == 3
    assert {f.remedy for f in repair(folder).findings} == {"trial.json is written anew"}
    assert records(folder) == was
    with Store.open(folder) as store:
        assert store.trial_folders.files(1) == {"adapter.safetensors": b"weights", "head/head.json": b"{}"}
    assert not (folder / "quarantine").exists()


def test_an_older_study_has_its_digests_in_trial_json_only(folder: Path) -> None:
    """One that matches its file is proven, in however damaged a text."""
    record, was = folder / "trials" / "0001" / "trial.json", records(folder)
    connection = sqlite3.connect(folder / DATABASE)
    with connection:
        connection.execute("DELETE FROM events WHERE trial = 1 AND record LIKE '%files%'")
    connection.close()
    record.write_bytes(record.read_bytes().replace(b"}", b"", 2))
    repair(folder)
    assert records(folder) == was


@pytest.mark.parametrize("harm", ["flipped", "missing", "no folder"])
def test_a_trial_whose_files_are_damaged_stays_and_is_marked(folder: Path, harm: str) -> None:
    place = folder / "trials" / "0001"
    adapter = place / "adapter.safetensors"
    if harm == "flipped":
        adapter.write_bytes(b"weight\xf3")
    elif harm == "missing":
        adapter.unlink()
    else:
        shutil.rmtree(place)
    was = files(place)
    (finding,) = repair(folder).findings
    assert finding.name == "trials/0001"
    with Store.open(folder) as store:
        assert store.trial(1) == completed(1)  # it is not proposed anew
        assert store.next_number() == 6
        (mark,) = store.damaged
        assert mark.name == "trials/0001"
        with pytest.raises(StudyError, match=r"trial 1: .*; its files (were set apart|are lost)"):
            store.trial_folders.files(1)
    if was:
        assert files(folder / "quarantine" / "trials-0001") == was
        assert finding.reason in (folder / "quarantine" / "trials-0001.txt").read_text()
    assert check(folder).healthy
    assert repair(folder).healthy
    # The mark is in the folder too, and survives the database.
    (folder / DATABASE).unlink()
    repair(folder)
    with Store.open(folder) as store:
        assert [d.name for d in store.damaged] == ["trials/0001"]


def test_a_damaged_folder_of_a_trial_that_is_lost_goes_to_quarantine(folder: Path) -> None:
    (folder / "trials" / "0001" / "adapter.safetensors").write_bytes(b"x")
    (folder / DATABASE).unlink()
    assert [f.name for f in repair(folder).findings] == [DATABASE, "trials/0001"]
    assert (folder / "quarantine" / "trials-0001" / "trial.json").exists()
    with Store.open(folder) as store:
        assert [t.number for t in store.trials()] == [0, 2]
        assert store.next_number() == 3
    assert check(folder).healthy


def test_what_is_set_apart_twice_is_kept_twice(folder: Path) -> None:
    for content in (b"1", b"2"):
        with Store.open(folder) as store:
            store.checkpoints.write(replace(queued(3), status=RUNNING), {"state": b"half-way"})
        (folder / "checkpoints" / "0003" / "state").write_bytes(content)
        assert [f.name for f in repair(folder).findings] == ["checkpoints/0003"]
    kept = sorted((folder / "quarantine").glob("*/state"))
    assert [path.read_bytes() for path in kept] == [b"1", b"2"]


# -- the definition --


def test_the_definition_is_kept_in_two_places(folder: Path, before: list[object]) -> None:
    (folder / DEFINITION).unlink()
    assert [f.name for f in repair(folder).findings] == [DEFINITION]
    assert read_sealed(folder / DEFINITION)["definition"] == DEFINED
    alter(folder, "UPDATE meta SET record = '{}'")
    assert [f.name for f in check(folder).findings] == ["definition"]
    assert [f.name for f in repair(folder).findings] == ["definition"]
    assert contents(folder)[2] == before[2]
    assert check(folder).healthy


def test_a_definition_that_is_in_neither_place_is_asked_for(folder: Path) -> None:
    connection = sqlite3.connect(folder / DATABASE)
    with connection:
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute("UPDATE meta SET record = '{}'")
    connection.close()
    (folder / DEFINITION).write_text("{}")
    for act in (check, repair):
        with pytest.raises(StudyError, match=r"study\.json: has no checksum, .* restore study\.json from a copy"):
            act(folder)


# -- the verb --


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["repair", *map(str, arguments)])


def test_the_verb_tells_what_it_found_and_exits_by_it(folder: Path) -> None:
    assert (run(folder, "--check").exit_code, run(folder).exit_code) == (0, 0)
    (folder / "trials" / "0000" / "trial.json").write_text("")
    looked = run(folder, "--check")
    assert looked.exit_code == 1
    assert looked.stdout.splitlines()[0].startswith("trials/0000: is not JSON")
    assert "1 wrong; 6 trials, 21 events, 3 trial folders, 1 checkpoints" in looked.stdout
    value = json.loads(run(folder, "--check", "--json").stdout)
    assert (value["healthy"], value["findings"][0]["name"]) == (False, "trials/0000")
    mended = run(folder)
    assert mended.exit_code == 0
    assert "1 wrong, mended" in mended.stdout
    assert run(folder, "--check").exit_code == 0


def test_a_folder_without_a_study_is_refused(tmp_path: Path) -> None:
    for flag in ((), ("--check",)):
        done = run(tmp_path / "nowhere", *flag)
        assert done.exit_code == 2
        assert done.stderr.startswith("error: ")
        assert "there is no study here" in done.stderr


def test_a_running_study_can_be_checked_but_not_mended(folder: Path) -> None:
    with Store.open(folder):
        assert check(folder).healthy
        with pytest.raises(StudyError, match="being written by process"):
            repair(folder)
