"""Records of runs: one JSON file each, written whole or not at all, and read with the versions they were made with."""

import json
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["Key", "Record", "RecordError", "read", "read_all", "replacing", "versions", "write"]

FORMAT = 1
PACKAGES = ("tnadapt", "torch", "transformers", "peft", "numpy")


class RecordError(Exception):
    """A record that cannot be read, cannot be written, or was made with other versions."""


@dataclass(frozen=True)
class Key:
    """What makes a run the one it is. `phase` is "search" or "final"; only the latter reads the test split."""

    task: str
    method: str
    rate: float
    seed: int
    phase: str

    @property
    def file(self) -> str:
        """The name of the record's file."""
        method = self.method.replace(" ", "_")
        return f"{self.task}--{method}--{self.rate:.3g}--seed{self.seed}--{self.phase}.json"


@dataclass(frozen=True)
class Record:
    """One run. Scores are between 0 and 1; `loss` is that of the validation split; `losses` are means over steps.

    `diverged` says that the loss was no number or ended far above its start. `forgetting` has the loss on a fixed text
    before and after, where the task has one. `bytes` are those of the adapter's file, `memory` the largest resident
    size of the process in MB.
    """

    key: Key
    steps: int
    numbers: int
    bytes: int
    seconds: float
    memory: float
    score: float
    loss: float
    diverged: bool
    losses: tuple[float, ...]
    test: float | None = None
    test_size: int = 0
    forgetting: tuple[float, float] | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT


def versions() -> dict[str, str]:
    """Return the versions that a run depends on."""
    found = {name: metadata.version(name) for name in PACKAGES}
    return found | {"python": ".".join(platform.python_version_tuple()[:2])}


def write(folder: Path, record: Record) -> Path:
    """Write a record, and rename it into place when it is whole. Raises RecordError if that fails."""
    path = folder / record.key.file
    text = json.dumps(asdict(record)) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as draft:
            draft.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RecordError(f"{path}: expected a place to write a record, got {error.strerror}") from error
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside one, and rename it into place when all is written: programs may run at the same time."""
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".draft")
    os.close(handle)
    draft = Path(name)
    try:
        yield draft
        draft.chmod(0o644)  # mkstemp makes it private
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def read(path: Path) -> Record:
    """Read a record. Raises RecordError for a file that is none."""
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if data.get("format") != FORMAT:
            raise RecordError(f"{path}: expected a record of format {FORMAT}, got {data.get('format')!r}")
        key = Key(**data.pop("key"))
        losses, forgetting = tuple(data.pop("losses")), data.pop("forgetting")
        return Record(key=key, losses=losses, forgetting=forgetting and tuple(forgetting), **data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path}: expected a record, got something else: {error}") from error


def read_all(folder: Path, *, made_with: Mapping[str, str] | None = None) -> list[Record]:
    """Read all records of a folder, sorted by file. Raises RecordError for a file that is none, and for mixed versions.

    All must be made with the versions `made_with`; None takes any, if all have the same.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        found.append(read(path))
        if path.name != found[-1].key.file:
            raise RecordError(f"{path}: expected the name {found[-1].key.file}, which its run has; rename or remove it")
    wanted = made_with if made_with is not None else (found[0].versions if found else {})
    for record in found:
        if dict(record.versions) != dict(wanted):
            differ = {name: (wanted.get(name), record.versions.get(name)) for name in {*wanted, *record.versions}}
            text = ", ".join(f"{name} {one} and {other}" for name, (one, other) in differ.items() if one != other)
            raise RecordError(
                f"{folder / record.key.file}: expected records of one version, got {text}; "
                "keep them in another folder, with --results"
            )
    return found
