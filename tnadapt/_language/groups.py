"""The groups of an adapter and the sizes of their networks, from what was asked at bind."""

import math
from collections.abc import Collection, Mapping
from typing import Protocol

from tnadapt._errors import SiteError
from tnadapt._frozen import FrozenMap
from tnadapt._hosts import Site, check_size, is_named, nearest
from tnadapt._language.factor import Factor
from tnadapt._language.network import Group, Network, sizes_of, values_of
from tnadapt._language.notation import Axis
from tnadapt._language.scale import Scale
from tnadapt._language.sizes import SizeRule
from tnadapt._language.terms import Node, Term

__all__: list[str] = []


class Spec(Protocol):
    """A valid spec, as far as sizes follow from it."""

    @property
    def name(self) -> str: ...
    @property
    def axes(self) -> tuple[Axis, ...]: ...
    @property
    def site_modes(self) -> tuple[str, ...]: ...
    @property
    def bonds(self) -> tuple[str, ...]: ...
    @property
    def arrays(self) -> Mapping[str, Factor]: ...
    @property
    def nodes(self) -> Mapping[str, Node]: ...
    @property
    def sum(self) -> tuple[Term, ...]: ...
    @property
    def scale(self) -> Scale: ...
    @property
    def sizes(self) -> Mapping[str, SizeRule | int]: ...
    @property
    def hosts(self) -> Mapping[str, Factor]: ...
    @property
    def short(self) -> tuple[str, ...]: ...
    @property
    def tied(self) -> Mapping[str, str]: ...
    @property
    def free_bonds(self) -> tuple[str, ...]: ...
    def is_global(self, factor: str, /) -> bool: ...


class Asked(Protocol):
    """An adapter before its groups are formed."""

    @property
    def spec(self) -> Spec: ...
    @property
    def rank(self) -> int | Mapping[str, int] | None: ...
    @property
    def sizes(self) -> Mapping[str, int]: ...
    @property
    def sites(self) -> tuple[Site, ...]: ...


class Bound(Asked, Protocol):
    """An adapter with its groups."""

    @property
    def groups(self) -> tuple[Group, ...]: ...


def _ranks(adapter: Asked, asked: Mapping[str, int]) -> dict[str, int]:
    """Return the ranks that were asked for all networks, by bond."""
    rank = adapter.rank
    if isinstance(rank, Mapping):
        return {bond: size for bond, size in rank.items() if bond in adapter.spec.bonds}
    if rank is None:
        return {}
    check_size("rank", rank)
    return {bond: rank for bond in adapter.spec.free_bonds if bond not in asked}


def check_ranks(adapter: Bound) -> None:
    """Raise SiteError for a rank that no update can have, in a network with more parameters than its weights."""
    for group in adapter.groups:
        network = group.network
        trained = sum(network.volume(factor.held) for factor in network.factors.values() if factor.trainable)
        dense = len(group.sites) * math.prod(network.weight_shape)
        highest = min(network.volume(network.out_modes), network.volume(network.in_modes))
        above = [bond for bond in adapter.spec.free_bonds if network.sizes[bond] > highest]
        if above and trained > dense:
            raise SiteError(
                f"{group.sites[0].path}: expected a rank of at most {highest} for a weight {network.weight_shape}, got "
                f"{above[0]!r} of {network.sizes[above[0]]}, with which {adapter.spec.name} would train {trained:,} "
                f"numbers for {dense:,} of the weights.\nChoose a smaller rank, or pass overparametrized=True."
            )


def check_taken(adapter: Asked) -> None:
    """Raise SiteError for a rank that would have no effect: no bond of the spec takes one, or no module is left."""
    spec, rank, patterns = adapter.spec, adapter.rank, _patterns(adapter)
    if not spec.free_bonds and (patterns or isinstance(rank, int)):
        modes = [mode for axis in spec.axes for mode in axis if len(axis) > 1]
        todo = f" Pass sizes={{...}} for its modes instead: {', '.join(modes)}." if modes else ""
        raise SiteError(
            f"rank: expected no rank, since no bond of {spec.name} takes one, got {patterns or rank}.\n"
            f"Leave it out.{todo}"
        )
    first = {next((name for name in patterns if is_named(site.path, name)), "") for site in adapter.sites}
    if late := [name for name in patterns if name not in first]:
        raise SiteError(
            f"rank: expected a name that is the first to match some module, got {late[0]!r}, whose modules match "
            "earlier names.\nWrite it before them."
        )


def check_gates(adapter: Bound) -> None:
    """Raise SiteError for a controlled Z that groups of several sizes share: a smaller one is no part of a larger."""
    for name, factor in adapter.spec.arrays.items():
        if factor.init.kind == "controlled_z" and adapter.spec.is_global(name):
            shapes = {group.network.shape(name): group.sites[0].path for group in adapter.groups}
            if len(shapes) > 1:
                (one, first), (other, second) = list(shapes.items())[:2]
                raise SiteError(
                    f"factor {name!r}: expected the same sizes at all sites, since a controlled_z is one for the whole "
                    f"adapter and a smaller one is no part of it, got {one} at {first} and {other} at {second}.\n"
                    f"Adapt weights of one shape, or give {' and '.join(map(repr, factor.modes))} sizes in the spec."
                )


