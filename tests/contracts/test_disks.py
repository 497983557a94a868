"""The store on all kinds of disks: network file systems, full disks, and the change of an older format."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from autopeft.errors import InputError, StudyError
from autopeft.study import schema
from autopeft.study.database import DATABASE
from autopeft.study.filesystem import VARIABLE, filesystem_of, is_network, journal_for, mount_of, parse_mountinfo
from autopeft.study.lock import WriterLock
from autopeft.study.repair import check, repair
from autopeft.study.schema import SCHEMA_VERSION
from autopeft.study.store import Store
from autopeft.trial import TrialStatus
from tests.contracts.cheap_jobs import ROOT
from tests.contracts.test_store import DEFINED, completed, finish, queued

OLD = ROOT / "tests" / "compat" / "studies" / "format-1"

# -- which file system --

# Written by hand after proc_pid_mountinfo(5): optional fields may be none or several, points may hold escaped blanks.
MOUNTS = r"""
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
23 22 0:21 / /proc rw,nosuid shared:12 - proc proc rw
35 22 0:31 / /home rw,relatime shared:20 master:3 propagate_from:2 - nfs4 server.example:/export/home rw,vers=4.2
36 35 8:17 / /home/ada/scratch rw,relatime - xfs /dev/sdb1 rw
37 22 0:40 / /mnt/my\040data rw,relatime shared:22 - cifs //server/share rw
38 22 0:41 / /bucket rw,nosuid,nodev - fuse.s3fs s3fs rw
39 22 0:42 / /pool rw - fuse.mergerfs a:b rw
40 22 0:43 / /lustre rw - lustre 10.0.0.1@tcp:/fs rw
41 22 0:44 /a /home2 rw - ext4 /dev/sdc1 rw
42 22 0:45 / /over rw - ext4 /dev/sdd1 rw
43 42 0:46 / /over rw - 9p share rw,trans=virtio
not a line of it
44 22 0:47 / /torn
"""


@pytest.mark.parametrize(
    ("path", "kind", "network"),
    [
        ("/runs/reviews", "ext4", False),
        ("/home/ada/runs", "nfs4", True),
        ("/home", "nfs4", True),
        ("/home2/runs", "ext4", False),
        ("/homework", "ext4", False),
        ("/home/ada/scratch/runs", "xfs", False),
        ("/home/ada/scratchy", "nfs4", True),
        ("/mnt/my data/runs", "cifs", True),
        ("/mnt/my", "ext4", False),
        ("/bucket/x", "fuse.s3fs", True),
        ("/pool/x", "fuse.mergerfs", False),
        ("/lustre/a/b/c", "lustre", True),
        ("/over/x", "9p", True),  # the later of two on one point hides the earlier
        ("/torn/x", "ext4", False),
    ],
)
def test_the_longest_mount_point_says_what_a_path_lies_on(path: str, kind: str, network: bool) -> None:
    mount = mount_of(path, parse_mountinfo(MOUNTS))
    assert mount is not None
    assert (mount.kind, is_network(mount.kind)) == (kind, network)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "apfs", "fuseblk", "vfat", "f2fs"])
def test_local_disks_are_no_network(kind: str) -> None:
    assert not is_network(kind)


@pytest.mark.parametrize(
    "kind",
    [
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "fuse.gcsfuse", "fuse.rclone", "lustre", "gpfs"),
        *("ceph", "beegfs", "afs", "glusterfs", "fuse.glusterfs", "virtiofs", "fuse.unheard-of"),
    ],
)
def test_network_file_systems_are_known(kind: str) -> None:
    assert is_network(kind)


def test_no_mounts_tell_nothing() -> None:
    assert mount_of("/a", parse_mountinfo("")) is None
    assert mount_of("/a", parse_mountinfo("22 1 254:0 / /b rw - ext4 x rw")) is None


def test_links_are_followed_to_where_the_study_lies(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/proc/self")
    assert filesystem_of(tmp_path / "link") == "proc"


def test_the_environment_overrides_what_was_found(tmp_path: Path) -> None:
    assert journal_for(tmp_path, {VARIABLE: "rollback"}) == "rollback"
    assert journal_for(Path("/proc"), {VARIABLE: "wal"}) == "wal"
    with pytest.raises(InputError, match=r"AUTOPEFT_JOURNAL: unknown journal 'rolback'; did you mean 'rollback'"):
        journal_for(tmp_path, {VARIABLE: "rolback"})


def test_a_study_on_a_network_file_system_gets_a_rollback_journal(tmp_path: Path) -> None:
    with mock.patch("autopeft.study.filesystem.filesystem_of", return_value="nfs4"):  # there is no such disk here
        assert journal_for(tmp_path, {}) == "rollback"
        with Store.create(tmp_path / "study", DEFINED) as store:
            assert pragmas(store) == {
                "journal_mode": "delete",
                "synchronous": 3,
                "locking_mode": "exclusive",
                "mmap_size": 0,
            }


# -- the rollback journal --


def pragmas(store: Store) -> dict[str, object]:
    names = ("journal_mode", "synchronous", "locking_mode", "mmap_size")
    return {name: store._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names}


@pytest.fixture
def rollback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "rollback")


def fill(store: Store, numbers: range) -> None:
    store.add([queued(number) for number in numbers])
    for number in numbers:
        finish(store, number)


@pytest.mark.usefixtures("rollback")
def test_one_process_at_a_time_uses_a_study_with_a_rollback_journal(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    with Store.create(folder, DEFINED) as store:
        fill(store, range(2))
        beside = {path.name for path in folder.glob(f"{DATABASE}-*")}
        assert beside <= {f"{DATABASE}-journal"}  # no log, and no file by which memory is shared
        with pytest.raises(StudyError, match=rf"in use .* process {os.getpid()} on .* one process at a time"):
            Store.open(folder, readonly=True)
        with pytest.raises(StudyError, match=f"written by process {os.getpid()}"):
            Store.open(folder)
    with Store.open(folder, readonly=True) as reader:
        assert reader.trials() == (completed(0), completed(1))


@pytest.mark.parametrize("kinds", [("wal", "rollback", "wal"), ("rollback", "wal", "rollback")])
@pytest.mark.parametrize("killed", [False, True])
def test_a_study_moves_between_the_two_kinds_of_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds: tuple[str, ...], killed: bool
) -> None:
    """Also where the process before was killed, and its journal is still beside the database."""
    folder = tmp_path / "study-0"
    Store.create(folder, DEFINED).close()
    for step, kind in enumerate(kinds):
        monkeypatch.setenv(VARIABLE, kind)
        with Store.open(folder) as store:
            assert store.damaged == ()
            assert pragmas(store)["journal_mode"] == {"wal": "wal", "rollback": "delete"}[kind]
            fill(store, range(3 * step, 3 * step + 3))
            moved = tmp_path / f"study-{step + 1}"
            shutil.copytree(folder, moved, ignore=shutil.ignore_patterns("*-shm"))
        folder = moved if killed else folder
        with Store.open(folder, readonly=True) as reader:
            assert reader.trials() == tuple(completed(n) for n in range(3 * step + 3))
    assert check(folder).healthy


KILLED_MIDWAY = """
import os, signal, sqlite3, sys
from pathlib import Path
from autopeft.study.store import Store
from tests.contracts.test_store import queued
store = Store.open(Path(sys.argv[1]))
with store.transaction():
    store._connection.execute("PRAGMA cache_size = 1")  # pages go to the database before the end of the transaction
    store._connection.execute("PRAGMA cache_spill = 1")
    store.add([queued(n) for n in range(2, 200)])
    print("midway", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.usefixtures("rollback")
@pytest.mark.parametrize("readonly", [True, False])
def test_a_transaction_that_was_killed_midway_is_rolled_back(tmp_path: Path, readonly: bool) -> None:
    folder = tmp_path / "study"
    with Store.create(folder, DEFINED) as store:
        fill(store, range(2))
    done = subprocess.run(
        [sys.executable, "-c", KILLED_MIDWAY, str(folder)], cwd=ROOT, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, b"midway\n")
    assert (folder / f"{DATABASE}-journal").stat().st_size > 0
    with Store.open(folder, readonly) as store:
        assert store.trials() == (completed(0), completed(1))
    assert not (folder / f"{DATABASE}-journal").exists()


@pytest.mark.usefixtures("rollback")
def test_a_ruined_database_with_a_rollback_journal_is_mended(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    with Store.create(folder, DEFINED) as store:
        fill(store, range(3))
    with (folder / DATABASE).open("r+b") as stream:
        stream.write(b"\0" * 100)
    assert repair(folder).trials == 3
    with Store.open(folder) as store:
        assert pragmas(store)["journal_mode"] == "delete"


def test_a_file_system_without_locks_is_refused_with_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    Store.create(tmp_path / "study", DEFINED).close()
    monkeypatch.setattr("autopeft.study.lock.fcntl.flock", refuse)  # no file system here refuses locks
    with pytest.raises(StudyError, match="this file system has no locks: make the study on a local disk and copy"):
        Store.open(tmp_path / "study")


# -- full disks --


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A tmpfs of a size; skips where this process may not mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False) if shutil.which("mount") else None
    if done is None or done.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip() if done else 'no mount'}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("journal", ["wal", "rollback"])
