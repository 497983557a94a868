"""The store: transitions, checksums, one writer and many readers, rebuilding. Every damage is done to real files."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from autopeft.configuration import Configuration, Training
from autopeft.errors import StudyError
from autopeft.study.database import DATABASE
from autopeft.study.folders import read_sealed
from autopeft.study.lock import LOCK_NAME
from autopeft.study.schema import SCHEMA_VERSION
from autopeft.study.store import DEFINITION, TEST_OPENED, Store
from autopeft.trial import Budget, Cost, Failure, Proposal, Trial, TrialStatus
from tests.contracts.cheap_jobs import ROOT

DEFINED = {"seed": 3, "name": "größer"}
FINAL = [TrialStatus.COMPLETED, TrialStatus.PRUNED, TrialStatus.FAILED]


def queued(number: int) -> Trial:
    return Trial(number, Proposal(Configuration((), Training(10.0**-number)), Budget(0, 3), 0, note={"k": number}))


def completed(number: int) -> Trial:
    return replace(
        queued(number),
        status=TrialStatus.COMPLETED,
        objectives={"quality": 0.1 + 0.2, "parameters": 7.0},
        cost=Cost(1.5, 2.5, 3),
        detail={"curve": [0.5, None]},
    )


def finish(store: Store, number: int) -> Trial:
    final = completed(number)
    store.trial_folders.write(final, {"adapter.safetensors": b"weights", "head/head.json": b"{}"})
    return store.advance(replace(queued(number), status=TrialStatus.RUNNING), final)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "study"


@pytest.fixture
def store(folder: Path) -> Iterator[Store]:
    with Store.create(folder, DEFINED) as made:
        yield made


@pytest.fixture
def three(folder: Path) -> Path:
    """A closed study with two completed trials and a queued one."""
    with Store.create(folder, DEFINED) as made:
        made.add([queued(0), queued(1), queued(2)])
        finish(made, 0)
        finish(made, 1)
    return folder


def alter(folder: Path, statement: str) -> None:
    connection = sqlite3.connect(folder / DATABASE)
    with connection:
        assert connection.execute(statement).rowcount == 1
    connection.close()


# -- trials --


def test_a_trial_survives_closing_bit_for_bit(three: Path) -> None:
    with Store.open(three, readonly=True) as store:
        assert store.trials() == (completed(0), completed(1), queued(2))
        assert store.definition() == DEFINED
        assert store.damaged == ()


def test_every_step_is_an_event_with_its_reason(store: Store) -> None:
    store.add([queued(0)])
    running = store.advance(replace(queued(0), status=TrialStatus.RUNNING))
    store.advance(replace(running, status=TrialStatus.INTERRUPTED), queued(0), detail={"reason": "power cut"})
    kinds = [(e.kind, e.trial, dict(e.detail)) for e in store.events()]
    assert kinds == [
        ("created", None, {}),
        ("queued", 0, {}),
        ("running", 0, {}),
        ("interrupted", 0, {"reason": "power cut"}),
        ("queued", 0, {"reason": "power cut"}),
    ]
    assert [e.kind for e in store.events(trial=0, kind="interrupted")] == ["interrupted"]


# What was failed by its surroundings is queued again (tests/unit/test_study.py); every other way out is closed.
CLOSED = [(f, a) for f in FINAL for a in TrialStatus if (f, a) != (TrialStatus.FAILED, TrialStatus.QUEUED)]


@pytest.mark.parametrize(("final", "after"), CLOSED)
def test_nothing_leaves_a_final_state(store: Store, final: TrialStatus, after: TrialStatus) -> None:
    store.add([queued(0)])
    last = replace(queued(0), status=final, objectives={"quality": 0.5})
    ended = store.advance(replace(queued(0), status=TrialStatus.RUNNING), last)
    with pytest.raises(StudyError, match=f"trial 0 is {final} and cannot become {after}"):
        store.advance(replace(ended, status=after))
    assert store.trial(0) == ended


@pytest.mark.parametrize("after", [*FINAL, TrialStatus.QUEUED])
def test_a_queued_trial_has_to_run_first(store: Store, after: TrialStatus) -> None:
    store.add([queued(0)])
    with pytest.raises(StudyError, match=f"is queued and cannot become {after}"):
        store.advance(replace(queued(0), status=after))


def test_a_refused_step_takes_the_steps_before_it_back(store: Store) -> None:
    store.add([queued(0)])
    events = len(store.events())
    with pytest.raises(StudyError, match="is running and cannot become queued"):
        store.advance(replace(queued(0), status=TrialStatus.RUNNING), queued(0))
    assert store.trial(0).status is TrialStatus.QUEUED
    assert len(store.events()) == events


def test_a_proposal_never_changes(store: Store) -> None:
    store.add([queued(0)])
    other = replace(queued(1), number=0, status=TrialStatus.RUNNING)
    with pytest.raises(StudyError, match="proposal of trial 0"):
        store.advance(other)


def test_numbers_are_given_once_and_trials_begin_queued(store: Store) -> None:
    store.add([queued(0), queued(1)])
    with pytest.raises(StudyError, match="trial 1 exists already"):
        store.add([queued(2), queued(1)])
    with pytest.raises(StudyError, match="begins as completed"):
        store.add([completed(2)])
    assert [t.number for t in store.trials()] == [0, 1]
    assert store.next_number() == 2


def test_an_unknown_trial_is_named(store: Store) -> None:
    with pytest.raises(StudyError, match="no trial 5"):
        store.trial(5)


def test_a_failure_keeps_kind_message_and_traceback(store: Store, folder: Path) -> None:
    failure = Failure("crashed", "signal SIGSEGV", "Fatal Python error: \N{SNOWMAN}\n  File ...")
    store.add([queued(0)])
    failed = replace(queued(0), status=TrialStatus.FAILED, failure=failure)
    store.advance(replace(queued(0), status=TrialStatus.RUNNING), failed)
    with Store.open(folder, readonly=True) as reader:
        assert reader.trial(0).failure == failure


# -- one writer, many readers --


def test_a_second_writer_is_refused_and_told_whom_to_ask(store: Store, folder: Path) -> None:
    with pytest.raises(StudyError, match=f"written by process {os.getpid()}"):
        Store.open(folder)
    other = f"from pathlib import Path; from autopeft.study.store import Store; Store.open(Path({str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", other], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"is being written by process {os.getpid()}" in done.stderr


def test_the_lock_dies_with_its_owner(three: Path) -> None:
    code = (
        "import time; from pathlib import Path; from autopeft.study.store import Store\n"
        f"store = Store.open(Path({str(three)!r})); print('open', flush=True); time.sleep(600)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "open\n"
    with pytest.raises(StudyError, match=f"written by process {owner.pid}"):
        Store.open(three)
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    with Store.open(three) as store:
        assert len(store.trials()) == 3


FORKING = """
import os, signal, sys, time
from pathlib import Path
from autopeft.study.store import Store
store = Store.open(Path(sys.argv[1]))
child = os.fork()
if child == 0:
    print(os.getpid(), flush=True)
    time.sleep(600)
