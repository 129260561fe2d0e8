"""`scan_split`: shared arrays appear once, gradients pass through, and sites that are not a grid are rejected."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tnadapt
import tnadapt_jax
from tests.table import FAMILIES, REPRESENTATIVES
from tnadapt import AdapterSpec, Site, SiteError, families, grid, raw, trainable
from tnadapt_jax._stack import take_rows

KINDS = {"q": (6, 4), "v": (6, 4), "up": (4, 6)}
SITES = grid(layers=3, kinds=KINDS)


def shapes(arrays):
    return {name: value.shape for name, value in arrays.items()}


def test_shared_arrays_appear_once_and_the_others_have_a_layer_axis():
    adapter = families.lotr().bind(SITES, rank=2)
    shared, per_layer = tnadapt_jax.scan_split(adapter, tnadapt_jax.init(adapter))
    assert shapes(shared) == {"6x4.A": (6, 2), "6x4.B": (4, 2), "4x6.A": (4, 2), "4x6.B": (6, 2)}
    assert shapes(per_layer) == {"6x4.G@q": (3, 2, 2), "6x4.G@v": (3, 2, 2), "4x6.G": (3, 2, 2)}
    adapter = families.lorta().bind(SITES, rank=2, sizes={"head": 2})
    shared, per_layer = tnadapt_jax.scan_split(adapter, tnadapt_jax.init(adapter))
    assert shapes(per_layer) == {"6x4.L": (3, 2), "4x6.L": (3, 2)}
    assert shared["6x4.M"].shape == (2, 2)
    adapter = families.vera().bind(SITES, rank=2)
    shared, per_layer = tnadapt_jax.scan_split(adapter, tnadapt_jax.init(adapter))
    assert shapes(shared) == {"A": (2, 6), "B": (6, 2)}
    assert per_layer["0.q.b"].shape == (3, 6)


@pytest.mark.parametrize("family", REPRESENTATIVES)
def test_a_split_keeps_every_entry_once(family, started):
    adapter = FAMILIES[family].bind(layers=3, kinds=KINDS)
    split = tnadapt_jax.scan_split(adapter, started(adapter))
    counted = tnadapt.count(adapter)
    kept = {row.name for row in counted.rows}  # starts that are read from the host have their own rows
    starts = sum(
        row.entries
        for row in counted.rows
        if adapter.spec.start == "centered" and row.trainable and f"{row.name}:start" not in kept
    )
    assert sum(value.size for value in jax.tree.leaves(split)) == counted.trainable + counted.frozen + starts


def test_kinds_may_be_in_any_order_and_rows_unevenly_spaced():
    sites = [SITES[place] for place in (0, 1, 4, 3, 6, 7)]  # q v, v q, q v
    adapter = families.tlora().bind(sites, rank=2)
    params = tnadapt_jax.init(adapter)
    counted = jax.tree.map(lambda value: jnp.arange(value.size, dtype=jnp.float32).reshape(value.shape), params)
    params = params | {"trainable": counted["trainable"]}
    shared, per_layer = tnadapt_jax.scan_split(adapter, params)
    x = jnp.ones((2, 4))
    for layer in range(3):
        for kind in ("q", "v"):
            one = {name: value[layer] for name, value in per_layer.items()}
            found = tnadapt_jax.apply_in_layer(adapter, shared, one, kind, x)
            wanted = tnadapt_jax.apply(adapter, params, f"layers.{layer}.{kind}", x)
            np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.fixture
def trained(started):
    """A centered adapter with changed params."""
    spec = AdapterSpec(
        name="own",
        weight="out in",
        over="layer kind",
        factors={"A": trainable("r in"), "G": trainable("layer r"), "B": trainable("out r kind")},
        scale=raw(2.0),
        start="centered",
    )
    adapter = spec.bind([site for site in SITES if site.coordinates["kind"] != "up"], rank=2)
    params = started(adapter)
    return adapter, params | {"trainable": {name: value + 0.5 for name, value in params["trainable"].items()}}


def run_in_scan(adapter, params, x):
    shared, per_layer = tnadapt_jax.scan_split(adapter, params)

    def body(carry, layer):
        return carry, [tnadapt_jax.apply_in_layer(adapter, shared, layer, kind, x) for kind in ("q", "v")]

    return jax.lax.scan(body, (), per_layer)[1]


def run_by_layer(adapter, params, x):
    return [
        jnp.stack([tnadapt_jax.apply(adapter, params, f"layers.{layer}.{kind}", x) for layer in range(3)])
        for kind in ("q", "v")
    ]


def test_the_start_of_a_trained_centered_adapter_is_subtracted(trained):
    adapter, params = trained
    x = jnp.ones((2, 4))
    wanted = run_by_layer(adapter, params, x)
    assert all(np.abs(one).max() > 0.1 for one in wanted)
    for found, one in zip(run_in_scan(adapter, params, x), wanted, strict=True):
        np.testing.assert_allclose(found, one, rtol=1e-5)


def test_values_get_a_gradient_and_starts_get_none(trained):
    adapter, params = trained

    def loss(params, run):
        return sum(jnp.sum(one) for one in run(adapter, params, jnp.ones((2, 4))))

    found, wanted = (jax.grad(loss)(params, run) for run in (run_in_scan, run_by_layer))
    for name, value in found["trainable"].items():
        assert np.abs(value).max() > 0
        np.testing.assert_allclose(value, wanted["trainable"][name], rtol=1e-5)
    assert found["frozen"]
    assert not any(np.any(value) for value in found["frozen"].values())


def test_a_single_layer_has_only_shared_arrays():
    adapter = families.lotr().bind(grid(layers=1, kinds=KINDS), rank=2)
    shared, per_layer = tnadapt_jax.scan_split(adapter, tnadapt_jax.init(adapter))
    assert per_layer == {}
    assert tnadapt_jax.apply_in_layer(adapter, shared, {}, "up", jnp.ones((2, 6))).shape == (2, 4)


def test_a_further_site_mode_is_selected_in_the_body():
    sites = [
        Site(f"h.{layer}.experts.{expert}.w", (5, 4), {"layer": layer, "kind": f"experts.{expert}.w", "expert": expert})
        for layer in range(2)
        for expert in range(3)
    ]
    spec = AdapterSpec(
        name="own",
        weight="out in",
        over="layer kind expert",
        factors={"A": trainable("out r expert"), "L": trainable("r layer"), "B": trainable("in r")},
        scale=raw(1.0),
        start="free",
    )
    adapter = spec.bind(sites, rank=2)
    params = tnadapt_jax.init(adapter)
    shared, per_layer = tnadapt_jax.scan_split(adapter, params)
    assert shapes(shared) == {"A": (5, 2, 3), "B": (4, 2)}
    found = tnadapt_jax.apply_in_layer(adapter, shared, {"L": per_layer["L"][1]}, "experts.2.w", jnp.ones(4))
    np.testing.assert_allclose(found, tnadapt_jax.apply(adapter, params, "h.1.experts.2.w", jnp.ones(4)), rtol=1e-6)


def other(path, shape, layer, kind):
    return Site(path, shape, {"layer": layer, "kind": kind})


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        (SITES[:-1], r"kind 'up': expected it in every layer .*, got none in layer 2\.\nThe layers are 0, 1, 2"),
        (
            [*SITES[:-1], other("last", (4, 5), 2, "up")],
            r"last: expected one shape .* layers\.0\.up, \(4, 6\), got \(4, 5\)\.",
        ),
    ],
    ids=["hole", "shape"],
)
def test_sites_that_are_not_a_grid_are_rejected(sites, message):
    adapter = families.lora().bind(sites, rank=2)
    with pytest.raises(SiteError, match=re.compile(message, re.DOTALL)):
        tnadapt_jax.scan_split(adapter, tnadapt_jax.init(adapter))


def test_two_weights_of_a_kind_in_a_layer_are_rejected():
    adapter = families.lotr().bind([other("a", (4, 4), 0, "q"), other("b", (4, 4), 0, "q")], rank=2)
    with pytest.raises(SiteError, match=r"b: expected one weight per kind and layer for a scan, got two"):
        tnadapt_jax.scan_split(adapter, tnadapt_jax.init(adapter))


def test_apply_in_layer_rejects_invalid_arguments():
    adapter = families.lotr().bind(SITES, rank=2)
    shared, per_layer = tnadapt_jax.scan_split(adapter, tnadapt_jax.init(adapter))
    one = {name: value[0] for name, value in per_layer.items()}
    x = jnp.ones((2, 4))
    with pytest.raises(SiteError, match=r"kind: expected a kind of this adapter, got 'k'.\nIts kinds are q, v, up"):
        tnadapt_jax.apply_in_layer(adapter, shared, one, "k", x)
    with pytest.raises(SiteError, match=r"layers\.0\.up: expected x to end in .*\(6,\)"):
        tnadapt_jax.apply_in_layer(adapter, shared, one, "up", x)
    with pytest.raises(SiteError, match=r"layer: expected the array '6x4\.G@q', got none"):
        tnadapt_jax.apply_in_layer(adapter, shared, {}, "q", x)
    with pytest.raises(SiteError, match=r"layer\['6x4\.G@q'\]: expected shape \(2, 2\), got \(3, 2, 2\)"):
        tnadapt_jax.apply_in_layer(adapter, shared, per_layer, "q", x)
    with pytest.raises(SiteError, match=r"params\['trainable'\]: expected the array '6x4\.A', got none"):
        tnadapt_jax.scan_split(adapter, {"trainable": {}, "frozen": {}})


def test_layers_scan_over_a_factor_of_which_each_kind_reads_a_part():
    spec = AdapterSpec(
        name="own",
        weight="out in",
        over="layer kind",
        factors={"A": trainable("out r"), "G": trainable("layer kind r"), "B": trainable("r in")},
        scale=raw(1.0),
        start="free",
    )
    adapter = spec.bind([site for site in SITES if site.coordinates["kind"] != "up"], rank=2)
    params, x = tnadapt_jax.init(adapter), jnp.ones((2, 4))
    assert shapes(tnadapt_jax.scan_split(adapter, params)[1]) == {"G": (3, 2, 2)}
    for found, wanted in zip(run_in_scan(adapter, params, x), run_by_layer(adapter, params, x), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("rows", "how"), [([1, 3, 5], "slice"), ([2], "slice"), ([3, 1], "gather"), ([0, 1, 3], "gather")]
)
def test_rows_that_are_evenly_spaced_are_a_slice(rows, how):
    value = jnp.arange(12.0).reshape(2, 6)
    np.testing.assert_array_equal(take_rows(value, rows, 1), np.asarray(value)[:, rows])
    assert f" {how}[" in str(jax.make_jaxpr(lambda value: take_rows(value, rows, 1))(value))
