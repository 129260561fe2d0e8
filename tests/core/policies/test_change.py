"""The moments of an optimizer after a change: gradients are carried as derivatives are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.policies.changes import SITES, chain, distance, gradients_of, served, size, updates
from tests.thorough import each_kind
from tnadapt import SiteError, families
from tnadapt.policies import bonds, cut, grow, sweep
from tnadapt.testing import adapters, random_params

CLOSE = 1e-10


def expect_gradients_to_be_carried(adapter, params, change):
    """Where no update changes, the gradients after are those before, carried. New slices have others."""
    before, after = gradients_of(adapter, params), gradients_of(change.adapter, change.params)
    for name, gradient in before.items():
        carried = change.carry(name, gradient)
        assert carried.shape == after[name].shape
        old = [slice(None)] * carried.ndim
        for move in change.moves.get(name, ()):
            if hasattr(move, "sources"):
                old[move.axis] = slice(0, gradient.shape[move.axis])
                assert not np.moveaxis(carried, move.axis, 0)[gradient.shape[move.axis] :].any()
        largest = max(np.abs(each).max() for each in (*before.values(), *after.values()))
        assert np.abs(carried[tuple(old)] - after[name][tuple(old)]).max(initial=0.0) <= CLOSE * largest, name


@each_kind
def test_gradients_of_a_family_that_grows(adapter, moved):
    params = moved(adapter)
    for name in served(adapter, "grow"):
        expect_gradients_to_be_carried(adapter, params, grow(adapter, params, name, 1))


@each_kind
def test_gradients_of_a_family_that_is_swept(adapter, moved):
    params = moved(adapter)
    if "ok" in bonds(adapter, "sweep").values():
        expect_gradients_to_be_carried(adapter, params, sweep(adapter, params))


@given(adapter=adapters(), seed=st.integers(0, 2**16))
def test_gradients_of_a_random_spec(adapter, seed):
    params = random_params(adapter, np.random.default_rng(seed))
    for name in served(adapter, "grow"):
        expect_gradients_to_be_carried(adapter, params, grow(adapter, params, name, 1))


def test_a_truncating_sweep_projects_gradients():
    """What a gradient is on the factors that stay does not depend on whether the others are discarded."""
    adapter = chain("").bind(SITES, rank=3, overparametrized=True)
    params = random_params(adapter, np.random.default_rng(0))
    whole, part = sweep(adapter, params, bond="q"), sweep(adapter, params, rank=2, bond="q")
    gradient = gradients_of(adapter, params)["0.q.B"]
    ratio = whole.factors.get("0.q.B", 1.0) / part.factors.get("0.q.B", 1.0)
    np.testing.assert_allclose(part.carry("0.q.B", gradient), whole.carry("0.q.B", gradient)[:, :2] * ratio, rtol=1e-9)


def test_values_would_be_carried_in_another_way():
    adapter = chain().bind(SITES, rank=3)
    params = random_params(adapter, np.random.default_rng(0))
    change = sweep(adapter, params)
    assert not np.allclose(change.carry("B", params["B"]), change.params["B"], rtol=1e-3)


def test_gradients_are_divided_where_values_were_multiplied():
    adapter = chain().bind(SITES, rank=2)
    params = random_params(adapter, np.random.default_rng(0))
    change = grow(adapter, params, "q", 4)
    assert change.factors["C"] == pytest.approx(3.0)
    ones = np.ones_like(params["C"])
    np.testing.assert_allclose(change.carry("C", ones)[:2], ones / 3)
    np.testing.assert_allclose(change.carry("C", ones, squared=True)[:2], ones / 9)
    planted = change.__class__(**(vars(change) | {"factors": {}}))
    with pytest.raises(AssertionError, match=r"^C\n"):
        expect_gradients_to_be_carried(adapter, params, planted)


def test_squares_are_carried_by_the_squares_of_a_basis():
    adapter = families.lora().bind(SITES[:1], rank=2)
    params = random_params(adapter, np.random.default_rng(0))
    change = sweep(adapter, params)
    rows = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]])  # one slice each: no cross terms
    np.testing.assert_allclose(change.carry("B", rows, squared=True), change.carry("B", rows) ** 2, rtol=1e-12)
    assert (change.carry("B", np.ones((5, 2)), squared=True) >= 0).all()


def test_cut_moments_are_slices():
    adapter = families.lora().bind(SITES, rank=3)
    params = random_params(adapter, np.random.default_rng(0))
    change = cut(adapter, params, "r", [2, 0])
    ratio = change.factors.get("0.q.A", 1.0)
    np.testing.assert_allclose(change.carry("0.q.A", params["0.q.A"]), params["0.q.A"][[2, 0]] / ratio)


def test_the_dtype_stays_and_the_array_is_a_copy():
    adapter = families.lora().bind(SITES, rank=2)
    params = random_params(adapter, np.random.default_rng(0))
    change = grow(adapter, params, "0.q.r", 1)
    half = np.ones((2, 4), dtype=np.float32)
    assert change.carry("0.q.A", half).dtype == np.float32
    unchanged = change.carry("1.q.A", half)
    unchanged[:] = 0
    assert half.all()


@pytest.mark.parametrize(("name", "shape", "match"), [
    ("0.q.X", (2, 4), r"carry: expected an entry of params, got '0.q.X'.\nThe nearest names are"),
    ("0.q.A", (3, 4), r"carry: expected '0.q.A' in its shape before the change, \(2, 4\), got \(3, 4\)"),
])  # fmt: skip
def test_moments_that_do_not_fit(name, shape, match):
    adapter = families.lora().bind(SITES, rank=2)
    change = grow(adapter, random_params(adapter, np.random.default_rng(0)), "r", 1)
    with pytest.raises(SiteError, match=match):
        change.carry(name, np.ones(shape))


def test_changes_one_after_the_other_are_one_change():
    adapter = families.lotr().bind(SITES, rank=3)
    params = random_params(adapter, np.random.default_rng(0))
    first = grow(adapter, params, "p", 2)
    second = sweep(first.adapter, first.params, rank=2)
    third = cut(second.adapter, second.params, "q", [1])
    whole = first.then(second).then(third)
    assert (whole.before, whole.adapter, whole.params) == (adapter, third.adapter, third.params)
    assert whole.errors.keys() == second.errors.keys()
    for name, gradient in gradients_of(adapter, params).items():
        for squared in (False, True):
            step = gradient
            for change in (first, second, third):
                step = change.carry(name, step, squared)
            np.testing.assert_allclose(whole.carry(name, gradient, squared), step, rtol=1e-12)
    fourth = sweep(second.adapter, second.params, rank=1, bond="p")
    np.testing.assert_array_equal(second.then(fourth).errors["p"], [*second.errors["p"], *fourth.errors["p"]])
    with pytest.raises(SiteError, match=r"then: expected a change of the adapter that this one leads to"):
        first.then(first)
    with pytest.raises(SiteError, match=r"then: expected a change, got 3"):
        first.then(3)


def test_several_bonds_at_once():
    adapter = families.lotr(over="layer").bind(SITES, rank=3)
    params = random_params(adapter, np.random.default_rng(0))
    larger = grow(adapter, params, {"q.p": 1, "k.p": 2, "q": 1}, seed=3)
    sizes = [(group.network.sizes["p"], group.network.sizes["q"]) for group in larger.adapter.groups]
    assert sizes == [(4, 4), (5, 4)]
    first = grow(adapter, params, "q.p", 1, seed=3)
    one = grow(first.adapter, first.params, "k.p", 2, seed=3)
    np.testing.assert_array_equal(larger.params["k.A"], one.params["k.A"])
    assert distance(updates(adapter, params), updates(larger.adapter, larger.params)) < 1e-12 * size(adapter, params)
    smaller = cut(larger.adapter, larger.params, {"q.p": [3, 0], "k.q": 1})
    assert smaller.params["q.G"].shape[1:] == (2, 4)
    assert smaller.params["k.G"].shape[1:] == (5, 1)
    gradient = gradients_of(adapter, params)["k.G"]
    assert larger.then(smaller).carry("k.G", gradient).shape == smaller.params["k.G"].shape


@pytest.mark.parametrize(("act", "match"), [
    (lambda a, p: grow(a, p, {"r": 1}, 2), r"grow: expected no further value beside values by bond, got 2"),
    (lambda a, p: grow(a, p | {"0.q.A": {}}, "r", 1), r"(?s)a numpy array as params\['0\.q\.A'\].*state\.arrays"),
    (lambda a, p: grow(a, p, {}), r"grow: expected at least one bond, got none"),
    (lambda a, p: cut(a, p, {"r": 1, "0.q.r": 1}), r"cut: expected each bond once, got '0.q.r' twice"),
    (lambda a, p: cut(a, p, "r"), r"cut: expected indices of slices as keep, got None"),
    (lambda a, p: grow(a, p, "r"), r"grow: by: expected an integer of at least 1, got None"),
    (lambda a, p: cut(a, p, {"0.q.r": 3, "0.k.r": 2}), r"cut: expected at most the 2 slices of 'r' to stay, got 3"),
])  # fmt: skip
def test_several_bonds_that_do_not_fit(act, match):
    adapter = families.lora().bind(SITES, rank=2)
    with pytest.raises(SiteError, match=match):
        act(adapter, random_params(adapter, np.random.default_rng(0)))


def test_a_change_prints_what_changed_and_no_values():
    adapter = families.lotr().bind(SITES[:1], rank=3)
    params = random_params(adapter, np.random.default_rng(0))
    assert repr(grow(adapter, params, "p", 2)) == "Change(lotr: A, G)"
    swept = sweep(adapter, params, rank=2)
    lost = ", ".join(f"{name} {np.linalg.norm(swept.errors[name]):.3g}" for name in swept.errors)
    assert repr(swept) == f"Change(lotr: {', '.join(swept.moves)}; discarded: {lost})"
