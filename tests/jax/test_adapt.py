"""`adapt` = the function of merged weights, in values and gradients, in every way of jax; and what `explain` says."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tnadapt_jax
from tests.jax.functions import FUNCTIONS, normal
from tests.thorough import IS_THOROUGH
from tnadapt import families


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def bound(function, family=families.lotr, **options):
    weights = function.make()
    leaves = function.find(weights)
    adapter = family().bind(leaves.sites, rank=2, seed=0, **options)
    read = leaves.read(weights) if adapter.reads_weights else None
    params = tnadapt_jax.init(adapter, dtype=jnp.float64, weights=read)
    keys = iter(jax.random.split(jax.random.key(3), len(params["trainable"])))
    moved = {n: v + jax.random.normal(next(keys), v.shape, v.dtype) / 3 for n, v in params["trainable"].items()}
    return weights, leaves, adapter, params | {"trainable": moved}


def check(function, weights, leaves, adapter, params):
    """Values, gradients of params, of weights and of x, against merged weights, to 1e-10."""
    x = normal(9, *function.x)
    adapted = tnadapt_jax.adapt(function.call, adapter, leaves)
    merged = lambda params, weights, x: function.call(tnadapt_jax.merge(adapter, params, weights, leaves), x)  # noqa: E731

    def loss(run, params, weights, x):
        made = run(params, weights, x)
        return jnp.sum(jnp.sin(made) * normal(8, *made.shape))

    found, wanted = (
        jax.jit(jax.value_and_grad(partial(loss, run), argnums=(0, 1, 2)))(params, weights, x)
        for run in (adapted, merged)
    )
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10)
    unadapted = loss(lambda params, weights, x: function.call(weights, x), params, weights, x)
    assert abs(float(found[0] - unadapted)) > 1e-3


# Near to others; to compile gradients of all takes a minute.
NEAR = {
    "index",
    "scan backwards, unrolled",
    "checkpoint, nothing",
    "checkpoint, dots without batch",
    "vmap",
    "jit",
    "custom_jvp",
    "experts",
    "blocks",
}


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if IS_THOROUGH or name not in NEAR])
def test_an_adapted_function_is_that_of_merged_weights(name):
    check(FUNCTIONS[name], *bound(FUNCTIONS[name]))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_updates_are_made_as_matrices_only_where_it_is_said(name):
    function = FUNCTIONS[name]
    weights, leaves, adapter, params = bound(function)
    uses = tnadapt_jax.explain(function.call, adapter, leaves)(params, weights, normal(9, *function.x)).uses
    for path, said in uses.items():
        dense = {what for what in said if what.startswith("dW")}
        assert dense == ({f"dW: {function.dense[path]}"} if path in function.dense else set()), path
        assert said
