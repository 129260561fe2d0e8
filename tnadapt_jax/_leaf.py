"""The leaves of a pytree of weights that are adapted: how each is stored, and whether an adapter fits them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array

from tnadapt import Adapter, Site, SiteError
from tnadapt.binding import mistake, nearest, told

__all__ = ["Leaf", "Leaves"]

ROLES = ("expert", "out", "in")


@dataclass(frozen=True)
class Leaf:
    """Where one site's weight lies: the path of its leaf, the role of each of its axes, its place in a stack.

    `roles` says "out", "in" or "expert" for each axis of one weight; `shape` is that of the whole leaf. In a stacked
    leaf the layers lie along `axis`, this one at `index`; else both are None. The site may be a block of the weight.
    """

    site: Site
    path: str
    roles: tuple[str, ...]
    shape: tuple[int, ...]
    axis: int | None = None
    index: int | None = None

    @property
    def stored(self) -> tuple[int, ...]:
        """The shape of one weight as it is stored, the axis of a stack taken away."""
        return tuple(size for axis, size in enumerate(self.shape) if axis != self.axis)

    def lay(self, update: Array) -> Array:
        """An update of the whole weight (experts first, then out) as it is stored."""
        order = sorted(range(len(self.roles)), key=lambda axis: ROLES.index(self.roles[axis]))
        sizes = [self.stored[axis] for axis in order]
        return jax.lax.transpose(update.reshape(sizes), [order.index(axis) for axis in range(len(order))])

    def unlay(self, leaf: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """The weight in its leaf, as a site has it."""
        stored = leaf if self.axis is None else leaf.take(self.index or 0, self.axis)
        wide = stored.astype(np.promote_types(stored.dtype, np.float32))
        order = sorted(range(len(self.roles)), key=lambda axis: ROLES.index(self.roles[axis]))
        return wide.transpose(order).reshape(self.site.weight_shape)


@dataclass(frozen=True)
class Leaves:
    """What was found, a value that can be hashed: `sites` is what `AdapterSpec.bind` takes. Add two to have both."""

    entries: tuple[Leaf, ...]

    @property
    def sites(self) -> tuple[Site, ...]:
        """The adapted weights, in the order of the tree."""
        return tuple(leaf.site for leaf in self.entries)

    def read(self, weights: Any) -> dict[str, npt.NDArray[np.generic]]:
        """The weights by their paths as arrays (out, in), or (expert, out, in): what starts are read from."""
        arrays = {path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(weights)}
        return {leaf.site.weight: leaf.unlay(np.asarray(arrays[leaf.path])) for leaf in self.entries}

    def __add__(self, other: "Leaves") -> "Leaves":
        return Leaves((*self.entries, *other.entries))

    def __str__(self) -> str:
        """A table: one line a site."""
        rows = [("path", "layer", "kind", "weight", "leaf")]
        for leaf in self.entries:
            where = leaf.path if leaf.axis is None else f"{leaf.path}, {leaf.index} along axis {leaf.axis}"
            here = leaf.site.coordinates
            size = " x ".join(map(str, leaf.site.shape))
            rows.append(
                (leaf.site.path, str(here["layer"]), str(here["kind"]), size, f"{where} ({' '.join(leaf.roles)})")
            )
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def check_leaves(adapter: Adapter, leaves: Leaves, weights: Any) -> dict[str, list[Leaf]]:
    """The adapter's sites by the path of their leaf.

    Raises SiteError for a site that has no leaf, or a leaf that is missing or of another shape: nothing is traced then.
    """
    by_site = {leaf.site.path: leaf for leaf in leaves.entries}
    shapes = dict(arrays_of(weights))
    found: dict[str, list[Leaf]] = {}
    for site in adapter.sites:
        leaf = by_site.get(site.path)
        if leaf is None:
            raise SiteError(f"{site.path}: has no leaf among those found.{nearest(site.path, by_site)}")
        if (leaf.site.shape, leaf.site.weight_shape) != (site.shape, site.weight_shape):
            raise SiteError(
                f"{site.path}: this adapter updates a weight of shape (out, in) = {site.weight_shape}.\n"
                f"However, the leaf {leaf.path} is {leaf.stored}, in the layout '{' '.join(leaf.roles)}'.\n"
                "If it is stored the other way round, say so by `layout` in find_sites."
            )
        if shapes.get(leaf.path) != leaf.shape:
            raise SiteError(
                f"{site.path}: its leaf {leaf.path} must have shape {leaf.shape}, as when it was found.\n"
                f"However, in these weights it is {shapes.get(leaf.path, 'missing')}."
            )
        found.setdefault(leaf.path, []).append(leaf)
    return found


def expect_leaves(given: object, where: str) -> None:
    """Raises SiteError for what find_sites did not give; `where` begins the message."""
    if not isinstance(given, Leaves):
        raise mistake(SiteError, where, "Leaves", told(given), "Pass what find_sites(weights, ...) gives, whole.")


def path_of(path: tuple[Any, ...]) -> str:
    """The path of a leaf as text."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def arrays_of(weights: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The path and shape of every leaf that is an array."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(weights):
        if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
            yield path_of(path), tuple(jnp.shape(leaf))
