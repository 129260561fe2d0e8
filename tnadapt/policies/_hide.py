"""Hide slices of bonds without a change of shapes: zeros in all trained factors that carry them."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from tnadapt._errors import SiteError
from tnadapt._hosts import as_integers
from tnadapt._language import START, Adapter, expect_adapter
from tnadapt._signature import answers, mistake, told
from tnadapt.policies._bonds import Bond, entries_of, every_bond, find_bonds, refuse
from tnadapt.policies._cut import kept_slices, why_not_cut

__all__ = ["hide"]

Array = npt.NDArray[np.float64]
WHERE = "hide"


@answers(SiteError)
def hide(adapter: Adapter, keep: Mapping[str, int | Sequence[int]]) -> dict[str, Array]:
    """Return masks of 0 and 1 for entries of params: multiplied by them, the update is that after `cut` to `keep`.

    Shapes and scale stay, which parameters need whose shapes another library knows. A hidden slice that two trained
    factors carry has no gradient. One that a single trained factor carries has one, and is hidden again after a step.

    Args:
        adapter: the adapter.
        keep: the slices that stay of each bond by name, as for `cut`.

    Returns:
        A mask for each trained entry that carries one of the bonds, with axes of length 1 along all other modes.

    Raises:
        SiteError: as `cut` raises it, or zeros would not remove a slice, as where starting values are subtracted.
    """
    adapter = expect_adapter(adapter, WHERE)
    if not isinstance(keep, Mapping):
        raise mistake(SiteError, WHERE, "the slices that stay by bond", told(keep), 'Write hide(adapter, {"r": [0]}).')
    known, masks = every_bond(adapter), dict[str, Array]()
    for name, asked in keep.items():
        for bond in find_bonds(adapter, name, WHERE, known):
            if reason := why_not_hidden(adapter, bond):
                raise refuse(WHERE, bond, reason)
            plain = asked.tolist() if isinstance(asked, np.ndarray) else as_integers(asked)
            stays = np.zeros(max(bond.sizes))
            stays[list(kept_slices(bond, plain, WHERE))] = 1.0
            _mask(adapter, bond, stays, masks)
    return masks


def _mask(adapter: Adapter, bond: Bond, stays: Array, masks: dict[str, Array]) -> None:
    """Multiply the masks of all trained entries that carry a bond by zeros along it."""
    for _, _, slot in entries_of(adapter, [bond]):
        if not slot.factor.trainable or slot.factor.map or slot.name.endswith(START):
            continue
        mask = masks.get(slot.name, np.ones((1,) * len(slot.shape)))
        for axis in bond.axes(slot.factor):
            shape = [slot.shape[axis] if other == axis else 1 for other in range(len(slot.shape))]
            mask = mask * stays[: slot.shape[axis]].reshape(shape)
        masks[slot.name] = mask


def why_not_hidden(adapter: Adapter, bond: Bond) -> str:
    """Say why zeros do not cut slices of a bond; "" if they do."""
    if reason := why_not_cut(adapter, bond):
        return reason
    spec = adapter.spec
    able = {name for name, factor in spec.arrays.items() if factor.trainable and not factor.map}
    for term in spec.sum:
        for mode in bond.modes:
            nodes = [spec.nodes[name] for name in term.nodes if mode in spec.nodes[name].modes]
            if nodes and not any(node.factor in able and not node.at_start for node in nodes):
                return "in a term of the update no trained factor carries it, so that zeros do not remove a slice"
    return ""
