"""Flax nnx: a model and its adapter as one module, of which an optimizer trains only the factors."""

import pytest

pytest.importorskip("flax")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import tnadapt
import tnadapt_jax
from tnadapt import SiteError, families
from tnadapt_jax import nnx as tnadapt_nnx


class Block(nnx.Module):
    def __init__(self, width, rngs):
        self.up = nnx.Linear(width, 2 * width, rngs=rngs)
        self.down = nnx.Linear(2 * width, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return x + self.down(self.drop(jnp.tanh(self.up(self.norm(x)))))


class Net(nnx.Module):
    def __init__(self, width, layers, rngs):
        self.blocks = nnx.List([Block(width, rngs) for _ in range(layers)])

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def attached(family=families.vera, **asked):
    model = Net(4, 2, nnx.Rngs(0))
    model.eval()
    return tnadapt_nnx.attach(model, family(), target=["up", "down"], **({"rank": 2, "seed": 0} | asked))


X = jax.random.normal(jax.random.key(7), (3, 4))


def randomised(adapted):
    held = jax.tree.leaves(adapted.trainable, is_leaf=lambda value: isinstance(value, nnx.Variable))
    for number, variable in enumerate(held):
        variable[...] = jax.random.normal(jax.random.key(number), variable.shape)
    return adapted


def values_of(adapted):
    """Return every array of a module by path, without random keys."""
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(adapted, nnx.Not(nnx.RngKey))))
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.array(value) for path, value in leaves}


def test_it_starts_as_the_model_and_then_agrees_with_merge():
    adapted = attached()
    np.testing.assert_array_equal(adapted(X), adapted.model(X))
    randomised(adapted)
    weights = nnx.to_pure_dict(nnx.state(adapted.model, nnx.Param))
    merged = tnadapt_jax.merge(adapted.adapter, adapted.params(), weights, adapted.leaves)
    other = Net(4, 2, nnx.Rngs(1))
    other.eval()
    state = nnx.state(other, nnx.Param)
    nnx.replace_by_pure_dict(state, merged)
    nnx.update(other, state)
    np.testing.assert_allclose(adapted(X), other(X), rtol=1e-5, atol=1e-6)
    assert [site.path for site in adapted.adapter.sites][:2] == ["blocks.0.down", "blocks.0.up"]


def test_each_factor_is_stored_once_in_a_variable_of_its_kind():
    adapted = attached()
    counted = tnadapt.count(adapted.adapter)
    flat = dict(nnx.to_flat_state(nnx.state(adapted)))
    sizes = {kind: sum(v.size for v in flat.values() if type(v) is kind) for kind in map(type, flat.values())}
    assert sizes[tnadapt_nnx.AdapterParam] == counted.trainable
    assert sizes[tnadapt_nnx.FrozenFactor] == counted.frozen


def test_an_optimizer_trains_only_the_factors():
    adapted = attached(families.tlora, alpha=1.0)
    adapted.model.train()
    optimizer = nnx.Optimizer(adapted, optax.adam(3e-2), wrt=nnx.LoRAParam)
    moments = jax.tree.leaves(nnx.to_pure_dict(nnx.state(optimizer))["opt_state"])
    assert sum(value.size for value in moments) - 1 == 2 * tnadapt.count(adapted.adapter).trainable
    before = values_of(adapted)
    traces = []

    @nnx.jit
    def step(adapted, optimizer, x):
        traces.append(x.shape)

        def loss(adapted):
            return ((adapted(x) - 1.0) ** 2).mean()

        value, gradients = nnx.value_and_grad(loss, argnums=nnx.DiffState(0, nnx.LoRAParam))(adapted)
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to the power of an integer
            optimizer.update(adapted, gradients)
        return value

    with jax.debug_key_reuse(True):  # the model has dropout; the binding itself uses no keys
        losses = [float(step(adapted, optimizer, X)) for _ in range(60)]
    assert traces == [X.shape]
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])  # single losses are noisy because of dropout
    after = values_of(adapted)
    changed = {path for path, old in before.items() if np.any(old != after[path])}
    trained = {f"trainable.{name}" for name in adapted.params()["trainable"]}
    assert trained <= changed
    others = {path.split(".", 3)[-1] for path in changed - trained}
    assert others == {"norm.mean", "norm.var", "drop.rngs.count"}  # what the model itself changes in a call


def test_attach_rejects_a_target_that_matches_nothing():
    with pytest.raises(SiteError, match=r"got 'q', which matches none.*\n.*nearest names are"):
        tnadapt_nnx.attach(Net(4, 1, nnx.Rngs(0)), families.lora(), target=["q"], rank=2, seed=0)


def test_a_rank_above_that_of_any_update_is_to_be_asked_for():
    with pytest.raises(SiteError, match=r"pass overparametrized=True\.$"):
        attached(families.lora, rank=9)
    assert attached(families.lora, rank=9, overparametrized=True).adapter.rank == 9
