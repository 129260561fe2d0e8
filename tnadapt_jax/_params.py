"""The state of an adapter as a plain pytree, and the one guard at its door."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy.typing as npt
from jax import Array
from jax.typing import DTypeLike

import tnadapt
from tnadapt import Adapter, SiteError
from tnadapt.binding import START, answers, drawn_starts, expect_adapter, mistake, told

__all__ = ["Params", "init"]

Params = Mapping[str, Mapping[str, Array]]
TREES = ("trainable", "frozen")


@answers(SiteError)
def init(
    adapter: Adapter, *, dtype: DTypeLike = jnp.float32, weights: Mapping[str, npt.ArrayLike] | None = None
) -> dict[str, dict[str, Array]]:
    """The starting values: {"trainable": {name: array}, "frozen": {name: array}}, names and values those of the core.

    For a centered spec, `frozen` also holds the start of each trainable factor, under "<name>:start". `weights` are
    those of the host by path, (out, in), as `Leaves.read` gives them: for starts that are read from them.
    """
    expect_adapter(adapter, "init")
    return tree_of(adapter, tnadapt.init(adapter, weights), dtype)


def tree_of(adapter: Adapter, values: Mapping[str, npt.ArrayLike], dtype: DTypeLike) -> dict[str, dict[str, Array]]:
    """Values by the core's names as the two trees; each array has a buffer of its own, so that it can be donated."""
    trainable = {name: values[name] for name, slot in adapter.slots.items() if slot.factor.trainable}
    frozen = {name: values[name] for name in adapter.slots if name not in trainable}
    frozen |= {name + START: value for name, value in drawn_starts(adapter).items()}
    return {
        tree: {name: jnp.array(value, dtype=dtype) for name, value in part.items()}
        for tree, part in zip(TREES, (trainable, frozen), strict=True)
    }


def names_in(adapter: Adapter, tree: str) -> dict[str, tuple[int, ...]]:
    """The shape of every array of one tree, by name."""
    trained = {name: slot.shape for name, slot in adapter.slots.items() if slot.factor.trainable}
    if tree == TREES[0]:
        return trained
    frozen = {name: slot.shape for name, slot in adapter.slots.items() if name not in trained}  # kept starts, too
    return frozen | {name + START: shape for name, shape in trained.items() if adapter.spec.centered}


def expect_trees(params: object) -> None:
    """Raises SiteError for what is no pytree of params, as the flat arrays of the core's init; before all else."""
    if not isinstance(params, Mapping) or (params and not {*TREES} & {*params}):
        todo = "Pass what tnadapt_jax.init(adapter) gives; tnadapt.init gives flat arrays for numpy."
        raise mistake(SiteError, "params", f"the trees {' and '.join(map(repr, TREES))}", told(params), todo)
    for tree in TREES:
        if not isinstance(part := params.get(tree, {}), Mapping):
            todo = "Pass what tnadapt_jax.init(adapter) gives."
            raise mistake(SiteError, f"params[{tree!r}]", "arrays by name", told(part), todo)


def check_params(adapter: Adapter, params: Params) -> None:
    """See that these are the params of this adapter. Raises SiteError naming what is missing, unknown or misshapen."""
    expect_trees(params)
    for tree in TREES:
        wanted, given = names_in(adapter, tree), params.get(tree, {})
        for name, shape in wanted.items():
            if name not in given:
                raise SiteError(
                    f"params[{tree!r}]: {name!r} is missing.\nIt holds {', '.join(list(given)[:6]) or 'nothing'}."
                )
            check_shape(f"params[{tree!r}]", name, given[name], shape)
        if unknown := sorted(given.keys() - wanted.keys()):
            raise SiteError(
                f"params[{tree!r}]: {unknown[0]!r} is none of this adapter's.\n"
                f"It has {', '.join(list(wanted)[:6]) or 'nothing'} there."
            )
    if unknown := sorted(params.keys() - {*TREES}):
        raise SiteError(f"params: holds {' and '.join(TREES)}.\nHowever, it holds {unknown[0]!r} too.")


def check_size(adapter: Adapter, params: Params) -> None:
    """See in no time that no array is missing or too many; else say which. Raises SiteError."""
    if not isinstance(params, Mapping) or not all(isinstance(params.get(tree, {}), Mapping) for tree in TREES):
        expect_trees(params)
    trained, frozen = (len(params.get(tree, {})) for tree in TREES)
    starts = trained if adapter.spec.centered else 0
    kept = sum(name.endswith(START) for name in adapter.slots)
    if len(params) != len(TREES) or trained + frozen != len(adapter.slots) - kept + starts:
        check_params(adapter, params)


def find_array(adapter: Adapter, params: Params, name: str) -> Array:
    """One array of either tree by its name, of the right shape. Raises SiteError otherwise."""
    slot = adapter.slots[name.removesuffix(START)]
    tree = TREES[0] if slot.factor.trainable and not name.endswith(START) else TREES[1]
    if name not in params[tree]:
        check_params(adapter, params)
    value = params[tree][name]
    check_shape(f"params[{tree!r}]", name, value, slot.shape)
    return value


def check_shape(where: str, name: str, value: Array, shape: tuple[int, ...]) -> None:
    """Raises SiteError for an array of another shape; `where` begins the message."""
    if jnp.shape(value) != shape:
        raise SiteError(
            f"{where}[{name!r}]: must have shape {shape}.\nHowever, it has {jnp.shape(value)}.\n"
            "If this is a batch of adapters, map over its axis with jax.vmap."
        )
