"""Rates in balance with the first step, as labels for optax, and how far a step goes with them."""

import math
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("optax")

import jax
import jax.numpy as jnp
import optax

import tnadapt_jax
from tnadapt import SiteError, families, grid, step_size, unit

LR = 2.0**-14  # far from any second order, and exact
SHAPES = {"wide": (48, 64), "narrow": (64, 32)}
FAMILIES = ("lora", "lotr", "vera", "loha", "tlora")  # tests/torch/test_step.py has more


@pytest.fixture(autouse=True)
def standard(strict):
    """Let optax promote dtypes, as its adamw does."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def balanced(adapter, lr, decay=0.0, params=None):
    labels, rates = tnadapt_jax.rate_labels(adapter, params)
    parts = {label: optax.adamw(lr * rate, weight_decay=decay / rate) for label, rate in rates.items()}
    return optax.multi_transform(parts, labels)


@pytest.mark.parametrize("rank", [4, 40])
@pytest.mark.parametrize("name", FAMILIES)
def test_one_step_of_adam_moves_the_update_by_the_step_size(name, rank):
    """At rank 40 bonds are larger than some of the modes that they join. RMS over sites and seeds."""
    spec = getattr(families, name)()
    adapter = spec.bind(grid(layers=2, kinds=SHAPES), rank=rank, scale=unit(2.0), overparametrized=True)
    optimizer = balanced(adapter, LR)

    def deltas(trainable, frozen):
        params = {"trainable": trainable, "frozen": frozen}
        return {site.path: tnadapt_jax.delta(adapter, params, site.path) for site in adapter.sites}

    @jax.jit
    def moves(params, pulls):
        trainable, frozen = params["trainable"], params["frozen"]

        def loss(trainable):
            return sum((one * pulls[path]).sum() for path, one in deltas(trainable, frozen).items())

        updates, _ = optimizer.update(jax.grad(loss)(trainable), optimizer.init(trainable), trainable)
        before, after = deltas(trainable, frozen), deltas(optax.apply_updates(trainable, updates), frozen)
        return {path: jnp.square((after[path] - before[path]) / LR).mean() for path in before}

    squares: dict[tuple[int, ...], list[float]] = {}
    for seed in range(3):
        random = np.random.default_rng(seed)
        pulls = {site.path: jnp.asarray(random.standard_normal(site.shape), jnp.float32) for site in adapter.sites}
        found = moves(tnadapt_jax.init(replace(adapter, seed=seed)), pulls)
        for site in adapter.sites:
            said = step_size(adapter)[adapter.find(site)[0].name].update
            squares.setdefault(site.shape, []).append(float(found[site.path]) / said**2)
    assert len(squares) == len(SHAPES)
    for shape, ratios in squares.items():
        assert 1 / 1.35 < math.sqrt(sum(ratios) / len(ratios)) < 1.35, shape


def test_labels_are_names_of_factors_and_of_entries_where_their_rates_differ():
    adapter = families.lora().bind(grid(layers=2, kinds={"q": (12, 27), "v": (12, 48)}), rank=2)
    labels, rates = tnadapt_jax.rate_labels(adapter)
    assert labels == {
        "0.q.A": "0.q.A", "1.q.A": "0.q.A", "0.v.A": "0.v.A", "1.v.A": "0.v.A",
        "0.q.B": "B", "1.q.B": "B", "0.v.B": "B", "1.v.B": "B",
    }  # fmt: skip
    assert rates == {"0.q.A": pytest.approx(6 / 9), "0.v.A": pytest.approx(0.5), "B": 1.0}
    assert jax.tree.structure(labels) == jax.tree.structure(tnadapt_jax.init(adapter)["trainable"])


def test_all_arrays_shrink_alike_with_a_weight_decay_over_the_rate():
    adapter = families.lotr().bind(grid(layers=2, kinds={"q": (12, 27)}), rank=2)
    trainable = jax.tree.map(lambda value: value + 1, tnadapt_jax.init(adapter)["trainable"])
    optimizer = balanced(adapter, 0.125, decay=0.5)
    still = jax.tree.map(jnp.zeros_like, trainable)
    updates, _ = optimizer.update(still, optimizer.init(trainable), trainable)
    for name, update in updates.items():
        np.testing.assert_allclose(update, -0.125 * 0.5 * trainable[name], rtol=1e-6)


def test_starts_that_are_read_need_params_and_trained_values_do_not_count():
    sites = grid(layers=1, kinds={"q": (12, 16)})
    adapter = families.pissa().bind(sites, rank=2)
    with pytest.raises(SiteError, match="expected starting values"):
        tnadapt_jax.rate_labels(adapter)
    params = tnadapt_jax.init(adapter, weights={sites[0].path: np.random.default_rng(0).standard_normal((12, 16))})
    trained = params | {"trainable": jax.tree.map(lambda value: 3 * value, params["trainable"])}
    assert tnadapt_jax.rate_labels(adapter, trained) == tnadapt_jax.rate_labels(adapter, params)
    with pytest.raises(SiteError, match="params: expected the trees"):
        tnadapt_jax.rate_labels(adapter, {"A": params["trainable"]["A"]})


def test_nnx_has_labels_for_its_state_and_takes_a_scale():
    pytest.importorskip("flax")
    from flax import nnx

    from tnadapt_jax import nnx as tnadapt_nnx

    model = nnx.Sequential(nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.tanh, nnx.Linear(8, 4, rngs=nnx.Rngs(1)))
    adapted = tnadapt_nnx.attach(model, families.lotr(), target=r"layers\.\d", rank=2, scale=unit(2.0))
    assert [size.output / size.coherence for size in step_size(adapted.adapter).values()] == [pytest.approx(2.0)] * 2
    labels, rates = tnadapt_nnx.rate_labels(adapted)
    parts = {label: optax.sgd(rate) for label, rate in rates.items()}
    optimizer = nnx.Optimizer(adapted, optax.multi_transform(parts, labels), wrt=tnadapt_nnx.AdapterParam)
    before = {name: jnp.array(value) for name, value in adapted.params()["trainable"].items()}
    optimizer.update(adapted, jax.tree.map(jnp.ones_like, nnx.state(adapted, tnadapt_nnx.AdapterParam)))
    plain, _ = tnadapt_jax.rate_labels(adapted.adapter)
    for name, value in adapted.params()["trainable"].items():
        np.testing.assert_allclose(before[name] - value, rates[plain[name]], rtol=1e-6)
    with pytest.raises(SiteError, match="rate_labels: expected a module with an adapter"):
        tnadapt_nnx.rate_labels(model)
