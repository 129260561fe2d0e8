"""The adapted leaves of a pytree of weights: how each is stored, and whether an adapter fits them."""

from collections import Counter
from collections.abc import Iterator, Mapping
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
    """Where the weight of one site is stored. The site may be a block of the weight.

    Args:
        site: the site.
        path: the path of the leaf.
        roles: "out", "in" or "expert" for each axis of one weight.
        shape: the shape of the whole leaf.
        axis: the axis of the layers if the leaf is a stack, else None.
        index: the index of this weight along `axis`, else None.
    """

    site: Site
    path: str
    roles: tuple[str, ...]
    shape: tuple[int, ...]
    axis: int | None = None
    index: int | None = None

    @property
    def stored(self) -> tuple[int, ...]:
        """The shape of one weight as stored, without the axis of a stack."""
        return tuple(size for axis, size in enumerate(self.shape) if axis != self.axis)

    def lay(self, update: Array) -> Array:
        """Transpose and reshape an update of the whole weight (experts first, then out) to the stored shape."""
        order = sorted(range(len(self.roles)), key=lambda axis: ROLES.index(self.roles[axis]))
        sizes = [self.stored[axis] for axis in order]
        return jax.lax.transpose(update.reshape(sizes), [order.index(axis) for axis in range(len(order))])

    def unlay(self, leaf: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """Return the weight from its leaf, in the axes of a site and in float32 or wider."""
        stored = leaf if self.axis is None else leaf.take(self.index or 0, self.axis)
        wide = stored.astype(np.promote_types(stored.dtype, np.float32))
        order = sorted(range(len(self.roles)), key=lambda axis: ROLES.index(self.roles[axis]))
        return wide.transpose(order).reshape(self.site.weight_shape)


@dataclass(frozen=True)
class Leaves:
    """The leaves that `find_sites` found; hashable. `sites` is the argument of `bind`; `+` joins two of these."""

    entries: tuple[Leaf, ...]

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites of all leaves, in the order of the tree."""
        return tuple(leaf.site for leaf in self.entries)

    def read(self, weights: Any) -> dict[str, npt.NDArray[np.generic]]:
        """Return the weights by path, as arrays (out, in) or (expert, out, in): the `weights` argument of `init`."""
        arrays = {path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(weights)}
        return {leaf.site.weight: leaf.unlay(np.asarray(arrays[leaf.path])) for leaf in self.entries}

    def __add__(self, other: "Leaves") -> "Leaves":
        return Leaves((*self.entries, *other.entries))

    def __str__(self) -> str:
        """Return a table with one line per site."""
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
    """Return the leaves of the adapter's sites, by the path of the leaf. Nothing is traced before this check.

    Raises SiteError for a site without a leaf, or a leaf that is missing or has another shape.
    """
    by_site = {leaf.site.path: leaf for leaf in leaves.entries}
    shapes = dict(arrays_of(weights))
    counts = Counter(path for path, _ in arrays_of(weights))
    dtypes = dict(_dtypes_of(weights))
    found: dict[str, list[Leaf]] = {}
    for site in adapter.sites:
        leaf = by_site.get(site.path)
        if leaf is None:
            raise SiteError(f"{site.path}: expected a leaf for this site, got none.{nearest(site.path, by_site)}")
        if (leaf.site.shape, leaf.site.weight_shape) != (site.shape, site.weight_shape):
            raise SiteError(
                f"{site.path}: expected a weight of shape (out, in) = {site.weight_shape}, "
                f"got the leaf {leaf.path} of shape {leaf.stored} in the layout '{' '.join(leaf.roles)}'.\n"
                "If it is stored transposed, pass another `layout` to find_sites."
            )
        if shapes.get(leaf.path) != leaf.shape:
            raise SiteError(
                f"{site.path}: expected its leaf {leaf.path} to have shape {leaf.shape}, as when it was found, "
                f"got {shapes.get(leaf.path, 'no such leaf')}.{'' if leaf.path in shapes else _hint(leaf.path, shapes)}"
            )
        if counts[leaf.path] > 1:
            raise SiteError(
                f"{leaf.path}: expected one leaf of this path, got {counts[leaf.path]}.\n"
                "A name that contains a dot reads like two names: rename it."
            )
        _expect_float(leaf.path, dtypes[leaf.path])
        found.setdefault(leaf.path, []).append(leaf)
    return found


def _hint(path: str, shapes: Mapping[str, object]) -> str:
    """Return a line that says what to do about a leaf that is missing."""
    if f"{path}.value" in shapes:  # the path of a variable in nnx.State
        return "\nThis is a state of flax nnx: pass nnx.to_pure_dict(nnx.state(model, nnx.Param))."
    return nearest(path, shapes)


def of_task(found: dict[str, list[Leaf]], task: str | None) -> dict[str, list[Leaf]]:
    """Return the leaves of one task. Raises SiteError for an unknown task, or for none if there are several."""
    tasks = list(dict.fromkeys(leaf.site.coordinates.get("task") for some in found.values() for leaf in some))
    if task is None and len(tasks) == 1:
        return found
    if task not in tasks:
        raise SiteError(
            f"task: expected a task of this adapter, got {task!r}.\nIts tasks are {', '.join(map(str, tasks))}."
        )
    return {path: [leaf for leaf in some if leaf.site.coordinates.get("task") == task] for path, some in found.items()}


def _dtypes_of(weights: Any) -> Iterator[tuple[str, Any]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(weights):
        if hasattr(leaf, "shape") and is_typed(leaf):
            yield path_of(path), leaf.dtype


def _expect_float(path: str, dtype: Any) -> None:
    """Raise SiteError unless an update can be added to values of this dtype: floats of two bytes or more."""
    if not jnp.issubdtype(dtype, jnp.floating) or jnp.dtype(dtype).itemsize < 2:  # noqa: PLR2004
        raise SiteError(
            f"{path}: expected weights of a float dtype of 16 bits or more, got {jnp.dtype(dtype)}.\n"
            "An update would be rounded away. Dequantize the leaf first, and pass the tree with the values as floats."
        )


def expect_leaves(given: object, where: str) -> None:
    """Raise SiteError unless `given` is a result of find_sites. The message begins with `where`."""
    if not isinstance(given, Leaves):
        raise mistake(SiteError, where, "Leaves", told(given), "Pass the whole result of find_sites(weights, ...).")


def path_of(path: tuple[Any, ...]) -> str:
    """Return the path of a leaf as text."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def is_typed(value: object) -> bool:
    """Return whether a value has a dtype; a type, such as jnp.float32, has the attribute but is no value."""
    return hasattr(value, "dtype") and not isinstance(value, type)


def arrays_of(weights: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the path and shape of every leaf that is an array."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(weights):
        if hasattr(leaf, "shape") and is_typed(leaf):
            yield path_of(path), tuple(jnp.shape(leaf))
