"""`study.json`: the definition of a study, readable, and the second place where it is kept. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autopeft.errors import StudyError
from autopeft.study.database import DATABASE
from autopeft.study.folders import Damage, read_sealed, write_sealed
from autopeft.study.salvage import Salvage, salvage
from autopeft.study.schema import SCHEMA_VERSION

DEFINITION = "study.json"


def write_readable(folder: Path, definition: Mapping[str, Any]) -> list[Damage]:
    """Writes the definition to `study.json`, where that says something else.

    Args:
        folder: The study directory.
        definition: As it is in the database.

    Returns:
        What was wrong with the file, where it was damaged.

    Raises:
        StudyError: The disk refuses.
    """
    content = {"format": SCHEMA_VERSION, "definition": dict(definition)}
    path = folder / DEFINITION
    damages: list[Damage] = []
    try:
        if read_sealed(path) == content:
            return []
    except ValueError as error:
        damages = [Damage(DEFINITION, f"{error}; written anew")] if path.exists() else []
    try:
        write_sealed(path, content)
    except OSError as error:
        raise StudyError(f"study.json cannot be written ({error.strerror})", where=str(folder)) from error
    return damages


def found_in(folder: Path) -> tuple[Salvage, Mapping[str, Any]]:
    """Returns what can be found of a study's database, and its definition from there or from `study.json`.

    Args:
        folder: The study directory.

    Raises:
        StudyError: The definition is in neither, or the disk refuses to be read.
    """
    try:
        found = salvage(folder / DATABASE)
    except OSError as error:
        raise StudyError(f"the study's database cannot be read ({error})", where=str(folder / DATABASE)) from error
    try:
        return found, dict(read_sealed(folder / DEFINITION)["definition"])
    except (ValueError, KeyError, TypeError) as error:
        if found.definition is None:
            raise StudyError(
                f"{error}, and the database does not hold the study's definition any more",
                where=str(folder / DEFINITION),
                cure=f"restore {DEFINITION} from a copy, then run it again; nothing was changed",
            ) from None
        return found, found.definition
