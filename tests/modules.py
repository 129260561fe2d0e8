"""Programs that are no package: their modules have plain names, which other programs have as well."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAMS = (ROOT / "docs" / "examples", ROOT / "benchmarks")


def forget() -> None:
    """Forget every imported module of a program, so that none is left beside newer ones that it does not know."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file is not None and any(folder in Path(file).parents for folder in PROGRAMS):
            del sys.modules[name]
