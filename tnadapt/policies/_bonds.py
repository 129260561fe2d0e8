"""The bonds of an adapter whose sizes can change: their names, the groups that have each, and the factors' axes."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tnadapt._errors import SiteError
from tnadapt._frozen import FrozenMap
from tnadapt._hosts import check_size
from tnadapt._language import START, Adapter, AdapterSpec, Factor, Group, SizeRule, Slot, expect_params
from tnadapt._signature import mistake, near, told
from tnadapt._values import Params

__all__: list[str] = []

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Bond:
    """A bond of one group, or one that all groups have in common since a factor that they share carries it.

    `modes` are the bond and those whose sizes follow from its size, because a factor is used under several names.
    """

    name: str
    mode: str
    modes: frozenset[str]
    groups: tuple[Group, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The size in each group."""
        return tuple(group.network.sizes[self.mode] for group in self.groups)

    def axes(self, factor: Factor) -> tuple[int, ...]:
        """Return the axes of a factor's array that run along the bond."""
        return tuple(axis for axis, mode in enumerate(factor.held) if mode in self.modes)


def every_bond(adapter: Adapter) -> dict[str, Bond]:
    """Return every bond by name. Those whose sizes follow from other modes are left out."""
    found: dict[str, Bond] = {}
    spec = adapter.spec
    for mode in (mode for mode in spec.bonds if mode not in spec.tied and mode not in spec.short):
        modes = modes_like(spec, mode)
        if adapter.bond_name(adapter.groups[0], mode) == mode:  # all groups have it in common
            found[mode] = Bond(mode, mode, modes, adapter.groups)
            continue
        for group in adapter.groups:
            name = adapter.bond_name(group, mode)
            found[name] = Bond(name, mode, modes, (group,))
    return found


def modes_like(spec: AdapterSpec, mode: str) -> frozenset[str]:
    """Return a bond with the modes whose sizes follow from it."""
    return frozenset({mode, *(other for other, own in spec.tied.items() if own == mode)})


def asked_bonds(adapter: Adapter, bond: object, value: object, where: str) -> list[dict[str, object]]:
    """Return what was asked for each bond by its name, one dict for each mode, from one name or values by name.

    Raises SiteError for a bond that was named twice, for values beside values by name, and as `find_bonds`.
    """
    if isinstance(bond, Mapping) and value is not None:
        raise SiteError(f"{where}: expected no further value beside values by bond, got {told(value)}.")
    asked = dict(bond) if isinstance(bond, Mapping) else {bond: value}
    if not asked:
        raise SiteError(f"{where}: expected at least one bond, got none.")
    known, found = every_bond(adapter), dict[str, dict[str, object]]()
    for name, own in asked.items():
        for one in find_bonds(adapter, name, where, known):
            by_name = found.setdefault(one.mode, {})
            if one.name in by_name:
                raise SiteError(f"{where}: expected each bond once, got {one.name!r} twice, also by {name!r}.")
            by_name[one.name] = own
    return list(found.values())


def find_bonds(adapter: Adapter, name: object, where: str, every: Mapping[str, Bond] | None = None) -> list[Bond]:
    """Return the bonds of a name: that of a mode, for all groups, or "<group>.<mode>". `every` has all bonds.

    Raises SiteError for a name that is no bond, and for a bond whose size follows from another mode's.
    """
    if not isinstance(name, str):
        todo = f'Write {where}(adapter, params, "r", ...).'
        raise mistake(SiteError, where, "the name of a bond", told(name), todo)
    spec, known = adapter.spec, every_bond(adapter) if every is None else every
    if name in known:
        return [known[name]]
    found = [bond for bond in known.values() if name == bond.mode]
    if found:
        return found
    group, _, mode = name.rpartition(".")
    if group in ("", *(one.name for one in adapter.groups)) and mode in spec.tied:
        own = spec.tied[mode]
        raise SiteError(
            f"{where}: expected a bond with a size of its own, got {name!r}, which has the size of {own!r}.\n"
            + (f"Change {own!r}; {mode!r} follows." if own in spec.bonds else "That size is fixed.")
        )
    if mode in spec.short:
        raise SiteError(f"{where}: expected a bond whose size is free, got {name!r}, that of the host's SVD.")
    if joint := [bond for bond in known.values() if bond.mode == mode and len(bond.groups) > 1]:
        raise SiteError(
            f"{where}: expected a bond of one group, got {name!r}, which all groups have in common, since a factor "
            f"that they share carries it.\nChange it for all of them: {joint[0].name!r}."
        )
    names = list(dict.fromkeys([*(bond.mode for bond in known.values()), *known]))
    todo = near(name, names) if names else f"{spec.name} has no bond with a size of its own."
    raise SiteError(f"{where}: expected a bond of {spec.name}, got {name!r}.\n{todo}")


def entries_of(adapter: Adapter, bonds: Iterable[Bond]) -> Iterator[tuple[Bond, str, Slot]]:
    """Yield each entry of params that carries one of these bonds, with the bond and the name of its factor.

    Starting values that are entries of their own come with the name of their factor too.
    """
    for bond in bonds:
        seen = set()
        for group in bond.groups:
            for name, factor in adapter.spec.arrays.items():
                key = adapter.slot_name(group, name)
                if not bond.axes(factor) or key in seen:
                    continue
                seen.add(key)
                yield bond, name, adapter.slots[key]
                if key + START in adapter.slots:
                    yield bond, name, adapter.slots[key + START]


