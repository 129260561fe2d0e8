"""Cut a bond: some of its slices stay, and the update loses exactly the contribution of the others."""

from collections.abc import Mapping, Sequence
from functools import reduce

import numpy as np
import numpy.typing as npt

from tnadapt._errors import SiteError
from tnadapt._hosts import as_integers
from tnadapt._language import Adapter, expect_adapter
from tnadapt._signature import answers, mistake, told
from tnadapt._values import Params, sample
from tnadapt.policies._bonds import (
    Bond,
    asked_bonds,
    drawn_starts_of,
    entries_of,
    every_bond,
    expect_arrays,
    refuse,
    resized,
    why_no_carrier,
    why_sizes_differ,
    why_starts_move,
)
from tnadapt.policies._change import Change, Selection
from tnadapt.policies._scale import compensation, why_scale_holds

__all__ = ["cut"]

WHERE = "cut"


Keep = int | Sequence[int]


@answers(SiteError)
def cut(
    adapter: Adapter,
    params: Mapping[str, npt.ArrayLike],
    bond: str | Mapping[str, Keep],
    keep: Keep | None = None,
) -> Change:
    """Cut a bond to some of its slices, and return the change. The update loses what the other slices contribute.

    Args:
        adapter: the adapter.
        params: its arrays by name.
        bond: the name of a bond, for all groups, or "<group>.<bond>" for that of one group; or several, each with its
            own `keep`.
        keep: the indices of the slices that stay, in their new order; or how many: the first ones.

    Raises:
        SiteError: no slice would stay, an index is not one of the bond, or the bond cannot be cut.
    """
    adapter = expect_adapter(adapter, WHERE)
    arrays = expect_arrays(adapter, params, WHERE)
    changes: list[Change] = []
    for asked in asked_bonds(adapter, bond, keep, WHERE):
        change = _cut(adapter, arrays, asked)
        changes, adapter, arrays = [*changes, change], change.adapter, change.params
    return reduce(Change.then, changes)


def _cut(adapter: Adapter, arrays: Params, asked: Mapping[str, object]) -> Change:
    """Return the change of some bonds of one mode, each to the slices that were asked for it."""
    known = every_bond(adapter)
    chosen = [known[name] for name in asked]
    for one in chosen:
        if reason := why_not_cut(adapter, one):
            raise refuse(WHERE, one, reason)
    plain = {name: keep.tolist() if isinstance(keep, np.ndarray) else as_integers(keep) for name, keep in asked.items()}
    kept = {one.name: kept_slices(one, plain[one.name]) for one in chosen}
    for number in {number for number in plain.values() if isinstance(number, int)}:
        most = max(one.sizes[0] for one in chosen if plain[one.name] == number)
        if number > most:
            raise SiteError(
                f"{WHERE}: expected at most the {most} slices of {chosen[0].mode!r} to stay, got {number}.\n"
                "Use grow to add slices."
            )
    return _keep_slices(adapter, arrays, chosen, kept)


def why_not_cut(adapter: Adapter, bond: Bond) -> str:
    """Say why a bond cannot be cut; "" if it can."""
    for name, factor in adapter.spec.arrays.items():
        if factor.map and bond.modes & {*factor.modes[-2:]}:
            return f"the {factor.map} of {name!r} makes it, and a part of a {factor.map} is none"
    return (
        why_sizes_differ(bond)
        or why_no_carrier(adapter, bond)
        or why_starts_move(adapter, bond)
        or why_scale_holds(adapter, bond)
    )


def _keep_slices(
    adapter: Adapter, arrays: Params, bonds: Sequence[Bond], kept: Mapping[str, tuple[int, ...]]
) -> Change:
    after = resized(adapter, {one.name: (len(kept[one.name]),) * len(one.groups) for one in bonds})
    factors = compensation(adapter, after, WHERE)
    moves: dict[str, list[Selection]] = {}
    for one, _, slot in entries_of(adapter, bonds):
        moves.setdefault(slot.name, []).extend(Selection(axis, kept[one.name]) for axis in one.axes(slot.factor))
    _check_starts(adapter, after, bonds, kept)
    values = dict(arrays)
    for name, selections in moves.items():
        for selection in selections:
            values[name] = selection.move(values[name], squared=False)
    values |= {name: values[name] * ratio for name, ratio in factors.items()}
    return Change(before=adapter, adapter=after, params=values, moves=moves, factors=factors)


def kept_slices(bond: Bond, keep: object, where: str = WHERE) -> tuple[int, ...]:
    """Return the indices that stay. Raises SiteError for none, and for what is no index or number of slices."""
    size = bond.sizes[0]
    todo = "Pass the indices of the slices that stay, or how many: keep=[0, 2] or keep=2."
    if isinstance(keep, int) and not isinstance(keep, bool):
        if keep < 1:
            raise SiteError(
                f"{where}: expected at least 1 slice of {bond.name!r} to stay, got a cut to {keep}.\n{todo}"
            )
        return tuple(range(min(keep, size)))
    given = [as_integers(place) for place in keep] if isinstance(keep, list | tuple | range) else [None]
    places: list[int] = [place for place in given if isinstance(place, int) and not isinstance(place, bool)]
    if len(places) < len(given):
        raise mistake(SiteError, where, "indices of slices as keep", told(keep), todo)
    if not places:
        raise SiteError(f"{where}: expected at least 1 slice of {bond.name!r} to stay, got a cut to 0.\n{todo}")
    if len({*places}) < len(places) or not all(0 <= place < size for place in places):
        odd = next(place for place in places if not 0 <= place < size or places.count(place) > 1)
        raise SiteError(
            f"{where}: expected each index of {bond.name!r} at most once, from 0 to {size - 1}, got {odd} "
            f"among {told(places)}."
        )
    return tuple(places)


def _check_starts(before: Adapter, after: Adapter, bonds: Sequence[Bond], kept: Mapping[str, tuple[int, ...]]) -> None:
    """Raise SiteError if the starting values that the new adapter draws are not the kept slices of those of before."""
    wanted: dict[str, npt.NDArray[np.float64]] = {}
    for one, slot in drawn_starts_of(before, bonds):
        values = wanted[slot.name] if slot.name in wanted else sample(slot, before.seed)
        for axis in one.axes(slot.factor):
            values = Selection(axis, kept[one.name]).move(values, squared=False)
        wanted[slot.name] = values
    for name, values in wanted.items():
        check_start(name, values, sample(after.slots[name], after.seed), WHERE)


def check_start(name: str, wanted: npt.NDArray[np.float64], drawn: npt.NDArray[np.float64], where: str) -> None:
    """Raise SiteError if starting values that the update uses would be drawn as others than those wanted."""
    if not np.array_equal(wanted, drawn):
        raise SiteError(
            f"{where}: expected the same starting values of {name!r}, which the update uses, for every size of the "
            "bond, got other ones.\nThey are drawn from the seed, and no file stores them."
        )
