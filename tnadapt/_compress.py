"""The command `tnadapt compress`: a trained adapter in a file becomes the closest one of another spec."""

import argparse
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from safetensors import SafetensorError
from safetensors.numpy import load_file

from tnadapt._arguments import Rank, rank_of, spec_named, whole_number
from tnadapt._count import count
from tnadapt._errors import FormatError
from tnadapt._format import Checkpoint, read, save
from tnadapt._project import SWEEPS, Projection, Sweep, project
from tnadapt._site import Site
from tnadapt._spec import Adapter
from tnadapt._terminal import output, print_json, print_lines, table_of
from tnadapt._updates import low_rank
from tnadapt.families import lora

__all__: list[str] = []

RANK = 8
CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
KEY = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])\.weight")
BLOCK = re.compile(r"(?:.*\.)?(\d+)\.(.+)")


def add_words(parser: argparse.ArgumentParser) -> None:
    """The words that the command takes."""
    parser.add_argument("source", type=Path, metavar="DIR|FILE", help="a PEFT LoRA checkpoint, or a file of ours")
    parser.add_argument(
        "--to", type=spec_named, required=True, metavar="FAMILY|FILE.py:NAME", help="the spec of the answer"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="written as .safetensors")
    parser.add_argument("--rank", type=rank_of, metavar="R", help=f"of every bond ({RANK}), or p=8,q=4")
    parser.add_argument("--seed", type=int, default=0, help="of frozen factors and of random starts")
    parser.add_argument("--sweeps", type=whole_number, default=SWEEPS, metavar="N", help=f"at most ({SWEEPS})")


def compress(options: argparse.Namespace) -> int:
    """Read, project, write, tell; nothing is written where anything fails."""
    path: Path = options.output
    if not path.parent.is_dir() or path.is_dir():
        what = "is a folder" if path.is_dir() else "there is no such folder"
        raise FormatError(f"{path}: names the file that is written.\nHowever, {what}.")
    rank: Rank | None = RANK if options.rank is None else options.rank
    source = _read(options.source)
    with _bar() as tell:
        found = project(
            low_rank(source.adapter, source.params),
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


def _print(given: Adapter, found: Projection, sizes: tuple[int, int], path: Path) -> None:
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
    print_lines(console, f"relative error of all sites {found.error:.3g}, after {sweeps} sweeps at most", str(path))


def _data(given: Adapter, found: Projection, sizes: tuple[int, int]) -> dict[str, Any]:
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
    return read_lora(source) if source.is_dir() else read(source)


def _size_of(source: Path) -> int:
    return (source / WEIGHTS if source.is_dir() else source).stat().st_size


def read_lora(folder: str | os.PathLike[str]) -> Checkpoint:
    """A LoRA checkpoint of PEFT, of one rank and alpha, as an adapter of ours. Loading runs no code.

    Raises FormatError for what is none or has an option that changes what the factors mean.
    """
    path = Path(folder)
    if not (path / WEIGHTS).is_file():
        pickle = f"{PICKLE} is a pickle, which may run code" if (path / PICKLE).exists() else "there is none"
        raise FormatError(f"{path}: a checkpoint holds {WEIGHTS}.\nHowever, {pickle}.\nSave it as safetensors.")
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(path / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise FormatError(f"{path}: not a whole checkpoint: {error}") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise FormatError(f"{path}: only LoRA checkpoints are read.")
    special = ("use_dora", "lora_bias", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "modules_to_save")
    if odd := [word for word in special if config.get(word)]:
        raise FormatError(f"{path}: a plain LoRA is read.\nHowever, {odd[0]} is {config[odd[0]]!r}.")
    modules: dict[str, dict[str, Any]] = {}
    for name, value in tensors.items():
        parts = KEY.fullmatch(name)
        if parts is None or value.ndim != 2:  # noqa: PLR2004  (axes)
            raise FormatError(f"{path}: {name!r} is no factor of a LoRA on a linear layer.")
        modules.setdefault(parts[1], {})[parts[2]] = value
    ranks = {value["A"].shape[0] for value in modules.values() if value.keys() == {"A", "B"}}
    if len(ranks) != 1 or any(len(value) == 1 or value["B"].shape[1] not in ranks for value in modules.values()):
        raise FormatError(f"{path}: every module must have two factors of one rank.")
    spec = lora(alpha=config.get("lora_alpha", math.nan), rank_stabilized=bool(config.get("use_rslora")))
    sites = {name: _site(name, value["B"].shape[0], value["A"].shape[1]) for name, value in modules.items()}
    adapter = spec.bind(sites.values(), rank=ranks.pop())
    return Checkpoint(adapter, dict(_params(adapter, modules, sites.values())), {})


def _site(path: str, out: int, inner: int) -> Site:
    block = BLOCK.fullmatch(path)
    return Site(path, (out, inner), {"layer": int(block[1]), "kind": block[2]} if block else {})


def _params(adapter: Adapter, modules: Mapping[str, Any], sites: Iterable[Site]) -> Iterator[tuple[str, Any]]:
    for site in sites:
        group, _ = adapter.find(site)
        for factor, value in modules[site.path].items():
            yield adapter.slot_name(group, factor), value.astype(np.float64)
