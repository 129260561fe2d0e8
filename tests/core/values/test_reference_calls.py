"""Running an adapter: apply, centered updates, merge, and invalid params or inputs."""

import numpy as np
import pytest

from tests.table import REPRESENTATIVES
from tnadapt import AdapterSpec, SiteError, apply, delta, families, grid, merge, normal, raw, trainable
from tnadapt.initializers import orthogonal
from tnadapt.testing import start_params

representative = pytest.mark.parametrize("adapter", REPRESENTATIVES, indirect=True)
CONV = grid(layers=1, kinds={"conv": (6, 4, 3, 2)})
QUANTA = AdapterSpec(
    name="quanta",
    weight="out in",
    over="layer",
    factors={"A": trainable("out r", init=orthogonal()), "B": trainable("layer r in")},
    scale=raw(3.0),
    centered=True,
)


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-12)


@representative
@pytest.mark.parametrize("lead", [(3, 0, 2), (2, 1, 2, 2)])
def test_apply_takes_any_number_of_leading_axes(adapter, lead, moved):
    params = moved(adapter)
    for site in adapter.sites:
        x = np.random.default_rng(1).standard_normal((*lead, *site.shape[1:]))
        found = apply(adapter, params, site, x)
        assert found.shape == (*lead, site.shape[0])
        inner = range(1, len(site.shape))
        close(
            found,
            np.tensordot(x, delta(adapter, params, site), axes=([axis - len(inner) - 1 for axis in inner], inner)),
        )


@representative
def test_apply_gives_exact_zeros_at_the_start(adapter):
    params = start_params(adapter)
    for site in adapter.sites:
        x = np.ones((2, *site.shape[1:]))
        np.testing.assert_array_equal(apply(adapter, params, site, x), np.zeros((2, site.shape[0])))


def conv(moved):
    spec = AdapterSpec(
        name="conv",
        weight="out in kh kw",
        factors={"A": trainable("r in kh kw"), "B": trainable("out r", init=normal(0))},
        scale=raw(),
    )
    adapter = spec.bind(CONV, rank=2)
    return adapter, moved(adapter)


@pytest.mark.parametrize("lead", [(), (5,), (2, 3), (0,)])
def test_apply_takes_all_in_axes_of_a_kernel(lead, moved):
    adapter, params = conv(moved)
    x = np.random.default_rng(1).standard_normal((*lead, 4, 3, 2))
    close(apply(adapter, params, CONV[0], x), np.einsum("...ihw,oihw->...o", x, delta(adapter, params, CONV[0])))


@pytest.mark.parametrize("shape", [(), (4,), (3, 2), (5, 4, 3, 1), (24,), (4, 3, 2, 1)])
def test_x_of_another_shape_is_refused(shape, moved):
    adapter, params = conv(moved)
    message = r"layers.0.conv: expected an x that ends in the in axes \(4, 3, 2\), got shape "
    with pytest.raises(SiteError, match=message):
        apply(adapter, params, CONV[0], np.zeros(shape))


@pytest.mark.parametrize("call", [delta, lambda *words: apply(*words, np.zeros(8))])
def test_params_and_sites_of_another_adapter_are_refused(call, moved):
    adapter = families.lotr().bind(grid(layers=2, kinds={"q": (12, 8)}), rank=3)
    params = moved(adapter)
    with pytest.raises(SiteError, match=r"params: expected an array 'G', got none.\nThis adapter has A, G, B"):
        call(adapter, {name: value for name, value in params.items() if name != "G"}, "layers.0.q")
    for wrong in (params["G"][:1], params["G"].swapaxes(0, 1), params["G"][..., None], np.float64(0)):
        with pytest.raises(SiteError, match=r"params\['G'\]: expected shape \(2, 3, 3\), got "):
            call(adapter, params | {"G": wrong}, "layers.0.q")
    with pytest.raises(SiteError, match=r"expected a site of this adapter, got 'layers.2.q'"):
        call(adapter, params, "layers.2.q")


def test_params_of_any_float_dtype_are_read_as_float64(moved):
    adapter = families.lotr().bind(grid(layers=1, kinds={"q": (12, 8)}), rank=3)
    params = {name: value.astype(np.float32) for name, value in moved(adapter).items()}
    found = delta(adapter, params, "layers.0.q")
    close(
        found, params["A"].astype(np.float64) @ params["G"][0].astype(np.float64) @ params["B"].astype(np.float64).T / 3
    )
    assert found.dtype == np.float64
    lists = {name: value.tolist() for name, value in params.items()}
    np.testing.assert_array_equal(delta(adapter, lists, "layers.0.q"), found)


@representative
def test_delta_leaves_the_params_unchanged(adapter, moved):
    params = moved(adapter)
    before = {name: value.copy() for name, value in params.items()}
    for value in params.values():
        value.flags.writeable = False
    delta(adapter, params, adapter.sites[0])[:] = 7
    for name, value in params.items():
        np.testing.assert_array_equal(value, before[name])


