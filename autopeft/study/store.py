"""The study on disk: one SQLite database beside the trial folders. Torch-free."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
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
    is_there,
    repair_command,
    require_whole,
    set_aside,
    unread_log,
)
from autopeft.study.filesystem import journal_for
from autopeft.study.folders import Damage, TrialFolders, canonical
from autopeft.study.healing import FILES_LOST, TEST_OPENED, adopt_folders, heal
from autopeft.study.lock import WriterLock
from autopeft.study.readable import DEFINITION, found_in, write_readable
from autopeft.study.rows import Rows, trial_from
from autopeft.study.salvage import Salvage
from autopeft.study.schema import create_tables, migrate, require_known, version_of
from autopeft.trial import Trial, TrialStatus, require_transition

__all__ = ["DEFINITION", "TEST_OPENED", "Store"]


class Store:
    """Trials, events and the definition of one study; every change is one synced transaction.

    One writer at a time, guarded by `WriterLock`; readers at any time, except on a network file system
    (`autopeft.study.filesystem`). Every row carries the SHA-256 of its content: a row that does not match is left out
    and named in `damaged`, and a writer restores it or moves it to the table `quarantine` (`autopeft.study.healing`). A
    number is never given twice.

    Use `Store.create`, `Store.open` and `Store.rebuild`.

    Attributes:
        folder: The study directory.
        trial_folders: Records and files of finished trials.
        checkpoints: Of unfinished trials.
    """

    def __init__(self, folder: Path, connection: sqlite3.Connection, lock: WriterLock | None) -> None:
        self.folder = folder
        self.trial_folders = TrialFolders(folder)
        self.checkpoints = Checkpoints(folder)
        self._connection, self._lock = connection, lock
        self._rows = Rows(connection)
        self._damaged: dict[str, Damage] = {}
        self._cache: dict[int, Trial] | None = None

    # -- opening -----------------------------------------------------------------------------------------------------

    @staticmethod
    def exists(folder: Path) -> bool:
        """Says whether a folder holds a study, or what is left of one; what a killed `create` left does not count."""
        return is_there(folder / DATABASE) or (folder / DEFINITION).exists() or any(TrialFolders(folder).numbers())

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
            store = Store._make(folder, lock)
            with store._or_closed():
                with store.transaction():
                    create_tables(store._connection)
                    store._rows.define(definition)
                    store._rows.log("created")
                store._name(write_readable(folder, definition))
            return store

    @staticmethod
    def open(folder: Path, readonly: bool = False) -> Store:
        """Opens the study in a folder; a writer brings an older format to this one, and restores what is damaged.

        Args:
            folder: The study directory.
            readonly: Only read, which works while another process writes, and for older formats as they are.

        Raises:
            StudyError: There is none, it is damaged, a later release wrote it, or another process writes it.
        """
        path = folder / DATABASE
        if readonly or not path.is_file():
            Store._require(folder)
        if readonly:
            with explained(path):
                store = Store(folder, connect_reader(path), None)
                with store._or_closed():
                    require_known(version_of(store._connection), path)
                    store._look_at_log()
            return store
        lock = WriterLock(folder)
        with lock.released_on_error():
            Store._require(folder)
            if unread_log(path):
                raise StudyError(
                    "the log of the study's database is damaged: its last transactions cannot be read",
                    where=f"{path}-wal",
                    cure=repair_command(folder),
                )
            store = Store._make(folder, lock)
            with store._or_closed():
                with explained(path):
                    require_whole(store._connection)
                    migrate(store._connection, path)
                store._heal()
                store._name(write_readable(folder, store.definition()))
            return store

    @staticmethod
    def rebuild(folder: Path) -> Store:
        """Makes a new database from the records in the old one, whatever its state, and from the trial folders.

        The old one is kept beside it. Unfinished trials and events are in the database only: they are kept where their
        rows can be found. What cannot be trusted is named in `damaged`; `autopeft.study.repair` looks at files too.

        Args:
            folder: The study directory.

        Raises:
            StudyError: The definition of the study is found nowhere, or another process writes the study.

        Example:
            >>> Store.rebuild(Path("runs/reviews")).damaged  # doctest: +SKIP
            (Damage(name='trials/0007', reason='does not match its checksum'),)
        """
        lock = WriterLock(folder)
        with lock.released_on_error():
            found, definition = found_in(folder)
            set_aside(folder)
            store = Store._make(folder, lock)
            with store._or_closed():
                with store.transaction():
                    create_tables(store._connection)
                    store._fill(found, definition)
                store._heal()
                store._name(write_readable(folder, definition))
            return store

    @staticmethod
    def _require(folder: Path) -> None:
        if not Store.exists(folder):
            raise StudyError("there is no study here", where=str(folder), cure="check the path, or create the study")
        if not is_there(folder / DATABASE):
            raise StudyError("the study's database is gone", where=str(folder / DATABASE), cure=repair_command(folder))

    @staticmethod
    def _make(folder: Path, lock: WriterLock) -> Store:
        with explained(folder / DATABASE):
            return Store(folder, connect_writer(folder / DATABASE, journal_for(folder)), lock)

    @contextmanager
    def _or_closed(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._connection.close()
            raise

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
        """Records found damaged since it was opened, with what became of them, and trials whose files are lost."""
        self._load()
        marked = dict.fromkeys(e.trial for e in self.events(FILES_LOST) if e.trial is not None)
        lost = {f"trials/{n:04d}": self.trial_folders.lost(n) for n in marked}
        return (*self._damaged.values(), *(Damage(name, reason) for name, reason in lost.items() if reason))

    def definition(self) -> dict[str, Any]:
        """Returns the definition the study was made with; raises StudyError where its record is damaged."""
        with explained(self.folder / DATABASE):
            try:
                return self._rows.definition()
            except ValueError as error:
                raise StudyError(
                    f"the study's definition is damaged ({error})",
                    where=str(self.folder),
                    cure=repair_command(self.folder),
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
            found, damages = self._rows.trials()
        self._name(damages)
        # The only writer knows every change; a reader looks again each time.
        self._cache = None if self.readonly else found
        return found

    def events(self, kind: str | None = None, trial: int | None = None) -> tuple[StudyEvent, ...]:
        """Returns the intact events in order of happening, all or those of a kind or a trial."""
        with explained(self.folder / DATABASE):
            found, damages = self._rows.events(trial)
        self._name(damages)
        return tuple(event for event in found.values() if kind is None or event.kind == kind)

    def quarantined(self) -> tuple[Damage, ...]:
        """Returns what was ever set apart as damaged, by name and with the reason."""
        with explained(self.folder / DATABASE):
            return self._rows.quarantined()

    def next_number(self) -> int:
        """Returns the number of the next trial; numbers of damaged trials are not given again."""
        with explained(self.folder / DATABASE):
            return self._rows.next_number()

    def _name(self, damages: Sequence[Damage]) -> None:
        for damage in damages:
            self._damaged.setdefault(damage.name, damage)

    def _look_at_log(self) -> None:
        if unread_log(self.folder / DATABASE):
            reason = f"is damaged, and its last transactions are not shown; {repair_command(self.folder)}"
            self._name([Damage(f"{DATABASE}-wal", reason)])

    # -- writing -----------------------------------------------------------------------------------------------------

    def add(self, trials: Sequence[Trial]) -> None:
        """Adds new queued trials in one transaction; raises StudyError for another state or a number in use."""
        with self.transaction():
            for trial in trials:
                if trial.status is not TrialStatus.QUEUED:
                    raise StudyError(f"trial {trial.number} begins as {trial.status}", cure="add it as queued")
                if trial.number < self.next_number():
                    raise StudyError(f"trial {trial.number} exists already", where=str(self.folder))
                self._rows.log(str(trial.status), trial.number)
                self._put(trial)

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
        with self.transaction():
            old = self.trial(records[0].number)
            for new in records:
                if (new.number, new.proposal) != (old.number, old.proposal):
                    raise StudyError(f"the proposal of trial {old.number} cannot change", where=str(self.folder))
                require_transition(old.status, new.status, new.number)
                files = self.trial_folders.written(new.number) if new.status.final else {}
                self._rows.log(str(new.status), new.number, {**(detail or {}), **({"files": files} if files else {})})
                old = new
            self._put(old)
        return old

    def note(self, kind: str, trial: int | None = None, detail: Mapping[str, Any] | None = None) -> None:
        """Records an event; raises StudyError where it names a trial that does not exist."""
        with self.transaction():
            if trial is not None and trial >= self.next_number():
                raise StudyError(f"there is no trial {trial}", where=str(self.folder))
            self._rows.log(kind, trial, detail)

    def redefine(self, definition: Mapping[str, Any]) -> None:
        """Replaces the definition, in the database first and then in `study.json`."""
        with self.transaction():
            self._rows.define(definition)
        self._name(write_readable(self.folder, definition))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Makes all changes within the block one transaction: synced once, at its end, or taken back together.

        Blocks may be nested: an inner one that fails takes back its own changes. Nothing within an outer one is durable
        before its end, so what others are told of it has to wait until then.

        Raises:
            StudyError: The study is open for reading only, or the disk refuses; nothing is changed then.

        Example:
            >>> with store.transaction():  # doctest: +SKIP
            ...     store.advance(first)
            ...     store.advance(second)
        """
        if self.readonly:
            raise StudyError("the study is open for reading only", where=str(self.folder), cure="open it for writing")
        inner = self._connection.in_transaction
        begin, commit = ("SAVEPOINT inner_block", "RELEASE inner_block") if inner else ("BEGIN IMMEDIATE", "COMMIT")
        with explained(self.folder / DATABASE):
            self._connection.execute(begin)
            try:
                yield
                self._connection.execute(commit)
            except BaseException:
                self._cache = None
                with suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK TO inner_block" if inner else "ROLLBACK")
                    if inner:
                        self._connection.execute(commit)
                raise

    # -- within a transaction ----------------------------------------------------------------------------------------

    def _put(self, trial: Trial) -> None:
        self._rows.put_trial(trial)
        if self._cache is not None:
            # As it will be read: JSON has no tuples, and no keys but texts.
            self._cache[trial.number] = trial_from(json.loads(canonical(trial.to_dict())))

    def _heal(self) -> None:
        with self.transaction():
            self._name(heal(self._rows, self.trial_folders))
        self._cache = None

    def _fill(self, found: Salvage, definition: Mapping[str, Any]) -> None:
        """Fills a new database with what was found of the old one and in the trial folders."""
        for content in found.quarantined.values():
            self._rows.put_quarantined(content)
        for number, event in found.events.items():
            self._rows.put_event(number, event)
        self._rows.log("rebuilt", None, {"trials": len(found.trials), "events": len(found.events)})
        self._rows.define(definition)
        for trial in found.trials.values():
            self._rows.put_trial(trial)
        adopted = adopt_folders(self._rows, self.trial_folders)
        self._name([damage for damage in adopted if damage.name.startswith("trials/")])