def group_of(
    adapter: Asked, name: str, stack: tuple[Site, ...], networks: dict[object, Network], sizes: Mapping[str, int]
) -> Group:
    """Return the group of a stack of sites. `sizes` are those asked for its modes, and `networks` those known."""
    values = {mode: values_of(stack, mode) for mode in adapter.spec.site_modes}
    lengths = {mode: len(along) for mode, along in values.items()}
    own = _own_rank(adapter, stack)
    key = (stack[0].shape, own, *lengths.values(), *sorted(sizes.items()))
    if key not in networks:
        networks[key] = _network(adapter, stack[0], lengths, own, sizes)
    return Group(name, networks[key], stack, FrozenMap(values))


def own_sizes(adapter: Asked, groups: Collection[str]) -> dict[str, dict[str, int]]:
    """Return the sizes that were asked for each group: those of modes, and beside them those of its own bonds.

    The key of the latter is the name of the group and of the bond, as in "0.q_proj.r". Raises SiteError for an unknown
    group, and for a bond whose size is not free or that a factor of several groups carries.
    """
    alike = {mode: size for mode, size in adapter.sizes.items() if "." not in mode}
    found = dict.fromkeys(groups, alike)
    for key, size in adapter.sizes.items():
        group, _, bond = key.rpartition(".")
        if group:
            _check_own(adapter, key, groups)
            found[group] = found[group] | {bond: size}
    return found


def _check_own(adapter: Asked, key: str, groups: Collection[str]) -> None:
    """Raise SiteError unless a key names a group and a bond whose size this group can have by itself."""
    spec, (group, _, bond) = adapter.spec, key.rpartition(".")
    where = f"sizes: expected a group of {spec.name} and a bond of its own, got {key!r}"
    if group not in groups:
        raise SiteError(f"{where}.{nearest(group, list(groups))}")
    if bond in spec.tied:
        raise SiteError(f"{where}, but {bond!r} has the size of {spec.tied[bond]!r}.\nGive that a size.")
    if bond in spec.short or bond not in spec.bonds:
        free = ", ".join(b for b in spec.bonds if b not in spec.tied and b not in spec.short) or "none"
        raise SiteError(f"{where}.\nThe bonds with a size of their own are {free}.")
    if len(groups) > 1 and (sharing := joint_factors(spec, bond)):
        raise SiteError(
            f"{where}, but the factor {sharing[0]!r}, which all groups share, carries {bond!r}.\n"
            f"Give it one size for all groups: sizes={{{bond!r}: ...}}."
        )


def joint_factors(spec: Spec, bond: str) -> list[str]:
    """Return the factors that all groups share and that carry a bond, or one whose size follows from it."""
    modes = {bond, *(mode for mode, own in spec.tied.items() if own == bond)}
    return [name for name, factor in spec.arrays.items() if modes & {*factor.modes} and spec.is_global(name)]


def _patterns(adapter: Asked) -> dict[str, int]:
    """Return the ranks that were asked for some modules, by name; those for bonds are the others."""
    rank = adapter.rank if isinstance(adapter.rank, Mapping) else {}
    return {name: size for name, size in rank.items() if name not in adapter.spec.bonds}


def _own_rank(adapter: Asked, stack: tuple[Site, ...]) -> int | None:
    """Return the rank that was asked for the modules of a network, or None. The first name that matches counts."""
    patterns = _patterns(adapter)
    if not patterns:
        return None
    found = {site: next((size for name, size in patterns.items() if is_named(site.path, name)), None) for site in stack}
    if len(set(found.values())) > 1:
        first, other = (
            next(site for site, size in found.items() if size == one) for one in list(set(found.values()))[:2]
        )
        raise SiteError(
            f"{other.path}: expected the rank of {first.path}, {found[first]}, since both are in one network, got "
            f"{found[other]}.\nStack over fewer site modes, or give all of them one rank."
        )
    return found[stack[0]]


def check_patterns(adapter: Asked) -> None:
    """Raise SiteError for a name in `rank` that is neither a bond nor that of a module."""
    for name in _patterns(adapter):
        if not any(is_named(site.path, name) for site in adapter.sites):
            bonds = ", ".join(adapter.spec.free_bonds) or "none"
            raise SiteError(
                f"rank: expected bonds of {adapter.spec.name} or names of adapted modules, got {name!r}.\n"
                f"Its bonds are {bonds}.{nearest(name, [site.path for site in adapter.sites])}"
            )


