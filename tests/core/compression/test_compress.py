"""Compression compared with exact adapters, tensorly and dense linear algebra."""

from itertools import pairwise

import numpy as np
import pytest
import tensorly
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorly import decomposition

from tests.core.compression.updates import dense_of, falls, random_updates, relative_error
from tests.table import FAMILIES
from tests.thorough import each_kind
from tnadapt import (
    AdapterSpec,
    Site,
    SiteError,
    SpecError,
    compress,
    delta,
    families,
    frozen,
    grid,
    init,
    low_rank_updates,
    merge,
    normal,
    raw,
    same,
    save,
    trainable,
    unit,
    zeros,
)
from tnadapt.initializers import host
from tnadapt.testing import adapters, dense, random_params

KINDS = {"query": (12, 8), "value": (12, 8), "up": (8, 12)}
# Families for which the closest adapter is always found: singular values or linear equations determine every factor.
LINEAR = (
    "lora",
    "lora frozen a",
    "lora_xs",
    "mtlora_tasks",
    "tlora",
    "lokr whole",
    "krona",
    "gralora",
    "monarch",
    "btt",
)
TRAINS = ("lotr", "lotr by layer", "lotr_tt", "flora kernel", "fact_tk", "fact_tt", "tenslora", "metatt", "tt_lora")
CENTERED = ("tt_lora centered", "loretta centered", "quanta 2")


@pytest.mark.parametrize("name", LINEAR + TRAINS + CENTERED)
def test_updates_that_a_family_can_represent_are_recovered(name):
    case = FAMILIES[name]
    adapter = case.bind(layers=2, kinds=KINDS, seed=5)
    updates = low_rank_updates(adapter, random_params(adapter, np.random.default_rng(0)))
    found = compress(updates, case.spec, rank=case.rank, sizes=case.sizes, seed=5)
    assert found.adapter == adapter
    assert relative_error(updates, found) < 1e-6
    assert found.error < 1e-6


@each_kind
def test_a_fit_that_starts_at_the_exact_params_stays_there(adapter, moved):
    params = moved(adapter)
    updates = low_rank_updates(adapter, params)
    has_map = any(factor.map for factor in adapter.spec.arrays.values())
    if reason := "a map on '.*'" if has_map and not adapter.spec.hosts else reason_of(adapter):
        with pytest.raises(SpecError, match=f"compress: expected .*, got {reason}"):
            compress(updates, adapter.spec, rank=adapter.rank, sizes=adapter.sizes)
        return
    found = compress(
        updates, adapter.spec, rank=adapter.rank, sizes=adapter.sizes, seed=adapter.seed, start=params, sweeps=2
    )
    for site, update in dense_of(updates).items():
        np.testing.assert_allclose(delta(adapter, params, site), update, atol=1e-10 * np.abs(update).max())
    assert relative_error(updates, found) < 1e-7  # the square root of a rounding error
    for name, slot in adapter.slots.items():
        if not slot.factor.trainable:
            np.testing.assert_array_equal(found.params[name], params[name])


def reason_of(adapter):
    """What an update is not linear in, or what several groups would have to fit together; empty if it can be fitted."""
    spec, network = adapter.spec, adapter.networks[0]
    if spec.hosts:
        return "the host's weight as '[WMU]'"
    trained = [[n for n in term.nodes if network.is_trained(n)] for term in network.terms]
    factors = [network.nodes[name].factor for names in trained for name in names]
    if len({*factors}) < len(factors):
        return "'.*' twice"
    is_shared = any(factor.shared and factor.trainable for factor in spec.arrays.values())
    return r"'.*', which \d+ groups share" if is_shared and len(adapter.groups) > 1 else ""


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    adapter=st.sampled_from(["zero", "centered"]).flatmap(lambda start: adapters(start=start)), seed=st.integers(0, 99)
)
def test_errors_never_rise_and_agree_with_their_definition(adapter, seed):
    random = np.random.default_rng(seed)
    updates = {site: random.standard_normal(site.shape) for site in adapter.sites}

    def fit():
        words = {"rank": adapter.rank, "sizes": adapter.sizes, "seed": seed, "overparametrized": True}
        return compress(updates, adapter.spec, starts=2, sweeps=3, **words)

    if reason := reason_of(adapter):
        with pytest.raises(SpecError, match=f"compress: expected .*, got {reason}"):
            fit()
        return
    found = fit()
    assert falls(found)
    drawn = init(found.adapter)
    trained = {name for name, slot in found.adapter.slots.items() if slot.factor.trainable}
    rest = {name: value * (name not in trained) for name, value in found.params.items()}  # what no factor is trained in
    norms = {
        site: [np.linalg.norm(part) for part in (missed, update, dense(found.adapter, rest, site))]
        for site, update in updates.items()
        for missed in [dense(found.adapter, found.params, site) - update]
    }
    missed, whole, start = np.linalg.norm(list(norms.values()), axis=0)
    rounding = 1e-6  # squares are rounded at 1e-15 of the largest one, which may be that of the starting values
    np.testing.assert_allclose(found.error, missed / whole, atol=rounding * max(1, start / whole))
    for site, (missed, whole, start) in norms.items():
        np.testing.assert_allclose(found.errors[site], missed / whole, atol=10 * rounding * max(1, start / whole))
    assert all(np.array_equal(found.params[name], drawn[name]) for name in drawn.keys() - trained)
    if adapter.spec.start != "centered":
        assert found.error <= 1 + 1e-12  # an update of 0 has the error 1


