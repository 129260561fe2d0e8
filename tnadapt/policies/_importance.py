"""The importance of the slices of a bond: one number for each, which does not depend on the basis of the factors."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from tnadapt._errors import SiteError
from tnadapt._language import Adapter, AdapterSpec, expect_adapter
from tnadapt._signature import answers, mistake, told
from tnadapt.policies._bonds import Bond, every_bond, expect_arrays, why_no_carrier

__all__ = ["importance", "tellers"]

Array = npt.NDArray[np.float64]
WHERE = "importance"


@answers(SiteError)
def importance(
    adapter: Adapter, params: Mapping[str, npt.ArrayLike], gradients: Mapping[str, npt.ArrayLike]
) -> dict[str, Array]:
    """Return how much the loss depends on each slice of each bond: d loss / d lambda, with lambda = 1 on the slice.

    It is the sum over the entries of a slice of F dL/dF, and the same for every factor F that carries the bond in all
    its uses: it does not change if one factor is multiplied by a number and another one divided by it. A slice whose
    number is small contributes little that the loss depends on to first order. Bonds without such a factor are left
    out; `bonds(adapter)` says why.

    Args:
        adapter: the adapter.
        params: its arrays by name.
        gradients: those of the loss with respect to the trained entries of params, in their shapes.

    Returns:
        One array for each bond, by the name of the bond: "<group>.<bond>", or "<bond>" where all groups have it in
        common.

    Raises:
        SiteError: a gradient is missing or has another shape.
    """
    adapter = expect_adapter(adapter, WHERE)
    arrays = expect_arrays(adapter, params, WHERE)
    if not isinstance(gradients, Mapping):
        todo = "Pass one for each trained entry of params."
        raise mistake(SiteError, WHERE, "gradients by name", told(gradients), todo)
    found = {}
    for name, bond in every_bond(adapter).items():
        factors = {factor: slices_by(adapter, bond, factor, arrays, gradients) for factor in telling(adapter, bond)}
        if factors:
            found[name] = factors[min(factors)]
    return found


def telling(adapter: Adapter, bond: Bond) -> tuple[str, ...]:
    """Return the trained factors that carry a bond exactly once in every use, so that each tells its importance."""
    spec = adapter.spec
    able = [name for name, one in spec.arrays.items() if one.trainable and not one.map and bond.axes(one)]
    return tuple(name for name in able if _is_in_every_use(spec, bond, name))


@answers(SiteError)
def tellers(adapter: Adapter) -> dict[str, tuple[tuple[str, tuple[int, ...]], ...]]:
    """Return the entries that tell the importance of each bond, with the axes along it: sums over them of F dL/dF.

    It is for bindings that sum on their device. Entries of groups that have a bond in common are added; those of a
    smaller group tell the first slices.
    """
    found = {}
    for name, bond in every_bond(expect_adapter(adapter, "tellers")).items():
        if factors := telling(adapter, bond):
            entries = dict.fromkeys(adapter.slot_name(group, min(factors)) for group in bond.groups)
            found[name] = tuple((entry, bond.axes(adapter.slots[entry].factor)) for entry in entries)
    return found


def _is_in_every_use(spec: AdapterSpec, bond: Bond, factor: str) -> bool:
    """Return whether each term has this factor once on each mode of the bond, with its trained values."""
    for term in spec.sum:
        nodes = [spec.nodes[name] for name in term.nodes]
        for mode in bond.modes & {mode for node in nodes for mode in node.modes}:
            own = [node for node in nodes if node.factor == factor and mode in node.modes]
            if len(own) != 1 or own[0].at_start:
                return False
    return True


def slices_by(
    adapter: Adapter, bond: Bond, factor: str, params: Mapping[str, Array], gradients: Mapping[str, npt.ArrayLike]
) -> Array:
    """Return the importance of the slices of a bond as one factor tells it, summed over the groups that have it."""
    total = np.zeros(max(bond.sizes))
    for name in dict.fromkeys(adapter.slot_name(group, factor) for group in bond.groups):
        slot = adapter.slots[name]
        if name not in gradients or gradients[name] is None:
            todo = "Call this after the backward pass, with the gradient of each trained entry."
            raise SiteError(f"{WHERE}: expected the gradient of {name!r}, got none.\n{todo}")
        gradient = np.asarray(gradients[name], dtype=np.float64)
        if gradient.shape != slot.shape:
            raise SiteError(f"{WHERE}: expected the gradient of {name!r} of shape {slot.shape}, got {gradient.shape}.")
        product = params[name] * gradient
        for axis in bond.axes(slot.factor):
            own = product.sum(axis=tuple(other for other in range(product.ndim) if other != axis))
            total[: len(own)] += own
    return total


def why_not_told(adapter: Adapter, bond: Bond) -> str:
    """Say why the slices of a bond have no importance; "" if they have one."""
    if telling(adapter, bond):
        return ""
    return why_no_carrier(adapter, bond) or "no trained factor carries it once in every use"
