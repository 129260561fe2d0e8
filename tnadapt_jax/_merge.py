"""The update in the weights: merged for good, or for the length of one call of any function of its weights."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from tnadapt import Adapter, SiteError
from tnadapt.binding import answers, expect_adapter, mistake, told
from tnadapt_jax._apply import delta_of_parts, parts_at, put_together, wide_of
from tnadapt_jax._leaf import Leaf, Leaves, check_leaves, expect_leaves, path_of
from tnadapt_jax._params import Params, check_params

__all__ = ["adapt", "merge"]

Tree = TypeVar("Tree")
Answer = TypeVar("Answer")


@answers(SiteError)
def merge(adapter: Adapter, params: Params, weights: Tree, leaves: Leaves, *, task: str | None = None) -> Tree:
    """New weights with every update added: in float32 or better at full precision, rounded once to the leaf's dtype.

    Can be jitted, with `weights` and `params` as arguments; each leaf keeps its sharding. Leaves that are not adapted
    are returned as they are. `task` says whose sites are merged where they serve several. Raises SiteError for params,
    leaves or weights that are not this adapter's, and for a task that it does not have.
    """
    expect_adapter(adapter, "merge")
    expect_leaves(leaves, "merge")
    check_params(adapter, params)
    found = _of_task(check_leaves(adapter, leaves, weights), task)

    def merged(path: tuple[Any, ...], leaf: Any) -> Any:
        name = path_of(path)
        return _with_updates(adapter, params, leaf, found[name]) if name in found else leaf

    return jax.tree_util.tree_map_with_path(merged, weights)  # type: ignore[no-any-return]


@answers(SiteError)
def adapt(
    apply_fn: Callable[..., Answer], adapter: Adapter, leaves: Leaves, *, task: str | None = None
) -> Callable[..., Answer]:
    """(params, weights, *args) -> apply_fn(weights with the updates, *args), for any model that is a function of them.

    Every update is made as a matrix at each call: `apply` beside the host's own product takes less time and memory.
    On half-precision weights a small update is lost in the rounding.
    """
    if not callable(apply_fn):
        todo = "The model's function comes first: adapt(apply_fn, adapter, leaves)."
        raise mistake(SiteError, "adapt", "a function of (weights, ...)", told(apply_fn), todo)
    expect_adapter(adapter, "adapt")
    expect_leaves(leaves, "adapt")

    def adapted(params: Params, weights: Tree, *args: Any) -> Answer:
        return apply_fn(merge(adapter, params, weights, leaves, task=task), *args)

    return adapted


def _of_task(found: dict[str, list[Leaf]], task: str | None) -> dict[str, list[Leaf]]:
    """The leaves of one task. Raises SiteError where it has none, or there are several and none is said."""
    tasks = list(dict.fromkeys(leaf.site.coordinates.get("task") for some in found.values() for leaf in some))
    if task is None and len(tasks) == 1:
        return found
    if task not in tasks:
        raise SiteError(f"task {task!r}: is none of this adapter's.\nIt has {', '.join(map(str, tasks))}.")
    return {path: [leaf for leaf in some if leaf.site.coordinates.get("task") == task] for path, some in found.items()}


def _with_updates(adapter: Adapter, params: Params, weight: Array, leaves: Sequence[Leaf]) -> Array:
    """One leaf with the updates of its sites."""
    dtype = jnp.result_type(weight)
    wide = wide_of(weight, *params["trainable"].values())
    parts: dict[int | None, list[Leaf]] = {}
    for leaf in leaves:
        parts.setdefault(leaf.index, []).append(leaf)
    updates = {index: some[0].lay(_update(adapter, params, some, wide)) for index, some in parts.items()}
    first = leaves[0]
    if first.axis is None:
        whole = updates[None]
    else:
        nothing = jnp.zeros(first.stored, wide)
        whole = jnp.stack([updates.get(n, nothing) for n in range(first.shape[first.axis])], axis=first.axis)
    return lax.convert_element_type(lax.convert_element_type(weight, wide) + whole, dtype)


def _update(adapter: Adapter, params: Params, leaves: Sequence[Leaf], dtype: Any) -> Array:
    """The update of one weight: of its one site, or of the sites that lie in it."""
    updates = []
    for leaf in leaves:
        address = adapter.address(leaf.site)
        updates.append((address.site, delta_of_parts(parts_at(adapter, params, address), dtype)))
    if updates[0][0].block is None:
        return updates[0][1]
    return put_together(updates)
