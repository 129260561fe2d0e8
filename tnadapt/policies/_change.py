"""The result of a change of bonds: the new adapter and its params, and what becomes of an optimizer's moments."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tnadapt._errors import SiteError
from tnadapt._frozen import FrozenMap
from tnadapt._language import Adapter
from tnadapt._signature import mistake, near, told
from tnadapt._values import Params, contract

__all__ = ["Change"]

Array = npt.NDArray[np.float64]
NEW = -1  # the source of a slice that was not there before


@dataclass(frozen=True, eq=False)
class Selection:
    """One axis of an array gets these slices of before, in this order; `NEW` is a new one, at first 0."""

    axis: int
    sources: tuple[int, ...]

    def move(self, array: Array, *, squared: bool) -> Array:
        """Return the array with the slices; squares of entries have the same ones."""
        places = np.array(self.sources)
        moved: Array = np.take(array, np.maximum(places, 0), axis=self.axis)
        np.moveaxis(moved, self.axis, 0)[places == NEW] = 0.0
        return moved


@dataclass(frozen=True, eq=False)
class Transport:
    """One axis of an array is multiplied by a matrix (before, after), one for each index of the `batch` axes."""

    axis: int
    matrix: Array
    batch: tuple[int, ...] = ()

    def move(self, array: Array, *, squared: bool) -> Array:
        """Return the product; squares of entries are multiplied by the squares of the matrix."""
        matrix = self.matrix**2 if squared else self.matrix
        modes = tuple(map(str, range(array.ndim)))
        run = (*(modes[axis] for axis in self.batch), modes[self.axis], "new")
        answer = tuple("new" if axis == self.axis else mode for axis, mode in enumerate(modes))
        return np.ascontiguousarray(contract([(array, modes), (matrix, run)], answer))


Move = Selection | Transport


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Change:
    """A change of bonds: the adapter and the params after it, and how a gradient before it becomes one after it.

    `moves` has for each entry of params that changed shape or basis what happened to its axes, one after the other.
    `factors` are the numbers by which values were multiplied because the scale moved. `errors` has, for a sweep, the
    discarded singular values of each bond, those of the update of all sites.
    """

    before: Adapter
    adapter: Adapter
    params: Params
    moves: Mapping[str, Sequence[Move]]
    factors: Mapping[str, float] = field(default_factory=dict)
    errors: Mapping[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Freeze the mappings."""
        for word in ("moves", "factors", "errors"):
            object.__setattr__(self, word, FrozenMap(getattr(self, word)))

    def __repr__(self) -> str:
        """Return the arrays that changed, and the norm of what each bond lost, without any values."""
        lost = ", ".join(f"{name} {np.linalg.norm(values):.3g}" for name, values in self.errors.items())
        return f"Change({self.adapter.spec.name}: {', '.join(self.moves)}{f'; discarded: {lost}' if lost else ''})"

    def then(self, later: "Change") -> "Change":
        """Return this change and a later one, made from its adapter and params, as one change.

        Bonds that both rounded have the discarded values of both. Raises SiteError for a change of another adapter.
        """
        if not isinstance(later, Change):
            todo = "Pass what grow, cut or sweep returns for the adapter and the params of this change."
            raise mistake(SiteError, "then", "a change", told(later), todo)
        if later.before != self.adapter:
            raise SiteError("then: expected a change of the adapter that this one leads to, got one of another.")
        names, lost = {*self.moves, *later.moves}, {*self.errors, *later.errors}
        none: Array = np.zeros(0)
        return Change(
            before=self.before,
            adapter=later.adapter,
            params=later.params,
            moves={name: (*self.moves.get(name, ()), *later.moves.get(name, ())) for name in sorted(names)},
            factors={
                name: self.factors.get(name, 1.0) * later.factors.get(name, 1.0)
                for name in sorted({*self.factors, *later.factors})
            },
            errors={
                name: np.concatenate([self.errors.get(name, none), later.errors.get(name, none)])
                for name in sorted(lost)
            },
        )

    def mixes(self, name: str) -> bool:
        """Return whether a bond of an entry got another basis, in which each slice is a sum of earlier ones."""
        return any(isinstance(move, Transport) for move in self.moves.get(name, ()))

    def carry(self, name: str, array: npt.ArrayLike, squared: bool = False) -> npt.NDArray[np.floating]:
        """Return what a gradient of an entry before the change, or a mean of gradients, is after it.

        New slices get 0. Where values were multiplied, gradients are divided by the same number; where a bond got
        another basis, they are transported as derivatives are, not as values.

        Args:
            name: the entry of params.
            array: a mean of gradients, as Adam's first moment, in the entry's shape before the change.
            squared: whether it is a mean of their squares, as Adam's second moment. A basis then mixes the squares by
                the squares of its entries, as if the gradients of slices were uncorrelated.

        Raises:
            SiteError: the adapter has no such entry, or it has another shape.
        """
        if name not in self.before.slots:
            raise SiteError(f"carry: expected an entry of params, got {name!r}.\n{near(name, [*self.before.slots])}")
        given = np.asarray(array)
        if given.shape != (shape := self.before.slots[name].shape):
            raise SiteError(f"carry: expected {name!r} in its shape before the change, {shape}, got {given.shape}.")
        values = np.array(given, dtype=np.float64)
        for move in self.moves.get(name, ()):
            values = move.move(values, squared=squared)
        values = values / self.factors.get(name, 1.0) ** (2 if squared else 1)
        return values.astype(given.dtype) if given.dtype.kind == "f" else values
