"""Every use of a weight: `adapt` = merged weights, and `explain` says what was done."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tnadapt_jax
from tests.jax.functions import D, normal
from tests.jax.oracle import summed_by_numpy, summed_by_site
from tests.jax.uses import LAYERS, TOKENS, USES
from tests.thorough import IS_THOROUGH
from tnadapt import SiteError, families


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def bound(use, family=families.lotr):
    lead = (LAYERS,) if use.is_stack else ()
    weights = {name: normal(at, *lead, D, D) for at, name in enumerate("ab")}
    axis = 0 if use.is_stack else None
    leaves = tnadapt_jax.find_sites(weights, target=["a", "b"], layout="in out", layer_axis=axis)
    adapter = family().bind(leaves.sites, rank=2, seed=0)
    params = tnadapt_jax.init(adapter, dtype=jnp.float64)
    random = np.random.default_rng(1)
    moved = {n: v + jnp.asarray(random.standard_normal(v.shape)) / 4 for n, v in params["trainable"].items()}
    return weights, leaves, adapter, params | {"trainable": moved}


@pytest.mark.parametrize("name", USES if IS_THOROUGH else list(USES)[::3])  # to compile all takes a minute
def test_every_use_is_that_of_merged_weights(name):
    use = USES[name]
    weights, leaves, adapter, params = bound(use)
    x = normal(9, TOKENS, D)

    def loss(run, params, weights, x):
        made = jax.tree.leaves(run(params, weights, x))
        return sum(jnp.sum(jnp.sin(one) * normal(8, *one.shape)) for one in made)

    # Compiling gradients takes most of the time; those of loops, branches and products are in test_adapt.py.
    if use.has_gradient and IS_THOROUGH:
        derived = partial(jax.value_and_grad, argnums=(0, 1, 2))
        merged = weights

        def other(params, weights, x):
            return use.call(summed_by_site(adapter, params, weights, leaves), x)
    else:
        derived = lambda run: run  # noqa: E731
        merged = summed_by_numpy(adapter, params, weights, leaves)
        other = lambda params, merged, x: use.call(merged, x)  # noqa: E731

    found = jax.jit(derived(partial(loss, tnadapt_jax.adapt(use.call, adapter, leaves))))(params, weights, x)
    wanted = jax.jit(derived(partial(loss, other)))(params, merged, x)
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-10 * max(1, float(jnp.max(jnp.abs(two)))))
    unadapted = loss(lambda params, weights, x: use.call(weights, x), params, weights, x)
    assert abs(float(jax.tree.leaves(found)[0] - unadapted)) > 1e-4


@pytest.mark.parametrize("name", USES)
def test_what_happens_to_each_weight_is_said(name):
    use = USES[name]
    weights, leaves, adapter, params = bound(use)
    x = normal(9, TOKENS, D)
    said = str(tnadapt_jax.explain(use.call, adapter, leaves)(params, weights, x))
    assert said == f"a  {use.a}\nb  {use.b}"
    adapted = tnadapt_jax.adapt(use.call, adapter, leaves, dense="refuse")
    if "dW" in said:
        with pytest.raises(SiteError, match="expected a function that only multiplies this weight, got one that"):
            jax.eval_shape(adapted, params, weights, x)
    else:
        jax.eval_shape(adapted, params, weights, x)


def reads_rows(weights, x):
    return x @ weights["a"] + jnp.take(weights["b"], jnp.arange(TOKENS), axis=0)  # this line is named


@pytest.mark.parametrize("inside", ["function", "jit", "scan", "checkpoint"])
def test_a_refusal_names_weight_operation_and_line(inside):
    weights, leaves, adapter, params = bound(USES["twice"])
    call = {
        "function": reads_rows,
        "jit": jax.jit(reads_rows),
        "scan": lambda w, x: jax.lax.scan(lambda x, _: (reads_rows(w, x), None), x, None, length=2)[0],
        "checkpoint": jax.checkpoint(reads_rows),
    }[inside]
    adapted = tnadapt_jax.adapt(call, adapter, leaves, dense="refuse")
    line = reads_rows.__code__.co_firstlineno + 1
    for run in (adapted, jax.jit(adapted)):
        with pytest.raises(SiteError, match=rf"^b: expected .* reads it by 'gather' in .*test_adapt_uses.py:{line}\."):
            run(params, weights, normal(9, TOKENS, D))


def test_an_index_before_the_first_layer_is_clamped_as_jax_does():
    """lax.dynamic_slice counts from the end what is still negative, but its primitive, which is in a jaxpr, clamps."""
    weights, leaves, adapter, params = bound(USES["map"])
    x = normal(9, TOKENS, D)

    def call(weights, x, n):
        return x @ jax.lax.dynamic_slice_in_dim(weights["a"], n, 1)[0]

    adapted = tnadapt_jax.adapt(call, adapter, leaves)
    merged = tnadapt_jax.merge(adapter, params, weights, leaves)
    for n in range(-2 * LAYERS - 1, LAYERS + 2):
        np.testing.assert_allclose(adapted(params, weights, x, n), call(merged, x, n), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("dtype", "number"), [("uint32", 2**32 - 1), ("int64", 2**32), ("uint8", 255), ("int8", -1)])
def test_an_index_of_any_dtype_is_clamped_as_jax_does(dtype, number):
    """A counter of an unsigned dtype, less one, is the largest number: jax takes the last layer."""
    weights, leaves, adapter, params = bound(USES["map"])
    x, n = normal(9, TOKENS, D), jnp.array(number, dtype)

    def call(weights, x, n):
        return x @ jax.lax.dynamic_index_in_dim(weights["a"], n, keepdims=False)

    found = tnadapt_jax.adapt(call, adapter, leaves)(params, weights, x, n)
    wanted = call(tnadapt_jax.merge(adapter, params, weights, leaves), x, n)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "bfloat16"])
def test_an_update_is_as_exact_as_the_product_with_a_wider_weight(dtype):
    """Quantized activations: the product is made in the dtype of the weight, and so is the update."""
    weights, leaves, adapter, params = bound(USES["twice"])
    weights = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, jnp.float32), weights)
    x = normal(9, TOKENS, D).astype(dtype)

    def call(weights, x):
        numbers = (((1,), (0,)), ((), ()))
        return jax.lax.dot_general(x, weights["a"], numbers, preferred_element_type=jnp.float32)

    found = tnadapt_jax.adapt(call, adapter, leaves)(params, weights, x)
    wanted = call(tnadapt_jax.merge(adapter, params, weights, leaves), x)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6 * float(jnp.max(jnp.abs(wanted))))
