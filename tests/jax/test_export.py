"""`jax.export` with symbolic sizes: one program for any batch, which gives what a trace for each batch gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import tnadapt_jax
from tests.jax.functions import find_stack, in_scan, stack
from tnadapt import families, grid, magnitude, plan
from tnadapt_jax._lower import tokens_of

SITES = grid(layers=2, kinds={"q": (8, 8)})


@pytest.fixture
def params(started):
    def make(adapter):
        made = started(adapter)
        random = np.random.default_rng(1)
        trained = made["trainable"].items()
        return made | {"trainable": {n: jnp.asarray(random.standard_normal(v.shape) / 4, v.dtype) for n, v in trained}}

    return make


def check(function, params, lead, batches, rest=()):
    """Export for a lead shape such as "b, 4, max(1, b)", and compare with the function at each batch."""
    shape = (*export.symbolic_shape(lead), 8)
    like = jax.tree.map(lambda value: jax.ShapeDtypeStruct(value.shape, value.dtype), (params, rest))
    exported = export.export(jax.jit(function))(*like, jax.ShapeDtypeStruct(shape, jnp.float32))
    for sizes in batches:
        x = jnp.asarray(np.random.default_rng(0).standard_normal((*sizes, 8)), jnp.float32)
        wanted = jax.jit(function)(params, rest, x)
        np.testing.assert_allclose(exported.call(params, rest, x), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "spec", [families.lotr(), families.pissa(), magnitude(families.lora())], ids=["lotr", "pissa", "magnitude"]
)
def test_apply_is_exported_for_any_batch(spec, params):
    adapter = spec.bind(SITES, rank=2)
    check(lambda p, _, x: tnadapt_jax.apply(adapter, p, "layers.1.q", x), params(adapter), "b", [(1,), (3,), (300,)])


@pytest.mark.parametrize(
    ("lead", "batches"),
    [
        ("8, b", [(8, 1), (8, 5)]),
        ("b, 2*b", [(1, 2), (3, 6)]),
        ("max(1, b)", [(1,), (4,)]),
        ("b, t, 2", [(1, 3, 2), (4, 2, 2)]),
    ],
)
def test_leading_axes_may_mix_symbols_and_numbers(lead, batches, params):
    adapter = families.lorta().bind(SITES, rank=2, sizes={"head": 2})
    check(lambda p, _, x: tnadapt_jax.apply(adapter, p, "layers.1.q", x), params(adapter), lead, batches)


def test_steps_without_a_sum_are_exported(params):
    """A hyperedge is a product of entries, of which the larger side comes first."""
    adapter = families.vera().bind(SITES, rank=3)
    check(lambda p, _, x: tnadapt_jax.apply(adapter, p, "layers.1.q", x), params(adapter), "b", [(2,), (40,)])


def test_a_scan_is_exported(params):
    adapter = families.lotr().bind(SITES, rank=2)

    def model(params, _, x):
        shared, per_layer = tnadapt_jax.scan_split(adapter, params)
        layer = lambda x, own: (jnp.tanh(x + tnadapt_jax.apply_in_layer(adapter, shared, own, "q", x)), None)  # noqa: E731
        return jax.lax.scan(layer, x, per_layer)[0]

    check(model, params(adapter), "b, 2", [(1, 2), (5, 2)])


def test_an_adapted_function_is_exported(params):
    with jax.enable_x64(True):
        weights = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), stack())
    leaves = find_stack(weights)
    adapter = families.lotr().bind(leaves.sites, rank=2)
    adapted = tnadapt_jax.adapt(in_scan, adapter, leaves, dense="refuse")
    check(adapted, params(adapter), "b", [(1,), (5,)], rest=weights)


def test_the_plan_is_that_of_the_tokens_or_of_1024_and_more():
    (batch,) = export.symbolic_shape("b")
    assert [tokens_of(lead) for lead in ((), (3, 4), (0, 4), (batch,), (8, batch), (4096, batch))] == [
        *(1, 12, 1),
        *(1024, 1024, 4096),
    ]
    network = families.lora().bind(SITES, rank=2).networks[0]
    assert plan(network, tokens=tokens_of((batch,))) == plan(network)  # as torch.compile gets it
