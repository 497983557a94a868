"""Connections to a study's database, its errors in plain words, and the checks of its rows. Torch-free."""

from __future__ import annotations

import json
import shlex
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autopeft.errors import AutoPeftError, StudyError
from autopeft.study.folders import digest
from autopeft.study.schema import version_of
from autopeft.trial import Trial

DATABASE = "study.sqlite"


@dataclass(frozen=True)
class StudyEvent:
    """Something that happened to a study.

    Attributes:
        kind: "created", "resumed", "test split opened", "quarantined" ..., or the state a trial came into.
        time: Seconds since 1970, by this machine's clock.
        trial: Number of the trial it concerns, or None.
        detail: Further JSON.
    """

    kind: str
    time: float
    trial: int | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)


def connect_writer(path: Path) -> sqlite3.Connection:
    """Connects for writing, with a write-ahead log that is synced at every commit."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=30.0)
    connection.text_factory = _text
    mode = str(connection.execute("PRAGMA journal_mode = WAL").fetchone()[0])
    if mode != "wal":
        raise sqlite3.OperationalError(f"the file system does not allow a write-ahead log (journal mode {mode})")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def connect_reader(path: Path) -> sqlite3.Connection:
    """Connects for reading; on a read-only disk, where SQLite cannot make its -shm file, to an immutable file."""
    address = path.absolute().as_uri()
    connection = sqlite3.connect(f"{address}?mode=ro", uri=True, isolation_level=None, timeout=30.0)
    try:
        version_of(connection)
    except sqlite3.OperationalError:
        connection.close()
        if path.with_name(path.name + "-wal").exists():
            raise
        connection = sqlite3.connect(f"{address}?immutable=1", uri=True, isolation_level=None)
    connection.text_factory = _text
    return connection


def _text(raw: bytes) -> str:
    """One damaged text must not keep the other rows from being read; its checksum tells."""
    return raw.decode(errors="replace")


def set_aside(folder: Path) -> None:
    """Renames the database of a study, so that a new one can be made."""
    aside = next(n for n in range(10**6) if not (folder / f"{DATABASE}.old-{n}").exists())
    # The write-ahead log goes first: beside a new database it would be taken for that one's.
    for suffix in ("-wal", "-shm", ""):
        with suppress(FileNotFoundError):
            (folder / f"{DATABASE}{suffix}").rename(folder / f"{DATABASE}.old-{aside}{suffix}")


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns an error of SQLite into one a person can act on."""
    try:
        yield
    except sqlite3.Error as error:
        disk = isinstance(error, sqlite3.OperationalError)
        raise StudyError(
            f"the study's database cannot be used ({error})",
            where=str(path),
            cure="check the disk (space, permissions) and run the same command again; finished trials are kept"
            if disk
            else f"rebuild it from the trial folders: autopeft doctor --rebuild {shlex.quote(str(path.parent))}",
        ) from error


def read_record(record: str, stated: str) -> dict[str, Any]:
    """Parses a row's JSON; raises ValueError where it is not what was written."""
    if digest(record) != stated:
        raise ValueError("does not match its checksum")
    content = json.loads(record)
    if not isinstance(content, dict):
        raise ValueError("is not an object")
    return content


def read_trial(number: int, status: str, record: str, stated: str) -> Trial:
    """Parses a row of `trials`; raises ValueError where it is not what was written."""
    content = read_record(record, stated)
    try:
        trial = Trial.from_dict(content)
    except (AutoPeftError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"is not a trial ({error!r})") from None
    if (trial.number, str(trial.status)) != (number, status):
        raise ValueError("its columns do not match its record")
    return trial
