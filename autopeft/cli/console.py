"""What the verbs print: tables, JSON, lines of progress. Tables are for people, `--json` is for programs."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from autopeft.report.numbers import count, duration, percent
from autopeft.study.executors import base as executors
from autopeft.trial import TRAINING_LOSS, Trial, TrialStatus
from autopeft.untrusted import visible

WIDE = 200
"""Columns of a table that goes to a file or a pipe, where nothing shall be cut."""


def console(stderr: bool = False) -> Console:
    """Returns a console on the stream of the moment; as wide as the terminal, or `WIDE` where there is none."""
    made = Console(stderr=stderr, highlight=False, markup=False, soft_wrap=True)
    return made if made.is_terminal else Console(stderr=stderr, highlight=False, markup=False, width=WIDE)


def say(text: str, stderr: bool = False) -> None:
    """Prints a line; what a terminal would obey is shown instead.

    Where the reader of a pipe has had enough, such as `head`, nothing is printed and the command goes on.
    """
    stream = sys.stderr if stderr else sys.stdout
    try:
        typer.echo(visible(text), err=stderr)
        stream.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def print_json(value: Any) -> None:
    """Prints JSON with two spaces of indentation."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table; columns whose name ends with ">" are set to the right."""
    made = Table(
        title=visible(title) or None, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False, title_style="bold"
    )
    for name in columns:
        right = name.endswith(">")
        made.add_column(Text(visible(name.removesuffix(">"))), justify="right" if right else "left", no_wrap=right)
    for row in rows:
        made.add_row(*(Text(visible(cell)) for cell in row))
    console().print(made, soft_wrap=False)


def facts(title: str, pairs: Mapping[str, object]) -> None:
    """Prints names and values, one pair a line, values aligned."""
    width = max(len(name) for name in pairs)
    say(title)
    for name, value in pairs.items():
        first, *rest = str(value).splitlines() or [""]
        say(f"  {name:<{width}}  {first}")
        for line in rest:
            say(f"  {'':<{width}}  {line}")


def parameters(stored: float, total: float) -> str:
    """Returns a count and its share of the backbone.

    Example:
        >>> parameters(73728, 22713216)
        '73,728 (0.32 %)'
    """
    return f"{count(int(stored))} ({percent(100 * stored / total)})"


def label_of(trial: Trial) -> str:
    """Returns what a trial is: "search", the name of a baseline, or the trial a final one repeats."""
    note = trial.proposal.note
    if trial.proposal.purpose == "baseline":
        return f"baseline {note['name']}"
    if trial.proposal.purpose == "final":
        return f"final of {note['of']}"
    share = "" if trial.proposal.budget.full else f", {100 * trial.proposal.budget.share:g} %"
    return f"search{share}" if trial.proposal.parent is None else f"search{share}, goes on from {trial.proposal.parent}"


def trial_line(trial: Trial, total: float) -> str:
    """Returns the line of a finished trial: number, what it is, quality, parameters, seconds, state."""
    number = f"trial {trial.number:>4}  {label_of(trial):<30}"
    if trial.failure:
        return f"{number} {trial.status} ({trial.failure.kind}): {trial.failure.message}"
    quality = f"quality {trial.objectives['quality']:.4f}" if "quality" in trial.objectives else ""
    if not trial.proposal.budget.full and TRAINING_LOSS in trial.objectives:
        quality = f"loss    {trial.objectives[TRAINING_LOSS]:.4f}"
    stored = parameters(trial.objectives["parameters"], total) if "parameters" in trial.objectives else ""
    return f"{number} {quality}  parameters {stored:>20}  {trial.cost.seconds:6.1f} s  {trial.status}"


class Lines:
    """Prints one line per finished trial, and on a terminal a bar beneath that vanishes at the end.

    Args:
        asked: Trials that are to be run in all.
        total: Parameters of the backbone.
        workers: Trials at once, for the time left.
        quiet: Print nothing.
    """

    def __init__(self, asked: int, total: float, workers: int = 1, quiet: bool = False) -> None:
        self._asked, self._total, self._workers, self._quiet = asked, total, workers, quiet
        self._spent: list[float] = []
        self._began = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        on = sys.stdout.isatty() and not quiet
        self._bar = Progress(*columns, console=console(), transient=True, disable=not on, refresh_per_second=2)
        self._task = self._bar.add_task("trials", total=asked)

    @contextmanager
    def shown(self) -> Iterator[Lines]:
        """Shows the bar while the block runs."""
        with self._bar:
            yield self

    def __call__(self, event: object, trial: Trial) -> None:
        """Is told of an event; prints a line where the trial has ended."""
        if trial.status.final:
            self._spent.append(trial.cost.seconds)
            line = f"{trial_line(trial, self._total)}  left {duration(self.left())}"
        elif trial.status in (TrialStatus.QUEUED, TrialStatus.INTERRUPTED):
            line = f"trial {trial.number:>4}  {label_of(trial):<30} {trial.status}: {getattr(event, 'reason', '')}"
        elif isinstance(event, executors.Progress) and "goes on" in event.message:
            line = f"trial {trial.number:>4}  {label_of(trial):<30} {event.message}"
        else:
            return
        self._bar.update(self._task, completed=len(self._spent))
        if not self._quiet:
            self.say(line)

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        if self._bar.disable:
            say(line)
        else:
            self._bar.console.print(Text(visible(line)), soft_wrap=True)

    def left(self) -> float:
        """Returns an estimate of the seconds left: the pace so far, carried on."""
        done = len(self._spent)
        pace = (time.monotonic() - self._began) / done if done >= self._workers else max(self._spent, default=0.0)
        return pace * max(0, self._asked - done)
