"""Specs and adapters: an adapter written without sizes, and the same bound to the sites of one host."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from tnadapt._errors import SiteError, SpecError
from tnadapt._frozen import FrozenMap
from tnadapt._hosts import TASK, Site, as_integers, check_parts, check_size, expect_site, expect_sites
from tnadapt._language.address import Address, Part, Slot
from tnadapt._language.factor import Factor, Same
from tnadapt._language.faults import find_faults
from tnadapt._language.groups import check_ranks, group_of
from tnadapt._language.kinds import Start, expect_sizes, find_kind_faults, scale_of
from tnadapt._language.network import Group, Network, most_shapes, stacks_of
from tnadapt._language.notation import Axis, axes_of, modes_of, text_of
from tnadapt._language.scale import Scale, raw
from tnadapt._language.sizes import SizeRule
from tnadapt._language.terms import START, Node, Term, arrays_of, less_start, nodes_of, terms_of, tied_bonds, words_of
from tnadapt._signature import answers, answers_when_made
from tnadapt._table import align

__all__ = ["Adapter", "AdapterSpec"]


@answers_when_made(SpecError)
@dataclass(frozen=True, kw_only=True)
class AdapterSpec:
    """A tensor-network adapter without sizes: how the axes of a weight split, what it is stacked over, its factors.

    Args:
        name: an identifier.
        weight: the axes of one weight, out axis first, as in "(head dim) in"; brackets split an axis, row-major.
        over: the site modes, as in "layer kind"; "site" numbers all sites of one shape.
        factors: name -> `trainable(...)`, `frozen(...)` or `same(...)`. A mode that is neither in `weight` nor in
            `over` is a bond: it is summed over, and its size is a rank.
        terms: the terms of the update, each the names of its factors, as in ["B A", "- B0 A0"]; a minus subtracts it.
            A factor may be in several. By default there is one term, with all factors.
        scale: `over_rank(...)`, `over_sqrt_rank(...)` or `raw(...)`; a number means `raw(number)`.
        sizes: mode -> `like(mode)`, `at_most(mode)`, `required()`, or a size unless `bind` gets another.
        start: "zero" if the update starts at 0; "centered" subtracts the update of the starting values, which is short
            for further terms; "free" allows any start.

    Raises:
        SpecError: the spec is invalid; the message lists every fault.
    """

    name: str
    weight: str
    over: str = ""
    factors: Mapping[str, Factor | Same]
    terms: Sequence[str] = ()
    scale: Scale = field(default_factory=raw)
    sizes: Mapping[str, SizeRule | int] = field(default_factory=dict)
    start: Start = "zero"

    def __post_init__(self) -> None:
        """Find every fault, raise them together, and freeze the mappings."""
        object.__setattr__(self, "scale", scale_of(self.scale))
        if odd := find_kind_faults(self):
            raise SpecError(self.name, odd)
        object.__setattr__(self, "factors", FrozenMap(self.factors))
        object.__setattr__(self, "sizes", FrozenMap(self.sizes))
        try:
            axes = axes_of(self.weight)
        except ValueError as error:
            raise SpecError(self.name, [f"weight: {error}"]) from None
        if faults := find_faults(self, axes):
            raise SpecError(self.name, faults)
        object.__setattr__(self, "weight", text_of(axes))
        object.__setattr__(self, "over", " ".join(modes_of(self.over)))
        object.__setattr__(self, "terms", tuple(str(Term(*words_of(term))) for term in self.terms))

    @cached_property
    def axes(self) -> tuple[Axis, ...]:
        """The axes of the weight, each a tuple of modes, the out axis first."""
        return axes_of(self.weight)

    @cached_property
    def site_modes(self) -> tuple[str, ...]:
        """The modes that the weights are stacked over."""
        return modes_of(self.over)

    @cached_property
    def arrays(self) -> Mapping[str, Factor]:
        """The factors that have arrays of their own, without copies."""
        return FrozenMap(arrays_of(self.factors))

    @cached_property
    def _expanded(self) -> tuple[Mapping[str, Node], tuple[Term, ...]]:
        nodes, terms = nodes_of(self.factors), terms_of(self.terms, self.factors)
        nodes, terms = less_start(self.arrays, nodes, terms) if self.start == "centered" else (nodes, terms)
        used = {name for term in terms for name in term.nodes}
        return FrozenMap({name: node for name, node in nodes.items() if name in used}), terms

    @property
    def nodes(self) -> Mapping[str, Node]:
        """What the terms contract, by name: factors, copies, and the starting values that are subtracted."""
        return self._expanded[0]

    @property
    def sum(self) -> tuple[Term, ...]:
        """The terms of the update; those that subtract the starting update come last."""
        return self._expanded[1]

    @cached_property
    def bonds(self) -> tuple[str, ...]:
        """The modes that are summed over, in order of appearance; their sizes are the ranks."""
        outer = {*self.site_modes, *(mode for axis in self.axes for mode in axis)}
        modes = (mode for factor in self.factors.values() for mode in factor.modes or ())
        return tuple(dict.fromkeys(mode for mode in modes if mode not in outer))

    @cached_property
    def tied(self) -> Mapping[str, str]:
        """The bonds whose sizes follow from others: bond -> the mode whose size it has."""
        first = {mode for axis in self.axes for mode in axis} | {*self.site_modes}
        likes = {b: r.mode for b, r in self.sizes.items() if isinstance(r, SizeRule) and r.kind == "like"}
        return FrozenMap(tied_bonds(self.arrays, self.nodes, likes, first | ({*self.sizes} - {*likes})))

    @cached_property
    def free_bonds(self) -> tuple[str, ...]:
        """The bonds whose sizes have to be given."""
        return tuple(b for b in self.bonds if b not in self.tied and not isinstance(self.sizes.get(b), int))

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
        """Bind the spec to sites, and return the adapter.

        Args:
            sites: the weights to adapt, in the order of the host; a single site is accepted.
            rank: the size of every bond, or bond -> size.
            sizes: mode -> size for modes of the weight, such as {"head": 12}, or for bonds (not limited by `at_most`).
            alpha: replaces the alpha of the spec's scale.
            seed: the seed of the starting values.
            overparametrized: allow a rank that no update can have, in a network with more parameters than its weights.

        Raises:
            SiteError: a size is missing, not a positive integer, or does not fit a weight; or no update has the rank.
            SpecError: alpha is 0 or not a finite number.
        """
        found, told = expect_sites(sites, "bind"), as_integers(expect_sizes(sizes))
        spec = self if alpha is None else replace(self, scale=replace(self.scale, alpha=alpha))
        adapter = Adapter(spec=spec, sites=found, rank=as_integers(rank), sizes=told, seed=as_integers(seed))
        if not overparametrized:
            check_ranks(adapter)
        return adapter

    def formula(self, *, trainable: bool = True) -> str:
        """Return the number of trainable (or frozen) entries of one network, such as "out*p + site*p*q + in*q"."""
        chosen = [factor.held for factor in self.arrays.values() if factor.trainable == trainable]
        terms = ["*".join(modes) for modes in chosen if modes]
        numbers = sum(not modes for modes in chosen)
        return " + ".join([*terms, *([str(numbers)] if numbers else [])]) or "0"

    def __str__(self) -> str:
        """Return a table: what the spec updates, its factors, its scale, which factors are shared, and their count."""
        width = max(len(name) for name in self.factors)
        stacked = f"stacked over {self.over}" if self.over else "one network per weight"
        lines = [f"{self.name}: updates weights [{self.weight}], {stacked}"]
        lines += [f"  {name:<{width}}  {factor}" for name, factor in self.factors.items()]
        lines += [f"  terms  {' + '.join(self.terms).replace('+ -', '-')}"] if self.terms else []
        minus = ", minus the update of the starting values" if self.start == "centered" else ""
        lines += [f"  scale {self.scale}{minus}"]
        shared = [name for name in self.arrays if self.over and not self.is_private(name) and not self.is_global(name)]
        lines += [f"  shared by the sites of a network: {', '.join(shared)}"] if shared else []
        everywhere = [name for name in self.arrays if self.is_global(name)]
        lines += [f"  one for the whole adapter: {', '.join(everywhere)}"] if everywhere else []
        lines += [f"  per network: {self.formula()} trainable, {self.formula(trainable=False)} frozen"]
        return "\n".join(lines)

    def is_private(self, factor: str) -> bool:
        """Return whether a factor has a site mode."""
        return bool(set(self.arrays[factor].modes) & set(self.site_modes))

    def is_global(self, factor: str) -> bool:
        """Return whether all groups share a factor: it is `shared`, or frozen, drawn, and without site modes."""
        one = self.arrays[factor]
        return one.shared or not (one.trainable or self.is_private(factor) or one.init.is_read)


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A spec bound to the sites of one host, made by `AdapterSpec.bind`. Everything else follows from these values."""

    spec: AdapterSpec
    sites: tuple[Site, ...]
    rank: int | Mapping[str, int] | None
    sizes: Mapping[str, int]
    seed: int
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
        stacks = stacks_of(self.sites, self.spec.site_modes)
        networks: dict[object, Network] = {}  # groups of equal sizes share one
        groups = tuple(group_of(self, name, stack, networks) for name, stack in stacks.items())
        object.__setattr__(self, "groups", groups)

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
    def starts(self) -> dict[str, Slot]:
        """The starting values that the update uses, by name, which ends in ":start". Those not in slots are redrawn."""
        return {slot.name: slot for slot in self._starts(self.slots.values())}

    def _starts(self, slots: Iterable[Slot]) -> Iterator[Slot]:
        """Yield a slot for the start of each trainable factor whose starting values the update uses."""
        used = {node.factor for node in self.spec.nodes.values() if node.at_start}
        for slot in slots:
            if slot.factor.trainable and slot.name.rpartition(".")[2] in used:
                yield replace(slot, name=slot.name + START, factor=replace(slot.factor, trainable=False))

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
            key = self.slot_name(group, node.factor) + (START if node.at_start else "")
            parts[name] = Part(key, factor, cut, node.at_start)
        return Address(place, group, FrozenMap(index), FrozenMap(parts))

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
        return any(factor.init.is_read for factor in self.spec.arrays.values())

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

    def __str__(self) -> str:
        """Return a table with one row per network: its groups, and the sizes of its modes."""
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
        """A note on the trainable factors that the spec shares, but only among weights of one shape; may be empty."""
        outer, shapes = {*self.spec.site_modes}, most_shapes(self.sites, self.spec.site_modes)
        arrays = self.spec.arrays
        trained = {name: {*factor.modes} for name, factor in arrays.items() if factor.trainable and not factor.shared}
        split = [name for name, modes in trained.items() if not outer <= modes]
        if shapes == 1 or not split or not outer:
            return ""
        return f"not shared across weight shapes: {', '.join(split)} (an array for each of {shapes} shapes)"
