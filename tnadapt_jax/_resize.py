"""Bonds that change in training: the params of the new adapter, and the state of an optimizer carried to it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import DictKey, GetAttrKey, KeyEntry

from tnadapt import SiteError
from tnadapt.binding import answers, mistake, told
from tnadapt.policies import Change
from tnadapt_jax._params import Params, check_params, tree_of

__all__ = ["carry", "resize"]

SQUARED = ("nu", "nu_max", "sum_of_squares", "e_g", "n", "exp_avg_sq")  # what optax calls means of squares
STEPS = ("e_x",)  # means of squares of steps, which another basis changes otherwise than those of gradients


@answers(SiteError)
def resize(change: Change, params: Params) -> dict[str, dict[str, Array]]:
    """Return the params after a change of bonds, in the dtype that the params before it have.

    The change is made from these params: `grow(adapter, params["trainable"] | params["frozen"], "r", 2)`.

    Args:
        change: what `grow`, `cut` or `sweep` of `tnadapt.policies` returned.
        params: the two trees before it.

    Raises:
        SiteError: the params are not those of the adapter before the change.
    """
    expect_change(change, "resize")
    check_params(change.before, params)
    dtype = next(value.dtype for tree in params.values() for value in tree.values())
    whole: dict[str, Any] = {**params.get("frozen", {}), **change.params}
    return tree_of(change.adapter, whole, dtype)


@answers(SiteError)
def carry(change: Change, tree: Any) -> Any:
    """Return the state of an optimizer after a change of bonds.

    A leaf that a dict holds under the name of an entry of params, in its shape, is a mean of gradients, or, under
    `nu` and like names of optax, one of their squares: it is padded, cut or brought to another basis. All else is kept.

    Args:
        change: what `grow`, `cut` or `sweep` of `tnadapt.policies` returned.
        tree: the state, as that of `optax.adam(...).init(params["trainable"])`. It must contain no params.

    Raises:
        SiteError: the state has, for an entry that changes, an array of another shape than the entry.
    """
    expect_change(change, "carry")

    def carried(path: tuple[KeyEntry, ...], leaf: Any) -> Any:
        name = next((entry.key for entry in reversed(path) if isinstance(entry, DictKey)), None)
        if name not in change.before.slots or jnp.ndim(leaf) == 0 != len(change.before.slots[name].shape):
            return leaf
        words = {entry.name for entry in path if isinstance(entry, GetAttrKey)}
        is_whole = isinstance(path[-1], DictKey) and jnp.shape(leaf) == change.before.slots[name].shape
        if not is_whole or (change.mixes(name) and not words.isdisjoint(STEPS)):
            if name not in change.moves and name not in change.factors:
                return leaf
            raise SiteError(
                f"carry: expected a mean of gradients of shape {change.before.slots[name].shape} for {name!r}, got an "
                f"array of shape {jnp.shape(leaf)} at {jax.tree_util.keystr(path)}.\n"
                "Make the state of this optimizer anew."
            )
        array = change.carry(name, np.asarray(leaf, np.float64), squared=not words.isdisjoint(SQUARED + STEPS))
        if not words.isdisjoint(STEPS):  # they are multiplied as values are, and gradients divided
            array = array * change.factors.get(name, 1.0) ** 4
        return jnp.array(array, dtype=leaf.dtype)

    return jax.tree_util.tree_map_with_path(carried, tree)


def expect_change(given: object, where: str) -> None:
    """Raise SiteError for something else than a change of bonds."""
    if not isinstance(given, Change):
        todo = "Pass what grow, cut or sweep of tnadapt.policies returns."
        raise mistake(SiteError, where, "a change of bonds", told(given), todo)
