"""Weights of few bits: activations keep the update, `merge_loss` says what a merge loses; integers are refused."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tnadapt
import tnadapt_jax
from tnadapt import SiteError, families

SIZE, TOKENS = 64, 16
HALVES = (jnp.bfloat16, jnp.float16)


def small(dtype):
    """An adapter of two stacked weights of a dtype, with |dW| / |W| = 8e-4, as after a short training."""
    weights = {"w": jax.random.normal(jax.random.key(0), (2, SIZE, SIZE), jnp.float32).astype(dtype)}
    leaves = tnadapt_jax.find_sites(weights, target=["w"], layout="in out", layer_axis=0)
    adapter = families.lora().bind(leaves.sites, rank=2, seed=0)
    params = tnadapt_jax.init(adapter)
    keys = jax.random.split(jax.random.key(1), len(params["trainable"]))
    named = zip(params["trainable"].items(), keys, strict=True)
    trained = {name: jax.random.normal(key, value.shape) for (name, value), key in named}
    ratio = np.mean(
        [np.linalg.norm(tnadapt_jax.delta(adapter, params | {"trainable": trained}, s)) for s in adapter.sites]
    )
    scale = np.sqrt(8e-4 * SIZE / ratio).item()
    return weights, leaves, adapter, params | {"trainable": {name: value * scale for name, value in trained.items()}}


def multiplied(weights, x):
    return jax.lax.scan(lambda x, w: (x @ w.astype(x.dtype) / 8, None), x, weights["w"])[0]


def looked_up(weights, x):
    rows = jnp.take(weights["w"][0], jnp.arange(TOKENS), axis=0).astype(x.dtype)
    return rows @ weights["w"][1].astype(x.dtype) / 8


def error(call, dtype):
    """Return the relative error of what the update changes in the answer."""
    weights, leaves, adapter, params = small(dtype)
    x = jax.random.normal(jax.random.key(2), (TOKENS, SIZE), jnp.float32)
    found = jax.jit(tnadapt_jax.adapt(call, adapter, leaves))(params, weights, x)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (params, weights, x, found))
        exact = call(tnadapt_jax.merge(adapter, *wide[:2], leaves), wide[2])
        change = exact - call(wide[1], wide[2])
        return float(jnp.linalg.norm(wide[3] - exact) / jnp.linalg.norm(change))


@pytest.mark.parametrize("dtype", HALVES)
def test_an_update_through_activations_survives_half_precision(dtype):
    assert error(multiplied, dtype) < 1e-3


def test_an_update_as_a_matrix_is_lost_in_half_precision_and_explain_says_so():
    assert error(looked_up, jnp.bfloat16) > 0.3
    weights, leaves, adapter, params = small(jnp.bfloat16)
    said = tnadapt_jax.explain(looked_up, adapter, leaves)(params, weights, jnp.ones((TOKENS, SIZE)))
    assert "dW in bfloat16: gather" in str(said)
    assert said.dense == ("w",)


@pytest.mark.parametrize("dtype", [*HALVES, jnp.float32])
@pytest.mark.parametrize("run", [lambda function: function, jax.jit])
def test_the_loss_of_a_merge_is_that_of_numpy(dtype, run):
    weights, leaves, adapter, params = small(dtype)
    (found,) = run(lambda p, w: tnadapt_jax.merge_loss(adapter, p, w, leaves))(params, weights).values()
    values = {name: np.asarray(value) for name, value in params["trainable"].items()}
    update = np.stack([tnadapt.delta(adapter, values, site.path).T for site in adapter.sites]).astype(np.float32)
    exact = np.asarray(weights["w"]).astype(np.float32) + update
    wanted = np.linalg.norm(exact.astype(dtype).astype(np.float32) - exact) / np.linalg.norm(update)
    np.testing.assert_allclose(found, wanted, rtol=0.02, atol=1e-3)
    assert {jnp.bfloat16: found > 0.5, jnp.float16: 0.05 < found < 0.5, jnp.float32: found < 1e-3}[dtype]


def test_the_loss_of_an_update_of_zero_is_zero():
    weights, leaves, adapter, _ = small(jnp.bfloat16)
    assert tnadapt_jax.merge_loss(adapter, tnadapt_jax.init(adapter), weights, leaves) == {"w": 0}


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.int4, jnp.uint8, jnp.bool_, jnp.complex64, jnp.float8_e4m3fn])
def test_weights_that_would_round_an_update_away_are_refused(dtype):
    weights, leaves, adapter, params = small(jnp.float32)
    stored = {"w": weights["w"].astype(dtype)}
    message = re.compile(
        rf"w: expected weights of a float dtype of 16 bits or more, got {jnp.dtype(dtype)}.*Dequant", re.S
    )
    for run in (tnadapt_jax.merge, tnadapt_jax.merge_loss):
        with pytest.raises(SiteError, match=message):
            run(adapter, params, stored, leaves)
    for run in (tnadapt_jax.adapt, tnadapt_jax.explain):
        with pytest.raises(SiteError, match=message):
            run(multiplied, adapter, leaves)(params, stored, jnp.ones((TOKENS, SIZE)))
    with pytest.raises(SiteError, match=message):
        jax.jit(lambda p, w: tnadapt_jax.merge(adapter, p, w, leaves))(params, stored)
