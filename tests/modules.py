"""Programs that are no package: their modules have plain names, which other programs have as well."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAMS = (f"{ROOT / 'docs' / 'examples'}{os.sep}", f"{ROOT / 'benchmarks'}{os.sep}")


def forget() -> None:
    """Forget every imported module of a program, so that none is left beside newer ones that it does not know."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and file.startswith(
            PROGRAMS
        ):  # there are thousands: to make a Path of each takes long
            del sys.modules[name]
