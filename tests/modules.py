"""Programs that are no package: their modules have plain names, which other programs have as well."""

import os
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PROGRAMS = (f"{ROOT / 'docs' / 'examples'}{os.sep}", f"{ROOT / 'benchmarks'}{os.sep}")


@contextmanager
def example(name: str) -> Iterator[dict[str, Any]]:
    """Give the names of a program of docs/examples, and forget its modules at the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PROGRAMS[0])
        yield runpy.run_path(f"{PROGRAMS[0]}{name}")
    forget()


def forget() -> None:
    """Forget every imported module of a program, so that none is left beside newer ones that it does not know."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and file.startswith(
            PROGRAMS
        ):  # there are thousands: to make a Path of each takes long
            del sys.modules[name]
