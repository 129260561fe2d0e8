"""Sites: adapted weights, or rectangles of one, and where each of them stands in its host."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from tnadapt._errors import SiteError
from tnadapt._frozen import FrozenMap
from tnadapt._signature import answers_when_made, mistake, told

__all__ = ["Block", "Site"]

Coordinate = int | str
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
