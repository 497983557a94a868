"""`autopeft export`: a trial's adapter as a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autopeft.cli.arguments import Json, StudyFolder, Which

FORMATS = ("composite",)


def run(
    folder: StudyFolder,
    which: Which,
    out: Annotated[str, typer.Option(metavar="DIR", help="Where to write it.", show_default=False)],
    to: Annotated[str, typer.Option(help=f"Format: {', '.join(FORMATS)}.")] = "composite",
    as_json: Json = False,
) -> None:
    """Write the adapter a trial has trained as a checkpoint, without training anything.

    composite: one PEFT checkpoint for any configuration; after `import autopeft.peft`, peft's own
    `PeftModel.from_pretrained(backbone, DIR)` loads it.

    Example: autopeft export runs/reviews knee --to composite --out adapters/knee
    """
    from autopeft.cli.choose import choose
    from autopeft.cli.console import print_json, say
    from autopeft.cli.train import ADAPTER, check_out, save
    from autopeft.errors import InputError, nearest
    from autopeft.study.study import Study

    if to not in FORMATS:
        raise InputError(f"unknown format '{to}'", where="--to", cure=nearest(to, FORMATS))
    check_out(Path(out))
    with Study.open(folder, readonly=True) as study:
        trial = choose(study, which)
        source = study.folder(trial.number)
        if not (source / ADAPTER[0]).is_file():
            what = f"trial {trial.number} ({trial.status}) has no adapter"
            raise InputError(what, where=str(source), cure="name a completed trial, or train it: autopeft train")
        save(source, Path(out))
    if as_json:
        print_json({"schema": 1, "trial": trial.number, "format": to, "out": out, "files": sorted(ADAPTER)})
    else:
        say(f"trial {trial.number} written to {out}: {', '.join(ADAPTER)}")
        say("load it with peft: import autopeft.peft; peft.PeftModel.from_pretrained(backbone, folder)")
