"""Hidden slices: the update is that after a cut, for every family, and shapes stay."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.policies.changes import SITES, distance, served, size, updates
from tests.thorough import each_kind
from tnadapt import SiteError, families, init
from tnadapt.policies import bonds, cut, hide
from tnadapt.policies._bonds import every_bond
from tnadapt.testing import adapters, random_params

EXACT = 1e-12


def expect_the_update_after_a_cut(adapter, params, name, keep):
    masks = hide(adapter, {name: keep})
    hidden = {entry: value * masks.get(entry, 1.0) for entry, value in params.items()}
    assert all(hidden[entry].shape == value.shape for entry, value in params.items())
    change = cut(adapter, params, name, keep)
    wanted = updates(change.adapter, change.params)
    assert distance(wanted, updates(adapter, hidden)) <= EXACT * size(adapter, params), name


@each_kind
def test_a_family_has_the_update_after_a_cut(adapter, moved):
    params = moved(adapter)
    for name in served(adapter, "hide"):
        length = every_bond(adapter)[name].sizes[0]
        expect_the_update_after_a_cut(adapter, params, name, list(range(length))[::-2])


@given(adapter=adapters(), seed=st.integers(0, 2**16), data=st.data())
def test_a_random_spec_has_the_update_after_a_cut(adapter, seed, data):
    params = random_params(adapter, np.random.default_rng(seed))
    for name in served(adapter, "hide"):
        places = st.integers(0, every_bond(adapter)[name].sizes[0] - 1)
        keep = data.draw(st.lists(places, min_size=1, unique=True))
        if adapter.starts and keep != [
            0
        ]:  # starts that are drawn again would be others: whether cut refuses is its test
            keep = [0]
        expect_the_update_after_a_cut(adapter, params, name, keep)


@given(adapter=adapters(start="centered"), seed=st.integers(0, 2**16))
def test_a_random_centered_spec_has_the_update_after_a_cut_or_is_refused(adapter, seed):
    params = random_params(adapter, np.random.default_rng(seed))
    for name in served(adapter, "hide"):
        expect_the_update_after_a_cut(adapter, params, name, [0])


def test_several_bonds_are_hidden_at_once():
    adapter = families.lotr().bind(SITES, rank=3)
    masks = hide(adapter, {name: [0, 2] for name in every_bond(adapter)})
    assert masks["A"].shape == (1, 3)
    np.testing.assert_array_equal(masks["G"].squeeze(), np.outer([1, 0, 1], [1, 0, 1]))


def test_what_zeros_do_not_remove_is_refused():
    adapter = families.pissa().bind(SITES, rank=3)
    assert "so that zeros do not remove a slice" in bonds(adapter, "hide")["0.q.r"]
    with pytest.raises(SiteError, match=r"hide: expected a bond that can change, got '0.q.r': in a term"):
        hide(adapter, {"r": [0]})


@pytest.mark.parametrize(("keep", "match"), [
    ("r", r"hide: expected the slices that stay by bond, got 'r'"),
    ({"r": []}, r"hide: expected at least 1 slice of '0.q.r' to stay"),
    ({"r": [7]}, r"hide: expected each index of '0.q.r' at most once, from 0 to 2, got 7"),
    ({"s": [0]}, r"hide: expected a bond of lora, got 's'"),
])  # fmt: skip
def test_wrong_slices(keep, match):
    adapter = families.lora().bind(SITES, rank=3)
    assert init(adapter)
    with pytest.raises(SiteError, match=match):
        hide(adapter, keep)
