"""Bonds that change in training: updates, params and the state of optax follow."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tnadapt
import tnadapt_jax
from tests.thorough import IS_THOROUGH
from tnadapt import SiteError, families, grid
from tnadapt.policies import bonds, cut, grow, sweep

SITES = grid(layers=2, kinds={"q": (6, 8), "k": (6, 8)})
CASES = {
    "lora": (families.lora(), 2),
    "lotr": (families.lotr(), {"p": 2, "q": 3}),
    "vera": (families.vera(), 3),
    "pissa": (families.pissa(), 2),
}


@pytest.fixture(autouse=True)
def wide():
    """float64, and the promotion that optax relies on: it raises a float to the power of an integer."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


def bound(name):
    spec, rank = CASES[name]
    adapter = spec.bind(SITES, rank=rank)
    random = np.random.default_rng(0)
    weights = {site.path: random.standard_normal(site.shape) for site in SITES}
    params = tnadapt_jax.init(adapter, dtype=jnp.float64, weights=weights)
    trained = {k: v + 0.1 * random.standard_normal(v.shape) for k, v in params["trainable"].items()}
    return adapter, params | {"trainable": trained}


def flat(params):
    return params["trainable"] | params["frozen"]


def deltas(adapter, params):
    return {site.path: tnadapt_jax.delta(adapter, params, site) for site in adapter.sites}


def train(adapter, params, optimizer, state, steps=2):
    def loss(trainable):
        every = deltas(adapter, {"trainable": trainable, "frozen": params["frozen"]})
        return sum(jnp.sum(jnp.sin(value)) for value in every.values())

    trainable = params["trainable"]
    for _ in range(steps):
        updates, state = optimizer.update(jax.grad(loss)(trainable), state, trainable)
        trainable = optax.apply_updates(trainable, updates)
    return params | {"trainable": trainable}, state


@pytest.mark.parametrize("name", CASES if IS_THOROUGH else ["lotr"])
def test_growing_changes_no_update_and_training_goes_on(name):
    adapter, params = bound(name)
    optimizer = optax.adam(1e-2)
    params, state = train(adapter, params, optimizer, optimizer.init(params["trainable"]))
    before = deltas(adapter, params)
    bond = next(bond for bond, reason in bonds(adapter, "grow").items() if reason == "ok")
    change = grow(adapter, flat(params), bond, 2)
    params, state = tnadapt_jax.resize(change, params), tnadapt_jax.carry(change, state)
    for path, value in deltas(change.adapter, params).items():
        np.testing.assert_allclose(value, before[path], atol=1e-12)
    count = state[0].count
    params, state = train(change.adapter, params, optimizer, state)
    assert state[0].count == count + 2
    assert not np.allclose(next(iter(deltas(change.adapter, params).values())), next(iter(before.values())))


def test_moments_are_carried_as_the_core_says():
    adapter, params = bound("lotr")
    optimizer = optax.chain(optax.clip(1.0), optax.adam(1e-2))
    params, state = train(adapter, params, optimizer, optimizer.init(params["trainable"]))
    change = sweep(adapter, flat(params), rank=1)
    carried = tnadapt_jax.carry(change, state)
    for name in params["trainable"]:
        first, second = np.asarray(state[1][0].mu[name]), np.asarray(state[1][0].nu[name])
        np.testing.assert_allclose(carried[1][0].mu[name], change.carry(name, first), rtol=1e-12)
        np.testing.assert_allclose(carried[1][0].nu[name], change.carry(name, second, squared=True), rtol=1e-12)
        assert carried[1][0].mu[name].shape == change.adapter.slots[name].shape


def test_growing_and_cutting_at_once_leaves_all_later_steps():
    adapter, params = bound("lora")
    optimizer = optax.amsgrad(1e-2)
    params, state = train(adapter, params, optimizer, optimizer.init(params["trainable"]))
    wanted = deltas(adapter, train(adapter, params, optimizer, state)[0])
    for operation, value in ((grow, 2), (cut, 2)):
        change = operation(adapter, flat(params), "r", value)
        adapter, params, state = (
            change.adapter,
            tnadapt_jax.resize(change, params),
            tnadapt_jax.carry(change, state),
        )
    for path, value in deltas(adapter, train(adapter, params, optimizer, state)[0]).items():
        np.testing.assert_allclose(value, wanted[path], atol=1e-10)


def test_a_file_of_ranks_by_group_is_read_and_jitted(tmp_path):
    adapter, params = bound("lora")
    change = cut(adapter, flat(params), "0.q.r", 1)
    tnadapt.save(change.adapter, change.params, tmp_path / "a.safetensors")
    read, loaded = tnadapt_jax.load(tmp_path / "a.safetensors", dtype=jnp.float64)
    assert read == change.adapter
    x = jnp.ones((3, 8))
    for site in read.sites:
        found = jax.jit(lambda loaded, site=site: tnadapt_jax.apply(read, loaded, site, x))(loaded)
        np.testing.assert_allclose(found, tnadapt.apply(change.adapter, change.params, site, x), rtol=1e-10, atol=1e-12)


def test_squares_of_steps_and_parts_of_a_factor_are_refused():
    """Transported as gradients, the squares would become negative; the parts of SM3 have no place for a new slice."""
    adapter, params = bound("lora")
    for optimizer, change, word in (
        (optax.adadelta(1.0), sweep(adapter, flat(params)), "e_x"),
        (optax.sm3(1e-2), grow(adapter, flat(params), "r", 1), "mu"),
    ):
        _, state = train(adapter, params, optimizer, optimizer.init(params["trainable"]))
        with pytest.raises(SiteError, match=rf"carry: expected a mean of gradients .* at .*{word}"):
            tnadapt_jax.carry(change, state)
    change = sweep(adapter, flat(params))
    _, state = train(adapter, params, optax.adan(1e-2), optax.adan(1e-2).init(params["trainable"]))
    carried = tnadapt_jax.carry(change, state)
    assert all((value >= 0).all() for value in carried[0].n.values())


def test_what_does_not_fit():
    adapter, params = bound("lora")
    change = grow(adapter, flat(params), "r", 1)
    with pytest.raises(SiteError, match=r"carry: expected a change of bonds, got 3"):
        tnadapt_jax.carry(3, {})
    with pytest.raises(
        SiteError,
        match=r"carry: expected a mean of gradients of shape \(2, 8\) for '0.q.A', got an array of shape \(2,\)",
    ):
        tnadapt_jax.carry(change, {"0.q.A": jnp.ones(2)})
    with pytest.raises(SiteError, match=r"params\['trainable'\]\['0.q.A'\]: expected shape"):
        tnadapt_jax.resize(change, tnadapt_jax.resize(change, params))
    assert tnadapt_jax.carry(change, {"0.q.A": 3, "x": None}) == {"0.q.A": 3, "x": None}
