"""The params of an adapter as a plain pytree: starting values and checks."""

import math
from collections.abc import Mapping

import jax.numpy as jnp
import numpy.typing as npt
from jax import Array
from jax.typing import DTypeLike

import tnadapt
from tnadapt import Adapter, Site, SiteError
from tnadapt.binding import START, answers, drawn_starts, expect_adapter, mistake, told

__all__ = ["Params", "init"]

Params = Mapping[str, Mapping[str, Array]]
"""The values of every factor: "trainable" or "frozen" -> name -> array."""
TREES = ("trainable", "frozen")


@answers(SiteError)
def init(
    adapter: Adapter, *, dtype: DTypeLike = jnp.float32, weights: Mapping[str, npt.ArrayLike] | None = None
) -> dict[str, dict[str, Array]]:
    """Return the starting values of an adapter, with the names and values of `tnadapt.init`.

    Args:
        adapter: a spec bound to sites.
        dtype: the dtype of all arrays.
        weights: the host's weights by path, (out, in), as `Leaves.read` returns them. Needed only if starting values
            are read from them.

    Returns:
        {"trainable": {name: array}, "frozen": {name: array}}. If the update subtracts starting values,
        `frozen` also holds them, under "<name>:start"; and if a factor is the host's weight, under "<path>:host".

    Raises:
        SiteError: if weights are missing or do not fit.
    """
    expect_adapter(adapter, "init")
    return tree_of(adapter, tnadapt.init(adapter, weights), dtype)


def tree_of(adapter: Adapter, values: Mapping[str, npt.ArrayLike], dtype: DTypeLike) -> dict[str, dict[str, Array]]:
    """Return the two trees of values given by name. Each array has its own buffer, so that it can be donated."""
    trainable = {name: values[name] for name, slot in adapter.slots.items() if slot.factor.trainable}
    frozen = {name: values[name] for name in adapter.slots if name not in trainable}
    frozen |= drawn_starts(adapter) | {name: values[name] for name in adapter.hosts}
    return {
        tree: {name: jnp.array(value, dtype=dtype) for name, value in part.items()}
        for tree, part in zip(TREES, (trainable, frozen), strict=True)
    }


def names_in(adapter: Adapter, tree: str) -> dict[str, tuple[int, ...]]:
    """Return the shape of every array of one tree, by name."""
    trained = {name: slot.shape for name, slot in adapter.slots.items() if slot.factor.trainable}
    if tree == TREES[0]:
        return trained
    frozen = {name: slot.shape for name, slot in adapter.slots.items() if name not in trained}  # with stored starts
    frozen |= {name: slot.shape for name, slot in adapter.starts.items()}
    return frozen | {name: host_shape(site, kind) for name, (site, kind) in adapter.hosts.items()}


def host_shape(site: Site, kind: str) -> tuple[int, ...]:
    """Return the shape of a host's weight, of its pattern, or of a part of its SVD."""
    outer, inner = site.shape[0], math.prod(site.shape[1:])
    thin = min(outer, inner)
    parts = {"host_left": (outer, thin), "host_values": (thin,), "host_right": (thin, inner)}
    return parts.get(kind, site.shape)


def expect_trees(params: object) -> None:
    """Raise SiteError unless `params` holds the two trees; the flat arrays of the core's init do not."""
    if not isinstance(params, Mapping) or (params and not {*TREES} & {*params}):
        todo = "Pass the result of tnadapt_jax.init(adapter); tnadapt.init returns flat arrays for numpy."
        raise mistake(SiteError, "params", f"the trees {' and '.join(map(repr, TREES))}", told(params), todo)
    for tree in TREES:
        if not isinstance(part := params.get(tree, {}), Mapping):
            todo = "Pass the result of tnadapt_jax.init(adapter)."
            raise mistake(SiteError, f"params[{tree!r}]", "arrays by name", told(part), todo)


def check_params(adapter: Adapter, params: Params) -> None:
    """Raise SiteError unless these are the params of this adapter, naming a missing, unknown or misshapen array."""
    expect_trees(params)
    for tree in TREES:
        wanted, given = names_in(adapter, tree), params.get(tree, {})
        for name, shape in wanted.items():
            if name not in given:
                held = ", ".join(list(given)[:6]) or "nothing"
                raise SiteError(f"params[{tree!r}]: expected the array {name!r}, got none.\nIt holds {held}.")
            check_shape(f"params[{tree!r}]", name, given[name], shape)
        if unknown := sorted(given.keys() - wanted.keys()):
            raise SiteError(
                f"params[{tree!r}]: expected only arrays of this adapter, got {unknown[0]!r}.\n"
                f"Its arrays there are {', '.join(list(wanted)[:6]) or 'none'}."
            )
    if unknown := sorted(params.keys() - {*TREES}):
        raise SiteError(f"params: expected only {' and '.join(map(repr, TREES))}, got {unknown[0]!r} too.")


def check_size(adapter: Adapter, params: Params) -> None:
    """Compare the number of arrays, which is fast. Raises SiteError, naming an array, if one is missing or unknown."""
    if not isinstance(params, Mapping) or not all(isinstance(params.get(tree, {}), Mapping) for tree in TREES):
        expect_trees(params)
    trained, frozen = (len(params.get(tree, {})) for tree in TREES)
    starts = sum(name not in adapter.slots for name in adapter.starts)
    if len(params) != len(TREES) or trained + frozen != len(adapter.slots) + starts + len(adapter.hosts):
        check_params(adapter, params)


def find_array(adapter: Adapter, params: Params, name: str) -> Array:
    """Return one array of either tree by name. Raises SiteError if it is missing or has a wrong shape."""
    if name in adapter.hosts:
        tree, shape = TREES[1], host_shape(*adapter.hosts[name])
    else:
        slot = adapter.slots[name.removesuffix(START)]
        tree = TREES[0] if slot.factor.trainable and not name.endswith(START) else TREES[1]
        shape = slot.shape
    if name not in params[tree]:
        check_params(adapter, params)
    value = params[tree][name]
    check_shape(f"params[{tree!r}]", name, value, shape)
    return value


def check_shape(where: str, name: str, value: Array, shape: tuple[int, ...]) -> None:
    """Raise SiteError unless an array has this shape. The message begins with `where`."""
    if jnp.shape(value) != shape:
        raise SiteError(
            f"{where}[{name!r}]: expected shape {shape}, got {jnp.shape(value)}.\n"
            "If this is a batch of adapters, map over its axis with jax.vmap."
        )
