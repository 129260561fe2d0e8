"""Updates as LoRAs: exact at the rank bound, and the best approximation below it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.table import FAMILIES, REPRESENTATIVES
from tests.thorough import IS_THOROUGH
from tnadapt import (
    AdapterSpec,
    PlanError,
    SiteError,
    delta,
    families,
    frozen,
    grid,
    normal,
    over_rank,
    rank_bound,
    raw,
    to_lora,
    trainable,
)
from tnadapt.sizes import at_most
from tnadapt.testing import adapters, dense, random_params
from tnadapt.testing._oracle import rounding_size

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
        size = rounding_size(adapter, params, site)
        np.testing.assert_allclose(
            lora.scale * lora.B @ lora.A, matrix(dense(adapter, params, site)), rtol=0, atol=1e-10 * size
        )


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_a_family_is_a_lora_of_its_rank_bound(name):
    adapter = FAMILIES[name].bind(layers=2, kinds=KINDS, seed=3)
    check_exact(adapter, random_params(adapter, np.random.default_rng(0), frozen=adapter.spec.start != "centered"))


@settings(max_examples=settings().max_examples if IS_THOROUGH else min(settings().max_examples, 10))
@given(st.sampled_from(["zero", "centered"]).flatmap(lambda start: adapters(start=start)), st.integers(0, 9))
def test_any_spec_is_a_lora_of_its_rank_bound(adapter, seed):
    check_exact(adapter, random_params(adapter, np.random.default_rng(seed)))


@pytest.mark.parametrize("name", ["lora", "lotr", "loha", "lokr", "fact_tk", "tt_lora centered", "krona", "vera"])
@pytest.mark.parametrize("rank", [1, 2])
def test_a_lower_rank_is_the_best_approximation(name, rank):
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
    return AdapterSpec(**({"name": "own", "weight": "out in", "scale": raw(2), "start": "free"} | words))


def test_a_centered_spec_with_a_frozen_half_has_the_rank_of_one_network():
    factors = {"A": frozen("p in"), "B": trainable("out p"), "s": trainable("")}
    adapter = own(factors=factors, start="centered").bind(grid(layers=1, kinds=KINDS), rank=3, seed=2)
    check_exact(adapter, random_params(adapter, np.random.default_rng(0)))
    assert to_lora(adapter, random_params(adapter, np.random.default_rng(0)), "layers.0.q").rank == 3


def test_a_centered_spec_has_the_rank_of_both_networks():
    factors = {"A": trainable("p in"), "B": trainable("out p", init=normal(2))}
    adapter = own(factors=factors, start="centered").bind(grid(layers=1, kinds=KINDS), rank=3, seed=2)
    check_exact(adapter, random_params(adapter, np.random.default_rng(0)))
    assert to_lora(adapter, random_params(adapter, np.random.default_rng(0)), "layers.0.q").rank == 6


@pytest.mark.parametrize("name", ["quanta", "krona", "lokr whole"])
def test_a_full_rank_update_is_refused_and_its_cut_is_reported(name):
    adapter = FAMILIES[name].bind(layers=1, kinds={"q": (8, 8)})
    with pytest.raises(PlanError, match=r"(?s)got full rank: its minimum cut is 8 \(cut .*Pass rank="):
        to_lora(adapter, random_params(adapter, np.random.default_rng(0)), "layers.0.q")
    assert to_lora(adapter, random_params(adapter, np.random.default_rng(0)), "layers.0.q", rank=8).error == 0.0


@pytest.mark.parametrize("cuts", [{"fused": {"w": ["q", "k", "v"]}}, {"blocks": {"w": (2, 2)}}])
@pytest.mark.parametrize("name", ["lora", "lotr", "tt_lora centered", "fact_tk"])
def test_a_weight_of_several_sites_is_one_lora(name, cuts):
    case = FAMILIES[name]
    sites = grid(layers=2, kinds={"w": (24, 24), "up": (24, 16)}, **cuts)
    adapter = case.spec.bind(sites, rank=case.rank, seed=0, overparametrized=True)
    params = random_params(adapter, np.random.default_rng(0))
    lora, update = to_lora(adapter, params, "layers.1.w", rank=ANY), delta(adapter, params, "layers.1.w")
    assert lora.rank == sum(rank_bound(adapter, site).rank for site in adapter.weights["layers.1.w"])
    np.testing.assert_allclose(lora.scale * lora.B @ lora.A, update, rtol=0, atol=1e-10 * abs(update).max())
    short, values = to_lora(adapter, params, "layers.1.w", rank=2), np.linalg.svd(update, compute_uv=False)
    np.testing.assert_allclose(short.error, np.linalg.norm(values[2:]) / np.linalg.norm(values), atol=1e-10)


def test_blocks_with_different_scales_keep_their_scales():
    """The bond is cut to the rows of each block, and the scale is alpha / p."""
    spec = AdapterSpec(
        name="own",
        weight="out in",
        factors={"A": trainable("r in"), "B": trainable("out r")},
        scale=over_rank("r", alpha=6),
        sizes={"r": at_most("out")},
        start="free",
    )
    sites = grid(layers=1, kinds={"w": (12, 40)}, fused={"w": {"q": 2, "k": 10}})
    adapter = spec.bind(sites, rank=3, seed=0)
    params = random_params(adapter, np.random.default_rng(0))
    lora = to_lora(adapter, params, "layers.0.w")
    assert (lora.rank, lora.scale) == (5, 3.0)
    np.testing.assert_allclose(lora.scale * lora.B @ lora.A, delta(adapter, params, "layers.0.w"), atol=1e-10)


def test_a_weight_that_is_not_one_matrix_is_refused():
    spec, random = families.lora(), np.random.default_rng(0)
    experts = spec.bind(grid(layers=1, kinds={"w": (3, 12, 8)}, experts=["w"]), rank=2)
    with pytest.raises(SiteError, match=r"layers\.0\.w: expected a single weight, got several.*\nPass one of its site"):
        to_lora(experts, random_params(experts, random), "layers.0.w")
    assert to_lora(experts, random_params(experts, random), experts.sites[1]).rank == 2
    tasks = spec.bind(grid(layers=1, kinds={"w": (12, 8)}, tasks=["a", "b"]), rank=2)
    with pytest.raises(SiteError, match="expected a weight with one update, got one whose sites serve several tasks"):
        to_lora(tasks, random_params(tasks, random), "layers.0.w")


def test_a_weight_filled_by_its_blocks_has_full_rank():
    adapter = families.lora().bind(
        grid(layers=1, kinds={"w": (8, 8)}, blocks={"w": (4, 1)}), rank=2, overparametrized=True
    )
    with pytest.raises(
        PlanError, match=r"(?s)^layers\.0\.w: .*its sites have ranks that add up to 8, of a weight 8 x 8"
    ):
        to_lora(adapter, random_params(adapter, np.random.default_rng(0)), "layers.0.w")


@pytest.mark.parametrize("rank", [0, -1, 2.0, True, "2"])
def test_a_rank_that_is_not_a_positive_integer_is_refused(rank):
    adapter = families.lora().bind(grid(layers=1, kinds=KINDS), rank=3)
    with pytest.raises(SiteError, match="rank: expected an integer of at least 1"):
        to_lora(adapter, random_params(adapter, np.random.default_rng(0)), "layers.0.q", rank=rank)


def test_params_that_do_not_fit_are_refused():
    adapter = families.lora().bind(grid(layers=1, kinds=KINDS), rank=3)
    params = random_params(adapter, np.random.default_rng(0))
    with pytest.raises(SiteError, match=r"params: expected an array '0.q.A', got none"):
        to_lora(adapter, {name: value for name, value in params.items() if name != "0.q.A"}, "layers.0.q")
    with pytest.raises(SiteError, match=r"params\['0.q.A'\]: expected shape \(3, 8\), got \(3, 1\)"):
        to_lora(adapter, params | {"0.q.A": np.zeros((3, 1))}, "layers.0.q")
    with pytest.raises(SiteError, match="expected a site of this adapter, got "):
        to_lora(adapter, params, "layers.7.q")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e200])
def test_an_update_that_is_not_finite_has_no_best_approximation(value):
    adapter = families.lora().bind(grid(layers=1, kinds=KINDS), rank=4)
    params = {name: np.full(slot.shape, value) for name, slot in adapter.slots.items()}
    with pytest.raises(SiteError, match=r"params: expected numbers whose update is finite, got NaN or infinity"):
        to_lora(adapter, params, adapter.sites[0], rank=1)
