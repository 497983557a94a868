"""The study on disk: one SQLite database beside the trial folders. Torch-free."""

from __future__ import annotations

import json
import shlex
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from autopeft.errors import StudyError
from autopeft.study.checkpoints import Checkpoints
from autopeft.study.database import (
    DATABASE,
    StudyEvent,
    connect_reader,
    connect_writer,
    explained,
    read_record,
    read_trial,
    set_aside,
)
from autopeft.study.folders import Damage, TrialFolders, canonical, digest, read_sealed, write_sealed
from autopeft.study.lock import WriterLock
from autopeft.study.schema import SCHEMA_VERSION, create_tables, migrate, require_known, version_of
from autopeft.trial import Trial, TrialStatus, require_transition

DEFINITION = "study.json"
TEST_OPENED = "test split opened"


class Store:
    """Trials, events and the definition of one study; every change is one synced transaction.

    One writer at a time, guarded by `WriterLock`; readers at any time. Every row carries the SHA-256 of its content: a
    row that does not match is left out and named in `damaged`, and a writer moves it to the table `quarantine`, after
    restoring the trial from its folder where that is intact. A number is never given twice.

    Use `Store.create`, `Store.open` and `Store.rebuild`.
    """

    def __init__(self, folder: Path, connection: sqlite3.Connection, lock: WriterLock | None) -> None:
        self.folder = folder
        self.trial_folders = TrialFolders(folder)
        self.checkpoints = Checkpoints(folder)
        self._connection, self._lock = connection, lock
        self._damaged: dict[str, Damage] = {}
        self._cache: dict[int, Trial] | None = None

    # -- opening -----------------------------------------------------------------------------------------------------

    @staticmethod
    def exists(folder: Path) -> bool:
        """Says whether a folder holds a study; what a killed `create` left does not count."""
        path = folder / DATABASE
        if not path.is_file():
            return False
        with explained(path):
            connection = connect_reader(path)
            try:
                return version_of(connection) > 0
            finally:
                connection.close()

    @staticmethod
    def create(folder: Path, definition: Mapping[str, Any]) -> Store:
        """Makes the study directory and its database, and opens it for writing.

        Args:
            folder: The directory; made with its parents where it is missing.
            definition: JSON-able definition, kept in the database and, readable, in `study.json`.

        Raises:
            StudyError: There is a study already, or the directory cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = WriterLock(folder)
        except OSError as error:
            raise StudyError(f"the study cannot be made here ({error.strerror})", where=str(folder)) from None
        with lock.released_on_error():
            if Store.exists(folder):
                raise StudyError("there is a study here already", where=str(folder), cure="open it, or name another")
            return Store._make(folder, definition, lock)

    @staticmethod
    def open(folder: Path, readonly: bool = False) -> Store:
        """Opens the study in a folder.

        Args:
            folder: The study directory.
            readonly: Only read, which works while another process writes.

        Raises:
            StudyError: There is none, it is damaged, a later release wrote it, or another process writes it.
        """
        path = folder / DATABASE
        if not Store.exists(folder):
            raise StudyError("there is no study here", where=str(folder), cure="check the path, or create the study")
        if readonly:
            with explained(path):
                store = Store(folder, connect_reader(path), None)
                require_known(version_of(store._connection), path)
            return store
        lock = WriterLock(folder)
        with lock.released_on_error():
            with explained(path):
                connection = connect_writer(path)
                verdict = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
                if verdict != "ok":
                    raise sqlite3.DatabaseError(verdict)
                migrate(connection, path)
            store = Store(folder, connection, lock)
            store._set_damaged_apart()
            store._write_readable(store.definition())
            return store

    @staticmethod
    def rebuild(folder: Path) -> Store:
        """Makes a new database from `study.json` and the trial folders; the old one is kept beside it.

        Unfinished trials have no folder and are proposed anew. What cannot be trusted is named in `damaged`.

        Args:
            folder: The study directory.

        Raises:
            StudyError: `study.json` is missing or damaged, or another process writes the study.

        Example:
            >>> Store.rebuild(Path("runs/reviews")).damaged  # doctest: +SKIP
            (Damage(name='trials/0007', reason='does not match its checksum'),)
        """
        try:
            definition = read_sealed(folder / DEFINITION)["definition"]
        except (ValueError, KeyError) as error:
            raise StudyError(f"{error}", where=str(folder / DEFINITION), cure="restore it from a copy") from None
        lock = WriterLock(folder)
        with lock.released_on_error():
            set_aside(folder)
            store = Store._make(folder, definition, lock)
            store._adopt_folders()
            return store

    @staticmethod
    def _make(folder: Path, definition: Mapping[str, Any], lock: WriterLock) -> Store:
        with explained(folder / DATABASE):
            store = Store(folder, connect_writer(folder / DATABASE), lock)
            with store._transaction():
                create_tables(store._connection)
                store._put_definition(definition)
                store._log("created")
        store._write_readable(definition)
        return store

    @property
    def readonly(self) -> bool:
        """Whether this store only reads."""
        return self._lock is None

    def close(self) -> None:
        """Closes the database and gives the lock back; safe to call twice."""
        self._connection.close()
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- reading -----------------------------------------------------------------------------------------------------

    @property
    def damaged(self) -> tuple[Damage, ...]:
        """Records found damaged so far, by name; those a writer could restore are named too, saying so."""
        self.trials()
        return tuple(self._damaged.values())

    def definition(self) -> dict[str, Any]:
        """Returns the definition the study was made with; raises StudyError where its record is damaged."""
        with explained(self.folder / DATABASE):
            row = self._connection.execute("SELECT value, checksum FROM meta WHERE key = 'definition'").fetchone()
        try:
            return read_record(*row)
        except (ValueError, TypeError) as error:
            raise StudyError(
                f"the study's definition is damaged ({error})",
                where=str(self.folder),
                cure=f"autopeft doctor --rebuild {shlex.quote(str(self.folder))}",
            ) from None

    def trials(self) -> tuple[Trial, ...]:
        """Returns the intact trials in order of number; a reader sees the last transaction of the writer."""
        return tuple(self._load().values())

    def trial(self, number: int) -> Trial:
        """Returns one trial; raises StudyError where there is none of that number, or it is damaged."""
        found = self._load().get(number)
        if found is not None:
            return found
        damage = self._damaged.get(f"trial {number}")
        raise StudyError(
            f"trial {number} is damaged" if damage else f"there is no trial {number}", where=str(self.folder)
        )

    def _load(self) -> dict[int, Trial]:
        if self._cache is not None:
            return self._cache
        with explained(self.folder / DATABASE):
            query = "SELECT number, status, record, checksum FROM trials ORDER BY number"
            rows = self._connection.execute(query).fetchall()
        found: dict[int, Trial] = {}
        for number, *row in rows:
            try:
                found[number] = read_trial(number, *row)
            except ValueError as error:
                self._damaged.setdefault(f"trial {number}", Damage(f"trial {number}", str(error)))
        # The only writer knows every change; a reader looks again each time.
        self._cache = None if self.readonly else found
        return found

    def events(self, kind: str | None = None, trial: int | None = None) -> tuple[StudyEvent, ...]:
        """Returns the intact events in order of happening, all or those of a kind or a trial."""
        query, values = "SELECT id, record, checksum FROM events", []
        if trial is not None:
            query, values = query + " WHERE trial = ?", [trial]
        with explained(self.folder / DATABASE):
            rows = self._connection.execute(query + " ORDER BY id", values).fetchall()
        found = []
        for number, *row in rows:
            try:
                found.append(StudyEvent(**read_record(*row)))
            except (ValueError, TypeError) as error:
                self._damaged.setdefault(f"event {number}", Damage(f"event {number}", str(error)))
        return tuple(event for event in found if kind is None or event.kind == kind)

    def quarantined(self) -> tuple[Damage, ...]:
        """Returns what was ever set apart as damaged, by name and with the reason."""
        with explained(self.folder / DATABASE):
            rows = self._connection.execute("SELECT number, reason FROM quarantine ORDER BY number").fetchall()
        return tuple(Damage(f"trial {number}", reason) for number, reason in rows)

    def next_number(self) -> int:
        """Returns the number of the next trial; numbers of damaged trials are not given again."""
        with explained(self.folder / DATABASE):
            query = "SELECT max(number) FROM (SELECT number FROM trials UNION ALL SELECT number FROM quarantine)"
            last = self._connection.execute(query).fetchone()[0]
        return 0 if last is None else int(last) + 1

    # -- writing -----------------------------------------------------------------------------------------------------

    def add(self, trials: Sequence[Trial]) -> None:
        """Adds new queued trials in one transaction; raises StudyError for another state or a number in use."""
        with self._transaction():
            for trial in trials:
                if trial.status is not TrialStatus.QUEUED:
                    raise StudyError(f"trial {trial.number} begins as {trial.status}", cure="add it as queued")
                if trial.number < self.next_number():
                    raise StudyError(f"trial {trial.number} exists already", where=str(self.folder))
                self._put(trial)
                self._log(str(trial.status), trial.number)

    def advance(self, *records: Trial, detail: Mapping[str, Any] | None = None) -> Trial:
        """Moves one trial through one or more states, in one transaction.

        Args:
            records: The trial after each step, in order; its number and proposal never change.
            detail: Why, as JSON, kept with the event of each step.

        Returns:
            The last record.

        Raises:
            StudyError: The life cycle does not allow a step; nothing is changed then.
        """
        with self._transaction():
            old = self.trial(records[0].number)
            for new in records:
                if (new.number, new.proposal) != (old.number, old.proposal):
                    raise StudyError(f"the proposal of trial {old.number} cannot change", where=str(self.folder))
                require_transition(old.status, new.status, new.number)
                self._log(str(new.status), new.number, detail)
                old = new
            self._put(old)
        return old

    def note(self, kind: str, trial: int | None = None, detail: Mapping[str, Any] | None = None) -> None:
        """Records an event, in a transaction of its own."""
        with self._transaction():
            self._log(kind, trial, detail)

    def redefine(self, definition: Mapping[str, Any]) -> None:
        """Replaces the definition, in the database first and then in `study.json`."""
        with self._transaction():
            self._put_definition(definition)
        self._write_readable(definition)

    # -- within a transaction ----------------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        if self.readonly:
            raise StudyError("the study is open for reading only", where=str(self.folder), cure="open it for writing")
        with explained(self.folder / DATABASE):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                self._cache = None
                with suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise

    def _put(self, trial: Trial) -> None:
        record = canonical(trial.to_dict())
        row = (trial.number, str(trial.status), record, digest(record))
        self._connection.execute(
            "INSERT INTO trials VALUES (?, ?, ?, ?) ON CONFLICT (number) DO UPDATE SET "
            "status = excluded.status, record = excluded.record, checksum = excluded.checksum",
            row,
        )
        if self._cache is not None:
            self._cache[trial.number] = Trial.from_dict(json.loads(record))

    def _log(self, kind: str, trial: int | None = None, detail: Mapping[str, Any] | None = None) -> None:
        event = {"kind": kind, "time": round(time.time(), 3), "trial": trial, "detail": dict(detail or {})}
        record = canonical(event)
        row = (trial, record, digest(record))
        self._connection.execute("INSERT INTO events (trial, record, checksum) VALUES (?, ?, ?)", row)

    def _put_definition(self, definition: Mapping[str, Any]) -> None:
        record = canonical(definition)
        row = (record, digest(record))
        self._connection.execute("INSERT OR REPLACE INTO meta VALUES ('definition', ?, ?)", row)

    def _quarantine(self, number: int, row: tuple[Any, Any, Any], reason: str) -> None:
        texts = tuple(None if value is None else str(value) for value in row)
        self._connection.execute("INSERT OR REPLACE INTO quarantine VALUES (?, ?, ?, ?, ?)", (number, *texts, reason))
        self._log("quarantined", None, {"trial": number, "reason": reason})

    def _set_damaged_apart(self) -> None:
        """Moves damaged trial rows to `quarantine`, restoring those whose folder is intact."""
        self.trials()
        for damage in tuple(self._damaged.values()):
            number = int(damage.name.removeprefix("trial "))
            with self._transaction():
                query = "SELECT status, record, checksum FROM trials WHERE number = ?"
                row = self._connection.execute(query, (number,)).fetchone()
                self._connection.execute("DELETE FROM trials WHERE number = ?", (number,))
                try:
                    trial = self.trial_folders.read(number)
                except ValueError:
                    outcome = "left out"
                else:
                    outcome = "restored from its folder"
                    self._put(trial)
                self._quarantine(number, row, f"{damage.reason}; {outcome}")
            self._damaged[damage.name] = replace(damage, reason=f"{damage.reason}; {outcome}")
        self._cache = None

    def _adopt_folders(self) -> None:
        """Fills a new database from the trial folders."""
        damaged = 0
        with self._transaction():
            for number in self.trial_folders.numbers():
                try:
                    trial = self.trial_folders.read(number)
                except ValueError as error:
                    damaged += 1
                    self._quarantine(number, (None, None, None), str(error))
                    self._damaged[f"trial {number}"] = Damage(f"trials/{number:04d}", str(error))
                else:
                    self._put(trial)
                    if "test" in trial.proposal.note.get("splits", ()):
                        self._log(TEST_OPENED, number, {"rebuilt": True})
            self._log("rebuilt", None, {"damaged": damaged})

    def _write_readable(self, definition: Mapping[str, Any]) -> None:
        content = {"format": SCHEMA_VERSION, "definition": dict(definition)}
        path = self.folder / DEFINITION
        try:
            if read_sealed(path) == content:
                return
        except ValueError:
            pass
        try:
            write_sealed(path, content)
        except OSError as error:
            raise StudyError(f"study.json cannot be written ({error.strerror})", where=str(self.folder)) from error
