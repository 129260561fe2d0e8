"""The command `tnadapt compress`: a trained adapter in a file becomes the closest one of another spec."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tnadapt._command.arguments import Rank, rank_of, spec_named, whole_number
from tnadapt._command.terminal import output, print_json, print_lines, table_of
from tnadapt._compression import SWEEPS, Compression, Sweep, compress, low_rank_updates
from tnadapt._errors import FormatError
from tnadapt._files import TENSORS, Checkpoint, read_checkpoint, read_peft, save
from tnadapt._language import Adapter, count

__all__: list[str] = []

RANK = 8


def add_words(parser: argparse.ArgumentParser) -> None:
    """The words that the command takes."""
    parser.add_argument("source", type=Path, metavar="DIR|FILE", help="a checkpoint of PEFT, or a file of ours")
    parser.add_argument(
        "--to", type=spec_named, required=True, metavar="FAMILY|FILE.py:NAME", help="the spec of the answer"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="written as .safetensors")
    parser.add_argument("--rank", type=rank_of, metavar="R", help=f"of every bond ({RANK}), or p=8,q=4")
    parser.add_argument("--seed", type=int, default=0, help="of frozen factors and of random starts")
    parser.add_argument("--sweeps", type=whole_number, default=SWEEPS, metavar="N", help=f"at most ({SWEEPS})")


def compress_checkpoint(options: argparse.Namespace) -> int:
    """Read, project, write, tell; nothing is written where anything fails."""
    path: Path = options.output
    if not path.parent.is_dir() or path.is_dir():
        what = "is a folder" if path.is_dir() else "there is no such folder"
        raise FormatError(f"{path}: names the file that is written.\nHowever, {what}.")
    rank: Rank | None = RANK if options.rank is None else options.rank
    source = _read(options.source)
    with _bar() as tell:
        found = compress(
            low_rank_updates(source.adapter, source.params),
            options.to,
            rank=rank if options.to.bonds else None,
            sizes=options.sizes,
            seed=options.seed,
            sweeps=options.sweeps,
            tell=tell,
        )
    stored = {name: value.astype(np.float32) for name, value in found.params.items()}
    before = _size_of(options.source)
    save(found.adapter, stored, path, extra=source.extra)
    sizes = before, path.stat().st_size
    if options.json:
        return print_json(_data(source.adapter, found, sizes))
    _print(source.adapter, found, sizes, path)
    return 0


def _print(given: Adapter, found: Compression, sizes: tuple[int, int], path: Path) -> None:
    console = output()
    rows = [("site", "shape", "relative error")]
    rows += [(site.path, " x ".join(map(str, site.shape)), f"{error:.3g}") for site, error in found.errors.items()]
    console.print(table_of(rows, left=2), "")
    before, after = count(given).trainable, count(found.adapter).trainable
    totals = [("", "before", "after", "part")]
    totals += [("spec", given.spec.name, found.adapter.spec.name, "")]
    totals += [("trained numbers", f"{before:,}", f"{after:,}", f"{after / before:.1%}")]
    totals += [("bytes", f"{sizes[0]:,}", f"{sizes[1]:,}", f"{sizes[1] / sizes[0]:.1%}")]
    console.print(table_of(totals), "")
    sweeps = max(len(errors) - 1 for errors in found.history.values())
    print_lines(console, f"relative error of all sites {found.error:.3g}, at most {sweeps} sweeps a group", str(path))


def _data(given: Adapter, found: Compression, sizes: tuple[int, int]) -> dict[str, Any]:
    return {
        "error": found.error,
        "errors": {site.path: error for site, error in found.errors.items()},
        "history": {name: list(errors) for name, errors in found.history.items()},
        "trainable": {"before": count(given).trainable, "after": count(found.adapter).trainable},
        "bytes": {"before": sizes[0], "after": sizes[1]},
    }


@contextmanager
def _bar() -> Iterator[Callable[[Sweep], None]]:
    """A bar over groups and their sweeps, on the error output."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading", total=None)

        def tell(sweep: Sweep) -> None:
            told = f"group {sweep.group + 1} of {sweep.groups}, sweep {sweep.number}, error {sweep.error:.3g}"
            done = sweep.group + sweep.number / sweep.sweeps
            progress.update(task, description=told, completed=done, total=sweep.groups)

        yield tell


def _read(source: Path) -> Checkpoint:
    return read_peft(source) if source.is_dir() else read_checkpoint(source)


def _size_of(source: Path) -> int:
    return (source / TENSORS if source.is_dir() else source).stat().st_size
