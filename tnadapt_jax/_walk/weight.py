"""An adapted weight inside a function: its value, the pieces of its update, and where each of its axes comes from."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count

import jax
import jax.numpy as jnp
from jax import Array, lax

from tnadapt import SiteError
from tnadapt_jax._lower import wide_of
from tnadapt_jax._walk.piece import Along, Piece, put_together

__all__: list[str] = []

Atom = tuple[tuple[str | int, ...], int]  # (("in", 0), 8): what an axis, or a part of one, is in the leaf; its size
Log = Counter[tuple[str, str]]  # how often something was done to the leaf of a path
SIDES = ("out", "in")


class Origin:
    """Which leaf a weight is, and what became of it. Two are the same only as one object.

    `log` counts what was done, by path and text; `dense` says what to do where an update must be made as a matrix.
    """

    def __init__(self, path: str, log: Log, *, refuses: bool = False) -> None:
        self.path, self.log, self.refuses = path, log, refuses

    def again(self) -> "Origin":
        """Return another one of the same leaf."""
        return Origin(self.path, self.log, refuses=self.refuses)

    def note(self, what: str) -> None:
        """Count what was done."""
        self.log[self.path, what] += 1


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["value", "pieces"],
    meta_fields=["origin", "axes", "lead", "shape"],
)
@dataclass(frozen=True)
class Weight:
    """An adapted weight inside a function.

    Args:
        value: the weight without its update.
        pieces: its update.
        origin: which leaf it is.
        axes: for each axis of the value its atoms, in order; sorted, the atoms of a side are in the order of the site.
        lead: the atoms of layers and experts that the value still has, in the order of the pieces' lead axes.
        shape: (out, in).
    """

    value: Array
    pieces: tuple[Piece, ...]
    origin: Origin
    axes: tuple[tuple[Atom, ...], ...]
    lead: tuple[Atom, ...]
    shape: tuple[int, int]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of the lead axes."""
        return tuple(size for _, size in self.lead)

    @property
    def reads_product(self) -> bool:
        """Whether an update reads the product of x and the host's weight."""
        return any(piece.reads_product for piece in self.pieces)

    def apply(self, x: Array, has: Along, product: tuple[Array, Along] | None = None) -> Array:
        """Return the update of x (lead axes that it has, ..., in): (lead axes, ..., out), in the dtype of x."""
        made = []
        for piece in self.pieces:
            own, is_whole = _part(x, piece.columns), piece.columns == (0, self.shape[1])
            read = None
            if product is not None and piece.reads_product and is_whole:
                read = (_part(product[0], piece.rows), product[1])
            made.append((piece.rows, piece.apply(self.sizes, own, has, read)))
        return put_together(made, self.shape[0])

    def apply_transposed(self, x: Array, has: Along) -> Array:
        """Return the transposed update of x (lead axes that it has, ..., out): (lead axes, ..., in)."""
        made = [(one.columns, one.apply_transposed(self.sizes, _part(x, one.rows), has)) for one in self.pieces]
        return put_together(made, self.shape[1])

    def delta(self) -> Array:
        """Return the dense update in the axes of the value, in float32 or wider and at full precision."""
        wide = wide_of(self.value, *(array for piece in self.pieces for array in piece.arrays))
        by_rows: dict[tuple[int, int], list[tuple[tuple[int, int], Array]]] = {}
        for piece in self.pieces:
            by_rows.setdefault(piece.rows, []).append((piece.columns, piece.delta(self.sizes, wide)))
        rows = [(at, put_together(some, self.shape[1]).swapaxes(-1, -2)) for at, some in by_rows.items()]
        made = put_together(rows, self.shape[0]).swapaxes(-1, -2)
        flat = [atom for axis in self.axes for atom in axis]
        order = [*self.lead, *(atom for side in SIDES for atom in atoms_of(flat, side))]
        laid = made.reshape([size for _, size in order])
        return lax.transpose(laid, [order.index(atom) for atom in flat]).reshape(self.value.shape)

    def dense(self, why: str, where: str = "") -> Array:
        """Return the value with its update as a matrix, rounded once. Raises SiteError if that is refused."""
        if self.origin.refuses:
            raise SiteError(
                f"{self.origin.path}: expected a function that only multiplies this weight, got one that reads it by "
                f"{why!r}{where}.\nLeave the weight out of the adapter, or allow its update as a matrix with "
                'dense="allow".'
            )
        made = self.delta()
        rounded = "" if self.value.dtype.itemsize >= made.dtype.itemsize else f" in {self.value.dtype}"
        self.origin.note(f"dW{rounded}: {why}")
        return lax.convert_element_type(lax.convert_element_type(self.value, made.dtype) + made, self.value.dtype)

    def moved(self, value: Array, axis: int, take: Callable[[Array, int], Array]) -> "Weight":
        """Return the weight after a move along the axis of layers or experts; `take(array, axis)` moves an array."""
        (atom,) = self.axes[axis]
        lead, left = self.lead.index(atom), (atom[0], value.shape[axis])
        return replace(
            self,
            value=value,
            pieces=tuple(piece.moved(take, lead, drop=False) for piece in self.pieces),
            axes=(*self.axes[:axis], (left,), *self.axes[axis + 1 :]),
            lead=(*self.lead[:lead], left, *self.lead[lead + 1 :]),
        )

    def scanned(self) -> tuple[Array, tuple[tuple[Array, ...], ...]]:
        """Return what differs along the first axis, with that axis in front: the value, and arrays of the pieces."""
        lead = self.lead_of(0)
        assert lead is not None
        moved = [
            tuple(
                jnp.moveaxis(value, sum(along[:lead]), 0)
                for value, along in zip(piece.arrays, piece.along, strict=True)
                if along[lead]
            )
            for piece in self.pieces
        ]
        return self.value, tuple(moved)

    def layer(self, origin: Origin, value: Array, arrays: tuple[tuple[Array, ...], ...]) -> "Weight":
        """Return one layer of the stack, in a scan over `scanned`, under an origin of its own."""
        lead = self.lead_of(0)
        assert lead is not None
        pieces = []
        for piece, some in zip(self.pieces, arrays, strict=True):
            own = iter(some)
            found = tuple(
                next(own) if along[lead] else one for one, along in zip(piece.arrays, piece.along, strict=True)
            )
            along = tuple((*one[:lead], *one[lead + 1 :]) for one in piece.along)
            pieces.append(replace(piece, arrays=found, along=along))
        rest = (*self.lead[:lead], *self.lead[lead + 1 :])
        return replace(self, value=value, pieces=tuple(pieces), origin=origin, axes=self.axes[1:], lead=rest)

    def stacked_once(self) -> "Weight":
        """Return the weight, whose first axis was added by a reshape and has size 1, as a stack along that axis."""
        atom = next(one for n in count() if (one := (("once", n), 1)) not in self.lead)
        pieces = tuple(replace(one, along=tuple((False, *along) for along in one.along)) for one in self.pieces)
        return replace(self, pieces=pieces, axes=((atom,), *self.axes[1:]), lead=(atom, *self.lead))

    def is_same(self, other: "Weight") -> bool:
        """Return whether this is the other weight, unchanged."""
        return (self.origin, self.axes, self.lead) == (other.origin, other.axes, other.lead)

    def lead_of(self, axis: int) -> int | None:
        """Return which lead axis an axis is, alone and whole; None if it is none."""
        atoms = self.axes[axis]
        return self.lead.index(atoms[0]) if len(atoms) == 1 and atoms[0] in self.lead else None


def atoms_of(atoms: Sequence[Atom], side: str) -> list[Atom]:
    """Return the atoms of one side, in the order of the site."""
    return sorted(atom for atom in atoms if atom[0][0] == side)


def size_of(atoms: Sequence[Atom]) -> int:
    """Return the product of the sizes."""
    return math.prod(size for _, size in atoms)


def _part(x: Array, place: tuple[int, int]) -> Array:
    return x if place == (0, x.shape[-1]) else lax.slice_in_dim(x, *place, axis=-1)
