"""Rules for sizes: what each gives at bind, which of them a caller may overrule, and how they are written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.table import required_of
from tnadapt import AdapterSpec, Site, SiteError, SpecError, frozen, grid, same, trainable, zeros
from tnadapt.initializers import host
from tnadapt.sizes import SizeRule, at_most, like, required

SITE = Site("w", (12, 8))


def own(**words):
    factors = {"A": trainable("r q in"), "B": trainable("out r q", init=zeros())}
    return AdapterSpec(**({"name": "own", "weight": "out in", "factors": factors} | words))


def split(**words):
    factors = {"A": trainable("r in"), "B": trainable("head dim r", init=zeros())}
    return AdapterSpec(**({"name": "own", "weight": "(head dim) in", "factors": factors} | words))


def sizes(spec, site=SITE, **words):
    return dict(spec.bind([site], **words, overparametrized=True).networks[0].sizes)


@pytest.mark.parametrize(
    ("rule", "text"),
    [(like("layer"), "like layer"), (at_most("in"), "at most in"), (required(), "required")],
)
def test_a_rule_prints_itself(rule, text):
    assert str(rule) == text
    assert rule == SizeRule(rule.kind, rule.mode)


def test_a_copy_that_joins_two_modes_of_a_weight_leaves_both_to_the_caller():
    """Their sizes must be equal, but they follow from the weight, as those of all its modes."""
    factors = {"A": trainable("o1 p i2", init=zeros()), "A2": same("A", "o1 o2 i2"), "b": frozen("i1")}
    factors |= {"D": frozen("p o2 i1")}
    spec = AdapterSpec(name="own", weight="(o1 o2) (i1 i2)", factors=factors, terms=["A D", "A2 b"])
    assert (dict(spec.tied), spec.free_bonds) == ({"p": "o2"}, ())
    assert sizes(spec, sizes={"o2": 3, "i2": 2})["p"] == 3
    factors = {"A": trainable("o1 i2 o2", init=zeros()), "A2": same("A", "o1 o2 i2")}
    square = AdapterSpec(name="own", weight="(o1 o2) i2", factors=factors, terms=["A2"])
    assert sizes(square, sizes={"o2": 8, "o1": 3}, site=Site("w", (24, 8)))["o2"] == 8
    with pytest.raises(SiteError, match=r"factor 'A2': expected .* as the size of 'o2', which is 'i2' of 'A'"):
        sizes(square, sizes={"o2": 4})


def test_a_bond_like_a_mode_has_its_size_and_is_no_rank():
    spec = own(sizes={"q": like("in")})
    assert (spec.tied, spec.free_bonds, spec.bonds) == ({"q": "in"}, ("r",), ("r", "q"))
    assert sizes(spec, rank=3)["q"] == 8
    assert sizes(spec, Site("w", (4, 5)), rank=3)["q"] == 5
    for words in ({"rank": {"r": 3, "q": 8}}, {"rank": 3, "sizes": {"q": 8}}):
        with pytest.raises(SiteError, match=r"rank: expected bonds of own, got 'q'\.\nIts bonds are r\."):
            sizes(spec, **words)


@pytest.mark.parametrize(("over", "expected"), [("layer", 3), ("kind", 2), ("site", 6)])
def test_a_bond_like_a_site_mode_has_the_number_of_its_values(over, expected):
    adapter = own(over=over, sizes={"q": like(over)}).bind(grid(layers=3, kinds={"a": (12, 8), "b": (12, 8)}), rank=2)
    assert {network.sizes["q"] for network in adapter.networks} == {expected}


def test_a_bond_like_a_mode_of_a_split_axis_has_its_size():
    spec = split(sizes={"r": like("head"), "head": required()})
    assert sizes(spec, sizes={"head": 3}) == {"head": 3, "dim": 4, "in": 8, "r": 3}


@given(rank=st.integers(1, 20))
def test_a_limited_rank_is_the_smaller_of_both(rank):
    spec = own(sizes={"r": at_most("in")})
    assert sizes(spec, rank=rank)["r"] == min(rank, 8)
    assert sizes(spec, rank={"r": rank, "q": 20}) | {"q": 0} == sizes(spec, rank={"r": min(rank, 8), "q": 20}) | {
        "q": 0
    }
    assert sizes(spec, rank={"r": rank, "q": 20})["q"] == 20  # no other bond is limited


def test_a_size_that_is_asked_for_is_not_limited():
    spec = own(sizes={"r": at_most("in")})
    assert sizes(spec, rank=3, sizes={"r": 20})["r"] == 20
    assert sizes(spec, sizes={"r": 20, "q": 2})["r"] == 20


def test_the_limit_of_each_weight_is_its_own():
    sites = grid(layers=1, kinds={"a": (2, 8), "b": (12, 8)})
    adapter = own(sizes={"r": at_most("out")}).bind(sites, rank=5, overparametrized=True)
    assert [network.sizes["r"] for network in adapter.networks] == [2, 5]


def test_a_required_size_must_be_given():
    spec = split(sizes={"head": required()})
    assert required_of(spec) == ["head"]
    with pytest.raises(SiteError, match=r"w: expected a size for 'head', since an even split of 12 would be wrong"):
        sizes(spec, rank=2)
    assert sizes(spec, rank=2, sizes={"head": 3})["dim"] == 4
    assert sizes(spec, rank=2, sizes={"dim": 6})["head"] == 2  # it follows from the other
    assert sizes(split(), rank=2)["head"] == 3  # without the rule the split is even


def test_a_required_mode_that_is_a_whole_axis_has_its_length():
    assert sizes(own(sizes={"in": required()}), rank=2)["in"] == 8


@pytest.mark.parametrize("rank", [3, {"q": 3}])
def test_a_fixed_bond_is_no_rank_but_may_be_overruled(rank):
    spec = own(sizes={"r": 5})
    assert (spec.free_bonds, spec.bonds, dict(spec.tied)) == (("q",), ("r", "q"), {})
    assert (sizes(spec, rank=rank)["r"], sizes(spec, rank=rank)["q"]) == (5, 3)
    assert sizes(spec, rank=rank, sizes={"r": 2})["r"] == 2
    assert sizes(spec, rank={"r": 4, "q": 3})["r"] == 4


def test_all_bonds_may_be_fixed():
    assert sizes(own(sizes={"r": 5, "q": 2}))["r"] == 5
    with pytest.raises(SiteError, match=r"rank: expected no rank, since no bond of own takes one, got 7"):
        sizes(own(sizes={"r": 5, "q": 2}), rank=7)


def test_a_fixed_mode_of_the_weight_may_be_overruled():
    spec = split(sizes={"head": 2})
    assert (sizes(spec, rank=2)["head"], sizes(spec, rank=2)["dim"]) == (2, 6)
    assert sizes(spec, rank=2, sizes={"head": 4})["dim"] == 3
    with pytest.raises(SiteError, match=r"whose product is 9, got head=2, which does not divide 9"):
        sizes(spec, Site("w", (9, 8)), rank=2)


def test_an_overruled_size_is_that_of_what_is_like_it():
    spec = split(sizes={"head": 2, "r": like("head")})
    assert (sizes(spec)["r"], sizes(spec, sizes={"head": 6})["r"]) == (2, 6)


def copied(**words):
    factors = {
        "A": trainable("s in"),
        "B": trainable("out r", init=zeros()),
        "C": trainable("r q"),
        "Ct": same("C", "s q"),
    }
    return AdapterSpec(**({"name": "own", "weight": "out in", "factors": factors} | words))


@pytest.mark.parametrize(
    ("rules", "rank", "expected"),
    [
        ({}, 3, {"r": 3, "s": 3, "q": 3}),
        ({}, {"r": 3, "q": 2}, {"r": 3, "s": 3, "q": 2}),
        ({"r": at_most("in")}, {"r": 30, "q": 2}, {"r": 8, "s": 8, "q": 2}),
        ({"r": 5}, {"q": 2}, {"r": 5, "s": 5, "q": 2}),
        ({"r": like("in")}, 2, {"r": 8, "s": 8, "q": 2}),
        ({"s": like("in")}, 2, {"r": 8, "s": 8, "q": 2}),
        ({"s": 4}, 2, {"r": 4, "s": 4, "q": 2}),
        ({"s": at_most("in")}, 30, {"r": 8, "s": 8, "q": 30}),
    ],
)
def test_the_second_name_of_a_bond_has_the_size_of_the_first(rules, rank, expected):
    found = sizes(copied(sizes=rules), rank=rank)
    assert {mode: found[mode] for mode in "rsq"} == expected


@pytest.mark.parametrize("words", [{"rank": {"r": 2, "s": 2, "q": 2}}, {"rank": 2, "sizes": {"s": 2}}])
def test_the_second_name_of_a_bond_has_no_size_of_its_own(words):
    with pytest.raises(SiteError, match=r"rank: expected bonds of own, got 's'"):
        sizes(copied(), **words)


def test_a_size_given_for_a_bond_holds_for_its_second_name():
    found = sizes(copied(), rank=2, sizes={"r": 5})
    assert (found["r"], found["s"], found["q"]) == (5, 5, 2)


def test_an_axis_under_another_name_must_have_its_size():
    """A is symmetric in out and in, so that the weight must be square."""
    factors = {"A": trainable("out in", init=zeros()), "B": frozen("out in"), "At": same("B", "in out")}
    spec = AdapterSpec(name="own", weight="out in", factors=factors)
    assert sizes(spec, Site("w", (6, 6))) == {"out": 6, "in": 6}
    with pytest.raises(
        SiteError, match=r"factor 'At': expected (12|8) as the size of '(in|out)', which is '(out|in)' of 'B'"
    ):
        sizes(spec)


@pytest.mark.parametrize(
    ("rules", "wanted"),
    [
        ({"r": like("in"), "s": like("out")}, "12 as the size of 's', got 8|8 as the size of 'r', got 12"),
        ({"r": 2, "s": 3}, "3 as the size of 's', got 2, the size of 'r'"),
        ({"r": 2, "s": like("in")}, "2 as the size of 'r', got 8, the size of 'in'"),
        ({"r": at_most("in"), "s": like("out")}, "8 as the size of 'r', got 12, the size of 'out'"),
    ],
)
def test_rules_for_two_names_of_a_bond_must_agree(rules, wanted):
    with pytest.raises(SiteError, match=f"own: expected ({wanted})"):
        sizes(copied(sizes=rules), rank=2)


def test_rules_for_two_names_of_a_bond_may_agree():
    assert sizes(copied(sizes={"r": like("in"), "s": like("out")}), Site("w", (8, 8)), rank=2)["r"] == 8
    assert sizes(copied(sizes={"r": 2, "s": 2}), rank=2)["s"] == 2
    assert sizes(copied(sizes={"r": 2, "s": 2}), rank=2, sizes={"r": 5})["s"] == 5


@pytest.mark.parametrize("rules", [{"s": at_most("in")}, {"r": at_most("out"), "s": at_most("in")}])
def test_a_limit_for_one_name_of_a_bond_limits_the_others(rules):
    found = sizes(copied(sizes=rules), rank=30)
    assert found["r"] == found["s"] == 8


@pytest.mark.parametrize("rules", [{"r": 30, "s": at_most("in")}, {"s": 30, "r": at_most("in")}], ids=str)
def test_a_limit_holds_for_a_number_under_another_name_too(rules):
    spec = copied(sizes=rules)
    assert spec.free_bonds == ("q",)
    for rank in (2, 30, {"q": 3}):
        assert {bond: sizes(spec, rank=rank)[bond] for bond in "rs"} == {"r": 8, "s": 8}
    assert sizes(spec, Site("w", (12, 40)), rank=2)["s"] == 30
    assert sizes(spec, rank=2, sizes={"r": 20})["s"] == 20  # what a caller passes is used unchanged


def test_a_number_for_the_second_name_of_a_bond_is_its_size():
    for rank in (3, {"q": 3}):
        found = sizes(copied(sizes={"s": 5}), rank=rank)
        assert (found["r"], found["s"], found["q"]) == (5, 5, 3)
    name = next(bond for bond in "rs" if bond not in copied(sizes={"s": 5}).tied)
    assert sizes(copied(sizes={"s": 5}), rank=3, sizes={name: 4})["s"] == 4


@pytest.mark.parametrize("rule", [like, at_most])
def test_a_rule_without_its_mode_is_told(rule):
    with pytest.raises(SpecError, match=rf"^{rule.__name__}: expected .*'bond'|^{rule.__name__}: .*got 'bond'"):
        rule(bond="in")
    with pytest.raises(SpecError, match=rf"^{rule.__name__}: expected the name of a mode, got 4"):
        rule(4)


def test_the_length_of_the_bond_of_an_svd_cannot_be_set():
    factors = {"U": frozen("out k", init=host("left")), "V": frozen("k in", init=host("right"))}
    factors |= {"g": trainable("k", init=zeros())}
    for rule in (like("in"), at_most("in"), 3):
        with pytest.raises(SpecError, match=r"sizes: expected no rule for 'k', the bond of the host's SVD"):
            own(factors=factors, sizes={"k": rule})
    for words in ({"sizes": {"k": 3}}, {"rank": {"k": 3}}):
        with pytest.raises(SiteError, match=r"rank: expected bonds of own, got 'k'"):
            sizes(own(factors=factors), **words)


def test_the_bond_of_an_svd_may_have_the_size_of_an_axis_where_that_is_the_shorter():
    factors = {"U": frozen("out k", init=host("left")), "C": trainable("k in", init=zeros())}
    factors |= {"D": frozen("k l"), "E": same("D", "out l")}
    spec = own(factors=factors, terms=["U C D E"])
    assert sizes(spec, Site("w", (6, 8)), rank=2)["k"] == 6
    with pytest.raises(SiteError, match=r"expected 8 as the size of 'out', which is 'k' of 'D'"):
        sizes(spec, rank=2)
