"""Turn the adapted leaves of a tree into weights: the sites of a leaf as few pieces, over its layers and experts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from tnadapt import Adapter
from tnadapt.binding import Address, Network, Part
from tnadapt_jax._leaf import Leaf
from tnadapt_jax._params import Params, find_array
from tnadapt_jax._stack import Grid, stack_parts
from tnadapt_jax._walk.piece import Piece
from tnadapt_jax._walk.weight import Atom, Log, Origin, Weight

__all__: list[str] = []

Axes = tuple[tuple[Atom, ...], ...]
Range = tuple[int, int]


@dataclass(frozen=True)
class Block:
    """One block of a leaf at all of its places: its network, the grid of parts of each array, which places have it."""

    network: Network
    rows: Range
    columns: Range
    grids: tuple[Grid, ...]
    has_rows: bool
    present: Grid

    def read(self, adapter: Adapter, params: Params, known: dict[str, Array]) -> Piece:
        """Return the piece with the arrays of these params. Frozen factors and starts get no gradient."""

        def whole(part: Part) -> Array:
            if part.name not in known:
                value = find_array(adapter, params, part.name)
                known[part.name] = value if part.name in params["trainable"] else lax.stop_gradient(value)
            value = known[part.name]
            if not part.factor.init.is_host or not part.factor.modes:
                return value
            return value.reshape([self.network.sizes[mode] for mode in part.factor.modes])

        found = [stack_parts(grid, whole) for grid in self.grids]
        if is_partial := not self.present.all():
            mask = jnp.asarray(self.present.astype(np.float32))
            found.append((mask, (True,) * self.present.ndim))
        arrays, along = (tuple(each) for each in zip(*found, strict=True))
        return Piece(arrays, along, self.network, self.rows, self.columns, self.has_rows, is_partial)


@dataclass(frozen=True)
class View:
    """How one leaf is adapted, without any values."""

    path: str
    axes: Axes
    lead: tuple[Atom, ...]
    shape: tuple[int, int]
    blocks: tuple[Block, ...]

    def weight(
        self, adapter: Adapter, params: Params, leaf: Array, log: Log, known: dict[str, Array], *, refuses: bool = False
    ) -> Weight:
        """Return the leaf as a weight. `known` keeps the arrays that were read, for the other leaves."""
        pieces = tuple(block.read(adapter, params, known) for block in self.blocks)
        return Weight(leaf, pieces, Origin(self.path, log, refuses=refuses), self.axes, self.lead, self.shape)


@lru_cache(maxsize=512)
def view_of(adapter: Adapter, entries: tuple[Leaf, ...]) -> View:
    """Return how one leaf is adapted, given its sites, of one task."""
    first = entries[0]
    counts: Counter[str] = Counter()
    axes: list[tuple[Atom, ...]] = []
    roles = iter(first.roles)
    for axis, size in enumerate(first.shape):
        if axis == first.axis:
            axes.append(((("layer",), size),))
            continue
        role = next(roles)
        axes.append((((role,) if role == "expert" else (role, counts[role]), size),))
        counts[role] += 1
    lead = tuple(atom for word in ("layer", "expert") for axis in axes for atom in axis if atom[0] == (word,))
    out, inner = first.site.weight_shape[-2:]
    return View(first.path, tuple(axes), lead, (out, inner), _blocks(adapter, entries, lead))


def _blocks(adapter: Adapter, entries: Sequence[Leaf], lead: Sequence[Atom]) -> tuple[Block, ...]:
    found: dict[tuple[Range, Range, Network], dict[tuple[int, ...], Address]] = {}
    for leaf in entries:
        address = adapter.address(leaf.site)
        *expert, rows, columns = address.site.rectangle
        layer = [] if leaf.index is None else [leaf.index]
        place = (*layer, *(at for at in expert if isinstance(at, int)))
        found.setdefault((_range(rows), _range(columns), address.group.network), {})[place] = address
    sizes = [size for _, size in lead]
    return tuple(_block(network, rows, columns, places, sizes) for (rows, columns, network), places in found.items())


def _range(at: int | slice) -> Range:
    assert isinstance(at, slice)
    return at.start, at.stop


def _block(
    network: Network, rows: Range, columns: Range, places: Mapping[tuple[int, ...], Address], sizes: Sequence[int]
) -> Block:
    present = np.zeros(sizes, dtype=bool)
    some = next(iter(places.values()))
    at_all = np.empty(sizes, dtype=object)
    for index in np.ndindex(*sizes):
        present[index] = index in places
        at_all[index] = places.get(index, some)
    reads: list[Any] = [lambda at, node=node: at.parts[node] for node in network.nodes]
    if some.magnitude is not None:
        reads += [lambda at: at.magnitude.lengths, lambda at: at.magnitude.weight]
    grids = []
    for read in reads:
        grid = np.empty(sizes, dtype=object)
        for index in np.ndindex(*sizes):
            grid[index] = read(at_all[index])
        grids.append(grid)
    return Block(network, rows, columns, tuple(grids), some.magnitude is not None, present)