def test_a_centered_update_is_the_difference_from_the_start(moved):
    sites = grid(layers=3, kinds={"q": (6, 8), "up": (9, 8)})
    adapter = QUANTA.bind(sites, rank=4, seed=3)
    start, params = start_params(adapter), moved(adapter)
    for site in sites:
        kind, layer = site.coordinates["kind"], site.coordinates["layer"]
        now, then = (some[f"{kind}.A"] @ some[f"{kind}.B"][layer] for some in (params, start))
        assert abs(then).max() > 0.1
        close(delta(adapter, params, site), 3 * (now - then))
        np.testing.assert_array_equal(delta(adapter, start, site), 0 * now)


def test_a_centered_update_depends_on_the_seed(moved):
    sites = grid(layers=1, kinds={"q": (6, 8)})
    one, two = (QUANTA.bind(sites, rank=4, seed=seed) for seed in (0, 1))
    params = moved(one)
    assert abs(delta(one, params, sites[0]) - delta(two, params, sites[0])).max() > 0.1


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_merge_gives_a_new_weight_of_the_same_dtype(dtype):
    weight, update = np.arange(6, dtype=dtype).reshape(2, 3), np.full((2, 3), 0.5)
    before = weight.copy()
    merged = merge(weight, update)
    assert merged.dtype == dtype
    np.testing.assert_array_equal(merged, before + dtype(0.5))
    np.testing.assert_array_equal(weight, before)
    np.testing.assert_array_equal(update, 0.5)
    assert not np.shares_memory(merged, weight)


@pytest.mark.parametrize("update_dtype", [np.float32, np.float64])
def test_merge_rounds_once(update_dtype):
    # half a step of float16 at 1 is 2^-11; slightly more must round up, but is lost if the update is rounded first
    update = np.array([2.0**-11 + 2.0**-22], dtype=update_dtype)
    assert merge(np.ones(1, np.float16), update)[0] == 1 + 2**-10
    assert np.float16(1) + update.astype(np.float16)[0] == 1


def test_merge_adds_in_float64_if_the_update_is_float64():
    update = np.array([2.0**-24 + 2.0**-40])  # just above half a step of float32 at 1
    assert merge(np.ones(1, np.float32), update)[0] == 1 + 2**-23
    assert merge(np.ones(1, np.float64), np.full(1, 1e-12))[0] == 1 + 1e-12


@pytest.mark.parametrize("shape", [(3, 2), (2, 3, 1), (3,), (1, 3), ()])
def test_merge_refuses_an_update_of_another_shape(shape):
    message = r"merge: expected a weight and an update of the same shape, got \(2, 3\) and "
    with pytest.raises(SiteError, match=message):
        merge(np.ones((2, 3)), np.ones(shape))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_merge_refuses_an_update_that_is_not_finite(bad):
    weight, update = np.ones((2, 3), np.float32), np.zeros((2, 3))
    update[1, 2] = bad
    with pytest.raises(SiteError, match=r"merge: expected a finite update, got NaN or infinity.\nNothing was merged."):
        merge(weight, update)
    np.testing.assert_array_equal(weight, 1)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("update_dtype", [None, np.float64])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_merge_refuses_a_sum_that_the_dtype_cannot_hold(dtype, update_dtype, sign):
    weight = np.array([0, sign * np.finfo(dtype).max], dtype)
    before, update = weight.copy(), weight.astype(update_dtype or dtype)
    message = f"^merge: expected weight plus update to be finite in {np.dtype(dtype)}, got NaN.*\nNothing was merged.$"
    with pytest.raises(SiteError, match=message):  # without a warning, which pytest would turn into an error
        merge(weight, update)
    np.testing.assert_array_equal(weight, before)
    np.testing.assert_array_equal(merge(weight, -update), 0)
    np.testing.assert_array_equal(merge(weight, 0 * update), before)


def test_merge_refuses_an_update_that_the_dtype_cannot_hold():
    with pytest.raises(SiteError, match="expected weight plus update to be finite in float32, got NaN or infinity"):
        merge(np.ones(2, np.float32), np.array([0.0, 1e300]))


@representative
def test_a_merged_weight_gives_the_output_of_apply(adapter, moved):
    params = moved(adapter)
    for site in adapter.sites:
        random = np.random.default_rng(2)
        weight, x = random.standard_normal(site.shape), random.standard_normal((5, *site.shape[1:]))
        merged = merge(weight, delta(adapter, params, site))
        by, rows = x.reshape(5, -1), len(weight)
        close(by @ merged.reshape(rows, -1).T, by @ weight.reshape(rows, -1).T + apply(adapter, params, site, x))
