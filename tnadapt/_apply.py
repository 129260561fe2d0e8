"""The reference: what an adapter does to a weight, in numpy float64. Slow, obvious, the oracle of everything else."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import opt_einsum

from tnadapt._errors import SiteError
from tnadapt._init import draw
from tnadapt._network import Group
from tnadapt._site import Site
from tnadapt._spec import START, Adapter, Slot

__all__ = ["apply", "delta", "merge"]

Array = npt.NDArray[np.float64]


def delta(adapter: Adapter, params: Mapping[str, npt.ArrayLike], site: Site | str) -> Array:
    """The dense update of one site, of the site's shape (out axis first), scale included.

    The path of a weight that several sites lie in asks for all of that weight's update; it is 0 where no site lies.
    Raises SiteError for a site or params that are not this adapter's, or for a weight whose sites serve several tasks.
    """
    if isinstance(site, str) and (parts := adapter.parts(site)):
        whole = np.zeros(parts[0].weight_shape)
        for part in parts:
            whole[part.rectangle] = delta(adapter, params, part)
        return whole
    group, place = adapter.find(site)
    update = _contract(adapter, group, place, _arrays(adapter, group, params))
    if adapter.spec.centered:
        update = update - _contract(adapter, group, place, _starts(adapter, group, params))
    return group.network.scale * update


def apply(adapter: Adapter, params: Mapping[str, npt.ArrayLike], site: Site | str, x: npt.ArrayLike) -> Array:
    """What the update adds to the output of one site: x times the transposed update.

    x has the shape (..., in axes of the weight), the answer (..., out). Raises SiteError where x does not fit, and as
    `delta` does.
    """
    weight = delta(adapter, params, site)
    if weight.ndim > len(adapter.spec.axes):
        raise SiteError(f"{site}: holds several weights, of shape {weight.shape}.\nApply one of its sites to x.")
    values = np.asarray(x, dtype=np.float64)
    inner = weight.shape[1:]
    if values.shape[max(values.ndim - len(inner), 0) :] != inner:
        path = site if isinstance(site, str) else site.path
        raise SiteError(f"{path}: x must end in the in axes {inner}.\nHowever, it has shape {values.shape}.")
    lead = values.shape[: values.ndim - len(inner)]
    rows = int(np.prod(inner))
    return values.reshape(*lead, rows) @ weight.reshape(-1, rows).T


def merge(weight: npt.NDArray[np.floating], update: npt.ArrayLike) -> npt.NDArray[np.floating]:
    """A new weight with the update added: in float32 or better, then rounded once to the weight's dtype.

    Raises SiteError for another shape, or an update or a sum that is not finite; the given weight stays as it was.
    """
    change = np.asarray(update)
    if change.shape != weight.shape:
        raise SiteError(
            f"merge: weight and update must have one shape.\nHowever, they have {weight.shape} and {change.shape}."
        )
    if not np.isfinite(change).all():
        raise SiteError("merge: the update must be finite.\nHowever, it holds NaN or infinity.\nNothing was merged.")
    wide = np.promote_types(np.float32, np.promote_types(weight.dtype, change.dtype))
    with np.errstate(over="ignore"):
        merged: npt.NDArray[np.floating] = (weight.astype(wide) + change.astype(wide)).astype(weight.dtype)
    if not np.isfinite(merged).all():
        raise SiteError(f"merge: weight plus update is not finite in {weight.dtype}.\nNothing was merged.")
    return merged


def _arrays(adapter: Adapter, group: Group, params: Mapping[str, npt.ArrayLike]) -> dict[str, Array]:
    """The params that a group reads, as float64. Raises SiteError for one that is missing or has another shape."""
    arrays = {}
    for factor in group.network.factors:
        name = adapter.slot_name(group, factor)
        arrays[name] = _array(adapter, params, adapter.slots[name])
    return arrays


def _array(adapter: Adapter, params: Mapping[str, npt.ArrayLike], slot: Slot) -> Array:
    if slot.name not in params:
        raise SiteError(f"params: {slot.name!r} is missing.\nThis adapter has {', '.join(list(adapter.slots)[:6])}.")
    array = np.asarray(params[slot.name], dtype=np.float64)
    if array.shape != slot.shape:
        raise SiteError(f"params[{slot.name!r}]: must have shape {slot.shape}.\nHowever, it has {array.shape}.")
    return array


def _starts(adapter: Adapter, group: Group, params: Mapping[str, npt.ArrayLike]) -> dict[str, Array]:
    """The starting values that a group reads: drawn again, or from params where they cannot be."""
    arrays = {}
    for factor in group.network.factors:
        name = adapter.slot_name(group, factor)
        slot = adapter.slots.get(name + START, adapter.slots[name])
        is_read = slot.factor.init.is_read
        arrays[name] = _array(adapter, params, slot) if is_read else draw(slot, adapter.seed)
    return arrays


def _contract(adapter: Adapter, group: Group, site: Site, arrays: Mapping[str, Array]) -> Array:
    """The sum over all bonds of the product of all factors at one site, without the scale."""
    network, index = group.network, group.index(site)
    letters = {mode: number for number, mode in enumerate(network.sizes)}
    operands: list[Any] = []
    for name, factor in network.factors.items():
        cut = tuple(index[mode] if mode in index else slice(network.sizes[mode]) for mode in factor.modes)
        operands += [arrays[adapter.slot_name(group, name)][cut], [letters[mode] for mode in network.local_modes(name)]]
    answer = [letters[mode] for mode in (*network.out_modes, *network.in_modes)]
    dense: Array = opt_einsum.contract(*operands, answer)
    return dense.reshape(network.weight_shape)
