"""The tables of `study.sqlite`, their version, and how older versions are brought up to date. Torch-free."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path

from autopeft.errors import StudyError
from autopeft.study.folders import canonical, digest, sync_folder

SCHEMA_VERSION = 2

TABLES = """
CREATE TABLE meta (
    id INTEGER PRIMARY KEY,
    revision INTEGER NOT NULL,
    record TEXT NOT NULL,
    checksum TEXT NOT NULL
);
CREATE TABLE trials (
    number INTEGER PRIMARY KEY,
    revision INTEGER NOT NULL,
    record TEXT NOT NULL,
    checksum TEXT NOT NULL
);
CREATE TABLE events (
    id INTEGER PRIMARY KEY,
    trial INTEGER,
    record TEXT NOT NULL,
    checksum TEXT NOT NULL
);
CREATE TABLE quarantine (
    id INTEGER PRIMARY KEY,
    trial INTEGER,
    record TEXT NOT NULL,
    checksum TEXT NOT NULL
);
"""
"""The four tables of format 2.

`record` is canonical JSON and `checksum` its SHA-256. A record says all there is to a row, also what the columns before
it repeat for queries, so that a row found in the ruins of a database is enough. `revision` is the id of the event that
brought it about: of two versions of one record the higher is the later. Ids of events and numbers of trials have no
gaps; one that is missing was lost. There is no index, since nothing would tell that one is damaged.
"""


def _to_2(connection: sqlite3.Connection) -> None:
    """Format 1 had no checksum on quarantined rows, no revisions, and foreign keys that took events their trial."""
    for table in ("meta", "trials", "events", "quarantine"):
        connection.execute(f"ALTER TABLE {table} RENAME TO {table}_1")
    connection.execute("DROP INDEX events_of_trial")
    _execute(connection, TABLES)
    revisions: dict[int, int] = {}
    for number, trial, record, stated in connection.execute("SELECT id, trial, record, checksum FROM events_1"):
        content = _intact(record, stated)
        if content is not None:
            trial = content.get("trial")
            record, stated = _sealed({**content, "id": number})
            if isinstance(trial, int):
                revisions[trial] = max(number, revisions.get(trial, 0))
        connection.execute("INSERT INTO events VALUES (?, ?, ?, ?)", (number, trial, record, stated))
    for number, record, stated in connection.execute("SELECT number, record, checksum FROM trials_1"):
        content, revision = _intact(record, stated), revisions.get(number, 0)
        if content is not None:
            record, stated = _sealed({**content, "revision": revision})
        connection.execute("INSERT INTO trials VALUES (?, ?, ?, ?)", (number, revision, record, stated))
    for record, stated in connection.execute("SELECT value, checksum FROM meta_1 WHERE key = 'definition'"):
        content = _intact(record, stated)
        if content is not None:
            record, stated = _sealed({"key": "definition", "revision": 0, "value": content})
        connection.execute("INSERT INTO meta VALUES (1, 0, ?, ?)", (record, stated))
    for number, reason, *row in connection.execute(
        "SELECT number, reason, status, record, checksum FROM quarantine_1 ORDER BY number"
    ).fetchall():
        key = int(connection.execute("SELECT coalesce(max(id), 0) + 1 FROM quarantine").fetchone()[0])
        texts = [None if value is None else str(value) for value in row]
        content = {"id": key, "name": f"trial {number}", "reason": str(reason), "row": texts, "trial": number}
        connection.execute("INSERT INTO quarantine VALUES (?, ?, ?, ?)", (key, number, *_sealed(content)))
    for table in ("events", "quarantine", "meta", "trials"):
        connection.execute(f"DROP TABLE {table}_1")


MIGRATIONS: Mapping[int, Callable[[sqlite3.Connection], None]] = {1: _to_2}
"""From schema version to the function that brings a database of that version to the next one."""


def create_tables(connection: sqlite3.Connection) -> None:
    """Makes the tables of a new database; inside the caller's transaction."""
    _execute(connection, TABLES)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def version_of(connection: sqlite3.Connection) -> int:
    """Returns the schema version of a database; 0 where nothing was ever committed to it."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def require_known(version: int, path: Path) -> None:
    """Raises StudyError for a database that a later release wrote, or that does not say which."""
    if version > SCHEMA_VERSION:
        raise StudyError(
            f"the study has format {version}, this release reads up to {SCHEMA_VERSION}",
            where=str(path),
            cure="open it with the release that wrote it, or update autopeft; if there was none, the number is "
            "damaged: autopeft repair",
        )
    if version < 1:
        raise sqlite3.DatabaseError(f"it says that it has format {version}")


def require_tables(connection: sqlite3.Connection) -> None:
    """Raises sqlite3.DatabaseError where a database of this format has other tables than it was made with."""
    if version_of(connection) == SCHEMA_VERSION:
        rows = connection.execute("SELECT sql FROM sqlite_master ORDER BY rowid").fetchall()
        if [row[0] for row in rows] != [statement.strip() for statement in TABLES.split(";") if statement.strip()]:
            raise sqlite3.DatabaseError("the description of its tables is damaged")


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Brings an older database to `SCHEMA_VERSION`, one transaction per step, after a backup beside it.

    Killed at any moment, it begins where it was: a backup is complete under its name or not there, a step is done or
    not.

    Args:
        connection: To the database; its only writer.
        path: Of the database.

    Raises:
        StudyError: A later release wrote it, or the disk refuses the backup; nothing is changed then.
    """
    version = version_of(connection)
    require_known(version, path)
    while version < SCHEMA_VERSION:
        _back_up(connection, path, version)
        connection.execute("BEGIN IMMEDIATE")
        try:
            MIGRATIONS[version](connection)
            version += 1
            connection.execute(f"PRAGMA user_version = {version}")
            connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise


def _back_up(connection: sqlite3.Connection, path: Path, version: int) -> None:
    final = path.with_name(f"{path.name}.format-{version}.bak")
    draft = path.with_name(f".{final.name}.new")
    try:
        with suppress(FileNotFoundError):
            draft.unlink()
        with closing(sqlite3.connect(draft)) as backup:
            connection.backup(backup)
        descriptor = os.open(draft, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        draft.replace(final)
        sync_folder(final.parent)
    except (OSError, sqlite3.Error) as error:
        with suppress(OSError):
            draft.unlink()
        raise StudyError(
            f"the study has format {version}, and before it is brought to format {SCHEMA_VERSION} no backup of its "
            f"database can be written ({error})",
            where=str(final),
            cure="free some space there; reading verbs work meanwhile, and nothing was changed",
        ) from error


def _execute(connection: sqlite3.Connection, statements: str) -> None:
    for statement in statements.split(";"):
        if statement.strip():
            connection.execute(statement)


def _intact(record: object, stated: object) -> dict[str, object] | None:
    """Returns what a row of format 1 says, or None where it is damaged; it stays so, and is found by its checksum."""
    if not isinstance(record, str) or digest(record) != stated:
        return None
    content = json.loads(record)
    return content if isinstance(content, dict) else None


def _sealed(content: Mapping[str, object]) -> tuple[str, str]:
    record = canonical(content)
    return record, digest(record)
