"""Sites: the weights to adapt, or blocks of a weight, each with its shape and its coordinates in the host."""

import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from tnadapt._errors import SiteError
from tnadapt._frozen import FrozenMap
from tnadapt._signature import answers_when_made, mistake, told

__all__ = ["Block", "Site"]

Coordinate = int | str
LARGEST = 2**31 - 1  # size of one mode: far above that of any weight, and an axis of this size still splits at once
RUNNING = "site"  # numbers the sites of a group; as a site mode it replaces all coordinates
EXPERT, TASK = "expert", "task"


@dataclass(frozen=True)
class Block:
    """The position of a site inside a larger weight: the weight's path and shape, and the first index along each axis.

    If the weight has more axes than the site, such as (experts, out, in), the site lies at one index of each leading
    axis.
    """

    weight: str
    shape: tuple[int, ...]
    start: tuple[int, ...]

    def __post_init__(self) -> None:
        """Store shape and start as tuples."""
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "start", tuple(self.start))


@answers_when_made(SiteError)
@dataclass(frozen=True)
class Site:
    """A weight to adapt, or a block of one: its path in the host, its shape (out axis first) and its coordinates.

    The coordinates are `layer` (the index of the layer, 0 outside the stack of layers), `kind` (the name of the module
    inside its layer, by default the path), and any others that the host has, such as `expert` or `task`. `block` says
    which part of which weight the site is; by default it is the whole weight at its path.
    Raises SiteError for a shape that is not a tuple of positive integers, a coordinate that is not an integer or a
    string, a text that UTF-8 cannot encode, or a block that is not inside its weight.
    """

    path: str
    shape: tuple[int, ...]
    coordinates: Mapping[str, Coordinate] = field(default_factory=dict)
    block: Block | None = None

    def __post_init__(self) -> None:
        """Check the fields, fill in the two standard coordinates, and freeze the mappings."""
        if not isinstance(self.path, str):
            todo = 'Write Site("layers.0.q_proj", (out, in)).'
            raise mistake(SiteError, "Site", "the path of a weight as a string", told(self.path), todo)
        if isinstance(self.shape, str) or not isinstance(self.shape, Iterable):
            todo = f'Write Site("{self.path}", (out, in)).'
            raise mistake(SiteError, self.path, "the shape of a weight", told(self.shape), todo)
        if not isinstance(self.coordinates, Mapping):
            todo = 'Write {"layer": 0, "kind": "q_proj"}.'
            raise mistake(SiteError, self.path, "coordinates by name", told(self.coordinates), todo)
        shape = tuple(check_size(f"{self.path}: an axis of the weight", size) for size in self.shape)
        if not shape:
            raise SiteError(f"{self.path}: expected a weight of at least one axis, got shape ().")
        for name, value in self.coordinates.items():
            if type(value) not in (int, str):
                raise SiteError(f"{self.path}: expected an integer or a string as coordinate {name!r}, got {value!r}.")
        for text in (self.path, *self.coordinates, *self.coordinates.values()):
            if type(text) is str and not text.isascii():
                _check_text(self.path, text)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "coordinates", FrozenMap({"layer": 0, "kind": self.path} | dict(self.coordinates)))
        if self.block is not None:
            _check_text(self.path, self.block.weight)
            _check_block(self.path, shape, self.block)

    @property
    def weight(self) -> str:
        """The path of the weight that contains the site."""
        return self.path if self.block is None else self.block.weight

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of the weight that contains the site."""
        return self.shape if self.block is None else self.block.shape

    @property
    def rectangle(self) -> tuple[int | slice, ...]:
        """The index that selects the site from an array of the weight that contains it."""
        if self.block is None:
            return tuple(slice(0, size) for size in self.shape)
        lead = len(self.block.shape) - len(self.shape)
        starts = self.block.start
        sides = [slice(start, start + size) for start, size in zip(starts[lead:], self.shape, strict=True)]
        return (*starts[:lead], *sides)

    def value(self, mode: str) -> Coordinate:
        """Return the coordinate of this site along a site mode. Raises SiteError if it has none."""
        if mode == RUNNING:
            return self.path
        if mode not in self.coordinates:
            raise SiteError(
                f"{self.path}: expected the coordinate {mode!r}, since the spec stacks weights over it, got only "
                f"{', '.join(self.coordinates)}.\n"
                f"Give the site that coordinate, or remove {mode!r} from the spec's `over`."
            )
        return self.coordinates[mode]


def _check_text(path: str, text: str) -> None:
    """Raise SiteError for a string with half of a surrogate pair: no file and no stream of random numbers takes it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SiteError(
            f"{ascii(path)[1:-1]}: expected names that UTF-8 can encode, got {text!a}.\n"
            "Rename the module or the coordinate."
        ) from None


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
            f"{path}: expected a block inside the weight {block.weight} of shape {block.shape}, got one of shape "
            f"{shape} that starts at {block.start}."
        )


@lru_cache(maxsize=4096)
def divisors(number: int) -> tuple[int, ...]:
    """Return all divisors in ascending order."""
    tried = np.arange(1, math.isqrt(number) + 1)
    low: list[int] = tried[number % tried == 0].tolist()
    return tuple(dict.fromkeys(low + [number // part for part in reversed(low)]))


def as_integer(value: object) -> object:
    """Return an integer of any library, such as numpy's, as a Python int; anything else, and a bool, as it is."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or str(getattr(value, "dtype", "")).endswith("bool"):
        return value
    try:
        return operator.index(value)
    except TypeError:  # an array that is no single integer has the method, too
        return value


def as_number(value: object) -> object:
    """Return a number of numpy, such as np.float32(2), as a Python int or float; anything else as it is."""
    if isinstance(value, np.integer):
        return int(value)
    return float(value) if isinstance(value, np.floating) else value


def as_integers(value: object) -> Any:
    """Return an integer of any library, or a mapping of such, as Python ints; anything else as it is."""
    if isinstance(value, Mapping):
        return FrozenMap({name: as_integer(size) for name, size in value.items()})
    return as_integer(value)


def check_size(what: str, size: object) -> int:
    """Return the size. Raises SiteError unless it is an integer from 1 to `LARGEST`; `what` begins the message."""
    if type(size) is int and 1 <= size <= LARGEST:
        return size
    size = as_integer(size)
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise SiteError(f"{what}: expected an integer of at least 1, got {size!r}.\nWrite a whole number, such as 8.")
    if size > LARGEST:
        raise SiteError(f"{what}: expected at most {LARGEST:,}, got {size:,}.")
    return size
