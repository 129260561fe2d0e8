"""Add the updates to the weights, permanently."""

from collections import Counter
from typing import Any, TypeVar

import jax
from jax import Array

from tnadapt import Adapter, SiteError
from tnadapt.binding import answers, expect_adapter
from tnadapt_jax._leaf import Leaves, check_leaves, expect_leaves, of_task, path_of
from tnadapt_jax._params import Params, check_params
from tnadapt_jax._walk import Log, view_of

__all__ = ["merge"]

Tree = TypeVar("Tree")


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
    found = of_task(check_leaves(adapter, leaves, weights), task)
    known: dict[str, Array] = {}
    log: Log = Counter()

    def merged(path: tuple[Any, ...], leaf: Any) -> Any:
        name = path_of(path)
        if name not in found:
            return leaf
        return view_of(adapter, tuple(found[name])).weight(adapter, params, leaf, log, known).dense("merge")

    return jax.tree_util.tree_map_with_path(merged, weights)  # type: ignore[no-any-return]
