"""Specs: adapters written without sizes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from tnadapt._errors import SiteError, SpecError
from tnadapt._frozen import FrozenMap
from tnadapt._hosts import Site, as_integers, expect_sites
from tnadapt._language.adapter import Adapter
from tnadapt._language.decomposition import Decomposition
from tnadapt._language.factor import Factor, Same, Start
from tnadapt._language.faults import find_faults
from tnadapt._language.groups import check_ranks, check_taken
from tnadapt._language.initializer import normal
from tnadapt._language.kinds import expect_sizes, find_kind_faults, scale_of
from tnadapt._language.movement import find_unit_faults
from tnadapt._language.notation import Axis, axes_of, modes_of, text_of
from tnadapt._language.scale import Scale, raw
from tnadapt._language.sizes import SizeRule
from tnadapt._language.terms import (
    Node,
    Pull,
    Sum,
    Term,
    arrays_of,
    join_modes,
    less_start,
    nodes_of,
    terms_of,
    tied_bonds,
    words_of,
)
from tnadapt._signature import answers, answers_when_made, expect_flag

__all__ = ["AdapterSpec"]


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
        scale: `over_rank(...)`, `over_sqrt_rank(...)`, `raw(...)` or `unit(...)`; a number means `raw(number)`.
        sizes: mode -> `like(mode)`, `at_most(mode)`, `required()`, or a size unless `bind` gets another.
        start: "zero" if the update starts at 0; "centered" subtracts the update of the starting values, which is short
            for further terms; "free" allows any start. `svd("B", "A")` and other decompositions of the host's weights
            give these factors their starting values, and set it.

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
    start: Start | Decomposition = "zero"

    def __post_init__(self) -> None:
        """Find every fault, raise them together, and freeze the mappings."""
        object.__setattr__(self, "scale", scale_of(self.scale))
        object.__setattr__(self, "sizes", as_integers(self.sizes))
        if odd := find_kind_faults(self):
            raise SpecError(self.name, odd)
        object.__setattr__(self, "factors", FrozenMap(_started(self.name, self.factors, self.start)))
        if isinstance(self.start, Decomposition):
            object.__setattr__(self, "start", self.start.start)
        try:
            axes = axes_of(self.weight)
        except ValueError as error:
            raise SpecError(self.name, [f"weight: {error}"]) from None
        if faults := find_faults(self, axes) or find_unit_faults(self):
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
        """The factors that have arrays of their own: no copies, no host's weight, no identity that joins two modes."""
        every, gone = arrays_of(self.factors), self._expanded[2]
        return FrozenMap({name: one for name, one in every.items() if not one.init.is_host and name not in gone})

    @cached_property
    def hosts(self) -> Mapping[str, Factor]:
        """The factors that are the host's weight or a part of its SVD."""
        return FrozenMap({name: one for name, one in arrays_of(self.factors).items() if one.init.is_host})

    @cached_property
    def magnitude(self) -> str:
        """The factor that sets the length of each row of the weight with its update; "" without one."""
        return next((name for name, one in self.arrays.items() if one.init.is_magnitude), "")

    @cached_property
    def _expanded(self) -> tuple[Mapping[str, Node], tuple[Term, ...], frozenset[str]]:
        """The nodes and the terms that are contracted, and the identities that join modes instead."""
        nodes, every = nodes_of(self.factors), arrays_of(self.factors)
        terms = terms_of(self.terms, nodes)
        nodes, terms = less_start(every, nodes, terms) if self.start == "centered" else (nodes, terms)
        used = {name for term in terms for name in term.nodes}
        nodes, joined = {name: node for name, node in nodes.items() if name in used}, set()
        outer = {*self.site_modes, *(mode for axis in self.axes for mode in axis)}
        is_read = any(factor.init.is_read for factor in every.values())  # a decomposition sees the factors as written
        for name, factor in every.items():
            is_square = len({self.tied.get(mode, mode) for mode in factor.modes}) == 1
            has_site = bool({*self.site_modes} & {*factor.modes})
            if factor.trainable or not factor.is_identity or not is_square or has_site or is_read:
                continue
            if (found := join_modes(name, nodes, terms, outer)) is not None:
                nodes, terms = found
                joined.add(name)
        return FrozenMap(nodes), terms, frozenset(joined)

    @property
    def nodes(self) -> Mapping[str, Node]:
        """What the terms contract, by name: factors, copies, and the starting values that are subtracted."""
        return self._expanded[0]

    @property
    def sum(self) -> tuple[Term, ...]:
        """The terms of the update; those that subtract the starting update come last."""
        return self._expanded[1]

    @property
    def moving(self) -> tuple[str, ...]:
        """The trainable factors that have a gradient at the starting values, for a generic loss."""
        moved = (name for name, pulls in self.pulls.items() if pulls)
        return (*moved, *([self.magnitude] if self.magnitude else []))

    @cached_property
    def pulls(self) -> Mapping[str, tuple[Pull, ...]]:
        """The gradients of each trainable factor in the terms, at the starting values."""
        outer = {*self.site_modes, *(mode for axis in self.axes for mode in axis)}
        return FrozenMap(Sum(self.sum, self.nodes, {**self.arrays, **self.hosts}, outer, self.tied).pulls)

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
        every = arrays_of(self.factors)
        found = tied_bonds(every, nodes_of(self.factors), likes, first | {*self.short} | ({*self.sizes} - {*likes}))
        return FrozenMap({mode: own for mode, own in found.items() if mode not in first})

    @cached_property
    def free_bonds(self) -> tuple[str, ...]:
        """The bonds whose sizes have to be given."""
        numbers = {self.tied.get(mode, mode) for mode, rule in self.sizes.items() if isinstance(rule, int)}
        settled = {*self.tied, *self.short, *numbers}
        return tuple(bond for bond in self.bonds if bond not in settled)

    @cached_property
    def short(self) -> tuple[str, ...]:
        """The bond of the host's SVD, if there is one: it has the length of the shorter side of a weight."""
        found = (mode for factor in self.hosts.values() for mode in factor.modes if mode in self.bonds)
        return tuple(dict.fromkeys(found))

    @answers(SiteError)
    def bind(
        self,
        sites: Iterable[Site] | Site,
        *,
        rank: int | Mapping[str, int] | None = None,
        sizes: Mapping[str, int] | None = None,
        alpha: float | None = None,
        scale: Scale | float | None = None,
        seed: int = 0,
        overparametrized: bool = False,
    ) -> Adapter:
        """Bind the spec to sites, and return the adapter.

        Args:
            sites: the weights to adapt, in the order of the host; a single site is accepted.
            rank: the size of every bond; or bond -> size; and beside that name -> size, for the networks of the modules
                of this name, as in {"r": 8, "q_proj": 16}.
            sizes: mode -> size for modes of the weight, such as {"head": 12}, or for bonds (in place of their `rank`,
                and not limited by `at_most`). The name of a group before that of a bond, as in {"0.q_proj.r": 4}, means
                this group alone.
            alpha: replaces the alpha of the scale.
            scale: replaces the spec's scale, as in scale=unit().
            seed: the seed of the starting values.
            overparametrized: allow a rank that no update can have, in a network with more parameters than its weights.

        Raises:
            SiteError: a size is missing, not a positive integer, or does not fit a weight; no update has the rank; or
                the rank would have no effect, since no bond of the spec takes it.
            SpecError: alpha is 0 or not a finite number, the scale does not fit the spec, or both are numbers.
        """
        expect_flag(overparametrized, "bind", "overparametrized", SiteError)
        found, told = expect_sites(sites, "bind"), as_integers(expect_sizes(sizes))
        if alpha is not None and not isinstance(scale, Scale | None):
            fault = f"bind: expected an alpha or a number as scale, got both, {alpha} and {scale}; leave one out"
            raise SpecError(self.name, [fault])
        spec = self if scale is None else replace(self, scale=scale)  # type: ignore[arg-type]  # a number is raw(number)
        spec = spec if alpha is None else replace(spec, scale=replace(spec.scale, alpha=alpha))
        adapter = Adapter(spec=spec, sites=found, rank=as_integers(rank), sizes=told, seed=as_integers(seed))
        check_taken(adapter)
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
        lines += [f"  rows of weight + update have the lengths {self.magnitude}"] if self.magnitude else []
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
        """Return whether all groups share a factor: it is `shared`, or frozen, drawn, and without site modes.

        Groups do not share a pattern, since a smaller one is not the leading part of a larger one.
        """
        one = self.arrays[factor]
        return one.shared or not (one.trainable or self.is_private(factor) or one.init.is_read or one.init.is_pattern)


def _started(
    spec: str, factors: Mapping[str, Factor | Same], start: Start | Decomposition
) -> Mapping[str, Factor | Same]:
    """Return the factors with the initializers that a decomposition gives. Raises SpecError if they have others."""
    if not isinstance(start, Decomposition):
        return factors
    faults = []
    for name in start.inits:
        one = factors.get(name)
        if not isinstance(one, Factor):
            faults.append(f"start: expected the names of factors, got {name!r}")
        elif one.init != normal():
            faults.append(f"factor {name!r}: expected no initializer, since the start gives its values, got {one.init}")
    if faults:
        raise SpecError(spec, faults)
    return {
        name: replace(one, init=start.inits[name]) if isinstance(one, Factor) and name in start.inits else one
        for name, one in factors.items()
    }
