"""The command-line program `tnadapt`."""

from tnadapt._command.main import main

__all__ = ["main"]
