"""Sums and reshapes under meshes of explicit axes, where each array has a sharding in its type.

Everywhere else these are the plain operations of jax. The activations decide: a factor is brought to their sharding,
since it is small.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax import Array, lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec, reshard

__all__: list[str] = []

Spec = tuple[Any, ...]  # for each axis what it is split over: a name of the mesh, a tuple of names, or None
OutSharding = NamedSharding | PartitionSpec | None
Dimensions = tuple[tuple[Sequence[int], Sequence[int]], tuple[Sequence[int], Sequence[int]]]


def spec_of(value: Array) -> Spec | None:
    """Return what each axis of an array is split over; None unless the mesh of its type has explicit axes."""
    sharding = jax.typeof(value).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return None
    return (*sharding.spec, *[None] * (value.ndim - len(sharding.spec)))


def brought_to(value: Array, spec: Spec | None) -> Array:
    """Return an array of an explicit mesh with this sharding; any other array as it is."""
    if spec is None or spec_of(value) in (None, spec):
        return value
    return reshard(value, _sharding(value, spec))  # type: ignore[no-untyped-call, no-any-return]


def placed(value: Array, out_sharding: OutSharding) -> Array:
    """Return an array with the sharding that was asked for: a type under explicit meshes, else a constraint."""
    if out_sharding is None:
        return value
    if spec_of(value) is None:
        return lax.with_sharding_constraint(value, out_sharding)  # type: ignore[no-untyped-call, no-any-return]
    return reshard(value, out_sharding)  # type: ignore[no-untyped-call, no-any-return]


def free_of(spec: Sequence[Any], used: Sequence[Any]) -> Spec:
    """Return the entries of a spec; None for each that has an axis of the mesh that `used` has."""
    taken = {name for entry in used for name in _names(entry)}
    return tuple(None if taken.intersection(_names(entry)) else entry for entry in spec)


def dot(left: Array, right: Array, dimensions: Dimensions, precision: lax.Precision | None = None) -> Array:
    """Return `lax.dot_general`. The left side decides how summed axes are split; the sum is not split over them."""
    of_left, of_right = spec_of(left), spec_of(right)
    if of_left is None or of_right is None:
        return lax.dot_general(left, right, dimensions, precision=precision)
    (sums, sums_right), (batch, batch_right) = dimensions
    shared = dict(zip((*sums_right, *batch_right), (*sums, *batch), strict=True))
    wanted = [of_left[shared[axis]] if axis in shared else None for axis in range(right.ndim)]
    free = free_of(of_right, wanted)  # what it has beside the axes of the mesh that the left side's axes take
    right = brought_to(right, tuple(wanted[axis] if axis in shared else free[axis] for axis in range(right.ndim)))
    front = [of_left[axis] for axis in (*batch, *(n for n in range(left.ndim) if n not in (*sums, *batch)))]
    rest = free_of([free[axis] for axis in range(right.ndim) if axis not in shared], front)
    out = _sharding(left, (*front, *rest))
    return lax.dot_general(left, right, dimensions, precision=precision, out_sharding=out)


def split_axes(value: Array, parts: Sequence[Sequence[int]]) -> Array:
    """Return an array with each axis split into axes of these sizes; what it is split over goes to the first of them.

    An axis whose first part has a size that the mesh does not divide is gathered.
    """
    shape = [size for sizes in parts for size in sizes]
    spec = spec_of(value)
    if spec is None or all(len(sizes) == 1 for sizes in parts):
        return value.reshape(shape)
    kept = [
        entry if len(sizes) == 1 or _divides(value, entry, sizes) else None
        for entry, sizes in zip(spec, parts, strict=True)
    ]
    found = [
        entry
        for own, sizes in zip(kept, parts, strict=True)
        for entry in (own, *[None] * (len(sizes) - 1))[: len(sizes)]
    ]
    value = brought_to(value, tuple(kept))
    return lax.reshape(value, shape, out_sharding=_sharding(value, tuple(found)))


def merge_axes(value: Array, parts: Sequence[int]) -> Array:
    """Return an array with so many axes merged into each one; each is split over what the first of them was."""
    starts = [sum(parts[:n]) for n in range(len(parts))]
    shape = [math.prod(value.shape[at : at + many]) for at, many in zip(starts, parts, strict=True)]
    spec = spec_of(value)
    if spec is None or all(many == 1 for many in parts):
        return value.reshape(shape)
    kept = tuple(spec[at] if many else None for at, many in zip(starts, parts, strict=True))
    value = brought_to(value, tuple(entry if axis in starts else None for axis, entry in enumerate(spec)))
    return lax.reshape(value, shape, out_sharding=_sharding(value, kept))


def gathered(value: Array, axis: int) -> Array:
    """Return an array that is not split along one axis."""
    spec = spec_of(value)
    return value if spec is None else brought_to(value, (*spec[:axis], None, *spec[axis + 1 :]))


def _sharding(value: Array, spec: Spec) -> NamedSharding:
    return NamedSharding(jax.typeof(value).sharding.mesh, PartitionSpec(*spec))  # type: ignore[no-untyped-call]


def _names(entry: Any) -> tuple[str, ...]:
    return () if entry is None else entry if isinstance(entry, tuple) else (entry,)


def _divides(value: Array, entry: Any, sizes: Sequence[int]) -> bool:
    mesh = jax.typeof(value).sharding.mesh
    return bool(sizes) and sizes[0] % math.prod(mesh.shape[name] for name in _names(entry)) == 0
