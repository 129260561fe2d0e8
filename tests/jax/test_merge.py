"""`merge` and `adapt`: all layouts, stacked leaves, a single rounding, gradients through the weights."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tnadapt
import tnadapt_jax
from tnadapt import SiteError, families


def moved(adapter, seed=0):
    params = tnadapt_jax.init(adapter)
    keys = jax.random.split(jax.random.key(seed), len(params["trainable"]))
    named = zip(params["trainable"].items(), keys, strict=True)
    return params | {"trainable": {name: jax.random.normal(key, value.shape) for (name, value), key in named}}


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


WEIGHTS = {"a": {"kernel": normal(0, 4, 6), "bias": normal(1, 6)}, "b": {"kernel": normal(2, 6, 4)}}


def bound(weights, layout="in out", target=("a", "b"), layer_axis=None, family=families.lotr):
    leaves = tnadapt_jax.find_sites(weights, target=list(target), layout=layout, layer_axis=layer_axis)
    adapter = family().bind(leaves.sites, rank=2, seed=1)
    return adapter, moved(adapter), leaves


@pytest.mark.parametrize("layout", ["in out", "out in"])
def test_updates_follow_the_layout_and_other_leaves_are_returned_unchanged(layout):
    adapter, params, leaves = bound(WEIGHTS, layout)
    merged = tnadapt_jax.merge(adapter, params, WEIGHTS, leaves)
    assert merged["a"]["bias"] is WEIGHTS["a"]["bias"]
    for name in ("a", "b"):
        update = tnadapt_jax.delta(adapter, params, name)
        wanted = WEIGHTS[name]["kernel"] + (update.T if layout == "in out" else update)
        np.testing.assert_allclose(merged[name]["kernel"], wanted, rtol=1e-6, atol=1e-6)


def test_split_axes_and_stacks_along_any_axis_are_merged():
    tree = {"q": normal(0, 8, 3, 2, 5), "o": normal(1, 3, 2, 5, 8)}
    leaves = tnadapt_jax.find_sites(tree, target=["q"], layout="in out out", layer_axis=1)
    leaves += tnadapt_jax.find_sites(tree, target=["o"], layout="in in out", layer_axis=0)
    adapter = families.lora().bind(leaves.sites, rank=2)
    params = moved(adapter)
    merged = jax.jit(lambda params, tree: tnadapt_jax.merge(adapter, params, tree, leaves))(params, tree)
    for layer in range(3):
        q, o = (np.asarray(tnadapt_jax.delta(adapter, params, f"{name}[{layer}]")) for name in "qo")
        np.testing.assert_allclose(merged["q"][:, layer] - tree["q"][:, layer], q.T.reshape(8, 2, 5), atol=1e-5)
        np.testing.assert_allclose(merged["o"][layer] - tree["o"][layer], o.T.reshape(2, 5, 8), atol=1e-5)


def test_only_the_adapted_layers_of_a_stack_change():
    tree = {"q": normal(0, 3, 4, 6)}
    leaves = tnadapt_jax.find_sites(tree, target=["q"], layout="in out", layer_axis=0)
    adapter = families.lora().bind([leaves.sites[2]], rank=2)
    merged = tnadapt_jax.merge(adapter, moved(adapter), tree, leaves)
    assert (merged["q"][:2] == tree["q"][:2]).all()
    assert (merged["q"][2] != tree["q"][2]).all()


def test_the_sum_is_computed_in_float32_and_rounded_once():
    """Each entry equals the float32 sum, rounded once."""
    weights = {"a": {"kernel": normal(0, 64, 64).astype(jnp.bfloat16)}}
    adapter, params, leaves = bound(weights, target=["a"])
    params = params | {"trainable": jax.tree.map(lambda value: value * 0.3, params["trainable"])}
    merged = tnadapt_jax.merge(adapter, params, weights, leaves)["a"]["kernel"]
    values = {name: np.asarray(value) for name, value in params["trainable"].items()}
    update = tnadapt.delta(adapter, values, "a").T
    wanted = (np.asarray(weights["a"]["kernel"]).astype(np.float32) + update.astype(np.float32)).astype(jnp.bfloat16)
    assert merged.dtype == jnp.bfloat16
    assert np.mean(np.asarray(merged) != wanted) <= 0.005  # ties decided by the last bit of an update
    assert np.mean(np.asarray(merged) != np.asarray(weights["a"]["kernel"])) > 0.05


def test_gradients_through_weights_and_through_activations_agree():
    def model(weights, x):
        return jnp.tanh(x @ weights["a"]["kernel"] + weights["a"]["bias"][None, :]) @ weights["b"]["kernel"]

    adapter, params, leaves = bound(WEIGHTS)
    adapted = tnadapt_jax.adapt(model, adapter, leaves)
    x = normal(3, 5, 4)

    def through_weights(trained):
        return (adapted(params | {"trainable": trained}, WEIGHTS, x) ** 2).sum()

    def through_activations(trained):
        now = params | {"trainable": trained}
        h = x @ WEIGHTS["a"]["kernel"] + WEIGHTS["a"]["bias"][None, :] + tnadapt_jax.apply(adapter, now, "a", x)
        h = jnp.tanh(h)
        return ((h @ WEIGHTS["b"]["kernel"] + tnadapt_jax.apply(adapter, now, "b", h)) ** 2).sum()

    one, two = (jax.jit(jax.value_and_grad(f))(params["trainable"]) for f in (through_weights, through_activations))
    for ours, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * float(jnp.abs(theirs).max()))


def test_merge_rejects_a_transposed_weight_that_is_not_square():
    adapter, params, _ = bound(WEIGHTS)  # its sites are (out, in), as in a file from another framework
    turned = tnadapt_jax.find_sites(WEIGHTS, target=["a", "b"], layout="out in")
    message = r"a: expected .* \(out, in\) = \(6, 4\), got the leaf a\.kernel of shape \(4, 6\) in the layout 'out in'"
    with pytest.raises(SiteError, match=re.compile(message, re.DOTALL)), jax.no_tracing():
        tnadapt_jax.merge(adapter, params, WEIGHTS, turned)


def test_merge_rejects_invalid_arguments_before_tracing():
    adapter, params, leaves = bound(WEIGHTS)
    other = WEIGHTS | {"a": {"kernel": jnp.zeros((4, 5))}}
    some = tnadapt_jax.Leaves(leaves.entries[:1])
    with jax.no_tracing():
        with pytest.raises(SiteError, match=r"a: expected its leaf a\.kernel to have shape \(4, 6\), .*got \(4, 5\)"):
            tnadapt_jax.merge(adapter, params, other, leaves)
        with pytest.raises(SiteError, match=r"b: expected its leaf b\.kernel to have shape .*got no such leaf"):
            tnadapt_jax.merge(adapter, params, {"a": WEIGHTS["a"]}, leaves)
        state = {name: {"kernel": {"value": one["kernel"]}} for name, one in WEIGHTS.items()}
        with pytest.raises(SiteError, match=r"got no such leaf\.\nThis is a state of flax nnx: .*to_pure_dict"):
            tnadapt_jax.merge(adapter, params, state, leaves)
        with pytest.raises(SiteError, match=r"b: expected a leaf for this site, got none"):
            tnadapt_jax.merge(adapter, params, WEIGHTS, some)
        with pytest.raises(SiteError, match=r"params\['trainable'\]: expected the array '\w+\.?\w*', got none"):
            tnadapt_jax.merge(adapter, params | {"trainable": {}}, WEIGHTS, leaves)


@pytest.mark.parametrize("layout", ["in out", "out in"])
def test_a_losa_keeps_every_zero_of_the_weight(layout):
    sparse = {"a": {"kernel": jnp.where(normal(0, 4, 6) < 0, 0, normal(0, 4, 6))}}
    leaves = tnadapt_jax.find_sites(sparse, target=["a"], layout=layout)
    adapter = families.losa().bind(leaves.sites, rank=2, seed=1)
    params = tnadapt_jax.init(adapter, weights=leaves.read(sparse))
    params["trainable"] = {name: normal(5, *value.shape) for name, value in params["trainable"].items()}
    merged = tnadapt_jax.merge(adapter, params, sparse, leaves)["a"]["kernel"]
    np.testing.assert_array_equal(merged == 0, sparse["a"]["kernel"] == 0)
    assert (merged != sparse["a"]["kernel"]).any()
