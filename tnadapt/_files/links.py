"""The file of a chain: several adapters with their params, one after another, each with every check of a single one."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from tnadapt._errors import FormatError
from tnadapt._files.content import (
    EXTRA,
    Array,
    Checkpoint,
    Promise,
    check_shapes,
    checkpoint_of,
    content_of,
    promise_of,
)
from tnadapt._files.file import LINKS, check_draw, most_drawn, text_of, write
from tnadapt._files.limits import CHAINED, MOST_LINKS, keep, shorten
from tnadapt._files.plain import parse, take, typed
from tnadapt._files.tensors import Entry, open_tensors
from tnadapt._files.text import take_version
from tnadapt._language import Adapter, expect_path

__all__: list[str] = []

SEPARATOR = "/"  # between the number of a link and the name of a tensor


def save_links(path: str | os.PathLike[str], links: Sequence[tuple[Adapter, Mapping[str, npt.ArrayLike]]]) -> None:
    """Write adapters and their params to one file, completely or not at all, as `save` writes one.

    Raises FormatError for params that do not belong to their adapter, and for too many links.
    """
    expect_path(path, "save_chain", FormatError)
    keep("save_chain", "links", len(links), MOST_LINKS)
    keep("save_chain", "sites times factors and modes of all links", sum(_work(one) for one, _ in links), CHAINED)
    tensors: dict[str, Array] = {}
    texts = []
    for number, (adapter, params) in enumerate(links):
        held, data = content_of(adapter, params, {})
        tensors |= {f"{number}{SEPARATOR}{name}": value for name, value in held.items()}
        texts.append(data)
    write(Path(path), tensors, {LINKS: texts})


def read_links(path: str | os.PathLike[str], *, draw_limit: int | None = None) -> list[Checkpoint]:
    """Read and check a chain: its header, the text on every link, then all tensors. A plain file is one link.

    `draw_limit` is that of `read_checkpoint`, for all links together. Raises what `read_checkpoint` raises, and
    FormatError for a file with too many links, or with modules that were trained in full.
    """
    expect_path(path, "load_chain", FormatError)
    path = Path(path)
    with open_tensors(path, str(path)) as file:
        data = parse(text_of(path, file.metadata))
        version = take_version(str(path), data)
        take("file", {"library": data.pop("library", None)}, {"library": str})
        texts, parts = [data], {"": dict(file.entries)}
        if LINKS in data:
            texts = take("file", data, {LINKS: list})[LINKS]
            keep(path, "links", len(texts), MOST_LINKS)
            parts = _parts(path, file.entries, len(texts))
        promises = _promises(path, texts, version, parts.values())
        check_draw(path, [slot for one in promises for slot in one.drawn_slots], most_drawn(file, draw_limit))
        for promise, entries in zip(promises, parts.values(), strict=True):
            check_shapes(path, promise, entries)
        tensors = file.read()
    return [
        checkpoint_of(path, promise, {name: tensors[prefix + name] for name in entries})
        for promise, (prefix, entries) in zip(promises, parts.items(), strict=True)
    ]


def _promises(path: Path, texts: Sequence[Any], version: int, parts: Iterable[Mapping[str, Entry]]) -> list[Promise]:
    """Read the text on every link. Raises FormatError for one that does not fit its tensors, or for too much work."""
    promises: list[Promise] = []
    work = 0
    for text, entries in zip(texts, parts, strict=True):
        if trained := [name for name in entries if name.endswith(EXTRA)]:
            raise FormatError(
                f"{path}: expected a chain, whose links have factors alone, got {shorten(trained[0])}, of a module "
                "that was trained in full.\nRead the file of one adapter with tnadapt.load or read_checkpoint."
            )
        promises.append(promise_of(path, typed("link", text, dict), version, entries))
        work += _work(promises[-1].adapter)
        keep(path, "sites times factors and modes of all links", work, CHAINED)
    return promises


def _parts(path: Path, entries: Mapping[str, Entry], number: int) -> dict[str, dict[str, Entry]]:
    """Return the entries of each link under their own names, by the prefix that they have in the file."""
    parts: dict[str, dict[str, Entry]] = {f"{place}{SEPARATOR}": {} for place in range(number)}
    for name, entry in entries.items():
        head, separator, own = name.partition(SEPARATOR)
        if head + separator not in parts:
            raise FormatError(
                f"{path}: expected only tensors of its {number} links, got {shorten(name)}.\nSave the chain again."
            )
        parts[head + separator][own] = entry
    if not parts:
        raise FormatError(f"{path}: expected a chain of at least one link, got none.\nSave the chain again.")
    return parts


def _work(adapter: Adapter) -> int:
    """Return what `check_binding` counts for one adapter."""
    modes = {mode for factor in adapter.spec.factors.values() for mode in factor.modes or ()}
    return len(adapter.sites) * (len(adapter.spec.factors) + len(modes))
