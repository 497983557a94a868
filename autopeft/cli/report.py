"""`autopeft report`: the study as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autopeft.cli.arguments import Json, StudyFolder


def run(
    folder: StudyFolder,
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="Where to write it; STUDY/report.html by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write one HTML file that opens offline: front, baselines, verdict, what mattered, curves, failures, cost.

    With --json the same content is printed as JSON and no file is written.

    Example: autopeft report runs/reviews --out reviews.html
    """
    from autopeft.cli.console import print_json, say
    from autopeft.cli.outputs import writing
    from autopeft.errors import InputError
    from autopeft.report.html import write_report
    from autopeft.report.summary import report_json
    from autopeft.study.study import Study

    with Study.open(folder, readonly=True) as study:
        if as_json:
            print_json(report_json(study))
            return
        target = Path(out) if out is not None else study.path / "report.html"
        if target.is_dir():
            raise InputError("this is a folder", where=str(target), cure="name a file, such as report.html")
        with writing(target):
            write_report(study, target)
    say(f"report written: {target}")
