"""Rite and Preconditioned as transformations of optax: dtypes, schedules, combinations, and trees that do not fit."""

import numpy as np
import pytest

pytest.importorskip("optax")

import jax
import jax.numpy as jnp
import optax

import tnadapt
import tnadapt_jax
from tests.descent import Task, expect_first_steps, moved, times
from tests.jax.steps import JaxRule, tree
from tnadapt import PlanError, SiteError, families, grid
from tnadapt_jax.optim import Preconditioned, Rite

LORA = families.lora().bind(grid(layers=2, kinds={"q": (6, 5)}), rank=3)
VERA = families.vera().bind(grid(layers=2, kinds={"q": (6, 5)}), rank=3)
VALUES = moved(LORA)
GRADS = Task(LORA).gradients(VALUES)
TRAINED = [name for name, slot in LORA.slots.items() if slot.factor.trainable]


def once(make, dtype, values=VALUES, grads=GRADS):
    return JaxRule(LORA, values, make, dtype)(values, grads)


@pytest.mark.parametrize("make", [lambda a: Rite(a, lr=1e-2), lambda a: optax.chain(Preconditioned(a), optax.sgd(1.0))])
def test_the_arithmetic_of_half_precision_factors_is_in_float32(make):
    values, grads = (
        {name: np.asarray(jnp.asarray(one[name], jnp.bfloat16)).astype(float) for name in TRAINED}
        for one in (VALUES, GRADS)
    )
    with jax.numpy_dtype_promotion("strict"):
        wanted, found = (once(make, dtype, values, grads) for dtype in (jnp.float32, jnp.bfloat16))
    for name, value in wanted.items():
        change = value - values[name]
        assert np.abs(found[name] - value).max() <= 2**-7 * np.abs(value).max()
        assert np.abs(change).max() > 0


@pytest.mark.parametrize("make", [lambda a: Rite(a, lr=1e-2), Preconditioned])
def test_the_changes_have_the_dtypes_of_the_gradients(make):
    transformation = make(LORA)
    values, grads = tree(LORA, VALUES, jnp.float32), tree(LORA, GRADS, jnp.bfloat16)
    changes, _ = transformation.update(grads, transformation.init(values), values)
    assert {change.dtype for change in changes.values()} == {jnp.dtype(jnp.bfloat16)}
    assert list(changes) == list(grads)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_the_first_steps_of_rite_are_as_long_whatever_the_loss_and_the_size_of_the_factors(size):
    params, task = tnadapt.init(LORA), Task(LORA)
    params = {name: value * (size if name.endswith("A") else 1) for name, value in params.items()}
    with jax.enable_x64(True):
        rule = JaxRule(LORA, params, lambda a: Rite(a, lr=1e-3, eps=1e-12, skip=0))
        expect_first_steps(LORA, params, lambda values: rule(values, times(1e2, task.gradients(values))), lr=1e-3)


def test_a_schedule_gives_the_rate_of_each_step():
    fixed, changing = (JaxRule(LORA, VALUES, lambda a, lr=lr: Rite(a, lr=lr), jnp.float32) for lr in (0.1, rate))
    first = [rule(VALUES, GRADS) for rule in (fixed, changing)]
    assert all(np.array_equal(first[0][name], first[1][name]) for name in TRAINED)
    second = [rule(first[0], GRADS) for rule in (fixed, changing)]
    for name in TRAINED:
        steps = [values[name] - first[0][name] for values in second]
        np.testing.assert_allclose(steps[1], steps[0] / 2, rtol=1e-4, atol=1e-5)


def rate(count):
    return 0.1 / (1 + count.astype(jnp.float32))