A, B = trainable("r in"), trainable("out r", init=zeros())
TWO_SHAPES = grid(layers=1, kinds={"q": (6, 4), "v": (4, 4)})


@pytest.mark.parametrize(
    ("factors", "terms", "reason"),
    [
        ({"A": A, "B": B, "D": B}, ["B A", "D A"], "'A' twice"),
        ({"A": A, "B": B, "A2": same("A")}, [], "'A' twice"),
        ({"A": A, "B": B, "W": frozen("out in", init=host())}, [], "the host's weight as 'W'"),
        ({"A": trainable("r in", shared=True), "B": B}, [], "'A', which 2 groups share"),
    ],
)
def test_what_no_sweep_can_fit_is_refused(factors, terms, reason):
    spec = AdapterSpec(name="own", weight="out in", factors=factors, terms=terms)
    with pytest.raises(SpecError, match=f"compress: expected .*, got {reason}"):
        compress(random_updates(TWO_SHAPES, rank=2), spec, rank=2)


@pytest.mark.parametrize("sign", ["", "- "])
def test_the_terms_of_a_sum_are_fitted_in_turn(sign):
    """Updates that are such a sum are found again; a LoRA of the same rank for each layer cannot give them."""
    factors = {"A": trainable("layer r in"), "B": trainable("layer out r", init=zeros())}
    factors |= {"C": trainable("q in"), "D": trainable("out q", init=zeros())}
    spec = AdapterSpec(name="own", weight="out in", over="layer", factors=factors, terms=["B A", f"{sign}D C"])
    adapter = spec.bind(grid(layers=4, kinds={"q": (12, 10)}), rank=2)
    params = random_params(adapter, np.random.default_rng(0))
    updates = {site: delta(adapter, params, site) for site in adapter.sites}
    found = compress(updates, spec, rank=2, sweeps=500)
    assert found.error < 1e-3
    assert falls(found)
    assert relative_error(updates, found) == pytest.approx(found.error, abs=1e-6)
    assert compress(updates, "lora", rank=2).error > 0.3


def test_a_term_may_have_the_starting_values_of_a_factor_of_another():
    """dW = B A + D A0: D leaves of the updates what is orthogonal to A0, of which B A gives the best rank 2."""
    factors = {"A": trainable("r in", init=normal(0.5)), "B": B, "A0": same("A", at_start=True), "D": B}
    spec = AdapterSpec(name="own", weight="out in", factors=factors, terms=["B A", "D A0"])
    updates = random_updates(TWO_SHAPES[:1], rank=4)
    found = compress(updates, spec, rank=2, sweeps=2000, tolerance=0.0)
    ((site, update),) = dense_of(updates).items()
    start = init(found.adapter)["A"]
    assert found.params.keys() == init(found.adapter).keys()
    values = np.linalg.svd(update - update @ np.linalg.pinv(start) @ start, compute_uv=False)
    np.testing.assert_allclose(found.errors[site], np.linalg.norm(values[2:]) / np.linalg.norm(update), atol=1e-3)
    assert relative_error(updates, found) == pytest.approx(found.error, abs=1e-6)


