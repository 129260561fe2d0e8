"""Products of factors apart from the rest of a plan: both together are the plan."""

import numpy as np
import pytest

from tnadapt import families, plan, sites_of
from tnadapt.binding import equation_of, part_products, shared_by

SITES = sites_of({f"h.{layer}.{kind}": (6, 4) for layer in range(2) for kind in ("q", "k")})
CASES = {
    "lotr": (families.lotr(), {}),
    "lorta": (families.lorta(), {"head": 2}),
    "tt_lora": (families.tt_lora(out_order=2, in_order=2), {}),
    "loha": (families.loha(), {}),
}


def network_of(name):
    spec, sizes = CASES[name]
    return spec.bind(SITES, rank=2, sizes=sizes, seed=0).groups[0].network


def contract(network, arrays, modes):
    """Return the sum of all terms at one site, densely and without the scale."""
    answer, total = (*network.out_modes, *network.in_modes), 0.0
    for term in network.terms:
        equation = equation_of([modes(name) for name in term.nodes], answer)
        total = total + term.sign * np.einsum(equation, *(arrays[name] for name in term.nodes))
    return total


@pytest.mark.parametrize("name", CASES)
def test_what_is_left_with_the_products_is_the_update(name):
    network = network_of(name)
    found = part_products(plan(network, tokens=8192, objective=shared_by("cpu", 64)))
    draw = np.random.default_rng(0)
    local = {n: draw.standard_normal([network.sizes[m] for m in network.local_modes(n)]) for n in network.nodes}
    modes = [network.local_modes(node) for node in found.nodes]
    values = [local[node] for node in found.nodes]
    ends = {number: found.modes[made] for made, number in found.made.items()}
    for number, step in enumerate(found.steps, len(values)):
        own = ends.get(number, step.modes)
        equation = equation_of((modes[step.left], modes[step.right]), own)
        values.append(np.einsum(equation, values[step.left], values[step.right]))
        modes.append(own)
    arrays = local | {made: values[number] for made, number in found.made.items()}
    whole = contract(network, local, network.local_modes)
    np.testing.assert_allclose(contract(found.network, arrays, found.network.local_modes), whole, rtol=1e-12)
    assert not {*found.network.nodes} & {found.nodes[leaf] for n in found.made.values() for leaf in found.leaves(n)}


def test_long_modes_lie_innermost_and_products_of_trained_factors_are_trained():
    network = families.lotr().bind(sites_of({"h.0.q": (512, 512), "h.1.q": (512, 512)}), rank=8, seed=0).networks[0]
    found = part_products(plan(network, tokens=8192, objective=shared_by("cpu", 64)))
    ((name, modes),) = found.modes.items()
    assert modes == ("q", "out")
    assert found.network.is_trained(name)


def test_a_plan_without_products_has_none_and_start_values_stay_as_they_are():
    lora = families.lora().bind(SITES, rank=1, seed=0).networks[0]
    assert part_products(plan(lora, tokens=8192)) is None
    centered = families.tt_lora(out_order=2, in_order=2, start="centered").bind(SITES, rank=2, seed=0).networks[0]
    assert part_products(plan(centered, tokens=8192)) is None


def test_more_sites_make_more_products():
    """At few tokens, a product that one site would make for itself is dear."""
    network = families.lotr().bind(sites_of({f"h.{n}.q": (512, 512) for n in range(2)}), rank=64, seed=0).networks[0]
    alone, many = (plan(network, tokens=16, objective=shared_by("cpu", sites)) for sites in (1, 1000))
    assert part_products(alone) is None
    assert part_products(many) is not None
