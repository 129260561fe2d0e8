"""Sizes: a network from ranks, given sizes and even splits, and the errors for sizes that do not fit."""

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tnadapt import AdapterSpec, Site, SiteError, families, frozen, grid, raw, trainable, zeros
from tnadapt._hosts.site import divisors
from tnadapt._language import Node, Term
from tnadapt._language.network import split_evenly
from tnadapt.binding import Network

LOTR, LORTA, LORA, TERA = families.lotr(), families.lorta(), families.lora(), families.tera()
ONE = [Site("x", (12, 8))]
LARGEST = 2**31 - 1
RANKS = {  # arguments of bind that set the rank of lora, and the beginning of a message about it
    "int": (lambda rank: {"rank": rank}, "rank"),
    "dict": (lambda rank: {"rank": {"r": rank}}, "rank of 'r'"),
    "sizes": (lambda rank: {"sizes": {"r": rank}}, "size of 'r'"),
}


def sizes(spec, shape=(12, 8), **words):
    (network,) = spec.bind([Site("x", shape)], **words, overparametrized=True).networks
    return dict(network.sizes)


def test_weight_modes_and_site_modes_come_from_the_sites():
    (network,) = LOTR.bind(grid(layers=3, kinds={"q": (12, 8), "k": (12, 8)}), rank=2).networks
    assert dict(network.sizes) == {"out": 12, "in": 8, "site": 6, "p": 2, "q": 2}
    assert (network.weight_shape, network.out_modes, network.in_modes) == ((12, 8), ("out",), ("in",))
    assert (network.shape("G"), network.local_modes("G"), network.volume("pq")) == ((6, 2, 2), ("p", "q"), 4)


@pytest.mark.parametrize(
    ("words", "ranks"),
    [
        ({"rank": 4}, (4, 4)),
        ({"rank": {"p": 4, "q": 3}}, (4, 3)),
        ({"rank": {"p": 4}, "sizes": {"q": 3}}, (4, 3)),
        ({"sizes": {"p": 4, "q": 3}}, (4, 3)),
        ({"rank": 4, "sizes": {"q": 3}}, (4, 3)),
        ({"rank": 50}, (50, 50)),  # above the sizes, and requested explicitly
    ],
)
def test_ranks(words, ranks):
    found = sizes(LOTR, **words)
    assert (found["p"], found["q"]) == ranks


@pytest.mark.parametrize("rank", [0, -1, 2.0, 2.5, True, False, "2", [2], np.float64(2), float("nan")], ids=repr)
@pytest.mark.parametrize("form", RANKS)
def test_a_rank_that_is_not_a_positive_integer_is_rejected(rank, form):
    words, begins = RANKS[form]
    with pytest.raises(SiteError, match=f"^{begins}: expected an integer of at least 1, got "):
        LORA.bind(ONE, **words(rank))


@pytest.mark.parametrize("form", RANKS)
def test_a_rank_above_the_largest_size_is_rejected(form):
    words, begins = RANKS[form]
    assert dict(LORA.bind(ONE, **words(LARGEST), overparametrized=True).networks[0].sizes)["r"] == LARGEST
    for rank in (LARGEST + 1, 2**63, 10**400):
        with pytest.raises(SiteError, match=f"^{begins}: expected at most 2,147,483,647, got "):
            LORA.bind(ONE, **words(rank))


@pytest.mark.parametrize("rank", [0, -1, 2.0, True, "2", 2**31], ids=repr)
@pytest.mark.parametrize(
    ("spec", "sizes"),
    [
        (AdapterSpec(name="own", weight="out in", factors={"W": trainable("out in", init=zeros())}, scale=raw()), {}),
        (LORA, {"r": 3}),
    ],
    ids=["no bond", "a bond that sizes names"],
)
def test_a_rank_is_checked_even_if_no_bond_uses_it(spec, sizes, rank):
    with pytest.raises(SiteError, match=r"^rank: expected (an integer of at least 1|at most 2,147,483,647), got "):
        spec.bind(ONE, rank=rank, sizes=sizes)
    if sizes:
        assert spec.bind(ONE, rank=5, sizes=sizes).networks[0].sizes["r"] == sizes["r"]


@pytest.mark.parametrize("rank", [0, True, "2", 2**31], ids=repr)
def test_a_rank_in_a_dict_is_checked_even_if_no_bond_uses_it(rank):
    with pytest.raises(
        SiteError, match=r"^rank of 'r': expected (an integer of at least 1|at most 2,147,483,647), got "
    ):
        LORA.bind(ONE, rank={"r": rank}, sizes={"r": 3})


