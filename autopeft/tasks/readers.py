"""Tables out of files: CSV, TSV, JSON Lines, Parquet, Hugging Face data sets; every fault has its place. Torch-free."""

from __future__ import annotations

import csv
import difflib
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autopeft.errors import InputError, MissingExtra, nearest
from autopeft.untrusted import is_file, is_folder

DATASET_PREFIX = "hf:"


@dataclass(frozen=True)
class Table:
    """The columns a task needs, in memory.

    Attributes:
        name: The file as the user wrote it, or "hf:NAME" with its split.
        columns: Column name to values, one a row; None where a JSON row lacks the key.
        lines: Line of every row in the file, from 1, or None where the format has no lines.
    """

    name: str
    columns: Mapping[str, Sequence[Any]]
    lines: Sequence[int] | None = None

    def place(self, row: int) -> str:
        """Returns where a row stands, for messages: "file.csv:17", or "file.parquet, row 16" (from 0)."""
        return f"{self.name}:{self.lines[row]}" if self.lines is not None else f"{self.name}, row {row}"


def read(name: str, columns: Sequence[str] | None, split: str = "train") -> Table:
    """Reads the named columns of a file or data set.

    Args:
        name: Path of a .csv, .tsv, .jsonl, .ndjson, .json or .parquet file, or "hf:NAME", "hf:OWNER/NAME/CONFIG",
            each with an optional "#SPLIT".
        columns: Columns to keep; all must exist. None keeps every column.
        split: Split of a Hugging Face data set that has no "#SPLIT".

    Raises:
        InputError: Missing file or column, text that is not UTF-8, a malformed line: with file and line.
        MissingExtra: Where Parquet or `datasets` is not installed.

    Example:
        >>> read("reviews.csv", ["review", "stars"]).columns["stars"]  # doctest: +SKIP
        ['5', '1']
    """
    if name.startswith(DATASET_PREFIX):
        return _read_dataset(name, columns, split)
    path = Path(name)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(READERS)
        raise InputError(f"unknown data format {path.suffix!r}", where=name, cure=f"use one of {known}, or hf:NAME")
    if not is_file(path):
        raise InputError("no such file", where=name, cure=_near_file(path))
    return reader(name, columns)


def _near_file(path: Path) -> str:
    if is_folder(path):
        return "name a file, not a folder"
    if not is_folder(path.parent):
        return f"the folder {str(path.parent)!r} does not exist either"
    names = sorted(p.name for p in path.parent.iterdir() if p.suffix.lower() in READERS)
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"data files in that folder: {', '.join(names[:8])}" if names else "that folder holds no data file"


def check_columns(name: str, wanted: Sequence[str], columns: Iterable[str]) -> None:
    """Refuses columns that a table does not have.

    Raises:
        InputError: With the nearest column.
    """
    known = list(columns)
    for column in wanted:
        if column not in known:
            cure = nearest(column, known)
            if len(known) == 1 and any(mark in known[0] for mark in ";\t"):
                cure = "the columns seem to be separated by ';' or a tab: save with commas, or name a tab file .tsv"
            raise InputError(f"no column {column!r}", where=name, cure=cure)


def _text(name: str) -> str:
    raw = Path(name).read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        what = f"byte 0x{raw[error.start]:02x} is not UTF-8"
        raise InputError(what, where=f"{name}:{line}", cure="save the file in UTF-8") from None


def _read_csv(name: str, columns: Sequence[str] | None) -> Table:
    return _table_of_records(name, columns, _records(name, _text(name), delimiter=",", strict=True))


def _read_tsv(name: str, columns: Sequence[str] | None) -> Table:
    # Tab-separated text has no quoting by convention (a lone " in a GLUE file would swallow lines); only where the
    # rows then come out ragged and reading with quotes mends it, the file was written with quotes.
    text = _text(name)
    try:
        return _table_of_records(name, columns, _records(name, text, delimiter="\t", quoting=csv.QUOTE_NONE))
    except InputError as plain:
        try:
            return _table_of_records(name, columns, _records(name, text, delimiter="\t", strict=True))
        except InputError:
            raise plain from None


def _records(name: str, text: str, **dialect: Any) -> list[tuple[int, list[str]]]:
    """Returns (line the record starts on, its fields), blank lines left out."""
    reader = csv.reader(io.StringIO(text, newline=""), **dialect)
    records, start = [], 1
    try:
        for fields in reader:
            if fields:
                records.append((start, fields))
            start = reader.line_num + 1
    except csv.Error as error:
        cure = "check the quotes from that line on: a quote inside a quoted field is written twice"
        raise InputError(f"malformed record ({error})", where=f"{name}:{start}", cure=cure) from None
    return records


def _table_of_records(name: str, columns: Sequence[str] | None, records: list[tuple[int, list[str]]]) -> Table:
    if not records:
        raise InputError("the file is empty", where=name, cure="its first line must name the columns")
    header = records[0][1]
    columns = header if columns is None else columns
    check_columns(name, columns, header)
    for column in columns:
        if header.count(column) > 1:
            raise InputError(f"two columns are called {column!r}", where=f"{name}:1", cure="rename one")
    for line, fields in records[1:]:
        if len(fields) != len(header):
            raise InputError(
                f"{len(fields)} fields where the header has {len(header)}",
                where=f"{name}:{line}",
                cure="quote fields that hold the separator, or mend that row",
            )
    picked = {column: header.index(column) for column in columns}
    rows = records[1:]
    return Table(
        name, {column: [fields[i] for _, fields in rows] for column, i in picked.items()}, [line for line, _ in rows]
    )


