"""An adapter as a table: the size-free spec, and the spec bound to the sites of one host."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from tnadapt._errors import SiteError, SpecError
from tnadapt._frozen import FrozenMap
from tnadapt._hosts import TASK, Site, check_parts, check_size, expect_site, expect_sites
from tnadapt._language.address import START, Address, Part, Slot
from tnadapt._language.factor import Factor
from tnadapt._language.faults import find_faults
from tnadapt._language.kinds import expect_sizes, find_kind_faults, scale_of
from tnadapt._language.network import Group, Network, most_shapes, sizes_of, stacks_of, values_of
from tnadapt._language.notation import Axis, axes_of, modes_of, text_of
from tnadapt._language.scale import Scale, raw
from tnadapt._signature import answers, answers_when_made
from tnadapt._table import align

__all__ = ["Adapter", "AdapterSpec"]


@answers_when_made(SpecError)
@dataclass(frozen=True, kw_only=True)
class AdapterSpec:
    """A tensor-network adapter without sizes: how a weight's axes split, what it is stacked over, and its factors.

    Args:
        name: an identifier.
        weight: the axes of one weight, out side first, as in "(head dim) in"; brackets split an axis, row-major.
        over: the site modes, as in "layer kind"; "site" numbers all sites of one shape.
        factors: name -> `trainable(...)` or `frozen(...)`. A mode that is neither of the weight nor of the sites is a
            bond: it is summed away, and its size is a rank.
        scale: `over_rank`, `over_sqrt_rank` or `raw`; a number is `raw` of it.
        centered: the update is delta(params) - delta(starting params), for networks that do not start at zero.
        identity_at_start: False allows a start that is not dW = 0.
        caps: bond -> mode: the bond's rank is cut to the size of that mode.
        ties: bond -> mode: the bond has the size of that mode of the weight or of the sites.
        given: modes of the weight whose size has to be told, as "head", where an even split would be wrong.

    Raises:
        SpecError: with every fault at once.
    """

    name: str
    weight: str
    over: str = ""
    factors: Mapping[str, Factor]
    scale: Scale = field(default_factory=raw)
    centered: bool = False
    identity_at_start: bool = True
    caps: Mapping[str, str] = field(default_factory=dict)
    given: str = ""
    ties: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Gather every fault, raise once, freeze."""
        object.__setattr__(self, "scale", scale_of(self.scale))
        if odd := find_kind_faults(self):
            raise SpecError(self.name, odd)
        object.__setattr__(self, "factors", FrozenMap(self.factors))
        object.__setattr__(self, "caps", FrozenMap(self.caps))
        object.__setattr__(self, "ties", FrozenMap(self.ties))
        try:
            axes = axes_of(self.weight)
        except ValueError as error:
            raise SpecError(self.name, [f"weight: {error}"]) from None
        if faults := find_faults(self, axes):
            raise SpecError(self.name, faults)
        object.__setattr__(self, "weight", text_of(axes))
        object.__setattr__(self, "over", " ".join(modes_of(self.over)))
        object.__setattr__(self, "given", " ".join(modes_of(self.given)))

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The weight's axes, each a tuple of modes, the out axis first."""
        return axes_of(self.weight)

    @property
    def site_modes(self) -> tuple[str, ...]:
        """The modes that the weights are stacked over."""
        return modes_of(self.over)

    @property
    def bonds(self) -> tuple[str, ...]:
        """The modes that are summed away, in the order of their coming; their sizes are the ranks."""
        outer = {*self.site_modes, *(mode for axis in self.axes for mode in axis)}
        modes = (mode for factor in self.factors.values() for mode in factor.modes)
        return tuple(dict.fromkeys(mode for mode in modes if mode not in outer))

    @answers(SiteError)
    def bind(
        self,
        sites: Iterable[Site] | Site,
        *,
        rank: int | Mapping[str, int] | None = None,
        sizes: Mapping[str, int] | None = None,
        alpha: float | None = None,
        seed: int = 0,
        overparametrized: bool = False,
    ) -> "Adapter":
        """The adapter that serves these sites.

        Args:
            sites: the adapted weights, in the order of the host; one by itself is taken, too.
            rank: the size of every bond, or bond -> size.
            sizes: mode -> size for modes of the weight, as {"head": 12}, or for single bonds (not cut by `caps`).
            alpha: replaces the alpha of the spec's scale.
            seed: where the starting values come from.
            overparametrized: allow a rank above that of any update, in a network of more numbers than its weights have.

        Raises:
            SiteError: a size that is missing (all are named), no positive integer, or does not fit a weight; a rank
                that no update has.
            SpecError: an alpha that is 0 or no finite number.
        """
        found, told = expect_sites(sites, "bind"), expect_sizes(sizes)
        spec = self if alpha is None else replace(self, scale=replace(self.scale, alpha=alpha))
        ranks = FrozenMap(rank) if isinstance(rank, Mapping) else rank
        adapter = Adapter(spec=spec, sites=found, rank=ranks, sizes=FrozenMap(told), seed=seed)
        if not overparametrized:
            _check_ranks(adapter)
        return adapter

    def formula(self, *, trainable: bool = True) -> str:
        """Entries of the trainable (or frozen) factors of one network, as in "out*p + site*p*q + in*q"."""
        chosen = [factor.held for factor in self.factors.values() if factor.trainable == trainable]
        terms = ["*".join(modes) for modes in chosen if modes]
        numbers = sum(not modes for modes in chosen)
        return " + ".join([*terms, *([str(numbers)] if numbers else [])]) or "0"

    def __str__(self) -> str:
        """The table of the spec: what it updates, its factors, its scale, what is shared, its count."""
        width = max(len(name) for name in self.factors)
        stacked = f"stacked over {self.over}" if self.over else "each by a network of its own"
        lines = [f"{self.name}: updates weights [{self.weight}], {stacked}"]
        lines += [f"  {name:<{width}}  {factor}" for name, factor in self.factors.items()]
        lines += [f"  scale {self.scale}" + (", minus the update of the starting values" if self.centered else "")]
        shared = [name for name in self.factors if self.over and not self.is_private(name) and not self.is_global(name)]
        lines += [f"  shared by the sites of a network: {', '.join(shared)}"] if shared else []
        everywhere = [name for name in self.factors if self.is_global(name)]
        lines += [f"  one for the whole adapter: {', '.join(everywhere)}"] if everywhere else []
        lines += [f"  a network trains {self.formula()}, and holds frozen {self.formula(trainable=False)}"]
        return "\n".join(lines)

    def is_private(self, factor: str) -> bool:
        """Whether a factor carries a site mode."""
        return bool(set(self.factors[factor].modes) & set(self.site_modes))

    def is_global(self, factor: str) -> bool:
        """Whether a factor is one and the same for all groups: frozen, without a site mode, and read from no weight."""
        is_read = self.factors[factor].init.is_read
        return not self.factors[factor].trainable and not self.is_private(factor) and not is_read


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A spec bound to the sites of one host. Made by `AdapterSpec.bind`; everything else follows from these values."""

    spec: AdapterSpec
    sites: tuple[Site, ...]
    rank: int | Mapping[str, int] | None
    sizes: Mapping[str, int]
    seed: int
    groups: tuple[Group, ...] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Form the groups, resolve every size."""
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise SiteError(f"seed: expected an integer of at least 0, got {self.seed!r}.\nWrite seed=0.")
        for mode, size in self.sizes.items():
            check_size(f"size of {mode!r}", size)
        if not self.sites:
            raise SiteError(f"{self.spec.name}: an adapter needs at least one site.\nHowever, none was given.")
        path, times = Counter(site.path for site in self.sites).most_common(1)[0]
        if times > 1:
            raise SiteError(f"{path}: this site was given {times} times.\nGive it once.")
        for weight, parts in self.weights.items():
            check_parts(weight, parts)
        stacks = stacks_of(self.sites, self.spec.site_modes)
        groups = tuple(_group(self, name, stack) for name, stack in stacks.items())
        object.__setattr__(self, "groups", groups)

    @property
    def networks(self) -> tuple[Network, ...]:
        """The network of each group."""
        return tuple(group.network for group in self.groups)

    @cached_property
    def slots(self) -> dict[str, Slot]:
        """Every entry of params by name: one a factor, behind its group's name where there are several groups.

        A frozen factor that carries no site mode is one entry for the whole adapter, at the largest sizes. Where an
        update is centered, a trainable factor that is read from the host has a second, frozen entry: its start.
        """
        slots: dict[str, Slot] = {}
        for group in self.groups:
            for name, factor in self.spec.factors.items():
                key, sizes = self.slot_name(group, name), dict(group.network.sizes)
                if key in slots:
                    sizes = {mode: max(size, slots[key].sizes.get(mode, 0)) for mode, size in sizes.items()}
                owner = "" if key == name else group.name
                shape = tuple(sizes[mode] for mode in factor.held)
                slots[key] = Slot(key, factor, shape, FrozenMap(sizes), group.network.local_modes(name), owner)
        if self.spec.centered:
            kept = [slot for slot in slots.values() if slot.factor.trainable and slot.factor.init.is_read]
            slots |= {
                slot.name + START: replace(slot, name=slot.name + START, factor=replace(slot.factor, trainable=False))
                for slot in kept
            }
        return slots

    def slot_name(self, group: Group, factor: str) -> str:
        """The name in params of a group's factor."""
        return factor if self.spec.is_global(factor) or len(self.groups) == 1 else f"{group.name}.{factor}"

    def find(self, site: Site | str) -> tuple[Group, Site]:
        """The group and the site of this path. Raises SiteError with the known paths."""
        path = site if isinstance(site, str) else expect_site(site, self.spec.name).path
        if path not in self._places:
            some = ", ".join(list(self._places)[:5])
            raise SiteError(f"{path}: not a site of this adapter.\nIts {len(self._places)} sites begin with {some}.")
        return self._places[path]

    def address(self, site: Site | str) -> Address:
        """Find a site's part of every factor. Raises SiteError with the known paths."""
        group, place = self.find(site)
        index, sizes = group.index(place), group.network.sizes
        parts = {
            name: Part(
                self.slot_name(group, name),
                factor,
                tuple(index[mode] if mode in index else slice(sizes[mode]) for mode in factor.held),
            )
            for name, factor in group.network.factors.items()
        }
        return Address(place, group, index, parts)

    @cached_property
    def weights(self) -> dict[str, tuple[Site, ...]]:
        """The adapted weights of the host by path, each with the sites that lie in it: itself, or its blocks."""
        found: dict[str, list[Site]] = {}
        for site in self.sites:
            found.setdefault(site.weight, []).append(site)
        return {path: tuple(sites) for path, sites in found.items()}

    @property
    def reads_weights(self) -> bool:
        """Whether starting values are read from the host's weights."""
        return any(factor.init.is_read for factor in self.spec.factors.values())

    def parts(self, path: str) -> tuple[Site, ...]:
        """The blocks that a weight is cut into; none where the path is that of a site, or of nothing adapted.

        Raises SiteError where they serve several tasks, so that the weight has no one update.
        """
        if path in self._places or path not in self.weights:
            return ()
        sites = self.weights[path]
        if len({site.coordinates.get(TASK) for site in sites}) > 1:
            raise SiteError(
                f"{path}: its sites serve several tasks.\nAsk for one of {', '.join(s.path for s in sites)}."
            )
        return sites

    @cached_property
    def _places(self) -> dict[str, tuple[Group, Site]]:
        return {site.path: (group, site) for group in self.groups for site in group.sites}

    def __str__(self) -> str:
        """A table: one row for all groups of one network, with the sizes of its modes."""
        head = f"{self.spec.name}: {len(self.sites)} sites in {len(self.groups)} groups, seed {self.seed}"
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
        """Tell which trained factors the spec shares but weights of different shapes do not; "" for none."""
        outer, shapes = {*self.spec.site_modes}, most_shapes(self.sites, self.spec.site_modes)
        trained = {name: {*factor.modes} for name, factor in self.spec.factors.items() if factor.trainable}
        split = [name for name, modes in trained.items() if not outer <= modes]
        if shapes == 1 or not split or not outer:
            return ""
        return f"not shared across weight shapes: {', '.join(split)} (an array for each of {shapes} shapes)"


