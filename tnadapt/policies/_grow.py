"""Grow a bond: it gets new slices, and the update stays exactly as it is."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from itertools import combinations

import numpy as np
import numpy.typing as npt

from tnadapt._errors import SiteError
from tnadapt._hosts import check_size
from tnadapt._language import START, Adapter, AdapterSpec, Slot, Term, expect_adapter, normal
from tnadapt._signature import answers, mistake, told
from tnadapt._values import Params, sample
from tnadapt.policies._bonds import (
    Bond,
    asked_bonds,
    drawn_starts_of,
    entries_of,
    every_bond,
    expect_arrays,
    limits_of,
    refuse,
    resized,
    why_no_carrier,
    why_sizes_differ,
    why_starts_move,
)
from tnadapt.policies._change import NEW, Change, Selection
from tnadapt.policies._cut import check_start
from tnadapt.policies._scale import compensation, why_scale_holds

__all__ = ["grow"]

Array = npt.NDArray[np.float64]
WHERE = "grow"
MOST = 3  # factors that get zeros together


@answers(SiteError)
def grow(
    adapter: Adapter,
    params: Mapping[str, npt.ArrayLike],
    bond: str | Mapping[str, int],
    by: int | None = None,
    seed: int | None = None,
) -> Change:
    """Grow a bond by some slices, and return the change. No update changes.

    One trained factor gets zeros in the new slices, if possible one that starts at zero; it has a gradient there. The
    others get values that their initializers draw; normal ones of the size of the old values where an initializer
    gives zeros, or reads the host's weights. If the scale depends on the bond, one factor is multiplied to make up.

    Args:
        adapter: the adapter.
        params: its arrays by name.
        bond: the name of a bond, for all groups, or "<group>.<bond>" for that of one group; or several, each with its
            own `by`.
        by: the number of new slices.
        seed: the seed of the new values; that of the adapter by default.

    Raises:
        SiteError: the bond cannot grow, or no choice of zeros would leave the update as it is.
    """
    adapter = expect_adapter(adapter, WHERE)
    arrays = expect_arrays(adapter, params, WHERE)
    if seed is not None and (type(seed) is not int or seed < 0):
        raise mistake(SiteError, WHERE, "an integer of at least 0 as seed", told(seed), "Write seed=0.")
    changes: list[Change] = []
    for asked in asked_bonds(adapter, bond, by, WHERE):
        more = {name: check_size(f"{WHERE}: by", own) for name, own in asked.items()}
        change = _grow(adapter, arrays, more, seed)
        changes, adapter, arrays = [*changes, change], change.adapter, change.params
    return reduce(Change.then, changes)


def _grow(adapter: Adapter, arrays: Params, more: Mapping[str, int], seed: int | None) -> Change:
    """Return the change of some bonds of one mode, each by the number of slices that was asked for it."""
    known = every_bond(adapter)
    chosen = [known[name] for name in more]
    for one in chosen:
        if reason := why_not_grown(adapter, one, more[one.name]):
            raise refuse(WHERE, one, reason)
    after = resized(adapter, {one.name: tuple(size + more[one.name] for size in one.sizes) for one in chosen})
    factors = compensation(adapter, after, WHERE)
    zero = zero_factors(adapter.spec, chosen[0].modes)
    values, moves = dict(arrays), _moves(adapter, chosen, after)
    names = {slot.name: name for _, name, slot in entries_of(adapter, chosen)}
    for name, selections in moves.items():
        if name.endswith(START):
            continue
        values[name] = _grown(after, arrays[name], name, selections, seed=seed, is_zero=names[name] in zero)
    for _, slot in drawn_starts_of(adapter, chosen):
        drawn = sample(after.slots[slot.name], after.seed)
        check_start(slot.name, sample(slot, adapter.seed), drawn[_old(slot.shape)], WHERE)
    for name in (name for name in moves if name.endswith(START)):  # as the factor that they are the start of
        own, place = values[name.removesuffix(START)], _old(arrays[name].shape)
        values[name] = own.copy()
        values[name][place] = arrays[name]
    values |= {name: values[name] * ratio for name, ratio in factors.items()}
    return Change(before=adapter, adapter=after, params=values, moves=moves, factors=factors)


def why_not_grown(adapter: Adapter, bond: Bond, by: int = 1) -> str:
    """Say why a bond cannot grow by so many slices; "" if it can."""
    most = limits_of(adapter, bond)
    if most is not None and max(bond.sizes) + by > most:
        return f"its rule allows at most {most}"
    for name, factor in adapter.spec.arrays.items():
        if bond.modes & {*factor.modes} and factor.init.is_pattern:
            return f"the {factor.init.kind} pattern {name!r} carries it, and none is a part of a larger one"
        made = {*factor.modes[-2:]} if factor.map else frozenset[str]()
        if bond.modes & made and (factor.map == "rotation" or made - bond.modes):
            return f"the {factor.map} of {name!r} makes it, as long as another"
    reason = (
        why_sizes_differ(bond)
        or why_no_carrier(adapter, bond)
        or why_starts_move(adapter, bond)
        or why_scale_holds(adapter, bond)
    )
    if reason:
        return reason
    return "" if zero_factors(adapter.spec, bond.modes) else "no choice of zeros leaves the update as it is"


def zero_factors(spec: AdapterSpec, modes: frozenset[str]) -> tuple[str, ...]:
    """Return the factors whose new slices along these modes are 0: the fewest that keep the update; empty if none do.

    In each term, one of them carries each of the modes; and in some term only one does, which then has a gradient.
    """
    able = [name for name, factor in spec.arrays.items() if factor.trainable and not factor.map]
    able = [name for name in able if modes & {*spec.arrays[name].modes}]
    able.sort(key=lambda name: (not spec.arrays[name].is_zero, name))
    for number in range(1, MOST + 1):
        for chosen in combinations(able, number):
            if _keeps(spec, modes, chosen):
                return chosen
    return ()


def _keeps(spec: AdapterSpec, modes: frozenset[str], zero: Sequence[str]) -> bool:
    is_alive = False
    for term in spec.sum:
        for carriers in _carriers(spec, term, modes):
            nodes = [spec.nodes[name] for name in carriers if spec.nodes[name].factor in zero]
            held = [node for node in nodes if not node.at_start or spec.arrays[node.factor].init.is_read]
            if not held:
                return False
            is_alive = is_alive or (len(nodes) == 1 and not nodes[0].at_start)
    return is_alive


def _carriers(spec: AdapterSpec, term: Term, modes: frozenset[str]) -> Iterator[list[str]]:
    """Yield the nodes of a term that carry each of the modes that it has."""
    for mode in sorted(modes):
        if carriers := [name for name in term.nodes if mode in spec.nodes[name].modes]:
            yield carriers


def _moves(adapter: Adapter, bonds: Sequence[Bond], after: Adapter) -> dict[str, list[Selection]]:
    found: dict[str, list[Selection]] = {}
    for bond, _, slot in entries_of(adapter, bonds):
        for axis in bond.axes(slot.factor):
            old, new = slot.shape[axis], after.slots[slot.name].shape[axis]
            found.setdefault(slot.name, []).append(Selection(axis, (*range(old), *[NEW] * (new - old))))
    return found


def _grown(
    after: Adapter, old: Array, name: str, selections: Sequence[Selection], *, seed: int | None, is_zero: bool
) -> Array:
    """Return the array of an entry with new slices."""
    slot = after.slots[name]
    made = slot.factor.map and any(slot.factor.held[one.axis] in slot.factor.modes[-2:] for one in selections)
    new = np.zeros(slot.shape) if is_zero or made else _drawn(after, slot, old, seed)
    new[_old(old.shape)] = old
    for axis, first in [] if is_zero or made else [(one.axis, one.sources.index(NEW)) for one in selections]:
        slices = np.moveaxis(new, axis, 0)[first:]
        if slices.reshape(len(slices), -1).any(axis=1).all():
            continue
        if not slot.factor.trainable:
            reason = f"the frozen factor {name!r} is 0 in new slices, so that they would never train"
            raise SiteError(f"{WHERE}: expected a bond that can grow, got another: {reason}.")
        new = _alike(slot, old, after.seed if seed is None else seed)
        new[_old(old.shape)] = old
        break
    return new


def _drawn(after: Adapter, slot: Slot, old: Array, seed: int | None) -> Array:
    """Return values for a whole entry. Those of a frozen factor are the seed's, if those of before are a part of them.

    Others come from a stream of their own, so that they differ from those of before.
    """
    chosen = after.seed if seed is None else seed
    if slot.factor.init.is_read:
        return _alike(slot, old, chosen)
    if not slot.factor.trainable:
        values = sample(slot, after.seed)
        if np.array_equal(values[_old(old.shape)], old):
            return values
    return sample(replace(slot, name=_stream(slot)), chosen)


def _alike(slot: Slot, old: Array, seed: int) -> Array:
    """Return normal values of the size of the old ones; if those are all 0, of the size of a unit vector."""
    size = float(np.sqrt(np.mean(old**2))) or 1.0 / float(np.sqrt(old.size))
    init = normal(size)
    return sample(replace(slot, name=_stream(slot), factor=replace(slot.factor, init=init)), seed)


def _stream(slot: Slot) -> str:
    """Return the name of the random stream of new slices, which no entry of params has."""
    return f"{slot.name}:{'x'.join(map(str, slot.shape))}"


def _old(shape: Sequence[int]) -> tuple[slice, ...]:
    """Return where the old entries of a grown array lie."""
    return tuple(slice(length) for length in shape)
