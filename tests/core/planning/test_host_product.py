"""The product of x and the host's weight as an operand: where it may be read, and that the answer stays the same."""

import numpy as np
import pytest

from tests.table import FAMILIES
from tnadapt import AdapterSpec, Site, frozen, init, plan, same, trainable
from tnadapt._planning import Labeled, NumpyBackend, find_product, run
from tnadapt.initializers import host, normal, zeros

KINDS = {"q": (4, 6), "v": (6, 4)}
HOSTED = [name for name, case in FAMILIES.items() if any(f.init.kind == "host" for f in case.spec.hosts.values())]


def network_of(factors, terms=(), weight="out in", start="free", **sizes):
    spec = AdapterSpec(name="mine", weight=weight, factors=factors, terms=terms, start=start)
    return spec.bind([Site("q", (4, 6))], sizes=sizes, rank=None).networks[0]


W, S = frozen("out in", init=host()), trainable("out", init=normal())


def test_a_term_that_is_the_weight_times_x_reads_the_product():
    network = network_of({"W": W, "s": S})
    order = plan(network, tokens=5, host_product=True)
    assert find_product(network, network.terms[0].nodes) == "W"
    assert order.operands[:2] == ("(x)", "(W x)")
    assert order.unread == {"(x)", "W"}
    assert order.forward_flops == 5 * 4
    assert plan(network, tokens=5).forward_flops > order.forward_flops


@pytest.mark.parametrize(
    "factors",
    [
        {"W": W, "l": trainable("in", init=normal())},  # the in mode is summed with more than x
        {"M": frozen("out in", init=host("mask")), "s": S},
        {"W": frozen("out in", init=normal()), "s": S},
    ],
)
def test_other_terms_do_not(factors):
    network = network_of(factors)
    assert find_product(network, network.terms[0].nodes) is None
    assert plan(network, tokens=5, host_product=True).steps == plan(network, tokens=5).steps


def test_a_renamed_out_mode_is_read_and_a_renamed_in_mode_is_not():
    turned = {"W2": same("W", "a in"), "R": trainable("out a", init=normal())}
    network = network_of({"W": W, **turned}, ["R W2", "- W"])
    assert [find_product(network, term.nodes) for term in network.terms] == ["W2", "W"]
    assert plan(network, host_product=True).unread == {"(x)", "W", "W2"}
    inner = {"W2": same("W", "out a"), "R": trainable("a in", init=normal())}
    network = network_of({"W": W, **inner}, ["W2 R", "- W"])
    assert [find_product(network, term.nodes) for term in network.terms] == [None, "W"]
    assert plan(network, host_product=True).unread == {"W"}


@pytest.mark.parametrize("family", HOSTED)
@pytest.mark.parametrize("tokens", [1, 64])
def test_the_answer_is_the_same(family, tokens):
    adapter = FAMILIES[family].bind(layers=1, kinds=KINDS)
    generator = np.random.default_rng(0)
    weights = {site.weight: generator.standard_normal(site.weight_shape) for site in adapter.sites}
    params = init(adapter, weights)
    for group in adapter.groups:
        network, arrays = group.network, values_of(adapter, params, group, generator)
        x = generator.standard_normal((tokens, *(network.sizes[mode] for mode in network.in_modes)))
        found = []
        for is_given in (False, True):
            order = plan(network, tokens=tokens, host_product=is_given)
            known = {"(x)": x} | arrays
            for node in network.nodes:
                known[f"({node} x)"] = (
                    np.tensordot(x, arrays[node], (range(1, x.ndim), range(-x.ndim + 1, 0)))
                    if (network.factors[network.nodes[node].factor].init.kind == "host")
                    else None
                )
            operands = [Labeled(known[name], modes) for name, modes in zip(order.operands, order.inputs, strict=True)]
            found.append(run(order, operands, NumpyBackend()).array)
        np.testing.assert_allclose(found[1], found[0], rtol=1e-10, atol=1e-12)


def values_of(adapter, params, group, generator):
    """Return values for each node: any for a factor, the weight for the host."""
    found, sizes = {}, group.network.sizes
    made = {
        name: generator.standard_normal([sizes[m] for m in one.modes]) for name, one in group.network.factors.items()
    }
    for name, node in group.network.nodes.items():
        held = [mode for mode in node.modes if mode not in group.network.over]
        array = made[node.factor]
        if len(held) != len(node.modes):
            array = array[tuple(0 if m in group.network.over else slice(None) for m in node.modes)]
        found[name] = array
    return found


def test_a_sum_without_a_host_has_todays_plan():
    network = network_of({"A": trainable("r in"), "B": trainable("out r", init=zeros())}, start="zero", r=2)
    assert plan(network, host_product=True).steps == plan(network).steps
    assert plan(network, "delta", host_product=True) == plan(network, "delta")
