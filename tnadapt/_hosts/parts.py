"""Split one weight into several sites (experts, fused projections, blocks, tasks), and make sites from shapes alone."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, product
from typing import Any

import numpy as np
import numpy.typing as npt

from tnadapt._errors import SiteError
from tnadapt._hosts.paths import match
from tnadapt._hosts.site import EXPERT, TASK, Block, Coordinate, Site, check_size, divisors
from tnadapt._signature import answers, expect_names, mistake, told

__all__ = ["grid", "split_sites"]

Fused = Sequence[str | None] | Mapping[str, int]
Numbers = npt.NDArray[np.integer[Any]]

ROUNDS = 4  # of cuts along every axis; a grid needs one, and projections whose blocks differ need two
MOST_COMPARED = 4_096  # blocks whose 8 million pairs take 0.1 s


@answers(SiteError)
def grid(
    *,
    layers: int,
    kinds: Mapping[str, tuple[int, ...]],
    blocks: Mapping[str, tuple[int, ...]] | None = None,
    fused: Mapping[str, Fused] | None = None,
    experts: Collection[str] = (),
    tasks: Collection[str] = (),
) -> tuple[Site, ...]:
    """Make the sites of a model without the model: in each layer, one weight of each kind.

    Args:
        layers: the number of layers.
        kinds: name of a weight -> its shape (out, in).
        blocks: as for `split_sites`.
        fused: as for `split_sites`.
        experts: as for `split_sites`.
        tasks: as for `split_sites`.

    Raises:
        SiteError: a number or a shape is invalid, or `split_sites` raises it.
    """
    check_size("grid: layers", layers)
    if not isinstance(kinds, Mapping):
        raise mistake(SiteError, "grid", "kinds by name", told(kinds), 'Write kinds={"q_proj": (out, in)}.')
    whole = (
        Site(f"layers.{layer}.{kind}", shape, {"layer": layer, "kind": kind})
        for layer in range(layers)
        for kind, shape in kinds.items()
    )
    return split_sites(whole, blocks=blocks, fused=fused, experts=experts, tasks=tasks)


@answers(SiteError)
def split_sites(
    sites: Iterable[Site],
    *,
    blocks: Mapping[str, tuple[int, ...]] | None = None,
    fused: Mapping[str, Fused] | None = None,
    experts: Collection[str] = (),
    tasks: Collection[str] = (),
) -> tuple[Site, ...]:
    """Split weights into several sites each. Weights that no name matches stay as they are.

    A name is the whole path of a weight, or a suffix of it after a dot. Experts are split first, then fused
    projections, blocks and tasks. The path of a part is that of the whole followed by the part's name in brackets.

    Args:
        sites: the weights.
        experts: names of weights (experts, out, in). Each expert becomes a site, numbered by the coordinate `expert`.
        fused: name of a weight that stacks several projections along its out axis -> the names of the projections, if
            they have equal numbers of rows, or name -> rows. A name replaces the last word of the kind, so that
            "attn.qkv" becomes "attn.q", "attn.k", "attn.v". A part named None is not adapted.
        blocks: name of a weight -> the number of equal blocks along each axis, such as (4, 1). The blocks are numbered
            row by row; the number is appended to the kind.
        tasks: names of tasks. Each site is repeated once per task, with the coordinate `task`.

    Raises:
        SiteError: a name matches no weight, a number of blocks does not divide an axis, or rows do not add up.
    """
    found = _all_sites(sites)
    for name in expect_names(experts, "split_sites", "experts", SiteError):
        found = _replace(found, "experts", name, _experts)
    for word, asked in (("fused", fused), ("blocks", blocks)):
        if not isinstance(asked, Mapping | None):
            todo = f'Write {word}={{"qkv": ...}}.'
            raise mistake(SiteError, "split_sites", f"{word} by the name of a weight", told(asked), todo)
    for name, parts in (fused or {}).items():
        found = _replace(found, "fused", name, partial(_fused, parts=parts))
    for name, counts in (blocks or {}).items():
        if not isinstance(counts, Collection) or isinstance(counts, str):
            todo = f'Write blocks={{"{name}": (4, 1)}}.'
            raise mistake(SiteError, "blocks", f"a number of blocks along each axis of {name}", told(counts), todo)
        found = _replace(found, "blocks", name, partial(_blocks, counts=tuple(counts)))
    tasks = expect_names(tasks, "split_sites", "tasks", SiteError)
    if wrong := [task for task in tasks if not isinstance(task, str) or not task]:
        raise SiteError(f"tasks: expected names that are not empty, got {wrong[0]!r} among them.")
    names = list(dict.fromkeys(tasks))
    return tuple(_part(site, task, {TASK: task}) for site in found for task in names) if names else found


def _all_sites(given: Iterable[Site]) -> tuple[Site, ...]:
    """Return the sites as a tuple. Raises SiteError for anything else."""
    found = tuple(given) if isinstance(given, Iterable) else (given,)
    if wrong := [site for site in found if not isinstance(site, Site)]:
        todo = "Pass what grid, sites_of or host.sites() returns."
        raise mistake(SiteError, "split_sites", "sites", told(wrong[0]), todo)
    return found


def _replace(
    sites: tuple[Site, ...], word: str, name: str, split: Callable[[Site], Iterator[Site]]
) -> tuple[Site, ...]:
    """Split the sites whose weight has this name, and keep the others. Raises SiteError if no weight has it."""
    weights = dict.fromkeys(site.weight for site in sites)
    named = set(match(weights, [name], what=word, things="the adapted weights"))
    return tuple(chain.from_iterable(split(site) if site.weight in named else [site] for site in sites))


def _part(
    site: Site,
    label: str | int,
    told: dict[str, Coordinate],
    shape: tuple[int, ...] | None = None,
    start: Sequence[int] = (),
) -> Site:
    """Return a block of a site that starts at `start` along its first axes; by default it has the shape of the site."""
    first = list(site.block.start if site.block is not None else (0,) * len(site.shape))
    for axis, more in enumerate(start, len(first) - len(site.shape)):
        first[axis] += more
    block = Block(site.weight, site.weight_shape, tuple(first))
    return Site(f"{site.path}[{label}]", shape or site.shape, dict(site.coordinates) | told, block)


def _experts(site: Site) -> Iterator[Site]:
    if len(site.shape) < 3:  # noqa: PLR2004  (experts, out, in)
        raise SiteError(f"{site.path}: expected a weight with the axes (experts, out, in), got shape {site.shape}.")
    for expert in range(site.shape[0]):
        yield _part(site, expert, {EXPERT: expert}, site.shape[1:], [expert])


def _fused(site: Site, parts: Fused) -> Iterator[Site]:
    height = site.shape[0]
    names = list(parts)
    if isinstance(parts, Mapping):
        rows = [check_size(f"fused: rows of {name!r}", size) for name, size in parts.items()]
    else:
        rows = [height // max(len(names), 1)] * len(names)
    named = [name for name in names if name is not None]
    if sum(rows) != height or not named or len(set(named)) < len(named):
        told = ", ".join(f"{name}: {size}" for name, size in zip(names, rows, strict=True))
        raise SiteError(
            f"{site.path}: expected parts with different names and {height} rows in total, got {told or 'none'}.\n"
            f"Give name -> rows if the parts have different numbers of rows."
        )
    parent, dot, _ = str(site.coordinates["kind"]).rpartition(".")
    start = 0
    for name, size in zip(names, rows, strict=True):
        if name is not None:
            yield _part(site, name, {"kind": f"{parent}{dot}{name}"}, (size, *site.shape[1:]), [start])
        start += size


def _blocks(site: Site, counts: tuple[int, ...]) -> Iterator[Site]:
    if len(counts) != len(site.shape):
        raise SiteError(f"{site.path}: expected one number of blocks per axis of {site.shape}, got {counts}.")
    counts = tuple(check_size(f"{site.path}: blocks along an axis", count) for count in counts)
    for count, size in zip(counts, site.shape, strict=True):
        if size % count:
            raise SiteError(
                f"{site.path}: expected a number of blocks that divides an axis of {size}, got {count}.\n"
                f"Divisors of {size}: {', '.join(map(str, divisors(size)))}."
            )
    shape = tuple(size // count for size, count in zip(site.shape, counts, strict=True))
    for number, place in enumerate(product(*map(range, counts))):
        start = tuple(at * size for at, size in zip(place, shape, strict=True))
        yield _part(site, number, {"kind": f"{site.coordinates['kind']}.{number}"}, shape, start)


def check_parts(weight: str, sites: Sequence[Site]) -> None:
    """Raise SiteError if the sites of one weight give it different shapes, or if two sites of one task overlap."""
    apart: dict[tuple[Coordinate, ...], list[Site]] = {}
    for site in sites:
        if site.weight_shape != sites[0].weight_shape:
            raise SiteError(
                f"{weight}: expected one shape for this weight, got {sites[0].weight_shape} from {sites[0].path} and "
                f"{site.weight_shape} from {site.path}."
            )
        start = _start(site)
        apart.setdefault((site.coordinates.get(TASK, ""), *start[: -len(site.shape)]), []).append(site)
    for together in apart.values():
        _check_apart(weight, together)


def _check_apart(weight: str, sites: Sequence[Site]) -> None:
    """Raise SiteError if two of these sites overlap.

    Sites that are disjoint along one axis need not be compared: a grid of n blocks is checked in n log n steps instead
    of n^2. Each axis in turn cuts the sites into runs. A run that no axis cuts, or that is left after several rounds,
    is compared in pairs.
    """
    if len(sites) < 2:  # noqa: PLR2004
        return
    axes = len(sites[0].shape)
    first = np.array([_start(site)[-axes:] for site in sites])
    last = first + np.array([site.shape for site in sites])
    waiting = [(np.arange(len(sites)), 0, 0)]
    while waiting:
        some, tried, in_vain = waiting.pop()
        if in_vain == axes or tried == ROUNDS * axes:
            _compare(weight, sites, some, first[some], last[some])
            continue
        axis = tried % axes
        order = some[np.argsort(first[some, axis], kind="stable")]
        reach = np.maximum.accumulate(last[order, axis])
        ends = np.flatnonzero(first[order[1:], axis] >= reach[:-1]) + 1
        in_vain = 0 if ends.size else in_vain + 1
        waiting += [(run, tried + 1, in_vain) for run in np.split(order, ends) if len(run) > 1]


def _compare(weight: str, sites: Sequence[Site], some: Numbers, first: Numbers, last: Numbers) -> None:
    """Raise SiteError if two of some sites overlap, or if there are too many to compare all pairs."""
    if len(some) > MOST_COMPARED:
        raise SiteError(
            f"{weight}: expected at most {MOST_COMPARED:,} blocks that no straight cut separates, got {len(some):,}.\n"
            "Arrange the blocks in rows or columns."
        )
    if pair := _overlap(first, last):
        one, other = (sites[some[place]] for place in sorted(pair))
        raise SiteError(
            f"{one.path}: expected sites of one weight that do not overlap, or that serve different tasks, "
            f"got {other.path}, which updates some of the same entries of {weight}."
        )


def _overlap(first: Numbers, last: Numbers) -> tuple[int, int] | None:
    """Return the places of two boxes that overlap, or None. Each box has a row of first indices and one of ends."""
    order = np.argsort(first[:, 0], kind="stable")
    begin, end = first[order].T.copy(), last[order].T.copy()
    stops = np.searchsorted(begin[0], end[0])  # boxes from there on begin where this one has ended
    for place, stop in enumerate(stops.tolist()):
        after = slice(place + 1, stop)
        shared = np.ones(max(stop - place - 1, 0), dtype=bool)
        for axis in range(1, len(begin)):
            shared &= (begin[axis, after] < end[axis, place]) & (begin[axis, place] < end[axis, after])
        if shared.any():
            return int(order[place]), int(order[place + 1 + int(shared.argmax())])
    return None


def _start(site: Site) -> tuple[int, ...]:
    """Return the first index of a site along each axis of its weight."""
    return (0,) * len(site.shape) if site.block is None else site.block.start