def _read_json(name: str, columns: Sequence[str] | None) -> Table:
    text = _text(name)
    objects: list[tuple[int, Any]] = []
    array = text.lstrip().startswith("[")  # one array instead of lines
    if array:
        objects = [(1, item) for item in _parse_json(name, text, 1)]
    else:
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                objects.append((number, _parse_json(name, line, number)))
    known: dict[str, None] = {}
    for number, item in objects:
        if not isinstance(item, dict):
            cure = 'each line must be an object like {"text": "...", "label": "..."}'
            raise InputError(f"a JSON {type(item).__name__}, not an object", where=f"{name}:{number}", cure=cure)
        known.update(dict.fromkeys(item))
    if not objects:
        raise InputError("the file is empty", where=name, cure="write one JSON object a line")
    columns = list(known) if columns is None else columns
    check_columns(name, columns, list(known))
    values = {column: [item.get(column) for _, item in objects] for column in columns}
    return Table(name, values, None if array else [number for number, _ in objects])


def _parse_json(name: str, text: str, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{name}:{line + error.lineno - 1}"
        cure = f"mend that line near column {error.colno}"
        raise InputError(f"malformed JSON ({error.msg})", where=where, cure=cure) from None
    except RecursionError:
        raise InputError("JSON nested too deeply", where=f"{name}:{line}", cure="write flat objects") from None


def _read_parquet(name: str, columns: Sequence[str] | None) -> Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("pyarrow", extra="datasets") from None
    try:
        present = list(pyarrow.parquet.read_schema(name).names)
        columns = present if columns is None else columns
        check_columns(name, columns, present)
        table = pyarrow.parquet.read_table(name, columns=list(columns))
        return Table(name, {column: table.column(column).to_pylist() for column in columns})
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:  # also text that is not UTF-8
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"not a readable Parquet file ({first})", where=name, cure="write it again") from None


def dataset_names(reference: str) -> tuple[list[tuple[str, str | None]], str | None]:
    """Returns the (data set, configuration) pairs a "hf:" reference can mean, likeliest first, and its split.

    Example:
        >>> dataset_names("hf:nyu-mll/glue/rte#validation")
        ([('nyu-mll/glue', 'rte')], 'validation')
        >>> dataset_names("hf:glue/rte")[0]
        [('glue/rte', None), ('glue', 'rte')]
    """
    name, _, split = reference.removeprefix(DATASET_PREFIX).partition("#")
    parts = name.split("/")
    if len(parts) == 1 or is_folder(name) or is_file(name):
        pairs: list[tuple[str, str | None]] = [(name, None)]
    elif len(parts) == 2:  # an owner's data set, or a data set without owner and its configuration
        pairs = [(name, None), (parts[0], parts[1])]
    else:
        pairs = [("/".join(parts[:2]), "/".join(parts[2:]))]
    return pairs, split or None


def _open_dataset(reference: str) -> tuple[Any, str | None]:
    try:
        import datasets
    except ImportError:
        raise MissingExtra("datasets", extra="datasets") from None
    pairs, split = dataset_names(reference)
    reasons = []
    for name, configuration in pairs:
        try:
            # No code of the data set is run: `datasets` from 4.0 on has no loading scripts, earlier ones refuse them.
            return datasets.load_dataset(name, configuration), split
        except Exception as error:  # the library raises many kinds; each means that this reading of the name failed
            reasons.append(str(error).splitlines()[0] if str(error) else type(error).__name__)
    what = f"the data set cannot be loaded ({reasons[0]})"
    raise InputError(what, where=reference, cure="check the name and the network, or export it to a .jsonl file")


def dataset_splits(reference: str) -> tuple[str, ...]:
    """Returns the names of the splits of a "hf:" data set; downloads it where it is not cached.

    Raises:
        InputError: Where it cannot be loaded.
        MissingExtra: Where `datasets` is not installed.
    """
    return tuple(_open_dataset(reference)[0])


def _read_dataset(reference: str, columns: Sequence[str] | None, split: str) -> Table:
    loaded, named = _open_dataset(reference)
    split = named or split
    if split not in loaded:
        raise InputError(f"no split {split!r}", where=reference, cure=nearest(split, list(loaded)))
    part = loaded[split]
    place = f"{reference.partition('#')[0]}#{split}"
    columns = list(part.column_names) if columns is None else columns
    check_columns(place, columns, list(part.column_names))
    values = {}
    for column in columns:
        names = getattr(part.features[column], "names", None)  # class labels are stored as numbers, -1 for hidden
        raw = list(part[column])
        values[column] = [names[v] if v is not None and v >= 0 else None for v in raw] if names else raw
    return Table(place, values)


READERS: dict[str, Callable[[str, Sequence[str] | None], Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
