"""How far a first step moves an update: the formula as text and number, and the scale by which all go equally far."""

import math
from functools import partial

import numpy as np
import pytest

import tnadapt
from tests.table import FAMILIES
from tnadapt import AdapterSpec, SiteError, SpecError, families, frozen, grid, normal, raw, same, trainable, unit, zeros
from tnadapt._language import moves_of
from tnadapt._language.movement import Monomial
from tnadapt.initializers import constant, cyclic, identity, kaiming_uniform, ones, orthogonal, rotary, uniform

WIDE = grid(layers=3, kinds={"q": (32, 24), "v": (16, 24)})


def text(factors, weight="out in", over="", group=0, rank=4, **words):
    """Return what the first steps add to the mean square, as text."""
    spec = AdapterSpec(name="own", weight=weight, over=over, factors=factors, **words)
    adapter = spec.bind(WIDE, rank=rank, overparametrized=True)
    found = adapter.groups[group]
    return " + ".join(str(move.size) for move in moves_of(spec, found.network, partial(adapter.sizes_made_for, found)))


B = {"B": trainable("out r", init=zeros())}


@pytest.mark.parametrize(
    ("factor", "wanted"),
    [
        (frozen("r in", init=normal(0.5)), "r / 4"),
        (frozen("r in", init=uniform(2)), "4 r / 3"),
        (frozen("r in", init=kaiming_uniform("in")), "r / (3 in)"),
        (frozen("r in", init=orthogonal(2)), "4 r / max(r, in)"),
        (frozen("r in", init=constant(0.5)), "r / 4"),
        (frozen("r in", init=identity(3)), "9 r / in"),
        (trainable("r in", init=normal(fan="out in")), "r / (in out)"),
    ],
)
def test_the_mean_square_of_each_initializer(factor, wanted):
    assert text(B | {"A": factor}) == wanted


def test_a_bond_that_only_constants_carry_adds_up_in_step():
    """sum_{p} 1 * 1 is p, whose square is p^2; that of numbers of random sign has the mean p."""
    one = {"U": frozen("r p", init=ones()), "V": frozen("p in", init=ones())}
    assert text(B | one) == "p^2 r"
    assert text(B | one | {"V": frozen("p in")}) == "p r"


def test_an_identity_joins_two_modes():
    """With other factors between them the identity of a square leaves one sum; a rectangular one reads fewer rows."""
    between = {"I": trainable("r p", init=identity()), "A": frozen("p in")}
    assert text(B | between) == "r"
    assert text(B | between, rank={"r": 4, "p": 8}) == "r"  # r / p of its entries are 1, and p are summed


def test_a_factor_twice_in_a_term_is_paired_in_every_way():
    """C C^T has a diagonal that adds up in step: s^2 beside s for the others, and once more for its symmetry."""
    twice = {"C": frozen("r s", init=normal()), "C_t": same("C", "q s"), "A": frozen("q in")}
    assert text(B | twice, rank={"r": 3, "s": 5}) == "r s^2 + q r s + r s"


def test_equal_terms_count_once_with_their_number_squared():
    """Two terms B A and B A move B by twice as much; B A - B A2, with A2 drawn by itself, by the root of 2."""
    other = B | {"A": frozen("r in"), "A2": frozen("r in")}
    assert text(other, terms=["B A", "- B A2"]) == "r + r"
    assert text(B | {"A": frozen("r in"), "A2": same("A")}, terms=["B A", "B A2"]) == "4 r"


def test_a_shared_frozen_factor_is_drawn_at_the_largest_sizes():
    """The group of 16 x 24 reads rows of an array that is made for 32 outputs, so that its fan is 32."""
    factors = {"A": trainable("r in", init=zeros()), "B": frozen("out r", init=normal(fan="out"))}
    spec = AdapterSpec(name="own", weight="out in", factors=factors)
    adapter = spec.bind(WIDE, rank=4)
    sizes = {
        group.name: [move.size.value for move in moves_of(spec, group.network, partial(adapter.sizes_made_for, group))]
        for group in adapter.groups
    }
    assert sizes["0.v"] == sizes["0.q"] == [4 / 32]


def test_a_text_shortens_what_is_above_and_below():
    assert (
        str(Monomial(1 / 3, (("r", 4),), (("in", 24),)) * Monomial(1.0, (("in", 24),), (("out", 8),))) == "r / (3 out)"
    )
    assert str(Monomial(2.0)) == "2"
    assert str(Monomial(1e-7, (("p", 2), ("p", 2)))) == "1e-07 p^2"


