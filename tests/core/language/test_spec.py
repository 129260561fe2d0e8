"""Specs, adapters and their parts are values: immutable, hashable, equal by value, and easy to copy."""

import copy
import dataclasses
import pickle
import time

import numpy as np
import pytest

from tnadapt import (
    Adapter,
    AdapterSpec,
    Site,
    SiteError,
    SpecError,
    TnadaptError,
    count,
    delta,
    families,
    from_json,
    frozen,
    generic_rank,
    grid,
    normal,
    over_rank,
    plan,
    rank_bound,
    raw,
    same,
    to_json,
    trainable,
    zeros,
)
from tnadapt.binding import Network
from tnadapt.initializers import identity
from tnadapt.sizes import at_most, like
from tnadapt.testing import random_params

A, G, B = trainable("out p"), trainable("site p q", init=zeros()), trainable("in q")
SITES = grid(layers=2, kinds={"q": (4, 6), "up": (8, 6)})


def own(**changes):
    factors = {"A": A, "G": G, "B": B}
    table = {"name": "own", "weight": "out in", "over": "site", "factors": factors, "scale": over_rank("p")}
    return AdapterSpec(**(table | changes))


def values():
    """Return one value of every public type."""
    spec = families.tera()
    adapter = spec.bind(SITES, rank=dict.fromkeys(spec.bonds, 2), sizes={"o1": 1}, alpha=3.0, seed=7)
    network = adapter.networks[0]
    parts = [spec.factors["G"], spec.factors["G"].init, spec.scale, SITES[0], adapter.groups[0], adapter.slots["G"]]
    made, counted = plan(network), count(adapter)
    parts += [same("A", "out q"), like("in"), *network.nodes.values(), *network.terms]
    return [own(), spec, adapter, network, made, made.steps[0], counted, counted.rows[0], rank_bound(adapter), *parts]


@pytest.mark.parametrize("value", values(), ids=lambda value: type(value).__name__)
@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, dataclasses.replace, lambda value: pickle.loads(pickle.dumps(value))],
    ids=["copy", "deepcopy", "replace", "pickle"],
)
def test_a_copy_is_equal(value, copied):
    again = copied(value)
    assert again == value
    assert hash(again) == hash(value)
    assert str(again) == str(value)


@pytest.mark.parametrize("value", values(), ids=lambda value: type(value).__name__)
def test_no_field_can_be_set(value):
    for field in dataclasses.fields(value):
        with pytest.raises(dataclasses.FrozenInstanceError, match=f"cannot assign to field '{field.name}'"):
            setattr(value, field.name, None)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (own(), "factors"),
        (own(), "sizes"),
        (own(), "arrays"),
        (own(), "nodes"),
        (own(start="centered"), "nodes"),
        (own(sizes={"p": like("out")}), "tied"),
        (SITES[0], "coordinates"),
        (own().bind(SITES, rank={"p": 1, "q": 2}), "rank"),
        (own().bind(SITES, rank=1), "sizes"),
        (own().bind(SITES, rank=1).networks[0], "sizes"),
        (own().bind(SITES, rank=1).networks[0], "factors"),
        (own().bind(SITES, rank=1).networks[0], "nodes"),
        (own().bind(SITES, rank=1).groups[0], "values"),
    ],
)
def test_no_mapping_can_be_changed(owner, name):
    mapping = getattr(owner, name)
    with pytest.raises(TypeError, match="does not support item assignment"):
        mapping["A"] = 1
    with pytest.raises(AttributeError, match="attribute"):
        mapping.extra = 1


def test_changing_an_argument_later_has_no_effect():
    factors, rank, sizes, coordinates = {"A": A, "G": G, "B": B}, {"p": 1, "q": 2}, {"in": 6}, {"layer": 1}
    spec, site = own(factors=factors), Site("x", (4, 6), coordinates)
    adapter = spec.bind([site], rank=rank, sizes=sizes)
    before = hash(adapter), str(adapter)
    for mapping in (factors, rank, sizes, coordinates):
        mapping.clear()
    assert (hash(adapter), str(adapter)) == before
    assert spec == own()


