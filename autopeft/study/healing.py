"""What a writer does about damage when it opens a study: restores what it can, sets the rest apart. Torch-free."""

from __future__ import annotations

from autopeft.study.folders import Damage, TrialFolders, read_sealed
from autopeft.study.readable import DEFINITION
from autopeft.study.rows import Rows, StudyEvent, event_from, read_record, trial_from
from autopeft.trial import Trial, TrialStatus

TEST_OPENED = "test split opened"
FILES_LOST = "files lost"
RESTORED = "restored"


def heal(rows: Rows, folders: TrialFolders) -> list[Damage]:
    """Restores damaged and missing rows, or sets them apart; within one transaction of the caller.

    A trial is restored from what is left of its row, or from its folder; the definition from `study.json`; a folder
    that the database does not know is taken up. Nothing is found a second time.

    Args:
        rows: Of the database.
        folders: Of the same study.

    Returns:
        What was damaged, and what became of it.
    """
    found = [*_heal_definition(rows, folders), *_heal_trials(rows, folders), *_heal_events(rows)]
    return [*found, *adopt_folders(rows, folders)]


def adopt_folders(rows: Rows, folders: TrialFolders) -> list[Damage]:
    """Takes up the trial folders that the database knows nothing of; returns what was missing or damaged.

    A trial that was killed between its folder and its row is completed.
    """
    trials = rows.trials()[0]
    known = set(trials) | {int(d.name[6:]) for d in rows.quarantined() if d.name.startswith("trial ")}
    damages = []
    for number in folders.numbers():
        if number in known:
            if number in trials and not trials[number].status.final:
                _end(rows, trials[number], folders)
            continue
        try:
            trial = folders.read(number)
        except ValueError as error:
            damages.append(Damage(f"trials/{number:04d}", str(error)))
            rows.set_apart(f"trial {number}", number, f"{error}; left out")
            continue
        rows.log(RESTORED, number, {"reason": "it was missing", "files": folders.digests(number)})
        rows.put_trial(trial)
        note_what_it_tells(rows, trial, folders)
        damages.append(Damage(f"trial {number}", "was missing; restored from its folder"))
    return damages


def _end(rows: Rows, trial: Trial, folders: TrialFolders) -> None:
    """Ends an unfinished trial whose folder says that it was completed: its row is what could not be written.

    A folder of a failed trial says nothing, since such a trial may have been queued again.
    """
    try:
        ended = folders.read(trial.number)
    except ValueError:
        return
    if ended.status in (TrialStatus.COMPLETED, TrialStatus.PRUNED) and ended.proposal == trial.proposal:
        detail = {"reason": "its folder was complete", "files": folders.digests(trial.number)}
        rows.log(str(ended.status), trial.number, detail)
        rows.put_trial(ended)


def note_what_it_tells(rows: Rows, trial: Trial, folders: TrialFolders) -> None:
    """Records what a restored trial tells of events that may be lost: an open test split, lost files."""
    opened = {event.trial for event in rows.events()[0].values() if event.kind == TEST_OPENED}
    of = trial.proposal.note.get("of", trial.number)
    if "test" in trial.proposal.note.get("splits", ()) and of not in opened:
        rows.log(TEST_OPENED, of if isinstance(of, int) else trial.number, {"rebuilt": True})
    lost = folders.lost(trial.number)
    if lost is not None:
        rows.log(FILES_LOST, trial.number, {"reason": lost})


def _heal_definition(rows: Rows, folders: TrialFolders) -> list[Damage]:
    try:
        rows.definition()
    except ValueError as error:
        try:
            rows.define(read_sealed(folders.study / DEFINITION)["definition"])
        except (ValueError, KeyError, TypeError):
            return []  # `Store.definition` says so
        return [Damage("definition", f"{error}; restored from {DEFINITION}")]
    return []


def _heal_trials(rows: Rows, folders: TrialFolders) -> list[Damage]:
    intact, damages = rows.trials()
    healed = []
    for damage in damages:
        number = int(damage.name.removeprefix("trial "))
        row = rows.row("trials", number)
        trial, outcome = _restored(row, folders, number)
        if trial is not None and trial.number in intact:
            trial, outcome = None, "left out"
        reason = f"{damage.reason}; {outcome}"
        rows.set_apart(damage.name, trial.number if trial else number, reason, row)
        if trial is not None:
            rows.put_trial(trial)
        healed.append(Damage(damage.name, reason))
    return healed


def _restored(row: list[str | None], folders: TrialFolders, number: int) -> tuple[Trial | None, str]:
    """Returns what can be had of a damaged trial, and where it comes from."""
    try:
        return trial_from(read_record(*row[-2:])), "restored from its record"
    except (ValueError, TypeError):
        pass
    try:
        return folders.read(number), "restored from its folder"
    except ValueError:
        return None, "left out"


def _heal_events(rows: Rows) -> list[Damage]:
    healed = []
    for damage in rows.events()[1]:
        number = int(damage.name.removeprefix("event "))
        row = rows.row("events", number)
        event = _event(row, number)
        outcome = "left out" if event is None else "restored from its record"
        rows.set_apart(damage.name, None, f"{damage.reason}; {outcome}", row)
        if event is not None:
            rows.put_event(number, event)
        healed.append(Damage(damage.name, f"{damage.reason}; {outcome}"))
    return healed


def _event(row: list[str | None], number: int) -> StudyEvent | None:
    """Returns the event of a row of which only a column is damaged."""
    try:
        content = read_record(*row[-2:])
        return event_from(content) if content.get("id") == number else None
    except (ValueError, TypeError):
        return None