@pytest.mark.parametrize(
    ("spec", "words", "message"),
    [
        (
            LOTR,
            {"rank": {"p": 1, "z": 1}},
            "of lotr or names of adapted modules, got 'z'.\nIts bonds are p, q.",
        ),
        (LOTR, {"rank": {"in": 1}}, "rank: expected bonds of lotr or names of adapted modules, got 'in'"),
        (
            LOTR,
            {"rank": 1, "sizes": {"z": 1}},
            "sizes: expected modes of lotr whose sizes are free, got 'z'.\nIt has in, out, p, q.",
        ),
        (LOTR, {"rank": 1, "sizes": {"site": 1}}, "sizes: expected modes of lotr whose sizes are free, got 'site'"),
        (
            LOTR,
            {},
            "expected a size for every bond, got none for p, q.\nPass rank=8 for all, or rank=.'p': 8. for each",
        ),
        (LOTR, {"rank": {"p": 1}}, "expected a size for every bond, got none for q."),
        (LOTR, {"rank": {}}, "expected a size for every bond, got none for p, q."),
        (TERA, {"rank": {"r_o2": 2}}, "expected a size for every bond, got none for r_o1, r_o3, r_i1, r_i2, r_i3."),
        (LORA, {"rank": 1, "sizes": {"in": 0}}, "size of 'in': expected an integer of at least 1, got 0"),
        (LORA, {"rank": 1, "sizes": {"in": 4}}, "whose product is 8, got in=4, which does not give 8"),
        (
            LORTA,
            {"rank": 1, "sizes": {"head": 5}},
            r"x: expected sizes of \(head dim\) whose product is 12, got head=5",
        ),
        (
            LORTA,
            {"rank": 1, "sizes": {"head": 5}},
            "head=5, which does not divide 12.\nDivisors of 12: 1, 2, 3, 4, 6, 12.",
        ),
        (LORTA, {"rank": 1, "sizes": {"head": 24}}, "got head=24, which does not divide 12"),
        (LORTA, {"rank": 1, "sizes": {"head": 3, "dim": 2}}, "got head=3, dim=2, which does not give 12"),
        (LORA, {"rank": 1, "seed": -1}, "seed: expected an integer of at least 0, got -1"),
        (LORA, {"rank": 1, "seed": 0.0}, "seed: expected an integer of at least 0, got 0.0"),
        (LORA, {"rank": 1, "seed": True}, "seed: expected an integer of at least 0, got True"),
    ],
)
def test_ranks_sizes_and_seeds_that_do_not_fit_are_rejected(spec, words, message):
    with pytest.raises(SiteError, match=message):
        spec.bind(ONE, **words)


@pytest.mark.parametrize(("spec", "shape", "axes"), [(LORA, (4,), 2), (LORA, (4, 3, 3), 2), (TERA, (4, 3, 2, 2), 2)])
def test_a_weight_with_the_wrong_number_of_axes_is_rejected(spec, shape, axes):
    with pytest.raises(SiteError, match=f"conv1: expected a weight of {axes} axes for this spec, got shape"):
        spec.bind([Site("conv1", shape)], rank=1)


def test_a_conv_kernel_has_four_axes():
    spec = AdapterSpec(
        name="conv",
        weight="out in kh kw",
        factors={"A": trainable("r in kh kw"), "B": trainable("out r", init=zeros())},
        scale=raw(),
    )
    assert sizes(spec, (6, 4, 3, 2), rank=5) == {"out": 6, "in": 4, "kh": 3, "kw": 2, "r": 5}


@pytest.mark.parametrize(
    ("shape", "asked", "expected"),
    [
        ((768, 1024), {}, (8, 8, 12, 8, 8, 16)),
        ((768, 1024), {"o1": 3}, (3, 16, 16, 8, 8, 16)),
        ((768, 1024), {"o2": 3, "i3": 1}, (16, 3, 16, 32, 32, 1)),
        ((7, 1), {}, (1, 1, 7, 1, 1, 1)),
        ((4096, 11008), {}, (16, 16, 16, 16, 16, 43)),
    ],
)
def test_modes_without_a_given_size_split_evenly(shape, asked, expected):
    found = sizes(TERA, shape, rank=1, sizes=asked)
    assert tuple(found[mode] for mode in ("o1", "o2", "o3", "i1", "i2", "i3")) == expected