def test_a_shared_factor_of_a_single_group_is_fitted():
    spec = AdapterSpec(name="own", weight="out in", factors={"A": trainable("r in", shared=True), "B": B})
    assert compress(random_updates(TWO_SHAPES[:1], rank=2), spec, rank=2).error < 1e-6


def test_terms_without_trained_factors_are_subtracted_from_what_is_fitted():
    """dW = B A - F G with frozen F and G: the fit of B A is that of a LoRA to the updates plus F G."""
    factors = {"A": A, "B": trainable("out r"), "F": frozen("out q"), "G": frozen("q in")}
    spec = AdapterSpec(name="own", weight="out in", factors=factors, terms=["B A", "- F G"], start="free")
    updates = random_updates(TWO_SHAPES[:1], rank=5)
    found = compress(updates, spec, rank=2, seed=3)
    known = init(found.adapter)
    ((site, update),) = dense_of(updates).items()
    wanted = update + known["F"] @ known["G"]
    values = np.linalg.svd(wanted, compute_uv=False)
    best = np.linalg.norm(values[2:]) / np.linalg.norm(update)
    np.testing.assert_allclose(found.errors[site], best, rtol=1e-8)


def test_a_lora_is_truncated_to_its_best_approximation():
    sites = grid(layers=2, kinds={"q": (24, 20), "v": (12, 20)})
    updates = random_updates(sites, rank=6)
    found = compress(updates, families.lora(), rank=3)
    for site, update in dense_of(updates).items():
        values = np.linalg.svd(update, compute_uv=False)
        best = np.linalg.norm(values[3:]) / np.linalg.norm(values)  # Eckart and Young
        np.testing.assert_allclose(found.errors[site], best, rtol=1e-8)


def test_a_fit_stops_when_a_sweep_lowers_the_remaining_error_too_little():
    """The noise is small, so the remaining error is a small part of the update."""
    sites = grid(layers=3, kinds={"q": (12, 10)})
    truth = families.lorta().bind(sites, rank=3, sizes={"head": 2}, seed=1)
    random = np.random.default_rng(0)
    params = random_params(truth, random)
    updates = {site: delta(truth, params, site) for site in sites}
    updates = {site: one + 1e-3 * random.standard_normal(one.shape) for site, one in updates.items()}
    found = compress(updates, families.lorta(), rank=3, sizes={"head": 2}, seed=2, starts=1, tolerance=0.01)
    (errors,) = found.history.values()
    gains = [(before - now) / now for before, now in pairwise(errors)]
    assert found.error < 0.01
    assert 2 < len(gains) < 100
    assert min(gains[:-1]) > 0.01 >= gains[-1]


def test_an_exact_lotr_of_rank_16_is_recovered():
    sites = grid(layers=4, kinds={"query": (64, 48), "value": (64, 48)})
    truth = families.lotr().bind(sites, rank=16, seed=1)
    updates = low_rank_updates(truth, random_params(truth, np.random.default_rng(0)))
    assert {update.rank for update in updates.values()} == {16}
    found = compress(updates, families.lotr(), rank=16, seed=2)
    assert relative_error(updates, found) < 1e-5
    assert max(found.errors.values()) < 1e-5


def stacked(updates):
    return np.stack(list(dense_of(updates).values()))


def test_lotr_is_as_close_as_tucker_by_hooi():
    updates = random_updates(grid(layers=4, kinds={"q": (20, 16), "v": (20, 16)}), rank=5)
    found = compress(updates, families.lotr(), rank={"p": 6, "q": 4}, tolerance=1e-9)
    stack = stacked(updates)
    for rounds, slack in ((0, 0.0), (500, 1e-6)):  # HOSVD, and HOOI until it converges
        (core, parts), _ = decomposition.partial_tucker(
            stack, rank=[6, 4], modes=[1, 2], n_iter_max=max(rounds, 1), tol=1e-12 if rounds else 1e9
        )
        theirs = np.linalg.norm(stack - tensorly.tenalg.multi_mode_dot(core, parts, [1, 2])) / np.linalg.norm(stack)
        assert found.error <= theirs * (1 + slack)


