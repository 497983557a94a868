"""The application: its verbs, and how errors end it. Imports no torch."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from autopeft.cli import (
    demo,
    doctor,
    export,
    init,
    pareto,
    plan,
    predict,
    repair,
    report,
    search,
    show,
    status,
    train,
    validate,
)
from autopeft.errors import AutoPeftError
from autopeft.untrusted import visible
from autopeft.version import __version__

TRACEBACK = "AUTOPEFT_TRACEBACK"

EPILOG = (
    "Begin with: autopeft init train.csv, then autopeft search train.yaml. "
    "Exit codes: 0 done, 1 the search failed, 2 refused input, 130 stopped by Ctrl-C, 143 by SIGTERM."
)


class Verbs(TyperGroup):
    """Ends every verb the same way: an error of ours is one message on stderr and its exit code, no traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except AutoPeftError as error:
            if os.environ.get(TRACEBACK, "") not in ("", "0"):
                raise
            typer.echo(f"error: {visible(str(error))}", err=True)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            typer.echo("stopped; the same command goes on", err=True)
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # The reader of a pipe, such as `head`, had enough; nothing more can be said to it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None


app = typer.Typer(
    name="autopeft",
    cls=Verbs,
    help="Search the Pareto front of parameter-efficient fine-tuning configurations for a model, data and a budget.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"autopeft {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[  # noqa: ARG001 - handled by its callback
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help=f"Show where an error was raised (also {TRACEBACK}=1).")
    ] = False,
) -> None:
    """Handles what stands before the verb."""
    if traceback:
        os.environ[TRACEBACK] = "1"


def flowing(text: str) -> str:
    r"""Returns a docstring with one line per paragraph, which the terminal then wraps.

    Example:
        >>> flowing("One\n    two.\n\n    Three.")
        'One two.\n\nThree.'
    """
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


VERBS = (init, validate, plan, search, status, pareto, show, train, predict, export, report, repair, doctor, demo)
for _module in VERBS:
    app.command(_module.__name__.rpartition(".")[2], help=flowing(_module.run.__doc__ or ""))(_module.run)


def main() -> None:
    """Runs the command line; the entry point of `autopeft`."""
    # The driver's own linear algebra is small, and one thread makes its sums the same on every machine. Workers get
    # their threads from the study. It has to be set before numpy is loaded.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    app()
