"""Archives of a folder: unpacked with care, since a stranger may have made them; packed the same each time. Torch-free.

Only plain files and folders come out, under names that stay inside, within limits on bytes, members, names and depth.
"""

from __future__ import annotations

import gzip
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, final

from autopeft.errors import AutoPeftError, InputError

SUFFIXES: Final = (".tar", ".tar.gz", ".tgz", ".zip")
_CHUNK: Final = 1 << 16
_HEADER: Final = 1 << 20
"""Most bytes of one tar header, its extensions included, or of what stands around the names of a zip file."""
_ENTRY: Final = 1 << 10
"""Most bytes a zip file may spend on average to list one member."""
_BLOCK: Final = 512


@dataclass(frozen=True)
class Limits:
    """How much an archive may hold.

    Attributes:
        bytes: All files together, unpacked; the archive file itself, too.
        members: Files and folders.
        name: Length of one path, in bytes of UTF-8.
        depth: Parts of one path.
    """

    bytes: int = 4 << 30
    members: int = 1000
    name: int = 200
    depth: int = 8


LIMITS: Final = Limits()


def is_archive(path: str | Path) -> bool:
    """Says whether a path has the suffix of an archive; nothing is opened.

    Example:
        >>> is_archive("reviews.tar.gz"), is_archive("reviews")
        (True, False)
    """
    return str(path).lower().endswith(SUFFIXES)


