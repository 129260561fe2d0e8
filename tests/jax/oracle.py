"""Merged weights without the code under test: each site's update is added to its own numbers of the leaf."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

import tnadapt
import tnadapt_jax
from tnadapt import Adapter
from tnadapt_jax import Leaf, Leaves


def numbers_of(leaf: Leaf) -> npt.NDArray[np.int64]:
    """Return for each entry of a site's update its place in the flat leaf."""
    stored = np.arange(np.prod(leaf.shape)).reshape(leaf.shape)
    if leaf.axis is not None:
        stored = stored[(slice(None),) * leaf.axis + (leaf.index,)]
    order = [axis for role in ("expert", "out", "in") for axis, own in enumerate(leaf.roles) if own == role]
    whole = stored.transpose(order).reshape(leaf.site.weight_shape)
    return whole[leaf.site.rectangle]


def summed(adapter: Adapter, weights: Any, leaves: Leaves, delta: Callable[[str], Any], task: str | None = None) -> Any:
    """Return the weights with the updates `delta(path)`, which may be of numpy or of jax."""
    own = {site.path for site in adapter.sites if task is None or site.coordinates["task"] == task}

    def added(path: Any, value: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        for leaf in leaves.entries:
            if leaf.path == name and leaf.site.path in own:
                flat = value.reshape(-1)
                value = flat.at[numbers_of(leaf)].add(delta(leaf.site.path).astype(flat.dtype)).reshape(value.shape)
        return value

    return jax.tree_util.tree_map_with_path(added, weights)


def summed_by_site(adapter: Adapter, params: Any, weights: Any, leaves: Leaves, task: str | None = None) -> Any:
    """Return the weights with the updates of `tnadapt_jax.delta`, which can be differentiated."""
    return summed(adapter, weights, leaves, lambda path: tnadapt_jax.delta(adapter, params, path), task)


def summed_by_numpy(adapter: Adapter, params: Any, weights: Any, leaves: Leaves, task: str | None = None) -> Any:
    """Return the weights with the updates of `tnadapt.delta`."""
    values = {name: np.asarray(value) for tree in ("trainable", "frozen") for name, value in params[tree].items()}
    return summed(adapter, weights, leaves, lambda path: tnadapt.delta(adapter, values, path), task)
