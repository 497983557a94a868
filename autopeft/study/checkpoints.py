"""Checkpoints of unfinished trials: what a trial needs to go on after its process died. Torch-free."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Set
from contextlib import suppress
from pathlib import Path
from typing import Any, final

from autopeft.errors import InputError, StudyError
from autopeft.study.folders import (
    Damage,
    checksum,
    digest,
    fill_folder,
    read_files,
    read_sealed,
    require_files,
    sync_folder,
)
from autopeft.study.quarantine import set_apart
from autopeft.trial import Trial

RECORD = "checkpoint.json"


@final
class Checkpoints:
    """The folders `checkpoints/0000`, `checkpoints/0001`, ... of a study directory, at most one for each trial.

    Each holds the files of a checkpoint and `checkpoint.json`: their digests, the trial's number and the checksum of
    its proposal. A checkpoint that cannot be used costs time and nothing else: its trial begins anew.

    Args:
        folder: The study directory.

    Attributes:
        damaged: Those that `read` found damaged and moved to `quarantine/`.

    Example:
        >>> checkpoints = Checkpoints(Path("runs/reviews"))  # doctest: +SKIP
        >>> checkpoints.write(trial, {"state.safetensors": b"..."})  # doctest: +SKIP
        >>> checkpoints.read(trial)["state.safetensors"]  # doctest: +SKIP
        b'...'
    """

    def __init__(self, folder: Path) -> None:
        self._study = folder
        self._root = folder / "checkpoints"
        self.damaged: list[Damage] = []

    def write(self, trial: Trial, files: Mapping[str, bytes]) -> None:
        """Replaces the checkpoint of a trial: on disk when this returns, the older one until then.

        Args:
            trial: The running trial.
            files: Relative names and contents.

        Raises:
            InputError: A name would leave the folder.
            StudyError: The disk refuses; the older checkpoint is kept.
        """
        try:
            require_files(files, RECORD)
        except ValueError as error:
            raise InputError(str(error), where=f"checkpoint of trial {trial.number}") from None
        final, draft, old = self._places(trial.number)
        try:
            self._root.mkdir(exist_ok=True)
            self._rescue(trial.number)
            shutil.rmtree(draft, ignore_errors=True)
            fill_folder(draft, files, RECORD, {"trial": trial.number, "proposal": checksum(trial.proposal.to_dict())})
            if final.exists():
                shutil.rmtree(old, ignore_errors=True)
                final.rename(old)
            draft.rename(final)
            sync_folder(self._root)
        except OSError as error:
            shutil.rmtree(draft, ignore_errors=True)  # it may be what fills the disk
            raise StudyError(
                f"the checkpoint of trial {trial.number} cannot be written ({error.strerror or error})",
                where=f"checkpoints/{final.name}",
                cure="free some space there; the trial goes on from the checkpoint before, or begins anew",
            ) from error
        shutil.rmtree(old, ignore_errors=True)

    def read(self, trial: Trial) -> dict[str, bytes]:
        """Returns the files of a trial's checkpoint.

        Returns:
            Names and contents; {} where there is none, where it is of another proposal, or where it is damaged, which
            `damaged` then tells.
        """
        final, _, _ = self._places(trial.number)
        with suppress(OSError):
            self._rescue(trial.number)
        if not final.exists():
            return {}
        try:
            number, proposal, files = self._checked(trial.number)
        except ValueError as error:
            self.damaged.append(Damage(f"checkpoints/{final.name}", f"{error}; trial {trial.number} begins anew"))
            with suppress(OSError):
                set_apart(self._study, final, str(error))
            return {}
        return files if (number, proposal) == (trial.number, checksum(trial.proposal.to_dict())) else {}

    def damage(self, number: int) -> str | None:
        """Returns what is wrong with the checkpoint of a trial; None where nothing is, or there is none."""
        if not self._places(number)[0].exists():
            return None
        try:
            self._checked(number)
        except ValueError as error:
            return str(error)
        return None

    def mark(self, number: int) -> str:
        """Returns a short text that changes with the checkpoint of a trial; "" where it has none."""
        try:
            return digest((self._root / f"{number:04d}" / RECORD).read_text(errors="replace"))[:16]
        except OSError:
            return ""

    def delete(self, number: int) -> None:
        """Removes the checkpoint of a trial, where it has one."""
        for place in self._places(number):
            shutil.rmtree(place, ignore_errors=True)

    def prune(self, keep: Set[int]) -> None:
        """Removes the checkpoints of all trials but those in `keep`."""
        for number in set(self.numbers()) - keep:
            self.delete(number)

    def numbers(self) -> Iterator[int]:
        """Yields the numbers of trials that have a checkpoint or the remains of one, ascending."""
        if self._root.is_dir():
            plain = {p.name.strip(".").removesuffix(".new").removesuffix(".old") for p in self._root.iterdir()}
            yield from sorted(int(name) for name in plain if name.isdecimal())

    def _places(self, number: int) -> tuple[Path, Path, Path]:
        """Returns where a checkpoint is, where it is written, and where the older one waits for its removal."""
        name = f"{number:04d}"
        return self._root / name, self._root / f".{name}.new", self._root / f".{name}.old"

    def _checked(self, number: int) -> tuple[Any, Any, dict[str, bytes]]:
        """Returns whose checkpoint it is, of which proposal, and its files; raises ValueError where it is damaged."""
        place = self._places(number)[0]
        content = read_sealed(place / RECORD)
        try:
            of, proposal, digests = content["trial"], content["proposal"], dict(content["files"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"is not a checkpoint ({error!r})") from None
        return of, proposal, read_files(place, digests, RECORD)

    def _rescue(self, number: int) -> None:
        """Ends a `write` that was killed between its two renamings; the new one was complete by then."""
        final, draft, old = self._places(number)
        if not final.exists() and old.exists():
            (draft if draft.exists() else old).rename(final)
