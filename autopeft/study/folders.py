"""Trial folders: the readable, self-checking record of every finished trial, and its files. Torch-free."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autopeft.errors import AutoPeftError, InputError, StudyError
from autopeft.trial import Trial
from autopeft.untrusted import parse_json

RECORD = "trial.json"
_NUMBERED = re.compile(r"^\d{4,}$")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_DEEPEST = 8
WRITERS = 8
"""Threads that write folders where several trials have ended."""


@dataclass(frozen=True)
class Damage:
    """A stored record that cannot be trusted.

    Attributes:
        name: Which one: "trial 7", "event 3", "trials/0007/trial.json".
        reason: What is wrong with it.
    """

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def canonical(value: Any) -> str:
    """Returns the one JSON text of a value: sorted keys, no spaces; raises ValueError for NaN and infinity.

    Example:
        >>> canonical({"b": 1, "a": [2.0]})
        '{"a":[2.0],"b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def checksum(value: Any) -> str:
    """Returns the SHA-256 of the canonical JSON of a value.

    Example:
        >>> checksum({})[:8]
        '44136fa3'
    """
    return digest(canonical(value))


def digest(text: str) -> str:
    """Returns the SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def sealed(content: Mapping[str, Any]) -> bytes:
    """Returns readable JSON that carries its own checksum; inverse of `read_sealed`."""
    whole = {**content, "checksum": checksum(content)}
    return (json.dumps(whole, indent=2, allow_nan=False) + "\n").encode()


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Writes readable JSON that carries its own checksum: complete under `path`, or not there at all."""
    draft = path.with_name(f".{path.name}.new")
    try:
        write_synced(draft, sealed(content))
        draft.replace(path)
    except OSError:
        with suppress(OSError):
            draft.unlink()
        raise
    sync_folder(path.parent)


def read_sealed(path: Path) -> dict[str, Any]:
    """Inverse of `write_sealed`; raises ValueError where the file cannot be read, is not JSON, or was altered."""
    try:
        content = parse_json(_plain_bytes(path))
    except OSError as error:
        raise ValueError(f"cannot be read ({error})") from None
    except ValueError as error:
        raise ValueError(f"is not JSON ({error})") from None
    if not isinstance(content, dict) or not isinstance(content.get("checksum"), str):
        raise ValueError("has no checksum")
    stated = content.pop("checksum")
    if stated != checksum(content):
        raise ValueError("does not match its checksum")
    return content


def require_files(files: Mapping[str, bytes], record: str = RECORD) -> None:
    """Raises ValueError, naming the file, where files cannot be those of a trial.

    Names are relative, of plain parts, none of them a folder of another or that of the record; contents are bytes.
    """
    folders = set()
    for name, content in files.items():
        parts = name.split("/") if isinstance(name, str) else []
        plain = 0 < len(parts) <= _DEEPEST and all(_PART.fullmatch(part) for part in parts)
        if not plain or parts[0] == record:
            raise ValueError(f"{name!r} is not a name for a file of a trial")
        if not isinstance(content, bytes):
            raise ValueError(f"the content of file '{name}' is {type(content).__name__}, not bytes")
        folders |= {"/".join(parts[:k]) for k in range(1, len(parts))}
    for name in folders & files.keys():
        raise ValueError(f"'{name}' is a file and a folder at once")


def fill_folder(folder: Path, files: Mapping[str, bytes], record: str, content: Mapping[str, Any]) -> dict[str, str]:
    """Makes a folder of files and, last, of a sealed record with their digests; all of it synced; returns these."""
    folder.mkdir()
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_synced(folder / name, data)
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}
    write_synced(folder / record, sealed({**content, "files": digests}))
    for part in {folder, *((folder / name).parent for name in files)}:
        sync_folder(part)
    return digests