@pytest.mark.parametrize("rank", [1, 4, 16])
@pytest.mark.parametrize("width", [24, 96])
def test_unit_of_a_lora_is_rslora_with_the_root_of_three(rank, width):
    """LoRA's A is uniform in +-1 / sqrt(in), so that the scale sqrt(3 / r) makes the output of a step 1."""
    sites = grid(layers=2, kinds={"q": (32, width)})
    for alpha in (1.0, 0.3):
        adapter = families.lora().bind(sites, rank=rank, scale=unit(alpha), overparametrized=True)
        wanted = families.lora(rank_stabilized=True).bind(
            sites, rank=rank, alpha=alpha * math.sqrt(3), overparametrized=True
        )
        assert adapter.networks[0].scale == pytest.approx(wanted.networks[0].scale, rel=1e-15)


GAUGES = {
    "a start that is 10 times as large": ({"A": frozen("r in", init=normal(10))}, 1 / 10),
    "a trained one": ({"A": trainable("r in", init=normal())}, 1),
    "a bond of size 1": ({"A": frozen("r p", init=normal()), "C": frozen("p in", init=ones())}, 1),
}


@pytest.mark.parametrize(("factors", "by"), GAUGES.values(), ids=GAUGES)
def test_what_changes_no_step_changes_no_scale_but_by_its_size(factors, by):
    plain = AdapterSpec(name="a", weight="out in", factors=B | {"A": frozen("r in", init=normal())}, scale=unit())
    other = AdapterSpec(name="b", weight="out in", factors=B | factors, scale=unit())
    rank = {"r": 3} | ({"p": 1} if "C" in factors else {})
    scales = [one.bind(WIDE, rank=r).networks[0].scale for one, r in ((plain, {"r": 3}), (other, rank))]
    assert scales[1] == pytest.approx(by * scales[0], rel=1e-15)


def test_splitting_an_axis_changes_no_scale():
    for weight, modes in (("out in", "r in"), ("out (a b)", "r a b")):
        spec = AdapterSpec(name="own", weight=weight, factors=B | {"A": frozen(modes, init=normal())}, scale=unit())
        assert spec.bind(WIDE, rank=3).networks[0].scale == 1 / math.sqrt(3 * 24)


def test_groups_of_equal_networks_still_share_one():
    adapter = families.lora().bind(grid(layers=40, kinds={"q": (32, 24), "v": (16, 24)}), rank=4, scale=unit())
    assert len({id(network) for network in adapter.networks}) == 2


def test_alpha_multiplies_unit_as_it_multiplies_any_rule():
    sites = grid(layers=1, kinds={"q": (32, 24)})
    one, other = (families.lotr().bind(sites, rank=4, scale=unit(), alpha=alpha) for alpha in (None, 3.0))
    assert other.networks[0].scale == 3.0 * one.networks[0].scale
    assert other.spec.scale == unit(3.0)


def test_a_number_replaces_the_scale_too():
    adapter = families.lotr().bind(WIDE, rank=4, scale=0.5)
    assert adapter.spec.scale == raw(0.5)


def test_unit_is_refused_where_a_start_is_read():
    for name in ("pissa", "hira", "lora_pt"):
        with pytest.raises(
            SpecError, match=r"scale: expected another rule than unit, since '.*' is read from the host"
        ):
            getattr(families, name)().bind(WIDE, rank=2, scale=unit())


def test_unit_is_refused_where_nothing_moves():
    factors = {"A": frozen("r in", init=zeros()), "B": trainable("out r")}
    with pytest.raises(SpecError, match="unit, since no factor of a term has a gradient at the start"):
        AdapterSpec(name="own", weight="out in", factors=factors, scale=unit(), start="free")


def test_unit_of_a_magnitude_is_that_of_what_it_scales():
    plain, scaled = (
        spec.bind(WIDE, rank=4, scale=unit()) for spec in (families.lora(), tnadapt.magnitude(families.lora()))
    )
    assert [one.scale for one in plain.networks] == [one.scale for one in scaled.networks]


@pytest.mark.parametrize("name", FAMILIES)
def test_unit_of_every_family_gives_a_step_of_alpha_or_is_refused_for_what_it_reads(name):
    """Where a start is not read, the step of the adapter has an output of alpha, up to rounding."""
    case = FAMILIES[name]
    bound = case.bind(layers=2, kinds={"q": (16, 16), "v": (16, 24)})
    words = {"rank": bound.rank, "sizes": bound.sizes, "overparametrized": True}
    try:
        adapter = case.spec.bind(bound.sites, scale=unit(0.5), **words)
    except SpecError as error:
        assert "is read from the host's weights" in str(error)  # noqa: PT017  # both are right
        assert bound.reads_weights
        return
    for size in tnadapt.step_size(adapter).values():
        assert size.output / size.coherence == pytest.approx(0.5, rel=1e-14)