def drawn_starts_of(adapter: Adapter, bonds: Iterable[Bond]) -> Iterator[tuple[Bond, Slot]]:
    """Yield the entries that carry one of these bonds, and whose starting values the update draws from the seed."""
    for bond, _, slot in entries_of(adapter, bonds):
        if slot.name + START in adapter.starts and slot.name + START not in adapter.slots:
            yield bond, slot


def why_no_carrier(adapter: Adapter, bond: Bond) -> str:
    """Say why a bond cannot change: no trained factor carries it. Empty if one does."""
    arrays = adapter.spec.arrays.values()
    has_trained = any(factor.trainable and bond.modes & {*factor.modes} for factor in arrays)
    return "" if has_trained else "no trained factor carries it"


def why_starts_move(adapter: Adapter, bond: Bond) -> str:
    """Say which starting values that the update uses would be others for another size of a bond; "" if none.

    They are drawn from the seed in the order of the entries, so that only slices of the first axis can be added.
    """
    for one, slot in drawn_starts_of(adapter, [bond]):
        init = slot.factor.init
        is_leading = init.kind in ("normal", "uniform") and one.axes(slot.factor) == (0,)
        if not (is_leading or init.kind == "constant") or bond.modes & {*init.fan}:
            return f"the update uses starting values of {slot.name!r}, which the seed gives for one size only"
    return ""


def why_sizes_differ(bond: Bond) -> str:
    """Say why a bond that groups have in common cannot change: it has several sizes. Empty if it has one."""
    if len({*bond.sizes}) == 1:
        return ""
    sizes = ", ".join(map(str, sorted({*bond.sizes})))
    return f"all groups share a factor that carries it, but they have several sizes of it ({sizes})"


def refuse(where: str, bond: Bond, reason: str) -> SiteError:
    """Return the error for a bond that an operation cannot change."""
    return SiteError(f"{where}: expected a bond that can change, got {bond.name!r}: {reason}.")


def expect_arrays(adapter: Adapter, params: object, where: str) -> Params:
    """Return params as float64 arrays, in new containers. Raises SiteError for a missing, unknown or misshapen one.

    Entries that are the host's weights may be there; starting values that are drawn again are dropped.
    """
    given = expect_params(params, where)
    found: Params = {}
    for name, slot in adapter.slots.items():
        if name not in given:
            raise SiteError(
                f"{where}: expected an array {name!r} among the params, got none.\n"
                f"This adapter has {', '.join(list(adapter.slots)[:6])}."
            )
        found[name] = _as_numbers(given[name], name, where)
        if found[name].shape != slot.shape:
            raise SiteError(f"{where}: expected params[{name!r}] of shape {slot.shape}, got {found[name].shape}.")
    for name in given:
        if name in adapter.hosts:
            found[name] = np.asarray(given[name])
        elif name not in adapter.slots and name not in adapter.starts:
            raise SiteError(f"{where}: expected only params of this adapter, got {name!r}.\n{near(name, [*found])}")
    return found


def _as_numbers(value: object, name: str, where: str) -> Array:
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError) as error:  # a tensor of torch that requires a gradient: RuntimeError
        todo = "In PyTorch, pass state.arrays()."
        raise mistake(SiteError, where, f"a numpy array as params[{name!r}]", told(value), todo) from error


def resized(adapter: Adapter, sizes: Mapping[str, tuple[int, ...]]) -> Adapter:
    """Return the adapter with other sizes of some bonds: name -> the size in each of the bond's groups.

    Raises SiteError for a size that does not fit the spec.
    """
    known, asked = every_bond(adapter), dict(adapter.sizes)
    by_mode: dict[str, dict[str, int]] = {}
    for name, lengths in sizes.items():
        bond = known[name]
        own = by_mode.setdefault(bond.mode, {})
        own |= {group.name: length for group, length in zip(bond.groups, lengths, strict=True)}
    for mode, own in by_mode.items():
        now = {group.name: group.network.sizes[mode] for group in adapter.groups}
        whole = now | own
        if len({*whole.values()}) == 1:  # one size for all groups again
            asked = {key: size for key, size in asked.items() if key.rpartition(".")[2] != mode}
            asked[mode] = next(iter(whole.values()))
            continue
        asked |= {f"{group}.{mode}": size for group, size in whole.items() if size != now[group]}
    made = replace(adapter, sizes=FrozenMap(asked))
    for old, new in zip(adapter.groups, made.groups, strict=True):
        for mode, own in by_mode.items():
            wanted = own.get(old.name, old.network.sizes[mode])
            check_size(f"size of {mode!r}", wanted)
            if new.network.sizes[mode] != wanted:
                raise SiteError(
                    f"{old.name}: expected {wanted} as the size of {mode!r}, got {new.network.sizes[mode]}."
                )
    return made


def limits_of(adapter: Adapter, bond: Bond) -> int | None:
    """Return the largest size that the rules `at_most` of a spec allow a bond; None if there is no rule."""
    rules = {mode: rule for mode, rule in adapter.spec.sizes.items() if mode in bond.modes}
    most = [
        group.network.sizes[rule.mode]
        for rule in rules.values()
        if isinstance(rule, SizeRule) and rule.kind == "at_most"
        for group in bond.groups
    ]
    return min(most, default=None)
