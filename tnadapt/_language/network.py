"""Networks with known sizes: group the sites that share a network, and find the sizes of its modes."""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from tnadapt._errors import SiteError
from tnadapt._frozen import FrozenMap
from tnadapt._hosts import RUNNING, Coordinate, Site, check_size, divisors
from tnadapt._language.factor import Factor
from tnadapt._language.notation import Axis
from tnadapt._language.terms import Node, Term, nodes_of, terms_of

__all__ = ["Group", "Network"]


@dataclass(frozen=True)
class Network:
    """A spec with all sizes known. Groups of equal sizes have equal networks, so a network can be the key of a cache.

    `axes` are those of the weight, each a tuple of modes, the out axis first; `over` are the site modes; `sizes` has
    every mode. The update is the sum of the `terms`, each of which contracts some of the `nodes`; a node is a factor
    under the modes that it has there. Without nodes, each factor is one, and without terms, one term contracts all.
    Factors and nodes are sorted by name, so that equal networks also have the same order.
    Raises SiteError for a size that is not a positive integer.
    """

    axes: tuple[Axis, ...]
    over: tuple[str, ...]
    factors: Mapping[str, Factor]
    sizes: Mapping[str, int]
    scale: float
    nodes: Mapping[str, Node] = field(default_factory=dict)
    terms: tuple[Term, ...] = ()

    def __post_init__(self) -> None:
        """Check every size once, and freeze the mappings."""
        for mode, size in self.sizes.items():
            check_size(f"mode {mode!r}", size)
        for name, factor in self.factors.items():
            if factor.map:
                _check_map(name, factor, self.sizes, {*self.over, *self.out_modes, *self.in_modes})
            if factor.init.kind == "rotary":
                _check_rotary(name, factor, self.sizes)
        nodes = self.nodes or nodes_of(self.factors)
        for name, node in nodes.items():
            _check_copy(name, node, self.factors[node.factor], self.sizes)
        object.__setattr__(self, "factors", FrozenMap(dict(sorted(self.factors.items()))))
        object.__setattr__(self, "nodes", FrozenMap(dict(sorted(nodes.items()))))
        object.__setattr__(self, "terms", self.terms or terms_of((), nodes))
        object.__setattr__(self, "sizes", FrozenMap(self.sizes))

    @cached_property
    def magnitude(self) -> str:
        """The factor that sets the length of each row of the weight with its update; "" without one."""
        return next((name for name, factor in self.factors.items() if factor.init.is_magnitude), "")

    @property
    def out_modes(self) -> tuple[str, ...]:
        """The modes of the first axis of the weight."""
        return self.axes[0]

    @property
    def in_modes(self) -> tuple[str, ...]:
        """The modes of all other axes of the weight."""
        return tuple(mode for axis in self.axes[1:] for mode in axis)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of the weight of one site, out axis first."""
        return tuple(self.volume(axis) for axis in self.axes)

    def volume(self, modes: Iterable[str]) -> int:
        """Return the product of the sizes of these modes."""
        return math.prod(self.sizes[mode] for mode in modes)

    def shape(self, factor: str) -> tuple[int, ...]:
        """Return the shape of a factor, site modes included."""
        return tuple(self.sizes[mode] for mode in self.factors[factor].modes)

    def local_modes(self, node: str) -> tuple[str, ...]:
        """Return the modes of a node without the site modes."""
        return tuple(mode for mode in self.nodes[node].modes if mode not in self.over)

    def stack_modes(self, node: str) -> tuple[str, ...]:
        """Return the modes of a node over all sites. The host's weight is another one at each site."""
        modes = self.nodes[node].modes
        return (*self.over, *modes) if self.factors[self.nodes[node].factor].init.is_host else modes

    def is_trained(self, node: str) -> bool:
        """Return whether a node is trained: its factor is trainable, and its starting values are not meant."""
        return self.factors[self.nodes[node].factor].trainable and not self.nodes[node].at_start


def _check_copy(name: str, node: Node, factor: Factor, sizes: Mapping[str, int]) -> None:
    """Raise SiteError unless the modes of a node have the sizes of those of its factor."""
    if node.modes == factor.modes:
        return
    for mode, own in zip(node.modes, factor.modes, strict=True):
        if sizes[mode] != sizes[own]:
            raise SiteError(
                f"factor {name!r}: expected {sizes[own]} as the size of {mode!r}, which is {own!r} of "
                f"{node.factor!r} under another name, got {sizes[mode]}."
            )


