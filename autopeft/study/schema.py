"""The tables of `study.sqlite`, their version, and how older versions are brought up to date. Torch-free."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path

from autopeft.errors import StudyError

SCHEMA_VERSION = 1

TABLES = """
CREATE TABLE meta (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL,
    checksum TEXT NOT NULL
);
CREATE TABLE trials (
    number INTEGER PRIMARY KEY,
    status TEXT NOT NULL,
    record TEXT NOT NULL,
    checksum TEXT NOT NULL
);
CREATE TABLE events (
    id INTEGER PRIMARY KEY,
    trial INTEGER REFERENCES trials (number) ON DELETE SET NULL,
    record TEXT NOT NULL,
    checksum TEXT NOT NULL
);
CREATE INDEX events_of_trial ON events (trial);
CREATE TABLE quarantine (
    number INTEGER PRIMARY KEY,
    status TEXT,
    record TEXT,
    checksum TEXT,
    reason TEXT NOT NULL
);
"""

MIGRATIONS: Mapping[int, Callable[[sqlite3.Connection], None]] = {}
"""From schema version to the function that brings a database of that version to the next one."""


def create_tables(connection: sqlite3.Connection) -> None:
    """Makes the tables of a new database; inside the caller's transaction."""
    for statement in TABLES.split(";"):
        if statement.strip():
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def version_of(connection: sqlite3.Connection) -> int:
    """Returns the schema version of a database; 0 where nothing was ever committed to it."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def require_known(version: int, path: Path) -> None:
    """Raises StudyError for a database that a later release wrote."""
    if version > SCHEMA_VERSION:
        raise StudyError(
            f"the study has format {version}, this release reads up to {SCHEMA_VERSION}",
            where=str(path),
            cure="open it with the release that wrote it, or update autopeft",
        )


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Brings an older database to `SCHEMA_VERSION`, one transaction per step, after a backup beside it."""
    version = version_of(connection)
    require_known(version, path)
    if version == SCHEMA_VERSION:
        return
    backup = sqlite3.connect(path.with_name(f"{path.name}.format-{version}.bak"))
    connection.backup(backup)
    backup.close()
    while version < SCHEMA_VERSION:
        connection.execute("BEGIN IMMEDIATE")
        MIGRATIONS[version](connection)
        version += 1
        connection.execute(f"PRAGMA user_version = {version}")
        connection.execute("COMMIT")
