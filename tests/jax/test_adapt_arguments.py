"""What `adapt` takes and gives: trees with all kinds of leaves, parts of stacks, tasks, batches of adapters, errors."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tnadapt_jax
from tests.jax.functions import D, normal
from tests.jax.oracle import summed_by_numpy
from tnadapt import SiteError, families

LAYERS = 3


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def started(weights, spec=None, **options):
    """Bind LoTR to the leaves "a" and "b", with random params."""
    layout = {"layout": "in out"} | options
    leaves = tnadapt_jax.find_sites(weights, target=["a", "b"], **layout)
    adapter = (spec or families.lotr()).bind(leaves.sites, rank=2, seed=0)
    return leaves, adapter, moved(adapter, 1)


def moved(adapter, seed):
    params = tnadapt_jax.init(adapter, dtype=jnp.float64)
    random = np.random.default_rng(seed)
    trained = {n: v + jnp.asarray(random.standard_normal(v.shape)) / 4 for n, v in params["trainable"].items()}
    return params | {"trainable": trained}


def stack():
    return {"a": normal(1, LAYERS, D, D), "b": normal(2, LAYERS, D, D)}


def pair():
    return {"a": normal(1, D, D), "b": normal(2, D, D)}


def same(found, wanted):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-10)


def in_scan(weights, x):
    return jax.lax.scan(lambda x, own: (jnp.tanh(x @ own["a"]) @ own["b"], None), x, weights)[0]


def in_row(weights, x):
    return jnp.tanh(x @ weights["a"]) @ weights["b"]


def test_a_tree_may_hold_anything_besides():
    """Integers, keys, None, numbers, arrays of numpy, static arguments by name, and arrays that the function holds."""
    held = normal(3, D, D)
    weights = {"a": np.asarray(normal(1, D, D)), "b": normal(2, D, D)}
    weights |= {"steps": jnp.arange(3), "key": jax.random.key(0), "none": None, "number": 2, "name": "model"}

    def call(weights, x, *, training, rate=1.0):
        assert training is True
        assert weights["name"] == "model"
        noise = jax.random.normal(weights["key"], x.shape, x.dtype)
        made = in_row(weights, x + noise) @ held * weights["number"]
        return {"made": made * rate, "sum": jnp.sum(weights["steps"]), "two": 2}

    leaves, adapter, params = started({name: weights[name] for name in ("a", "b")})
    x = normal(9, 5, D)
    found = tnadapt_jax.adapt(call, adapter, leaves)(params, weights, x, training=True, rate=0.5)
    merged = weights | summed_by_numpy(adapter, params, {"a": jnp.asarray(weights["a"]), "b": weights["b"]}, leaves)
    same(found, call(merged, x, training=True, rate=0.5))


@pytest.mark.parametrize("chosen", ["layers", "kind", "experts"])
def test_sites_that_are_missing_in_a_stack_get_no_update(chosen):
    shape = (LAYERS, 2, D, D) if chosen == "experts" else (LAYERS, D, D)
    weights = {"a": normal(1, *shape), "b": normal(2, *shape)}
    layout = "expert in out" if chosen == "experts" else "in out"
    leaves = tnadapt_jax.find_sites(weights, target=["a", "b"], layout=layout, layer_axis=0)
    takes = {
        "layers": lambda site: site.coordinates["layer"] != 1,
        "kind": lambda site: site.path.startswith("b"),
        "experts": lambda site: (site.coordinates["layer"], site.coordinates["expert"]) in {(0, 1), (2, 0)},
    }[chosen]
    adapter = families.lora().bind(list(filter(takes, leaves.sites)), rank=2, seed=0)
    params, x = moved(adapter, 1), normal(9, 5, D)

    def of_experts(weights, x):
        return jnp.einsum("letd,ledk->tk", jnp.tanh(jnp.einsum("td,ledk->letk", x, weights["a"])), weights["b"])

    call = of_experts if chosen == "experts" else in_scan
    found = tnadapt_jax.adapt(call, adapter, leaves)(params, weights, x)
    merged = summed_by_numpy(adapter, params, weights, leaves)
    same(found, call(merged, x))
    same(tnadapt_jax.merge(adapter, params, weights, leaves), merged)


@pytest.mark.parametrize("task", ["one", "two"])
def test_the_sites_of_one_task_are_used(task):
    weights, x = stack(), normal(9, 5, D)
    leaves, adapter, params = started(weights, families.lora(), layer_axis=0, tasks=["one", "two"])
    found = tnadapt_jax.adapt(in_scan, adapter, leaves, task=task)(params, weights, x)
    same(found, in_scan(summed_by_numpy(adapter, params, weights, leaves, task), x))


@pytest.mark.parametrize("stored", ["layer first", "expert first"])
def test_layers_experts_and_fused_projections_in_one_leaf(stored):
    weights, x = {"qkv": normal(1, 2, 2, D, 12)}, normal(9, 5, D)
    leaves = tnadapt_jax.find_sites(
        weights,
        target=["qkv"],
        layout="expert in out",
        layer_axis=0 if stored == "layer first" else 1,
        fused={"qkv": {"q": 6, "k": 3, "v": 3}},
    )
    adapter = families.lotr().bind(leaves.sites, rank=2, seed=0)
    params = moved(adapter, 1)

    def call(weights, x):
        return jnp.tanh(jnp.einsum("td,ledo->leto", x, weights["qkv"]))

    assert "dW" not in str(tnadapt_jax.explain(call, adapter, leaves)(params, weights, x))
    same(
        tnadapt_jax.adapt(call, adapter, leaves)(params, weights, x),
        call(summed_by_numpy(adapter, params, weights, leaves), x),
    )


def test_two_adapters_of_one_function():
    weights, x = stack(), normal(9, 5, D)
    leaves, one, params = started(weights, layer_axis=0)
    other = families.lora().bind(leaves.sites, rank=1, seed=3)
    further = moved(other, 2)
    inner = tnadapt_jax.adapt(in_scan, one, leaves)
    both = tnadapt_jax.adapt(lambda weights, params, x: inner(params, weights, x), other, leaves)
    merged = summed_by_numpy(one, params, summed_by_numpy(other, further, weights, leaves), leaves)
    same(jax.jit(both)(further, weights, params, x), in_scan(merged, x))
    said = tnadapt_jax.explain(lambda weights, params, x: inner(params, weights, x), other, leaves)
    assert not said(further, weights, params, x).dense


def test_a_batch_of_adapters():
    weights, x = stack(), normal(9, 5, D)
    leaves, adapter, params = started(weights, layer_axis=0)
    more = [params, moved(adapter, 2)]
    batch = params | {"trainable": jax.tree.map(lambda *one: jnp.stack(one), *(one["trainable"] for one in more))}
    adapted = tnadapt_jax.adapt(in_scan, adapter, leaves)
    found = jax.vmap(adapted, in_axes=({"trainable": 0, "frozen": None}, None, None))(batch, weights, x)
    for n, one in enumerate(more):
        same(found[n], in_scan(summed_by_numpy(adapter, one, weights, leaves), x))


def test_derivatives_in_other_ways():
    """Forward mode, linearize, and the product of a Hessian and a vector."""
    weights, x = pair(), normal(9, 5, D)
    leaves, adapter, params = started(weights)
    adapted = tnadapt_jax.adapt(in_row, adapter, leaves)
    trained, along = params["trainable"], moved(adapter, 5)["trainable"]

    def derivatives(run):
        loss = lambda trained: jnp.sum(jnp.sin(run(params | {"trainable": trained}, weights, x)))  # noqa: E731
        forward = jax.jvp(loss, (trained,), (along,))
        _, linear = jax.linearize(loss, trained)
        return forward, linear(along), jax.jvp(jax.grad(loss), (trained,), (along,))[1]

    by_merge = lambda p, w, x: in_row(tnadapt_jax.merge(adapter, p, w, leaves), x)  # noqa: E731
    same(*(jax.jit(derivatives, static_argnums=0)(run) for run in (adapted, by_merge)))


def test_the_text_of_a_merge_does_not_grow_with_the_layers():
    sizes = []
    for layers in (4, 32):
        weights = {"a": jax.ShapeDtypeStruct((layers, D, D), jnp.float32)}
        leaves = tnadapt_jax.find_sites(weights, target=["a"], layout="in out", layer_axis=0)
        adapter = families.lotr().bind(leaves.sites, rank=2, seed=0)
        merge = jax.jit(lambda p, w, a=adapter, at=leaves: tnadapt_jax.merge(a, p, w, at))
        sizes.append(len(merge.lower(tnadapt_jax.init(adapter), weights).as_text()))
    assert sizes[1] <= 1.3 * sizes[0]


BAD = {
    "an answer that is no array": (
        lambda weights, x: {"y": in_row(weights, x), "name": "model"},
        lambda params, weights: (params, weights),
        r"adapt: expected a function whose answer consists of arrays, got 'model' .*at name",
    ),
    "params without an array": (
        in_row,
        lambda params, weights: (params | {"trainable": dict(list(params["trainable"].items())[1:])}, weights),
        r"params\['trainable'\]: expected the array '\w+', got none",
    ),
    "params of another adapter": (
        in_row,
        lambda params, weights: (params | {"trainable": {n: v[:1] for n, v in params["trainable"].items()}}, weights),
        r"params\['trainable'\]\['\w+'\]: expected shape \(.*\), got \(.*\)",
    ),
    "a weight that is missing": (
        in_row,
        lambda params, weights: (params, {"a": weights["a"]}),
        r"b: expected its leaf b to have shape \(8, 8\), as when it was found, got no such leaf",
    ),
    "a weight of another shape": (
        in_row,
        lambda params, weights: (params, weights | {"b": weights["b"][:4]}),
        r"b: expected its leaf b to have shape \(8, 8\), as when it was found, got \(4, 8\)",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_named(name):
    call, change, message = BAD[name]
    weights = pair()
    leaves, adapter, params = started(weights)
    params, weights = change(params, weights)
    adapted, explained = (way(call, adapter, leaves) for way in (tnadapt_jax.adapt, tnadapt_jax.explain))
    for run in (adapted, jax.jit(adapted), explained):
        with pytest.raises(SiteError, match=re.compile(message, re.DOTALL)):
            run(params, weights, normal(9, 5, D))


def test_a_second_leaf_of_the_same_path_is_refused():
    """It may come after the sites were found; the update would go into both."""
    weights = {"a": pair(), "b": pair()["b"]}
    leaves = tnadapt_jax.find_sites(weights, target=["a.a"], layout="in out")
    adapter = families.lora().bind(leaves.sites, rank=2)
    with pytest.raises(SiteError, match=r"^a\.a: expected one leaf of this path, got 2"):
        tnadapt_jax.merge(adapter, moved(adapter, 1), weights | {"a.a": weights["b"]}, leaves)


@pytest.mark.parametrize("dtype", [jnp.float32, np.float32, jnp.dtype("float32"), "float32"], ids=str)
def test_an_argument_may_be_a_dtype(dtype):
    """A type has the attribute dtype, but is no array."""
    weights, x = pair(), normal(9, 5, D)
    leaves, adapter, params = started(weights)
    call = lambda w, x, dtype: in_row(w, x).astype(dtype)  # noqa: E731
    adapted = tnadapt_jax.adapt(call, adapter, leaves)
    assert jax.eval_shape(lambda p, w, x: adapted(p, w, x, dtype=dtype), params, weights, x).dtype == jnp.float32
    assert not tnadapt_jax.explain(call, adapter, leaves)(params, weights | {"dtype": dtype}, x, dtype).dense


def test_a_function_that_needs_numbers_fails_as_in_jit():
    weights = pair()
    leaves, adapter, params = started(weights)
    adapted = tnadapt_jax.adapt(lambda w, x: x @ w["a"] if float(x[0, 0]) > 0 else x, adapter, leaves)
    with pytest.raises(jax.errors.ConcretizationTypeError, match="float"):
        adapted(params, weights, normal(9, 5, D))


def test_gradients_of_a_while_loop_forward():
    weights, x = pair(), normal(9, 5, D)
    leaves, adapter, params = started(weights)

    def call(weights, x):
        loop = jax.lax.while_loop(lambda carry: carry[0] < 2, lambda c: (c[0] + 1, in_row(weights, c[1])), (0, x))
        return loop[1]

    adapted = tnadapt_jax.adapt(call, adapter, leaves)
    by_merge = lambda p, w, x: call(tnadapt_jax.merge(adapter, p, w, leaves), x)  # noqa: E731
    given, along = (params["trainable"], moved(adapter, 5)["trainable"])
    found, wanted = (
        jax.jvp(lambda trained, run=run: run(params | {"trainable": trained}, weights, x), (given,), (along,))
        for run in (adapted, by_merge)
    )
    same(found, wanted)


def test_shard_map_in_the_function_and_around_it():
    worker = Path(__file__).with_name("shard_map_worker.py")
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import runpy; runpy.run_path({str(worker)!r}, run_name='__main__')"],
        cwd=worker.parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "as one device\n"