def test_a_full_disk_loses_at_most_what_was_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, journal: str
) -> None:
    monkeypatch.setenv(VARIABLE, journal)
    with small_disk(tmp_path / "disk", "1m") as disk:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(200_000))
        with Store.create(disk / "study", DEFINED) as store:
            done, said = write_until_full(store)
            assert len(done) > 3
            assert "cannot be" in said
            assert "free some space" in said or "check the disk (space" in said
            assert tuple(t for t in store.trials() if t.status.final) == tuple(completed(n) for n in done)
            ballast.unlink()
            # The same store goes on where it was.
            further, _ = write_until_full(store)
            assert len(further) >= 1
            done += further
        with Store.open(disk / "study", readonly=True) as reader:
            assert tuple(t for t in reader.trials() if t.status.final) == tuple(completed(n) for n in done)
        assert not list((disk / "study").rglob(".*.new"))
        report = check(disk / "study")
        assert report.healthy, report.findings


def write_until_full(store: Store) -> tuple[list[int], str]:
    """Adds and ends trials with 20 kB of files each; returns those that ended, and what the last one met."""
    done: list[int] = []
    try:
        for _ in range(100):
            waiting = [t for t in store.trials() if not t.status.final]
            number = waiting[0].number if waiting else store.next_number()
            if not waiting:
                store.add([queued(number)])
            final = completed(number)
            store.trial_folders.write(final, {"adapter.safetensors": os.urandom(20_000)})
            running = [] if waiting and waiting[0].status is TrialStatus.RUNNING else [TrialStatus.RUNNING]
            store.advance(*(replace(queued(number), status=status) for status in running), final)
            done.append(number)
    except StudyError as error:
        return done, str(error)
    raise AssertionError("the disk is never full")


