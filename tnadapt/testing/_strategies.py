"""Hypothesis strategies for random specs, sites, adapters and networks, all valid by construction.

They cover hyperedges (a mode in three factors, or in several factors and the weight), axes of several modes, scalar
factors, frozen factors, site modes, several groups, gaps between layers, and sizes of 1. Examples shrink to few factors
and sites of small sizes.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import cast

from hypothesis import strategies as st

from tnadapt._hosts import Block, Site
from tnadapt._language import (
    Adapter,
    AdapterSpec,
    Factor,
    Initializer,
    Network,
    Same,
    Start,
    frozen,
    required,
    same,
    trainable,
)
from tnadapt.initializers import (
    constant,
    host,
    kaiming_uniform,
    normal,
    ones,
    orthogonal,
    over_rank,
    over_sqrt_rank,
    raw,
    uniform,
    zeros,
)

__all__ = ["adapters", "networks", "sites", "specs"]

OVERS = ("", "layer", "kind", "layer kind", "site", "layer expert")
STANDARD = ("layer", "kind", "site")
LENGTHS = st.sampled_from([1, 2, 3, 4, 6])
RANKS = st.integers(1, 3)
SEEDS = st.integers(0, 2**32)


@st.composite
def _axes(draw: st.DrawFn) -> list[list[str]]:
    """Draw one out axis and one or two in axes, each of one or two modes."""
    counts = draw(st.lists(st.integers(1, 2), min_size=2, max_size=3))
    return [[f"{'oik'[axis]}{number}" for number in range(count)] for axis, count in enumerate(counts)]


@st.composite
def _modes_of_factors(draw: st.DrawFn, weight: list[str], over: list[str]) -> list[list[str]]:
    """Draw the modes of two to four factors: every weight mode in at least one, every bond in at least two."""
    bonds = ["p", "q", "r"][: draw(st.integers(0, 3))]
    number = draw(st.integers(2, 4))
    some = st.lists(st.sampled_from([*weight, *over, *bonds]), unique=True, max_size=4)
    carried = [set(draw(some)) for _ in range(number)]
    for mode in weight:
        if not any(mode in modes for modes in carried):
            carried[draw(st.integers(0, number - 1))].add(mode)
    for bond in bonds:
        holders = draw(st.sets(st.integers(0, number - 1), min_size=2))
        if sum(bond in modes for modes in carried) < 2:  # noqa: PLR2004  (a bond joins two)
            for holder in holders:
                carried[holder].add(bond)
    return [draw(st.permutations(sorted(modes))) for modes in carried]


def _initializers(draw: st.DrawFn, fans: list[str]) -> st.SearchStrategy[Initializer]:
    """Return a strategy for initializers that are not zero."""
    fan = kaiming_uniform(draw(st.sampled_from(fans)))
    return st.sampled_from([normal(0.5), uniform(2), ones(), constant(-0.7), orthogonal(), fan])


@st.composite
def _factors(
    draw: st.DrawFn, modes: list[list[str]], fans: list[str], *, zero: bool, prefix: str = "F"
) -> dict[str, Factor]:
    """Draw at least one trainable factor, which starts at zero if `zero`; no other does."""
    laws = _initializers(draw, fans)
    first = draw(st.integers(0, len(modes) - 1))
    made = {}
    for number, carried in enumerate(modes):
        living = draw(laws)
        kind = trainable if number == first or draw(st.booleans()) else frozen
        made[f"{prefix}{number}"] = kind(" ".join(carried), init=zeros() if number == first and zero else living)
    return made


@st.composite
def _shared(draw: st.DrawFn, factors: dict[str, Factor], over: list[str]) -> dict[str, Factor]:
    """Draw whether each trainable factor without site modes is one array for the whole adapter."""
    return {
        name: replace(one, shared=True) if one.trainable and not {*one.modes} & {*over} and draw(st.booleans()) else one
        for name, one in factors.items()
    }


@st.composite
def _again(draw: st.DrawFn, factors: dict[str, Factor | Same]) -> tuple[dict[str, Factor | Same], list[str]]:
    """Draw a second term of the same structure: of each factor itself, its start or another factor in its place."""
    names = list(factors)
    added: dict[str, Factor | Same] = {}
    second = []
    replaced = draw(st.sampled_from([name for name, one in factors.items() if isinstance(one, Factor)]))
    for name in names:
        one = factors[name]
        is_living = isinstance(one, Factor) and one.trainable and not one.is_zero  # a start of 0 makes a term of 0
        kinds = ["itself", "another"] + (["start"] if is_living else [])
        kind = "another" if name == replaced else draw(st.sampled_from(kinds))
        if kind == "itself" or isinstance(one, Same):
            second.append(name)
            continue
        start = zeros() if one.is_zero else draw(st.sampled_from([normal(0.5), uniform(2)]))  # equal ones would cancel
        added[f"{name}b"] = same(name, at_start=True) if kind == "start" else replace(one, init=start)
        second.append(f"{name}b")
    sign = draw(st.sampled_from(["", "- "]))
    return factors | added, [" ".join(names), sign + " ".join(second)]


@st.composite
def _repeated(draw: st.DrawFn, factors: dict[str, Factor], bonds: list[str]) -> dict[str, Factor | Same]:
    """Draw a factor that occurs twice in a term: beside itself, or as a matrix times its transpose on a bond."""
    living = [name for name, one in factors.items() if not one.is_zero]
    found: dict[str, Factor | Same] = dict(factors)
    is_square = draw(st.booleans())
    if bonds and is_square:
        bond = draw(st.sampled_from(bonds))
        name = next(name for name, one in factors.items() if bond in one.modes)
        turned = tuple("s" if mode == bond else mode for mode in factors[name].modes)
        found[name] = replace(factors[name], modes=turned)
        found["C"] = draw(st.sampled_from([trainable, frozen]))(f"{bond} t", init=normal())
        return found | {"Ct": same("C", "s t")}
    if living:
        name = draw(st.sampled_from(living))
        found[f"{name}c"] = same(name)
    return found


@st.composite
def specs(draw: st.DrawFn, *, start: Start = "zero", plain: bool = False) -> AdapterSpec:
    """Draw a valid spec with two to four factors, weights of two or three axes, and up to three bonds.

    Half of the specs have more: a factor that a term has twice, a second term, factors that weights of several shapes
    share. With `plain` none has.
    """
    split = draw(_axes())
    weight, over = [mode for axis in split for mode in axis], draw(st.sampled_from(OVERS))
    modes = draw(_modes_of_factors(weight, over.split()))
    bonds = sorted({mode for carried in modes for mode in carried} & {"p", "q", "r"})
    scales = st.sampled_from([raw(0.5), *(rule(bonds[0], alpha=3.0) for rule in (over_rank, over_sqrt_rank) if bonds)])
    factors: dict[str, Factor | Same] = dict(draw(_factors(modes, weight, zero=start == "zero")))
    terms: list[str] = []
    often = st.booleans()
    if not plain and draw(often):
        factors = dict(draw(_shared(cast("dict[str, Factor]", factors), over.split())))
        if draw(often):
            factors = draw(_repeated(cast("dict[str, Factor]", factors), bonds))
        if draw(often):
            factors, terms = draw(_again(factors))
        if draw(st.integers(0, 2)) == 0:
            factors["W"] = frozen(" ".join(weight), init=host())
            gated = draw(st.sampled_from(["first", "last", "all"]))
            last = len(terms) - 1
            terms = [
                f"{term} W" if gated == "all" or number == (0 if gated == "first" else last) else term
                for number, term in enumerate(terms)
            ]
    return AdapterSpec(
        name="random",
        weight=" ".join(f"({' '.join(axis)})" for axis in split),
        over=over,
        factors=factors,
        terms=terms,
        scale=draw(scales),
        start=start,
    )


@st.composite
def sites(
    draw: st.DrawFn,
    spec: AdapterSpec,
    *,
    sizes: Mapping[str, int] | None = None,
    lengths: st.SearchStrategy[int] = LENGTHS,
) -> tuple[Site, ...]:
    """Draw sites that the spec can be bound to: up to three layers (with gaps) of up to two kinds and two shapes.

    Every site mode other than layer, kind and site gets one or two values. Some sites are the upper or the lower half
    of a weight twice as high.

    Args:
        draw: passed by hypothesis.
        spec: the spec to bind.
        sizes: the sizes that will be given to `bind`. Axes get multiples of them.
        lengths: the strategy for the length of an axis, divided by these sizes.
    """
    given = [math.prod((sizes or {}).get(mode, 1) for mode in axis) for axis in spec.axes]
    free = [any(mode not in (sizes or {}) for mode in axis) for axis in spec.axes]
    shape = st.tuples(
        *[
            lengths.map(lambda length, part=part: length * part) if is_free else st.just(part)  # type: ignore[misc]
            for part, is_free in zip(given, free, strict=True)
        ]
    )
    kinds = {kind: draw(shape) for kind in draw(st.sampled_from([("q",), ("q", "k")]))}
    if draw(st.booleans()):
        kinds |= dict.fromkeys(kinds, kinds["q"])  # equal shapes, so that kinds can share factors
    layers = draw(st.lists(st.integers(0, 12), min_size=1, max_size=3, unique=True))
    further = [mode for mode in spec.site_modes if mode not in STANDARD]
    values = [range(draw(st.integers(1, 2))) for _ in further]
    halves = draw(st.dictionaries(st.sampled_from(list(kinds)), st.integers(0, 1), max_size=1))
    return tuple(
        _place(
            ["h", str(layer), kind, *map(str, place)],
            kinds[kind],
            halves.get(kind),
            {"layer": layer, "kind": kind} | dict(zip(further, place, strict=True)),
        )
        for layer, kind, *place in product(layers, kinds, *values)
    )


def _place(words: list[str], shape: tuple[int, ...], half: int | None, told: dict[str, int | str]) -> Site:
    """Return a site: a whole weight, or its upper (0) or lower (1) half."""
    path = ".".join(words)
    if half is None:
        return Site(path, shape, told)
    start = (half * shape[0], *[0] * (len(shape) - 1))
    return Site(f"{path}[{half}]", shape, told, Block(path, (2 * shape[0], *shape[1:]), start))


@st.composite
def adapters(
    draw: st.DrawFn,
    spec: AdapterSpec | None = None,
    *,
    start: Start = "zero",
    plain: bool = False,
    rank: int | Mapping[str, int] | None = None,
    sizes: Mapping[str, int] | None = None,
    lengths: st.SearchStrategy[int] = LENGTHS,
) -> Adapter:
    """Draw an adapter: this spec, or a random one, bound to random sites. Ranks are from 1 to 3 unless given."""
    chosen = spec if spec is not None else draw(specs(start=start, plain=plain))
    told = dict(sizes or {})
    turned = {mode for factor in chosen.arrays.values() if factor.map == "rotation" for mode in factor.modes[-2:]}
    told |= {mode: 2 for mode in sorted(turned) if mode not in chosen.tied}
    for mode in (mode for mode, rule in chosen.sizes.items() if rule == required()):
        if not any(mode in axis and len({*axis} - {*told}) < 2 for axis in chosen.axes):  # noqa: PLR2004
            told[mode] = draw(RANKS)
    places = draw(sites(chosen, sizes=told, lengths=lengths))
    free = [bond for bond in chosen.free_bonds if bond not in told]
    ranks = rank if rank is not None else _drawn_ranks(chosen, {bond: draw(RANKS) for bond in free})
    return chosen.bind(places, rank=ranks, sizes=told, seed=draw(SEEDS), overparametrized=True)


def _drawn_ranks(spec: AdapterSpec, ranks: dict[str, int]) -> dict[str, int]:
    """Return the ranks with one for all bonds that maps hold equal."""
    pairs = [factor.modes[-2:] for factor in spec.arrays.values() if factor.map]
    for _ in pairs:  # a chain of maps passes its first rank on
        ranks |= {other: ranks[one] for one, other in pairs if one in ranks and other in ranks}
    return ranks


def networks(
    spec: AdapterSpec | None = None, *, start: Start = "zero", plain: bool = False
) -> st.SearchStrategy[Network]:
    """Return a strategy for networks of this spec, or of random specs."""
    return adapters(spec, start=start, plain=plain).map(lambda adapter: adapter.networks[0])
