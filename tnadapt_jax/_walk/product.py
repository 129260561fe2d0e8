"""Where an update enters: a product that sums all in axes of a weight, or all of its out axes."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

from tnadapt_jax._explicit import brought_to, spec_of
from tnadapt_jax._walk.weight import Atom, Weight, atoms_of, size_of

__all__: list[str] = []

Label = tuple[Any, ...]  # an atom of the weight, or ("x", n) for the n-th free axis of x, with its size


Product = Callable[[Array, Array], Array]


def add_update(params: dict[str, Any], weight: Weight, x: Array, multiply: Product, *, is_right: bool) -> Array | None:
    """Return a product of dot_general with the update added; `multiply(weight, x)` makes it without.

    None if it is no product of x and the weight, or of x and its transpose.
    """
    (summed, batch) = params["dimension_numbers"]
    (of_w, of_x) = (summed[is_right], summed[not is_right])
    (batch_w, batch_x) = (batch[is_right], batch[not is_right])
    free_w = [axis for axis in range(len(weight.axes)) if axis not in of_w and axis not in batch_w]
    free_x = [axis for axis in range(x.ndim) if axis not in of_x and axis not in batch_x]
    inner, outer, beside = (_atoms(weight, axes) for axes in (of_w, free_w, batch_w))
    if not jnp.issubdtype(x.dtype, jnp.floating) or any(atom not in weight.lead for atom in beside):
        return None
    side = _side(inner, outer)
    if side is None:
        return None
    held = x
    if x.dtype.itemsize < weight.value.dtype.itemsize:  # else the update would be rounded where the product is not
        x = lax.convert_element_type(x, weight.value.dtype)

    x_labels: list[list[Label]] = [[("x", axis, size)] for axis, size in enumerate(x.shape)]
    for own, other in zip((*of_w, *batch_w), (*of_x, *batch_x), strict=True):
        x_labels[other] = list(weight.axes[own])
    free = [label for axis in free_x for label in x_labels[axis]]
    in_x = [atom for atom in weight.lead if atom in inner or atom in beside]
    given = _arranged(x, x_labels, [in_x, free, atoms_of(inner, side)], merge_last=True)
    has = tuple(atom in in_x for atom in weight.lead)

    parts = [beside, free, outer] if is_right else [beside, outer, free]
    labels = [label for part in parts for label in part]
    other_side = "out" if side == "in" else "in"
    in_y = [atom for atom in weight.lead if atom not in inner]
    wanted = [in_y, free, atoms_of(outer, other_side)]
    if side == "in" and weight.reads_product and len(in_y) == len(weight.lead):
        product, read = _read_apart(multiply, weight.value, held)
        made = (_arranged(read, [labels], wanted, merge_last=True), (True,) * len(weight.lead))
    else:
        product, made = multiply(weight.value, held), None
    if side == "in":
        update = weight.apply(given, has, made)
        weight.origin.note("activations")
    else:
        update = weight.apply_transposed(given, has)
        weight.origin.note("activations (transposed)")
    if over := tuple(place for place, atom in enumerate(weight.lead) if atom in inner):
        update = jnp.sum(update, axis=over)
    flat = [label for part in wanted for label in part]
    laid = update.reshape([label[-1] for label in flat])
    laid = lax.transpose(laid, [flat.index(label) for label in labels]).reshape(product.shape)
    laid = brought_to(lax.convert_element_type(laid, product.dtype), spec_of(product))
    return product + laid


def _read_apart(multiply: Product, weight: Array, x: Array) -> tuple[Array, Array]:
    """Return the product, and once more for the update, which takes the weight as a constant; it is made once.

    The gradient of the weight is then that of the weight with its update, in which the host's weight is a constant.
    """

    @jax.custom_jvp
    def both(weight: Array, x: Array) -> tuple[Array, Array]:
        made = multiply(weight, x)
        return made, made

    @partial(both.defjvp, symbolic_zeros=True)
    def _(primals: Any, tangents: Any) -> Any:
        made = multiply(*primals)
        zeros = jnp.zeros_like(made)
        by_weight, by_x = (
            zeros
            if isinstance(one, SymbolicZero)
            else multiply(*(one if n == at else other for n, other in enumerate(primals)))
            for at, one in enumerate(tangents)
        )
        return (made, made), (by_weight + by_x, by_x)

    return both(weight, x)


def _atoms(weight: Weight, axes: Sequence[int]) -> list[Atom]:
    return [atom for axis in axes for atom in weight.axes[axis]]


def _side(inner: Sequence[Atom], outer: Sequence[Atom]) -> str | None:
    """Return which side is summed whole, "in" or "out", while the other is left whole; None if neither is."""
    if not atoms_of(inner, "out") and not atoms_of(outer, "in"):
        return "in"
    if not atoms_of(inner, "in") and not atoms_of(outer, "out"):
        return "out"
    return None


def _arranged(
    value: Array, labels: Sequence[Sequence[Label]], wanted: Sequence[Sequence[Label]], *, merge_last: bool
) -> Array:
    """Return an array, whose axes have these labels, with its axes in another order; the last part as one axis."""
    flat = [label for axis in labels for label in axis]
    order = [label for part in wanted for label in part]
    parted = value.reshape([label[-1] for label in flat])
    parted = lax.transpose(parted, [flat.index(label) for label in order])
    *front, last = wanted
    return parted.reshape([*(label[-1] for part in front for label in part), size_of(last)]) if merge_last else parted
