"""Chains: sums of links, against the deltas of the links themselves, and the rate at which RAC-LoRA contracts."""

import ml_dtypes
import numpy as np
import pytest

import tnadapt
from tests.table import FAMILIES
from tests.thorough import IS_THOROUGH, each_kind
from tnadapt import PlanError, Site, SiteError, families, grid
from tnadapt.policies import Chain
from tnadapt.testing import random_params

SITES = grid(layers=2, kinds={"q": (12, 8), "up": (8, 12)})
ONE = grid(layers=1, kinds={"q": (12, 9)})
LINKS = 3


def chain_of(spec, sites, *, rank, links=LINKS, size=1.0):
    adapters = [spec.bind(sites, rank=rank, seed=7 + number) for number in range(links)]
    made = [(adapter, random_params(adapter, np.random.default_rng(adapter.seed))) for adapter in adapters]
    return Chain([(adapter, {name: size * value for name, value in params.items()}) for adapter, params in made])


@each_kind
def test_every_family_chains_or_is_refused_with_the_reason(adapter, moved):
    links = [(adapter, moved(adapter, seed)) for seed in range(LINKS)]
    if adapter.hosts:
        with pytest.raises(SiteError, match="whose update reads the host's weight"):
            Chain(links)
        return
    chain = Chain(links)
    weights = {path: np.ones(sites[0].weight_shape) for path, sites in adapter.weights.items()}
    merged = chain.merged(weights)
    assert merged.keys() == weights.keys()
    for path, weight in weights.items():
        wanted = sum(tnadapt.delta(adapter, params, path) for _, params in links)
        largest = np.abs(wanted).max()
        np.testing.assert_allclose(chain.delta(path), wanted, rtol=0, atol=1e-12 * largest)
        np.testing.assert_allclose(merged[path], weight + wanted, rtol=0, atol=1e-12 * (1 + largest))


@each_kind
def test_a_chain_of_one_link_is_the_adapter(adapter, moved):
    if adapter.hosts:
        pytest.skip("such a spec forms no chain")
    params = moved(adapter)
    chain = Chain([(adapter, params)])
    for site in adapter.sites:
        np.testing.assert_array_equal(chain.delta(site), tnadapt.delta(adapter, params, site))
        shape = (site.shape[0], int(np.prod(site.shape[1:])))
        assert chain.rank_bound(site) == min(tnadapt.rank_bound(adapter, site).rank, *shape)


@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize("links", [1, 2, 3, 5])
def test_links_of_rank_r_have_rank_t_r(links, rank):
    chain = chain_of(families.lora(), ONE, rank=rank, links=links)
    wanted = min(links * rank, 12, 9)
    assert np.linalg.matrix_rank(chain.delta("layers.0.q")) == wanted
    assert chain.rank_bound("layers.0.q") == wanted


def test_links_of_different_specs_and_ranks_add_up():
    first, second = families.lora().bind(SITES, rank=2, seed=1), families.lotr().bind(SITES, rank=3, seed=1)
    params = [random_params(one, np.random.default_rng(3)) for one in (first, second)]
    chain = Chain([(first, params[0])]).extended(second, params[1])
    wanted = tnadapt.delta(first, params[0], "layers.1.up") + tnadapt.delta(second, params[1], "layers.1.up")
    np.testing.assert_allclose(chain.delta("layers.1.up"), wanted, rtol=1e-14)
    assert chain.rank_bound("layers.1.up") == 5
    assert len(chain) == 2
    assert "lotr seed 1" in repr(chain)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_a_hundred_links_below_half_an_ulp_are_not_lost(dtype):
    adapter = families.lora(alpha=1).bind(Site("q", (3, 2)), rank=1)
    step = 0.4 * float(ml_dtypes.finfo(dtype).eps)  # at 1 the ulp is eps
    link = {"A": np.ones((1, 2)), "B": np.full((3, 1), step)}
    weight = np.ones((3, 2), dtype)
    assert (tnadapt.merge(weight, tnadapt.delta(adapter, link, "q")) == weight).all()  # alone, it is lost
    found = Chain([(adapter, link)] * 100).merged({"q": weight})["q"]
    assert found.dtype == weight.dtype
    np.testing.assert_array_equal(found, np.full((3, 2), 1 + 100 * step).astype(dtype))
    assert (found > 1).all()
    assert (weight == 1).all()


