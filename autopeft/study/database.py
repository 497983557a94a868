"""Connections to a study's database, and its errors in plain words. Torch-free."""

from __future__ import annotations

import os
import shlex
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from autopeft.errors import StudyError
from autopeft.study.filesystem import VARIABLE, Journal
from autopeft.study.lock import ELSEWHERE, owner
from autopeft.study.rows import StudyEvent
from autopeft.study.salvage import lost_with
from autopeft.study.schema import require_tables, version_of

__all__ = [
    "DATABASE",
    "StudyEvent",
    "connect_reader",
    "connect_writer",
    "explained",
    "is_there",
    "repair_command",
    "require_whole",
    "set_aside",
    "unread_log",
]

DATABASE = "study.sqlite"
PATIENCE = 30.0
"""Seconds to wait for another process that uses the database for a moment."""

_DISK = frozenset(
    (
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_NOLFS,
        sqlite3.SQLITE_INTERRUPT,
    )
)
_BUSY = frozenset((sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL))


def connect_writer(path: Path, journal: Journal = "wal") -> sqlite3.Connection:
    """Connects for writing; every commit is synced.

    Args:
        path: Of the database.
        journal: "wal" for a write-ahead log, with which others can read meanwhile. "rollback" for a rollback journal
            and a lock that is held until the connection is closed: nothing is shared by memory, and nobody reads
            meanwhile. A database that had the other kind is changed to this one.
    """
    connection = sqlite3.connect(path, isolation_level=None, timeout=PATIENCE if journal == "wal" else 1.0)
    try:
        connection.text_factory = _text
        if journal == "wal":
            mode = str(connection.execute("PRAGMA journal_mode = WAL").fetchone()[0])
            if mode != "wal":
                reason = (
                    f"the file system does not allow a write-ahead log (journal mode {mode}); try {VARIABLE}=rollback"
                )
                raise sqlite3.OperationalError(reason)
            connection.execute("PRAGMA synchronous = FULL")
        else:
            # Set before the first access, it also keeps a database with a write-ahead log from sharing memory.
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("PRAGMA mmap_size = 0")
            mode = str(connection.execute("PRAGMA journal_mode = DELETE").fetchone()[0])
            if mode != "delete":
                raise sqlite3.OperationalError(f"its write-ahead log cannot be turned off (journal mode {mode})")
            connection.execute("PRAGMA synchronous = EXTRA")
            connection.execute("BEGIN EXCLUSIVE")
            connection.execute("COMMIT")
    except BaseException:
        connection.close()
        raise
    return connection


def connect_reader(path: Path) -> sqlite3.Connection:
    """Connects for reading; on a read-only disk, where SQLite cannot make its -shm file, to an immutable file."""
    address = path.absolute().as_uri()
    connection = sqlite3.connect(f"{address}?mode=ro", uri=True, isolation_level=None, timeout=1.0)
    try:
        version_of(connection)
    except sqlite3.OperationalError as error:
        connection.close()
        if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_READONLY_ROLLBACK:
            # What a killed process left half-written is taken back by whoever comes first, also if only to read.
            with closing(sqlite3.connect(f"{address}?mode=rw", uri=True, isolation_level=None)) as mended:
                version_of(mended)
            return connect_reader(path)
        if _code(error) in _BUSY or path.with_name(path.name + "-wal").exists():
            raise
        connection = sqlite3.connect(f"{address}?immutable=1", uri=True, isolation_level=None)
    except BaseException:
        connection.close()
        raise
    connection.text_factory = _text
    return connection


def is_there(path: Path) -> bool:
    """Says whether a database was ever committed to; raises StudyError where it cannot be used."""
    if not path.is_file():
        return False
    with explained(path):
        connection = connect_reader(path)
        try:
            # A damaged version number must not make a study look like none.
            tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            return version_of(connection) > 0 or int(tables) > 0
        finally:
            connection.close()


def require_whole(connection: sqlite3.Connection) -> None:
    """Raises sqlite3.DatabaseError where the structure of a database is damaged; O(its size)."""
    verdict = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    if verdict != "ok":
        raise sqlite3.DatabaseError(" ".join(verdict.split()))
    require_tables(connection)


def unread_log(path: Path) -> bool:
    """Says whether the log of a database is damaged so that transactions in it are not read; O(its size).

    Raises:
        StudyError: The database cannot be used.
    """
    log = path.with_name(f"{path.name}-wal")
    for _ in range(3):
        if not log.is_file() or log.stat().st_size == 0:
            return False
        with explained(path), closing(connect_reader(path)) as connection:
            size = int(connection.execute("PRAGMA page_size").fetchone()[0])
            last = connection.execute("SELECT max(id) FROM events").fetchone()[0]
        try:
            content = log.read_bytes()
            with log.open("rb") as stream:
                unchanged = stream.read(32) == content[:32]
        except FileNotFoundError:
            return False
        if unchanged:  # a writer that begins the log anew writes its header first
            return lost_with(content, size, last or 0)
    return False


def _text(raw: bytes) -> str:
    """One damaged text must not keep the other rows from being read; its checksum tells."""
    return raw.decode(errors="replace")


def set_aside(folder: Path) -> Path | None:
    """Renames the database of a study, so that a new one can be made; returns its new name, None if there is none."""
    aside = next(n for n in range(10**6) if not (folder / f"{DATABASE}.old-{n}").exists())
    # The logs go first: beside a new database they would be taken for that one's.
    for suffix in ("-wal", "-journal", "-shm", ""):
        with suppress(FileNotFoundError):
            (folder / f"{DATABASE}{suffix}").rename(folder / f"{DATABASE}.old-{aside}{suffix}")
    kept = folder / f"{DATABASE}.old-{aside}"
    return kept if kept.exists() else None


def repair_command(folder: Path) -> str:
    """Returns what to type where records of a study are damaged."""
    return f"autopeft repair {shlex.quote(str(folder))}"


def _code(error: sqlite3.Error) -> int:
    return (getattr(error, "sqlite_errorcode", None) or sqlite3.SQLITE_ERROR) & 0xFF


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns an error of SQLite into one a person can act on."""
    cure = repair_command(path.parent)
    try:
        yield
    except UnicodeDecodeError as error:  # SQLite quotes what it cannot read in its messages
        raise StudyError(f"the study's database cannot be used ({error})", where=str(path), cure=cure) from error
    except sqlite3.Error as error:
        code, writable = _code(error), os.access(path, os.W_OK) or not path.exists()
        if code in _BUSY:
            raise StudyError(
                f"the study's database is in use ({error}); process {owner(path.parent)} was the last to write it",
                where=str(path),
                cure="on a network file system one process at a time can use a study: wait for it or stop it; where "
                f"nobody uses it, the file system has no locks: {ELSEWHERE}",
            ) from error
        if isinstance(error, sqlite3.ProgrammingError) and "thread" in str(error):
            what = "a study can be used only in the thread that opened it"
            raise StudyError(
                what, where=str(path.parent), cure="open it in this thread, for reading if need be"
            ) from None
        own = not hasattr(error, "sqlite_errorcode")  # raised here, with its own cure
        disk = code in _DISK or (code == sqlite3.SQLITE_READONLY and not writable) or own
        raise StudyError(
            f"the study's database cannot be used ({error})",
            where=str(path),
            cure="check the disk (space, permissions) and run the same command again; finished trials are kept"
            if disk and isinstance(error, sqlite3.OperationalError)
            else cure,
        ) from error
