"""Adapters: a spec bound to the sites of one host, its groups, the entries of its params, and where sites read them."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from math import inf
from typing import TYPE_CHECKING

from tnadapt._errors import SiteError
from tnadapt._frozen import FrozenMap
from tnadapt._hosts import TASK, Site, check_parts, check_size, expect_site
from tnadapt._language.address import Address, Magnitude, Part, Slot
from tnadapt._language.factor import Factor
from tnadapt._language.groups import check_gates, check_patterns, group_of, joint_factors, own_sizes
from tnadapt._language.initializer import HUGE, TINY, host
from tnadapt._language.movement import gain_of
from tnadapt._language.network import Group, Network, most_shapes, stacks_of
from tnadapt._language.terms import START
from tnadapt._table import align

if TYPE_CHECKING:
    from tnadapt._language.spec import AdapterSpec

__all__ = ["Adapter"]


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A spec bound to the sites of one host, made by `AdapterSpec.bind`. Everything else follows from these values.

    `scales` are numbers by group for a scale by the rule `unit`, from a file that was written when they were others.
    """

    spec: "AdapterSpec"
    sites: tuple[Site, ...]
    rank: int | Mapping[str, int] | None
    sizes: Mapping[str, int]
    seed: int
    scales: Mapping[str, float] = FrozenMap({})
    groups: tuple[Group, ...] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Check the fields, form the groups, and find every size."""
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise SiteError(f"seed: expected an integer of at least 0, got {self.seed!r}.\nWrite seed=0.")
        for mode, size in self.sizes.items():
            check_size(f"size of {mode!r}", size)
        if not self.sites:
            raise SiteError(f"{self.spec.name}: expected at least one site, got none.")
        path, times = Counter(site.path for site in self.sites).most_common(1)[0]
        if times > 1:
            raise SiteError(f"{path}: expected each site once, got this one {times} times.\nPass it once.")
        for weight, parts in self.weights.items():
            check_parts(weight, parts)
        check_patterns(self)
        stacks = stacks_of(self.sites, self.spec.site_modes)
        networks: dict[object, Network] = {}  # groups of equal sizes share one
        sizes = own_sizes(self, stacks)
        groups = tuple(group_of(self, name, stack, networks, sizes[name]) for name, stack in stacks.items())
        object.__setattr__(self, "groups", groups)
        check_gates(self)
        if self.scales or self.spec.scale.is_unit:
            object.__setattr__(self, "groups", self._scaled())

    def _scaled(self) -> tuple[Group, ...]:
        """Return the groups with the scales that are given, and by the rule `unit` where none is."""
        known: dict[tuple[int, float | None], Network] = {}  # groups of equal networks keep sharing one
        found = []
        for group in self.groups:
            given = self.scales.get(group.name)
            key = (id(group.network), given)
            if key not in known:
                gain = gain_of(self.spec, group.network, partial(self.sizes_made_for, group)) if given is None else 1.0
                scale = given if given is not None else self.spec.scale.at(1, gain) if 0 < gain < inf else 0.0
                if not TINY <= abs(scale) <= HUGE:
                    raise SiteError(
                        f"scale: expected a first step in group {group.name!r} that a number can make "
                        f"{self.spec.scale}, got one of {gain:.3g}.\nTake another scale, or other starting values."
                    )
                known[key] = replace(group.network, scale=scale)
            found.append(replace(group, network=known[key]))
        return tuple(found)

    def sizes_made_for(self, group: Group, factor: str) -> Mapping[str, int]:
        """Return the sizes that the array of a group's factor is made for: the largest ones if groups share it."""
        slot = self.slots.get(self.slot_name(group, factor)) if factor in self.spec.arrays else None
        return slot.sizes if slot else group.network.sizes

    @property
    def networks(self) -> tuple[Network, ...]:
        """The network of each group."""
        return tuple(group.network for group in self.groups)

    @cached_property
    def slots(self) -> dict[str, Slot]:
        """Every entry of params by name: one per factor and group, prefixed by the group's name if there are several.

        A factor that all groups share is one entry, at the largest sizes. Starting values that the update uses and that
        were read from the host are further, frozen entries.
        """
        slots: dict[str, Slot] = {}
        largest, arrays = self._largest_sizes, self.spec.arrays
        shared = {name for name in arrays if self.spec.is_global(name)}
        over, is_single = {*self.spec.site_modes}, len(self.groups) == 1
        held = {name: factor.held for name, factor in arrays.items()}
        inner = {name: tuple(m for m in factor.modes if m not in over) for name, factor in arrays.items()}
        for group in self.groups:
            for name, factor in arrays.items():
                if name in shared and name in slots:
                    continue
                sizes = largest if name in shared else group.network.sizes
                key = name if name in shared or is_single else f"{group.name}.{name}"
                shape = tuple(sizes[mode] for mode in held[name])
                slots[key] = Slot(key, factor, shape, sizes, inner[name], "" if key == name else group.name)
        return slots | {slot.name: slot for slot in self._starts(slots.values()) if slot.factor.init.is_read}

    @cached_property
    def hosts(self) -> dict[str, tuple[Site, str]]:
        """The entries of params that are the host's weight, or a part of its SVD: name -> site and kind.

        They are read from the host, and neither counted nor stored. Where a part is used, the weight is there too.
        """
        used: set[str] = {factor.init.kind for factor in self.spec.hosts.values()}
        kinds = sorted(used | {"host"}) if used or self.spec.magnitude else []
        return {host_entry(site, kind): (site, kind) for site in self.sites for kind in kinds}

    @cached_property
    def starts(self) -> dict[str, Slot]:
        """The starting values that the update uses, by name, which ends in ":start". Those not in slots are redrawn."""
        return {slot.name: slot for slot in self._starts(self.slots.values())}

    def _starts(self, slots: Iterable[Slot]) -> Iterator[Slot]:
        """Yield a slot for the start of each trainable factor whose starting values the update uses."""
        used = {node.factor for node in self.spec.nodes.values() if node.at_start}
        for slot in slots:
            if slot.factor.trainable and slot.name.rpartition(".")[2] in used:
                yield replace(slot, name=slot.name + START, factor=replace(slot.factor, trainable=False))

    @property
    def joined(self) -> tuple[str, ...]:
        """The trainable factors that several groups share, so that these cannot be looked at one by one."""
        shared = (name for name, factor in self.spec.arrays.items() if factor.shared and factor.trainable)
        return tuple(shared) if len(self.groups) > 1 else ()

    def bond_name(self, group: Group, bond: str) -> str:
        """Return the name of a group's bond, prefixed as factors are unless all groups have it in common.

        They have it in common if a factor that they share carries it.
        """
        is_joint = len(self.groups) == 1 or bool(joint_factors(self.spec, bond))
        return bond if is_joint else f"{group.name}.{bond}"

    @cached_property
    def _largest_sizes(self) -> Mapping[str, int]:
        """The largest size of every mode over the groups, at which factors of the whole adapter are drawn."""
        networks = list({id(network): network for network in self.networks}.values())  # groups share networks
        return FrozenMap({mode: max(network.sizes[mode] for network in networks) for mode in networks[0].sizes})

    def slot_name(self, group: Group, factor: str) -> str:
        """Return the name of a group's factor in params."""
        return factor if self.spec.is_global(factor) or len(self.groups) == 1 else f"{group.name}.{factor}"

    def find(self, site: Site | str) -> tuple[Group, Site]:
        """Return the group and the site of this path. Raises SiteError for an unknown path."""
        path = site if isinstance(site, str) else expect_site(site, self.spec.name).path
        if path not in self._places:
            some = f"Its {len(self._places)} sites begin with {', '.join(list(self._places)[:5])}."
            raise SiteError(f"{self.spec.name}: expected a site of this adapter, got {path!r}.\n{some}")
        return self._places[path]

    def address(self, site: Site | str) -> Address:
        """Find a site's part of every factor. Raises SiteError for an unknown path."""
        group, place = self.find(site)
        index, sizes = group.index(place), group.network.sizes
        parts = {}
        for name, node in group.network.nodes.items():
            factor = group.network.factors[node.factor]
            cut = tuple(index[mode] if mode in index else slice(sizes[mode]) for mode in factor.held)
            if factor.init.is_host:
                parts[name] = Part(host_entry(place, factor.init.kind), factor, cut)
                continue
            key = self.slot_name(group, node.factor) + (START if node.at_start else "")
            parts[name] = Part(key, factor, cut, node.at_start)
        return Address(place, group, FrozenMap(index), FrozenMap(parts), self._magnitude_of(group, place))

    def _magnitude_of(self, group: Group, site: Site) -> Magnitude | None:
        """Return what the magnitude reads at a site, or None without one."""
        if not (name := self.spec.magnitude):
            return None
        network, index = group.network, group.index(site)
        factor = network.factors[name]
        weight = Factor((*network.out_modes, *network.in_modes), host(), trainable=False)
        cut, whole = (
            tuple(index[mode] if mode in index else slice(network.sizes[mode]) for mode in one.modes)
            for one in (factor, weight)
        )
        return Magnitude(Part(self.slot_name(group, name), factor, cut), Part(host_entry(site), weight, whole))

    @cached_property
    def weights(self) -> dict[str, tuple[Site, ...]]:
        """The adapted weights of the host by path, each with its sites: the weight itself, or its blocks."""
        found: dict[str, list[Site]] = {}
        for site in self.sites:
            found.setdefault(site.weight, []).append(site)
        return {path: tuple(sites) for path, sites in found.items()}

    @property
    def reads_weights(self) -> bool:
        """Whether any starting values are read from the host's weights."""
        return bool(self.spec.hosts) or any(factor.init.is_read for factor in self.spec.arrays.values())

    def parts(self, path: str) -> tuple[Site, ...]:
        """Return the blocks of a weight; empty if the path is that of a site, or of a weight that is not adapted.

        Raises SiteError if the blocks serve several tasks, since the weight then has no single update.
        """
        if path in self._places or path not in self.weights:
            return ()
        sites = self.weights[path]
        if len({site.coordinates.get(TASK) for site in sites}) > 1:
            raise SiteError(
                f"{path}: expected a weight with one update, got one whose sites serve several tasks.\n"
                f"Ask for one of {', '.join(s.path for s in sites)}."
            )
        return sites

    @cached_property
    def _places(self) -> dict[str, tuple[Group, Site]]:
        return {site.path: (group, site) for group in self.groups for site in group.sites}

    @property
    def extent(self) -> str:
        """Return the numbers of sites and of groups in words, such as "24 sites in 1 group"."""
        numbers = {"site": len(self.sites), "group": len(self.groups)}
        return " in ".join(f"{number:,} {what}{'s' * (number != 1)}" for what, number in numbers.items())

    def __str__(self) -> str:
        """Return a table with one row per network: its groups, and the sizes of its modes."""
        head = f"{self.spec.name}: {self.extent}, seed {self.seed}"
        rows = [("groups", "sites", "weight", "scale", "sizes")]
        for net in dict.fromkeys(self.networks):
            equal = [group for group in self.groups if group.network == net]
            names = equal[0].name if len(equal) == 1 else f"{equal[0].name} .. {equal[-1].name} ({len(equal)})"
            sizes = " ".join(f"{mode}={size}" for mode, size in net.sizes.items())
            weight = " x ".join(map(str, net.weight_shape))
            rows.append((names, str(sum(len(group.sites) for group in equal)), weight, f"{net.scale:.6g}", sizes))
        return "\n".join([head, *align(rows), *([f"  {self.sharing}"] if self.sharing else [])])

    @property
    def sharing(self) -> str:
        """A note on the trainable factors that the spec shares, but only among weights of one shape; may be empty."""
        outer, shapes = {*self.spec.site_modes}, most_shapes(self.sites, self.spec.site_modes)
        arrays = self.spec.arrays
        trained = {name: {*factor.modes} for name, factor in arrays.items() if factor.trainable and not factor.shared}
        split = [name for name, modes in trained.items() if not outer <= modes]
        if shapes == 1 or not split or not outer:
            return ""
        return f"not shared across weight shapes: {', '.join(split)} (an array for each of {shapes} shapes)"


def host_entry(site: Site, kind: str = "host") -> str:
    """Return the name in params of a site's weight, or of a part of its SVD."""
    return f"{site.path}:{kind}"