def test_a_chain_is_a_lora_of_the_factors_side_by_side():
    chain = chain_of(families.lora(alpha=4), grid(layers=1, kinds={"q": (12, 9)}), rank=2)
    lora = chain.to_lora("layers.0.q")
    assert lora.rank == 6
    assert lora.error == 0.0
    update = chain.delta("layers.0.q")
    np.testing.assert_allclose(lora.scale * lora.B @ lora.A, update, rtol=0, atol=1e-12 * np.abs(update).max())
    short = chain.to_lora("layers.0.q", rank=4)
    discarded = np.linalg.svd(update, compute_uv=False)
    assert short.rank == 4
    assert short.error == pytest.approx(np.linalg.norm(discarded[4:]) / np.linalg.norm(discarded), rel=1e-10)
    with pytest.raises(PlanError, match="links of ranks that add up to 10, of a weight 12 x 9"):
        chain_of(families.lora(), ONE, rank=2, links=5).to_lora("layers.0.q")
    full = chain_of(families.lora(), ONE, rank=2, links=5)
    exact = full.to_lora("layers.0.q", rank=10)
    np.testing.assert_allclose(exact.B @ exact.A, full.delta("layers.0.q"), atol=1e-11)


def test_a_weight_of_blocks_is_exported_whole():
    sites = grid(layers=1, kinds={"q": (12, 8)}, blocks={"q": (2, 1)})
    chain = chain_of(families.lora(), sites, rank=1)
    (path,) = chain.weights
    lora = chain.to_lora(path)
    assert lora.rank == 6
    np.testing.assert_allclose(lora.scale * lora.B @ lora.A, chain.delta(path), atol=1e-11)


def test_a_chain_keeps_copies_and_does_not_change():
    chain = chain_of(families.lora(), SITES, rank=2)
    adapter, params = chain.links[0]
    mine = {name: np.array(value) for name, value in params.items()}
    own = Chain([(adapter, mine)])
    before = own.delta("layers.0.q")
    for name in mine:
        mine[name] += 1
    np.testing.assert_array_equal(own.delta("layers.0.q"), before)
    with pytest.raises(ValueError, match="read-only"):
        next(iter(own.links[0].params.values()))[...] = 0
    with pytest.raises(AttributeError, match="a Chain does not change"):
        own.links = ()
    own.extended(adapter, params)
    assert len(own) == 1


def solved(weight, target, adapter, side="A"):
    """Return the exact solution of the trained factor of a LoRA with the other one frozen: B (A A^T) = (W* - W) A^T."""
    start = tnadapt.init(adapter)
    A, B = start["A"], start["B"]
    scale = adapter.networks[0].scale
    return {"A": A, "B": (target - weight) @ np.linalg.pinv(A) / scale + 0 * B}


def test_rac_lora_contracts_by_one_minus_r_over_m():
    """For |W - W*|^2 / 2 and exact solves, E|W_{t+1} - W*|^2 = (1 - r/m) E|W_t - W*|^2 (RAC-LoRA, arXiv:2410.08305)."""
    m, r, draws = 12, 3, 4000 if IS_THOROUGH else 1000
    spec, site = families.lora(frozen_a=True, gaussian=True), Site("w", (5, m))
    target, weight = np.random.default_rng(0).standard_normal((2, 5, m))
    before = np.square(weight - target).sum()
    ratios = []
    for seed in range(draws):
        adapter = spec.bind(site, rank=r, seed=seed)
        update = tnadapt.delta(adapter, solved(weight, target, adapter), "w")
        ratios.append(np.square(weight + update - target).sum() / before)
    error = np.std(ratios) / np.sqrt(draws)
    assert error < (0.01 if IS_THOROUGH else 0.02)
    assert abs(np.mean(ratios) - (1 - r / m)) < 4 * error