def test_patterns_have_the_mean_squares_of_their_entries():
    sites = grid(layers=1, kinds={"q": (8, 8)})
    square = {"C": frozen("r s in", init=cyclic()), "A": frozen("s", init=ones())}
    spec = AdapterSpec(name="own", weight="out in", factors=B | square)
    adapter = spec.bind(sites, rank={"r": 8, "s": 8}, overparametrized=True)
    assert tnadapt.step_size(adapter)["0.q"].update == pytest.approx(math.sqrt(8.0), rel=0.5)
    turned = {"R": frozen("r s in", init=rotary()), "A": frozen("s", init=normal())}
    spec = AdapterSpec(name="own", weight="out in", factors=B | turned)
    assert spec.bind(sites, rank={"r": 4, "s": 8}, overparametrized=True)


def test_many_factors_twice_in_a_term_take_no_longer():
    """Eight reflections and their starts have 3^7 ways to be paired, of which the first is the largest."""
    sites = grid(layers=1, kinds={"q": (16, 16)})
    adapter = families.hra(reflections=8).bind(sites)
    params = tnadapt.init(adapter, {sites[0].path: np.random.default_rng(0).standard_normal((16, 16))})
    (size,) = tnadapt.step_size(adapter, params).values()
    (fewer,) = tnadapt.step_size(families.hra(reflections=2).bind(sites), params).values()
    assert size.update == pytest.approx(2 * fewer.update, rel=0.2)


@pytest.mark.parametrize(
    ("terms", "first", "second"),
    [(["B A", "B C"], 2.0, -2.0), (["B A", "B C", "B D"], 0.1, 0.2)],
)
def test_a_step_that_cancels_by_its_values_has_no_unit(terms, first, second):
    """The values of 0.1 + 0.2 - 0.3 leave rounding alone, which no scale may make a step of."""
    values = {"A": first, "C": second, "D": -0.3}
    factors = {name: frozen("r in", init=constant(value)) for name, value in values.items() if name in " ".join(terms)}
    spec = AdapterSpec(name="own", weight="out in", factors=factors | B, terms=terms, scale=1.0)
    assert spec.bind(WIDE, rank=4)
    with pytest.raises(SiteError, match=r"a first step in group .* that a number can make 1 x unit, got one of 0\."):
        spec.bind(WIDE, rank=4, scale=unit())


@pytest.mark.parametrize("std", [1e-30, 1e30])
def test_a_step_of_any_size_is_a_text_or_has_no_unit(std):
    modes = {"A": "r in", "C": "s r", "D": "t s", "E": "u t", "F": "v u", "G": "w v"}
    factors = {name: frozen(own, init=normal(std)) for name, own in modes.items()}
    factors["B"] = trainable("out w", init=zeros())
    spec = AdapterSpec(name="own", weight="out in", factors=factors, scale=1.0)
    assert text(factors)
    with pytest.raises(SiteError, match="scale: expected a first step"):
        spec.bind(WIDE, rank=2, scale=unit())


def test_a_factor_that_cannot_turn_has_no_unit():
    """A Cayley transform of size 1 is 1, whatever it is of."""
    factors = {"A": frozen("r in", init=normal()), "X": trainable("s r", init=zeros(), map="cayley")}
    factors["B"], factors["B2"] = frozen("out s", init=normal()), same("B", "out r")
    spec = AdapterSpec(name="own", weight="out in", factors=factors, terms=["B X A", "- B2 A"], scale=unit())
    assert spec.bind(WIDE, rank=2)
    with pytest.raises(SiteError, match="scale: expected a first step"):
        spec.bind(WIDE, rank=1)


@pytest.mark.parametrize("alpha", [1e30, 1e-30])
def test_a_scale_that_no_file_would_hold_is_refused(alpha):
    """`from_json` takes numbers of 1e-30 to 1e30: a scale outside would be lost with what was trained under it."""
    spec = AdapterSpec(name="own", weight="out in", factors={"A": frozen("r in", init=normal(0.1))} | B)
    for own in (alpha, -alpha):
        with pytest.raises(SiteError, match="scale: expected a first step"):
            spec.bind(WIDE, rank=4 if alpha > 1 else 400, scale=unit(own), overparametrized=True)
