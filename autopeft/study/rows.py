"""The rows of `study.sqlite`: how they are sealed, written, read and checked, in this format and the one before.

Torch-free. Nothing here begins or ends a transaction.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, final

from autopeft.errors import AutoPeftError
from autopeft.study.folders import Damage, canonical, digest
from autopeft.study.schema import version_of
from autopeft.trial import Trial
from autopeft.untrusted import parse_json, require_form

DEFINED = "definition"
EVENT_FORM = {
    "kind": str,
    "time": float,
    "trial?": (int, None),
    "detail?": {"trials?": (int, [int]), "seconds?": float, "files?": {str: str}, ...: object},
    "id?": int,
}


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


def read_record(record: object, stated: object) -> dict[str, Any]:
    """Parses a row's JSON; raises ValueError where it is not what was written."""
    if not isinstance(record, str) or digest(record) != stated:
        raise ValueError("does not match its checksum")
    content = parse_json(record)
    if not isinstance(content, dict):
        raise ValueError("is not an object")
    return content


def trial_from(content: Mapping[str, Any]) -> Trial:
    """Returns the trial of a record; raises ValueError where it is none."""
    try:
        return Trial.from_dict(content)
    except (AutoPeftError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"is not a trial ({error!r})") from None


def event_from(content: Mapping[str, Any]) -> StudyEvent:
    """Returns the event of a record; raises ValueError where it is none."""
    require_form(content, EVENT_FORM)
    try:
        return StudyEvent(**{key: value for key, value in content.items() if key != "id"})
    except TypeError as error:
        raise ValueError(f"is not an event ({error})") from None


