"""Equinox modules are pytrees, so the pure functions adapt them without any support for Equinox."""

import pytest

pytest.importorskip("equinox")

import equinox
import jax
import jax.numpy as jnp
import numpy as np

import tnadapt_jax
from tnadapt import families


def test_adapting_weights_and_adapting_activations_agree_for_an_mlp():
    model = equinox.nn.MLP(4, 3, 8, 2, key=jax.random.key(0))
    arrays, static = equinox.partition(model, equinox.is_array)
    leaves = tnadapt_jax.find_sites(arrays, target=r"layers\.\d", layout="equinox")
    assert [site.shape for site in leaves.sites] == [(8, 4), (8, 8), (3, 8)]
    adapter = families.lora().bind(leaves.sites, rank=2, seed=0)
    params = tnadapt_jax.init(adapter)
    params = params | {"trainable": jax.tree.map(lambda value: value + 0.1, params["trainable"])}
    adapted = tnadapt_jax.adapt(lambda arrays, x: jax.vmap(equinox.combine(arrays, static))(x), adapter, leaves)

    def by_activations(params, x):
        for number, layer in enumerate(model.layers):
            x = jax.vmap(layer)(x) + tnadapt_jax.apply(adapter, params, f"layers.{number}", x)
            x = jax.nn.relu(x) if number < 2 else x
        return x

    x = jax.random.normal(jax.random.key(1), (5, 4))
    np.testing.assert_allclose(adapted(params, arrays, x), by_activations(params, x), rtol=1e-4, atol=1e-5)
    gradients = [
        jax.jit(jax.grad(lambda t, f=f: (f(params | {"trainable": t}) ** 2).sum()))(params["trainable"])
        for f in (lambda p: adapted(p, arrays, x), lambda p: by_activations(p, x))
    ]
    for ours, theirs in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3 * float(jnp.abs(theirs).max()))
