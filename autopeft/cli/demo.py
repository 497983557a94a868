"""`autopeft demo`: a whole search on data of this machine."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autopeft.cli.arguments import Json

if TYPE_CHECKING:
    from autopeft.demo import DemoResult


def run(
    out: Annotated[str, typer.Option(metavar="DIR", help="Where everything is written.")] = "demo-out",
    trials: Annotated[int, typer.Option(help="Search trials.", min=1)] = 24,
    workers: Annotated[int, typer.Option(help="Trials at once, one thread each.", min=1)] = 2,
    as_json: Json = False,
) -> None:
    """Run a real search on data that is on every machine with Python; under 5 minutes on 2 cores.

    The backbone is all-MiniLM-L6-v2; the texts are docstrings of the standard library, labelled by the kind of thing
    they document. Ends with the Pareto front, an HTML report and an adapter that was checked in a fresh process. The
    same command continues a demo that was stopped; on a finished one it shows the result.

    Example: autopeft demo --out demo-out
    """
    from autopeft import demo
    from autopeft.cli.console import Lines, say
    from autopeft.report.numbers import duration
    from autopeft.setting import describe_backbone

    folder, began = Path(out), time.monotonic()
    result = demo.finished(folder, trials)
    if result is not None:
        _show(result, f"the demo in {out} is finished already; this is its result", as_json)
        return
    shape = describe_backbone("demo").shape
    asked = trials + sum(map(len, demo.BASELINES.values())) + demo.NOISE_SEEDS
    lines = Lines(asked - _done(folder), shape.total_parameters, workers, quiet=as_json)
    try:
        with lines.shown():
            progress = (lambda line: None) if as_json else lines.say
            result = demo.run(folder, trials=trials, workers=workers, watch=lines, say=progress)
    except demo.DemoStopped as stopped:
        say(f"{stopped}", stderr=True)
        raise typer.Exit(stopped.report.exit_code) from None
    _show(result, f"finished in {duration(time.monotonic() - began)}", as_json)


def _done(folder: Path) -> int:
    """Returns how many trials an earlier run has finished."""
    from autopeft.study.store import Store
    from autopeft.study.study import Study

    if not Store.exists(folder / "study"):
        return 0
    with Study.open(folder / "study", readonly=True) as study:
        return sum(t.status.final for t in study.trials)


def _show(result: DemoResult, heading: str, as_json: bool) -> None:
    from autopeft.cli.console import print_json, say
    from autopeft.cli.tables import print_front
    from autopeft.report.summary import summarise
    from autopeft.study.study import Study

    if as_json:
        print_json({"schema": 1, **{k: str(v) if isinstance(v, Path) else v for k, v in vars(result).items()}})
        return
    with Study.open(result.study, readonly=True) as study:
        summary = summarise(study)
    say(f"\n{heading}\n")
    print_front(summary)
    say("")
    say(f"report:   {result.report}")
    say(f"adapter:  {result.adapter} (trial {result.chosen}); a fresh process gave the same label for each of "
        f"{result.texts} texts")  # fmt: skip
    say(f"predict:  autopeft predict {shlex.quote(str(result.adapter))} {shlex.quote(result.example)}")
    say(f"look on:  autopeft show {shlex.quote(str(result.study))} {result.chosen}")