def unpack(archive: str | Path, folder: str | Path, limits: Limits = LIMITS) -> Path:
    """Unpacks an archive into a new folder and returns the folder; after a refusal nothing is left of it.

    Files get the permissions of new files, the folder those of a private one; what the archive says of them is ignored.

    Args:
        archive: A .tar, .tar.gz, .tgz or .zip file; whoever made it may be hostile.
        folder: Where to; it must not exist, or be empty.
        limits: How much to accept.

    Raises:
        InputError: A path that leaves the folder, a link, a device, a member named twice, a limit that is exceeded, or
            a file that is damaged or no archive.

    Example:
        >>> unpack("reviews.tar.gz", "adapters/reviews")  # doctest: +SKIP
    """
    source, target = Path(archive), Path(folder)
    if not is_archive(source):
        raise InputError("the name is not that of an archive", where=str(source), cure=f"use {', '.join(SUFFIXES)}")
    try:
        with source.open("rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InputError("this is no plain file", where=str(source))
            if status.st_size > limits.bytes:
                raise _refused(f"the archive is larger than {limits.bytes:,} bytes")
            target.parent.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
            try:
                (_unzip if source.name.lower().endswith(".zip") else _untar)(stream, source.name, draft, limits)
                draft.replace(target)  # an empty folder gives way, any other does not
            except BaseException:
                shutil.rmtree(draft, ignore_errors=True)
                raise
    except AutoPeftError as refusal:
        cure = refusal.cure or "do not trust it"
        raise InputError(refusal.what, where=refusal.where or str(source), cure=cure) from None
    except Exception as error:  # the parsers of the standard library raise many kinds on damaged input
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(f"it cannot be unpacked ({reason})", where=str(source), cure="get it again") from None
    return target


@contextmanager
def unpacked(archive: str | Path, limits: Limits = LIMITS) -> Iterator[Path]:
    """Unpacks into a temporary folder for the duration of a block; yields it, or the only folder at its top.

    Raises:
        InputError: As for `unpack`.

    Example:
        >>> with unpacked("reviews.tar.gz") as folder:  # doctest: +SKIP
        ...     adapter = load(folder)
    """
    with tempfile.TemporaryDirectory(prefix="autopeft-") as place:
        top = unpack(archive, Path(place) / "unpacked", limits)
        inside = list(top.iterdir())
        yield inside[0] if len(inside) == 1 and inside[0].is_dir() else top


def pack(folder: str | Path, archive: str | Path) -> Path:
    """Packs the files of a folder; equal files give equal bytes, whoever owns them and whenever they were written.

    Args:
        folder: The folder; its plain files go in under their relative names.
        archive: File to write, its format by its suffix; an older one is replaced at once.

    Raises:
        InputError: The folder holds a link or a device, nothing at all, or the archive cannot be written.

    Example:
        >>> pack("adapters/reviews", "reviews.tar.gz")  # doctest: +SKIP
    """
    source, target = Path(folder), Path(archive)
    if not is_archive(target):
        raise InputError("the name is not that of an archive", where=str(target), cure=f"use {', '.join(SUFFIXES)}")
    files = {}
    for path in sorted(source.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise InputError("only plain files can be packed", where=str(path), cure="take it out")
        if path.is_file():
            files[path.relative_to(source).as_posix()] = path
    if not files:
        raise InputError("there is nothing to pack", where=str(source), cure="name a folder with files")
    draft = target.with_name(f".{target.name}.writing")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as stream:
            _write_archive(stream, target.name.lower(), files)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(target)
    except OSError as error:
        draft.unlink(missing_ok=True)
        what = f"the archive cannot be written ({error.strerror or error})"
        raise InputError(what, where=str(target), cure="name another place") from None
    return target


def _write_archive(stream: IO[bytes], name: str, files: Mapping[str, Path]) -> None:
    if name.endswith(".zip"):
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as target:
            for inner, path in sorted(files.items()):
                info = zipfile.ZipInfo(inner, (1980, 1, 1, 0, 0, 0))
                info.create_system, info.external_attr = 3, 0o100644 << 16  # Unix, a plain file
                info.compress_type = zipfile.ZIP_DEFLATED
                with path.open("rb") as content, target.open(info, "w") as member:
                    shutil.copyfileobj(content, member, _CHUNK)
    elif name.endswith(".tar"):
        _write_tar(stream, files)
    else:
        with gzip.GzipFile(filename="", mode="wb", fileobj=stream, mtime=0) as compressed:
            _write_tar(compressed, files)


def _write_tar(stream: Any, files: Mapping[str, Path]) -> None:
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as target:
        for inner, path in sorted(files.items()):
            member = tarfile.TarInfo(inner)  # times and owners are zero
            member.size, member.mode = path.stat().st_size, 0o644
            with path.open("rb") as content:
                target.addfile(member, content)


# -- reading -----------------------------------------------------------------------------------------------------------


@final
class _Bounded:
    """A stream that refuses to go beyond a position, and to read more of a header than allowed.

    The parsers of the standard library read what a header declares into memory at once; `left` bounds that.
    """

    def __init__(self, stream: Any, end: int) -> None:
        self._stream, self._end = stream, end
        self.left: int | None = None

    def read(self, size: int = -1) -> bytes:
        if self.left is None:
            found: bytes = self._stream.read(size)
        else:
            found = self._stream.read(size if 0 <= size <= self.left else self.left + 1)
            self.left -= len(found)
            if self.left < 0:
                raise _refused(f"a header takes more than {_HEADER:,} bytes, or there are too many members")
        if self._stream.tell() > self._end:
            raise _refused("it unpacks to more than is allowed")
        return found

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_SET and position > self._end:
            raise _refused("it unpacks to more than is allowed")
        return int(self._stream.seek(position, whence))

    def tell(self) -> int:
        return int(self._stream.tell())

    def seekable(self) -> bool:
        return True


@final
class _Draft:
    """The folder that is being filled, and what is left of the limits."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self._folder, self._limits = folder, limits
        self._bytes, self._members = limits.bytes, limits.members

    def path(self, name: str) -> Path:
        """Returns where a member goes; raises InputError where its name is not one that stays inside."""
        self._members -= 1
        if self._members < 0:
            raise _refused(f"it has more than {self._limits.members:,} members")
        return self._folder.joinpath(*checked_parts(name, self._limits))

    def folder(self, name: str) -> None:
        """Makes a folder."""
        self.path(name).mkdir(parents=True, exist_ok=True)

    def file(self, name: str, size: int, read: Callable[[int], bytes]) -> None:
        """Writes a plain file of the stated size; an existing one is never replaced."""
        path = self.path(name)
        self._bytes -= size
        if self._bytes < 0:
            raise _refused(f"it unpacks to more than {self._limits.bytes:,} bytes")
        if path.exists():
            raise _refused("a member is there twice", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as target:
            while size > 0:
                block = read(min(size, _CHUNK))
                if not block:
                    raise _refused("it is cut short", name)
                target.write(block)
                size -= len(block)


def checked_parts(name: str, limits: Limits = LIMITS) -> tuple[str, ...]:
    """Returns the parts of a member's path; raises InputError where the path could leave a folder or is too long.

    Example:
        >>> checked_parts("./trials/0001/trial.json")
        ('trials', '0001', 'trial.json')
    """
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        raise _refused("the name of a member is not UTF-8", ascii(name)) from None
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith(("/", "\\")) or ".." in parts or "\\" in name or name[1:2] == ":":
        raise _refused("the path of a member leads out of the folder", ascii(name))
    if not parts or not name.isprintable():
        raise _refused("the name of a member is not a name", ascii(name))
    if length > limits.name or len(parts) > limits.depth:
        raise _refused(
            f"the path of a member is longer than {limits.name} bytes or {limits.depth} parts", ascii(name)[:80]
        )
    return tuple(parts)


def _untar(stream: IO[bytes], name: str, folder: Path, limits: Limits) -> None:
    raw: Any = stream if name.lower().endswith(".tar") else gzip.GzipFile(fileobj=stream)
    bounded = _Bounded(raw, limits.bytes + limits.members * 2 * _BLOCK + 2 * _HEADER)
    draft = _Draft(folder, limits)
    bounded.left = _HEADER
    with tarfile.open(fileobj=bounded, mode="r:") as source:  # type: ignore[call-overload]
        while True:
            bounded.left = _HEADER
            member = source.next()
            if member is None:
                break
            checked_parts(member.name, limits)  # tells more than the filter
            plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE) and member.sparse is None
            if not plain:
                raise _refused("a member is a link, a device or something else than a plain file", ascii(member.name))
            member = tarfile.data_filter(member, str(folder))
            bounded.left = None
            content = source.extractfile(member)
            if content is None:
                draft.folder(member.name)
            else:
                with content:
                    draft.file(member.name, member.size, content.read)
        _require_end(bounded, source.offset)


def _require_end(stream: _Bounded, offset: int) -> None:
    """Refuses an archive whose end mark is missing: tarfile takes a damaged header for the end."""
    stream.left = None
    stream.seek(offset)
    rest = stream.read(_HEADER + 1)  # to the end of the file: a gzip stream is checked there
    if len(rest) < _BLOCK or len(rest) > _HEADER or rest.strip(b"\0"):
        raise _refused("it is damaged or cut short")


def _unzip(stream: IO[bytes], _: str, folder: Path, limits: Limits) -> None:
    bounded = _Bounded(stream, limits.bytes + _HEADER)
    bounded.left = _HEADER + limits.members * _ENTRY
    draft = _Draft(folder, limits)
    with zipfile.ZipFile(bounded) as source:
        bounded.left = None
        for info in source.infolist():
            name, kind = info.orig_filename, stat.S_IFMT(info.external_attr >> 16)
            checked_parts(name, limits)
            if kind not in (0, stat.S_IFDIR if info.is_dir() else stat.S_IFREG):
                raise _refused("a member is a link, a device or something else than a plain file", ascii(name))
            if info.flag_bits & 0x1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise _refused("a member is encrypted or compressed in an unusual way", ascii(name))
            if info.is_dir():
                draft.folder(name)
                continue
            with source.open(info) as content:
                draft.file(name, info.file_size, content.read)
                content.read(1)  # at its end the checksum is compared


def _refused(what: str, where: str | None = None) -> InputError:
    return InputError(f"{what} (member {where})" if where else what)
