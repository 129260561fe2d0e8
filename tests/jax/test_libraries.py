"""`adapt` on models of linen and equinox: nothing of those libraries is known to it, only trees and functions."""

import pytest

pytest.importorskip("flax")
pytest.importorskip("equinox")

from functools import partial

import equinox
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

import tnadapt_jax
from tests.thorough import left_to_laws
from tnadapt import families

D, LAYERS = 8, 3
WIDE = jnp.float64


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield  # the layers of these libraries promote both


class LinenLayer(linen.Module):
    """One layer with attention, statistics and dropout."""

    train: bool = True

    @linen.compact
    def __call__(self, x, _):
        h = linen.BatchNorm(use_running_average=not self.train, param_dtype=WIDE, name="norm")(x)
        x = x + linen.MultiHeadDotProductAttention(2, param_dtype=WIDE, deterministic=True, name="attention")(h)
        h = linen.Dropout(0.3, deterministic=not self.train)(
            linen.gelu(linen.Dense(2 * D, param_dtype=WIDE, name="up")(x))
        )
        return x + linen.Dense(D, param_dtype=WIDE, name="down")(h), None


class LinenStack(linen.Module):
    """Layers in a scan, each with a checkpoint; stacked along axis 1, as in MaxText."""

    train: bool = True

    @linen.compact
    def __call__(self, x):
        scan = linen.scan(
            linen.remat(LinenLayer),
            variable_axes={"params": 1, "batch_stats": 0},
            split_rngs={"params": True, "dropout": True},
            length=LAYERS,
        )
        return scan(self.train, name="layers")(x, None)[0]


class LinenLoop(linen.Module):
    train: bool = True

    @linen.compact
    def __call__(self, x):
        for n in range(LAYERS):
            x = LinenLayer(self.train, name=f"layers_{n}")(x, None)[0]
        return x


class EquinoxLayer(equinox.Module):
    up: equinox.nn.Linear
    down: equinox.nn.Linear
    norm: equinox.nn.LayerNorm

    def __init__(self, key):
        one, two = jax.random.split(key)
        self.up = equinox.nn.Linear(D, 2 * D, key=one, dtype=WIDE)
        self.down = equinox.nn.Linear(2 * D, D, key=two, dtype=WIDE)
        self.norm = equinox.nn.LayerNorm(D, dtype=WIDE)

    def __call__(self, x):
        return x + self.down(jax.nn.relu(self.up(self.norm(x))))


class EquinoxStack(equinox.Module):
    """Layers made by filter_vmap, and scanned over with a checkpoint in each."""

    layers: EquinoxLayer

    def __init__(self, key):
        self.layers = equinox.filter_vmap(EquinoxLayer)(jax.random.split(key, LAYERS))

    def __call__(self, x):
        arrays, static = equinox.partition(self.layers, equinox.is_array)

        @jax.checkpoint
        def body(x, layer):
            return equinox.combine(layer, static)(x), None

        return jax.lax.scan(body, x, arrays)[0]


def bound(weights, **options):
    leaves = tnadapt_jax.find_sites(weights, **options)
    adapter = families.lotr().bind(leaves.sites, rank=2, seed=0)
    params = tnadapt_jax.init(adapter, dtype=WIDE)
    keys = iter(jax.random.split(jax.random.key(3), len(params["trainable"])))
    moved = {n: v + jax.random.normal(next(keys), v.shape, WIDE) / 3 for n, v in params["trainable"].items()}
    return leaves, adapter, params | {"trainable": moved}


def check(function, weights, *args, **options):
    """Answers and gradients of params and weights are those of merged weights; no update is made as a matrix."""
    leaves, adapter, params = bound(weights, **options)
    adapted = tnadapt_jax.adapt(function, adapter, leaves)

    def merged(params, weights, *args):
        return function(tnadapt_jax.merge(adapter, params, weights, leaves), *args)

    def loss(run, params, weights):
        made = run(params, weights, *args)
        return sum(jnp.sum(jnp.sin(one)) for one in jax.tree.leaves(made)), made

    found, wanted = (
        jax.jit(jax.value_and_grad(partial(loss, run), argnums=(0, 1), has_aux=True))(params, weights)
        for run in (adapted, merged)
    )
    for one, other in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10)
    explained = tnadapt_jax.explain(function, adapter, leaves)(params, weights, *args)
    assert explained.dense == ()
    assert all(explained.uses.values())


QKV = dict.fromkeys(("query", "key", "value"), "in out out") | {"out": "in in out"}
LAYOUT = QKV | {"up": "linen", "down": "linen"}


@pytest.mark.parametrize(
    ("model", "axis", "train"),
    [
        pytest.param(LinenStack, {"layers": 1}, True, id="scan-True"),
        pytest.param(LinenStack, {"layers": 1}, False, id="scan-False", marks=left_to_laws("the others have both")),
        pytest.param(LinenLoop, None, True, id="loop-True", marks=left_to_laws("the others have both")),
        pytest.param(LinenLoop, None, False, id="loop-False"),
    ],
)
def test_a_linen_model_with_statistics_and_dropout(model, axis, train):
    x = jax.random.normal(jax.random.key(1), (2, 5, D), WIDE)
    host = model(train)
    variables = host.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, x)
    statistics = jax.tree.map(lambda leaf: leaf.astype(WIDE), variables["batch_stats"])

    def call(weights, statistics, x, key):
        held = {"params": weights, "batch_stats": statistics}
        return host.apply(held, x, rngs={"dropout": key}, mutable=["batch_stats"])

    check(call, variables["params"], statistics, x, jax.random.key(2), layout=LAYOUT, layer_axis=axis)


def test_an_equinox_model_that_scans_over_layers():
    model = EquinoxStack(jax.random.key(0))
    arrays, static = equinox.partition(model, equinox.is_array)
    x = jax.random.normal(jax.random.key(1), (5, D), WIDE)
    check(
        lambda arrays, x: jax.vmap(equinox.combine(arrays, static))(x),
        arrays,
        x,
        target=["up", "down"],
        layout="equinox",
        layer_axis={"layers": 0},
    )


def test_an_equinox_model_with_attention():
    model = equinox.nn.MultiheadAttention(2, D, key=jax.random.key(0), dtype=WIDE)
    arrays, static = equinox.partition(model, equinox.is_array)
    x = jax.random.normal(jax.random.key(1), (5, D), WIDE)
    target = ["query_proj", "key_proj", "value_proj", "output_proj"]
    check(lambda arrays, x: equinox.combine(arrays, static)(x, x, x), arrays, x, target=target, layout="equinox")
