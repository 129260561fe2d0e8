"""Alternating least squares: turned factors, normal equations, and their accuracy."""

import numpy as np
import pytest

from tests.core.compression.updates import random_updates
from tests.table import FAMILIES
from tnadapt import (
    AdapterSpec,
    Site,
    compress,
    delta,
    families,
    frozen,
    grid,
    raw,
    trainable,
    zeros,
)
from tnadapt._compression.least_squares import Problem, system_of, turn_to
from tnadapt.testing import random_params


def turned_everywhere(name):
    """A family on one shape, params as after training, its problem, and its factors turned to each of them."""
    adapter = FAMILIES[name].bind(layers=3, kinds={"q": (8, 12), "v": (8, 12)})
    group, params = adapter.groups[0], random_params(adapter, np.random.default_rng(0))
    factors = {factor: params[adapter.slot_name(group, factor)] for factor in group.network.factors}
    problem = Problem(group.network, (), (), np.ones([group.network.sizes[mode] for mode in group.network.over]))
    return adapter, params, problem, {name: turn_to(problem, factors, (name,)) for name in factors}


@pytest.mark.parametrize("name", ["lora", "mtlora", "lotr", "lotr_tt", "fact_tk", "loha", "superlora", "metatt heads"])
def test_turning_changes_no_update(name):
    adapter, params, _, turned = turned_everywhere(name)
    group = adapter.groups[0]
    for factors in turned.values():
        renamed = {adapter.slot_name(group, factor): value for factor, value in factors.items()}
        for site in group.sites:
            np.testing.assert_allclose(delta(adapter, params | renamed, site), delta(adapter, params, site), atol=1e-9)


@pytest.mark.parametrize("name", ["lora", "lotr", "fact_tk", "metatt heads"])
def test_turning_makes_normal_equations_trivial(name):
    _, _, problem, turned = turned_everywhere(name)
    assert problem.is_tree
    for centre, factors in turned.items():
        system = system_of(problem, factors, (centre,))
        width = problem.network.volume(system.bonds)
        matrices = system.matrix.reshape(-1, width, width) / problem.network.scale**2
        np.testing.assert_allclose(matrices, np.broadcast_to(np.eye(width), matrices.shape), atol=1e-10)


def test_a_large_core_is_solved_without_its_matrix(monkeypatch):
    updates = random_updates(grid(layers=3, kinds={"q": (12, 10)}), rank=4)
    direct = compress(updates, families.lora_xs(), rank=4, sweeps=1)
    monkeypatch.setattr("tnadapt._compression.least_squares.DIRECT", 1)
    other = compress(updates, families.lora_xs(), rank=4, sweeps=1)
    np.testing.assert_allclose(other.error, direct.error, rtol=1e-9)


def test_directions_of_very_different_size_are_all_fitted():
    """The frozen side has singular values 1 and 1e-4, so that the normal equations have eigenvalues 1 and 1e-8."""
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
