"""Convolutions in place of cyclic factors: the same numbers, at the stated cost, and only where they are cheaper."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cyclic import can_convolve, convolving, cyclic_adapters
from tests.thorough import IS_THOROUGH
from tnadapt import AdapterSpec, PlanError, Site, delta, families, frozen, grid, plan, trainable
from tnadapt._planning import Question, search
from tnadapt._planning.cost import CALL, Convolution, Line, measure_lines
from tnadapt._planning.spectrum import amount_of_cyclic, convolved_orders, lines_of_order
from tnadapt.binding import BUCKETS, OBJECTIVES, Cost
from tnadapt.initializers import constant, cyclic, normal, raw, zeros
from tnadapt.testing import dense, random_params
from tnadapt.testing._laws import plans_give_the_numbers
from tnadapt.testing._oracle import local, run_plan

N = 8
SIZES = {"t": 5, "i": 3, "o": 2, "a": N, "b": N, "c": N}


def circulant(adapter, tokens=4, seed=0, **options):
    """A plan of one site, and how far what it gives is from x times the dense update, relative to its largest entry."""
    random = np.random.default_rng(seed)
    site = adapter.sites[-1]
    params = random_params(adapter, random)
    network, arrays = local(adapter, params, site)
    order = plan(network, tokens=tokens, **options)
    x = random.standard_normal((tokens, *(network.sizes[mode] for mode in network.in_modes)))
    value, flops = run_plan(order, {"(x)": x} | arrays)
    assert flops == order.forward_flops
    wanted = x.reshape(tokens, -1) @ dense(adapter, params, site).reshape(network.weight_shape[0], -1).T
    found = network.scale * value.reshape(wanted.shape)
    return order, np.abs(found - wanted).max() / (np.abs(wanted).max() or 1.0)


def c3a(width, block, **others):
    sites = grid(layers=1, kinds={"q": (width, width)})
    return families.c3a(**others).bind(sites, sizes={"o2": block, "i2": block})


@settings(max_examples=300 if IS_THOROUGH else 40)
@given(adapter=cyclic_adapters(), tokens=st.integers(1, 4))
def test_a_pattern_in_any_position_is_convolved_exactly_where_it_can_be(adapter, tokens):
    with convolving():
        order, error = circulant(adapter, tokens)
    network = adapter.networks[0]
    assert bool(order.convolutions) == can_convolve(network)
    assert order.unread == ({"T"} if order.convolutions else set())
    assert error <= 1e-12


@settings(max_examples=50 if IS_THOROUGH else 25)
@given(adapter=cyclic_adapters(), bucket=st.sampled_from(BUCKETS))
def test_a_convolution_is_chosen_only_if_it_is_cheaper(adapter, bucket):
    network = adapter.networks[0]
    chosen, pairs = plan(network, tokens=bucket), plan(network, tokens=bucket, fft=False)
    assert not pairs.convolutions
    assert (chosen.objective.of(chosen.cost) < pairs.objective.of(pairs.cost)) == bool(chosen.convolutions)
    assert chosen.convolutions or chosen.steps == pairs.steps


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 9, 16])
@pytest.mark.parametrize("modes", list(itertools.permutations(["in", "out", "bond"])), ids=" ".join)
def test_the_direction_follows_from_which_mode_is_the_sum(modes, size):
    """x may carry the sum or a summand, and so may the answer: the pattern's first mode is the sum in each case."""
    spec = AdapterSpec(
        name="own",
        weight="out in",
        factors={"c": trainable("bond", init=normal()), "T": frozen(" ".join(modes), init=cyclic())},
        start="free",
    )
    with convolving():
        order, error = circulant(spec.bind([Site("w", (size, size))], sizes={"bond": size}))
    assert error <= 1e-12
    (how,) = order.convolutions
    total = modes[0]
    assert how.conjugated == {how.left: "right", how.right: "left", how.made: ""}[total]


@pytest.mark.parametrize("width", [1024, 2048, 4096])
@pytest.mark.parametrize("tokens", BUCKETS)
@pytest.mark.parametrize("options", [{}, {"x_needs_grad": False}, {"training": False}], ids=str)
def test_blocks_of_c3a_are_convolved_from_64_on_and_never_up_to_4(width, tokens, options):
    for block in (64, 128, 256, 512, 1024):
        assert plan(c3a(width, block).networks[0], tokens=tokens, **options).convolutions
    for block in (1, 2, 4):
        network = c3a(width, block).networks[0]
        made, pairs = plan(network, tokens=tokens, **options), plan(network, tokens=tokens, fft=False, **options)
        assert made == pairs


def test_what_a_call_of_a_transform_costs_decides_at_one_token():
    """Measured: at one token and blocks of 16, a convolution takes twice as long, at 64 half as long."""
    assert not plan(c3a(1024, 16).networks[0], tokens=1).convolutions
    assert plan(c3a(1024, 16).networks[0], tokens=16).convolutions


