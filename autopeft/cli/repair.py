"""`autopeft repair`: what is damaged in a study, and mending it. Imports no torch."""

from __future__ import annotations

from typing import Annotated

import typer

from autopeft.cli.arguments import Json, StudyFolder


def run(
    folder: StudyFolder,
    check: Annotated[
        bool,
        typer.Option("--check", help="Only look, also while the study runs; exit code 1 where something is wrong."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Check every record and file of a study against its checksum, and mend what is damaged; nothing is deleted.

    Rows are restored from trial folders, trial.json and study.json from rows, and a database that cannot be used is
    made anew from all that can be found in it. What is damaged for good goes to STUDY/quarantine with the reason.

    Example: autopeft repair runs/reviews --check
    """
    from pathlib import Path

    from autopeft.cli.console import print_json, say
    from autopeft.study import repair

    done = repair.check(Path(folder)) if check else repair.repair(Path(folder))
    if as_json:
        print_json(
            {
                "schema": 1,
                "study": folder,
                "check": check,
                "healthy": done.healthy,
                "findings": [vars(finding) for finding in done.findings],
                "trials": done.trials,
                "events": done.events,
                "folders": done.folders,
                "checkpoints": done.checkpoints,
                "kept": done.kept,
            }
        )
    else:
        for finding in done.findings:
            say(str(finding))
        verdict = "nothing is wrong" if done.healthy else f"{len(done.findings)} wrong" + ("" if check else ", mended")
        say(
            f"study {folder}: {verdict}; {done.trials} trials, {done.events} events, {done.folders} trial folders, "
            f"{done.checkpoints} checkpoints"
        )
    if check and not done.healthy:
        raise typer.Exit(1)
