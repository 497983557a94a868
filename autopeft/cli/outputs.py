"""Places a user names for results: whether they can be written, tried before the work is done. Imports no torch."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from autopeft.errors import InputError


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turns what the system says against writing to a place into an InputError.

    Example:
        >>> with writing(Path("a.html")):  # doctest: +SKIP
        ...     Path("a.html").write_text("")
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"this cannot be written ({reason})", where=str(place), cure="name another place") from None


def check_folder(folder: Path, place: Path | None = None) -> None:
    """Writes a file in a folder, made for the purpose where it is missing, and takes both away again.

    Permissions alone do not tell: some file systems refuse what the permissions allow.

    Args:
        folder: Where something is to be written.
        place: What the message names; the folder itself where None.

    Raises:
        InputError: Nothing can be written there.
    """
    made: list[Path] = []
    try:
        with writing(place or folder):
            for part in (*reversed(folder.parents), folder):
                if not part.is_dir():
                    part.mkdir()
                    made.append(part)
            with tempfile.TemporaryFile(dir=folder):
                pass
    finally:
        for part in reversed(made):
            with suppress(OSError):  # somebody else has put something there
                part.rmdir()