def test_blocks_of_other_sizes_are_not_convolved():
    network = families.c3a().bind([Site("w", (96, 48))], sizes={"o2": 32, "i2": 16}).networks[0]
    assert amount_of_cyclic(network, "J") == 0
    assert plan(network) == plan(network, fft=False)


def test_the_entry_of_the_pattern_is_rounded_as_it_is_drawn():
    adapter = c3a(48, 16)
    network = adapter.networks[0]
    assert amount_of_cyclic(network, "J") == float(np.float32(1 / 48)) != 1 / 48
    assert {*np.unique(local(adapter, random_params(adapter, np.random.default_rng(0)), adapter.sites[0])[1]["J"])} == {
        0.0,
        amount_of_cyclic(network, "J"),
    }
    assert amount_of_cyclic(network, "c") == 0


REFUSED = {
    "trained": {"T": trainable("out in b", init=cyclic()), "c": trainable("b", init=zeros())},
    "of two modes": {"T": frozen("out in", init=cyclic()), "c": trainable("out", init=zeros())},
    "of four modes": {"T": frozen("out in b d", init=cyclic()), "c": trainable("b d", init=zeros())},
    "of the sites": {"T": frozen("layer out in b", init=cyclic()), "c": trainable("b", init=zeros())},
    "of the sites, with three modes": {"T": frozen("layer in b", init=cyclic()), "c": trainable("b out", init=zeros())},
    "another pattern": {"T": frozen("out in b", init=constant(1.0)), "c": trainable("b", init=zeros())},
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_factor_that_is_no_pattern_of_three_modes_is_contracted(name):
    spec = AdapterSpec(name="own", weight="out in", factors=REFUSED[name], over="layer" if "sites" in name else "")
    sizes = dict.fromkeys("bd", N) if "four" in name else {"b": N} if "two" not in name else {}
    with convolving():
        order, error = circulant(spec.bind(grid(layers=N, kinds={"q": (N, N)}), sizes=sizes, overparametrized=True))
    assert (order.convolutions, order.unread) == ((), frozenset())
    assert error <= 1e-12


def test_a_dense_update_is_never_convolved():
    """Here it could be: every mode of the pattern is a bond."""
    factors = {"A": trainable("in a", init=normal()), "B": trainable("out b", init=normal())}
    factors |= {"C": trainable("c", init=normal()), "T": frozen("a b c", init=cyclic())}
    spec = AdapterSpec(name="own", weight="out in", factors=factors, start="free")
    network = spec.bind([Site("w", (9, 7))], sizes=dict.fromkeys("abc", 5), overparametrized=True).networks[0]
    with convolving():
        assert plan(network).convolutions
        assert not plan(network, "delta").convolutions


def test_the_law_of_plans_holds_for_an_adapter_that_convolves():
    """It draws frozen factors at random, but not the pattern."""
    adapter = c3a(48, 16)
    with convolving():
        assert plan(adapter.networks[0]).convolutions
        plans_give_the_numbers(adapter, np.random.default_rng(0))


def test_terms_share_what_a_convolution_makes():
    """Two terms that read the same convolution make it once; one of them goes on from its result."""
    factors = {"g": trainable("o2 out", init=normal()), "h": trainable("o2 out", init=normal())}
    factors |= {"c": trainable("b", init=normal()), "T": frozen("in b o2", init=cyclic())}
    spec = AdapterSpec(name="own", weight="out in", factors=factors, terms=["T c g", "- T c h"], start="free")
    adapter = spec.bind([Site("w", (60, 16))], sizes={"b": 16, "o2": 16}, overparametrized=True)
    with convolving():
        order, error = circulant(adapter, tokens=16)
    assert len(order.convolutions) == 1
    assert error <= 1e-12


def test_two_patterns_of_the_same_modes_are_two():
    """The first term adds indices, and the second subtracts them."""
    factors = {"c": trainable("b", init=normal())}
    factors |= {"S": frozen("out b in", init=cyclic()), "T": frozen("in b out", init=cyclic())}
    spec = AdapterSpec(name="own", weight="out in", factors=factors, terms=["S c", "T c"], start="free")
    with convolving():
        order, error = circulant(spec.bind([Site("w", (N, N))], sizes={"b": N}, overparametrized=True))
    assert (len(order.convolutions), order.unread) == (2, {"S", "T"})
    assert error <= 1e-12


def test_a_pattern_that_another_term_contracts_is_read():
    factors = {"c": trainable("b", init=normal()), "d": trainable("b out", init=normal())}
    factors |= {"T": frozen("in b out", init=cyclic())}
    spec = AdapterSpec(name="own", weight="out in", factors=factors, terms=["T c", "T d"], start="free")
    with convolving():
        order, error = circulant(spec.bind([Site("w", (N, N))], sizes={"b": N}, overparametrized=True))
    assert len(order.convolutions) == 1
    assert order.unread == frozenset()
    assert error <= 1e-12


def test_a_centered_convolution_cancels_to_the_last_bit():
    """The mirrored term takes the order of the first, its convolution included."""
    factors = {"c": trainable("b", init=normal()), "T": frozen("in b out", init=cyclic())}
    spec = AdapterSpec(name="own", weight="out in", factors=factors, start="centered", scale=raw())
    adapter = spec.bind([Site("w", (N, N))], sizes={"b": N}, seed=3, overparametrized=True)
    random = np.random.default_rng(0)
    start = random.standard_normal(N)
    with convolving():
        order = plan(adapter.networks[0], tokens=3)
    assert len(order.convolutions) == 2
    pattern = local(adapter, random_params(adapter, random), adapter.sites[0])[1]
    arrays = {name: start if value.shape == (N,) else value for name, value in pattern.items()}
    x = random.standard_normal((3, N))
    value, _ = run_plan(order, {"(x)": x} | arrays)
    assert (value == 0).all()


def test_the_costs_of_a_convolution_by_hand():
    """x (t i a) with c (o i b) to (t o c): a is the sum, so that c is conjugated."""
    asked = Question(
        (("t", "i", "a"), ("o", "i", "b"), ("a", "b", "c")),
        ("t", "o", "c"),
        SIZES,
        (True, True, False),
        (True, False, False),
        (0.0, 0.0, 0.5),
    )
    (order,) = convolved_orders(asked, OBJECTIVES["training"])
    (line,) = lines_of_order(asked, order)
    assert (order.pairs, order.pattern, order.exact) == (((0, 1),), 2, True)
    assert line == Line(0, 1, ("t", "c", "o"), Convolution(2, "a", "b", "c", N, 0.5, "right"))
    assert (line.convolution.frequencies, line.convolution.transform) == (5, 60)  # 5/2 8 log2(8)
    x, c, y = 5 * 3, 2 * 3, 5 * 2  # numbers of signals
    product = 4 * 5 * 2 * (5 * 3 * 2)  # complex, per frequency, a multiplication and an addition
    forward, backward = product + 60 * (x + c + y), 2 * product + 60 * (y + x + c)
    numbers, spectra = N * (x + c + y), 2 * 5 * (x + c + y)
    moved = numbers + 2 * spectra + 3 * CALL
    moved += N * y + 2 * 5 * y + 2 * spectra + 2 * 5 * (x + c) + N * (x + c) + 3 * CALL
    steps, total = measure_lines(asked, [line])
    assert total == Cost(forward, backward, 2 * 5 * x, max(spectra, 2 * 5 * y + N * y), moved)
    assert steps == (total,)
    frozen_x = replace(asked, needs_grad=(False, False, False))
    assert measure_lines(frozen_x, [line])[1] == Cost(forward, 0, 0, total.peak, numbers + 2 * spectra + 3 * CALL)


def test_an_order_of_more_than_two_operands_is_not_proven():
    asked = Question(
        (("t", "a"), ("i", "b"), ("o", "c", "i"), ("a", "b", "c")),
        ("t", "o"),
        SIZES,
        (True, True, True, False),
        (True, False, False, False),
        (0.0, 0.0, 0.0, 1.0),
    )
    (order,) = convolved_orders(asked, OBJECTIVES["training"])
    assert not order.exact
    assert search(asked, OBJECTIVES["training"]).exact
    lines = lines_of_order(asked, order)
    assert sum(line.convolution is not None for line in lines) == 1
    assert {*lines[-1].modes} == {"t", "o"}


def test_a_plan_prints_what_a_convolution_replaces_and_has_no_path_for_opt_einsum():
    order = plan(c3a(1024, 256).networks[0])
    text = str(order)
    assert "by FFT: i2 and b to o2, in place of J" in text
    assert "(no order is cheaper)" in text
    assert "opt_einsum" not in text
    assert "making the update first: " in order.explain()
    assert order.equation().count(",") == 2
    for ask in (order.to_opt_einsum, order.opt_einsum_flops):
        with pytest.raises(PlanError, match=r"to_opt_einsum: expected steps that contract, got one that convolves"):
            ask()


def test_the_reference_of_c3a_stays_dense():
    """`delta` multiplies by the array that it is given, whatever it holds."""
    adapter = c3a(256, 128)
    params = random_params(adapter, np.random.default_rng(0))
    doubled = params | {"J": 2 * params["J"]}
    np.testing.assert_array_equal(
        delta(adapter, doubled, adapter.sites[0]), 2 * delta(adapter, params, adapter.sites[0])
    )
