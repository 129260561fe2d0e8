"""Growing a bond: no update changes, no new slice is dead, and what cannot grow is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.policies.changes import SITES, chain, distance, gradients_of, served, size, updates
from tests.thorough import each_kind
from tnadapt import AdapterSpec, SiteError, families, frozen, grid, init, load, over_rank, save, trainable, unit, zeros
from tnadapt.initializers import cyclic, identity
from tnadapt.policies import bonds, cut, grow
from tnadapt.policies._bonds import every_bond
from tnadapt.policies._grow import zero_factors
from tnadapt.sizes import at_most
from tnadapt.testing import adapters, random_params, start_params

EXACT = 1e-12


def expect_same_updates(adapter, params, name, by):
    change = grow(adapter, params, name, by)
    before = updates(adapter, params)
    found = distance(before, updates(change.adapter, change.params)) / size(adapter, params)
    assert found <= EXACT, (name, found)
    return change


def expect_life(adapter, change, name):
    """Some trained factor has a gradient in each new slice, wherever a generic loss has one in an old slice."""
    gradients = gradients_of(change.adapter, change.params)
    bond = every_bond(adapter)[name]
    old, new = min(bond.sizes), max(every_bond(change.adapter)[name].sizes)
    alive = np.zeros(new, dtype=bool)
    for group in bond.groups:
        for factor, one in adapter.spec.arrays.items():
            for axis in bond.axes(one) if one.trainable else ():
                entry = np.moveaxis(gradients[change.adapter.slot_name(group, factor)], axis, 0)
                alive[: len(entry)] |= entry.reshape(len(entry), -1).any(axis=1)
    assert alive[old:].all() or not alive[:old].any(), name


@each_kind
def test_no_update_of_a_family_changes(adapter, moved):
    params = moved(adapter)
    for name in served(adapter, "grow"):
        expect_life(adapter, expect_same_updates(adapter, params, name, 1), name)


@each_kind
def test_at_the_start_no_update_of_a_family_changes(adapter):
    params = start_params(adapter)
    for name in served(adapter, "grow"):
        expect_same_updates(adapter, params, name, 1)


@given(adapter=adapters(), seed=st.integers(0, 2**16), by=st.integers(1, 3))
def test_no_update_of_a_random_spec_changes(adapter, seed, by):
    params = random_params(adapter, np.random.default_rng(seed))
    for name in served(adapter, "grow"):
        expect_life(adapter, expect_same_updates(adapter, params, name, by), name)


@given(adapter=adapters(start="centered"), seed=st.integers(0, 2**16))
def test_no_update_of_a_random_centered_spec_changes(adapter, seed):
    params = random_params(adapter, np.random.default_rng(seed))
    for name in served(adapter, "grow"):
        expect_same_updates(adapter, params, name, 1)


def test_without_the_number_that_makes_up_for_the_scale_the_update_would_change():
    adapter = chain().bind(SITES, rank=2)
    params = random_params(adapter, np.random.default_rng(0))
    change = grow(adapter, params, "q", 4)
    assert change.factors == {"C": pytest.approx(3.0)}
    planted = change.params | {"C": change.params["C"] / change.factors["C"]}
    assert distance(updates(adapter, params), updates(change.adapter, planted)) > 0.1


def test_a_slice_that_is_zero_in_two_factors_would_be_dead():
    adapter = chain().bind(SITES, rank=2)
    params = random_params(adapter, np.random.default_rng(0))
    change = grow(adapter, params, "q", 1)
    dead = change.params["B"].copy()
    dead[..., 2:] = 0.0
    with pytest.raises(AssertionError, match=r"^q\n"):
        expect_life(adapter, change.__class__(**(vars(change) | {"params": change.params | {"B": dead}})), "q")


def test_the_factor_that_starts_at_zero_gets_the_zeros():
    adapter = families.lora().bind(SITES, rank=2)
    change = grow(adapter, random_params(adapter, np.random.default_rng(0)), "0.q.r", 2)
    assert not change.params["0.q.B"][:, 2:].any()
    assert change.params["0.q.A"][2:].all()
    assert change.adapter.sizes == {"0.q.r": 4}
    assert change.params["0.k.B"].shape == (5, 2)


def test_all_groups_grow_to_one_size_and_back():
    adapter = families.lora().bind(SITES, rank=2)
    change = grow(adapter, random_params(adapter, np.random.default_rng(0)), "r", 2)
    assert change.adapter.sizes == {"r": 4}
    one = cut(change.adapter, change.params, "1.q.r", 3)
    assert one.adapter.sizes == {"r": 4, "1.q.r": 3}
    assert grow(one.adapter, one.params, "1.q.r", 1).adapter.sizes == {"r": 4}


def test_new_values_depend_on_the_seed_alone():
    adapter = families.lora().bind(SITES, rank=2)
    params = random_params(adapter, np.random.default_rng(0))
    one, two, other = (grow(adapter, params, "r", 2, seed=seed).params["0.q.A"] for seed in (7, 7, 8))
    np.testing.assert_array_equal(one, two)
    assert (one[2:] != other[2:]).all()
    np.testing.assert_array_equal(one[:2], other[:2])


def test_frozen_factors_are_drawn_on_and_the_file_gives_them_back(tmp_path):
    adapter = families.vera().bind(SITES, rank=2)
    params = random_params(adapter, np.random.default_rng(0))
    change = grow(adapter, params, "r", 3)
    np.testing.assert_array_equal(
        change.params["A"], init(change.adapter)["A"]
    )  # of rows, the seed gives the same first
    np.testing.assert_array_equal(change.params["B"][:, :2], params["B"])
    assert (change.params["B"] != init(change.adapter)["B"]).any()
    save(change.adapter, change.params, tmp_path / "a.safetensors")
    adapter, read = load(tmp_path / "a.safetensors")
    assert adapter == change.adapter
    for name, value in change.params.items():
        np.testing.assert_array_equal(read[name], value)


def test_starts_that_are_stored_grow_with_their_factors(tmp_path):
    random = np.random.default_rng(0)
    adapter = families.pissa().bind(SITES, rank=2)
    params = init(adapter, {site.path: random.standard_normal(site.shape) for site in SITES})
    params |= {name: value + 0.1 for name, value in params.items() if not name.endswith(":start")}
    change = grow(adapter, params, "r", 2)
    assert distance(updates(adapter, params), updates(change.adapter, change.params)) < EXACT
    save(change.adapter, change.params, tmp_path / "a.safetensors")
    np.testing.assert_array_equal(load(tmp_path / "a.safetensors")[1]["0.q.A:start"], change.params["0.q.A:start"])


def test_a_factor_times_its_transpose_grows_in_both_names():
    adapter = families.mtlora(variant="icfm").bind(SITES, rank={"p": 2, "s": 3})
    params = random_params(adapter, np.random.default_rng(0))
    change = grow(adapter, params, "p", 2)
    group = change.adapter.groups[0]
    assert group.network.sizes["q"] == group.network.sizes["p"] == 4
    assert distance(updates(adapter, params), updates(change.adapter, change.params)) < 1e-11


def own(factors, scale=1.0, **more):
    more = {"start": "free", "over": ""} | more
    return AdapterSpec(name="own", weight="out in", factors=factors, scale=scale, **more)


REFUSED = {
    "no trained factor": (
        own({"A": frozen("out p"), "C": frozen("p q"), "B": trainable("q in", init=zeros())}),
        "p",
        r"got '.*p': no trained factor carries it",
    ),
    "a limit": (
        own({"A": trainable("out p"), "B": trainable("p in")}, sizes={"p": at_most("in")}),
        "p",
        r"its rule allows at most 4",
    ),
    "a pattern": (
        own({"A": trainable("p out"), "C": frozen("p s t", init=cyclic()), "B": trainable("s t in")}),
        "p",
        r"the cyclic pattern 'C' carries it",
    ),
    "frozen zeros": (
        own({"A": trainable("out p"), "C": frozen("p q r", init=identity()), "B": trainable("q r in")}),
        "p",
        r"the frozen factor 'C' is 0 in new slices",
    ),
    "another name": (families.mtlora(variant="icfm"), "q", r"'q', which has the size of 'p'"),
    "a start": (
        own({"A": trainable("out p"), "B": trainable("p in")}, start="centered"),
        "p",
        r"the update uses starting values of '.*A', which the seed gives for one size only",
    ),
    "a scale": (
        own(
            {"A": trainable("out p"), "B": trainable("p in"), "C": frozen("out in")},
            scale=over_rank("p"),
            terms=["A B", "C"],
        ),
        "p",
        r"the scale 1 / p moves with it",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bond_that_cannot_grow_is_refused_with_the_reason(case):
    spec, bond, reason = REFUSED[case]
    rank = {"p": 4, "s": 2} if case == "another name" else {one: 4 if one == "p" else 2 for one in spec.free_bonds}
    adapter = spec.bind(grid(layers=2, kinds={"q": (5, 4)}), rank=rank, overparametrized=True)
    with pytest.raises(SiteError, match=reason):
        grow(adapter, init(adapter), bond, 1)


@pytest.mark.parametrize(("bond", "by", "match"), [
    ("s", 1, r"grow: expected a bond of lora, got 's'.\n.*r"),
    ("0.z.r", 1, r"grow: expected a bond of lora, got '0.z.r'.\nThe nearest names are"),
    (3, 1, r"grow: expected the name of a bond, got 3"),
    ("r", 0, r"grow: by: expected an integer of at least 1, got 0"),
    ("r", True, r"grow: by: expected an integer of at least 1, got True"),
])  # fmt: skip
def test_wrong_arguments(bond, by, match):
    adapter = families.lora().bind(SITES, rank=2)
    with pytest.raises(SiteError, match=match):
        grow(adapter, init(adapter), bond, by)


@pytest.mark.parametrize("seed", [-1, 0.5, True, "0"])
def test_a_seed_that_is_none(seed):
    adapter = families.lora().bind(SITES, rank=2)
    with pytest.raises(SiteError, match=r"grow: expected an integer of at least 0 as seed, got"):
        grow(adapter, init(adapter), "r", 1, seed=seed)


def test_a_bond_in_common_has_no_size_of_its_own():
    adapter = families.vera().bind(SITES, rank=2)
    with pytest.raises(SiteError, match=r"got '0.q.r', which all groups have in common.*\n.*'r'"):
        grow(adapter, init(adapter), "0.q.r", 1)
    assert bonds(adapter, "grow") == {"r": "ok"}


def test_one_factor_gets_zeros_if_one_is_enough():
    spec = families.lotr()
    assert zero_factors(spec, frozenset("p")) == ("G",)
    split = own(
        {"A": trainable("out p"), "B": trainable("p in"), "C": trainable("out p"), "D": trainable("p in")},
        terms=["A B", "C D"],
    )
    assert zero_factors(split, frozenset("p")) == ("A", "C")


def test_nothing_given_is_changed():
    adapter = chain().bind(SITES, rank=2)
    params = random_params(adapter, np.random.default_rng(0))
    kept = {name: value.copy() for name, value in params.items()}
    grow(adapter, params, "q", 2)
    for name, value in params.items():
        np.testing.assert_array_equal(value, kept[name])


WIDTHS = grid(layers=2, kinds={"q": (8, 4), "k": (4, 12)})


def test_scales_of_groups_that_differ_by_rounding_move_together():
    """Under `unit` a ratio is a quotient of two roots, which is another in its last bit for another width."""
    adapter = families.sharelora(share="A B").bind(WIDTHS, rank=3, scale=unit(), overparametrized=True)
    params = random_params(adapter, np.random.default_rng(0))
    for by in (1, 2, 3):
        expect_same_updates(adapter, params, "r", by)


def test_a_bond_is_not_told_to_grow_if_scales_would_move_apart():
    """All groups share every factor of a term, and none can make up for ratios that differ."""
    adapter = families.bslora().bind(WIDTHS, rank=3, scale=unit(), overparametrized=True)
    assert "moves with it, and no trained factor can make up for that" in bonds(adapter, "grow")["r"]
    with pytest.raises(SiteError, match=r"grow: expected a bond that can change, got 'r': the scale"):
        grow(adapter, init(adapter), "r", 1)
