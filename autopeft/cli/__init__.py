"""The command line: one thin file per verb. Importing it loads none of the packages that take long."""

from autopeft.cli.app import app, main

__all__ = ["app", "main"]