def test_a_train_is_as_close_as_tt_svd():
    updates = random_updates(grid(layers=1, kinds={"q": (24, 20)}), rank=12)
    spec = families.tt_lora(out_order=2, in_order=2)
    found = compress(updates, spec, rank=3)
    network = found.adapter.networks[0]
    tensor = stacked(updates).reshape([network.sizes[mode] for mode in (*network.out_modes, *network.in_modes)])
    theirs = decomposition.tensor_train(tensor, rank=[1, 3, 3, 3, 1])
    assert found.error <= np.linalg.norm(tensor - tensorly.tt_to_tensor(theirs)) / np.linalg.norm(tensor)


def test_cp_tensors_are_as_close_as_those_of_parafac():
    """Both stop in local minima, and either may find the better one, so the means over five tensors are compared."""
    ours, theirs = [], []
    for seed in range(5):
        updates = random_updates(grid(layers=4, kinds=dict.fromkeys("qkv", (9, 5))), rank=3, seed=seed)
        ours.append(compress(updates, families.lorta(), rank=3, sizes={"head": 3}).error)
        tensor = stacked(updates).reshape(4, 3, 3, 3, 5)
        found = decomposition.parafac(tensor, 3, n_iter_max=200, init="svd", tol=1e-7)
        theirs.append(np.linalg.norm(tensor - tensorly.cp_to_tensor(found)) / np.linalg.norm(tensor))
    assert np.mean(ours) <= np.mean(theirs)


@pytest.mark.parametrize("name", ["lotr", "lorta", "tt_lora centered", "vera", "flora kernel"])
def test_low_rank_and_dense_updates_give_the_same_result(name):
    case = FAMILIES[name]
    adapter = case.bind(layers=2, kinds=KINDS)
    updates = random_updates(adapter.sites, rank=2)
    whole = dense_of(updates)
    mixed = {site: whole[site] if number % 2 else update for number, (site, update) in enumerate(updates.items())}
    found = [
        compress(one, case.spec, rank=case.rank, sizes=case.sizes, starts=1, sweeps=3)
        for one in (updates, whole, mixed)
    ]
    for site in adapter.sites:
        thin, *others = (delta(one.adapter, one.params, site) for one in found)
        for other in others:
            np.testing.assert_allclose(other, thin, atol=1e-10 * np.abs(thin).max())


def test_low_rank_updates_are_never_multiplied_out(monkeypatch):
    """No contraction is as large as one update, although the fits are inexact and pairs are tried."""
    sites = grid(layers=2, kinds={"q": (400, 300)})
    updates = random_updates(sites, rank=4)
    largest = 0
    plain = np.asarray

    def seen(array, dtype=None):
        nonlocal largest
        made = plain(array, dtype)
        largest = max(largest, made.size)
        return made

    monkeypatch.setattr("tnadapt._values.einsum.np.asarray", seen)
    for spec in (families.lora(), families.lotr(), families.tenslora(), families.vera()):
        assert compress(updates, spec, rank=2, sweeps=2).error > 0.1
    assert 0 < largest < 400 * 300


def test_a_site_mode_that_no_factor_carries_gets_the_mean():
    spec = AdapterSpec(
        name="mean",
        weight="out in",
        over="layer",
        factors={"A": trainable("out p"), "B": trainable("p in", init=zeros())},
        scale=raw(),
    )
    updates = random_updates(grid(layers=3, kinds={"q": (5, 4)}), rank=4)
    found = compress(updates, spec, rank=4)
    mean = np.mean(list(dense_of(updates).values()), axis=0)
    for site in updates:
        np.testing.assert_allclose(delta(found.adapter, found.params, site), mean, atol=1e-10)


def test_updates_of_zero_are_fitted_exactly():
    sites = grid(layers=2, kinds={"q": (6, 5)})
    still = compress({site: np.zeros(site.shape) for site in sites}, families.lora(), rank=2)
    assert still.error == 0.0
    assert set(still.errors.values()) == {0.0}
    half = {sites[0]: np.ones(sites[0].shape), sites[1]: np.zeros(sites[1].shape)}
    assert compress(half, families.lora(), rank=2).errors[sites[1]] == 0.0
    shared = compress(half, families.vera(), rank=2)
    assert shared.errors[sites[1]] == 0.0
    spec = AdapterSpec(
        name="one",
        weight="out in",
        over="layer",
        factors={"a": trainable("out", init=zeros()), "b": frozen("in")},
        scale=raw(),
    )
    assert compress(half, spec).errors[sites[1]] == np.inf