def _check_ranks(adapter: Adapter) -> None:
    """Raises SiteError for a rank that no update of the weights has, in a network of more numbers than they have."""
    for group in adapter.groups:
        network = group.network
        trained = sum(network.volume(factor.held) for factor in network.factors.values() if factor.trainable)
        dense = len(group.sites) * math.prod(network.weight_shape)
        highest = min(network.volume(network.out_modes), network.volume(network.in_modes))
        free = (bond for bond in adapter.spec.bonds if bond not in adapter.spec.ties)
        above = [bond for bond in free if network.sizes[bond] > highest]
        if above and trained > dense:
            raise SiteError(
                f"{group.sites[0].path}: no update of a weight {network.weight_shape} has a rank above {highest}.\n"
                f"However, {above[0]!r} is {network.sizes[above[0]]}, and {adapter.spec.name} would train {trained:,} "
                f"numbers for {dense:,} of the weights.\nTake a smaller rank, or pass overparametrized=True."
            )


def _group(adapter: Adapter, name: str, stack: tuple[Site, ...]) -> Group:
    spec = adapter.spec
    known = {*spec.bonds, *(mode for axis in spec.axes for mode in axis)}
    if wrong := [mode for mode in adapter.sizes if mode not in known]:
        raise SiteError(
            f"sizes: {spec.name} has no mode {wrong[0]!r} whose size is free.\nIt has {', '.join(sorted(known))}."
        )
    outer = sizes_of(stack[0].path, stack[0].shape, spec.axes, adapter.sizes, modes_of(spec.given))
    values = {mode: values_of(stack, mode) for mode in spec.site_modes}
    outer |= {mode: len(along) for mode, along in values.items()}
    sizes = outer | _bond_sizes(adapter, outer)
    scale = spec.scale.at(sizes.get(spec.scale.bond, 1))
    network = Network(spec.axes, spec.site_modes, spec.factors, sizes, scale, spec.centered)
    return Group(name, network, stack, FrozenMap(values))


