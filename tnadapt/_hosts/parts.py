"""Several sites in one weight: experts, fused projections, blocks and tasks; and a grid of sites from shapes alone."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, combinations, product

from tnadapt._errors import SiteError
from tnadapt._hosts.paths import match
from tnadapt._hosts.site import EXPERT, TASK, Block, Coordinate, Site, check_size, divisors
from tnadapt._signature import answers, expect_names, mistake, told

__all__ = ["grid", "split_sites"]

Fused = Sequence[str | None] | Mapping[str, int]


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
    """Sites of a named shape, layer by layer: `kinds` maps a name to the shape (out, in) of its weight.

    The other words are those of `split_sites`.
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
    """Weights taken as several sites each; those that no name matches stay as they are.

    A name is the whole path of a weight or a suffix of it after a dot. What one weight is asked for is done in this
    order; a part's path is that of the whole with [its name] behind.

    Args:
        sites: the weights.
        experts: weights (experts, out, in), each `experts` sites, told apart by the coordinate `expert`.
        fused: several projections in one weight, below one another: their names, of equal heights, or name -> rows. A
            name takes the place of the last word of the kind, so that "attn.qkv" is "attn.q", "attn.k", "attn.v". None
            for a name leaves that part as it is.
        blocks: how many equal blocks each axis of the weight is cut into, as (4, 1); numbered row by row, in the kind.
        tasks: every site is there once for each task, told apart by the coordinate `task`.

    Raises:
        SiteError: a name that matches no weight, an axis that does not divide, rows that do not add up.
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
        found = _replace(found, "blocks", name, partial(_blocks, counts=tuple(counts)))
    tasks = expect_names(tasks, "split_sites", "tasks", SiteError)
    if wrong := [task for task in tasks if not isinstance(task, str) or not task]:
        raise SiteError(f"tasks: must be names.\nHowever, {wrong[0]!r} is among them.")
    names = list(dict.fromkeys(tasks))
    return tuple(_part(site, task, {TASK: task}) for site in found for task in names) if names else found


def _all_sites(given: Iterable[Site]) -> tuple[Site, ...]:
    """The sites. Raises SiteError for anything else."""
    found = tuple(given) if isinstance(given, Iterable) else (given,)
    if wrong := [site for site in found if not isinstance(site, Site)]:
        todo = "Pass what grid, sites_of or host.sites() gives."
        raise mistake(SiteError, "split_sites", "sites", told(wrong[0]), todo)
    return found


def _replace(
    sites: tuple[Site, ...], word: str, name: str, split: Callable[[Site], Iterator[Site]]
) -> tuple[Site, ...]:
    """Split the sites whose weight has this name; the others stay. Raises SiteError where none has it."""
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
    """A block of a site, of this shape (all of it, unless told), that starts at `start` along its first axes."""
    first = list(site.block.start if site.block is not None else (0,) * len(site.shape))
    for axis, more in enumerate(start, len(first) - len(site.shape)):
        first[axis] += more
    block = Block(site.weight, site.weight_shape, tuple(first))
    return Site(f"{site.path}[{label}]", shape or site.shape, dict(site.coordinates) | told, block)


def _experts(site: Site) -> Iterator[Site]:
    if len(site.shape) < 3:  # noqa: PLR2004  (experts, out, in)
        raise SiteError(
            f"{site.path}: experts needs a weight of the axes (experts, out, in).\nHowever, it has shape {site.shape}."
        )
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
            f"{site.path}: the parts of a fused weight have names of their own and its {height} rows together.\n"
            f"However, these were given: {told or 'none'}.\nGive name -> rows where they differ."
        )
    parent, dot, _ = str(site.coordinates["kind"]).rpartition(".")
    start = 0
    for name, size in zip(names, rows, strict=True):
        if name is not None:
            yield _part(site, name, {"kind": f"{parent}{dot}{name}"}, (size, *site.shape[1:]), [start])
        start += size


def _blocks(site: Site, counts: tuple[int, ...]) -> Iterator[Site]:
    if len(counts) != len(site.shape):
        raise SiteError(f"{site.path}: blocks needs one count an axis of {site.shape}.\nHowever, it is {counts}.")
    for count, size in zip(counts, site.shape, strict=True):
        check_size(f"{site.path}: blocks along an axis", count)
        if size % count:
            raise SiteError(
                f"{site.path}: {count} blocks do not divide an axis of {size}.\n"
                f"Divisors of {size}: {', '.join(map(str, divisors(size)))}."
            )
    shape = tuple(size // count for size, count in zip(site.shape, counts, strict=True))
    for number, place in enumerate(product(*map(range, counts))):
        start = tuple(at * size for at, size in zip(place, shape, strict=True))
        yield _part(site, number, {"kind": f"{site.coordinates['kind']}.{number}"}, shape, start)


def check_parts(weight: str, sites: Sequence[Site]) -> None:
    """Raises SiteError where the sites of one weight do not agree on its shape, or two of one task lie over another."""
    apart: dict[tuple[Coordinate, ...], list[Site]] = {}
    for site in sites:
        if site.weight_shape != sites[0].weight_shape:
            raise SiteError(
                f"{weight}: is said to be of shape {sites[0].weight_shape} by {sites[0].path}.\n"
                f"However, {site.path} says {site.weight_shape}."
            )
        lead = [at for at in site.rectangle if isinstance(at, int)]
        apart.setdefault((site.coordinates.get(TASK, ""), *lead), []).append(site)
    for together in apart.values():
        _check_apart(weight, together, 0, 0)


def _check_apart(weight: str, sites: Sequence[Site], axis: int, unparted: int) -> None:
    """Raise SiteError where two of these rectangles overlap.

    Sites that an axis parts need not be compared: a grid of n blocks is checked in n log n steps, not in n^2.
    `unparted` counts the axes in a row that parted nothing.
    """
    axes = len(sites[0].shape)
    if len(sites) < 2:  # noqa: PLR2004
        return
    if unparted == axes:
        for one, other in combinations(sites, 2):
            if all(_overlap(a, b) for a, b in zip(_sides(one), _sides(other), strict=True)):
                raise SiteError(
                    f"{one.path}: expected sites of one weight that do not overlap, or that serve different tasks.\n"
                    f"However, {other.path} updates entries of {weight} that this one updates too."
                )
        return
    runs: list[list[Site]] = []
    stop = -1
    for site in sorted(sites, key=lambda site: _sides(site)[axis].start):
        side = _sides(site)[axis]
        if not runs or side.start >= stop:
            runs.append([])
        runs[-1].append(site)
        stop = max(stop, side.stop)
    for run in runs:
        _check_apart(weight, run, (axis + 1) % axes, unparted + 1 if len(runs) == 1 else 0)


def _sides(site: Site) -> list[slice]:
    """Return where a site lies along each of its own axes."""
    return [side for side in site.rectangle if isinstance(side, slice)]


def _overlap(one: slice, other: slice) -> bool:
    return bool(max(one.start, other.start) < min(one.stop, other.stop))
