"""The starting values of magnitudes, and what magnitudes set."""

import numpy as np
import pytest

from tests.table import FAMILIES
from tnadapt import AdapterSpec, Site, SiteError, delta, families, init, magnitude, trainable, zeros

FREE = AdapterSpec(
    name="own",
    weight="out in",
    factors={"A": trainable("r in"), "B": trainable("out r")},
    start="free",
)
KINDS = {"q": (4, 6), "v": (6, 4)}


def weights_of(adapter, seed=0):
    random = np.random.default_rng(seed)
    return {path: random.standard_normal(sites[0].weight_shape) for path, sites in adapter.weights.items()}


@pytest.mark.parametrize("spec", [families.lora(), families.lotr(start="neutral"), families.hira(), FREE], ids=str)
def test_it_starts_at_the_lengths_of_the_rows_of_weight_plus_start(spec):
    sites = [Site("0.q", (4, 6)), Site("1.q", (4, 6))]
    adapter, plain = magnitude(spec).bind(sites, rank=2), spec.bind(sites, rank=2)
    weights = weights_of(adapter)
    params = init(adapter, weights)
    inner = {name: params[name] for name in plain.slots}
    for site in adapter.sites:
        part = adapter.address(site).magnitude.lengths
        lengths = params[part.name][part.cut]
        whole = weights[site.path] + delta(adapter, params, site)
        np.testing.assert_allclose(np.linalg.norm(whole, axis=1), lengths, rtol=1e-6)
        if not spec.hosts:
            started = weights[site.path] + delta(plain, inner, site)
            np.testing.assert_allclose(np.linalg.norm(started, axis=1), lengths, rtol=1e-6)
        if spec.start != "free":
            np.testing.assert_allclose(lengths, np.linalg.norm(weights[site.path], axis=1), rtol=1e-6)
            assert abs(delta(adapter, params, site)).max() < 1e-6


def test_a_convolution_has_a_length_for_each_of_its_kernels():
    factors = {"A": trainable("r in kh kw"), "B": trainable("out r", init=zeros())}
    spec = AdapterSpec(name="own", weight="out in kh kw", factors=factors)
    adapter = magnitude(spec).bind([Site("c", (4, 3, 2, 2))], rank=2)
    weights = weights_of(adapter)
    wanted = np.sqrt((weights["c"] ** 2).sum(axis=(1, 2, 3)))
    np.testing.assert_allclose(init(adapter, weights)["magnitude"], wanted, rtol=1e-6)


def test_a_grid_with_holes_has_the_rows_of_its_sites():
    sites = [Site("0.q", (4, 6)), Site("1.v", (4, 6))]
    bound = magnitude(families.lotr(over="layer kind")).bind(sites, rank=2)
    weights = weights_of(bound)
    params = init(bound, weights)
    for site in bound.sites:
        part = bound.address(site).magnitude.lengths
        np.testing.assert_allclose(params[part.name][part.cut], np.linalg.norm(weights[site.path], axis=1), rtol=1e-6)


def test_lengths_scale_rows_and_keep_their_directions():
    adapter = magnitude(FAMILIES["lora"].spec).bind([Site("q", (4, 6))], rank=2)
    weights = weights_of(adapter)
    params = init(adapter, weights)
    random = np.random.default_rng(1)
    params |= {name: random.standard_normal(params[name].shape) for name in ("A", "B", "magnitude")}
    whole = weights["q"] + delta(adapter, params, "q")
    for by in (-2.0, 0.5):
        scaled = weights["q"] + delta(adapter, params | {"magnitude": by * params["magnitude"]}, "q")
        np.testing.assert_allclose(scaled, by * whole, rtol=1e-10)


def test_a_row_of_zeros_stays_one():
    adapter = magnitude(families.lora()).bind([Site("q", (4, 6))], rank=2)
    weights = weights_of(adapter)
    weights["q"][2] = 0.0
    assert not delta(adapter, init(adapter, weights), "q")[2].any()


def test_weights_are_needed_and_have_to_be_finite():
    adapter = magnitude(families.lora()).bind([Site("q", (4, 6))], rank=2)
    with pytest.raises(SiteError, match="expected the host's weights to read the start of magnitude from, got none"):
        init(adapter)
    with pytest.raises(SiteError, match="expected finite host weights to read magnitude from, got NaN or infinity"):
        init(adapter, {"q": np.full((4, 6), np.nan)})
    weights = weights_of(adapter)
    params = init(adapter, weights)
    with pytest.raises(SiteError, match="expected the host's weight as 'q:host', got none"):
        delta(adapter, {name: value for name, value in params.items() if name != "q:host"}, "q")
    with pytest.raises(SiteError, match="expected an array 'magnitude', got none"):
        delta(adapter, {name: value for name, value in params.items() if name != "magnitude"}, "q")
