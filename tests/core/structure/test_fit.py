"""The largest rank within a budget of trainable numbers."""

import numpy as np
import pytest

from tests.table import places, required_of
from tnadapt import (
    AdapterSpec,
    SiteError,
    count,
    families,
    fit_rank,
    frozen,
    grid,
    raw,
    report,
    trainable,
    zeros,
)

KINDS = {"q": (24, 16), "v": (24, 16), "up": (32, 24)}
SITES = grid(layers=3, kinds=KINDS)


@pytest.mark.parametrize("name", [name for name in families.__all__ if getattr(families, name)().free_bonds])
@pytest.mark.parametrize("budget", [3_000, 20_000, 10**7])
def test_the_fitted_rank_is_the_largest_within_the_budget(name, budget):
    spec = getattr(families, name)()
    sites = places(spec, layers=3, kinds=KINDS)
    sizes = dict.fromkeys(required_of(spec), 8)
    rank = fit_rank(spec, sites, trainable=budget, sizes=sizes)

    def bound(rank):
        return spec.bind(sites, rank=rank, sizes=sizes, overparametrized=True)

    found = count(bound(rank)).trainable
    assert found <= budget
    more = count(bound(rank + 1)).trainable
    assert more > budget or rank == 32 or more == found == count(bound(32)).trainable
    if rank > 1:
        assert count(bound(rank - 1)).trainable < found


def test_too_small_a_budget_and_a_spec_without_a_free_bond_are_refused():
    with pytest.raises(
        SiteError, match=r"lora: expected a budget of at least 408 trainable .* at these 9 sites, got 407\.\nRaise it"
    ):
        fit_rank(families.lora(), SITES, trainable=407)
    assert fit_rank(families.lora(), SITES, trainable=408) == 1
    with pytest.raises(SiteError, match="expected a spec with a bond whose size is free, got none"):
        fit_rank(families.lokr(low_rank=False), SITES, trainable=10**6)


def test_a_rank_without_trainable_numbers_is_as_large_as_possible():
    factors = {"A": frozen("out r"), "B": frozen("r in"), "s": trainable("", init=zeros())}
    spec = AdapterSpec(name="free", weight="out in", factors=factors, scale=raw())
    assert fit_rank(spec, SITES[:1], trainable=1) == 24


@pytest.mark.parametrize("budget", [0, -1, 2.5, float("nan"), "many", None])
def test_a_budget_that_is_not_a_positive_integer_is_refused(budget):
    with pytest.raises(
        SiteError, match=r"lora: the budget of trainable numbers: expected an integer of at least 1, got"
    ):
        fit_rank(families.lora(), SITES, trainable=budget)


def test_a_fit_keeps_the_sizes_that_are_given():
    assert fit_rank(families.lorta(), SITES, trainable=2_000, sizes={"head": 8}) == max(
        rank
        for rank in range(1, 33)
        if count(families.lorta().bind(SITES, rank=rank, sizes={"head": 8})).trainable <= 2_000
    )
    assert np.isfinite(report(families.lorta().bind(SITES, rank=2, sizes={"head": 8})).forward_share)
