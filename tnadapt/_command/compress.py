"""The command `tnadapt compress`: find the adapter of another spec that is closest to a trained one, and save it."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from tnadapt._command.arguments import Rank
from tnadapt._command.options import RANK
from tnadapt._command.progress import Line
from tnadapt._command.terminal import output, print_json, print_lines, print_table
from tnadapt._compression import Compression, Sweep, compress, low_rank_updates
from tnadapt._files import TENSORS, Checkpoint, check_target, read_checkpoint, read_peft, save
from tnadapt._language import Adapter, count

__all__: list[str] = []


def compress_checkpoint(options: argparse.Namespace) -> int:
    """Read an adapter, compress it, write the result and print a summary. Write nothing if any step fails."""
    path: Path = options.output
    check_target(path)
    rank: Rank | None = options.rank
    if rank is None and options.to.free_bonds:
        rank = RANK
    source = _read(options.source)
    with Line("reading", bar=True) as line:

        def tell(sweep: Sweep) -> None:
            text = f"group {sweep.group + 1} of {sweep.groups}, sweep {sweep.number}, error {sweep.error:.3g}"
            line.advance(text, completed=sweep.group + sweep.number / sweep.sweeps, total=sweep.groups)

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
    print_table(console, rows, left=2)
    print_lines(console, "")
    before, after = count(given).trainable, count(found.adapter).trainable
    totals = [("", "before", "after", "ratio")]
    totals += [("spec", given.spec.name, found.adapter.spec.name, "")]
    totals += [("trainable entries", f"{before:,}", f"{after:,}", f"{after / before:.1%}")]
    totals += [("bytes", f"{sizes[0]:,}", f"{sizes[1]:,}", f"{sizes[1] / sizes[0]:.1%}")]
    print_table(console, totals)
    print_lines(console, "")
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


def _read(source: Path) -> Checkpoint:
    return read_peft(source) if source.is_dir() else read_checkpoint(source)


def _size_of(source: Path) -> int:
    return (source / TENSORS if source.is_dir() else source).stat().st_size
