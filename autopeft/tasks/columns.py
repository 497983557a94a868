"""From the cells of a column to texts, class names and numbers, refusing what cannot be trained on. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from autopeft.errors import InputError
from autopeft.tasks.base import TaskKind
from autopeft.tasks.readers import Table

# Whole numbers are read as numbers, not classes, above this many values with fewer rows than that for each.
MANY_VALUES = 20
ROWS_A_VALUE = 10


def texts_of(table: Table, column: str) -> tuple[str, ...]:
    """Returns the texts of a column.

    Raises:
        InputError: Where cells are empty, are no text, or hold broken characters: how many, and where the first is.
    """
    cells = table.columns[column]
    _refuse_empty(table, column, [row for row, cell in enumerate(cells) if _is_empty(cell)], "text")
    for row, cell in enumerate(cells):
        if not isinstance(cell, str | int | float):
            what = f"column {column!r} holds a {type(cell).__name__}, not text"
            raise InputError(what, where=table.place(row), cure="name a column of plain text")
    texts = tuple(str(cell) for cell in cells)
    for row, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError:
            what = f"column {column!r} holds half of a character (a lone surrogate)"
            raise InputError(what, where=table.place(row), cure="write the file again in UTF-8") from None
    return texts


def _is_empty(cell: Any) -> bool:
    return (
        cell is None or (isinstance(cell, str) and not cell.strip()) or (isinstance(cell, float) and math.isnan(cell))
    )


def _refuse_empty(table: Table, column: str, empty: Sequence[int], content: str) -> None:
    n = len(table.columns[column])
    if not empty:
        return
    if len(empty) == n:
        what, cure = f"column {column!r} has no {content} in any of its {n} rows", "name another column"
    else:
        what = f"column {column!r} has no {content} in {len(empty)} of {n} rows ({len(empty) / n:.2%})"
        cure = "drop those rows or fill them in; the first is named"
    raise InputError(what, where=table.place(empty[0]), cure=cure)


def check_labels(table: Table, column: str) -> None:
    """Refuses labels that are missing, NaN or not plain values.

    Raises:
        InputError: How many, and where the first is.
    """
    cells = table.columns[column]
    empty = [row for row, cell in enumerate(cells) if _is_empty(cell) or (isinstance(cell, str) and _is_nan(cell))]
    _refuse_empty(table, column, empty, "label")
    for row, cell in enumerate(cells):
        if not isinstance(cell, str | int | float):
            what = f"label column {column!r} holds a {type(cell).__name__}"
            raise InputError(what, where=table.place(row), cure="use a class name or a number")
        if isinstance(cell, float) and math.isinf(cell):
            what = f"label column {column!r} holds an infinite number"
            raise InputError(what, where=table.place(row), cure="drop that row or mend it")


def _is_nan(cell: str) -> bool:
    return cell.strip().lower() == "nan"


def number(cell: Any) -> float | None:
    """Returns a cell as a finite number, or None where it is none. True and False are class names, not numbers."""
    if isinstance(cell, bool) or (isinstance(cell, str) and "_" in cell):
        return None
    try:
        value = float(cell)
    except (ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def kind_of(cells: Sequence[Any]) -> TaskKind:
    """Decides what labels are: the rule of `TaskSource.kind`.

    Example:
        >>> kind_of(["0", "1", "1"]), kind_of(["pos", "neg"]), kind_of([3.5, 4.0])
        ('classification', 'classification', 'regression')
    """
    values: set[float] = set()
    for cell in cells:
        value = number(cell)
        if value is None:
            return "classification"
        values.add(value)
    if any(value != int(value) for value in values):
        return "regression"
    many = len(values) > MANY_VALUES and len(cells) < ROWS_A_VALUE * len(values)
    return "regression" if many else "classification"


def class_name(cell: Any) -> str:
    """Returns the class a cell names; 1, 1.0 and "1" are one class.

    Example:
        >>> class_name(1.0), class_name(" spam "), class_name(True)
        ('1', 'spam', 'True')
    """
    if isinstance(cell, float) and cell == int(cell):
        return str(int(cell))
    return str(cell).strip()


def class_order(names: set[str]) -> tuple[str, ...]:
    """Returns class names in the order of their indices: by value where all are whole numbers, otherwise by name."""
    try:
        return tuple(sorted(names, key=int))
    except ValueError:
        return tuple(sorted(names))


def numbers_of(table: Table, column: str) -> list[float]:
    """Returns the numbers of a label column.

    Raises:
        InputError: At the first label that is not a finite number.
    """
    values = []
    for row, cell in enumerate(table.columns[column]):
        value = number(cell)
        if value is None:
            raise InputError(
                f"label {cell!r} in column {column!r} is not a finite number",
                where=table.place(row),
                cure="mend it, or set task.kind to classification",
            )
        values.append(value)
    return values
