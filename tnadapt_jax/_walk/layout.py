"""Operations that only move the numbers of a weight: each returns the weight with its axes where they are then."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from tnadapt_jax._walk.weight import Atom, Weight

__all__: list[str] = []

Axes = tuple[tuple[Atom, ...], ...]
Params = dict[str, Any]
UNMOVED = {
    "convert_element_type",
    "copy",
    "copy_p",
    "name",
    "optimization_barrier",
    "pvary",
    "reshard",
    "sharding_constraint",
    "stop_gradient",
}


def move(name: str, params: Params, weight: Weight, rest: Sequence[Array], value: Array) -> Weight | None:
    """Return the weight after an operation of this name whose result is `value`; None if it does more than move.

    `rest` are the operands besides the weight, which comes first.
    """
    if name in MOVES:
        how, *needed = MOVES[name]
        return how(params, weight, rest, value) if {*needed} <= params.keys() else None
    return _unmoved(weight, value) if name in UNMOVED and not rest else None


def _unmoved(weight: Weight, value: Array) -> Weight | None:
    if value.dtype == weight.value.dtype:
        return replace(weight, value=value)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        return None
    return replace(weight, value=value, origin=weight.origin.again())  # it is not the leaf any more


def _transposed(params: Params, weight: Weight, rest: Sequence[Array], value: Array) -> Weight:
    return replace(weight, value=value, axes=tuple(weight.axes[axis] for axis in params["permutation"]))


def _reshaped(params: Params, weight: Weight, rest: Sequence[Array], value: Array) -> Weight | None:
    """Return the weight in another shape, unless numbers are repeated or change their order."""
    places = list(params.get("broadcast_dimensions", ()))
    turns = "new_sizes" in params and params.get("dimensions") is not None  # a reshape that transposes first
    is_same = value.size == weight.value.size and places == sorted(places) and not turns
    return _in_shape(weight, value) if is_same and not rest else None


def _cut(params: Params, weight: Weight, rest: Sequence[Array], value: Array) -> Weight | None:
    if params["strides"] is not None:
        return None
    start, stop = params["start_indices"], params["limit_indices"]
    return _sliced(weight, value, lambda array, at, axis: lax.slice_in_dim(array, start[axis], stop[axis], axis=at))


def _cut_anywhere(params: Params, weight: Weight, rest: Sequence[Array], value: Array) -> Weight | None:
    sizes = params["slice_sizes"]

    def take(array: Array, at: int, axis: int) -> Array:
        # the primitive clamps, but lax.dynamic_slice counts what is negative from the end before that
        of = rest[axis].dtype  # in which a number can be beyond those of int32
        last = min(array.shape[at] - sizes[axis], int(jnp.iinfo(of).max))  # type: ignore[no-untyped-call]
        start = lax.convert_element_type(lax.clamp(np.array(0, of), rest[axis], np.array(last, of)), np.int32)
        return lax.dynamic_slice_in_dim(array, start, sizes[axis], axis=at)

    return _sliced(weight, value, take)


def _in_shape(weight: Weight, value: Array) -> Weight | None:
    """Return the weight in another shape, if each new axis is made of whole atoms or parts of them."""
    for lead in reversed(range(len(weight.lead))):
        if weight.lead[lead][1] == 1:  # an axis of one layer or expert may be left out by a shape
            weight = _without(weight, lead)
    found = regroup(weight.axes, value.shape)
    if found is None:
        return None
    axes, parts = found
    pieces, atoms = weight.pieces, list(weight.lead)
    for place in reversed(range(len(atoms))):
        if own := parts.get(atoms[place]):
            pieces = tuple(piece.split(place, [size for _, size in own]) for piece in pieces)
            atoms[place : place + 1] = own
    return replace(weight, value=value, pieces=pieces, axes=axes, lead=tuple(atoms))


def _without(weight: Weight, lead: int) -> Weight:
    atom = weight.lead[lead]
    return replace(
        weight,
        pieces=tuple(
            piece.moved(lambda array, axis: lax.index_in_dim(array, 0, axis, keepdims=False), lead, drop=True)
            for piece in weight.pieces
        ),
        axes=tuple(tuple(one for one in axis if one != atom) for axis in weight.axes),
        lead=tuple(one for one in weight.lead if one != atom),
    )


def regroup(axes: Axes, shape: Sequence[int]) -> tuple[Axes, dict[Atom, list[Atom]]] | None:
    """Return the atoms of the axes of a new shape, and the parts of each atom that had to be split.

    None if an axis would need a part of an atom that does not divide it. Atoms of size 1 are left out.
    """
    queue = [(atom, atom) for axis in axes for atom in axis if atom[1] > 1]  # what is left of an atom, and the atom
    parts: dict[Atom, list[Atom]] = {}
    found: list[tuple[Atom, ...]] = []
    for size in shape:
        group: list[Atom] = []
        left = size
        while left > 1:
            if not queue:
                return None
            (key, has), whole = queue.pop(0)
            if left % has == 0:
                taken = (key, has)
            elif has % left == 0:
                taken = ((*key, 0), left)
                queue.insert(0, (((*key, 1), has // left), whole))
            else:
                return None
            group.append(taken)
            parts.setdefault(whole, []).append(taken)
            left //= taken[1]
        found.append(tuple(group))
    return tuple(found), {atom: own for atom, own in parts.items() if own != [atom]}


def _sliced(weight: Weight, value: Array, take: Any) -> Weight | None:
    """Return some layers or experts of a stack; `take(array, axis, axis of the weight)` takes them of an array."""
    cut = [axis for axis, size in enumerate(value.shape) if size != weight.value.shape[axis]]
    if not cut:
        return replace(weight, value=value)
    (axis, *others) = cut
    if others or weight.lead_of(axis) is None:
        return None
    return weight.moved(value, axis, lambda array, at: take(array, at, axis))


# How a weight is moved, and the parameters that this needs: if jax calls them otherwise, the weight becomes an array.
MOVES: dict[str, tuple[Any, ...]] = {
    "transpose": (_transposed, "permutation"),
    **dict.fromkeys(("reshape", "squeeze", "expand_dims"), (_reshaped,)),
    "broadcast_in_dim": (_reshaped, "broadcast_dimensions"),
    "slice": (_cut, "strides", "start_indices", "limit_indices"),
    "dynamic_slice": (_cut_anywhere, "slice_sizes"),
}
