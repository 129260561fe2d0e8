"""The networks that serve the sites of a host, and how sizes and groups follow from the sites."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

from tnadapt._errors import SiteError
from tnadapt._frozen import FrozenMap
from tnadapt._hosts import RUNNING, Coordinate, Site, check_size, divisors
from tnadapt._language.factor import Factor
from tnadapt._language.notation import Axis

__all__ = ["Group", "Network"]


@dataclass(frozen=True)
class Network:
    """A spec with every size known. Two groups of equal sizes have equal networks, so it is the key of every cache.

    `axes` are the weight's, each a tuple of modes, the out axis first; `over` are the site modes; `sizes` holds every
    mode. Factors come in the order of their names, so that equal networks are equal for code that counts them, too.
    Raises SiteError for a size that is no positive integer.
    """

    axes: tuple[Axis, ...]
    over: tuple[str, ...]
    factors: Mapping[str, Factor]
    sizes: Mapping[str, int]
    scale: float
    centered: bool = False

    def __post_init__(self) -> None:
        """Check every size once, freeze."""
        for mode, size in self.sizes.items():
            check_size(f"mode {mode!r}", size)
        for name, factor in self.factors.items():
            if factor.map:
                _check_map(name, factor, self.sizes)
        object.__setattr__(self, "factors", FrozenMap(dict(sorted(self.factors.items()))))
        object.__setattr__(self, "sizes", FrozenMap(self.sizes))

    @property
    def out_modes(self) -> tuple[str, ...]:
        """Modes of the weight's first axis."""
        return self.axes[0]

    @property
    def in_modes(self) -> tuple[str, ...]:
        """Modes of all further axes of the weight."""
        return tuple(mode for axis in self.axes[1:] for mode in axis)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of one site's weight, out axis first."""
        return tuple(self.volume(axis) for axis in self.axes)

    def volume(self, modes: Iterable[str]) -> int:
        """Product of the sizes of these modes."""
        return math.prod(self.sizes[mode] for mode in modes)

    def shape(self, factor: str) -> tuple[int, ...]:
        """Shape of a factor, site modes included."""
        return tuple(self.sizes[mode] for mode in self.factors[factor].modes)

    def local_modes(self, factor: str) -> tuple[str, ...]:
        """Modes that a factor has left once a site is chosen."""
        return tuple(mode for mode in self.factors[factor].modes if mode not in self.over)


def _check_map(name: str, factor: Factor, sizes: Mapping[str, int]) -> None:
    """Raises SiteError for sizes of the modes that a map makes, which are 2 and 2, or equal."""
    one, other = (sizes[mode] for mode in factor.modes[-2:])
    if one != other or (factor.map == "rotation" and one != 2):  # noqa: PLR2004
        wanted = "2 and 2" if factor.map == "rotation" else "equal"
        raise SiteError(
            f"factor {name!r}: the sizes of {' and '.join(map(repr, factor.modes[-2:]))}, which a {factor.map} makes, "
            f"must be {wanted}.\nHowever, they are {one} and {other}."
        )


@dataclass(frozen=True)
class Group:
    """The sites that share one network. `values` maps each site mode to the coordinate at each of its indices."""

    name: str
    network: Network
    sites: tuple[Site, ...]
    values: Mapping[str, tuple[Coordinate, ...]]

    def index(self, site: Site) -> dict[str, int]:
        """Where a site of this group stands along each site mode, counted from 0 without gaps."""
        return {mode: places[site.value(mode)] for mode, places in self._indices.items()}

    @cached_property
    def _indices(self) -> dict[str, dict[Coordinate, int]]:
        return {mode: {value: n for n, value in enumerate(values)} for mode, values in self.values.items()}

    @property
    def places(self) -> tuple[tuple[int, ...], ...] | None:
        """The indices at which sites stand, in order; None where every combination of them has its site."""
        if len(self.sites) == self.network.volume(self.network.over):
            return None
        return tuple(sorted(tuple(self.index(site).values()) for site in self.sites))


