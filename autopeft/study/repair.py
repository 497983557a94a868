"""Looks at every record of a study on disk, says what is wrong and mends it. Torch-free."""

from __future__ import annotations

import hashlib
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from autopeft.errors import StudyError
from autopeft.study.checkpoints import Checkpoints
from autopeft.study.database import DATABASE, connect_reader, is_there, require_whole, unread_log
from autopeft.study.folders import RECORD, TrialFolders, read_files, read_sealed, write_sealed
from autopeft.study.healing import FILES_LOST
from autopeft.study.quarantine import set_apart
from autopeft.study.readable import DEFINITION, found_in
from autopeft.study.rows import StudyEvent
from autopeft.study.salvage import Salvage
from autopeft.study.schema import SCHEMA_VERSION, require_known, version_of
from autopeft.study.store import Store
from autopeft.trial import Trial, TrialStatus


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a study.

    Attributes:
        name: Which record: "study.sqlite", "trial 7", "trials/0007".
        reason: What is wrong with it.
        remedy: What was done about it, or would be.
    """

    name: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}; {self.remedy}"


@dataclass(frozen=True)
class RepairReport:
    """What was looked at and found.

    Attributes:
        findings: What was wrong, in the order of looking.
        trials: Trials in the database, after mending.
        events: Events in it.
        folders: Trial folders.
        checkpoints: Checkpoints of unfinished trials.
        kept: Name of the old database, where a new one was made; it lies beside it.
    """

    findings: tuple[Finding, ...]
    trials: int
    events: int
    folders: int
    checkpoints: int
    kept: str | None = None

    @property
    def healthy(self) -> bool:
        """Whether nothing was wrong."""
        return not self.findings


Mend = Callable[[Store], None]


def check(folder: Path) -> RepairReport:
    """Looks at every row, trial folder, file and checkpoint of a study; changes nothing, also where it is being run.

    Args:
        folder: The study directory.

    Raises:
        StudyError: There is no study, a later release wrote it, or its definition is lost.

    Example:
        >>> check(Path("runs/reviews")).healthy  # doctest: +SKIP
        True
    """
    _require_study(folder)
    broken = _broken(folder)
    if broken is not None:
        found, _ = found_in(folder)
        lines = [*_definition_findings(folder), Finding(DATABASE, broken, f"{_counted(found)} can be found in it")]
        adopted = {n: t for n in TrialFolders(folder).numbers() if (t := _read(folder, n)) is not None}
        trials, events = {**adopted, **found.trials}, tuple(found.events.values())
        return _report(folder, [*lines, *(f for f, _ in _folder_findings(folder, trials, events))], trials, events)
    with Store.open(folder, readonly=True) as store:
        trials, events = {t.number: t for t in store.trials()}, store.events()
        # What lost its files for good was mended once, and is a mark and no finding.
        marks = {f"trials/{e.trial:04d}" for e in events if e.kind == FILES_LOST and e.trial is not None}
        damaged = [d for d in store.damaged if d.name not in marks]
        lines = [Finding(d.name, d.reason, "will be restored where that can be done") for d in damaged]
        with suppress(StudyError):
            store.definition()
            known = set(trials) | {int(d.name[6:]) for d in store.quarantined() if d.name.startswith("trial ")}
            lines += _unknown(folder, known)
            return _report(
                folder,
                [*_definition_findings(folder), *lines, *(f for f, _ in _folder_findings(folder, trials, events))],
                trials,
                events,
            )
    found_in(folder)  # raises where the definition is in neither place
    lines.append(Finding("definition", "is damaged in the database", f"will be restored from {DEFINITION}"))
    return _report(folder, [*lines, *(f for f, _ in _folder_findings(folder, trials, events))], trials, events)


def repair(folder: Path) -> RepairReport:
    """Does what `check` does and mends what is wrong; nothing is deleted.

    A database that cannot be used is made anew from the records that can be found in it and from the trial folders; the
    old one is kept beside it. Rows are restored from folders, `trial.json` from rows. A folder whose files are damaged
    goes to `quarantine/`; its trial stays in the study, marked, and is not proposed anew.

    Args:
        folder: The study directory.

    Returns:
        What was found and done.

    Raises:
        StudyError: As for `check`, or another process writes the study, or the disk refuses.
    """
    _require_study(folder)
    broken, kept = _broken(folder), None
    lines: list[Finding] = []
    if broken is None:
        lines += _definition_findings(folder)
        _rescue_definition(folder)
        store = Store.open(folder)
    else:
        before = set(folder.glob(f"{DATABASE}.old-*"))
        found, _ = found_in(folder)
        lines += _definition_findings(folder)
        store = Store.rebuild(folder)
        kept = next((p.name for p in sorted(set(folder.glob(f"{DATABASE}.old-*")) - before)), None)
        aside = f", and is kept as {kept}" if kept else ""
        lines.append(Finding(DATABASE, broken, f"made anew from {_counted(found)} and the trial folders{aside}"))
    with store:
        told = {finding.name for finding in lines}
        damaged = [d for d in store.damaged if d.name not in told and not d.name.startswith("trials/")]
        lines += [Finding(d.name, *_split(d.reason)) for d in damaged]
        trials, events = {t.number: t for t in store.trials()}, store.events()
        for finding, mend in _folder_findings(folder, trials, events):
            mend(store)
            lines.append(finding)
        return _report(folder, lines, {t.number: t for t in store.trials()}, store.events(), kept)


def _require_study(folder: Path) -> None:
    try:
        there = Store.exists(folder)
    except StudyError:  # a database that cannot be used is what this is for
        return
    if not there:
        raise StudyError("there is no study here", where=str(folder), cure="check the path")


def _broken(folder: Path) -> str | None:
    """Returns why the database of a study cannot be used, or None; raises StudyError where that is no damage."""
    path = folder / DATABASE
    if not path.exists():
        return "is gone"
    try:
        connection = connect_reader(path)
        try:
            require_whole(connection)
            version = version_of(connection)
            if version <= SCHEMA_VERSION or not _told_format(folder):
                require_known(version, path)
            else:
                return f"says that it has format {version}, and {DEFINITION} has another"
            for table in ("meta", "trials", "events", "quarantine"):
                connection.execute(f"SELECT * FROM {table} LIMIT 1").fetchall()
        finally:
            connection.close()
        return "has a damaged log: its last transactions cannot be read" if unread_log(path) else None
    except UnicodeDecodeError as error:  # SQLite quotes what it cannot read in its messages
        return f"cannot be used ({error})"
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            is_there(path)  # raises, saying who uses it
        return f"cannot be used ({error})"


def _told_format(folder: Path) -> bool:
    """Says whether `study.json`, intact, has a format that this release knows."""
    try:
        told = read_sealed(folder / DEFINITION).get("format")
    except ValueError:
        return False
    return isinstance(told, int) and told <= SCHEMA_VERSION


def _definition_findings(folder: Path) -> list[Finding]:
    try:
        read_sealed(folder / DEFINITION)
    except ValueError as error:
        return [Finding(DEFINITION, str(error), "written anew from the database")]
    return []


def _rescue_definition(folder: Path) -> None:
    """Where the definition is in neither place, writes `study.json` from an older version found in the database."""
    with Store.open(folder, readonly=True) as store, suppress(StudyError):
        store.definition()
        return
    _, definition = found_in(folder)
    if _definition_findings(folder):
        write_sealed(folder / DEFINITION, {"format": SCHEMA_VERSION, "definition": dict(definition)})


def _unknown(folder: Path, known: set[int]) -> list[Finding]:
    numbers = (n for n in TrialFolders(folder).numbers() if n not in known and _read(folder, n) is not None)
    return [Finding(f"trial {n}", "is not in the database", "will be restored from its folder") for n in numbers]


def _folder_findings(
    folder: Path, trials: Mapping[int, Trial], events: tuple[StudyEvent, ...]
) -> Iterator[tuple[Finding, Mend]]:
    """Yields what is wrong with the folders of trials and with checkpoints, and how it is mended."""
    folders, digests = TrialFolders(folder), _digests(events)
    there = set(folders.numbers())
    for number in sorted(there | {n for n, t in trials.items() if t.status.final}):
        place, trial = f"trials/{number:04d}", trials.get(number)
        try:
            recorded = folders.read(number) if number in there else None
            reason = "is missing" if recorded is None else None
        except ValueError as error:
            recorded, reason = None, str(error)
        if trial is None or not trial.status.final:
            if reason is not None:  # of an unfinished trial, or of none that can be had
                yield Finding(place, reason, "set apart in quarantine/"), _setting_apart(folder, place, reason)
            continue
        if recorded == trial:
            continue
        reason = reason or f"its {RECORD} is not what the database holds"
        files = _proven(folders.path(number), digests.get(number))
        if files is None and trial.status is TrialStatus.COMPLETED:
            remedy = "its files are set apart in quarantine/, and its record is kept"
            yield Finding(place, reason, remedy), _losing(folder, trial, reason)
        else:
            yield Finding(place, reason, f"{RECORD} is written anew"), _rewriting(trial, files or {})
    checkpoints = Checkpoints(folder)
    for number in checkpoints.numbers():
        reason = checkpoints.damage(number)
        if reason is not None:
            place = f"checkpoints/{number:04d}"
            yield Finding(place, reason, "set apart in quarantine/"), _setting_apart(folder, place, reason)


def _digests(events: tuple[StudyEvent, ...]) -> dict[int, Mapping[str, str]]:
    """Returns the digests of the files of each trial, as they were recorded when it ended."""
    ended = (e for e in events if e.trial is not None and isinstance(e.detail.get("files"), Mapping))
    return {e.trial: e.detail["files"] for e in ended if e.trial is not None}


def _proven(place: Path, digests: Mapping[str, str] | None) -> dict[str, bytes] | None:
    """Returns the files in a folder where each is proven to be what was written, else None.

    A digest proves a file, and is itself proven by matching it: one found in a damaged `trial.json` will do.
    """
    if digests is not None:
        try:
            return read_files(place, digests)
        except ValueError:
            return None
    try:
        proofs = set(re.findall(rb"\b[0-9a-f]{64}\b", (place / RECORD).read_bytes()))
        paths = [p for p in sorted(place.rglob("*")) if p.is_file() and p != place / RECORD]
        files = {p.relative_to(place).as_posix(): p.read_bytes() for p in paths}
    except OSError:
        return None
    known = all(hashlib.sha256(content).hexdigest().encode() in proofs for content in files.values())
    return files if files and known else None


def _setting_apart(folder: Path, place: str, reason: str) -> Mend:
    def mend(store: Store) -> None:  # noqa: ARG001 - the database has nothing to do with it
        _moved(folder, place, reason)

    return mend


def _rewriting(trial: Trial, files: Mapping[str, bytes]) -> Mend:
    return lambda store: store.trial_folders.write(trial, files)


def _losing(folder: Path, trial: Trial, reason: str) -> Mend:
    def mend(store: Store) -> None:
        place = f"trials/{trial.number:04d}"
        lost = f"{reason}; its files are lost"
        if (folder / place).exists():
            lost = f"{reason}; its files were set apart in {_moved(folder, place, reason)}"
        store.trial_folders.write(trial, {}, lost)
        store.note(FILES_LOST, trial.number, {"reason": lost})

    return mend


def _moved(folder: Path, place: str, reason: str) -> str:
    try:
        return set_apart(folder, folder / place, reason).relative_to(folder).as_posix()
    except OSError as error:
        raise StudyError(f"cannot be set apart ({error.strerror or error})", where=str(folder / place)) from error


def _read(folder: Path, number: int) -> Trial | None:
    try:
        return TrialFolders(folder).read(number)
    except ValueError:
        return None


def _counted(found: Salvage) -> str:
    return f"{len(found.trials)} trials and {len(found.events)} events"


def _split(reason: str) -> tuple[str, str]:
    what, separator, outcome = reason.rpartition("; ")
    return (what, outcome) if separator else (reason, "left as it is")


def _report(
    folder: Path,
    findings: list[Finding],
    trials: Mapping[int, Trial],
    events: tuple[StudyEvent, ...],
    kept: str | None = None,
) -> RepairReport:
    folders, checkpoints = len(list(TrialFolders(folder).numbers())), len(list(Checkpoints(folder).numbers()))
    return RepairReport(tuple(findings), len(trials), len(events), folders, checkpoints, kept)