def _check_map(name: str, factor: Factor, sizes: Mapping[str, int], outer: Collection[str]) -> None:
    """Raise SiteError unless the modes that a map makes have equal sizes, which are 2 for a rotation."""
    one, other = (sizes[mode] for mode in factor.modes[-2:])
    if one != other or (factor.map == "rotation" and one != 2):  # noqa: PLR2004
        row, column = map(repr, factor.modes[-2:])
        wanted, todo = "equal numbers", f"Pass equal sizes to bind, as in rank={{{row}: {one}, {column}: {one}}}."
        if factor.modes[-2] in outer:
            todo = f"Pass equal sizes to bind, or write sizes={{{column}: like({row})}} in the spec."
        if factor.map == "rotation":
            wanted = "2 and 2"
            todo = f"Write sizes={{{row}: 2, {column}: 2}} in the spec. Modes of size 2 alone split only a power of 2."
        raise SiteError(
            f"factor {name!r}: expected {wanted} as the sizes of {row} and {column}, which the map {factor.map} makes, "
            f"got {one} and {other}.\n{todo}"
        )


def _check_rotary(name: str, factor: Factor, sizes: Mapping[str, int]) -> None:
    """Raise SiteError unless the last two modes of the rotations have the same, even size."""
    row, column = factor.modes[-2:]
    if sizes[row] != sizes[column] or sizes[row] % 2:
        raise SiteError(
            f"factor {name!r}: expected the same, even size for {row!r} and {column!r}, since rotary() turns pairs of "
            f"entries, got {sizes[row]} and {sizes[column]}.\nPass such sizes to bind, as in sizes={{{column!r}: 64}}."
        )


@dataclass(frozen=True)
class Group:
    """The sites that share one network. `values` maps each site mode to the coordinate at each of its indices."""

    name: str
    network: Network
    sites: tuple[Site, ...]
    values: Mapping[str, tuple[Coordinate, ...]]

    def index(self, site: Site) -> dict[str, int]:
        """Return the index of a site of this group along each site mode, counted from 0 without gaps."""
        return {mode: places[site.value(mode)] for mode, places in self._indices.items()}

    @cached_property
    def _indices(self) -> dict[str, dict[Coordinate, int]]:
        return {mode: {value: n for n, value in enumerate(values)} for mode, values in self.values.items()}

    @property
    def places(self) -> tuple[tuple[int, ...], ...] | None:
        """The sorted indices of the sites along the site modes; None if every combination of indices has a site."""
        if len(self.sites) == self.network.volume(self.network.over):
            return None
        return tuple(sorted(tuple(self.index(site).values()) for site in self.sites))


def most_shapes(sites: Iterable[Site], over: tuple[str, ...]) -> int:
    """Return the largest number of shapes among sites that differ only in shape and along the site modes."""
    found: dict[frozenset[tuple[str, Coordinate]], set[tuple[int, ...]]] = {}
    for site in sites:
        found.setdefault(_fixed(site, over), set()).add(site.shape)
    return max(map(len, found.values()))


def _fixed(site: Site, over: tuple[str, ...]) -> frozenset[tuple[str, Coordinate]]:
    """Return the coordinates that are not site modes; none if the sites are numbered by "site"."""
    return frozenset(
        () if RUNNING in over else ((name, at) for name, at in site.coordinates.items() if name not in over)
    )


def stacks_of(sites: Iterable[Site], over: tuple[str, ...]) -> dict[str, tuple[Site, ...]]:
    """Group sites that may share a network: same shape, and same value of each coordinate that is not a site mode.

    The site mode "site" replaces all coordinates. Returns the stacks by name. Raises SiteError if two sites have the
    same position in a stack, or if two stacks would have the same name.
    """
    stacks: dict[tuple[frozenset[tuple[str, Coordinate]], tuple[int, ...]], list[Site]] = {}
    for site in sites:
        stacks.setdefault((_fixed(site, over), site.shape), []).append(site)
    labels = [_label(stack[0], over) for stack in stacks.values()]
    often = Counter(labels)
    named: dict[str, tuple[Site, ...]] = {}
    for label, stack in zip(labels, stacks.values(), strict=True):
        shape = "x".join(map(str, stack[0].shape))
        name = label if label and often[label] == 1 else f"{label}.{shape}" if label else shape
        if name in named:
            raise SiteError(
                f"{stack[0].path}: expected a group with a name of its own, got {name!r}, which is also that of "
                f"{named[name][0].path}.\nGive one of them another coordinate."
            )
        named[name] = tuple(stack)
        _check_places(stack, over)
    return named


def _label(site: Site, over: tuple[str, ...]) -> str:
    """Return the name of a site's group: layer and kind as they are, other coordinates with their names."""
    if RUNNING in over:
        return ""
    words = [str(site.coordinates[name]) for name in ("layer", "kind") if name not in over]
    further = sorted(name for name in site.coordinates if name not in ("layer", "kind", *over))
    return ".".join([*words, *(f"{name}_{site.coordinates[name]}" for name in further)])


