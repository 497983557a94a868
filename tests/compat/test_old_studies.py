"""Studies that earlier releases made: they open, are shown, go on to their end, and keep a backup.

A release with another format, or whose studies say more, adds a folder to `studies/`, and beside this file the script
that made it.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from autopeft.cli import app
from autopeft.study import repair
from autopeft.study.database import DATABASE
from autopeft.study.schema import SCHEMA_VERSION
from autopeft.study.store import TEST_OPENED, Store
from autopeft.study.study import Study
from autopeft.trial import TrialStatus
from tests.contracts.cheap_studies import table

STUDIES = Path(__file__).parent / "studies"
NAMES = sorted(path.name for path in STUDIES.iterdir())


@pytest.fixture(params=NAMES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy: a reader, too, makes files beside a database whose process was killed."""
    return Path(shutil.copytree(STUDIES / request.param, tmp_path / request.param))


def expected(folder: Path) -> dict[str, Any]:
    """What the study held, as the release that made it said."""
    return dict(json.loads((folder / "expected.json").read_text(encoding="utf-8")))


def holds(found: object, wanted: object) -> bool:
    """Says whether everything that was there is there; later releases may add fields."""
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(key in found and holds(found[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(holds, found, wanted))
    return found == wanted


def version(path: Path) -> int:
    connection = sqlite3.connect(path)
    try:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])
    finally:
        connection.close()


def test_there_is_a_study_of_every_format() -> None:
    assert set(NAMES) >= {f"format-{n}" for n in range(1, SCHEMA_VERSION)}


def test_a_reader_sees_all_of_it_and_changes_nothing(folder: Path) -> None:
    wanted = expected(folder)
    before = version(folder / DATABASE)
    with Study.open(folder, readonly=True) as study:
        assert study.damaged == ()
        assert all(holds(t.to_dict(), old) for t, old in zip(study.trials, wanted["trials"], strict=True))
        assert [[e.kind, e.trial, dict(e.detail)] for e in study.events] == wanted["events"]
        assert [t.number for t in study.front.trials] == wanted["front"]
        assert study.definition.id == wanted["definition"]
    with Store.open(folder, readonly=True) as store:
        assert [str(d) for d in store.quarantined()] == wanted["quarantined"]
    assert version(folder / DATABASE) == before
    assert not list(folder.glob("*.bak"))


def test_a_writer_keeps_all_of_it_and_a_backup(folder: Path) -> None:
    wanted, before = expected(folder), version(folder / DATABASE)
    with Store.open(folder) as store:
        assert store.damaged == ()
        assert all(holds(t.to_dict(), old) for t, old in zip(store.trials(), wanted["trials"], strict=True))
        assert [[e.kind, e.trial, dict(e.detail)] for e in store.events()] == wanted["events"]
        assert [str(d) for d in store.quarantined()] == wanted["quarantined"]
    assert version(folder / DATABASE) == SCHEMA_VERSION
    backup = folder / f"{DATABASE}.format-{before}.bak"
    assert backup.exists() == (before < SCHEMA_VERSION)
    if backup.exists():
        assert version(backup) == before
        # The backup is a study of its own: put in the place of the database, it can be opened again.
        for name in (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm"):
            (folder / name).unlink(missing_ok=True)
        backup.rename(folder / DATABASE)
        with Store.open(folder, readonly=True) as store:
            assert len(store.trials()) == len(wanted["trials"])


def test_every_verb_that_reads_shows_it(folder: Path) -> None:
    runner = CliRunner()
    for verb in ("status", "pareto", "report"):
        done = runner.invoke(app, [verb, str(folder), "--json"])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["schema"] == 1
        assert runner.invoke(app, [verb, str(folder)]).exit_code == 0
    for trial in expected(folder)["trials"]:
        done = runner.invoke(app, ["show", str(folder), str(trial["number"]), "--json"])
        assert done.exit_code == 0, done.output
        assert holds(json.loads(done.stdout), trial)
    assert runner.invoke(app, ["repair", str(folder), "--check"]).exit_code == 0


def test_it_goes_on_to_its_end(folder: Path) -> None:
    wanted = {trial["number"]: trial for trial in expected(folder)["trials"]}
    with Study.open(folder, trust_evaluate=True) as study:
        again = {trial.number for trial in study.repeatable}
        report = study.run(executor="inline")
        assert report.stopped == "finished"
        assert report.failed == 0
        assert study.missing == 0
        assert all(trial.status.final for trial in study.trials)
        assert [trial.number for trial in study.trials] == sorted(wanted)
        for trial in study.trials:
            old = wanted[trial.number]
            if TrialStatus(old["status"]).final and trial.number not in again:
                assert holds(trial.to_dict(), old)
            else:
                assert trial.status is TrialStatus.COMPLETED
                assert holds(trial.proposal.to_dict(), old["proposal"])
        if "end" in expected(folder):  # the table to which the release that made it brought it
            assert holds(json.loads(json.dumps(table(study.trials))), expected(folder)["end"])
        opened = [trial for kind, trial, _ in expected(folder)["events"] if kind == TEST_OPENED]
        assert [e.trial for e in study.events if e.kind == TEST_OPENED] == opened
        # That the test split was opened is known: the same again trains nothing.
        finals = study.open_test(opened[0], seeds=1, executor="inline")
        assert [trial.number for trial in finals] == [
            max(n for n, t in wanted.items() if "of" in t["proposal"]["note"])
        ]
    assert repair.check(folder).healthy


def test_a_ruined_database_of_it_is_made_anew_with_everything(folder: Path) -> None:
    wanted = expected(folder)
    connection = sqlite3.connect(folder / DATABASE)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # a page that is in the log, too, would not be ruined
    connection.close()
    with (folder / DATABASE).open("r+b") as stream:
        stream.write(b"\0" * 100)
    done = repair.repair(folder)
    assert (done.trials, done.kept) == (len(wanted["trials"]), f"{DATABASE}.old-0")
    with Store.open(folder, readonly=True) as store:
        assert all(holds(t.to_dict(), old) for t, old in zip(store.trials(), wanted["trials"], strict=True))
        kinds = [[e.kind, e.trial, dict(e.detail)] for e in store.events()]
        assert sorted(map(repr, kinds[: len(wanted["events"])])) == sorted(map(repr, wanted["events"]))