def test_the_order_of_factors_does_not_matter():
    other = own(factors={"B": B, "A": A, "G": G})
    assert other == own()
    assert hash(other) == hash(own())
    assert {own(): "found"}[other] == "found"
    assert other.bind(SITES, rank=2) == own().bind(SITES, rank=2)
    assert len({*other.bind(SITES, rank=2).networks, *own().bind(SITES, rank=2).networks}) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"over": "site layer"},
        {"scale": over_rank("q")},
        {"scale": over_rank("p", alpha=2.0)},
        {"start": "centered"},
        {"start": "free"},
        {"sizes": {"p": at_most("out")}},
        {"sizes": {"p": like("out")}},
        {"sizes": {"p": 3}},
        {"terms": ["A G B", "A0 G B"], "factors": {"A": A, "G": G, "B": B, "A0": same("A", at_start=True)}},
        {"terms": ["- A G B"]},
        {"terms": ["A G B", "A G B2"], "factors": {"A": A, "G": G, "B": B, "B2": B}},
        {"factors": {"A": A, "G": G, "B": B, "A2": same("A")}},
        {"factors": {"A": trainable("out p", shared=True), "G": G, "B": B}},
        {"weight": "out in", "factors": {"A": A, "G": G, "C": B}},
        {"factors": {"A": frozen("out p"), "G": G, "B": B}},
        {"factors": {"A": trainable("p out"), "G": G, "B": B}},
        {"factors": {"A": trainable("out p", init=normal(2)), "G": G, "B": B}},
    ],
)
def test_every_field_matters_for_equality(changes):
    assert own(**changes) != own()


@pytest.mark.parametrize(
    "words", [{"rank": 2}, {"rank": 1, "seed": 1}, {"rank": 1, "alpha": 2.0}, {"rank": 1, "sizes": {"in": 6}}]
)
def test_every_argument_of_bind_matters_for_equality(words):
    assert own().bind(SITES, **words) != own().bind(SITES, rank=1)


def test_replace_checks_again():
    assert dataclasses.replace(own(), scale=raw()).scale == raw()
    with pytest.raises(SpecError, match="bond 'q': in one factor only"):
        dataclasses.replace(own(), factors={"A": A, "G": G, "B": trainable("in")})
    again = dataclasses.replace(own().bind(SITES, rank=2, seed=3), rank=5)
    assert again == own().bind(SITES, rank=5, seed=3, overparametrized=True)
    assert {network.sizes["p"] for network in again.networks} == {5}


def test_bind_leaves_the_spec_as_it_was():
    spec = own()
    adapter = spec.bind(SITES, rank=2, alpha=9.0)
    assert adapter.spec == own(scale=over_rank("p", alpha=9.0))
    assert spec == own()


@pytest.mark.parametrize("alpha", [np.float32(9), np.float64(9), np.int64(9)])
def test_bind_takes_an_alpha_of_numpy(alpha):
    adapter = own().bind(SITES, rank=2, alpha=alpha)
    assert adapter == own().bind(SITES, rank=2, alpha=9)
    assert from_json(to_json(adapter)) == adapter


@pytest.mark.parametrize("alpha", [float("nan"), "16", True, np.bool_(1)])
def test_bind_rejects_an_alpha_that_is_not_a_number(alpha):
    with pytest.raises(SpecError, match="scale: expected a finite number as alpha"):
        own().bind(SITES, rank=2, alpha=alpha)


def test_groups_of_equal_sizes_have_one_network():
    networks = families.lora().bind(SITES, rank=2).networks
    assert len(networks) == 4
    assert len(set(networks)) == 2
    assert all(isinstance(network, Network) for network in networks)


def positional_calls():
    """Return calls that pass keyword-only arguments by position."""
    spec = own()
    adapter = spec.bind(SITES, rank=2)
    network = adapter.networks[0]
    return {
        "AdapterSpec": lambda: AdapterSpec("own", "out in", "site", {"A": A, "G": G, "B": B}, raw()),
        "Adapter": lambda: Adapter(spec, SITES, 2, {}, 0),
        "bind": lambda: spec.bind(SITES, 2),
        "formula": lambda: spec.formula(False),
        "grid": lambda: grid(2, {"q": (4, 6)}),
        "plan": lambda: plan(network, "apply", 16),
        "rank_bound": lambda: rank_bound(adapter, None, ("out",)),
        "generic_rank": lambda: generic_rank(adapter, None, ("out",)),
    }


@pytest.mark.parametrize("name", positional_calls())
def test_arguments_after_the_first_are_keyword_only(name):
    with pytest.raises((TypeError, TnadaptError), match=r"positional arguments?(, got| but )"):
        positional_calls()[name]()


def test_integers_of_any_library_are_taken_as_python_integers():
    sites = [Site("q", (np.int64(6), np.int32(4)))]
    spec = families.lora()
    adapter = spec.bind(sites, rank=np.int64(2), seed=np.uint8(3))
    assert adapter == spec.bind([Site("q", (6, 4))], rank=2, seed=3)
    assert from_json(to_json(adapter)) == adapter
    mapped = families.lotr().bind(sites, rank={"p": np.int64(2), "q": 1}, sizes={"in": np.int64(4)})
    assert to_json(mapped) == to_json(families.lotr().bind(sites, rank={"p": 2, "q": 1}, sizes={"in": 4}))


