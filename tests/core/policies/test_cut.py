"""Cutting a bond: the update loses what the removed slices contribute, and nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.policies.changes import SITES, chain, distance, served, size, updates
from tests.thorough import each_kind
from tnadapt import SiteError, families, grid, init, load, save
from tnadapt.policies import cut
from tnadapt.policies._bonds import entries_of, every_bond
from tnadapt.policies._change import Selection
from tnadapt.testing import adapters, random_params

EXACT = 1e-12


def masked(adapter, params, name, keep):
    """The params with zeros in all slices of a bond that do not stay."""
    found = dict(params)
    bond = every_bond(adapter)[name]
    for one, _, slot in entries_of(adapter, [bond]):
        for axis in one.axes(slot.factor):
            value = np.moveaxis(found[slot.name].copy(), axis, 0)
            value[[place for place in range(len(value)) if place not in keep]] = 0.0
            found[slot.name] = np.moveaxis(value, 0, axis)
    return found


def expect_removed_slices_to_be_lost(adapter, params, name, keep):
    change = cut(adapter, params, name, keep)
    wanted = updates(adapter, masked(adapter, params, name, keep))
    found = distance(wanted, updates(change.adapter, change.params)) / size(adapter, params)
    assert found <= EXACT, (name, found)


@each_kind
def test_a_family_loses_the_removed_slices(adapter, moved):
    if adapter.starts:  # their slices cannot be masked: see the test of stored starts
        return
    params = moved(adapter)
    for name in served(adapter, "cut"):
        length = every_bond(adapter)[name].sizes[0]
        expect_removed_slices_to_be_lost(adapter, params, name, list(range(length))[::-2])


@given(adapter=adapters(), seed=st.integers(0, 2**16), data=st.data())
def test_a_random_spec_loses_the_removed_slices(adapter, seed, data):
    params = random_params(adapter, np.random.default_rng(seed))
    for name in served(adapter, "cut") if not adapter.starts else ():
        places = st.integers(0, every_bond(adapter)[name].sizes[0] - 1)
        keep = data.draw(st.lists(places, min_size=1, unique=True))
        expect_removed_slices_to_be_lost(adapter, params, name, keep)


def test_without_the_number_that_makes_up_for_the_scale_more_would_change():
    adapter = chain().bind(SITES, rank=3)
    params = random_params(adapter, np.random.default_rng(0))
    change = cut(adapter, params, "q", [2, 0])
    wanted = updates(adapter, masked(adapter, params, "q", [2, 0]))
    assert distance(wanted, updates(change.adapter, change.params)) < 1e-12 * size(adapter, params)
    planted = change.params | {"C": change.params["C"] / change.factors["C"]}
    assert distance(wanted, updates(change.adapter, planted)) > 0.1


def test_stored_starts_are_cut_with_their_factors():
    random = np.random.default_rng(0)
    adapter = families.pissa().bind(SITES, rank=3)
    params = init(adapter, {site.path: random.standard_normal(site.shape) for site in SITES})
    change = cut(adapter, params, "0.q.r", [2])
    np.testing.assert_array_equal(
        change.params["0.q.A:start"], params["0.q.A:start"][[2]] * change.factors.get("0.q.A:start", 1)
    )
    assert max(np.abs(value).max() for value in updates(change.adapter, change.params).values()) < EXACT


def test_the_order_of_the_slices_is_that_given():
    adapter = families.lora().bind(SITES, rank=3)
    params = random_params(adapter, np.random.default_rng(0))
    change = cut(adapter, params, "0.q.r", [2, 0])
    np.testing.assert_array_equal(change.params["0.q.A"], params["0.q.A"][[2, 0]])


def test_groups_of_several_sizes_keep_their_first_slices():
    adapter = families.lora().bind(SITES, rank=3, sizes={"0.q.r": 1, "1.q.r": 2})
    params = random_params(adapter, np.random.default_rng(0))
    change = cut(adapter, params, "r", 2)
    assert [group.network.sizes["r"] for group in change.adapter.groups] == [1, 2, 2, 2, 2, 2]
    with pytest.raises(SiteError, match=r"each index of '0.q.r' at most once, from 0 to 0, got 1"):
        cut(adapter, params, "r", [1])


def test_frozen_factors_are_cut_and_the_file_gives_them_back(tmp_path):
    adapter = families.vera().bind(SITES, rank=4)
    params = random_params(adapter, np.random.default_rng(0))
    change = cut(adapter, params, "r", [3, 1])
    save(change.adapter, change.params, tmp_path / "a.safetensors")
    read = load(tmp_path / "a.safetensors")[1]
    np.testing.assert_array_equal(read["A"], params["A"][[3, 1]])


@pytest.mark.parametrize(("keep", "match"), [
    (0, r"cut: expected at least 1 slice of '0.q.r' to stay, got a cut to 0"),
    ([], r"cut: expected at least 1 slice of '0.q.r' to stay, got a cut to 0"),
    (4, r"cut: expected at most the 3 slices of 'r' to stay, got 4\.\nUse grow"),
    ([0, 0], r"each index of '0.q.r' at most once, from 0 to 2, got 0 among \[0, 0\]"),
    ([3], r"from 0 to 2, got 3"),
    ([-1], r"from 0 to 2, got -1"),
    ("all", r"cut: expected indices of slices as keep, got 'all'"),
    ([0.5], r"cut: expected indices of slices as keep, got \[0.5\]"),
    (True, r"cut: expected indices of slices as keep, got True"),
])  # fmt: skip
def test_wrong_slices(keep, match):
    adapter = families.lora().bind(SITES, rank=3)
    with pytest.raises(SiteError, match=match):
        cut(adapter, init(adapter), "r", keep)


def test_indices_of_numpy_are_taken():
    adapter = families.lora().bind(SITES, rank=3)
    assert cut(adapter, init(adapter), "r", np.argsort([3.0, 1.0, 2.0])[:2]).adapter.sizes == {"r": 2}
    assert cut(adapter, init(adapter), "r", np.int64(2)).adapter.sizes == {"r": 2}


def test_what_a_map_makes_cannot_be_cut():
    from tnadapt import AdapterSpec, trainable, zeros

    spec = AdapterSpec(
        name="turned",
        weight="out in",
        factors={
            "A": trainable("out p", init=zeros()),
            "Q": trainable("p q", map="cayley"),
            "B": trainable("q in"),
        },
    )
    adapter = spec.bind(grid(layers=1, kinds={"q": (5, 4)}), rank=2)
    with pytest.raises(SiteError, match=r"the cayley of 'Q' makes it"):
        cut(adapter, init(adapter), "p", 1)


def test_a_start_that_the_seed_would_draw_anew_is_refused():
    from tnadapt import AdapterSpec, raw, same, trainable

    spec = AdapterSpec(
        name="less",
        weight="out in",
        factors={"A": trainable("p out"), "B": trainable("p in"), "A0": same("A", at_start=True)},
        terms=["A B", "- A0 B"],
        scale=raw(),
    )
    adapter = spec.bind(grid(layers=1, kinds={"q": (5, 4)}), rank=3)
    params = random_params(adapter, np.random.default_rng(0))
    assert cut(adapter, params, "p", 2).params["A"].shape == (2, 5)
    with pytest.raises(SiteError, match=r"cut: expected the same starting values of 'A', which the update uses"):
        cut(adapter, params, "p", [1])
    assert Selection(0, (0,)).move(np.eye(2), squared=False).shape == (1, 2)