def test_progress_is_reported_after_each_sweep():
    updates = random_updates(grid(layers=2, kinds={"q": (6, 5)}), rank=4)
    told = []
    found = compress(updates, families.lora(), rank=2, sweeps=7, tell=told.append)
    assert {(one.groups, one.sweeps) for one in told} == {(2, 7)}
    assert [one.group for one in told] == sorted(one.group for one in told)
    assert told[-1].number == 7
    assert told[-1].error == found.history["1.q"][-1]


def test_each_sweep_after_the_race_is_told_by_its_number():
    told = []
    updates = random_updates(grid(layers=4, kinds={"q": (6, 5)}), rank=4)
    history = compress(updates, families.lotr(), rank=2, sweeps=30, tolerance=0, tell=told.append).history["6x5"]
    swept = [one for one in told if 0 < one.number < 30]
    assert len(swept) > 3
    assert [one.error for one in swept] == [history[one.number] for one in swept]


def test_equal_seeds_give_equal_results_which_can_be_saved_and_merged(tmp_path):
    updates = random_updates(grid(layers=2, kinds={"q": (6, 5)}), rank=4)
    one, two = (compress(updates, families.vera(), rank=2, seed=3) for _ in range(2))
    assert all(np.array_equal(one.params[name], two.params[name]) for name in one.params)
    save(one.adapter, one.params, tmp_path / "one.safetensors")
    site = one.adapter.sites[0]
    assert merge(np.zeros((6, 5)), delta(one.adapter, one.params, site)).shape == (6, 5)


def test_a_start_that_is_read_from_the_host_is_part_of_the_fit():
    """PiSSA's update is a difference of two products, so the target of the fit has the rank of both."""
    sites = grid(layers=2, kinds={"q": (8, 6)})
    random = np.random.default_rng(0)
    weights = {site.path: random.standard_normal(site.shape) for site in sites}
    truth = families.pissa().bind(sites, rank=2)
    begun = init(truth, weights)
    moved = begun | {name: random.standard_normal(begun[name].shape) for name in begun if not name.endswith(":start")}
    found = compress(low_rank_updates(truth, moved), families.pissa(), rank=2, weights=weights)
    for site in sites:
        update = delta(truth, moved, site)
        np.testing.assert_allclose(delta(found.adapter, found.params, site), update, atol=1e-6 * np.abs(update).max())
    with pytest.raises(SiteError, match=r"pissa: expected the host's weights to read the start of \S+ from, got none"):
        compress(low_rank_updates(truth, moved), families.pissa(), rank=2)


SITE = Site("layers.0.q", (6, 5))


@pytest.mark.parametrize(
    ("updates", "words", "match"),
    [
        ({SITE: np.zeros((5, 6))}, {}, r"layers.0.q: expected an update of shape \(6, 5\), got \(5, 6\)"),
        ({SITE: np.zeros((6, 5))}, {"sweeps": 0}, "expected starts and sweeps of at least 1, got None and 0"),
        ({SITE: np.zeros((6, 5))}, {"starts": 0}, "expected starts and sweeps of at least 1, got 0 and 100"),
        ({SITE: np.zeros((6, 5))}, {"start": {}}, "start: expected an array 'A', got none"),
        ({SITE: np.zeros((6, 5))}, {"start": {"A": np.zeros(3), "B": np.zeros(3)}}, r"start\['A'\]: expected shape"),
        ({SITE: np.zeros((6, 5))}, {"rank": {"x": 2}}, "expected bonds of lora or names of adapted modules, got 'x'"),
        ({}, {}, "expected at least one site, got none"),
    ],
)
def test_invalid_arguments_are_refused(updates, words, match):
    with pytest.raises(SiteError, match=match):
        compress(updates, families.lora(), **({"rank": 2} | words))


def test_a_scale_only_rescales_the_params():
    update = {SITE: np.random.default_rng(0).standard_normal((6, 5))}
    plain, other = (compress(update, families.lora(), rank=2, scale=scale) for scale in (None, unit(2.0)))
    assert other.adapter == families.lora().bind([SITE], rank=2, scale=unit(2.0))
    assert other.error == pytest.approx(plain.error, rel=1e-6)
