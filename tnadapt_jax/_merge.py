"""The update in the weights: merged for good, or for the length of one call of any function of its weights."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from tnadapt import Adapter
from tnadapt_jax._apply import delta_of_parts, parts_at, wide_of
from tnadapt_jax._leaf import Leaf, Leaves, check_leaves, path_of
from tnadapt_jax._params import Params, check_params

__all__ = ["adapt", "merge"]

Tree = TypeVar("Tree")
Answer = TypeVar("Answer")


def merge(adapter: Adapter, params: Params, weights: Tree, leaves: Leaves) -> Tree:
    """New weights with every update added: in float32 or better at full precision, rounded once to the leaf's dtype.

    Can be jitted, with `weights` and `params` as arguments; each leaf keeps its sharding. Leaves that are not adapted
    are returned as they are. Raises SiteError for params, leaves or weights that are not this adapter's.
    """
    check_params(adapter, params)
    found = check_leaves(adapter, leaves, weights)

    def merged(path: tuple[Any, ...], leaf: Any) -> Any:
        name = path_of(path)
        return _with_updates(adapter, params, leaf, found[name]) if name in found else leaf

    return jax.tree_util.tree_map_with_path(merged, weights)  # type: ignore[no-any-return]


def adapt(apply_fn: Callable[..., Answer], adapter: Adapter, leaves: Leaves) -> Callable[..., Answer]:
    """(params, weights, *args) -> apply_fn(weights with the updates, *args), for any model that is a function of them.

    Every update is made as a matrix at each call: `apply` beside the host's own product takes less time and memory.
    On half-precision weights a small update is lost in the rounding.
    """

    def adapted(params: Params, weights: Tree, *args: Any) -> Answer:
        return apply_fn(merge(adapter, params, weights, leaves), *args)

    return adapted


def _with_updates(adapter: Adapter, params: Params, weight: Array, leaves: Sequence[Leaf]) -> Array:
    """One leaf with the updates of its sites."""
    dtype = jnp.result_type(weight)
    wide = wide_of(weight, *params["trainable"].values())
    updates = {leaf.index: leaf.lay(_update(adapter, params, leaf, wide)) for leaf in leaves}
    first = leaves[0]
    if first.axis is None:
        whole = updates[None]
    else:
        nothing = jnp.zeros(first.stored, wide)
        whole = jnp.stack([updates.get(n, nothing) for n in range(first.shape[first.axis])], axis=first.axis)
    return lax.convert_element_type(lax.convert_element_type(weight, wide) + whole, dtype)


def _update(adapter: Adapter, params: Params, leaf: Leaf, dtype: Any) -> Array:
    group, site = adapter.find(leaf.site)
    return delta_of_parts(parts_at(adapter, params, group, site), dtype)
