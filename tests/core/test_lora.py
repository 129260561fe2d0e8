"""An update cut in two: exact at the bound of its rank, best below it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.table import FAMILIES
from tnadapt import (
    AdapterSpec,
    PlanError,
    SiteError,
    families,
    frozen,
    grid,
    normal,
    rank_bound,
    raw,
    to_lora,
    trainable,
)
from tnadapt.testing import adapters, dense, random_params
from tnadapt.testing._oracle import magnitude

KINDS = {"q": (12, 8), "up": (16, 12)}
ANY = 10**6


def matrix(update):
    return update.reshape(len(update), -1)


def check_exact(adapter, params):
    for site in adapter.sites:
        lora, bound = to_lora(adapter, params, site, rank=ANY), rank_bound(adapter, site).rank
        assert lora.A.shape == (bound, np.prod(site.shape[1:]))
        assert lora.B.shape == (site.shape[0], bound)
        assert (lora.rank, lora.error) == (bound, 0.0)
        size = magnitude(adapter, params, site)
        np.testing.assert_allclose(
            lora.scale * lora.B @ lora.A, matrix(dense(adapter, params, site)), rtol=0, atol=1e-10 * size
        )


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_a_lora_of_the_bound_of_its_rank(name):
    adapter = FAMILIES[name].bind(layers=2, kinds=KINDS, seed=3)
    check_exact(adapter, random_params(adapter, np.random.default_rng(0), frozen=not adapter.spec.centered))


@given(st.booleans().flatmap(lambda centered: adapters(centered=centered)), st.integers(0, 9))
def test_any_spec_is_a_lora_of_the_bound_of_its_rank(adapter, seed):
    check_exact(adapter, random_params(adapter, np.random.default_rng(seed)))


@pytest.mark.parametrize("name", ["lora", "lotr", "loha", "lokr", "fact_tk", "tt_lora centered", "krona", "vera"])
@pytest.mark.parametrize("rank", [1, 2])
def test_a_lower_rank_is_the_best_that_there_is(name, rank):
    adapter = FAMILIES[name].bind(layers=2, kinds=KINDS)
    params = random_params(adapter, np.random.default_rng(1))
    for site in adapter.sites:
        lora, update = to_lora(adapter, params, site, rank=rank), matrix(dense(adapter, params, site))
        values = np.linalg.svd(update, compute_uv=False)
        best = np.linalg.norm(values[rank:])
        left = np.linalg.norm(update - lora.scale * lora.B @ lora.A)
        assert lora.rank == rank
        np.testing.assert_allclose(left, best, rtol=0, atol=1e-10 * values[0])
        np.testing.assert_allclose(lora.error, best / np.linalg.norm(values), rtol=0, atol=1e-10)


def test_an_update_of_zero_has_no_error():
    adapter = families.lora().bind(grid(layers=1, kinds=KINDS), rank=3)
    lora = to_lora(
        adapter, random_params(adapter, np.random.default_rng(0)) | {"0.q.B": np.zeros((12, 3))}, "layers.0.q", rank=2
    )
    assert lora.error == 0.0
    assert not lora.B.any() or not lora.A.any()


def own(**words):
    return AdapterSpec(name="own", weight="out in", scale=raw(2), identity_at_start=False, **words)


def test_a_difference_whose_one_half_never_moves_has_the_rank_of_one_network():
    factors = {"A": frozen("p in"), "B": trainable("out p"), "s": trainable("")}
    adapter = own(factors=factors, centered=True).bind(grid(layers=1, kinds=KINDS), rank=3, seed=2)
    check_exact(adapter, random_params(adapter, np.random.default_rng(0)))
    assert to_lora(adapter, random_params(adapter, np.random.default_rng(0)), "layers.0.q").rank == 3


def test_a_difference_of_two_networks_has_both_ranks():
    factors = {"A": trainable("p in"), "B": trainable("out p", init=normal(2))}
    adapter = own(factors=factors, centered=True).bind(grid(layers=1, kinds=KINDS), rank=3, seed=2)
    check_exact(adapter, random_params(adapter, np.random.default_rng(0)))
    assert to_lora(adapter, random_params(adapter, np.random.default_rng(0)), "layers.0.q").rank == 6


@pytest.mark.parametrize("name", ["quanta", "krona", "lokr whole"])
def test_a_full_rank_update_is_refused_with_its_cut(name):
    adapter = FAMILIES[name].bind(layers=1, kinds={"q": (8, 8)})
    with pytest.raises(PlanError, match=r"(?s)full rank: its minimum cut is 8 \(cut .*Pass rank="):
        to_lora(adapter, random_params(adapter, np.random.default_rng(0)), "layers.0.q")
    assert to_lora(adapter, random_params(adapter, np.random.default_rng(0)), "layers.0.q", rank=8).error == 0.0


@pytest.mark.parametrize("rank", [0, -1, 2.0, True, "2"])
def test_a_rank_that_is_none_is_refused(rank):
    adapter = families.lora().bind(grid(layers=1, kinds=KINDS), rank=3)
    with pytest.raises(SiteError, match="rank: must be an integer of at least 1"):
        to_lora(adapter, random_params(adapter, np.random.default_rng(0)), "layers.0.q", rank=rank)


def test_params_that_do_not_fit_are_refused():
    adapter = families.lora().bind(grid(layers=1, kinds=KINDS), rank=3)
    params = random_params(adapter, np.random.default_rng(0))
    with pytest.raises(SiteError, match=r"'0.q.A' is missing"):
        to_lora(adapter, {name: value for name, value in params.items() if name != "0.q.A"}, "layers.0.q")
    with pytest.raises(SiteError, match=r"must have shape \(3, 8\)"):
        to_lora(adapter, params | {"0.q.A": np.zeros((3, 1))}, "layers.0.q")
    with pytest.raises(SiteError, match="not a site of this adapter"):
        to_lora(adapter, params, "layers.7.q")