def test_with_one_seed_the_error_stalls_and_with_fresh_seeds_it_does_not():
    spec, site = families.lora(frozen_a=True, gaussian=True), Site("w", (5, 12))
    target = np.random.default_rng(0).standard_normal((5, 12))
    errors = {}
    for kind, seeds in {"one": [3] * 30, "fresh": range(30)}.items():
        weight, chain = np.zeros((5, 12)), None
        errors[kind] = []
        for seed in seeds:
            adapter = spec.bind(site, rank=3, seed=seed)
            params = solved(weight, target, adapter)
            chain = chain.extended(adapter, params) if chain else Chain([(adapter, params)])
            weight = chain.merged({"w": np.zeros((5, 12))})["w"]
            errors[kind].append(np.linalg.norm(weight - target))
    assert errors["one"][-1] == pytest.approx(errors["one"][0], rel=1e-9)
    assert errors["one"][-1] > 0.5 * np.linalg.norm(target)
    assert errors["fresh"][-1] < 0.05 * np.linalg.norm(target)


LORA = families.lora().bind(SITES, rank=2, seed=1)
PARAMS = tnadapt.init(LORA)
ELSEWHERE = families.lora().bind(grid(layers=3, kinds={"q": (12, 8), "up": (8, 12)}), rank=2)
WIDER = families.lora().bind(grid(layers=2, kinds={"q": (12, 8), "up": (16, 12)}), rank=2)
NAME = next(iter(PARAMS))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Chain([]), "expected at least one link, got none"),
        (lambda: Chain(LORA), "expected a list of"),
        (lambda: Chain([LORA]), "link 0: expected a pair"),
        (lambda: Chain([(LORA, [1])]), "link 0: expected params, arrays by name"),
        (lambda: Chain([(families.lora(), PARAMS)]), "link 0: expected an Adapter"),
        (lambda: Chain([(LORA, PARAMS), (ELSEWHERE, tnadapt.init(ELSEWHERE))]), r"link 1.*at layers\.2\.q: another"),
        (lambda: Chain([(LORA, PARAMS), (WIDER, tnadapt.init(WIDER))]), r"link 1.*at layers\.0\.up: \(16, 12\)"),
        (lambda: Chain([(LORA, PARAMS)]).extended(WIDER, tnadapt.init(WIDER)), r"link 1.*same sites as link 0"),
        (lambda: Chain([(LORA, {})]), "expected the params of its adapter, got none"),
        (lambda: Chain([(LORA, PARAMS | {"z": 1})]), "got one more: 'z'"),
        (lambda: Chain([(LORA, PARAMS | {NAME: np.zeros(3)})]), r"expected shape \(.*\), got \(3,\)"),
        (lambda: Chain([(LORA, PARAMS | {NAME: np.zeros(PARAMS[NAME].shape, int)})]), "expected floats, got int64"),
        (lambda: Chain([(LORA, PARAMS | {NAME: PARAMS[NAME] * np.nan})]), "expected finite numbers"),
        (lambda: Chain([(LORA, PARAMS)]).merged({}), r"expected the weight layers\.0\.q, got none"),
        (lambda: Chain([(LORA, PARAMS)]).merged(3), "expected the host's weights by path"),
        (lambda: Chain([(LORA, PARAMS)]).delta("nowhere"), "expected a site of this adapter"),
        (lambda: Chain([(LORA, PARAMS)]).rank_bound("nowhere"), "expected a site of this adapter"),
        (lambda: Chain(rank=3), "Chain: expected a known argument"),
    ],
)
def test_mistakes_are_told(make, message):
    with pytest.raises(SiteError, match=message):
        make()


def test_the_table_has_families_of_both_kinds():
    """So that the test over all families sees chains and refusals."""
    kinds = {bool(case.spec.hosts) for case in FAMILIES.values()}
    assert kinds == {True, False}
