"""Given updates: dense or low-rank, of several ranks, on grids with holes."""

import numpy as np
import pytest

from tests.core.compression.updates import falls, random_updates, relative_error
from tnadapt import (
    Site,
    SiteError,
    compress,
    families,
    grid,
    low_rank_updates,
)
from tnadapt.testing import random_params

SITE = Site("layers.0.q", (6, 5))


def test_ranks_of_two_sites_may_differ_and_kernels_may_come_thin():
    updates = random_updates([Site("a", (6, 4, 3))], rank=1) | random_updates([Site("b", (6, 4, 3))], rank=3)
    found = compress(updates, families.flora(kernel_axes=1), rank=12)
    assert relative_error(updates, found) < 1e-6


def test_sites_of_one_network_may_have_updates_of_several_ranks():
    sites = grid(layers=3, kinds={"q": (6, 5)})
    updates = {site: random_updates([site], rank=rank)[site] for rank, site in zip((1, 3, 2), sites, strict=True)}
    found = compress(updates, families.lotr(), rank={"p": 6, "q": 5}, overparametrized=True)
    assert len(found.adapter.groups) == 1
    assert relative_error(updates, found) < 1e-6


def test_holes_in_a_grid_are_no_updates():
    """Layers 0 and 1 of q, 1 and 4 of v: what would stand in the holes costs nothing."""
    sites = [
        Site(f"{layer}.{kind}", (6, 5), {"layer": layer, "kind": kind})
        for layer, kind in ((0, "q"), (1, "q"), (1, "v"), (4, "v"))
    ]
    truth = families.tenslora().bind(sites, rank=2, seed=3)
    assert truth.groups[0].places is not None
    updates = low_rank_updates(truth, random_params(truth, np.random.default_rng(1)))
    found = compress(updates, families.tenslora(), rank=2, sweeps=400, tolerance=1e-9)
    assert falls(found)
    assert relative_error(updates, found) < 1e-5


def test_params_of_another_adapter_are_refused():
    adapter = families.lora().bind([SITE], rank=2)
    with pytest.raises(SiteError, match="params: expected an array 'A', got none"):
        low_rank_updates(adapter, {})