def test_an_adapter_with_frozen_factors_needs_them_at_each_update():
    params = tnadapt_jax.init(VERA)
    grads = jax.tree.map(jnp.ones_like, params["trainable"])
    optimizer = optax.chain(Preconditioned(VERA), optax.sgd(1e-2))
    state = optimizer.init(params["trainable"])
    with pytest.raises(SiteError, match=r"expected the frozen factor 'A', got none\.\nPass it: update"):
        optimizer.update(grads, state, params["trainable"])
    changes, _ = jax.jit(optimizer.update)(grads, state, params["trainable"], frozen=params["frozen"])
    assert all(np.isfinite(change).all() for change in changes.values())
    jaxpr = str(jax.make_jaxpr(optimizer.update)(grads, state, params["trainable"], frozen=params["frozen"]).consts)
    assert jaxpr == "[]"


def test_further_arguments_are_those_of_other_transformations():
    optimizer = Preconditioned(LORA)
    values, grads = tree(LORA, VALUES, jnp.float32), tree(LORA, GRADS, jnp.float32)
    found, wanted = (
        optimizer.update(grads, optimizer.init(values), values, **more)[0] for more in ({"value": 1.0}, {})
    )
    assert all(np.array_equal(found[name], wanted[name]) and np.any(found[name]) for name in TRAINED)


@pytest.mark.parametrize("make", [Rite, Preconditioned])
def test_trees_that_do_not_fit(make):
    transformation = make(LORA)
    values, grads = tree(LORA, VALUES, jnp.float32), tree(LORA, GRADS, jnp.float32)
    state = transformation.init(values)
    name = make.__name__
    with pytest.raises(SiteError, match=rf"{name}: expected the values of the trained factors, got none"):
        transformation.update(grads, state)
    with pytest.raises(SiteError, match=rf"{name}: expected gradients of 0\.q\.A, .* got a dict of 'trainable'"):
        transformation.update({"trainable": grads, "frozen": {}}, state, values)
    with pytest.raises(SiteError, match=rf"{name}: expected an array as gradients of '0\.q\.B', got .*MaskedNode"):
        transformation.update(grads | {"0.q.B": optax.MaskedNode()}, state, values)
    with pytest.raises(SiteError, match=rf"{name}: values\['0\.q\.B'\]: expected shape \(6, 3\), got \(3,\)"):
        transformation.update(grads, state, values | {"0.q.B": jnp.ones(3)})


@pytest.mark.parametrize("number", [np.float32, np.float64, np.int64])
def test_numbers_of_numpy_are_numbers(number):
    wanted = once(lambda adapter: Rite(adapter, lr=1.0), jnp.float32)
    for name, value in once(lambda adapter: Rite(adapter, lr=number(1)), jnp.float32).items():
        np.testing.assert_array_equal(value, wanted[name])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rite(LORA, lr=np.bool_(1)), "Rite: expected a number of at least 0 as lr"),
        (lambda: Rite(LORA, lr=-1.0), "Rite: expected a number of at least 0 as lr, got -1.0"),
        (lambda: Rite(LORA, betas=(0.9, 1.0)), "a number of at least 0 and below 1 as beta"),
        (lambda: Rite(LORA, betas=0.9), "expected two numbers as betas, got 0.9"),
        (lambda: Rite(LORA, rate=1), "Rite: expected a known argument, got 'rate'"),
        (lambda: Rite(families.lora()), "Rite: expected an Adapter"),
        (lambda: Preconditioned(LORA, damping=None), "Preconditioned: expected a number of at least 0 as damping"),
        (lambda: Preconditioned(families.lora()), "Preconditioned: expected an Adapter"),
    ],
)
def test_arguments_that_are_wrong(make, message):
    with pytest.raises(SiteError, match=message):
        make()


def test_adapters_that_they_do_not_take():
    adapter = families.lotr().bind(grid(layers=2, kinds={"q": (6, 5)}), rank=2)
    with pytest.raises(PlanError, match=r"'G' \(it has the bonds p and q\)"):
        Rite(adapter)
    adapter = families.householder().bind(grid(layers=1, kinds={"q": (4, 4)}), rank=4)
    with pytest.raises(PlanError, match="by the map 'householder'"):
        Preconditioned(adapter)
