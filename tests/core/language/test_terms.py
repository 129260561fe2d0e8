"""Terms: how they are read, when their sum starts at 0, which factors train, and what subtracting the start means."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tnadapt import AdapterSpec, Site, SpecError, delta, frozen, init, normal, same, trainable, zeros
from tnadapt._language.terms import Node, Sum, Term, less_start, nodes_of, terms_of, tied_bonds, words_of
from tnadapt.initializers import identity, ones
from tnadapt.sizes import like
from tnadapt.testing import dense, gradients, specs, start_params


@pytest.mark.parametrize(
    ("text", "sign", "names"),
    [
        ("B A", 1, ("B", "A")),
        ("- B A", -1, ("B", "A")),
        ("-B A", -1, ("B", "A")),
        ("+ B A", 1, ("B", "A")),
        ("  -  B   A\t", -1, ("B", "A")),
        ("A", 1, ("A",)),
        ("-", -1, ()),
        ("", 1, ()),
        ("- - A", -1, ("-", "A")),  # which is no name of a factor
        ("A - B", 1, ("A", "-", "B")),
        ("--A", -1, ("-A",)),
    ],
)
def test_the_words_of_a_term(text, sign, names):
    assert words_of(text) == (sign, names)


@pytest.mark.parametrize("text", ["B A", "- B A", "A", "- A B C"])
def test_a_term_is_written_as_it_is_read(text):
    assert str(Term(*words_of(text))) == text


def test_the_terms_have_their_names_in_order():
    assert terms_of(["B A", "- C B"], "ABC") == (Term(1, ("A", "B")), Term(-1, ("B", "C")))
    assert terms_of([], ["B", "A"]) == (Term(1, ("A", "B")),)


def test_a_node_has_its_own_modes_and_only_the_start_of_what_is_trained_is_another_value():
    factors = {
        "A": trainable("r in"),
        "F": frozen("out r"),
        "A0": same("A", at_start=True),
        "A2": same("A", "s in"),
        "A3": same("A", "s in", at_start=True),
        "F0": same("F", at_start=True),
    }
    assert nodes_of(factors) == {
        "A": Node("A", ("r", "in")),
        "F": Node("F", ("out", "r")),
        "A0": Node("A", ("r", "in"), at_start=True),
        "A2": Node("A", ("s", "in")),
        "A3": Node("A", ("s", "in"), at_start=True),
        "F0": Node("F", ("out", "r")),
    }


A, B, Z, F = trainable("r in"), trainable("out r"), trainable("out r", init=zeros()), frozen("r")
A0, B0 = same("A", at_start=True), same("B", at_start=True)
ROTATED = trainable("r s", map="cayley", init=zeros())
CASES = {  # factors, terms -> whether the update starts at 0, and the factors that have a gradient there
    "a product": ({"A": A, "B": B}, [], False, "AB"),
    "a zero": ({"A": A, "B": Z}, [], True, "B"),
    "two zeros": ({"A": replace(A, init=zeros()), "B": Z}, [], True, ""),
    "a frozen zero": ({"A": A, "B": frozen("out r", init=zeros())}, [], True, ""),
    "a zero and what is frozen": ({"A": frozen("r in"), "B": Z, "F": F}, [], True, "B"),
    "a zero twice": ({"A": A, "B": Z, "C": same("B", "out r")}, [], True, ""),
    "a factor twice": ({"A": A, "B": B, "C": same("A")}, [], False, "AB"),
    "a zero in one of two terms": ({"A": A, "B": Z, "C": B}, ["B A", "C A"], False, "ABC"),
    "a zero in each term": ({"A": A, "B": Z, "C": Z}, ["B A", "C A"], True, "BC"),
    "less its start": ({"A": A, "B": B, "A0": A0, "B0": B0}, ["B A", "- B0 A0"], True, "AB"),
    "less its start, in another order": ({"A": A, "B": B, "A0": A0, "B0": B0}, ["A B", "- A0 B0"], True, "AB"),
    "less the start of one": ({"A": A, "B": B, "B0": B0}, ["B A", "- B0 A"], True, "B"),
    "plus its start": ({"A": A, "B": B, "A0": A0, "B0": B0}, ["B A", "B0 A0"], False, "AB"),
    "less itself": ({"A": A, "B": B}, ["B A", "- B A"], True, ""),
    "a product of differences": (
        {"A": A, "B": B, "A0": A0, "B0": B0},
        ["B A", "- B0 A", "- B A0", "B0 A0"],
        True,
        "",
    ),
    "twice and less itself once": ({"A": A, "B": B}, ["B A", "B A", "- B A"], False, "AB"),
    "the gradient of the zero cancels": ({"A": A, "B": Z, "A0": A0}, ["B A", "- B A0"], True, ""),
    "the start of what is frozen": (
        {"A": A, "B": B, "F": F, "G": same("F", at_start=True)},
        ["B A F", "- B A G"],
        True,
        "",
    ),
    "other modes": ({"A": A, "B": B, "C": same("B", "out r")}, ["B A", "- C A"], True, ""),
    "another factor of the same modes": ({"A": A, "B": B, "C": B}, ["B A", "- C A"], False, "ABC"),
    "an identity between": (
        {"A": A, "B": trainable("out s"), "R": ROTATED, "B0": same("B", "out r", at_start=True), "A0": A0},
        ["B R A", "- B0 A0"],
        True,
        "ABR",
    ),
    "an identity by its initializer": (
        {"A": A, "B": trainable("out s"), "R": frozen("r s", init=identity()), "B0": same("B", "out r", at_start=True)},
        ["B R A", "- B0 A"],
        True,
        "B",
    ),
    "a matrix that is no identity": (
        {"A": A, "B": trainable("out s"), "R": trainable("s r"), "B0": same("B", "out r", at_start=True), "A0": A0},
        ["B R A", "- B0 A0"],
        False,
        "ABR",
    ),
}


def sum_of(factors, terms):
    arrays = {name: one for name, one in factors.items() if not hasattr(one, "factor")}
    nodes, outer = nodes_of(factors), {"out", "in"}
    return Sum(terms_of(terms, factors), nodes, arrays, outer, tied_bonds(arrays, nodes, {}, outer))


@pytest.mark.parametrize(("factors", "terms", "is_zero", "moving"), CASES.values(), ids=CASES)
def test_what_a_sum_is_at_its_start_and_which_of_its_factors_move(factors, terms, is_zero, moving):
    update = sum_of(factors, terms)
    assert update.starts_at_zero == is_zero
    assert "".join(sorted(update.moving)) == moving


VALID = {name: case for name, case in CASES.items() if name != "a frozen zero"}  # beside which A could not train


@pytest.mark.parametrize(("factors", "terms", "is_zero", "moving"), VALID.values(), ids=VALID)
def test_numbers_agree_about_the_start_and_the_gradients(factors, terms, is_zero, moving):
    """The same cases by the oracle, in a spec that has another trainable term, which is taken off again."""
    factors = factors | {"Y": trainable("out in"), "Y0": same("Y", at_start=True)}
    first = terms or [" ".join(name for name in factors if name not in ("Y", "Y0"))]
    spec = AdapterSpec(name="own", weight="out in", factors=factors, terms=[*first, "Y", "- Y0"], start="free")
    adapter = spec.bind([Site("w", (5, 5))], rank=3, overparametrized=True)
    params = start_params(adapter)
    assert (abs(dense(adapter, params, adapter.sites[0])).max() < 1e-12) == is_zero
    pull = np.random.default_rng(0).standard_normal((5, 5))
    found = gradients(adapter, params, {"w": pull})
    assert "".join(sorted(name for name, value in found.items() if abs(value).max() > 1e-12 and name != "Y")) == moving


@given(specs(start="free") | specs(start="zero") | specs(start="centered"))
def test_a_factor_of_a_random_spec_moves_if_the_oracle_says_so(spec):
    """Random weights of the host and random starts stand for a generic loss; sizes above 1 for generic sizes."""
    if any(factor.init.amount and factor.init.kind == "constant" for factor in spec.arrays.values()):
        return  # rows of equal numbers are not generic
    sizes = {mode: 2 for axis in spec.axes for mode in axis}
    site = Site("w", tuple(2 ** len(axis) for axis in spec.axes), dict.fromkeys(spec.site_modes, 0) | {"kind": "k"})
    if "kind" in spec.site_modes or "site" in spec.site_modes:
        site = Site("w", site.shape)
    rank = 2 if spec.free_bonds else None
    adapter = spec.bind([site], rank=rank, sizes=sizes, overparametrized=True, seed=5)
    pull = np.random.default_rng(0).standard_normal(site.shape)
    found = gradients(adapter, start_params(adapter), {"w": pull})
    assert {name for name, value in found.items() if abs(value).max() > 1e-9} == {*spec.moving}


def test_subtracting_the_start_mirrors_each_term():
    factors = {"A": A, "B": B, "F": F, "A2": same("A", "s in")}
    nodes, terms = nodes_of(factors), terms_of(["B A F", "- B A2"], factors)
    arrays = {"A": A, "B": B, "F": F}
    after, found = less_start(arrays, nodes, terms)
    assert after == nodes | {
        "A:start": Node("A", ("r", "in"), at_start=True),
        "B:start": Node("B", ("out", "r"), at_start=True),
        "A2:start": Node("A", ("s", "in"), at_start=True),
    }
    assert found == (*terms, Term(-1, ("A:start", "B:start", "F")), Term(1, ("A2:start", "B:start")))


def test_subtracting_the_start_keeps_the_starts_that_are_written():
    factors = {"A": A, "B": B, "A0": A0}
    nodes, terms = nodes_of(factors), terms_of(["B A", "B A0"], factors)
    after, found = less_start({"A": A, "B": B}, nodes, terms)
    assert [name for name in after if name not in nodes] == ["A:start", "B:start"]
    assert found[2:] == (Term(-1, ("A:start", "B:start")), Term(-1, ("A0", "B:start")))


@pytest.mark.parametrize(
    ("factors", "likes", "first", "tied"),
    [
        ({"A": A, "B": B}, {}, ["out", "in"], {}),
        ({"A": A, "B": B}, {"r": "in"}, ["out", "in"], {"r": "in"}),
        ({"A": A, "C": same("A", "s in")}, {}, ["in"], {"s": "r"}),
        ({"A": A, "C": same("A", "s in"), "D": same("A", "t in")}, {}, ["in"], {"s": "r", "t": "r"}),
        ({"C": trainable("q r"), "D": same("C", "r s")}, {}, [], {"r": "q", "s": "q"}),
        ({"A": A, "C": same("A", "s in")}, {"s": "layer"}, ["in", "layer"], {"r": "layer", "s": "layer"}),
        ({"A": A, "C": same("A", "r out")}, {}, ["in", "out"], {"out": "in"}),
        ({"A": A, "C": same("A", "s in")}, {}, ["in", "s"], {"r": "s"}),
        ({"A": trainable("q r"), "C": same("A", "r q")}, {}, [], {"r": "q"}),
    ],
)
def test_a_copy_and_a_rule_tie_bonds_together(factors, likes, first, tied):
    arrays = {name: one for name, one in factors.items() if not hasattr(one, "factor")}
    assert tied_bonds(arrays, nodes_of(factors), likes, first) == tied


@given(st.permutations(["A", "C", "D", "E"]))
def test_the_order_of_factors_does_not_matter_for_what_is_tied(order):
    factors = {"A": trainable("q r"), "C": same("A", "r s"), "D": same("A", "t u"), "E": frozen("u v", init=ones())}
    nodes = nodes_of({name: factors[name] for name in order})
    arrays = {name: factors[name] for name in order if name in "AE"}
    assert tied_bonds(arrays, nodes, {"v": "in"}, ["in"]) == dict.fromkeys("rstu", "q") | {"v": "in"}


def test_normal_with_a_deviation_of_0_is_a_zero():
    assert sum_of({"A": A, "B": replace(Z, init=normal(0))}, []).starts_at_zero


def test_an_identity_that_may_drop_rows_is_not_left_out():
    """The bond s is free: with s smaller than out, I J is no identity."""
    words = {"I": frozen("out s", init=identity()), "J": trainable("s p", init=identity()), "A": frozen("p in")}
    words = {
        "name": "own",
        "weight": "out in",
        "factors": words | {"A2": same("A", "out in")},
        "terms": ["I J A", "- A2"],
    }
    with pytest.raises(SpecError, match="the update does not start at 0"):
        AdapterSpec(**words)
    adapter = AdapterSpec(**words, sizes={"s": like("out")}).bind([Site("w", (6, 8))])
    assert not delta(adapter, init(adapter), "w").any()


RENAMED = {"A": A, "B": B, "A1": same("A", "s in"), "B1": same("B", "out s")}


def test_the_names_of_bonds_do_not_matter_for_a_start_at_0():
    spec = AdapterSpec(
        name="own",
        weight="out in",
        factors={"A": A, "B": B, "A1": same("A", "s in", at_start=True), "B1": same("B", "out s", at_start=True)},
        terms=["B A", "- B1 A1"],
    )
    adapter = spec.bind([Site("w", (6, 8))], rank=2)
    assert spec.moving == ("A", "B")
    assert not delta(adapter, init(adapter), "w").any()


@pytest.mark.parametrize("start", ["zero", "free", "centered"])
def test_the_names_of_bonds_do_not_matter_for_terms_that_cancel(start):
    with pytest.raises(SpecError, match="no factor ever gets a gradient"):
        AdapterSpec(name="own", weight="out in", factors=RENAMED, terms=["B A", "- B1 A1"], start=start)


def test_bonds_that_differ_in_their_places_are_not_taken_for_each_other():
    """B C C A and B C C^T A are not equal."""
    factors = {"A": trainable("t in"), "B": trainable("out r"), "C": trainable("r s"), "D": same("C", "s t")}
    factors |= {"E": same("C", "t s")}
    assert sum_of(factors, ["B C D A", "- B C E A"]).starts_at_zero is False
    assert sum_of(factors, ["B C D A", "- B C E A"]).moving == ("A", "B", "C")
