"""Finds the records in the ruins of a database: every text that stands beside its own SHA-256. Torch-free.

Neither the header nor the tree of the database is trusted. Each page of the database and of its log is read as a leaf
of a table (https://www.sqlite.org/fileformat2.html#b_tree_pages); where that leads nowhere, the bytes before everything
that looks like a checksum are tried. A record says all there is to its row, so that its place does not matter.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from autopeft.study.rows import DEFINED, StudyEvent, event_from, trial_from
from autopeft.study.wal import Frame, frames_of, header_is_sound
from autopeft.trial import Trial

_CHECKSUM = re.compile(rb"[0-9a-f]{64}")
_SIZES = frozenset(1 << k for k in range(9, 17))
PAGE = 4096
_LEAF = 13
_INTEGERS = (0, 1, 2, 3, 4, 6, 8, 8, 0, 0)  # bytes of the serial types that are no texts


@dataclass(frozen=True)
class Salvage:
    """What was found, the latest version of each.

    Attributes:
        definition: Of the study, or None.
        trials: By number.
        events: By id.
        quarantined: Rows of `quarantine`, by id.
    """

    definition: Mapping[str, Any] | None = None
    trials: Mapping[int, Trial] = field(default_factory=dict)
    events: Mapping[int, StudyEvent] = field(default_factory=dict)
    quarantined: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)


def salvage(database: Path) -> Salvage:
    """Reads what can be read of a database of any format and its log; O(size of both), changes nothing.

    Args:
        database: Its path; nothing is found where there is none.

    Raises:
        OSError: The disk refuses to be read.
    """
    log = database.with_name(f"{database.name}-wal")
    return _sorted(sealed_records(*(path.read_bytes() if path.is_file() else b"" for path in (database, log))))


def lost_with(log: bytes, page_size: int, last_event: int) -> bool:
    """Says whether a damaged frame hides transactions of a log that were committed once.

    The last frame of a log is often not sound after a power cut. It counts where what follows was committed, or where
    it holds what no transaction had before.

    Args:
        log: Content of the -wal file.
        page_size: Of the database.
        last_event: Id of the last event that SQLite finds.
    """
    frames = frames_of(log, page_size)
    if not header_is_sound(log):
        return bool(frames)
    broken = next((k for k, frame in enumerate(frames) if not frame.sound), len(frames))
    if any(frame.commits and frame.current for frame in frames[broken + 1 :]):
        return True
    texts = (text for frame in frames[broken:] for text in _raw(frame.content))
    return any(_latest(content) > last_event for content in _parsed(texts))


def page_size_of(database: bytes) -> int:
    """Returns the size of the pages of a database, the usual one where its header does not tell."""
    size = int.from_bytes(database[16:18], "big") if len(database) >= 18 else 0
    size = 65536 if size == 1 else size
    return size if size in _SIZES else PAGE


def sealed_records(database: bytes, log: bytes) -> Iterator[dict[str, Any]]:
    """Yields the records that match their checksum: those of the database first, then those of its log."""
    size = page_size_of(database)
    pages = {k + 1: database[k * size : (k + 1) * size] for k in range(-(-len(database) // size))}
    frames: list[Frame] = sorted(frames_of(log, size), key=lambda frame: frame.current)
    latest = dict(pages)
    for frame in frames:
        latest[frame.page] = frame.content
    yield from _parsed(text for number, page in pages.items() for text in _texts(number, page, (pages, latest)))
    begin = 0
    while begin < len(frames):
        # A long record goes on in pages of its own transaction, wherever they stand in it.
        end = next((k for k in range(begin, len(frames)) if frames[k].commits), len(frames) - 1) + 1
        then = {**pages, **{f.page: f.content for f in frames[:end] if f.current == frames[begin].current}}
        for frame in frames[begin:end]:
            yield from _parsed(_texts(frame.page, frame.content, (then, latest)))
        begin = end


def _texts(number: int, page: bytes, images: Sequence[Mapping[int, bytes]]) -> Iterator[bytes]:
    """Yields the texts of a page that are followed by their checksum."""
    found = list(_cells(page, 100 if number == 1 else 0, images))
    yield from found
    if len(found) < len(_CHECKSUM.findall(page)):
        yield from _raw(page)


def _cells(page: bytes, start: int, images: Sequence[Mapping[int, bytes]]) -> Iterator[bytes]:
    if len(page) < start + 8 or page[start] != _LEAF:
        return
    (count,) = struct.unpack_from(">H", page, start + 3)
    for k in range(min(count, (len(page) - start - 8) // 2)):
        (place,) = struct.unpack_from(">H", page, start + 8 + 2 * k)
        for image in images:
            text = _cell(page, place, image)
            if text is not None:
                yield text
                break


def _cell(page: bytes, place: int, image: Mapping[int, bytes]) -> bytes | None:
    """Returns the text of a cell whose next value is its checksum, or None."""
    try:
        length, place = _varint(page, place)
        _, place = _varint(page, place)
        payload = _payload(page, place, length, image)
        width, at = _varint(payload, 0)
        kinds = []
        while at < width:
            kind, at = _varint(payload, at)
            kinds.append(kind)
    except (IndexError, struct.error):
        return None
    values = []
    for kind in kinds:
        size = _INTEGERS[kind] if kind < len(_INTEGERS) else (kind - 12) // 2
        values.append(payload[at : at + size])
        at += size
    return next((text for text, stated in pairwise(values) if _matches(text, stated)), None)


def _payload(page: bytes, place: int, length: int, image: Mapping[int, bytes]) -> bytes:
    usable = len(page)
    if length <= usable - 35:
        return page[place : place + length]
    least = (usable - 12) * 32 // 255 - 23
    here = least + (length - least) % (usable - 4)
    here = here if here <= usable - 35 else least
    (follows,) = struct.unpack_from(">I", page, place + here)
    parts, seen = [page[place : place + here]], here
    for _ in range(len(image)):
        if seen >= length or follows not in image:
            break
        parts.append(image[follows][4:])
        seen += usable - 4
        (follows,) = struct.unpack_from(">I", image[follows])
    return b"".join(parts)[:length]


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for k in range(8):
        byte = data[place + k]
        value = (value << 7) | (byte & 0x7F)
        if byte < 0x80:
            return value, place + k + 1
    return (value << 8) | data[place + 8], place + 9


def _raw(page: bytes) -> Iterator[bytes]:
    """Yields the texts before checksums, without regard to the order of a page."""
    starts = [match.start() for match in re.finditer(rb'\{"', page)]
    for match in _CHECKSUM.finditer(page):
        if page[match.start() - 1 : match.start()] != b"}":
            continue
        for start in reversed([s for s in starts if s < match.start()]):
            text = page[start : match.start()]
            if _matches(text, match[0]):
                yield text
                break


def _matches(text: bytes, stated: bytes) -> bool:
    return len(stated) == 64 and hashlib.sha256(text).hexdigest().encode() == stated


def _parsed(texts: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    for text in texts:
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(content, dict):
            yield content


def _latest(content: Mapping[str, Any]) -> int:
    """Returns the event a record is as late as."""
    late = content.get("revision", content.get("id") if "kind" in content else 0)
    return late if isinstance(late, int) else 0


def _sorted(records: Iterator[dict[str, Any]]) -> Salvage:
    """Tells records apart by what they say, and keeps the latest of each."""
    kept: dict[tuple[str, int], tuple[int, dict[str, Any]]] = {}
    old_events: dict[str, dict[str, Any]] = {}
    for content in records:
        key = _key(content)
        if key == ("old event", 0):
            old_events.setdefault(json.dumps(content, sort_keys=True), content)
        elif key not in kept or kept[key][0] <= _latest(content):
            kept[key] = (_latest(content), content)

    def of(kind: str) -> dict[int, dict[str, Any]]:
        return {number: kept[name, number][1] for name, number in sorted(kept) if name == kind}

    events = of("event")
    if not events:  # of format 1: they have no ids, but happened one after the other
        ordered = sorted(old_events.values(), key=lambda content: float(content["time"]))
        events = dict(enumerate(ordered, start=1))
    defined = of("definition").get(0) or {}
    value = defined.get("value") if "key" in defined else of("old definition").get(0)
    return Salvage(
        value if isinstance(value, dict) else None,
        {number: trial for number, content in of("trial").items() if (trial := _try(trial_from, content)) is not None},
        {number: event for number, content in events.items() if (event := _try(event_from, content)) is not None},
        of("quarantined"),
    )


def _key(content: Mapping[str, Any]) -> tuple[str, int]:
    number, key = content.get("number"), content.get("id")
    if "proposal" in content and isinstance(number, int):
        return "trial", number
    if "kind" in content and isinstance(content.get("time"), int | float):
        return ("event", key) if isinstance(key, int) else ("old event", 0)
    if "reason" in content and "row" in content and isinstance(key, int):
        return "quarantined", key
    return ("definition", 0) if content.get("key") == DEFINED else ("old definition", 0)


def _try(parse: Any, content: Mapping[str, Any]) -> Any:
    try:
        return parse(content)
    except ValueError:
        return None