def _network(
    adapter: Asked, site: Site, lengths: Mapping[str, int], own: int | None, told: Mapping[str, int]
) -> Network:
    spec = adapter.spec
    known = {*spec.bonds, *(mode for axis in spec.axes for mode in axis)}
    if wrong := [mode for mode in told if mode not in known]:
        raise SiteError(
            f"sizes: expected modes of {spec.name} whose sizes are free, got {wrong[0]!r}.\n"
            f"It has {', '.join(sorted(known))}."
        )
    asked = _numbers(spec) | dict(told)
    required = {mode for mode, rule in spec.sizes.items() if isinstance(rule, SizeRule) and rule.kind == "required"}
    outer = sizes_of(site.path, site.shape, spec.axes, asked, required) | dict(lengths)
    sizes = outer | _bond_sizes(adapter, outer, asked, own, told)
    scale = spec.scale.at(sizes.get(spec.scale.bond, 1))  # that of `unit` needs the sizes of all groups
    factors = {**spec.arrays, **spec.hosts}
    return Network(spec.axes, spec.site_modes, factors, sizes, scale, spec.nodes, spec.sum)


def _numbers(spec: Spec) -> dict[str, int]:
    """Return the sizes that a spec gives as numbers, those of a second name by the bond that has the size."""
    given = {mode: rule for mode, rule in spec.sizes.items() if isinstance(rule, int)}
    owners = {mode: spec.tied[mode] for mode in given if spec.tied.get(mode) in spec.bonds}
    return {owner: given[mode] for mode, owner in owners.items()} | {m: n for m, n in given.items() if m not in owners}


def _bond_sizes(
    adapter: Asked, outer: Mapping[str, int], asked: Mapping[str, int], own: int | None, told: Mapping[str, int]
) -> dict[str, int]:
    """Return the sizes of the bonds.

    `own` is the rank that was asked for the modules of this network, and `told` are the sizes that were asked at bind.
    """
    spec, free = adapter.spec, adapter.spec.free_bonds
    ranks = _ranks(adapter, asked)
    if own is not None:
        ranks |= {bond: own for bond in free if bond not in told}
    known = {*free, *(bond for bond in spec.bonds if bond in spec.sizes and bond not in spec.tied)}
    if wrong := [
        bond
        for bond in (*ranks, *told)
        if bond in spec.tied or bond in spec.short or (bond in ranks and bond not in known)
    ]:
        raise SiteError(
            f"rank: expected bonds of {spec.name}, got {wrong[0]!r}.\nIts bonds are {', '.join(free) or 'none'}."
        )
    if missing := [bond for bond in free if bond not in ranks and bond not in asked]:
        raise SiteError(
            f"{spec.name}: expected a size for every bond, got none for {', '.join(missing)}.\n"
            f"Pass rank=8 for all, or rank={{{missing[0]!r}: 8}} for each."
        )
    sizes = dict(asked) | {bond: check_size(f"rank of {bond!r}", size) for bond, size in ranks.items()}
    for first, most in _limits(spec, outer).items():
        if first in sizes and first not in told:
            sizes[first] = min(sizes[first], most)
    whole = sizes | dict(told) | dict(outer)
    sides = ([mode for axis in axes for mode in axis] for axes in (spec.axes[:1], spec.axes[1:]))
    thin = min(math.prod(outer[mode] for mode in side) for side in sides)
    whole |= dict.fromkeys(spec.short, thin)
    for bond, mode in spec.tied.items():  # in an order in which a mode comes before what has its size
        whole[bond] = whole[mode]
    for bond in spec.bonds:
        _check_rule(adapter, bond, whole, {*ranks, *told}, thin)
    return {bond: whole[bond] for bond in spec.bonds}


def _limits(spec: Spec, outer: Mapping[str, int]) -> dict[str, int]:
    """Return the largest size that `at_most` permits, by the bond whose size it limits."""
    found: dict[str, int] = {}
    for bond, rule in spec.sizes.items():
        if isinstance(rule, SizeRule) and rule.kind == "at_most":
            first = spec.tied.get(bond, bond)
            found[first] = min(found.get(first, outer[rule.mode]), outer[rule.mode])
    return found


def _check_rule(adapter: Asked, bond: str, sizes: Mapping[str, int], asked: Collection[str], thin: int) -> None:
    """Raise SiteError for a bond that has another size than its rule says, since copies tie it to one with a rule.

    `asked` has the bonds whose sizes were passed to `bind`, `thin` the length of the bond of the host's SVD.
    """
    spec, rule, first = adapter.spec, adapter.spec.sizes.get(bond), adapter.spec.tied.get(bond, bond)
    size, wanted = sizes[bond], sizes[bond]
    if bond in spec.short:
        wanted = thin
    elif isinstance(rule, int):
        wanted = size if first in asked else min(rule, _limits(spec, sizes).get(first, rule))
    elif rule is not None and rule.kind == "like":
        wanted = sizes[rule.mode]
    elif rule is not None and rule.kind == "at_most" and first not in spec.bonds:
        wanted = min(size, sizes[rule.mode])
    if size != wanted:
        raise SiteError(
            f"{spec.name}: expected {wanted} as the size of {bond!r}, got {size}, the size of {first!r}, which a copy "
            f"of a factor gives it.\nGive these modes sizes that agree, or adapt weights where they do."
        )