def _bond_sizes(adapter: Adapter, outer: Mapping[str, int]) -> dict[str, int]:
    spec, rank = adapter.spec, adapter.rank
    if not isinstance(rank, Mapping | None):
        check_size("rank", rank)
    free = [bond for bond in spec.bonds if bond not in spec.ties]
    ranks = rank if isinstance(rank, Mapping) else dict.fromkeys(free if rank is not None else (), rank)
    if wrong := [
        bond for bond in (*ranks, *adapter.sizes) if bond in spec.ties or (bond in ranks and bond not in free)
    ]:
        raise SiteError(f"rank: {spec.name} has no bond {wrong[0]!r}.\nIts bonds are {', '.join(free) or 'none'}.")
    if missing := [bond for bond in free if bond not in ranks and bond not in adapter.sizes]:
        raise SiteError(
            f"{spec.name}: every bond needs a size.\nHowever, these are open: {', '.join(missing)}.\n"
            f"Pass rank=8 for all, or rank={{{missing[0]!r}: 8}} one by one."
        )
    asked = {bond: check_size(f"rank of {bond!r}", size) for bond, size in ranks.items()}
    cut = {bond: min(size, outer[spec.caps[bond]]) if bond in spec.caps else size for bond, size in asked.items()}
    tied = {bond: outer[mode] for bond, mode in spec.ties.items()}
    return {bond: (tied | cut | dict(adapter.sizes))[bond] for bond in spec.bonds}
