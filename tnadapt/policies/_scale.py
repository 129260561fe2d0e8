"""What keeps an update as it is when its scale moves with a rank: some factors are multiplied by a number."""

from collections.abc import Collection, Iterable, Sequence

import numpy as np

from tnadapt._errors import SiteError
from tnadapt._language import START, Adapter
from tnadapt.policies._bonds import Bond, resized

__all__: list[str] = []

EXACT = 1e-12


def why_scale_holds(adapter: Adapter, bond: Bond) -> str:
    """Say why the scale cannot move with a bond: no trained factor can make up for it. Empty if one can."""
    scale = adapter.spec.scale
    if scale.rule == "raw" or (scale.over_bond and scale.bond not in bond.modes):
        return ""
    if _powers(adapter, allow_shared=False) is not None:
        return ""
    is_whole = len(bond.groups) == len(adapter.groups)
    if is_whole and _powers(adapter, allow_shared=True) is not None and _move_alike(adapter, bond):
        return ""
    return f"the scale {scale} moves with it, and no trained factor can make up for that"


def compensation(before: Adapter, after: Adapter, where: str) -> dict[str, float]:
    """Return the numbers by which entries of params have to be multiplied so that every update keeps its scale.

    Each term of the update gets the ratio of the scales exactly once. Raises SiteError if trained factors cannot do it.
    """
    ratios = _ratios(before, after)
    if all(ratio == 1.0 for ratio in ratios.values()):
        return {}
    powers = _powers(before, allow_shared=_are_alike(ratios.values()))
    if powers is None:
        raise SiteError(
            f"{where}: expected trained factors that can be multiplied so that the update stays as it is while its "
            f"scale {before.spec.scale} moves, got none for {before.spec.name}.\n"
            "Give the spec a scale that does not depend on this bond: raw(...)."
        )
    found: dict[str, float] = {}
    for group in before.groups:
        for name, power in powers.items():
            key = before.slot_name(group, name.removesuffix(START)) + (START if name.endswith(START) else "")
            found[key] = ratios[group.name] ** power
    return {name: ratio for name, ratio in found.items() if ratio != 1.0}


def _ratios(before: Adapter, after: Adapter) -> dict[str, float]:
    """Return the ratio of the scales of each group, exactly 1 where they differ by rounding alone."""
    pairs = zip(before.groups, after.groups, strict=True)
    ratios = {old.name: old.network.scale / new.network.scale for old, new in pairs}
    return {name: ratio if abs(ratio - 1.0) > EXACT else 1.0 for name, ratio in ratios.items()}


def _are_alike(ratios: Collection[float]) -> bool:
    """Return whether ratios differ by rounding alone."""
    return max(ratios) - min(ratios) <= EXACT * max(map(abs, ratios))


def _move_alike(adapter: Adapter, bond: Bond) -> bool:
    """Return whether the scales of all groups move by one ratio when a bond of all of them changes by a slice."""
    for by in (1, -1):
        try:
            after = resized(adapter, {bond.name: tuple(size + by for size in bond.sizes)})
        except SiteError:
            continue  # a size that no rule allows
        return _are_alike(_ratios(adapter, after).values())
    return True


def _powers(adapter: Adapter, *, allow_shared: bool) -> dict[str, float] | None:
    """Return the power of the ratio that each factor, or its stored start, is multiplied by; None if none would do.

    The powers of the nodes of each term add up to 1. One factor is taken if it is enough, first one that starts at 0.
    """
    spec = adapter.spec
    names = [
        name
        for name, factor in sorted(spec.arrays.items(), key=lambda item: (not item[1].is_zero, item[0]))
        if factor.trainable and not factor.map and (allow_shared or not factor.shared)
    ]
    names += [name + START for name in names if spec.arrays[name].init.is_read and _has_start(adapter, name)]
    counts = np.array(
        [[sum(_entry_of(adapter, node) == name for node in term.nodes) for name in names] for term in spec.sum],
        dtype=np.float64,
    ).reshape(len(spec.sum), len(names))
    for columns in _sets(adapter, names):
        times = counts[:, columns].sum(axis=1)
        if times[0] and (times == times[0]).all():
            return {names[column]: 1.0 / times[0] for column in columns}
    if not names:
        return None
    powers = np.linalg.lstsq(counts, np.ones(len(spec.sum)), rcond=None)[0]
    if np.abs(counts @ powers - 1.0).max() > EXACT:
        return None
    return {name: float(power) for name, power in zip(names, powers, strict=True) if abs(power) > EXACT}


def _sets(adapter: Adapter, names: Sequence[str]) -> Iterable[list[int]]:
    """Yield the columns of each factor, with those of its stored start."""
    for column, name in enumerate(names):
        if not name.endswith(START):
            yield [column, *([names.index(name + START)] if name + START in names else [])]


def _has_start(adapter: Adapter, factor: str) -> bool:
    return any(adapter.slot_name(group, factor) + START in adapter.slots for group in adapter.groups)


def _entry_of(adapter: Adapter, node: str) -> str:
    found = adapter.spec.nodes[node]
    return found.factor + (START if found.at_start else "")