def test_a_checkpoint_that_finds_no_space_leaves_the_one_before(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk, Store.create(disk / "study", DEFINED) as store:
        running = replace(queued(0), status=TrialStatus.RUNNING)
        store.add([queued(0)])
        store.advance(running)
        store.checkpoints.write(running, {"state": b"1" * 300_000})
        with pytest.raises(StudyError, match=r"checkpoint of trial 0 cannot be written \(No space left on device\)"):
            store.checkpoints.write(running, {"state": b"2" * 750_000})
        assert store.checkpoints.read(running) == {"state": b"1" * 300_000}
        assert not list((disk / "study").rglob(".*.new"))


def add_until_refused(store: Store) -> None:
    for _ in range(500):
        store.add([queued(store.next_number())])


def test_without_space_for_the_log_nothing_is_half_done(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk, Store.create(disk / "study", DEFINED) as store:
        fill_up(disk)
        with pytest.raises(StudyError, match=r"cannot be used \(database or disk is full\); check the disk"):
            add_until_refused(store)
        count = len(store.trials())
        assert len(store.events("queued")) == count
        (disk / "ballast").unlink()
        store.add([queued(count)])
        assert len(store.trials()) == count + 1


def fill_up(disk: Path, spare: int = 0) -> None:
    (disk / "ballast").write_bytes(bytes(max(0, shutil.disk_usage(disk).free // 4096 - spare) * 4096))


def test_a_lock_can_be_taken_on_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        (disk / "study.lock").touch()
        fill_up(disk)
        lock = WriterLock(disk)
        with pytest.raises(StudyError, match="written by process unknown"):
            WriterLock(disk)
        lock.release()


# -- older formats --


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD, tmp_path / "old"))


def state(folder: Path) -> tuple[int, list[object], list[object]]:
    """Format, trials and events of a study, by a reader."""
    with Store.open(folder, readonly=True) as store:
        version = int(store._connection.execute("PRAGMA user_version").fetchone()[0])
        return version, list(store.trials()), [(e.kind, e.trial, e.time, e.detail) for e in store.events()]


def dying(step: Callable[[sqlite3.Connection], None], how: Callable[[], None]) -> Callable[[sqlite3.Connection], None]:
    """A migration that does all its work and then does not come to its end."""

    def migrate(connection: sqlite3.Connection) -> None:
        step(connection)
        how()

    return migrate


def test_a_migration_that_fails_changes_nothing_and_is_begun_anew(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise sqlite3.OperationalError("database or disk is full")

    before = state(old)
    with monkeypatch.context() as patched:
        patched.setattr(schema, "MIGRATIONS", {1: dying(schema.MIGRATIONS[1], fail)})
        with pytest.raises(StudyError, match="cannot be used"):
            Store.open(old)
    assert state(old) == before
    Store.open(old).close()
    assert state(old) == (SCHEMA_VERSION, *before[1:])


KILLED = """
import os, signal, sys
from pathlib import Path
from autopeft.study import schema
from autopeft.study.store import Store
point = sys.argv[2]
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
if point == "in the backup":
    schema.os.fsync = die
elif point == "after the backup":
    schema.sync_folder = die
elif point == "in the step":
    step = schema.MIGRATIONS[1]
    schema.MIGRATIONS = {1: lambda connection: (step(connection), die())}
elif point == "after the step":
    Store._heal = die
Store.open(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("point", ["in the backup", "after the backup", "in the step", "after the step"])
def test_a_migration_that_was_killed_is_begun_anew(old: Path, point: str) -> None:
    before = state(old)
    done = subprocess.run([sys.executable, "-c", KILLED, str(old), point], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert state(old) == ((SCHEMA_VERSION if point == "after the step" else 1), *before[1:])
    Store.open(old).close()
    assert state(old) == (SCHEMA_VERSION, *before[1:])
    assert [path.name for path in old.glob("*.bak")] == [f"{DATABASE}.format-1.bak"]
    assert not list(old.glob(".*.new"))


@pytest.mark.parametrize(
    ("pages", "reason"),
    [
        (12, r"no backup of its database can be written .*; free some space"),
        (28, r"cannot be used \(database or disk is full\); check the disk \(space"),  # enough for the backup only
    ],
)
def test_without_space_a_format_is_not_changed(tmp_path: Path, pages: int, reason: str) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        folder = Path(shutil.copytree(OLD, disk / "old"))
        before = state(folder)
        fill_up(disk, pages)
        with pytest.raises(StudyError, match=reason):
            Store.open(folder)
        assert state(folder) == before
        assert not list(folder.rglob(".*.new"))
        (disk / "ballast").unlink()
        Store.open(folder).close()
        assert state(folder) == (SCHEMA_VERSION, *before[1:])


def test_damaged_rows_of_an_older_format_are_found_before_and_after(old: Path) -> None:
    connection = sqlite3.connect(old / DATABASE)
    with connection:
        connection.execute("UPDATE trials SET record = replace(record, '\"seed\":0', '\"seed\":1') WHERE number = 2")
        connection.execute("UPDATE events SET checksum = '' WHERE id = 5")
        connection.execute("UPDATE trials SET status = 'pruned' WHERE number = 10")
    connection.close()
    with Store.open(old, readonly=True) as store:
        store.events()
        assert {d.name for d in store.damaged} == {"trial 2", "event 5", "trial 10"}
    with Store.open(old) as store:
        assert {d.name: d.reason.partition("; ")[2] for d in store.damaged} == {
            "trial 2": "restored from its folder",
            "event 5": "left out",
        }
        assert len(store.trials()) == 16
    assert check(old).healthy


def test_files_may_not_grow_beyond_a_limit_is_a_full_disk_too(tmp_path: Path) -> None:
    """Where no small disk can be mounted, this stands for one: writes beyond 30 kB fail."""
    with Store.create(tmp_path / "study", DEFINED) as store:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
        try:
            with pytest.raises(StudyError, match=r"folder cannot be written \(File too large\)"):
                store.trial_folders.write(completed(0), {"a": bytes(40_000)})
            with pytest.raises(StudyError, match="cannot be used"):
                add_until_refused(store)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, before)
        last = len(store.trials())
        store.add([queued(last)])
        assert list(store.trial_folders.numbers()) == []
    assert check(tmp_path / "study").healthy
