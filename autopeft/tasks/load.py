"""From a task source to a task: read, check, draw what is missing. Torch-free."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from autopeft.errors import InputError
from autopeft.redaction import refuse_secrets
from autopeft.tasks import docstrings
from autopeft.tasks.base import Examples, Task, TaskKind, TaskSource
from autopeft.tasks.columns import check_labels, class_name, class_order, kind_of, number, numbers_of, texts_of
from autopeft.tasks.metrics import check_name, metric_for
from autopeft.tasks.readers import DATASET_PREFIX, Table, check_columns, dataset_splits, read
from autopeft.tasks.splits import HELD_OUT, Sizes, check_size, count_of, draw, duplicates

SPLITS = ("train", "validation", "selection", "test")
Rows = Mapping[str, Sequence[int]]


def load(
    train: str | Path,
    *,
    text: str,
    label: str,
    text_pair: str | None = None,
    validation: str | Path | None = None,
    selection: str | Path | None = None,
    test: str | Path | None = None,
    kind: Literal["auto", "classification", "regression"] = "auto",
    metric: str | None = None,
    train_size: int | None = None,
    validation_size: float = 0.2,
    selection_size: float = 0.1,
    test_size: float = 0.1,
    seed: int = 0,
    rows: Rows | None = None,
) -> Task:
    """Loads a classification or regression task from files; arguments as the attributes of `TaskSource`.

    Raises:
        InputError: Whatever is wrong with the data, before any model is loaded: what, where and the cure.
        MissingExtra: Where the format needs a package that is not installed.

    Example:
        >>> task = load("train.csv", text="review", label="stars")  # doctest: +SKIP
    """
    held_out = [None if name is None else str(name) for name in (validation, selection, test)]
    source = TaskSource(
        str(train),
        text,
        label,
        text_pair=text_pair,
        validation=held_out[0],
        selection=held_out[1],
        test=held_out[2],
        kind=kind,
        metric=metric,
        train_size=train_size,
        validation_size=validation_size,
        selection_size=selection_size,
        test_size=test_size,
        seed=seed,
    )
    return load_source(source, rows)


@dataclass(frozen=True)
class Rated:
    """The labels of all tables as numbers: class indices or values, and what they mean."""

    kind: TaskKind
    labels: tuple[str, ...]
    targets: Mapping[str, NDArray[Any]]


def load_source(source: TaskSource, rows: Rows | None = None) -> Task:
    """Loads the task a source describes. Cost: one pass over its files; about 2 s for "demo".

    `source.seed` decides which rows are drawn for the splits that have no file of their own. Row numbers count the
    rows of a file from 0, its header left out.

    Args:
        source: Files, columns, sizes.
        rows: Row numbers of every split from an earlier load, used instead of drawing. That the files are still the
            same shows in `Task.fingerprint`, which the caller compares.

    Raises:
        InputError: Whatever is wrong with the data: what, where and the cure.
        MissingExtra: Where the format needs a package that is not installed.
    """
    check_source(source)
    tables = _read_all(source)
    texts = {split: texts_of(table, source.text) for split, table in tables.items()}
    pairs = {split: texts_of(table, source.text_pair) for split, table in tables.items()} if source.text_pair else None
    rated = _rate(source, tables)
    metric = metric_for(source.metric, rated.kind, len(rated.labels))
    notes = _reading_notes(source, rated, tables["train"])
    if rows is None:
        keys = {
            split: list(zip(texts[split], pairs[split], strict=True) if pairs else texts[split]) for split in tables
        }
        rows, dropped = _draw(source, keys, rated)
        notes = (*notes, *dropped)
    splits = {}
    for split in SPLITS:
        origin = split if split in tables else "train"
        whole = Examples(texts[origin], pairs[origin] if pairs else None, rated.targets[origin])
        splits[split] = _take(whole, rows, split, tables[origin])
    return make_task(source, rated, metric, splits, rows, notes)


def check_source(source: TaskSource) -> None:
    """Refuses what can be refused before a file is opened: sizes, columns named twice, an unknown metric, passwords.

    Raises:
        InputError: Naming the key.
    """
    for split in SPLITS:
        refuse_secrets(getattr(source, split), f"task.{split}")
    check_name(source.metric)
    if source.kind not in ("auto", "classification", "regression"):
        cure = "use 'auto', 'classification' or 'regression'"
        raise InputError(f"unknown kind {source.kind!r}", where="task.kind", cure=cure)
    named = {"text": source.text, "text_pair": source.text_pair, "label": source.label}
    for first, second in (("text", "label"), ("text_pair", "label"), ("text", "text_pair")):
        if named[first] == named[second]:
            what = f"{first} and {second} name the same column {named[first]!r}"
            raise InputError(what, where=f"task.{second}", cure="name two columns")
    if source.train_size is not None:
        check_size(source.train_size, "train")
        if source.train_size < 1:
            cure = "use a whole number of examples, or leave it out for all"
            raise InputError(f"{source.train_size} is no number of examples", where="task.train_size", cure=cure)
    for split in HELD_OUT:
        check_size(getattr(source, f"{split}_size"), split)


def _read_all(source: TaskSource) -> dict[str, Table]:
    """Returns the table of train and of every split that has its own file."""
    if source.train == docstrings.NAME:
        return {"train": _demo_table(source)}
    columns = [name for name in (source.text, source.text_pair, source.label) if name is not None]
    files = {split: getattr(source, split) for split in SPLITS if getattr(source, split) is not None}
    if source.train.startswith(DATASET_PREFIX) and "#" not in source.train:
        # Official splits of the data set are kept, unless their labels are hidden.
        for split in ("validation", "test"):
            if split not in files and split in dataset_splits(source.train):
                files[split] = source.train
    tables = {}
    for split, name in files.items():
        table = read(name, columns, split)
        hidden = name == source.train and split != "train" and set(table.columns[source.label]) <= {None, -1}
        if hidden:
            continue
        if not len(table.columns[source.text]):
            raise InputError(f"the {split} split is empty", where=name, cure="add rows, or name another file")
        check_labels(table, source.label)
        tables[split] = table
    return tables


def _demo_table(source: TaskSource) -> Table:
    own = [split for split in HELD_OUT if getattr(source, split) is not None]
    if own:
        cure = "leave it out: the demo's splits are drawn"
        raise InputError("the demo has no files of its own", where=f"task.{own[0]}", cure=cure)
    table = docstrings.table()
    check_columns(table.name, [name for name in (source.text, source.text_pair, source.label) if name], table.columns)
    return table


def demo(
    train_size: int | None = 350,
    validation_size: float = 500,
    selection_size: float = 500,
    test_size: float = 500,
    seed: int = 0,
) -> Task:
    """Loads the built-in task: what a docstring documents, one of five. Needs no file and no network; about 2 s.

    `seed` decides the splits. The texts are those of the running Python, so `Task.fingerprint` differs between Python
    versions.

    Example:
        >>> len(demo(train_size=100).splits["train"])
        100
    """
    return load_source(
        TaskSource(
            docstrings.NAME,
            "text",
            "label",
            train_size=train_size,
            validation_size=validation_size,
            selection_size=selection_size,
            test_size=test_size,
            seed=seed,
        )
    )


def _rate(source: TaskSource, tables: Mapping[str, Table]) -> Rated:
    train = tables["train"].columns[source.label]
    kind = kind_of(train) if source.kind == "auto" else source.kind
    if kind == "regression":
        values = {split: np.array(numbers_of(table, source.label)) for split, table in tables.items()}
        if len(np.unique(values["train"])) == 1:
            _refuse_constant(source, str(train[0]))
        return Rated(kind, (), values)
    names = {split: [class_name(cell) for cell in table.columns[source.label]] for split, table in tables.items()}
    labels = class_order(set(names["train"]))
    if len(labels) == 1:
        _refuse_constant(source, labels[0])
    if len(labels) > max(2, len(train) // 2):
        raise InputError(
            f"label column {source.label!r} has {len(labels)} different labels in {len(train)} rows",
            where=source.train,
            cure="name the column of the classes, add rows, or set task.kind to regression if these are numbers",
        )
    index = {name: i for i, name in enumerate(labels)}
    for split, column in names.items():
        unseen = Counter(name for name in column if name not in index)
        if unseen:
            name, count = unseen.most_common(1)[0]
            more = f", and {len(unseen) - 1} more such labels" if len(unseen) > 1 else ""
            raise InputError(
                f"label {name!r} occurs {count} times in the {split} split and never in train{more}",
                where=tables[split].place(column.index(name)),
                cure="add training rows of that class, or drop those rows; known: " + ", ".join(labels[:12]),
            )
    targets = {split: np.array([index[name] for name in column], dtype=np.int64) for split, column in names.items()}
    return Rated(kind, labels, targets)


def _refuse_constant(source: TaskSource, value: str) -> None:
    raise InputError(
        f"label column {source.label!r} holds one value only, {value!r}",
        where=source.train,
        cure="there is nothing to learn from it: name another column, or add rows of another label",
    )


def _reading_notes(source: TaskSource, rated: Rated, train: Table) -> tuple[str, ...]:
    if source.kind != "auto" or number(train.columns[source.label][0]) is None or len(rated.labels) == 2:
        return ()
    if rated.kind == "regression":
        return (f"Labels in {source.label!r} are read as numbers; kind='classification' reads them as classes.",)
    read_as = f"Whole numbers in {source.label!r} are read as {len(rated.labels)} classes"
    return (f"{read_as}; kind='regression' reads them as numbers.",)


def _draw(
    source: TaskSource, keys: Mapping[str, Sequence[Any]], rated: Rated
) -> tuple[dict[str, tuple[int, ...]], tuple[str, ...]]:
    """Returns the rows of every split, and notes on the duplicates that were left out."""
    total = len(keys["train"])
    sizes = Sizes(
        {split: count_of(getattr(source, f"{split}_size"), total, split) for split in HELD_OUT if split not in keys},
        source.train_size,
    )
    kept = duplicates(keys, drawing=bool(sizes.held_out) or source.train_size is not None)
    notes = [
        f"{len(keys[split]) - len(rows)} of {len(keys[split])} rows of {split} are left out: the same example "
        f"stands earlier in the file or in a split opened later."
        for split, rows in kept.items()
        if len(rows) < len(keys[split])
    ]
    for split, rows in kept.items():
        if not len(rows):
            raise InputError(
                f"every row of the {split} split stands in another split too",
                where=getattr(source, split),
                cure="name another file, or leave it out to draw the split",
            )
    strata = rated.targets["train"] if rated.kind == "classification" else np.zeros(total, dtype=np.int64)
    _check_classes_left(rated, strata, kept["train"])
    if source.train == docstrings.NAME:
        order = docstrings.stable_order(keys["train"], source.seed)
    else:
        order = np.random.default_rng(source.seed).permutation(kept["train"])
    drawn = draw(order, strata, sizes, available=f"different examples in {source.train}")
    given = {split: tuple(int(row) for row in kept[split]) for split in kept if split != "train"}
    return {**drawn, **given}, tuple(notes)


def _check_classes_left(rated: Rated, strata: NDArray[np.int64], train: NDArray[np.int64]) -> None:
    lost = set(range(len(rated.labels))) - set(strata[train].tolist())
    if lost:
        raise InputError(
            f"label {rated.labels[min(lost)]!r} has no training example that is not also in another split",
            where="task.train",
            cure="add training rows of that class, or drop the copies",
        )


def _take(whole: Examples, rows: Rows, split: str, table: Table) -> Examples:
    picked = np.asarray(rows.get(split, ()), dtype=np.int64)
    if not len(picked):
        raise InputError(f"the stored rows hold no {split} split", where=table.name, cure="load without stored rows")
    if picked.min() < 0 or picked.max() >= len(whole):
        raise InputError(
            f"the {split} split was drawn from a file with more rows: row {picked.max()} of {len(whole)} is asked for",
            where=table.name,
            cure="put the file back as it was, or start a new study",
        )
    return whole.take(picked)


def make_task(
    source: TaskSource,
    rated: Rated,
    metric: str,
    splits: Mapping[str, Examples],
    rows: Rows,
    notes: tuple[str, ...],
) -> Task:
    """Puts a task together and fingerprints it. Cost: one hash over all texts."""
    digest = hashlib.sha256(repr((rated.kind, rated.labels)).encode())
    for split in SPLITS:
        examples = splits[split]
        digest.update(f"{split} {len(examples)}\n".encode())
        for part in (examples.texts, examples.pairs or ()):
            for text in part:
                raw = text.encode()
                digest.update(b"%d:" % len(raw) + raw)
        digest.update(np.ascontiguousarray(examples.targets).astype(examples.targets.dtype.newbyteorder("<")).tobytes())
    stored = {split: tuple(int(row) for row in rows[split]) for split in SPLITS}
    return Task(source, rated.kind, rated.labels, metric, dict(splits), stored, digest.hexdigest(), notes)
