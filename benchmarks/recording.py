"""Records of runs of the benchmarks: one JSON file each, with the machine and the versions that it was made with."""

import json
import os
import platform
import runpy
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from leaderboard.records import RecordError, replacing

__all__ = [
    "FOLDER",
    "Record",
    "RecordError",
    "Table",
    "commit",
    "machine",
    "read",
    "read_all",
    "table",
    "version",
    "versions",
    "write",
]

FORMAT = 1
FOLDER = Path(__file__).parents[1] / "results" / "speed"
PACKAGES = ("torch", "jax", "peft", "transformers", "numpy")
CODE = ("tnadapt", "tnadapt_torch", "tnadapt_jax", "benchmarks")  # not results/, where the records are written
UNITS = ("us", "ms", "s", "seconds", "KB", "MB", "GB", "bytes", "GFLOP")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """Rows with the same columns. `units` has that of each column of numbers; "" is a number of things."""

    title: str
    rows: Sequence[Row]
    units: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """One run of a program. `label` tells runs on one device apart, such as one before a change.

    `load` is the number of processes that were running when it began: with any, times are those of a busy machine,
    unless the `clock` is "cpu" and not "wall".
    """

    program: str
    device: str
    machine: str
    cores: int
    threads: int
    dtype: str
    date: str
    rounds: int
    clock: str
    load: float
    commit: str
    versions: Mapping[str, str]
    tables: Sequence[Table]
    label: str = ""
    format: int = FORMAT

    @property
    def file(self) -> str:
        """The name of the record's file."""
        return "-".join(word for word in (self.program, self.device, self.label) if word) + ".json"


def unit_of(column: str) -> str:
    """Return the unit of a column from its name: "ms" of "tnadapt ms", "ratio" of "/ PEFT" and "ratio"."""
    if "/" in column or column == "ratio":
        return "ratio"
    last = column.rpartition(" ")[2]
    return last if last in UNITS else ""


def table(rows: Sequence[Row], title: str = "") -> Table:
    """Make a table whose columns have the units that their names say."""
    numbers = [name for name in rows[0] if any(isinstance(row[name], int | float) for row in rows)]
    return Table(title, [dict(row) for row in rows], {name: unit_of(name) for name in numbers})


def version() -> str:
    """Return the version of this checkout, which need not be installed."""
    return str(runpy.run_path(str(Path(__file__).parents[1] / "tnadapt" / "_version.py"))["__version__"])


def versions() -> dict[str, str]:
    """Return the versions that a run depends on, of the packages that are installed."""
    found = {"tnadapt": version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found | {"python": platform.python_version()}


def commit() -> str:
    """Return the commit of this checkout, with a mark if its code differs from it, or "" outside a checkout."""
    root = Path(__file__).parents[1]
    words = ["git", "describe", "--always", "--exclude=*"], ["git", "status", "--porcelain", "--", *CODE]
    try:
        name, changes = (
            subprocess.run(one, cwd=root, capture_output=True, text=True, check=False).stdout.strip() for one in words
        )
    except OSError:
        return ""
    return f"{name}-dirty" if name and changes else name


def machine(device: str) -> str:
    """Return the name of the processor in words."""
    if device.startswith("cuda"):
        import torch  # noqa: PLC0415 - the programs for JAX need none

        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write(folder: Path, record: Record) -> Path:
    """Write a record whole, in place of an older one. Raises RecordError if that fails."""
    path = folder / record.file
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as draft:
            draft.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise RecordError(f"{path}: expected a place to write a record, got {error.strerror}") from error
    return path


def read(path: Path) -> Record:
    """Read a record. Raises RecordError for a file that is none."""
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if data.get("format") != FORMAT:
            raise RecordError(f"{path}: expected a record of format {FORMAT}, got {data.get('format')!r}")
        tables = tuple(Table(**one) for one in data.pop("tables"))
        return Record(tables=tables, **data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path}: expected a record, got something else: {error}") from error


def read_all(folder: Path) -> list[Record]:
    """Read all records of a folder, sorted by file. Raises RecordError for a file that is none, or of a wrong name."""
    found = []
    for path in sorted(folder.glob("*.json")):
        found.append(read(path))
        if path.name != found[-1].file:
            raise RecordError(f"{path}: expected the name {found[-1].file}, which its run has; rename or remove it")
    return found
