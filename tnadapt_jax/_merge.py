"""Add the updates to the weights, permanently; and what is lost by that in the dtype of the weights."""

from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from tnadapt import Adapter, SiteError
from tnadapt.binding import answers, expect_adapter
from tnadapt_jax._leaf import Leaves, check_leaves, expect_leaves, of_task, path_of
from tnadapt_jax._params import Params, check_params
from tnadapt_jax._walk import Log, Weight, view_of

__all__ = ["merge", "merge_loss"]

Tree = TypeVar("Tree")


@answers(SiteError)
def merge(adapter: Adapter, params: Params, weights: Tree, leaves: Leaves, *, task: str | None = None) -> Tree:
    """Return new weights with every update added. The function can be jitted; each leaf keeps its sharding.

    Sums are computed in float32 or wider, at full precision, and rounded once to the dtype of the leaf. `merge_loss`
    says how much of each update this rounds away.

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
    viewed = _viewed("merge", adapter, params, weights, leaves, task=task)

    def merged(path: tuple[Any, ...], leaf: Any) -> Any:
        weight = viewed(path, leaf)
        return leaf if weight is None else weight.dense("merge")

    return jax.tree_util.tree_map_with_path(merged, weights)  # type: ignore[no-any-return]


@answers(SiteError)
def merge_loss(
    adapter: Adapter, params: Params, weights: Any, leaves: Leaves, *, task: str | None = None
) -> dict[str, Array]:
    """Return for each adapted leaf the part of its update that `merge` rounds away, relative to the update.

    It is |rounded - exact| / |update|, in Frobenius norms over the whole leaf: 0.001 is harmless, and at 1 nothing of
    the update is left. `adapt` has no such loss where it updates the activations. The function can be jitted.

    Args:
        adapter: a spec bound to sites.
        params: the params of the adapter.
        weights: the tree of weights.
        leaves: the result of `find_sites` for these weights.
        task: the task whose sites would be merged, if the adapter has several.

    Returns:
        The loss by the path of the leaf; 0 where the update is 0.

    Raises:
        SiteError: as for `merge`.
    """
    viewed = _viewed("merge_loss", adapter, params, weights, leaves, task=task)
    found = ((path, viewed(path, leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(weights))
    return {path_of(path): _loss(weight) for path, weight in found if weight is not None}


def _loss(weight: Weight) -> Array:
    """Return what rounding changes, relative to the update."""
    update = weight.delta()
    exact = lax.convert_element_type(weight.value, update.dtype) + update
    kept = jnp.finfo(weight.value.dtype)  # type: ignore[no-untyped-call]
    rounded = lax.reduce_precision(exact, kept.nexp, kept.nmant)  # a compiler may skip two conversions, but not this
    size, lost = jnp.linalg.norm(update), jnp.linalg.norm(rounded - exact)
    return jnp.divide(lost, jnp.where(size > 0, size, jnp.ones_like(size)))


def _viewed(
    where: str, adapter: Adapter, params: Params, weights: Any, leaves: Leaves, *, task: str | None
) -> Callable[[tuple[Any, ...], Any], Weight | None]:
    """Return the function (path, leaf) -> the adapted weight; None if the leaf is not adapted. Check everything."""
    expect_adapter(adapter, where)
    expect_leaves(leaves, where)
    check_params(adapter, params)
    found = of_task(check_leaves(adapter, leaves, weights), task)
    known: dict[str, Array] = {}
    log: Log = Counter()

    def viewed(path: tuple[Any, ...], leaf: Any) -> Weight | None:
        own = found.get(path_of(path))
        return view_of(adapter, tuple(own)).weight(adapter, params, leaf, log, known) if own else None

    return viewed