@given(st.integers(1, 10**6), st.integers(1, 5))
def test_a_split_is_ascending_and_has_the_right_product(number, parts):
    split = split_evenly(number, parts)
    assert math.prod(split) == number
    assert len(split) == parts
    assert list(split) == sorted(split)


@given(st.integers(1, 400), st.integers(1, 4))
def test_no_split_has_a_smaller_sum(number, parts):
    parted = itertools.combinations_with_replacement([d for d in range(1, number + 1) if number % d == 0], parts)
    assert sum(split_evenly(number, parts)) == min(sum(split) for split in parted if math.prod(split) == number)


@pytest.mark.parametrize(
    ("number", "split", "equal"),
    [(360, (5, 8, 9), (6, 6, 10)), (5850, (13, 18, 25), (15, 15, 26)), (2880, (5, 8, 8, 9), (6, 6, 8, 10))],
)
def test_of_two_splits_of_equal_sum_the_smaller_first_factor_is_taken(number, split, equal):
    assert (sum(split), math.prod(split)) == (sum(equal), math.prod(equal)) == (sum(equal), number)
    assert split_evenly(number, len(split)) == split


@given(st.integers(1, 2000))
def test_divisors(number):
    assert divisors(number) == tuple(part for part in range(1, number + 1) if number % part == 0)


def test_caps_limit_a_rank_to_the_size_of_its_mode():
    found = sizes(TERA, (8, 27), rank=5)
    assert [found[f"r_{mode}"] for mode in ("o1", "o2", "o3", "i1", "i2", "i3")] == [2, 2, 2, 3, 3, 3]
    found = sizes(TERA, (8, 27), rank=dict.fromkeys(TERA.bonds, 2) | {"r_i1": 9})
    assert [found[f"r_{mode}"] for mode in ("o1", "i1", "i2")] == [2, 3, 2]


def test_caps_do_not_limit_a_bond_given_in_sizes():
    found = sizes(TERA, (8, 27), rank=5, sizes={"r_o1": 4})
    assert (found["r_o1"], found["r_o2"]) == (4, 2)


def test_caps_limit_each_group_by_its_own_sizes():
    adapter = TERA.bind([Site("a", (8, 8)), Site("b", (27, 8))], rank=5)
    assert [network.sizes["r_o1"] for network in adapter.networks] == [2, 3]


def test_the_scale_depends_on_the_rank():
    site = [Site("x", (4, 4))]
    assert families.lora(alpha=6).bind(site, rank=4).networks[0].scale == 1.5
    assert families.lora(alpha=6, rank_stabilized=True).bind(site, rank=4).networks[0].scale == 3.0
    assert families.lora(alpha=6).bind(site, rank=4, alpha=2).networks[0].scale == 0.5
    assert families.tlora(alpha=6).bind(site, rank=4).networks[0].scale == 6.0
    assert families.lotr(alpha=6).bind(site, rank={"p": 3, "q": 4}).networks[0].scale == 2.0
    assert type(families.tlora(alpha=6).bind(site, rank=4).networks[0].scale) is float


@pytest.mark.parametrize("size", [0, -1, 2.0, "2", True])
def test_an_axis_of_invalid_size_is_rejected(size):
    with pytest.raises(SiteError, match=r"h.0.q: an axis of the weight: expected an integer of at least 1, got "):
        Site("h.0.q", (4, size))
    with pytest.raises(SiteError, match="mode 'in': expected an integer of at least 1, got "):
        Network((("out",), ("in",)), (), {"A": trainable("out in")}, {"out": 4, "in": size}, 1.0)


def test_a_network_is_one_term_of_all_its_factors_by_default():
    factors = {"B": frozen("r in"), "A": trainable("out r")}
    plain = Network((("out",), ("in",)), (), factors, {"out": 4, "in": 2, "r": 3}, 1.0)
    assert dict(plain.nodes) == {"A": Node("A", ("out", "r")), "B": Node("B", ("r", "in"))}
    assert list(plain.nodes) == ["A", "B"]
    assert plain.terms == (Term(1, ("A", "B")),)
    assert [plain.is_trained(name) for name in "AB"] == [True, False]