def most_shapes(sites: Iterable[Site], over: tuple[str, ...]) -> int:
    """Count the shapes among sites that differ in nothing but shape and site modes; the largest such number."""
    found: dict[frozenset[tuple[str, Coordinate]], set[tuple[int, ...]]] = {}
    for site in sites:
        found.setdefault(_fixed(site, over), set()).add(site.shape)
    return max(map(len, found.values()))


def _fixed(site: Site, over: tuple[str, ...]) -> frozenset[tuple[str, Coordinate]]:
    """The coordinates that are no site modes; the running number stands for all."""
    return frozenset(
        () if RUNNING in over else ((name, at) for name, at in site.coordinates.items() if name not in over)
    )


def stacks_of(sites: Iterable[Site], over: tuple[str, ...]) -> dict[str, tuple[Site, ...]]:
    """Named stacks of sites that may share a network: same shape, same value of each coordinate that is no site mode.

    The running number stands for every coordinate at once. Raises SiteError when two sites stand in one place, or two
    stacks would have one name.
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
                f"{stack[0].path}: its group would be named {name!r}.\n"
                f"However, so is that of {named[name][0].path}.\nGive one of them another coordinate."
            )
        named[name] = tuple(stack)
        _check_places(stack, over)
    return named


def _label(site: Site, over: tuple[str, ...]) -> str:
    """What tells a site's group from others: layer and kind as they are, further coordinates with their names."""
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
                f"{site.path}: two sites of one network need different coordinates along ({' '.join(over)}).\n"
                f"However, {seen[place].path} stands at the same place {place}.\n"
                "Give them different coordinates, or stack over 'site'."
            )
        seen[place] = site


def values_of(stack: Iterable[Site], mode: str) -> tuple[Coordinate, ...]:
    """The coordinate at each index of a site mode: numbers in rising order, names in the order of their coming."""
    values = dict.fromkeys(site.value(mode) for site in stack)
    return tuple(sorted(values, key=lambda value: value if isinstance(value, int) else 0))


def sizes_of(
    path: str,
    shape: tuple[int, ...],
    axes: tuple[Axis, ...],
    asked: Mapping[str, int],
    given: tuple[str, ...] = (),
) -> dict[str, int]:
    """Sizes of the weight's modes: those asked for, the others split as evenly as the prime factors allow.

    Raises SiteError for another number of axes, an axis that the asked sizes do not divide, or one with a mode of
    `given` that they do not settle; `path` names the site.
    """
    if len(shape) != len(axes):
        raise SiteError(
            f"{path}: this spec updates a weight of {len(axes)} axes.\nHowever, the weight there has shape {shape}."
        )
    sizes: dict[str, int] = {}
    for axis, length in zip(axes, shape, strict=True):
        told = {mode: asked[mode] for mode in axis if mode in asked}
        rest = [mode for mode in axis if mode not in asked]
        part, remainder = divmod(length, math.prod(told.values()))
        if remainder or (not rest and part != 1):
            words = ", ".join(f"{mode}={size}" for mode, size in told.items())
            raise SiteError(
                f"{path}: the sizes of ({' '.join(axis)}) must multiply to {length}.\n"
                f"However, {words} does not {'divide' if rest else 'give'} {length}.\n"
                f"Divisors of {length}: {', '.join(map(str, divisors(length)))}."
            )
        if len(rest) > 1 and (named := [mode for mode in rest if mode in given]):
            raise SiteError(
                f"{path}: the size of {named[0]!r} has to be given, since no even split of {length} is right.\n"
                f'Pass sizes={{"{named[0]}": ...}}, a divisor of {length}: {", ".join(map(str, divisors(length)))}.'
            )
        sizes |= told | dict(zip(rest, split_evenly(part, len(rest)), strict=True))
    return sizes


@lru_cache(maxsize=4096)
def split_evenly(number: int, parts: int) -> tuple[int, ...]:
    """`parts` rising factors of a number whose sum is least: 768 in three is (8, 8, 12)."""
    if parts == 0:
        return ()
    if parts == 1:
        return (number,)
    tries = [(first, *split_evenly(number // first, parts - 1)) for first in divisors(number) if first**parts <= number]
    return min((split for split in tries if list(split) == sorted(split)), key=sum)
