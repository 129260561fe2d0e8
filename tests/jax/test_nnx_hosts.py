"""Every model of nnx with an adapter = the same with merged weights: values, gradients, and what a call changes."""

import pytest

pytest.importorskip("flax")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import tnadapt_jax
from tests.jax.hosts import HOSTS
from tests.thorough import IS_THOROUGH
from tnadapt import families
from tnadapt_jax.nnx import AdapterParam, attach


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):  # layers of flax combine float64 with float32
        yield


def adapted_of(host, family=families.lotr, **options):
    adapted = attach(host.make(nnx.Rngs(0)), family(), rank=2, dtype=jnp.float64, **(host.find | options))
    adapted.train()
    for number, variable in enumerate(adapted.trainable.values()):
        variable[...] += jax.random.normal(jax.random.key(number), variable.shape, jnp.float64) / 3
    return adapted


def merged_call(adapted):
    """Return the function (trained arrays, x) -> (answer, state of the model afterwards), with merged weights."""
    graph, weights, rest = nnx.split(adapted.model, nnx.Param, ...)
    frozen, pure = adapted.params()["frozen"], nnx.to_pure_dict(weights)

    def call(trainable, x):
        params = {"trainable": trainable, "frozen": frozen}
        new = jax.tree.map(lambda leaf: leaf, weights)
        nnx.replace_by_pure_dict(new, tnadapt_jax.merge(adapted.adapter, params, pure, adapted.leaves))
        model = nnx.merge(graph, new, rest, copy=True)
        return model(x), nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))

    return call


def loss_of(answer):
    return jnp.sum(jnp.sin(answer) * jnp.cos(jnp.arange(answer.size, dtype=answer.dtype)).reshape(answer.shape))


def same(found, wanted):
    for one, other in zip(*(map(plain, jax.tree.leaves(tree)) for tree in (found, wanted)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10)


def plain(value):
    is_key = hasattr(value, "dtype") and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(value) if is_key else value


# Gradients are asked of the others. Both are asked of what changes at a call.
CALLED = HOSTS if IS_THOROUGH else ["statistics and dropout", *[*HOSTS][2::2]]


@pytest.mark.parametrize("name", CALLED)
def test_a_call_is_that_of_merged_weights_and_changes_what_the_model_changes(name):
    host = HOSTS[name]
    adapted, x = adapted_of(host), host.x()
    wanted, state = jax.jit(merged_call(adapted))(adapted.params()["trainable"], x)
    assert float(jnp.abs(wanted - nnx.clone(adapted.model)(x)).max()) > 1e-3
    kept = nnx.to_pure_dict(nnx.state(adapted.model, nnx.Param))
    found = nnx.jit(lambda adapted, x: adapted(x))(adapted, x)
    same(found, wanted)
    same(nnx.to_pure_dict(nnx.state(adapted.model, nnx.Not(nnx.Param))), state)
    same(nnx.to_pure_dict(nnx.state(adapted.model, nnx.Param)), kept)


@pytest.mark.parametrize("name", HOSTS if IS_THOROUGH else ["mlp", *[*HOSTS][1::2]])
def test_gradients_are_those_of_merged_weights(name):
    host = HOSTS[name]
    adapted, x = adapted_of(host), host.x()
    merged = merged_call(adapted)
    wanted = jax.jit(jax.grad(lambda trainable: loss_of(merged(trainable, x)[0])))(adapted.params()["trainable"])
    wrt = nnx.DiffState(0, nnx.LoRAParam)
    found = nnx.jit(nnx.grad(lambda adapted, x: loss_of(adapted(x)), argnums=wrt))(adapted, x)
    same(nnx.to_pure_dict(found)["trainable"], wanted)


@pytest.mark.parametrize("name", HOSTS)
def test_updates_are_made_as_matrices_only_where_it_is_said(name):
    host = HOSTS[name]
    adapted = adapted_of(host)
    explained = adapted.explain(host.x())
    assert isinstance(explained, tnadapt_jax.Explained)
    assert all(explained.uses.values()), str(explained)
    found = {path: [what for what in uses if what.startswith("dW")] for path, uses in explained.uses.items()}
    assert {path: whys for path, whys in found.items() if whys} == {
        path: [f"dW: {why}"] for path, why in host.dense.items()
    }


@pytest.mark.parametrize("name", HOSTS if IS_THOROUGH else [*HOSTS][1::4])
def test_twenty_steps_lower_the_loss_with_one_trace(name):
    host = HOSTS[name]
    adapted, x, traces = adapted_of(host), host.x(), []
    adapted.eval()
    optimizer = nnx.Optimizer(adapted, optax.adam(1e-2), wrt=AdapterParam)

    @nnx.jit
    def step(adapted, optimizer, x):
        traces.append(x.shape)
        value, gradients = nnx.value_and_grad(
            lambda adapted: ((adapted(x) - 0.5) ** 2).mean(), argnums=nnx.DiffState(0, nnx.LoRAParam)
        )(adapted)
        optimizer.update(adapted, gradients)
        return value

    losses = [float(step(adapted, optimizer, x)) for _ in range(20)]
    assert losses[-1] < 0.95 * losses[0]
    assert len(traces) == 1
