"""What a grid of sites reads of the params: an array once where all read the same, stacked where they differ."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array, lax

from tnadapt.binding import Part

__all__: list[str] = []

Grid = npt.NDArray[Any]  # of Parts, with an axis for each way in which sites are numbered, such as layers or experts


def cut(value: Array, place: Sequence[int | slice]) -> Array:
    """Select one index, or the leading part, along each axis of an array; by slices, whose gradient is no scatter."""
    stops = [at.stop if isinstance(at, slice) else at + 1 for at in place]
    starts = [0 if isinstance(at, slice) else at for at in place]
    if tuple(stops) != value.shape or any(starts):
        value = lax.slice(value, starts, stops)
    return lax.squeeze(value, [axis for axis, at in enumerate(place) if isinstance(at, int)])


def stack_parts(grid: Grid, read: Callable[[Part], Array]) -> tuple[Array, tuple[bool, ...]]:
    """Return what the sites of a grid read of one factor, and along which axes of the grid it differs.

    The array has those axes in front, in their order. `read` returns the whole array that a part is cut from.
    """
    along = tuple(_varies(grid, axis) for axis in range(grid.ndim))
    return _stacked(grid[(*(slice(None) if moves else 0 for moves in along), ...)], read), along


def take_rows(value: Array, rows: Sequence[int], axis: int) -> Array:
    """Select rows along an axis; by one strided slice, whose gradient is no scatter, if they are evenly spaced."""
    if list(rows) == list(range(value.shape[axis])):
        return value
    step = rows[1] - rows[0] if len(rows) > 1 else 1
    if step > 0 and list(rows) == list(range(rows[0], rows[0] + step * len(rows), step)):
        return lax.slice_in_dim(value, rows[0], rows[-1] + 1, step, axis)
    return jnp.take(value, jnp.array(rows), axis=axis, unique_indices=len({*rows}) == len(rows))


def _varies(grid: Grid, axis: int) -> bool:
    first = np.take(grid, [0], axis)
    return any(a is not b and (a.name, a.cut) != (b.name, b.cut) for a, b in np.broadcast(first, grid))


def _stacked(grid: Grid, read: Callable[[Part], Array]) -> Array:
    if grid.ndim == 0:
        part = grid.item()
        return cut(read(part), part.cut)
    rows = _rows_of(grid)
    if rows is None:
        return jnp.stack([_stacked(grid[n, ...], read) for n in range(len(grid))])
    part = grid.flat[0]
    value = read(part)
    for axis, found in rows:
        value = take_rows(value, found, axis)
    moved = [axis for axis, _ in rows]
    place = [slice(value.shape[axis]) if axis in moved else at for axis, at in enumerate(part.cut)]
    left = [axis for axis, at in enumerate(place) if isinstance(at, slice)]
    order = [*moved, *(axis for axis in left if axis not in moved)]
    return lax.transpose(cut(value, place), [left.index(axis) for axis in order])


def _rows_of(grid: Grid) -> list[tuple[int, list[int]]] | None:
    """Return, for each axis of the grid, the one axis of the array that it walks along, and the rows that it visits.

    None if the sites read several arrays, or if an axis of the grid moves the place along several axes of the array.
    """
    places = np.array([part.cut for part in grid.flat], dtype=object).reshape(*grid.shape, -1)
    if len({part.name for part in grid.flat}) > 1:
        return None
    found = []
    for axis in range(grid.ndim):
        line = np.moveaxis(places, axis, 0).reshape(grid.shape[axis], -1, places.shape[-1])[:, 0]
        moving = [at for at in range(places.shape[-1]) if len({*map(str, line[:, at])}) > 1]
        if len(moving) != 1:
            return None
        found.append((moving[0], [int(row) for row in line[:, moving[0]]]))
    if len({at for at, _ in found}) < len(found):
        return None
    for index in np.ndindex(grid.shape):
        wanted = list(places[(0,) * grid.ndim])
        for (at, rows), place in zip(found, index, strict=True):
            wanted[at] = rows[place]
        if list(places[index]) != wanted:
            return None
    return found
