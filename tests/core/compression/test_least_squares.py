"""Alternating least squares: turned factors, normal equations, and their accuracy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.compression.updates import dense_of, problem_of, random_updates, squared_error
from tests.table import FAMILIES
from tnadapt import AdapterSpec, Site, compress, delta, families, frozen, grid, raw, trainable, zeros
from tnadapt._compression.least_squares import (
    Problem,
    improve_factor,
    improve_pair,
    merged_modes,
    pairs_of,
    system_of,
    turn_to,
)
from tnadapt.testing import random_params

HOLES = [site for site in grid(layers=2, kinds={"q": (8, 6), "v": (8, 6)}) if site.path != "layers.1.v"]


def moved(adapter, updates):
    """Return the problem of an adapter, and random values of its factors."""
    problem, _ = problem_of(adapter, updates)
    return problem, random_params(adapter, np.random.default_rng(1))


SPECS = {
    "lora": (families.lora(), HOLES[:1], 2),
    "lotr": (families.lotr(), HOLES, {"p": 3, "q": 2}),
    "with holes": (families.tenslora(), HOLES, 2),
    "a hyperedge": (families.loha(), HOLES[:1], 2),
    "frozen factors": (families.vera(), HOLES[:1], 3),
    "a train": (families.lotr_tt(), HOLES, 2),
}
every_spec = pytest.mark.parametrize(("spec", "sites", "rank"), SPECS.values(), ids=SPECS)


@every_spec
def test_the_loss_of_a_system_is_the_squared_error_for_any_block(spec, sites, rank):
    adapter, updates = spec.bind(sites, rank=rank), random_updates(sites, rank=3)
    problem, factors = moved(adapter, updates)
    random = np.random.default_rng(2)
    for name in problem.trainable:
        block = random.standard_normal(factors[name].shape)
        wanted = squared_error(adapter, factors | {name: block}, updates)
        assert system_of(problem, factors, (name,)).loss(block) == pytest.approx(wanted, rel=1e-9)


@every_spec
def test_an_improved_factor_is_optimal(spec, sites, rank):
    """The derivative with respect to each of its numbers is 0, and the returned error is the actual one."""
    adapter, updates = spec.bind(sites, rank=rank), random_updates(sites, rank=3)
    problem, factors = moved(adapter, updates)
    for name in problem.trainable:
        found, loss = improve_factor(problem, factors, name)
        before, after = (squared_error(adapter, one, updates) for one in (factors, found))
        assert loss == pytest.approx(after, rel=1e-8, abs=1e-10 * problem.square)
        assert after <= before * (1 + 1e-12)
        system = system_of(problem, found, (name,))
        pull = system.pull - system.act(found[name])
        assert np.abs(pull).max() < 1e-8 * np.abs(system.pull).max()


@every_spec
def test_conjugate_gradients_agree_with_the_eigendecomposition(spec, sites, rank, monkeypatch):
    adapter, updates = spec.bind(sites, rank=rank), random_updates(sites, rank=3)
    problem, factors = moved(adapter, updates)
    for name in problem.trainable:
        direct = system_of(problem, factors, (name,))
        with monkeypatch.context() as patch:
            patch.setattr("tnadapt._compression.least_squares.MATRIX", 0)
            other = system_of(problem, factors, (name,))
        assert direct.matrix is not None
        assert other.matrix is None
        losses = [system.loss(system.solve(factors[name])) for system in (direct, other)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_an_improved_pair_is_the_best_matrix_of_its_rank():
    sites = HOLES[:1]
    adapter, updates = families.lora().bind(sites, rank=2), random_updates(sites, rank=5)
    problem, factors = moved(adapter, updates)
    (pair,) = pairs_of(problem)
    found, loss, is_better = improve_pair(problem, factors, pair)
    values = np.linalg.svd(dense_of(updates)[sites[0]], compute_uv=False)
    assert is_better
    assert loss == pytest.approx(np.sum(values[2:] ** 2))
    assert squared_error(adapter, found, updates) == pytest.approx(loss)
    again, same, is_better = improve_pair(problem, found, pair)
    assert same <= loss * (1 + 1e-12)
    assert squared_error(adapter, again, updates) == pytest.approx(loss)


@given(seed=st.integers(0, 999), name=st.sampled_from(["lotr", "with holes", "a hyperedge", "a train"]))
def test_improving_a_pair_never_increases_the_error(seed, name):
    spec, sites, rank = SPECS[name]
    adapter, updates = spec.bind(sites, rank=rank), random_updates(sites, rank=2, seed=seed)
    problem, _ = problem_of(adapter, updates)
    factors = random_params(adapter, np.random.default_rng(seed))
    before = squared_error(adapter, factors, updates)
    for pair in pairs_of(problem):
        found, loss, _ = improve_pair(problem, factors, pair)
        after = squared_error(adapter, found, updates)
        assert after <= before * (1 + 1e-9)
        assert loss == pytest.approx(after, rel=1e-6, abs=1e-10 * problem.square)


def test_a_pair_that_is_worse_after_its_split_is_left_unchanged():
    """After a long descent for a Hadamard product, the merged pair is better, but its best split is not."""
    adapter, updates = families.loha().bind(HOLES[:1], rank=1), random_updates(HOLES[:1], rank=4)
    problem, factors = moved(adapter, updates)
    for _ in range(200):
        for name in problem.trainable:
            factors, _ = improve_factor(problem, factors, name)
    before = squared_error(adapter, factors, updates)
    for pair in pairs_of(problem):
        found, loss, is_better = improve_pair(problem, factors, pair)
        assert not is_better
        assert squared_error(adapter, found, updates) == pytest.approx(loss) == pytest.approx(before)


def test_merged_factors_lose_only_the_bonds_between_them():
    sites = grid(layers=2, kinds={"q": (8, 6)})
    problem, _ = problem_of(families.lotr().bind(sites, rank=2), random_updates(sites, rank=2))
    assert merged_modes(problem, ("A",)) == ("out", "p")
    assert merged_modes(problem, ("A", "G")) == ("out", "site", "q")
    assert merged_modes(problem, ("A", "B", "G")) == ("out", "in", "site")
    assert problem.links == {("A", "G"): ("p",), ("B", "G"): ("q",)}


def test_a_pair_whose_block_is_larger_than_the_updates_and_factors_is_not_solved():
    """For a weight of 40 x 30 at rank 1, the block has 1,200 numbers, the update 70 and the two factors 70."""
    sites = [Site("w", (40, 30))]
    adapter, thin = families.lora().bind(sites, rank=1), random_updates(sites, rank=1)
    assert pairs_of(problem_of(adapter, thin)[0]) == []
    assert pairs_of(problem_of(adapter, dense_of(thin))[0]) == [("A", "B")]


@pytest.mark.parametrize(
    ("spec", "is_tree"),
    [(families.lora(), True), (families.lotr(), True), (families.loha(), False), (families.lora_xs(), False)],
)
def test_a_tree_has_only_trainable_factors_and_no_loop(spec, is_tree):
    problem, _ = problem_of(spec.bind(HOLES[:1], rank=2), random_updates(HOLES[:1], rank=2))
    assert problem.is_tree == is_tree


def turned_everywhere(name):
    """Return an adapter, random params, its problem, and its factors turned to each factor as the centre."""
    adapter = FAMILIES[name].bind(layers=3, kinds={"q": (8, 12), "v": (8, 12)})
    group, params = adapter.groups[0], random_params(adapter, np.random.default_rng(0))
    factors = {factor: params[adapter.slot_name(group, factor)] for factor in group.network.factors}
    problem = Problem(group.network, (), (), np.ones([group.network.sizes[mode] for mode in group.network.over]))
    return adapter, params, problem, {name: turn_to(problem, factors, (name,)) for name in factors}


@pytest.mark.parametrize(
    "name", ["lora", "mtlora_tasks", "lotr", "lotr_tt", "fact_tk", "loha", "superlora", "metatt heads"]
)
def test_turning_does_not_change_the_updates(name):
    adapter, params, _, turned = turned_everywhere(name)
    group = adapter.groups[0]
    for factors in turned.values():
        renamed = {adapter.slot_name(group, factor): value for factor, value in factors.items()}
        for site in group.sites:
            np.testing.assert_allclose(delta(adapter, params | renamed, site), delta(adapter, params, site), atol=1e-9)


@pytest.mark.parametrize("name", ["lora", "lotr", "fact_tk", "metatt heads"])
def test_turning_makes_the_normal_matrix_the_identity(name):
    _, _, problem, turned = turned_everywhere(name)
    assert problem.is_tree
    for centre, factors in turned.items():
        system = system_of(problem, factors, (centre,))
        width = problem.network.volume(system.bonds)
        matrices = system.matrix.reshape(-1, width, width) / problem.network.scale**2
        np.testing.assert_allclose(matrices, np.broadcast_to(np.eye(width), matrices.shape), atol=1e-10)


def test_a_large_core_is_solved_by_conjugate_gradients(monkeypatch):
    updates = random_updates(grid(layers=3, kinds={"q": (12, 10)}), rank=4)
    direct = compress(updates, families.lora_xs(), rank=4, sweeps=1)
    monkeypatch.setattr("tnadapt._compression.least_squares.DIRECT", 1)
    other = compress(updates, families.lora_xs(), rank=4, sweeps=1)
    np.testing.assert_allclose(other.error, direct.error, rtol=1e-9)


def test_directions_of_very_different_scales_are_all_fitted():
    """The frozen factor has singular values 1 and 1e-4, so the normal equations have eigenvalues 1 and 1e-8."""
    spec = AdapterSpec(
        name="own",
        weight="out in",
        factors={"A": frozen("r in"), "B": trainable("out r", init=zeros())},
        scale=raw(),
    )
    random = np.random.default_rng(0)
    left, right = np.linalg.qr(random.standard_normal((2, 2)))[0], np.linalg.qr(random.standard_normal((6, 2)))[0]
    start = {"A": left @ np.diag([1.0, 1e-4]) @ right.T, "B": np.zeros((5, 2))}
    site = Site("w", (5, 6))
    found = compress({site: random.standard_normal((5, 2)) @ right.T}, spec, rank=2, start=start)
    assert found.error < 1e-6
