"""Importance: the same number from every factor, and the derivative of the loss that it is said to be."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.policies.changes import SITES, chain, gradients_of, pulls, updates
from tests.thorough import each_kind
from tnadapt import SiteError, families
from tnadapt.policies import bonds, importance, tellers
from tnadapt.policies._bonds import every_bond
from tnadapt.policies._importance import slices_by, telling
from tnadapt.testing import adapters, random_params

EXACT = 1e-12
STEP = 1e-4


def expect_one_number_from_all(adapter, params):
    gradients = gradients_of(adapter, params)
    found, pairs = importance(adapter, params, gradients), 0
    for name, bond in every_bond(adapter).items():
        told = {factor: slices_by(adapter, bond, factor, params, gradients) for factor in telling(adapter, bond)}
        assert (name in found) == bool(told) == (bonds(adapter)[name] == "ok")
        for factor, value in told.items():
            terms = sum(
                np.abs(params[entry] * gradients[entry]).sum()
                for entry in {adapter.slot_name(group, factor) for group in bond.groups}
            )
            assert np.abs(value - found[name]).max() <= EXACT * max(terms, 1e-300), (name, factor)
            pairs += 1
    return pairs


@each_kind
def test_every_factor_of_a_family_tells_the_same(adapter, moved):
    expect_one_number_from_all(adapter, moved(adapter))


@each_kind
def test_tellers_say_where_a_binding_finds_the_same_numbers(adapter, moved):
    params = moved(adapter)
    gradients = gradients_of(adapter, params)
    found = importance(adapter, params, gradients)
    told = tellers(adapter)
    assert told.keys() == found.keys()
    for name, entries in told.items():
        total = np.zeros(len(found[name]))
        for entry, axes in entries:
            for axis in axes:
                product = np.moveaxis(params[entry] * gradients[entry], axis, 0)
                total[: len(product)] += product.reshape(len(product), -1).sum(1)
        np.testing.assert_allclose(total, found[name], rtol=1e-10, atol=1e-12)


@given(adapter=adapters(), seed=st.integers(0, 2**16))
def test_every_factor_of_a_random_spec_tells_the_same(adapter, seed):
    expect_one_number_from_all(adapter, random_params(adapter, np.random.default_rng(seed)))


@given(adapter=adapters(start="centered"), seed=st.integers(0, 2**16))
def test_every_factor_of_a_random_centered_spec_tells_the_same(adapter, seed):
    expect_one_number_from_all(adapter, random_params(adapter, np.random.default_rng(seed)))


def test_several_factors_tell_it_for_a_hyperedge():
    adapter = families.lorta().bind(SITES, rank=3, sizes={"head": 1})
    assert len(telling(adapter, every_bond(adapter)["r"])) == 5
    assert expect_one_number_from_all(adapter, random_params(adapter, np.random.default_rng(0))) == 5


def test_it_is_the_derivative_of_the_loss_with_respect_to_a_number_on_the_slice():
    adapter = chain().bind(SITES, rank=3)
    params, pull = random_params(adapter, np.random.default_rng(1)), pulls(adapter)

    def loss(number):
        scaled = params | {"B": params["B"] * np.array([1.0, number, 1.0])}
        return sum((pull[path] * value).sum() for path, value in updates(adapter, scaled).items())

    slope = (loss(1 + STEP) - loss(1 - STEP)) / (2 * STEP)
    assert importance(adapter, params, gradients_of(adapter, params))["q"][1] == pytest.approx(slope, rel=1e-9)


def test_it_does_not_depend_on_the_gauge_but_on_what_is_trained():
    adapter = chain().bind(SITES, rank=3)
    params = random_params(adapter, np.random.default_rng(1))
    gauge = np.array([2.0, -3.0, 0.1])
    turned = params | {"B": params["B"] * gauge, "C": params["C"] / gauge[:, None, None]}
    one, two = (importance(adapter, each, gradients_of(adapter, each)) for each in (params, turned))
    np.testing.assert_allclose(one["q"], two["q"], rtol=1e-12)
    planted = importance(adapter, params | {"B": turned["B"]}, gradients_of(adapter, params))
    assert not np.allclose(one["q"], planted["q"])


def test_a_site_gate_tells_the_product_of_update_and_gradient():
    """The identity of a bond holds for a site mode as well: the importance of a site is <dW_s, dL/dW_s>."""
    adapter = families.tlora().bind(SITES, rank={"p": 2, "q": 3})
    params, pull = random_params(adapter, np.random.default_rng(0)), pulls(adapter)
    gradients = gradients_of(adapter, params)
    gate = next(name for name, slot in adapter.slots.items() if slot.factor.modes == adapter.spec.site_modes)
    group = adapter.groups[0]
    for path, value in updates(adapter, params).items():
        at = tuple(group.index(adapter.find(path)[1]).values())
        assert (params[gate] * gradients[gate])[at] == pytest.approx((value * pull[path]).sum(), rel=1e-10)


def test_groups_in_common_add_up():
    adapter = families.vera().bind(SITES, rank=3)
    params = random_params(adapter, np.random.default_rng(0))
    gradients = gradients_of(adapter, params)
    total = sum(params[f"{group.name}.d"] * gradients[f"{group.name}.d"] for group in adapter.groups)
    np.testing.assert_allclose(importance(adapter, params, gradients)["r"], total, rtol=1e-12)


def test_a_factor_that_a_term_has_twice_would_count_twice():
    from tnadapt import AdapterSpec, same, trainable

    squared = {"A": trainable("out p"), "A2": same("A"), "B": trainable("p in")}
    adapter = AdapterSpec(name="squared", weight="out in", factors=squared, start="free").bind(SITES[:1], rank=2)
    assert telling(adapter, every_bond(adapter)["p"]) == ("B",)
    params = random_params(adapter, np.random.default_rng(0))
    gradients = gradients_of(adapter, params)
    twice = slices_by(adapter, every_bond(adapter)["p"], "A", params, gradients)
    np.testing.assert_allclose(twice, 2 * importance(adapter, params, gradients)["p"], rtol=1e-12)


def test_bonds_that_are_left_out_have_a_reason():
    assert set(bonds(families.pissa().bind(SITES, rank=2)).values()) == {
        "no trained factor carries it once in every use"
    }
    adapter = families.lora(frozen_a=True).bind(SITES, rank=2)
    assert set(bonds(adapter).values()) == {"ok"}


@pytest.mark.parametrize(("change", "match"), [
    (lambda found: found.pop("B"), r"importance: expected the gradient of 'B', got none.\nCall this after"),
    (lambda found: found.update(B=None), r"importance: expected the gradient of 'B', got none"),
    (lambda found: found.update(B=np.ones(3)), r"gradient of 'B' of shape \(3, 3, 3\), got \(3,\)"),
])  # fmt: skip
def test_gradients_that_do_not_fit(change, match):
    adapter = chain().bind(SITES, rank=3)
    params = random_params(adapter, np.random.default_rng(0))
    gradients = gradients_of(adapter, params)
    change(gradients)
    with pytest.raises(SiteError, match=match):
        importance(adapter, params, gradients)


def test_something_else_than_gradients():
    adapter = chain().bind(SITES, rank=3)
    with pytest.raises(SiteError, match=r"importance: expected gradients by name, got \[1\]"):
        importance(adapter, random_params(adapter, np.random.default_rng(0)), [1])