def _plain_bytes(path: Path) -> bytes:
    """Returns the content of a plain file; a pipe or a device in its place would never end."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no plain file")
    return path.read_bytes()


def read_files(folder: Path, digests: Mapping[str, str], record: str = RECORD) -> dict[str, bytes]:
    """Returns the files that a sealed record lists; raises ValueError, naming the file, where one is another now."""
    require_files(dict.fromkeys(digests, b""), record)
    files: dict[str, bytes] = {}
    for name, stated in digests.items():
        try:
            files[name] = _plain_bytes(folder / name)
        except OSError as error:
            why = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
            raise ValueError(f"file {name} {why}") from None
        if hashlib.sha256(files[name]).hexdigest() != stated:
            raise ValueError(f"file {name} does not match its checksum")
    return files


class TrialFolders:
    """The folders `trials/0000`, `trials/0001`, ... of a study directory.

    A folder is written under a temporary name, synced and renamed, so that a folder with a plain number is complete.

    Args:
        folder: The study directory.

    Attributes:
        study: The study directory.
    """

    def __init__(self, folder: Path) -> None:
        self.study = folder
        self._root = folder / "trials"
        self._written: dict[int, dict[str, str]] = {}

    def path(self, number: int) -> Path:
        """Returns the folder of a trial, whether or not it exists."""
        return self._root / f"{number:04d}"

    def write(self, trial: Trial, files: Mapping[str, bytes], lost: str | None = None) -> None:
        """Writes the folder of a finished trial, replacing what an interrupted attempt left.

        Args:
            trial: The final record.
            files: Relative names and contents.
            lost: Why the files of the trial are not there any more, where they were damaged.

        Raises:
            StudyError: A name would leave the folder, or the disk refuses.
        """
        try:
            require_files(files)
        except ValueError as error:
            raise StudyError(str(error), where=f"trial {trial.number}") from None
        final = self.path(trial.number)
        draft = self._root / f".{final.name}.new"
        try:
            self._root.mkdir(exist_ok=True)
            shutil.rmtree(draft, ignore_errors=True)
            mark = {} if lost is None else {"lost": lost}
            self._written[trial.number] = fill_folder(draft, files, RECORD, {"trial": trial.to_dict(), **mark})
            self._replace(draft, final)
        except OSError as error:
            shutil.rmtree(draft, ignore_errors=True)  # it may be what fills the disk
            raise StudyError(
                f"the trial's folder cannot be written ({error.strerror or error})",
                where=f"trials/{final.name}",
                cure="free some space there and run the same command again; finished trials are kept",
            ) from error

    def write_all(self, trials: Sequence[tuple[Trial, Mapping[str, bytes]]]) -> dict[int, StudyError]:
        """Writes the folders of several finished trials, all at once: most of the time of each is waiting for the disk.

        Args:
            trials: Final records of distinct trials, and their files.

        Returns:
            Why it could not be written, by number, of those that could not; the others are on disk.
        """
        if len(trials) < 2:
            return {t.number: error for t, files in trials if (error := self._refusal(t, files))}
        with ThreadPoolExecutor(min(WRITERS, len(trials))) as pool:
            errors = pool.map(self._refusal, *zip(*trials, strict=True))
        return {t.number: error for (t, _), error in zip(trials, errors, strict=True) if error}

    def _refusal(self, trial: Trial, files: Mapping[str, bytes]) -> StudyError | None:
        try:
            self.write(trial, files)
        except StudyError as error:
            return error
        return None

    def read(self, number: int) -> Trial:
        """Returns the trial recorded in a folder; raises ValueError, saying why, where it cannot be trusted."""
        return self._read(number)[0]

    def written(self, number: int) -> dict[str, str]:
        """Returns the digests of the files of a trial whose folder this object wrote last; empty for another."""
        return dict(self._written.get(number, {}))

    def digests(self, number: int) -> dict[str, str]:
        """Returns the digests of a trial's files as `trial.json` has them; raises ValueError where that is damaged."""
        return {
            str(name): str(stated) for name, stated in dict(read_sealed(self.path(number) / RECORD)["files"]).items()
        }

    def lost(self, number: int) -> str | None:
        """Returns why the files of a trial are not there any more; None where nothing was lost."""
        try:
            reason = read_sealed(self.path(number) / RECORD).get("lost")
        except ValueError:
            return None
        return None if reason is None else str(reason)

    def files(self, number: int) -> dict[str, bytes]:
        """Returns the files of a finished trial, as they were written.

        Raises:
            StudyError: The folder is missing, or a file in it is not what was written; the message names it.
        """
        try:
            files, lost = self._read(number)[1], self.lost(number)
            if lost is not None:
                raise ValueError(lost)
            return files
        except ValueError as error:
            raise StudyError(
                f"trial {number}: {error}",
                where=str(self.path(number)),
                cure=f"restore it from a copy, or train trial {number} again: autopeft train",
            ) from None

    def copy(self, number: int, out: Path) -> tuple[str, ...]:
        """Copies the files of a finished trial, checked against their digests; returns their names.

        Nothing is written where one file is not what it was.

        Args:
            number: The trial.
            out: Folder to copy them to; made where it is missing.

        Raises:
            StudyError: As for `files`, or the trial has no files, as one that failed.
        """
        files = self.files(number)
        if not files:
            raise StudyError(
                f"trial {number} has no adapter", where=str(self.path(number)), cure="name a completed one"
            )
        write_files(out, files)
        return tuple(files)

    def _read(self, number: int) -> tuple[Trial, dict[str, bytes]]:
        folder = self.path(number)
        content = read_sealed(folder / RECORD)
        try:
            trial, digests = Trial.from_dict(content["trial"]), dict(content["files"])
        except (AutoPeftError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"is not a trial ({error!r})") from None
        files = read_files(folder, digests)
        if trial.number != number:
            raise ValueError(f"belongs to trial {trial.number}")
        return trial, files

    def numbers(self) -> Iterator[int]:
        """Yields the numbers that have a complete folder, ascending."""
        if self._root.is_dir():
            yield from sorted(int(p.name) for p in self._root.iterdir() if _NUMBERED.match(p.name) and p.is_dir())

    def _replace(self, draft: Path, final: Path) -> None:
        if final.exists():
            old = self._root / f".{final.name}.old"
            shutil.rmtree(old, ignore_errors=True)
            final.rename(old)
            draft.rename(final)
            shutil.rmtree(old, ignore_errors=True)
        else:
            draft.rename(final)
        sync_folder(self._root)


def write_files(out: Path, files: Mapping[str, bytes]) -> None:
    """Writes the files of an adapter into a folder, made where it is missing; raises InputError where it cannot."""
    try:
        for name, content in files.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(content)
    except OSError as error:
        raise InputError(
            f"the adapter cannot be written ({error.strerror or error})", where=str(out), cure="name another folder"
        ) from None


def write_synced(path: Path, content: bytes) -> None:
    """Writes a file and waits until the disk has it."""
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Waits until the disk has the names in a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
