"""Laws of sums: an update is alpha times the sum of its terms, and a second name of a factor changes nothing."""

from dataclasses import replace

import numpy as np

from tnadapt._language import Adapter, AdapterSpec, Factor, Same, count, ones, raw, same, trainable
from tnadapt._structure import rank_bound
from tnadapt._values import delta
from tnadapt.testing._expect import bind_again, expect, expect_close, some_site
from tnadapt.testing._magnitude import of_the_sum
from tnadapt.testing._oracle import random_params, rounding_size

__all__: list[str] = []

UNIT = "unit"  # a factor of 1 entry, which is 1


@of_the_sum
def linear_in_alpha(adapter: Adapter, random: np.random.Generator) -> None:
    """Multiplying alpha by a number multiplies every update by it and does not change the counts."""
    params, site, alpha = random_params(adapter, random), some_site(adapter, random), adapter.spec.scale.alpha
    for by in (-2.0, -1.0, 0.5):
        other = bind_again(adapter.spec, adapter, by * alpha)
        size = 2 * rounding_size(adapter, params, site)
        expect_close(
            delta(other, params, site), by * delta(adapter, params, site), f"delta at alpha times {by:g}", size
        )
        expect(count(other) == count(adapter), f"count at alpha times {by:g}: expected no change, got another count")


@of_the_sum
def terms_add_up(adapter: Adapter, random: np.random.Generator) -> None:
    """An update is the scale times the sum of the updates of one-term specs that are given the same arrays."""
    spec, params, site = adapter.spec, random_params(adapter, random), some_site(adapter, random)
    if adapter.starts:
        return  # a term of starting values alone trains nothing, so that no spec has it by itself
    if len({tuple(network.sizes[bond] for bond in spec.free_bonds) for network in adapter.networks}) > 1:
        return  # a rank that some shapes limit
    scale, total = adapter.find(site)[0].network.scale, np.zeros(site.shape)
    for names in (term.nodes for term in spec.sum):
        one = _alone(adapter, names)
        own = {name: value for name, value in params.items() if name in one.slots or name in one.hosts}
        own |= {name: np.ones(()) for name in one.slots if name.rpartition(".")[2] == UNIT}
        sign = next(term.sign for term in spec.sum if term.nodes == names)
        total = total + sign * delta(one, own, site)
    expect_close(
        delta(adapter, params, site), scale * total, f"sum of the terms at {site.path}", _size(adapter, params)
    )


@of_the_sum
def second_names_change_nothing(adapter: Adapter, random: np.random.Generator) -> None:
    """Reading a factor under a second name of the same modes changes neither updates, nor counts, nor rank bounds."""
    spec = adapter.spec
    terms = list(spec.terms) or [" ".join(spec.factors)]
    place = int(random.integers(len(terms)))
    sign, names = ("- ", terms[place][2:].split()) if terms[place].startswith("- ") else ("", terms[place].split())
    known = [name for name in names if not isinstance(spec.factors[name], Same)]
    if not known:
        return
    name = known[int(random.integers(len(known)))]
    again = f"{name}_again"
    terms[place] = sign + " ".join(again if other == name else other for other in names)
    other = replace(spec, factors={**spec.factors, again: same(name)}, terms=terms)
    bound = other.bind(adapter.sites, rank=adapter.rank, sizes=adapter.sizes, seed=adapter.seed, overparametrized=True)
    counts = [(count(one).trainable, count(one).frozen) for one in (adapter, bound)]
    expect(counts[0] == counts[1], f"count with a second name of {name}: expected {counts[0]}, got {counts[1]}")
    params, site = random_params(adapter, random), some_site(adapter, random)
    expect_close(
        delta(bound, params, site),
        delta(adapter, params, site),
        f"delta with a second name of {name}",
        2 * _size(adapter, params),
    )
    ranks = [rank_bound(one, site).rank for one in (adapter, bound)]
    expect(ranks[0] == ranks[1], f"rank_bound with a second name of {name}: expected {ranks[0]}, got {ranks[1]}")


def _alone(adapter: Adapter, names: tuple[str, ...]) -> Adapter:
    """Return the adapter of one term, added, with the sizes of the whole one and scale 1."""
    spec = adapter.spec
    used = {*names, *(one.factor for name in names if isinstance(one := spec.factors[name], Same))}
    factors = {name: one for name, one in spec.factors.items() if name in used}
    if not any(isinstance(one, Factor) and one.trainable for one in factors.values()):  # no spec has no trained factor
        factors, names = factors | {UNIT: trainable("", init=ones())}, (*names, UNIT)
    outer = {*spec.site_modes, *(mode for axis in spec.axes for mode in axis)}
    known = outer | {mode for one in factors.values() for mode in one.modes or ()}
    sizes = {mode: rule for mode, rule in spec.sizes.items() if mode in known}
    term = AdapterSpec(
        name=spec.name,
        weight=spec.weight,
        over=spec.over,
        factors=factors,
        terms=[" ".join(names)],
        scale=raw(),
        sizes=sizes,
        start="free",
    )
    asked = {mode: size for mode, size in adapter.sizes.items() if mode in known}
    ranks = {
        bond: size for bond, size in adapter.networks[0].sizes.items() if bond in term.free_bonds and bond not in asked
    }
    return term.bind(adapter.sites, rank=ranks, sizes=asked, seed=adapter.seed, overparametrized=True)


def _size(adapter: Adapter, params: dict[str, np.ndarray]) -> float:
    return max(rounding_size(adapter, params, site) for site in adapter.sites)
