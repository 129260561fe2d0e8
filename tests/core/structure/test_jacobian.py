"""One Jacobian of groups that share trained factors, against the numerical one."""

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.thorough import IS_THOROUGH
from tnadapt import AdapterSpec, PlanError, Site, count, degrees_of_freedom, families, grid, same, trainable
from tnadapt._structure.jacobian import joined_rank
from tnadapt._structure.modular import Budget
from tnadapt.testing import adapters, gradients, random_params


def numerical_rank(adapter, seed=0):
    """Return the rank of the gradients of random functionals of all updates, by the float64 oracle."""
    random = np.random.default_rng(seed)
    params = random_params(adapter, random, frozen=True)
    names = [name for name, slot in adapter.slots.items() if slot.factor.trainable]
    rows = []
    for _ in range(count(adapter).trainable + 1):
        pulls = {site.path: random.standard_normal(site.shape) for site in adapter.sites}
        found = gradients(adapter, params, pulls)
        rows.append(np.concatenate([found[name].ravel() for name in names]))
    return int(np.linalg.matrix_rank(np.array(rows)))


def budget():
    return Budget("a test", flops=10**12)


@settings(
    max_examples=150 if IS_THOROUGH else 25, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow]
)
@given(adapter=adapters(lengths=st.integers(1, 5)), seed=st.integers(0, 99))
def test_the_rank_of_all_groups_is_that_of_the_numerical_jacobian(adapter, seed):
    """Whether the groups share a factor or not."""
    assume(1 <= count(adapter).trainable <= 80)
    assume(not any(factor.map for factor in adapter.spec.arrays.values()))
    found = joined_rank(adapter, 0, budget())
    assert found == numerical_rank(adapter, seed)
    assert found == degrees_of_freedom(adapter).degrees


KINDS = {"q": (4, 3), "k": (2, 5), "v": (4, 3)}
SHARED = {
    "sharelora, A": families.sharelora(share="A"),
    "sharelora, B": families.sharelora(share="B"),
    "sharelora, both": families.sharelora(share="A B"),
    "less its start": AdapterSpec(
        name="own",
        weight="out in",
        factors={"A": trainable("r in", shared=True), "C": same("A", at_start=True), "B": trainable("out r")},
        terms=["B A", "- B C"],
    ),
}


@pytest.mark.parametrize("name", SHARED)
def test_specs_with_a_shared_factor_agree_with_the_numerical_jacobian(name):
    adapter = SHARED[name].bind(grid(layers=2, kinds=KINDS), rank=2)
    assert adapter.joined
    assert degrees_of_freedom(adapter).degrees == numerical_rank(adapter)
    if name != "less its start":
        assert degrees_of_freedom(adapter).gauge == 4  # one change of basis for all groups


def test_a_grid_with_holes_counts_the_sites_that_are_there():
    factors = {"A": trainable("layer in"), "B": trainable("kind out"), "s": trainable("", shared=True)}
    spec = AdapterSpec(name="own", weight="out in", over="layer kind", factors=factors, start="free")
    sites = [
        Site(f"{n}.{kind}", (2, size), {"layer": n, "kind": kind})
        for n, kind, size in ((0, "q", 2), (1, "k", 2), (0, "v", 3))
    ]
    adapter = spec.bind(sites)
    assert [group.places is None for group in adapter.groups] == [False, True]
    assert degrees_of_freedom(adapter).degrees == numerical_rank(adapter)


def test_work_is_limited_there_too(monkeypatch):
    monkeypatch.setattr("tnadapt._structure.freedom.WORK", 100)
    with pytest.raises(PlanError, match=r"degrees_of_freedom: expected at most 100 flops modulo a prime, got more"):
        degrees_of_freedom(SHARED["sharelora, A"].bind(grid(layers=2, kinds=KINDS), rank=2))