def test_a_node_has_modes_of_its_own_and_is_trained_unless_its_start_is_meant():
    nodes = {
        "A": Node("A", ("layer", "r", "in")),
        "A2": Node("A", ("layer", "s", "in")),
        "A0": Node("A", ("layer", "r", "in"), True),
    }
    terms = (Term(1, ("A", "A2")), Term(-1, ("A0", "A2")))
    sizes = {"layer": 2, "out": 4, "in": 3, "r": 3, "s": 3}
    network = Network((("out",), ("in",)), ("layer",), {"A": trainable("layer r in")}, sizes, 1.0, nodes, terms)
    assert [network.local_modes(name) for name in ("A", "A0", "A2")] == [("r", "in"), ("r", "in"), ("s", "in")]
    assert [network.is_trained(name) for name in ("A", "A0", "A2")] == [True, False, True]
    assert list(network.nodes) == ["A", "A0", "A2"]
    assert network.terms == terms


def test_a_copy_needs_modes_of_the_sizes_of_its_factor():
    nodes = {"A": Node("A", ("r", "in")), "A2": Node("A", ("s", "in"))}
    with pytest.raises(
        SiteError, match=r"factor 'A2': expected 3 as the size of 's', which is 'r' of 'A' under another"
    ):
        Network((("out",), ("in",)), (), {"A": trainable("r in")}, {"out": 4, "in": 2, "r": 3, "s": 2}, 1.0, nodes)


def test_a_size_above_the_largest_is_rejected():
    site, modes = Site("h.0.q", (LARGEST, LARGEST)), (("out",), ("in",))
    assert sizes(TERA, site.shape, rank=1)["o3"] == LARGEST  # a prime
    for size in (LARGEST + 1, 2**64, 10**400):
        with pytest.raises(SiteError, match=r"^h.0.q: an axis of the weight: expected at most 2,147,483,647, got "):
            Site("h.0.q", (4, size))
        with pytest.raises(SiteError, match=r"^mode 'in': expected at most 2,147,483,647, got "):
            Network(modes, (), {"A": trainable("out in")}, {"out": 4, "in": size}, 1.0)
        with pytest.raises(SiteError, match=r"^size of 'in': expected at most 2,147,483,647, got "):
            LORA.bind([site], rank=1, sizes={"in": size})
        with pytest.raises(SiteError, match=r"^grid: layers: expected at most 2,147,483,647, got "):
            grid(layers=size, kinds={"q": (4, 6)})


# a prime, a power, two with most divisors, and two whose large prime keeps the bound low
@pytest.mark.parametrize("number", [2**31 - 1, 2**30, 2_095_133_040, 1_102_701_600, 1_068_762_240, 1_966_356_000])
@pytest.mark.parametrize("parts", [6, 14, 2000])
def test_the_largest_axes_are_split_quickly(number, parts):
    divisors.cache_clear()
    split_evenly.cache_clear()
    start = time.process_time()
    split = split_evenly(number, parts)
    assert time.process_time() - start < 0.5
    assert (math.prod(split), len(split)) == (number, parts)


def test_a_site_without_axes_or_with_invalid_coordinates_is_rejected():
    with pytest.raises(SiteError, match=r"x: expected a weight of at least one axis, got shape \(\)"):
        Site("x", ())
    for value in (1.0, None, True, (1,)):
        with pytest.raises(SiteError, match="x: expected an integer or a string as coordinate 'layer', got "):
            Site("x", (4, 4), {"layer": value})


def test_a_site_fills_in_its_coordinates():
    assert dict(Site("x", (4, 4)).coordinates) == {"layer": 0, "kind": "x"}
    assert dict(Site("x", [4, 4], {"layer": 3, "task": "a"}).coordinates) == {"layer": 3, "kind": "x", "task": "a"}
    assert Site("x", [4, 4]).shape == (4, 4)


def test_a_grid_is_ordered_by_layer():
    sites = grid(layers=2, kinds={"q": (4, 6), "up": (8, 6)})
    assert [(site.path, site.shape, dict(site.coordinates)) for site in sites] == [
        ("layers.0.q", (4, 6), {"layer": 0, "kind": "q"}),
        ("layers.0.up", (8, 6), {"layer": 0, "kind": "up"}),
        ("layers.1.q", (4, 6), {"layer": 1, "kind": "q"}),
        ("layers.1.up", (8, 6), {"layer": 1, "kind": "up"}),
    ]


@pytest.mark.parametrize("layers", [0, -1, 1.0, "2", True])
def test_an_invalid_number_of_layers_is_rejected(layers):
    with pytest.raises(SiteError, match="grid: layers: expected an integer of at least 1, got "):
        grid(layers=layers, kinds={"q": (4, 6)})
