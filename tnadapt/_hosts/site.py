"""The sites of a host: adapted weights, or rectangles of one weight, and where each of them stands."""

import difflib
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import chain, combinations, product

from tnadapt._errors import SiteError
from tnadapt._frozen import FrozenMap
from tnadapt._signature import answers, answers_when_made, expect_names, mistake, told

__all__ = ["Block", "Site", "grid", "split_sites"]

Coordinate = int | str
Fused = Sequence[str | None] | Mapping[str, int]
LARGEST = 2**31 - 1  # of one mode; no weight comes near, and an axis of this size is still split in no time
RUNNING = "site"  # the coordinate that numbers the sites of a group; as a site mode it stands for all the others
EXPERT, TASK = "expert", "task"


@dataclass(frozen=True)
class Block:
    """Where a site lies in a weight that holds more: that weight's path and shape, and the site's first index an axis.

    A weight of more axes than the site, as (experts, out, in), holds it at one index of each leading axis.
    """

    weight: str
    shape: tuple[int, ...]
    start: tuple[int, ...]

    def __post_init__(self) -> None:
        """Freeze."""
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "start", tuple(self.start))


@answers_when_made(SiteError)
@dataclass(frozen=True)
class Site:
    """One adapted weight, or a block of one: its path in the host, its shape (out axis first), and where it stands.

    Coordinates say where: `layer` (index of the repeated block, 0 outside of any), `kind` (the module's name inside
    its block, by default the path), and any more that a host knows, as `expert` or `task`. `block` says which part of
    which weight the site is; without one it is all of the weight at its path.
    Raises SiteError for a shape that is no tuple of positive integers, a coordinate that is no integer or string, or a
    block that is not inside its weight.
    """

    path: str
    shape: tuple[int, ...]
    coordinates: Mapping[str, Coordinate] = field(default_factory=dict)
    block: Block | None = None

    def __post_init__(self) -> None:
        """Check, fill the two standard coordinates, freeze."""
        if not isinstance(self.path, str):
            todo = 'Write Site("layers.0.q_proj", (out, in)).'
            raise mistake(SiteError, "Site", "the path of a weight as a text", told(self.path), todo)
        if isinstance(self.shape, str) or not isinstance(self.shape, Iterable):
            todo = f'Write Site("{self.path}", (out, in)).'
            raise mistake(SiteError, self.path, "the shape of a weight", told(self.shape), todo)
        if not isinstance(self.coordinates, Mapping):
            todo = 'Write {"layer": 0, "kind": "q_proj"}.'
            raise mistake(SiteError, self.path, "coordinates by name", told(self.coordinates), todo)
        shape = tuple(self.shape)
        for size in shape:
            check_size(f"{self.path}: an axis of the weight", size)
        if not shape:
            raise SiteError(f"{self.path}: a site is a weight of at least one axis.\nHowever, its shape is ().")
        for name, value in self.coordinates.items():
            if type(value) not in (int, str):
                raise SiteError(f"{self.path}: coordinate {name!r} must be an integer or a string, got {value!r}.")
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "coordinates", FrozenMap({"layer": 0, "kind": self.path} | dict(self.coordinates)))
        if self.block is not None:
            _check_block(self.path, shape, self.block)

    @property
    def weight(self) -> str:
        """The path of the weight that the site is, or lies in."""
        return self.path if self.block is None else self.block.weight

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of that weight."""
        return self.shape if self.block is None else self.block.shape

    @property
    def rectangle(self) -> tuple[int | slice, ...]:
        """Where the site lies in that weight: what an array of the weight is indexed with."""
        if self.block is None:
            return tuple(slice(0, size) for size in self.shape)
        lead = len(self.block.shape) - len(self.shape)
        starts = self.block.start
        sides = [slice(start, start + size) for start, size in zip(starts[lead:], self.shape, strict=True)]
        return (*starts[:lead], *sides)

    def value(self, mode: str) -> Coordinate:
        """This site's coordinate for a site mode. Raises SiteError when it has none."""
        if mode == RUNNING:
            return self.path
        if mode not in self.coordinates:
            raise SiteError(
                f"{self.path}: the spec stacks weights over {mode!r}.\n"
                f"However, this site has only the coordinates {', '.join(self.coordinates)}.\n"
                f"Give the site that coordinate, or take {mode!r} out of the spec's `over`."
            )
        return self.coordinates[mode]


def _check_block(path: str, shape: tuple[int, ...], block: Block) -> None:
    for size in block.shape:
        check_size(f"{path}: an axis of {block.weight}", size)
    lead = len(block.shape) - len(shape)
    fits = lead >= 0 and len(block.start) == len(block.shape)
    sizes = (*[1] * lead, *shape)
    if not fits or not all(
        type(start) is int and start >= 0 and start + size <= whole
        for start, size, whole in zip(block.start, sizes, block.shape, strict=True)
    ):
        raise SiteError(
            f"{path}: a block of shape {shape} must lie inside its weight {block.weight}.\n"
            f"However, that has shape {block.shape}, and the block starts at {block.start}."
        )


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
    """The sites, those whose weight has this name split. Raises SiteError where none has it."""
    is_named = [site.weight == name or site.weight.endswith(f".{name}") for site in sites]
    if not any(is_named):
        known = {site.weight.split(".")[-1] for site in sites}
        near = ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.0))
        raise SiteError(f"{word} {name!r}: names none of the adapted weights.\nThe nearest names are {near}.")
    parts = (split(site) if is_chosen else [site] for site, is_chosen in zip(sites, is_named, strict=True))
    return tuple(chain.from_iterable(parts))


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
        for one, other in combinations(together, 2):
            if all(_overlap(a, b) for a, b in zip(one.rectangle, other.rectangle, strict=True)):
                raise SiteError(
                    f"{one.path}: sites of one weight must not overlap, unless they serve different tasks.\n"
                    f"However, {other.path} updates entries of {weight} that this one does, too."
                )


def _overlap(one: int | slice, other: int | slice) -> bool:
    if isinstance(one, slice) and isinstance(other, slice):
        return bool(max(one.start, other.start) < min(one.stop, other.stop))
    return one == other


@lru_cache(maxsize=4096)
def divisors(number: int) -> tuple[int, ...]:
    """All divisors, rising."""
    low = [part for part in range(1, math.isqrt(number) + 1) if number % part == 0]
    return tuple(dict.fromkeys(low + [number // part for part in reversed(low)]))


def check_size(what: str, size: object) -> int:
    """The size, if it is one. Raises SiteError otherwise; `what` begins the message."""
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise SiteError(f"{what}: must be an integer of at least 1, got {size!r}.\nWrite a whole number, as 8.")
    if size > LARGEST:
        raise SiteError(f"{what}: must be at most {LARGEST:,}, got {size:,}.")
    return size
