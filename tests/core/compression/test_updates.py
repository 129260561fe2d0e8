"""Updates to fit: dense or low-rank, of several ranks, and on grids with holes."""

import numpy as np
import pytest

from tests.core.compression.updates import dense_of, falls, random_updates, relative_error
from tnadapt import AdapterSpec, Site, SiteError, compress, delta, families, grid, low_rank_updates, trainable, zeros
from tnadapt._compression.updates import check_update, terms_of
from tnadapt._values import contract
from tnadapt.binding import LoRA
from tnadapt.testing import random_params

SITE = Site("layers.0.q", (6, 5))
KERNEL = Site("layers.0.conv", (6, 5, 2))


@pytest.mark.parametrize(
    ("name", "rank", "is_thin"), [("lora", 2, True), ("lora", 3, False), ("lotr", 2, True), ("loha", 2, False)]
)
def test_an_update_is_returned_as_a_lora_if_that_has_fewer_numbers(name, rank, is_thin):
    """A weight of 6 x 5 has 30 numbers, a LoRA of rank 2 has 22 and one of rank 3 has 33."""
    adapter = getattr(families, name)().bind(grid(layers=2, kinds={"q": (6, 5)}), rank=rank)
    params = random_params(adapter, np.random.default_rng(0))
    found = low_rank_updates(adapter, params)
    assert list(found) == list(adapter.sites)
    for site, update in found.items():
        assert isinstance(update, LoRA) == is_thin
        np.testing.assert_allclose(dense_of({site: update})[site], delta(adapter, params, site), atol=1e-12)


@pytest.mark.parametrize("centered", ["tt_lora", "loretta"])
def test_a_centered_update_may_be_returned_as_a_lora(centered):
    spec = getattr(families, centered)(out_order=1, in_order=1, start="centered")
    adapter = spec.bind([Site("w", (30, 20))], rank=2)
    params = random_params(adapter, np.random.default_rng(0))
    ((site, update),) = low_rank_updates(adapter, params).items()
    assert isinstance(update, LoRA)
    np.testing.assert_allclose(dense_of({site: update})[site], delta(adapter, params, site), atol=1e-12)


def test_a_valid_update_is_returned_unchanged():
    thin = LoRA(A=np.ones((1, 5)), B=np.ones((6, 1)), scale=2.0)
    assert check_update(SITE, thin) is thin
    assert check_update(SITE, np.ones((6, 5)).tolist()).shape == (6, 5)
    kernel = LoRA(A=np.ones((3, 10)), B=np.ones((6, 3)), scale=2.0)  # the in axes of a kernel are flattened
    assert check_update(KERNEL, kernel) is kernel


REFUSED = {
    "a transposed update": (SITE, np.zeros((5, 6)), r"shape.*\(6, 5\)(.|\n)*\(5, 6\)"),
    "a flat kernel": (KERNEL, np.zeros((6, 10)), r"shape.*\(6, 5, 2\)"),
    "NaN": (SITE, np.full((6, 5), np.nan), "finite"),
    "infinity in A": (SITE, LoRA(np.full((1, 5), np.inf), np.zeros((6, 1)), 1.0), "finite"),
    "NaN in B": (SITE, LoRA(np.zeros((1, 5)), np.full((6, 1), np.nan), 1.0), "finite"),
    "a scale of NaN": (SITE, LoRA(np.zeros((1, 5)), np.zeros((6, 1)), np.nan), "finite"),
    "a transposed LoRA": (SITE, LoRA(np.zeros((1, 6)), np.zeros((5, 1)), 1.0), r"shape.*\(6, 5\)"),
    "two ranks": (SITE, LoRA(np.zeros((2, 5)), np.zeros((6, 1)), 1.0), r"\(6, 1\).*\(2, 5\)"),
    "a vector for A": (SITE, LoRA(np.zeros(5), np.zeros((6, 1)), 1.0), r"\(6, 1\).*\(5,\)"),
    "a kernel for A": (KERNEL, LoRA(np.zeros((1, 5, 2)), np.zeros((6, 1)), 1.0), r"\(6, 1\).*\(1, 5, 2\)"),
}


@pytest.mark.parametrize(("site", "update", "words"), REFUSED.values(), ids=REFUSED)
def test_an_invalid_update_is_refused_with_its_path(site, update, words):
    with pytest.raises(SiteError, match=rf"^{site.path}: (.|\n)*{words}"):
        check_update(site, update)


@pytest.mark.parametrize("kind", ["dense", "thin", "mixed"])
@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 3)])
def test_the_terms_of_a_group_are_its_stacked_updates_with_zeros_in_holes(kind, shape):
    sites = [site for site in grid(layers=2, kinds={"q": shape, "v": shape}) if site.path != "layers.1.q"]
    adapter = families.tenslora().bind(sites, rank=2) if len(shape) == 2 else conv(sites)
    updates = {site: random_updates([site], rank=rank)[site] for rank, site in enumerate(sites, 1)}
    if kind != "thin":
        updates |= dict(list(dense_of(updates).items())[: None if kind == "dense" else 2])
    (group,) = adapter.groups
    modes = (*group.network.over, *group.network.out_modes, *group.network.in_modes)
    terms = terms_of(group, updates)
    assert len(terms) == (2 if kind == "mixed" else 1)
    found = sum(contract(term, modes) for term in terms)
    wanted = np.zeros((2, 2, *shape))
    for site, update in dense_of(updates).items():
        wanted[tuple(group.index(site).values())] = update
    np.testing.assert_allclose(found.reshape(wanted.shape), wanted, atol=1e-12)


def conv(sites):
    """Return an adapter of convolution kernels, stacked over layers and kinds."""
    spec = AdapterSpec(
        name="conv",
        weight="out in k",
        over="layer kind",
        factors={"A": trainable("layer kind out r"), "B": trainable("r in k", init=zeros())},
    )
    return spec.bind(sites, rank=2)


def test_updates_of_kernels_may_be_loras_of_different_ranks():
    updates = random_updates([Site("a", (6, 4, 3))], rank=1) | random_updates([Site("b", (6, 4, 3))], rank=3)
    found = compress(updates, families.flora(kernel_axes=1), rank=12)
    assert relative_error(updates, found) < 1e-6


def test_sites_of_one_network_may_have_updates_of_different_ranks():
    sites = grid(layers=3, kinds={"q": (6, 5)})
    updates = {site: random_updates([site], rank=rank)[site] for rank, site in zip((1, 3, 2), sites, strict=True)}
    found = compress(updates, families.lotr(), rank={"p": 6, "q": 5}, overparametrized=True)
    assert len(found.adapter.groups) == 1
    assert relative_error(updates, found) < 1e-6


def test_holes_in_a_grid_are_not_fitted():
    """The grid has layers 0 and 1 of q, and layers 1 and 4 of v. Values in its holes add no error."""
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
