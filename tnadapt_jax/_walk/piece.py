"""What one block of a stacked weight is adapted by: the arrays of all of its sites, over layers and experts at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from tnadapt.binding import Network
from tnadapt_jax._apply import Parts, apply_parts, delta_of_parts
from tnadapt_jax._magnitude import Rows
from tnadapt_jax._maps import map_factor

__all__: list[str] = []

Along = tuple[bool, ...]  # for each lead axis (of layers, of experts), whether an array has it, in front


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["arrays"],
    meta_fields=["along", "network", "rows", "columns", "has_rows", "is_partial"],
)
@dataclass(frozen=True)
class Piece:
    """One block of a weight, at every layer and expert: a network, and its arrays, stacked where places differ.

    Args:
        arrays: the factors in the order of the network's nodes, before their maps; then the lengths and the host's
            weight of a magnitude; then, if some places have no site, 1 or 0 for each place.
        along: for each array its lead axes.
        network: the network of its sites.
        rows: the first row of the block in the weight, and that after the last one.
        columns: likewise for the columns.
        has_rows: whether there is a magnitude.
        is_partial: whether some places have no site.
    """

    arrays: tuple[Array, ...]
    along: tuple[Along, ...]
    network: Network
    rows: tuple[int, int]
    columns: tuple[int, int]
    has_rows: bool
    is_partial: bool

    @property
    def reads_product(self) -> bool:
        """Whether an update reads the product of x and the host's weight."""
        return self.has_rows or any(factor.init.is_host for factor in self.network.factors.values())

    def apply(self, sizes: Sequence[int], x: Array, has: Along, product: tuple[Array, Along] | None) -> Array:
        """Return the update of x (lead axes that it has, ..., columns): (lead axes, ..., rows)."""
        given = [] if product is None else [product[0]]
        flags = (*self.along, has, *([] if product is None else [product[1]]))

        def at_one(*arrays: Array) -> Array:
            own, (x, *rest) = arrays[: len(self.arrays)], arrays[len(self.arrays) :]
            return self._shown(own, apply_parts(self._parts(own), x, rest[0] if rest else None))

        return over_lead(at_one, sizes, flags)(*self.arrays, x, *given)

    def apply_transposed(self, sizes: Sequence[int], x: Array, has: Along) -> Array:
        """Return the transposed update of x (lead axes that it has, ..., rows): (lead axes, ..., columns)."""
        inner = self.columns[1] - self.columns[0]

        def at_one(*arrays: Array) -> Array:
            *own, x = arrays
            parts = self._parts(own)
            like = jax.ShapeDtypeStruct((*x.shape[:-1], inner), x.dtype)  # type: ignore[no-untyped-call]
            return self._shown(own, jax.linear_transpose(lambda x: apply_parts(parts, x), like)(x)[0])

        return over_lead(at_one, sizes, (*self.along, has))(*self.arrays, x)

    def delta(self, sizes: Sequence[int], dtype: DTypeLike) -> Array:
        """Return the dense updates (lead axes, rows, columns) in this dtype."""

        def at_one(*own: Array) -> Array:
            return self._shown(own, delta_of_parts(self._parts(own), dtype))

        return over_lead(at_one, sizes, self.along)(*self.arrays)

    def moved(self, take: Callable[[Array, int], Array], lead: int, *, drop: bool) -> "Piece":
        """Return the piece after a move along one lead axis; `take(array, axis)` moves an array that has it."""
        found = [
            take(value, sum(along[:lead])) if along[lead] else value
            for value, along in zip(self.arrays, self.along, strict=True)
        ]
        along = tuple((*one[:lead], *one[lead + 1 :]) for one in self.along) if drop else self.along
        return replace(self, arrays=tuple(found), along=along)

    def split(self, lead: int, sizes: Sequence[int]) -> "Piece":
        """Return the piece after one lead axis was split into several."""

        def parted(value: Array, along: Along) -> Array:
            at = sum(along[:lead])
            return value.reshape(*value.shape[:at], *sizes, *value.shape[at + 1 :]) if along[lead] else value

        found = tuple(parted(value, along) for value, along in zip(self.arrays, self.along, strict=True))
        along = tuple((*one[:lead], *[one[lead]] * len(sizes), *one[lead + 1 :]) for one in self.along)
        return replace(self, arrays=found, along=along)

    def _parts(self, own: Sequence[Array]) -> Parts:
        """Return what one site reads."""
        network = self.network
        held = [network.factors[node.factor] for node in network.nodes.values()]
        rest = own[len(held) :]
        factors = [value if one.init.is_host else map_factor(one.map, value) for one, value in zip(held, own)]  # noqa: B905
        return Parts(network, factors, Rows(rest[0], rest[1]) if self.has_rows else None)

    def _shown(self, own: Sequence[Array], update: Array) -> Array:
        """Return an update where there is a site, and 0 elsewhere."""
        return update * own[-1].astype(update.dtype) if self.is_partial else update


def over_lead(function: Callable[..., Array], sizes: Sequence[int], has: Sequence[Along]) -> Callable[..., Array]:
    """Return the function over all lead axes; `has` says for each argument along which of them it differs."""
    for lead in reversed(range(len(sizes))):
        flags = [along[lead] for along in has]
        if any(flags):
            function = jax.vmap(function, in_axes=tuple(0 if flag else None for flag in flags))
        else:
            function = partial(_repeated, function, sizes[lead])
    return function


def _repeated(function: Callable[..., Array], size: int, *args: Any) -> Array:
    made = function(*args)
    return lax.broadcast_in_dim(made, (size, *made.shape), range(1, made.ndim + 1))


def put_together(made: Sequence[tuple[tuple[int, int], Array]], size: int) -> Array:
    """Return one array from the parts along its last axis, which are disjoint or the same; 0 where there is no part."""
    total: dict[tuple[int, int], Array] = {}
    for place, value in made:
        total[place] = total[place] + value if place in total else value
    order = sorted(total)
    if any(stop > start for (_, stop), (start, _) in pairwise(order)):
        wide = [_padded(value, place, size) for place, value in total.items()]
        return sum(wide[1:], wide[0])
    if order == [(0, size)]:
        return total[order[0]]
    found, at = [], 0
    like = total[order[0]]
    for start, stop in order:
        if start > at:
            found.append(jnp.zeros((*like.shape[:-1], start - at), like.dtype))
        found.append(total[start, stop])
        at = stop
    if at < size:
        found.append(jnp.zeros((*like.shape[:-1], size - at), like.dtype))
    return jnp.concatenate(found, axis=-1)


def _padded(value: Array, place: tuple[int, int], size: int) -> Array:
    edges = [(0, 0, 0)] * (value.ndim - 1) + [(place[0], size - place[1], 0)]
    return lax.pad(value, jnp.zeros((), value.dtype), edges)
