"""The command `tnadapt compress`: find the adapter of another spec that is closest to a trained one, and save it."""

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
    """Add the arguments of the command to its parser."""
    parser.add_argument("source", type=Path, metavar="DIR|FILE", help="a PEFT checkpoint, or a tnadapt file")
    parser.add_argument(
        "--to", type=spec_named, required=True, metavar="FAMILY|FILE.py:NAME", help="the spec of the new adapter"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="safetensors file to write")
    parser.add_argument("--rank", type=rank_of, metavar="R", help=f"rank of every bond, or p=8,q=4 (default {RANK})")
    parser.add_argument("--seed", type=int, default=0, help="seed of the frozen factors and of random starting values")
    parser.add_argument(
        "--sweeps", type=whole_number, default=SWEEPS, metavar="N", help=f"most sweeps (default {SWEEPS})"
    )


def compress_checkpoint(options: argparse.Namespace) -> int:
    """Read an adapter, compress it, write the result and print a summary. Write nothing if any step fails."""
    path: Path = options.output
    if not path.parent.is_dir() or path.is_dir():
        what, todo = "a folder", "Name a file in it."
        if not path.is_dir():
            what, todo = "a file in a folder that does not exist", f"Create the folder {path.parent} first."
        raise FormatError(f"{path}: expected the path of the file to write, got {what}.\n{todo}")
    rank: Rank | None = options.rank
    if rank is None and options.to.free_bonds:
        rank = RANK
    source = _read(options.source)
    with _bar() as tell:
        found = compress(
            low_rank_updates(source.adapter, source.params),
            options.to,
            rank=rank,
            sizes=options.sizes,
            alpha=options.alpha,
            scale=options.scale,
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
    totals = [("", "before", "after", "ratio")]
    totals += [("spec", given.spec.name, found.adapter.spec.name, "")]
    totals += [("trainable entries", f"{before:,}", f"{after:,}", f"{after / before:.1%}")]
    totals += [("bytes", f"{sizes[0]:,}", f"{sizes[1]:,}", f"{sizes[1] / sizes[0]:.1%}")]
    console.print(table_of(totals), "")
    sweeps = max(len(errors) - 1 for errors in found.history.values())
    print_lines(console, f"total relative error {found.error:.3g}, at most {sweeps} sweeps per group", str(path))


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
    """Show a progress bar over the groups and their sweeps, on standard error."""
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
