"""`scan_split` on the sites that `find_sites` finds in stacked leaves: by kind, of which several have one shape."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tnadapt
import tnadapt_jax
from tests.table import FAMILIES, REPRESENTATIVES, STANDARD, Case, places
from tests.thorough import IS_THOROUGH
from tnadapt import AdapterSpec, Site, SiteError, families, magnitude, raw, trainable
from tnadapt_jax._apply import parts_at
from tnadapt_jax._scan import parts_in_layer
from tnadapt_jax._stack import take_rows

LAYERS = 3
KINDS = {"q": (6, 4), "v": (6, 4), "w": (4, 6)}
MAGNITUDE = Case(magnitude(families.lotr(over="layer")), 2)  # its lengths and the host's weight are scanned as well
CASES = {name: case for name, case in FAMILIES.items() if STANDARD.issuperset(case.spec.site_modes)}
CASES |= {"magnitude": MAGNITUDE}
DEAR = (*REPRESENTATIVES, "lotr", "magnitude", "tt_lora centered", "flora")


def found(*, kinds=KINDS, layers=LAYERS, axis=0):
    """The sites of stacked leaves whose layers lie along this axis, in the order of `find_sites`: by kind."""
    trees = {}
    for kind, shape in kinds.items():
        size = list(shape)
        size.insert(axis, layers)
        trees[kind] = {"kernel": jnp.zeros(size)}
    leaves = tnadapt_jax.find_sites({"layers": trees}, target=list(kinds), layout="out in", layer_axis={"layers": axis})
    return leaves.sites


def by_kind(sites):
    """The order of `find_sites`, for weights that it does not find, since they have further axes."""
    kinds = list(dict.fromkeys(site.coordinates["kind"] for site in sites))
    return sorted(sites, key=lambda site: kinds.index(site.coordinates["kind"]))


def bound(case, axis=0):
    """Bind the spec of a case, whatever axes it has, in the order of `find_sites`."""
    sites = by_kind(places(case.spec, layers=LAYERS, kinds=KINDS))
    if case.is_linear:
        sites = found(axis=axis)
    return case.spec.bind(sites, rank=case.rank, sizes=case.sizes, seed=0, overparametrized=True)


SITES = found()


def shapes(arrays):
    return {name: value.shape for name, value in arrays.items()}


def moved(params):
    """Params whose trained values are away from their start, by other amounts in each entry."""
    random = np.random.default_rng(7)
    trained = params["trainable"].items()
    return params | {
        "trainable": {n: v + jnp.asarray(random.standard_normal(v.shape) / 3, v.dtype) for n, v in trained}
    }


def paths_of(adapter):
    """The paths of each kind, layer by layer."""
    return {
        kind: [site.path for site in adapter.sites if site.coordinates["kind"] == kind]
        for kind in dict.fromkeys(site.coordinates["kind"] for site in adapter.sites)
    }


def run_in_scan(adapter, params, xs):
    """What each kind adds in each layer, in a scan; xs are by kind, with the layers in front."""
    shared, per_layer = tnadapt_jax.scan_split(adapter, params)

    def body(carry, inputs):
        layer, x = inputs
        return carry, {kind: tnadapt_jax.apply_in_layer(adapter, shared, layer, kind, x[kind]) for kind in x}

    return jax.lax.scan(body, (), (per_layer, xs))[1]


def run_by_site(adapter, params, xs):
    return {
        kind: jnp.stack([tnadapt_jax.apply(adapter, params, path, xs[kind][n]) for n, path in enumerate(paths)])
        for kind, paths in paths_of(adapter).items()
    }


def inputs(adapter):
    """An x for each kind and layer."""
    random = np.random.default_rng(3)
    inner = {site.coordinates["kind"]: site.shape[1:] for site in adapter.sites}
    return {
        kind: jnp.asarray(random.standard_normal((len(paths), 2, *inner[kind])))
        for kind, paths in paths_of(adapter).items()
    }


def check(adapter, params):
    """Values and all gradients of a scan equal those of single sites, and frozen arrays get none."""
    xs = inputs(adapter)

    @jax.jit
    def both(params, xs):
        def loss(run, params, xs):
            made = run(adapter, params, xs)
            return sum(jnp.sum(jnp.sin(one + n)) for n, one in enumerate(made.values())), made

        return [
            jax.grad(lambda p, x, run=run: loss(run, p, x), argnums=(0, 1), has_aux=True)(params, xs)
            for run in (run_in_scan, run_by_site)
        ]

    scanned, wanted = both(params, xs)
    assert any(np.abs(one).max() > 1e-3 for one in wanted[1].values())
    for one, other in zip(jax.tree.leaves(scanned), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-10)
    assert not any(np.any(value) for value in scanned[0][0]["frozen"].values())


@pytest.fixture
def wide():
    with jax.enable_x64(True):
        yield


def test_the_sites_are_the_same_whatever_axis_the_layers_lie_along():
    assert found(axis=0) == found(axis=1) == tuple(SITES)
    assert [site.coordinates["kind"] for site in SITES] == [kind for kind in KINDS for _ in range(LAYERS)]


@pytest.mark.parametrize("family", CASES if IS_THOROUGH else DEAR)
def test_the_body_of_a_scan_reads_what_single_sites_read(family, started):
    """Every factor of every family, exactly: what is computed from factors is the same code."""
    adapter = bound(CASES[family])
    paths = paths_of(adapter)

    @jax.jit
    def both(params):
        shared, per_layer = tnadapt_jax.scan_split(adapter, params)
        layers = [{name: value[layer] for name, value in per_layer.items()} for layer in range(LAYERS)]
        wanted = [arrays_of(parts_at(adapter, params, adapter.address(p))) for some in paths.values() for p in some]
        read = [arrays_of(parts_in_layer(adapter, shared, one, kind)) for kind in paths for one in layers]
        return per_layer, read, wanted

    per_layer, read, wanted = both(moved(started(adapter)))
    assert {value.shape[0] for value in per_layer.values()} <= {LAYERS}
    jax.tree.map(np.testing.assert_array_equal, read, wanted)


def arrays_of(parts):
    rows = parts.rows
    return [*parts.factors, *([rows.lengths.reshape(-1), rows.weight] if rows else [])]


@pytest.mark.parametrize(("family", "axis"), [(name, n % 2) for n, name in enumerate(DEAR)])
def test_a_scan_gives_values_and_gradients_of_single_sites(family, axis, started, wide):
    adapter = bound(CASES[family], axis)
    params = jax.tree.map(lambda value: value.astype(jnp.float64), started(adapter))
    check(adapter, moved(params))


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
    adapter = bound(FAMILIES[family])
    split = tnadapt_jax.scan_split(adapter, started(adapter))
    counted = tnadapt.count(adapter)
    kept = {row.name for row in counted.rows}  # starts that are read from the host have their own rows
    starts = sum(
        row.entries
        for row in counted.rows
        if adapter.spec.start == "centered" and row.trainable and f"{row.name}:start" not in kept
    )
    assert sum(value.size for value in jax.tree.leaves(split)) == counted.trainable + counted.frozen + starts


@pytest.mark.parametrize("order", [(0, 3, 1, 4, 2, 5), (0, 3, 4, 1, 2, 5)], ids=["by layer", "uneven"])
def test_sites_may_be_in_any_order(order, started, wide):
    """By layer, as `grid` has them; and with rows of a stacked factor that are unevenly spaced."""
    adapter = families.tlora().bind([SITES[place] for place in order], rank=2)
    params = jax.tree.map(lambda value: value.astype(jnp.float64), started(adapter))
    check(adapter, moved(params))


def test_the_layers_are_those_of_their_numbers_whatever_the_order(started, wide):
    adapter = families.lotr().bind(SITES[::-1], rank=2)
    params = moved(tnadapt_jax.init(adapter, dtype=jnp.float64))
    xs = {kind: x[:, :1] for kind, x in inputs(adapter).items()}
    scanned = run_in_scan(adapter, params, xs)
    for kind, one in scanned.items():
        for layer in range(LAYERS):
            wanted = tnadapt_jax.apply(adapter, params, f"layers.{layer}.{kind}", xs[kind][layer])
            np.testing.assert_allclose(one[layer], wanted, rtol=1e-9)


def test_a_single_layer_has_only_shared_arrays():
    adapter = families.lotr().bind(found(layers=1), rank=2)
    shared, per_layer = tnadapt_jax.scan_split(adapter, tnadapt_jax.init(adapter))
    assert per_layer == {}
    assert tnadapt_jax.apply_in_layer(adapter, shared, {}, "w", jnp.ones((2, 6))).shape == (2, 4)


def test_a_further_site_mode_is_selected_in_the_body():
    sites = [
        Site(f"h.{layer}.experts.{expert}.w", (5, 4), {"layer": layer, "kind": f"experts.{expert}.w", "expert": expert})
        for expert in range(3)
        for layer in range(2)
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
        (SITES[:-1], r"kind 'w': expected it in every layer .*, got none in layer 2\.\nThe layers are 0, 1, 2"),
        (
            [*SITES[:-1], other("last", (4, 5), 2, "w")],
            r"last: expected one shape .* layers\.0\.w, \(4, 6\), got \(4, 5\)\.",
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
    with pytest.raises(SiteError, match=r"kind: expected a kind of this adapter, got 'k'.\nIts kinds are q, v, w"):
        tnadapt_jax.apply_in_layer(adapter, shared, one, "k", x)
    with pytest.raises(SiteError, match=r"layers\.0\.w: expected x to end in .*\(6,\)"):
        tnadapt_jax.apply_in_layer(adapter, shared, one, "w", x)
    with pytest.raises(SiteError, match=r"layer: expected the array '6x4\.G@q', got none"):
        tnadapt_jax.apply_in_layer(adapter, shared, {}, "q", x)
    with pytest.raises(SiteError, match=r"layer\['6x4\.G@q'\]: expected shape \(2, 2\), got \(3, 2, 2\)"):
        tnadapt_jax.apply_in_layer(adapter, shared, per_layer, "q", x)
    with pytest.raises(SiteError, match=r"params\['trainable'\]: expected the array '6x4\.A', got none"):
        tnadapt_jax.scan_split(adapter, {"trainable": {}, "frozen": {}})


@pytest.mark.parametrize("start", ["free", "centered"])
def test_layers_scan_over_a_factor_of_which_each_kind_reads_a_part(start, started, wide):
    spec = AdapterSpec(
        name="own",
        weight="out in",
        over="layer kind",
        factors={"A": trainable("out r kind"), "G": trainable("layer kind r"), "B": trainable("r in layer")},
        scale=raw(2.0),
        start=start,
    )
    adapter = spec.bind([site for site in SITES if site.coordinates["kind"] != "w"], rank=2)
    params = moved(tnadapt_jax.init(adapter, dtype=jnp.float64))
    per_layer = tnadapt_jax.scan_split(adapter, params)[1]
    wanted = {"G": (LAYERS, 2, 2), "B": (LAYERS, 2, 4)}  # each once, for both kinds
    wanted |= {f"{name}:start": shape for name, shape in wanted.items() if start == "centered"}
    assert shapes(per_layer) == wanted
    check(adapter, params)


def test_two_tasks_of_a_weight_are_rejected():
    case = FAMILIES["mtlora_tasks"]
    adapter = case.spec.bind(by_kind(places(case.spec, layers=2, kinds=KINDS)), rank=case.rank, sizes=case.sizes)
    with pytest.raises(SiteError, match=r"expected one weight per kind and layer for a scan, got two"):
        tnadapt_jax.scan_split(adapter, tnadapt_jax.init(adapter))


@pytest.mark.parametrize(
    ("rows", "how"), [([1, 3, 5], "slice"), ([2], "slice"), ([3, 1], "gather"), ([0, 1, 3], "gather")]
)
def test_rows_that_are_evenly_spaced_are_a_slice(rows, how):
    value = jnp.arange(12.0).reshape(2, 6)
    np.testing.assert_array_equal(take_rows(value, rows, 1), np.asarray(value)[:, rows])
    assert f" {how}[" in str(jax.make_jaxpr(lambda value: take_rows(value, rows, 1))(value))
