"""The starts of alternating least squares."""

import numpy as np
import pytest

from tests.core.compression.updates import dense_of, problem_of, random_updates, squared_error
from tnadapt import Site, compress, families, grid
from tnadapt._compression.first_guess import random_start, spectral_start, trained_start, tries_of

ONE = [Site("w", (8, 6))]


def random():
    return np.random.default_rng(0)


@pytest.mark.parametrize(
    ("spec", "starts", "tried"),
    [
        (families.lotr(), None, 1),  # a tree
        (families.lora_xs(), None, 1),  # one trained factor
        (families.loha(), None, 4),
        (families.loha(), 6, 6),
        (families.loha(), 1, 1),
        (families.lotr(), 2, 2),
    ],
)
def test_the_number_of_starts_is_the_one_asked_for_or_the_default(spec, starts, tried):
    updates = random_updates(grid(layers=1, kinds={"q": (8, 6)}), rank=6)
    told = []
    found = compress(updates, spec, rank=2, starts=starts, sweeps=1, tell=told.append)
    begun = [one.error for one in told if one.number == 0]
    assert len(begun) == tried
    assert begun == sorted(begun, reverse=True)  # each report has the lowest error so far
    assert next(iter(found.history.values()))[-1] <= begun[-1]


def test_the_first_start_is_spectral_and_the_second_is_that_of_training():
    problem, factors = problem_of(families.loha().bind(ONE, rank=2), random_updates(ONE, rank=4))
    first, second, *others = tries_of(problem, factors, 4, [0, 0])
    for found, wanted in (
        (first, spectral_start(problem, factors, np.random.default_rng([0, 0]))),
        (second, trained_start(problem, factors)),
    ):
        assert all(np.array_equal(found[name], wanted[name]) for name in factors)
    assert not np.array_equal(others[0]["A1"], others[1]["A1"])


@pytest.mark.parametrize("shape", [(8, 6), (6, 8)])
def test_the_spectral_start_of_a_lora_is_its_best_approximation(shape):
    sites = [Site("w", shape)]
    updates, adapter = random_updates(sites, rank=5), families.lora().bind(sites, rank=3)
    found = spectral_start(*problem_of(adapter, updates), random())
    values = np.linalg.svd(dense_of(updates)[sites[0]], compute_uv=False)
    assert squared_error(adapter, found, updates) == pytest.approx(np.sum(values[3:] ** 2), rel=1e-6)  # Eckart-Young


def test_the_spectral_start_of_a_tucker_network_is_the_hosvd():
    """At the rank of the updates the error is 0; below it, the error is that of the two projections."""
    sites = grid(layers=3, kinds={"q": (8, 6)})
    updates = random_updates(sites, rank=2)
    adapter = families.lotr().bind(sites, rank={"p": 6, "q": 6})
    found = spectral_start(*problem_of(adapter, updates), random())
    assert squared_error(adapter, found, updates) < 1e-16 * sum(np.sum(one**2) for one in dense_of(updates).values())
    adapter = families.lotr().bind(sites, rank={"p": 3, "q": 2})
    found = spectral_start(*problem_of(adapter, updates), random())
    stack = np.stack(list(dense_of(updates).values()))
    left = np.linalg.svd(stack.transpose(1, 0, 2).reshape(8, -1))[0][:, :3]
    right = np.linalg.svd(stack.transpose(2, 0, 1).reshape(6, -1))[0][:, :2]
    kept = np.einsum("op,iq,soi->spq", left, right, stack)
    assert squared_error(adapter, found, updates) == pytest.approx(np.sum(stack**2) - np.sum(kept**2), rel=1e-6)


def test_the_start_of_training_is_kept_except_for_a_zero_factor_which_is_solved():
    updates, adapter = random_updates(ONE, rank=4), families.lora().bind(ONE, rank=2)
    problem, factors = problem_of(adapter, updates)
    found = trained_start(problem, factors)
    assert squared_error(adapter, found, updates) < squared_error(adapter, factors, updates)
    best = np.linalg.lstsq(factors["A"].T, dense_of(updates)[ONE[0]].T, rcond=None)[0].T @ factors["A"]
    np.testing.assert_allclose(problem.network.scale * found["B"] @ found["A"], best, atol=1e-10)
    moved = factors | {"B": np.ones((8, 2))}
    again = trained_start(problem, moved)
    assert all(again[name] is moved[name] for name in moved)  # no factor is 0


@pytest.mark.parametrize("start", [random_start, spectral_start])
def test_a_start_is_reproducible_and_keeps_the_frozen_factors(start):
    updates, adapter = random_updates(ONE, rank=4), families.vera().bind(ONE, rank=3)
    problem, factors = problem_of(adapter, updates)
    one, two = (start(problem, factors, random()) for _ in range(2))
    assert all(np.array_equal(one[name], two[name]) for name in factors)
    for name in ("A", "B"):
        assert np.array_equal(one[name], factors[name])
    for name in ("b", "d"):
        assert one[name].shape == factors[name].shape
        assert not np.array_equal(one[name], factors[name])
