"""The reference: what an adapter does to a weight, in numpy float64. It is slow and simple; tests compare with it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tnadapt._errors import SiteError
from tnadapt._hosts import Site
from tnadapt._language import Adapter, Address, Network, Part, expect_adapter, expect_params
from tnadapt._planning import Labeled, NumpyBackend, plan, run
from tnadapt._signature import answers, mistake
from tnadapt._values.draw import sample
from tnadapt._values.maps import map_factor

__all__ = ["apply", "delta", "merge"]

Array = npt.NDArray[np.float64]


@answers(SiteError)
def delta(adapter: Adapter, params: Mapping[str, npt.ArrayLike], site: Site | str) -> Array:
    """Return the dense update of one site, in the site's shape (out axis first), scale included.

    For the path of a weight that contains several sites, return the update of the whole weight, which is 0 outside the
    sites. Raises SiteError for a site or params that do not belong to this adapter, and for a weight whose sites serve
    several tasks.
    """
    expect_adapter(adapter, "delta")
    expect_params(params, "delta")
    if isinstance(site, str) and (parts := adapter.parts(site)):
        whole = np.zeros(parts[0].weight_shape)
        for part in parts:
            whole[part.rectangle] = delta(adapter, params, part)
        return whole
    address = adapter.address(site)
    update = sum_at(adapter, params, address)
    if address.magnitude is None:
        return update
    host = _host_array(params, address.magnitude.weight.name, update.shape)
    return _scaled_rows(adapter, params, address.magnitude.lengths, host + update) - host


@answers(SiteError)
def apply(adapter: Adapter, params: Mapping[str, npt.ArrayLike], site: Site | str, x: npt.ArrayLike) -> Array:
    """Return what the update adds to the output of one site: x times the transposed update.

    x has the shape (..., in axes of the weight), the answer (..., out). Raises SiteError for an x of another shape, and
    in the cases of `delta`.
    """
    expect_adapter(adapter, "apply")
    expect_params(params, "apply")
    weight = delta(adapter, params, site)
    if weight.ndim > len(adapter.spec.axes):
        raise SiteError(
            f"{site}: expected a single weight, got several of shape {weight.shape}.\nApply one of its sites to x."
        )
    values = np.asarray(x, dtype=np.float64)
    inner = weight.shape[1:]
    if values.shape[max(values.ndim - len(inner), 0) :] != inner:
        path = site if isinstance(site, str) else site.path
        raise SiteError(f"{path}: expected an x that ends in the in axes {inner}, got shape {values.shape}.")
    lead = values.shape[: values.ndim - len(inner)]
    rows = int(np.prod(inner))
    return values.reshape(*lead, rows) @ weight.reshape(-1, rows).T


@answers(SiteError)
def merge(weight: npt.NDArray[np.floating], update: npt.ArrayLike) -> npt.NDArray[np.floating]:
    """Return a new weight with the update added in float32 or better, then rounded once to the weight's dtype.

    The given weight is not changed. Raises SiteError if the shapes differ, or if the update or the sum is not finite.
    """
    weight = np.asarray(weight)
    if weight.dtype.kind in "OSUbiu":
        todo = "Give the weight as an array of floats, the update second: merge(weight, delta(adapter, params, site))."
        raise mistake(SiteError, "merge", "a weight of floats", f"one of {weight.dtype}", todo)
    change = np.asarray(update)
    if change.shape != weight.shape:
        raise SiteError(
            f"merge: expected a weight and an update of the same shape, got {weight.shape} and {change.shape}."
        )
    if not np.isfinite(change).all():
        raise SiteError("merge: expected a finite update, got NaN or infinity.\nNothing was merged.")
    wide = np.promote_types(np.float32, np.promote_types(weight.dtype, change.dtype))
    with np.errstate(over="ignore"):
        merged: npt.NDArray[np.floating] = (weight.astype(wide) + change.astype(wide)).astype(weight.dtype)
    if not np.isfinite(merged).all():
        raise SiteError(
            f"merge: expected weight plus update to be finite in {weight.dtype}, got NaN or infinity.\n"
            "Nothing was merged."
        )
    return merged


def sum_at(adapter: Adapter, params: Mapping[str, npt.ArrayLike], address: Address) -> Array:
    """Return the sum of the terms at one site, scale included, before any magnitude."""
    network = address.group.network
    return network.scale * _contract(network, arrays_at(adapter, params, address))


def row_norms(weight: Array) -> Array:
    """Return the length of each row of a weight (out, in axes), over all in axes."""
    norms: Array = np.linalg.norm(weight.reshape(len(weight), -1), axis=1)
    return norms


def _scaled_rows(adapter: Adapter, params: Mapping[str, npt.ArrayLike], part: Part, weight: Array) -> Array:
    """Return a weight whose rows have the lengths of a magnitude; a row of zeros stays one."""
    lengths = _entry(adapter, params, part)[part.cut].reshape(-1)
    norms = row_norms(weight)
    ratios = lengths / np.where(norms > 0, norms, 1.0)
    return ratios.reshape(-1, *[1] * (weight.ndim - 1)) * weight


def arrays_at(adapter: Adapter, params: Mapping[str, npt.ArrayLike], address: Address) -> dict[str, Array]:
    """Read one site's part of every factor as float64, apply the factor's map, and return it by the node's name.

    Starting values that follow from the seed are drawn again unless they are in params. Raises SiteError for an array
    that is missing or has the wrong shape.
    """
    arrays = {}
    sizes = address.group.network.sizes
    for node, part in address.parts.items():
        if part.factor.init.is_host:
            arrays[node] = _host_array(params, part.name, [sizes[mode] for mode in part.factor.modes])
            continue
        value = _entry(adapter, params, part)
        # Cut before converting: a stack has as many rows as there are sites.
        arrays[node] = map_factor(part.factor.map, np.asarray(value[part.cut], dtype=np.float64))
    return arrays


def _entry(adapter: Adapter, params: Mapping[str, npt.ArrayLike], part: Part) -> npt.NDArray[Any]:
    """Return the whole array that a part is cut from."""
    slot = adapter.slots[part.source]
    if part.name in params:
        value = np.asarray(params[part.name])
    elif part.name in adapter.starts and not slot.factor.init.is_read:
        value = sample(slot, adapter.seed)
    else:
        raise SiteError(f"params: expected an array {part.name!r}, got none.\n{_remedy(adapter, part)}")
    if value.shape != slot.shape:
        raise SiteError(f"params[{part.name!r}]: expected shape {slot.shape}, got {value.shape}.")
    return value


def _host_array(params: Mapping[str, npt.ArrayLike], name: str, shape: Sequence[int]) -> Array:
    if name not in params:
        raise SiteError(
            f"params: expected the host's weight as {name!r}, got none.\n"
            "Take it from init(adapter, weights): init(adapter, weights) | params."
        )
    value = np.asarray(params[name], dtype=np.float64)
    if value.size != math.prod(shape):
        raise SiteError(f"params[{name!r}]: expected {math.prod(shape):,} numbers, got shape {value.shape}.")
    return value.reshape(shape)


def _remedy(adapter: Adapter, part: Part) -> str:
    if part.at_start:
        return "It was read from the host and cannot be drawn again: pass it in params."
    return f"This adapter has {', '.join(list(adapter.slots)[:6])}."


def _contract(network: Network, arrays: Mapping[str, Array]) -> Array:
    """Return the sum of the terms at one site, each summed over all bonds, without the scale."""
    order = plan(network, "delta")
    operands = [Labeled(arrays[name], modes) for name, modes in zip(order.operands, order.inputs, strict=True)]
    dense: Array = run(order, operands, NumpyBackend()).array
    return dense.reshape(network.weight_shape)
