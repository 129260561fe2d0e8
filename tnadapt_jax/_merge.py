"""Add the updates to the weights: permanently, or for one call of a model that is a function of its weights."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from tnadapt import Adapter, SiteError
from tnadapt.binding import answers, expect_adapter, mistake, told
from tnadapt_jax._apply import delta_of_parts, parts_at, put_together
from tnadapt_jax._leaf import Leaf, Leaves, check_leaves, expect_leaves, path_of
from tnadapt_jax._lower import wide_of
from tnadapt_jax._params import Params, check_params

__all__ = ["adapt", "merge"]

Tree = TypeVar("Tree")
Answer = TypeVar("Answer")


@answers(SiteError)
def merge(adapter: Adapter, params: Params, weights: Tree, leaves: Leaves, *, task: str | None = None) -> Tree:
    """Return new weights with every update added. The function can be jitted; each leaf keeps its sharding.

    Sums are computed in float32 or wider, at full precision, and rounded once to the dtype of the leaf.

    Args:
        adapter: a spec bound to sites.
        params: the params of the adapter.
        weights: the tree of weights.
        leaves: the result of `find_sites` for these weights.
        task: the task whose sites are merged, if the adapter has several.

    Returns:
        A tree like `weights`. Leaves that are not adapted are returned unchanged.

    Raises:
        SiteError: for params, leaves or weights that do not fit the adapter, or for a task that it does not have.
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
    """Return the function (params, weights, *args) -> apply_fn(weights with the updates, *args).

    Each call computes every update as a matrix. `apply`, called next to the host's own product, takes less time and
    memory. With half-precision weights a small update is lost to rounding.

    Args:
        apply_fn: a model as a function of its weights and further arguments.
        adapter: a spec bound to sites.
        leaves: the result of `find_sites` for the weights.
        task: the task whose sites are used, if the adapter has several.

    Raises:
        SiteError: for arguments of other types. The function itself raises it as `merge` does.
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
    """Return the leaves of one task. Raises SiteError for an unknown task, or for none if there are several."""
    tasks = list(dict.fromkeys(leaf.site.coordinates.get("task") for some in found.values() for leaf in some))
    if task is None and len(tasks) == 1:
        return found
    if task not in tasks:
        raise SiteError(
            f"task: expected a task of this adapter, got {task!r}.\nIts tasks are {', '.join(map(str, tasks))}."
        )
    return {path: [leaf for leaf in some if leaf.site.coordinates.get("task") == task] for path, some in found.items()}


def _with_updates(adapter: Adapter, params: Params, weight: Array, leaves: Sequence[Leaf]) -> Array:
    """Return one leaf with the updates of its sites added."""
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
    """Return the update of one weight, from its only site or from all of its blocks."""
    updates = []
    for leaf in leaves:
        address = adapter.address(leaf.site)
        updates.append((address.site, delta_of_parts(parts_at(adapter, params, address), dtype)))
    if updates[0][0].block is None:
        return updates[0][1]
    return put_together(updates)
