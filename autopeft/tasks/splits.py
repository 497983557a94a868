"""Drawing the splits a data set does not bring: stratified, once, and never the same example in two. Torch-free."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autopeft.errors import InputError

# Drawn in this order, so that the test split stays where it is when the size of another changes.
HELD_OUT = ("test", "selection", "validation")


@dataclass(frozen=True)
class Sizes:
    """How many examples to draw.

    Attributes:
        held_out: Split name to number of examples, for the splits that are drawn; in the order of `HELD_OUT`.
        train: Number of training examples, or None for all that are left.
    """

    held_out: Mapping[str, int]
    train: int | None


def count_of(size: float, rows: int, split: str) -> int:
    """Turns a requested size into a number of examples.

    Args:
        size: A share of `rows` below 1, or a whole number of examples.
        rows: Rows of the file the split is drawn from.
        split: Name of the split, for messages.

    Raises:
        InputError: Where the size is no share and no whole number, or comes out as 0.

    Example:
        >>> count_of(0.2, 450, "validation"), count_of(100, 450, "validation")
        (90, 100)
    """
    check_size(size, split)
    count = round(size * rows) if size < 1 else int(size)
    if count == 0:
        what = f"the {split} split would be empty ({size} of {rows} rows)"
        raise InputError(what, where=f"task.{split}_size", cure="raise it, or add rows")
    return count


def check_size(size: float, split: str) -> None:
    """Refuses a size that is neither a share between 0 and 1 nor a whole number of examples.

    Raises:
        InputError: Naming the key.
    """
    if not (0 < size < 1 or (1 <= size < 2**53 and size == int(size))):
        cure = "use a share below 1 or a whole number of examples"
        raise InputError(f"{size} is no size", where=f"task.{split}_size", cure=cure)


def duplicates(keys: Mapping[str, Sequence[Hashable]], drawing: bool) -> dict[str, NDArray[np.int64]]:
    """Returns, for each given split, the rows that may stay.

    An example that stands in two splits stays in the one that is opened later (test, selection, validation, train in
    that order), so that published test splits keep their size. Copies inside a split stay, except in a train file that
    further splits are drawn from: there the first one stays.

    Args:
        keys: Split name to the identity of every row: (text, pair).
        drawing: Whether further splits are drawn from "train".
    """
    seen: set[Hashable] = set()
    kept: dict[str, NDArray[np.int64]] = {}
    for split in (*HELD_OUT, "train"):
        if split not in keys:
            continue
        if split == "train" and drawing:
            first = {key: row for row, key in reversed(list(enumerate(keys[split]))) if key not in seen}
            rows = sorted(first.values())
        else:
            rows = [row for row, key in enumerate(keys[split]) if key not in seen]
        seen.update(keys[split])
        kept[split] = np.asarray(rows, dtype=np.int64)
    return kept


def draw(
    order: NDArray[np.int64], strata: NDArray[np.int64], sizes: Sizes, available: str = "rows"
) -> dict[str, tuple[int, ...]]:
    """Draws "train" and the held-out splits from rows in a given order.

    In every stratum the held-out splits take rows from the front of `order`, in the order of `HELD_OUT`, and train
    from the end: a smaller train split is a subset of a larger one (up to rounding), and neither moves the other. One
    row of every stratum is set aside for train, so each class is trained on.

    Args:
        order: Shape (n,): the rows, shuffled; whoever shuffles owns the seed.
        strata: Shape (largest row + 1,): stratum of each row, from 0.
        sizes: What to draw.
        available: What the rows are, for messages.

    Returns:
        Split name to row numbers, ascending.

    Raises:
        InputError: Where more is asked for than there is, or train gets fewer rows than there are strata.

    Example:
        >>> drawn = draw(np.arange(8), np.array([0, 1] * 4), Sizes({"test": 2}, train=None))
        >>> drawn["test"], drawn["train"]
        ((0, 1), (2, 3, 4, 5, 6, 7))
    """
    groups = [order[strata[order] == k] for k in np.unique(strata[order])]
    asked = sum(sizes.held_out.values()) + (len(groups) if sizes.train is None else sizes.train)
    if asked > len(order):
        parts = ", ".join(f"{name} {n}" for name, n in sizes.held_out.items())
        train = "at least one training example a class" if sizes.train is None else f"train {sizes.train}"
        what = f"{f'{parts} and ' if parts else ''}{train} ask for {asked} examples; there are {len(order)} {available}"
        raise InputError(what, where="task.train", cure="lower a size")
    if sizes.train is not None and sizes.train < len(groups):
        what = f"{sizes.train} training examples are fewer than the {len(groups)} classes"
        raise InputError(what, where="task.train_size", cure=f"use {len(groups)} or more")
    taken = np.zeros(len(groups), dtype=np.int64)
    total = np.array([len(group) for group in groups], dtype=np.int64)
    result: dict[str, tuple[int, ...]] = {}
    for split, size in sizes.held_out.items():
        share = allocate(size, total, total - taken - 1)
        result[split] = _rows(group[t : t + s] for group, t, s in zip(groups, taken, share, strict=True))
        taken = taken + share
    left = total - taken
    share = left if sizes.train is None else _at_least_one(allocate(sizes.train, total, left))
    result["train"] = _rows(group[len(group) - s :] for group, s in zip(groups, share, strict=True))
    return result


def allocate(size: int, weights: NDArray[np.int64], most: NDArray[np.int64]) -> NDArray[np.int64]:
    """Divides `size` over strata in proportion to `weights`, by largest remainders, none above `most`.

    Args:
        size: What to divide; at most the sum of `most`.
        weights: Shape (strata,).
        most: Shape (strata,).

    Raises:
        InputError: Where the strata do not hold that many.

    Example:
        >>> allocate(5, np.array([60, 30, 10]), np.array([60, 30, 10])).tolist()
        [3, 2, 0]
    """
    if size > int(most.sum()):
        what = f"{size} examples cannot be drawn: one of each class is kept for training and {most.sum()} are left"
        raise InputError(what, where="task.train", cure="lower a size")
    exact = size * weights / max(int(weights.sum()), 1)
    # A share that is whole but for rounding counts as whole.
    share = np.minimum(np.floor(exact + 1e-9).astype(np.int64), most)
    while rest := size - int(share.sum()):
        open_strata = np.flatnonzero(share < most)
        by_remainder = open_strata[np.argsort((share - exact)[open_strata], kind="stable")]
        share[by_remainder[:rest]] += 1
    return share


def _at_least_one(share: NDArray[np.int64]) -> NDArray[np.int64]:
    """Moves examples from the largest strata to those that got none."""
    for k in np.flatnonzero(share == 0):
        share[np.argmax(share)] -= 1
        share[k] = 1
    return share


def _rows(parts: Iterable[NDArray[np.int64]]) -> tuple[int, ...]:
    return tuple(sorted(int(row) for part in parts for row in part))
