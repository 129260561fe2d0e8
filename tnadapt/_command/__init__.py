"""The command line `tnadapt`."""

from tnadapt._command.main import main

__all__ = ["main"]
