"""Specs at random, valid by construction, bound to sites at random: what every law is tried on.

Drawn are hyperedges (a mode in three factors, or in several and in the weight), axes of several modes, scalar factors,
frozen factors, site modes, several groups, layers with gaps, and sizes of 1.
"""

from itertools import product

import numpy as np
from hypothesis import strategies as st

from tnadapt import (
    Adapter,
    AdapterSpec,
    Factor,
    Params,
    Site,
    constant,
    frozen,
    init,
    kaiming_uniform,
    normal,
    ones,
    orthogonal,
    over_rank,
    over_sqrt_rank,
    raw,
    trainable,
    uniform,
    zeros,
)

OVERS = ("", "layer", "kind", "layer kind", "site")
LENGTHS = st.sampled_from([1, 2, 3, 4, 6])
SEEDS = st.integers(0, 2**32)


@st.composite
def axes(draw: st.DrawFn) -> list[list[str]]:
    """One out axis and one or two in axes, each of one or two modes."""
    counts = draw(st.lists(st.integers(1, 2), min_size=2, max_size=3))
    return [[f"{'oik'[axis]}{number}" for number in range(count)] for axis, count in enumerate(counts)]


@st.composite
def modes_of_factors(draw: st.DrawFn, weight: list[str], over: list[str]) -> list[list[str]]:
    """The modes of two to four factors: every weight mode in one at least, every bond in two at least."""
    bonds = ["p", "q", "r"][: draw(st.integers(0, 3))]
    number = draw(st.integers(2, 4))
    some = st.lists(st.sampled_from([*weight, *over, *bonds]), unique=True, max_size=4)
    carried = [set(draw(some)) for _ in range(number)]
    for mode in weight:
        if not any(mode in modes for modes in carried):
            carried[draw(st.integers(0, number - 1))].add(mode)
    for bond in bonds:
        holders = draw(st.sets(st.integers(0, number - 1), min_size=2))
        if sum(bond in modes for modes in carried) < 2:
            for holder in holders:
                carried[holder].add(bond)
    return [draw(st.permutations(sorted(modes))) for modes in carried]


@st.composite
def factors(draw: st.DrawFn, modes: list[list[str]], fans: list[str], *, centered: bool) -> dict[str, Factor]:
    """One trainable factor that is the zero (none where the spec is centered), the others of any living law."""
    laws = [normal(0.5), uniform(2), ones(), constant(-0.7), orthogonal(), kaiming_uniform(draw(st.sampled_from(fans)))]
    zero = draw(st.integers(0, len(modes) - 1))
    made = {}
    for number, carried in enumerate(modes):
        living = draw(st.sampled_from(laws))
        kind = trainable if number == zero or draw(st.booleans()) else frozen
        made[f"F{number}"] = kind(" ".join(carried), init=zeros() if number == zero and not centered else living)
    return made


@st.composite
def specs(draw: st.DrawFn, *, centered: bool = False) -> AdapterSpec:
    """A spec that no rule refuses."""
    split = draw(axes())
    weight, over = [mode for axis in split for mode in axis], draw(st.sampled_from(OVERS))
    modes = draw(modes_of_factors(weight, over.split()))
    bonds = sorted({mode for carried in modes for mode in carried} & {"p", "q", "r"})
    scales = [raw(0.5)] + [rule(bonds[0], alpha=3.0) for rule in (over_rank, over_sqrt_rank) if bonds]
    return AdapterSpec(
        name="random",
        weight=" ".join(f"({' '.join(axis)})" for axis in split),
        over=over,
        factors=draw(factors(modes, weight, centered=centered)),
        scale=draw(st.sampled_from(scales)),
        centered=centered,
    )


@st.composite
def adapters(draw: st.DrawFn, *, centered: bool = False, lengths: st.SearchStrategy[int] = LENGTHS) -> Adapter:
    """A spec bound to up to three layers of up to two kinds, of one or two shapes."""
    spec = draw(specs(centered=centered))
    shape = st.tuples(*[lengths for _ in spec.axes])
    kinds = {kind: draw(shape) for kind in draw(st.sampled_from([("q",), ("q", "k")]))}
    if draw(st.booleans()):
        kinds |= dict.fromkeys(kinds, kinds["q"])  # equal shapes, so that kinds can share
    layers = draw(st.lists(st.integers(0, 12), min_size=1, max_size=3, unique=True))
    sites = [
        Site(f"h.{layer}.{kind}", kinds[kind], {"layer": layer, "kind": kind}) for layer, kind in product(layers, kinds)
    ]
    rank = {bond: draw(st.integers(1, 3)) for bond in spec.bonds}
    return spec.bind(sites, rank=rank, seed=draw(SEEDS))


def moved(adapter: Adapter, seed: int = 0, *, frozen_too: bool = False) -> Params:
    """Params as after training: every trainable entry drawn anew; on request every frozen entry too."""
    random = np.random.default_rng(seed)
    return {
        name: random.standard_normal(value.shape) if frozen_too or adapter.slots[name].factor.trainable else value
        for name, value in init(adapter).items()
    }
