"""What a part measures, piece by piece: each is one row, made by processes of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from benchmarks.speed.record import OutOfTimeError, Record

Stages = Iterator[Sequence["Piece"]]
"""Pieces of a part in stages: the next is asked for when all rows of the one before are there."""


@dataclass(frozen=True)
class Piece:
    """One row to be measured.

    Attributes:
        part: Part of the benchmark.
        id: What is measured.
        loop: "lean", "plain", "tuned" or another name of what does the work.
        run: Measures it and returns the fields beside the key.
        seed: Seed of data, proposals and training.
        repeat: Number of the process where several do the same.
        own: Whether the row is one of this package: measured again once its source differs.
    """

    part: str
    id: str
    loop: str
    run: Callable[[], dict[str, Any]] = field(compare=False)
    seed: int = 0
    repeat: int = 0
    own: bool = False

    def key(self, engine: str) -> Mapping[str, Any]:
        """Returns the fields that name the row."""
        names = ("part", "id", "loop", "seed", "repeat")
        return {**{n: getattr(self, n) for n in names}, **({"engine": engine} if self.own else {})}


def perform(record: Record, stages: Iterable[Sequence[Piece]], workers: int) -> None:
    """Measures the pieces that have no row yet, `workers` at a time.

    Raises:
        OutOfTimeError: The time of the record is over; what was begun has ended, and is recorded.
    """
    lock = threading.Lock()

    def measure(piece: Piece) -> None:
        record.require_time()
        row = piece.run()
        with lock:
            record.add({**piece.key(record.engine), **row})

    for stage in stages:
        missing = [piece for piece in stage if record.find(piece.key(record.engine)) is None]
        with ThreadPoolExecutor(workers) as pool:
            futures = [pool.submit(measure, piece) for piece in missing]
            errors = [error for error in (future.exception() for future in futures) if error is not None]
        for error in sorted(errors, key=lambda e: isinstance(e, OutOfTimeError)):
            raise error