time.sleep(600)
"""


def test_a_child_of_the_owner_does_not_keep_the_lock(three: Path) -> None:
    """As one that a job forked, when the study runs inline."""
    owner = subprocess.Popen([sys.executable, "-c", FORKING, str(three)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    child = int(owner.stdout.readline())
    try:
        with pytest.raises(StudyError, match=f"written by process {owner.pid}"):
            Store.open(three)  # the child's letting go does not take it from the owner
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        os.kill(child, 0)
        with Store.open(three) as store:
            assert len(store.trials()) == 3
    finally:
        os.kill(child, signal.SIGKILL)
        owner.stdout.close()


def test_the_lock_is_not_handed_to_programs_that_the_owner_starts(three: Path) -> None:
    with Store.open(three):
        sleeper = subprocess.Popen(["sleep", "600"], close_fds=False)
    try:
        with Store.open(three) as store:
            assert not store.readonly
    finally:
        sleeper.kill()
        sleeper.wait()


@pytest.mark.parametrize("content", [b"", b"\xff\n\0", b"1 on other since 2100-01-01 00:00:00 UTC", b"x" * 5000])
def test_what_the_lock_file_says_does_not_matter(three: Path, content: bytes) -> None:
    """Neither a dead process nor a time in the future is looked at: clocks jump."""
    (three / LOCK_NAME).write_bytes(content)
    with Store.open(three):
        text = (three / LOCK_NAME).read_text()
        assert re.fullmatch(rf"{os.getpid()} on \S+ since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d UTC", text)
        with pytest.raises(StudyError) as refused:
            Store.open(three)
        assert f"the study is being written by process {text}" in str(refused.value)


def test_a_clock_that_jumps_back_changes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, moment in enumerate((2e9, 1e9, 0.0, -5.0)):
        monkeypatch.setattr("autopeft.study.rows.time.time", lambda moment=moment: moment)
        store.add([queued(number)])
    assert [(e.trial, e.time) for e in store.events("queued")] == [(0, 2e9), (1, 1e9), (2, 0.0), (3, -5.0)]
    assert [t.number for t in store.trials()] == [0, 1, 2, 3]


# -- several changes at once --


def test_a_transaction_of_several_changes_is_seen_as_one(store: Store, folder: Path) -> None:
    with Store.open(folder, readonly=True) as reader:
        with store.transaction():
            store.add([queued(0)])
            finish(store, 0)
            store.note("done", 0)
            assert store.trial(0) == completed(0)
            assert reader.trials() == ()
        assert reader.trials() == (completed(0),)
        assert [e.kind for e in reader.events(trial=0)] == ["queued", "running", "completed", "done"]


def test_a_transaction_that_fails_takes_all_of_it_back(store: Store) -> None:
    store.add([queued(0)])
    before = store.events()

    def fail() -> None:
        with store.transaction():
            store.add([queued(1)])
            store.advance(replace(queued(0), status=TrialStatus.RUNNING))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert store.trials() == (queued(0),)
    assert store.events() == before
    store.add([queued(1)])
    assert store.next_number() == 2


def test_what_fails_within_a_transaction_takes_only_itself_back(store: Store) -> None:
    with store.transaction():
        store.add([queued(0)])
        with pytest.raises(StudyError, match="trial 0 exists already"):
            store.add([queued(1), queued(0)])
        with pytest.raises(StudyError, match="is queued and cannot become completed"):
            store.advance(completed(0))
        store.add([queued(1)])
    assert store.trials() == (queued(0), queued(1))
    assert [e.trial for e in store.events("queued")] == [0, 1]


def test_a_lock_that_cannot_be_made_is_said_so(three: Path) -> None:
    (three / LOCK_NAME).unlink()
    (three / LOCK_NAME).mkdir()
    with pytest.raises(StudyError, match=r"study\.lock: the study cannot be locked for writing \(Is a directory\)"):
        Store.open(three)
    with pytest.raises(StudyError, match="cannot be locked"):
        Store.rebuild(three)
    Store.open(three, readonly=True).close()


def test_a_file_system_without_locks_is_not_taken_for_another_writer(
    three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("autopeft.study.lock.fcntl.flock", refuse)  # no file system here refuses locks
    with pytest.raises(StudyError, match=r"cannot be locked for writing \(No locks available\)"):
        Store.open(three)


def test_closing_lets_the_next_writer_in(three: Path) -> None:
    for _ in range(2):
        with Store.open(three) as store:
            assert not store.readonly


def test_a_reader_sees_each_transaction_while_another_writes(store: Store, folder: Path) -> None:
    store.add([queued(0)])
    with Store.open(folder, readonly=True) as reader:
        assert reader.trial(0).status is TrialStatus.QUEUED
        finish(store, 0)
        assert reader.trial(0) == completed(0)
        store.add([queued(1)])
        assert len(reader.trials()) == 2
        with pytest.raises(StudyError, match="open for reading only"):
            reader.add([queued(2)])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to a directory without write permission")
def test_a_study_on_a_read_only_disk_can_be_read(three: Path) -> None:
    three.chmod(0o555)
    try:
        with Store.open(three, readonly=True) as store:
            assert len(store.trials()) == 3
    finally:
        three.chmod(0o755)


def test_the_database_is_synced_and_logged_ahead(store: Store) -> None:
    values = [store._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    assert values == ["wal", 2]


def test_an_event_of_no_trial_is_refused(store: Store) -> None:
    with pytest.raises(StudyError, match="no trial 99"):
        store.note("of no trial", trial=99)


# -- damage --


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("record = replace(record, '\"k\":1', '\"k\":2')", "does not match its checksum"),
        ("record = substr(record, 1, 40)", "does not match its checksum"),
        ("checksum = ''", "does not match its checksum"),
        ("revision = 99", "its columns do not match its record"),
        ("record = cast(x'ff00' as text)", "does not match its checksum"),
    ],
)
def test_a_damaged_row_is_named_and_the_others_are_read(three: Path, change: str, reason: str) -> None:
    alter(three, f"UPDATE trials SET {change} WHERE number = 1")
    with Store.open(three, readonly=True) as store:
        assert [t.number for t in store.trials()] == [0, 2]
        assert [str(d) for d in store.damaged] == [f"trial 1: {reason}"]
        with pytest.raises(StudyError, match="trial 1 is damaged"):
            store.trial(1)


def test_a_writer_restores_a_damaged_row_from_its_folder(three: Path) -> None:
    alter(three, "UPDATE trials SET record = '{}' WHERE number = 1")
    with Store.open(three) as store:
        assert store.trial(1) == completed(1)
        assert [d.name for d in store.damaged] == ["trial 1"]
        assert "restored from its folder" in store.damaged[0].reason
    with Store.open(three) as store:
        assert store.damaged == ()
        assert [d.name for d in store.quarantined()] == ["trial 1"]
        assert len(store.events("quarantined")) == 1


def test_what_cannot_be_restored_is_set_apart_and_its_number_not_reused(three: Path) -> None:
    alter(three, "UPDATE trials SET record = '{}' WHERE number = 2")
    with Store.open(three) as store:
        assert [t.number for t in store.trials()] == [0, 1]
        assert "left out" in store.damaged[0].reason
        assert store.next_number() == 3


def test_a_damaged_event_is_named(three: Path) -> None:
    alter(three, "UPDATE events SET record = replace(record, 'queued', 'quened') WHERE id = 2")
    with Store.open(three, readonly=True) as store:
        assert "quened" not in {e.kind for e in store.events()}
        assert [d.name for d in store.damaged] == ["event 2"]


def test_a_damaged_definition_is_said_so(three: Path) -> None:
    alter(three, "UPDATE meta SET record = '{}'")
    with Store.open(three, readonly=True) as store, pytest.raises(StudyError, match="definition is damaged"):
        store.definition()


@pytest.mark.parametrize("keep", [0, 50, 5000])
def test_a_truncated_database_is_refused_in_words_and_can_be_rebuilt(three: Path, keep: int) -> None:
    path = three / DATABASE
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(StudyError, match=r"(database is gone|cannot be used).*; autopeft repair .*/study$"):
        Store.open(three)
    with Store.rebuild(three) as store:
        assert store.trials() == (completed(0), completed(1))
        assert store.definition() == DEFINED
        assert store.damaged == ()
        assert store.next_number() == 2
    assert (three / f"{DATABASE}.old-0").read_bytes() == path.with_name(f"{DATABASE}.old-0").read_bytes()[:keep]


def test_garbage_in_place_of_the_database_is_refused_in_words(three: Path) -> None:
    (three / DATABASE).write_bytes(b"not a database at all" * 500)
    with pytest.raises(StudyError, match="autopeft repair"):
        Store.open(three)


# -- rebuilding --


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("trial.json", "is not JSON"),
        ("adapter.safetensors", "file adapter.safetensors does not match its checksum"),
        ("head/head.json", "file head/head.json does not match its checksum"),
    ],
)
def test_rebuilding_names_damaged_folders_and_keeps_the_rest(three: Path, file: str, reason: str) -> None:
    path = three / "trials" / "0001" / file
    path.write_bytes(path.read_bytes()[:-2])
    (three / DATABASE).unlink()
    with Store.rebuild(three) as store:
        assert store.trials() == (completed(0),)
        (damage,) = store.damaged
        assert damage.name == "trials/0001"
        assert damage.reason.startswith(reason)
        assert store.next_number() == 2


def test_rebuilding_remembers_that_the_test_split_was_opened(folder: Path) -> None:
    with Store.create(folder, DEFINED) as store:
        note = {"of": 0, "splits": ["validation", "test"]}
        trial = replace(completed(0), proposal=replace(queued(0).proposal, purpose="final", note=note))
        store.trial_folders.write(trial, {})
    with Store.rebuild(folder) as store:
        assert [e.trial for e in store.events(TEST_OPENED)] == [0]


def test_rebuilding_needs_the_definition_in_one_of_its_two_places(three: Path) -> None:
    path = three / DEFINITION
    path.write_text(path.read_text().replace('"seed": 3', '"seed": 4'))
    with Store.rebuild(three) as store:
        assert store.definition() == DEFINED
    path.write_text(path.read_text().replace('"seed": 3', '"seed": 4'))
    (three / DATABASE).write_bytes(b"")
    with pytest.raises(StudyError, match=r"does not match its checksum, and the database .* restore study.json"):
        Store.rebuild(three)
    assert (three / DATABASE).exists()


def test_a_writer_restores_the_readable_definition(three: Path) -> None:
    (three / DEFINITION).write_text("{")
    with Store.open(three):
        assert read_sealed(three / DEFINITION)["definition"] == DEFINED


# -- folders --


@pytest.mark.parametrize(
    "name", ["../out", "/out", "a/../../out", "", "a//b", ".hidden", "trial.json", "a\\..\\b", "x\0"]
)
def test_names_that_leave_the_folder_are_refused(store: Store, folder: Path, name: str) -> None:
    with pytest.raises(StudyError, match="not a name for a file"):
        store.trial_folders.write(completed(0), {name: b""})
    assert not store.trial_folders.path(0).exists()
    assert not (folder.parent / "out").exists()


def test_writing_again_replaces_the_whole_folder(store: Store) -> None:
    store.trial_folders.write(completed(0), {"old": b"1"})
    store.trial_folders.write(completed(0), {"new": b"2"})
    assert sorted(p.name for p in store.trial_folders.path(0).iterdir()) == ["new", "trial.json"]
    assert list(store.trial_folders.numbers()) == [0]


def test_half_written_folders_are_not_trials(store: Store, folder: Path) -> None:
    store.trial_folders.write(completed(0), {})
    shutil.copytree(store.trial_folders.path(0), folder / "trials" / ".0001.new")
    assert list(store.trial_folders.numbers()) == [0]


def test_nothing_on_disk_names_this_machine_or_is_pickled(three: Path) -> None:
    for path in three.rglob("*"):
        if path.is_file() and path.name != "study.lock":
            content = path.read_bytes()
            assert str(three.parent).encode() not in content
            assert not content.startswith(b"\x80")


# -- creating, versions --


def test_there_is_one_study_in_a_directory(three: Path) -> None:
    with pytest.raises(StudyError, match="a study here already"):
        Store.create(three, DEFINED)


@pytest.mark.parametrize("readonly", [True, False])
def test_a_directory_without_a_study_is_said_so(tmp_path: Path, readonly: bool) -> None:
    with pytest.raises(StudyError, match="no study here"):
        Store.open(tmp_path / "nowhere", readonly)


def test_an_empty_database_of_a_killed_creation_is_no_study(folder: Path) -> None:
    folder.mkdir()
    connection = sqlite3.connect(folder / DATABASE)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()
    with Store.create(folder, DEFINED) as store:
        assert store.definition() == DEFINED


@pytest.mark.parametrize("readonly", [True, False])
def test_a_later_format_is_refused(three: Path, readonly: bool) -> None:
    connection = sqlite3.connect(three / DATABASE)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    with pytest.raises(StudyError, match=f"format {SCHEMA_VERSION + 1}"):
        Store.open(three, readonly)
