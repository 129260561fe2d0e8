"""The trained factors as optax sees them: checks of the trees, and how a factor is read as matrices."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from tnadapt import Adapter, SiteError
from tnadapt.binding import Unfolding, as_number, mistake, told
from tnadapt_jax._params import check_shape

__all__: list[str] = []


def expect_number(value: object, where: str, word: str, *, least: float = 0.0, below: float = math.inf) -> float:
    """Return a number in [least, below). Raises SiteError for anything else."""
    value = as_number(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < below:
        bound = f"at least {least:g}" + ("" if below == math.inf else f" and below {below:g}")
        raise mistake(SiteError, where, f"a number of {bound} as {word}", told(value), f"Pass another {word}.")
    return float(value)


def expect_trained(adapter: Adapter, where: str, tree: object, what: str) -> Mapping[str, Array]:
    """Return a tree of the trained factors by name. Raises SiteError for anything else."""
    if tree is None:
        todo = 'Write update(grads, state, params["trainable"]).'
        raise mistake(SiteError, where, f"the {what} of the trained factors", "none", todo)
    wanted = {name: slot.shape for name, slot in adapter.slots.items() if slot.factor.trainable}
    if not isinstance(tree, Mapping) or {*tree} != {*wanted}:
        todo = 'Pass the tree "trainable" of the params of this adapter, and its gradients.'
        raise mistake(SiteError, where, f"{what} of {', '.join(list(wanted)[:6])}", told(tree), todo)
    for name, shape in wanted.items():
        if not hasattr(tree[name], "shape"):
            todo = "Let the transformation see all factors of the adapter: it cannot be masked."
            raise mistake(SiteError, where, f"an array as {what} of {name!r}", told(tree[name]), todo)
        check_shape(f"{where}: {what}", name, tree[name], shape)
    return tree


def matrices(values: Array, fold: Unfolding) -> Array:
    """Read arrays (copies, *shape) as batches of matrices (copies, batch, rows, columns)."""
    turned = lax.transpose(values, (0, *(axis + 1 for axis in fold.axes)))
    return turned.reshape(len(values), *fold.shape)


def arrays(values: Array, fold: Unfolding) -> Array:
    """Return what `matrices` read: (copies, batch, rows, columns) as (copies, *shape)."""
    split = values.reshape(len(values), *fold.sizes)
    return lax.transpose(split, (0, *(axis + 1 for axis in fold.inverse)))


def product(*factors: Array) -> Array:
    """Return a product of batches of matrices, from left to right, at full precision on every device."""
    total, *others = factors
    for other in others:
        total = jnp.matmul(total, other, precision=lax.Precision.HIGHEST)
    return total


def across(matrix: Array) -> Array:
    """Return each matrix of a batch transposed."""
    return jnp.swapaxes(matrix, -1, -2)


def stacked(values: Iterable[Array], dtype: Any) -> Array:
    """Return arrays of one shape in one array of this dtype, along a new first axis."""
    return jnp.stack([lax.convert_element_type(value, dtype) for value in values])