def test_sizes_of_a_spec_are_stored_as_python_integers():
    one, other = (joined_sizes(**{mode: kind(4) for mode in ("in", "r")}) for kind in (np.int64, int))
    assert one == other
    assert hash(one) == hash(other)
    assert {type(size) for size in one.sizes.values()} == {int}
    assert one.free_bonds == ()
    assert from_json(to_json(one)) == one
    assert str(one) == str(other)


def joined_sizes(**sizes):
    return AdapterSpec(
        name="own",
        weight="out in",
        factors={"A": trainable("r in"), "B": trainable("out r", init=zeros())},
        sizes=sizes,
    )


NOT_INTEGERS = [True, np.True_, 2.0, np.float64(2), np.array([2, 3]), np.array(2.5), np.array(True), "2"]


@pytest.mark.parametrize("value", NOT_INTEGERS, ids=repr)
def test_other_values_are_refused_wherever_a_size_is_given(value):
    sites, spec = [Site("q", (6, 4))], families.lora()
    for wrong in (
        lambda: spec.bind(sites, rank=value),
        lambda: spec.bind(sites, rank={"r": value}),
        lambda: spec.bind(sites, rank=2, sizes={"in": value}),
        lambda: Site("q", (value, 4)),
    ):
        with pytest.raises(SiteError, match="expected an integer of at least 1, got"):
            wrong()
    with pytest.raises(SpecError, match="sizes: expected a rule or a number for 'r', got"):
        joined_sizes(r=value)


def test_a_spec_of_many_bonds_is_bound_to_many_shapes_in_linear_time():
    """A thousand bonds, each with its own rank, were looked up in lists: a second for each shape."""
    bonds = [f"b{n}" for n in range(1000)]
    cores = {f"F{n}": trainable(" ".join(bonds[n : n + 2])) for n in range(999)}
    ends = {"A": trainable("out b0", init=zeros()), "B": trainable("b999 in")}
    spec = AdapterSpec(name="own", weight="out in", factors=cores | ends, scale=raw())
    sites = [Site(f"h.{n}.q", (4, n + 1), {"layer": n, "kind": "q"}) for n in range(10)]
    start = time.process_time()
    adapter = spec.bind(sites, rank=dict.fromkeys(bonds, 1), overparametrized=True)
    assert len(adapter.slots) == 10 * 1001
    assert time.process_time() - start < 2


def joined(start="zero", sizes=None, **factors):
    plain = {"A": trainable("r in"), "I": frozen("out a", init=identity()), "B": trainable("a r", init=zeros())}
    sizes = {"a": like("out")} if sizes is None else sizes
    return AdapterSpec(name="joined", weight="out in", factors=plain | factors, sizes=sizes, start=start)


@pytest.mark.parametrize("start", ["zero", "centered"])
def test_a_square_identity_joins_its_modes_and_is_no_array(start):
    init = zeros() if start == "zero" else normal()
    one = joined(start, B=trainable("a r", init=init)).bind(SITES, rank=2)
    other = AdapterSpec(
        name="plain", weight="out in", factors={"A": trainable("r in"), "B": trainable("out r", init=init)}, start=start
    ).bind(SITES, rank=2)
    assert one.slots.keys() == other.slots.keys()
    assert [plan(network).steps for network in one.networks] == [plan(network).steps for network in other.networks]
    assert (count(one).trainable, count(one).frozen) == (count(other).trainable, 0)
    params = random_params(one, np.random.default_rng(0))
    for site in one.sites:
        np.testing.assert_allclose(delta(one, params, site), delta(other, params, site), rtol=1e-12)
    assert rank_bound(one, one.sites[0]) == rank_bound(other, other.sites[0])


@pytest.mark.parametrize(
    "spec",
    [
        joined(sizes={}),  # a rank of its own, which may be less than the axis
        joined(I=frozen("out a", init=identity(2.0))),
        joined(I=trainable("out a", init=identity())),
        joined(I=frozen("out in", init=identity()), B=trainable("r", init=zeros()), sizes={}),
        joined(B=trainable("out a r", init=zeros())),
    ],
    ids=["rectangular", "with a gain", "trained", "two axes of the weight", "a mode twice"],
)
def test_any_other_identity_is_an_array(spec):
    assert "I" in spec.arrays