def _check_places(stack: Iterable[Site], over: tuple[str, ...]) -> None:
    seen: dict[tuple[Coordinate, ...], Site] = {}
    for site in stack:
        place = tuple(site.value(mode) for mode in over)
        if place in seen:
            raise SiteError(
                f"{site.path}: expected different coordinates along ({' '.join(over)}) for two sites of one network, "
                f"got {place} for this one and {seen[place].path}.\n"
                "Give them different coordinates, or stack over 'site'."
            )
        seen[place] = site


def values_of(stack: Iterable[Site], mode: str) -> tuple[Coordinate, ...]:
    """Return the coordinate at each index of a site mode: numbers in ascending order, names in order of appearance."""
    values = dict.fromkeys(site.value(mode) for site in stack)
    return tuple(sorted(values, key=lambda value: value if isinstance(value, int) else 0))


def sizes_of(
    path: str,
    shape: tuple[int, ...],
    axes: tuple[Axis, ...],
    asked: Mapping[str, int],
    required: Collection[str] = (),
) -> dict[str, int]:
    """Find the sizes of the modes of a weight: those in `asked`, and an even split of each axis for the others.

    Raises SiteError for a wrong number of axes, an axis that the sizes in `asked` do not divide, or a mode of
    `required` whose size does not follow from them; `path` names the site.
    """
    if len(shape) != len(axes):
        raise SiteError(f"{path}: expected a weight of {len(axes)} axes for this spec, got shape {shape}.")
    sizes: dict[str, int] = {}
    for axis, length in zip(axes, shape, strict=True):
        told = {mode: asked[mode] for mode in axis if mode in asked}
        rest = [mode for mode in axis if mode not in asked]
        part, remainder = divmod(length, math.prod(told.values()))
        if remainder or (not rest and part != 1):
            words = ", ".join(f"{mode}={size}" for mode, size in told.items())
            raise SiteError(
                f"{path}: expected sizes of ({' '.join(axis)}) whose product is {length}, got {words}, which does not "
                f"{'divide' if rest else 'give'} {length}.\n"
                f"Divisors of {length}: {', '.join(map(str, divisors(length)))}."
            )
        if len(rest) > 1 and (named := [mode for mode in rest if mode in required]):
            raise SiteError(
                f"{path}: expected a size for {named[0]!r}, since an even split of {length} would be wrong, got none.\n"
                f'Pass sizes={{"{named[0]}": ...}}, a divisor of {length}: {", ".join(map(str, divisors(length)))}.'
            )
        sizes |= told | dict(zip(rest, split_evenly(part, len(rest)), strict=True))
    return sizes


@lru_cache(maxsize=4096)
def split_evenly(number: int, parts: int) -> tuple[int, ...]:
    """Split a number into ascending factors with the smallest sum: 768 into three parts is (8, 8, 12).

    Of several such splits, it is the one whose first factors are smaller.
    """
    if parts == 0:
        return ()
    primes = _primes_of(number)
    others = min(parts, max(len(primes), 1))  # each factor above 1 has a prime of its own, so the rest are 1
    return (1,) * (parts - others) + _Split(number, primes).best(number, others)


def _primes_of(number: int) -> list[int]:
    """Return the prime factors in ascending order, each as often as it divides the number."""
    primes = []
    for part in divisors(number)[1:]:
        while number % part == 0:
            number //= part
            primes.append(part)
    return primes


class _Split:
    """The best splits of the divisors of one number.

    First factors are tried downwards from the root. The sum of the others is at least that of equal real numbers, or of
    the largest prime and equal real numbers; where this bound exceeds the best sum, smaller factors need not be tried.
    """

    def __init__(self, number: int, primes: Sequence[int]) -> None:
        self.factors, self.primes = divisors(number), sorted(set(primes), reverse=True)
        self.found: dict[tuple[int, int], tuple[int, ...]] = {}

    def best(self, number: int, parts: int) -> tuple[int, ...]:
        """Return the best split of one divisor."""
        if parts == 1:
            return (number,)
        if (number, parts) not in self.found:
            self.found[number, parts] = self._search(number, parts)
        return self.found[number, parts]

    def _search(self, number: int, parts: int) -> tuple[int, ...]:
        least: float = math.inf
        split: tuple[int, ...] = ()
        end = bisect_right(self.factors, number ** (1 / parts) + 1)  # one more, since the root is rounded
        for first in reversed(self.factors[:end]):
            if number % first or first**parts > number:
                continue
            rest = number // first
            if first + self._bound(rest, parts - 1) > least + 0.5:  # sums are whole numbers, bounds are rounded
                break
            tried = (first, *self.best(rest, parts - 1))
            if tried[1] >= first and sum(tried) <= least:
                least, split = sum(tried), tried
        return split

    def _bound(self, number: int, parts: int) -> float:
        prime = next((prime for prime in self.primes if number % prime == 0), 1)
        if parts > 1 and prime**parts > number:
            return float(prime + (parts - 1) * (number / prime) ** (1 / (parts - 1)))
        return float(parts * number ** (1 / parts))