@final
class Rows:
    """Reads and writes the rows of one database, inside the caller's transaction.

    Args:
        connection: To the database.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    # -- reading -----------------------------------------------------------------------------------------------------

    def definition(self) -> dict[str, Any]:
        """Returns the definition of the study; raises ValueError where its row is damaged or missing."""
        columns = "value, checksum FROM meta WHERE +key = 'definition'" if self._old else "record, checksum FROM meta"
        rows = self._connection.execute(f"SELECT {columns}").fetchall()
        if not rows:
            raise ValueError("is missing")
        content = read_record(*rows[0])
        if self._old:
            return content
        if content.get("key") != DEFINED or not isinstance(content.get("value"), dict):
            raise ValueError("is not a definition")
        return dict(content["value"])

    def trials(self) -> tuple[dict[int, Trial], list[Damage]]:
        """Returns the intact trials by number, ascending, and what is damaged or missing."""
        tag = "status" if self._old else "revision"
        found: dict[int, Trial] = {}
        damages: list[Damage] = []
        known = {damage.name for damage in self.quarantined()}
        rows = self._connection.execute(f"SELECT number, {tag}, record, checksum FROM trials ORDER BY number")
        for number, tagged, record, stated in rows.fetchall():
            try:
                content = read_record(record, stated)
                trial = trial_from(content)
                if (trial.number, content[tag]) != (number, tagged):
                    raise ValueError("its columns do not match its record")
                found[number] = trial
            except (ValueError, KeyError) as error:
                damages.append(Damage(f"trial {number}", str(error)))
                known.add(f"trial {number}")
        missing = (n for n in range(max(found, default=-1)) if n not in found and f"trial {n}" not in known)
        damages += [Damage(f"trial {n}", "is missing") for n in missing]
        return found, damages

    def events(self, trial: int | None = None) -> tuple[dict[int, StudyEvent], list[Damage]]:
        """Returns the intact events by id, ascending, all or those of a trial, and what is damaged or missing."""
        query, values = "SELECT id, trial, record, checksum FROM events", []
        if trial is not None:
            query, values = f"{query} WHERE +trial = ?", [trial]
        found: dict[int, StudyEvent] = {}
        damages: list[Damage] = []
        rows = self._connection.execute(query + " ORDER BY id", values).fetchall()
        for number, of, record, stated in rows:
            try:
                content = read_record(record, stated)
                event = event_from(content)
                if not self._old and (content.get("id"), event.trial) != (number, of):
                    raise ValueError("its columns do not match its record")
                found[number] = event
            except ValueError as error:
                damages.append(Damage(f"event {number}", str(error)))
        if trial is None and not self._old:
            there = {row[0] for row in rows} | self._gone()
            missing = (n for n in range(1, max(there, default=0)) if n not in there)
            damages += [Damage(f"event {n}", "is missing") for n in missing]
        known = {damage.name for damage in self.quarantined()} if damages else set()
        return found, [damage for damage in damages if damage.name not in known]

    def _gone(self) -> set[int]:
        names = (damage.name.partition(" ") for damage in self.quarantined())
        return {int(number) for kind, _, number in names if kind == "event" and number.isdecimal()}

    def quarantined(self) -> tuple[Damage, ...]:
        """Returns what was ever set apart as damaged, with the reason; a row that is damaged itself says so."""
        if self._old:
            rows = self._connection.execute("SELECT number, reason FROM quarantine ORDER BY number").fetchall()
            return tuple(Damage(f"trial {number}", str(reason)) for number, reason in rows)
        found = []
        for number, record, stated in self._connection.execute(
            "SELECT id, record, checksum FROM quarantine"
        ).fetchall():
            try:
                content = read_record(record, stated)
                found.append(Damage(str(content["name"]), str(content["reason"])))
            except (ValueError, KeyError) as error:
                found.append(Damage(f"quarantine {number}", str(error)))
        return tuple(found)

    def next_number(self) -> int:
        """Returns the number of the next trial; those of damaged ones are not given again."""
        last = self._connection.execute("SELECT max(number) FROM trials").fetchone()[0]
        rows = self._connection.execute(f"SELECT {'number' if self._old else 'trial'} FROM quarantine").fetchall()
        return max((n for n in (last, *(row[0] for row in rows)) if isinstance(n, int)), default=-1) + 1

    def row(self, table: str, number: int) -> list[str | None]:
        """Returns a row as texts, to be kept where it is damaged; empty where there is none."""
        column = "number" if table == "trials" else "id"
        row = self._connection.execute(f"SELECT * FROM {table} WHERE {column} = ?", (number,)).fetchone()
        return [None if value is None else str(value) for value in row or ()]

    @property
    def _old(self) -> bool:
        return version_of(self._connection) == 1

    # -- writing -----------------------------------------------------------------------------------------------------

    def define(self, definition: Mapping[str, Any]) -> None:
        """Replaces the definition."""
        revision = self.last_event()
        content = {"key": DEFINED, "revision": revision, "value": dict(definition)}
        self._connection.execute("DELETE FROM meta")
        self._insert("meta", 1, revision, content)

    def log(self, kind: str, trial: int | None = None, detail: Mapping[str, Any] | None = None) -> None:
        """Adds an event of this moment."""
        event = StudyEvent(kind, round(time.time(), 3), trial, dict(detail or {}))
        self.put_event(self.last_event() + 1, event)

    def put_event(self, number: int, event: StudyEvent) -> None:
        """Adds an event under an id of its own."""
        self._insert("events", number, event.trial, {**vars(event), "detail": dict(event.detail), "id": number})

    def put_trial(self, trial: Trial) -> None:
        """Writes a trial, as of the last event."""
        revision = self.last_event()
        self._connection.execute("DELETE FROM trials WHERE number = ?", (trial.number,))
        self._insert("trials", trial.number, revision, {**trial.to_dict(), "revision": revision})

    def set_apart(self, name: str, trial: int | None, reason: str, row: Iterable[str | None] = ()) -> None:
        """Records that something was damaged, with what was left of its row, and removes that."""
        kind, _, number = name.partition(" ")
        if kind in ("trial", "event"):
            column = "number" if kind == "trial" else "id"
            self._connection.execute(f"DELETE FROM {kind}s WHERE {column} = ?", (int(number),))
        key = int(self._connection.execute("SELECT coalesce(max(id), 0) + 1 FROM quarantine").fetchone()[0])
        content = {"id": key, "name": name, "reason": reason, "row": list(row), "trial": trial}
        self._insert("quarantine", key, trial, content)
        self.log("quarantined", None, {"name": name, "trial": trial, "reason": reason})

    def put_quarantined(self, content: Mapping[str, Any]) -> None:
        """Adds a row of `quarantine` as it was in another database."""
        self._insert("quarantine", int(content["id"]), content.get("trial"), content)

    def last_event(self) -> int:
        """Returns the id of the last event, 0 where there is none."""
        return int(self._connection.execute("SELECT coalesce(max(id), 0) FROM events").fetchone()[0])

    def _insert(self, table: str, key: int, tag: int | None, content: Mapping[str, Any]) -> None:
        record = canonical(content)
        self._connection.execute(f"INSERT INTO {table} VALUES (?, ?, ?, ?)", (key, tag, record, digest(record)))
