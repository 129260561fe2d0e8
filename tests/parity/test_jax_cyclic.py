"""JAX convolves in place of cyclic factors with the numbers and the gradients of the dense update."""

import pytest

pytest.importorskip("jax")

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, assume, given, settings

import tnadapt_jax
from tests.cyclic import can_convolve, convolving, cyclic_adapters
from tests.thorough import IS_THOROUGH
from tnadapt import families, grid, plan
from tnadapt.testing import random_params
from tnadapt_jax._params import tree_of

few = settings(
    max_examples=12 if IS_THOROUGH else 4, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow]
)
DTYPES = {"float64": 1e-10, "float32": 1e-5, "bfloat16": 2e-2}
EVERY = [(block, dtype) for block in (1, 2, 3, 8, 9) for dtype in DTYPES]
SOME = [(1, "float64"), (2, "float64"), (9, "float64"), (8, "float32"), (3, "bfloat16")]  # each is compiled


def errors(adapter, dtype):
    """How far y and the gradients of x and of the factors are from those of the dense update, and their dtypes."""
    random = np.random.default_rng(0)
    params, site = tree_of(adapter, random_params(adapter, random), dtype), adapter.sites[-1]
    x, pull = (jnp.asarray(random.standard_normal((2, 3, size)), dtype) for size in reversed(site.shape))

    def through(trainable, x):
        return tnadapt_jax.apply(adapter, {"trainable": trainable, "frozen": params["frozen"]}, site, x)

    def dense(trainable, x):
        wide = jnp.float64 if dtype == "float64" else jnp.float32
        weight = tnadapt_jax.delta(adapter, {"trainable": trainable, "frozen": params["frozen"]}, site)
        return jnp.asarray(jnp.asarray(x, wide) @ weight.T, dtype)

    answers = []
    for function in (through, dense):
        y, back = jax.vjp(function, params["trainable"], x)
        answers.append(jax.tree.leaves((y, back(pull))))
    found, wanted = answers
    assert [value.dtype for value in found] == [value.dtype for value in wanted]
    pairs = [[np.asarray(value, np.float64) for value in pair] for pair in zip(found, wanted, strict=True)]
    return [np.abs(one - two).max() / (np.abs(two).max() or 1.0) for one, two in pairs]


@pytest.fixture(autouse=True)
def strict():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@few
@given(adapter=cyclic_adapters())
def test_a_random_spec_agrees_with_its_dense_update(adapter):
    assume(can_convolve(adapter.networks[0]))
    with convolving():
        assert plan(adapter.networks[0], tokens=6).convolutions
        assert max(errors(adapter, "float64")) <= 1e-10


@pytest.mark.parametrize(("block", "dtype"), EVERY if IS_THOROUGH else SOME)
def test_c3a_agrees(block, dtype):
    """Of many small blocks the pattern is the smallest factor; it must not take the scale, since nobody reads it."""
    sites = grid(layers=1, kinds={"q": (6 * block, 5 * block)})
    adapter = families.c3a(alpha=40).bind(sites, sizes={"o2": block, "i2": block})
    with convolving():
        assert plan(adapter.networks[0], tokens=6).convolutions
        assert max(errors(adapter, dtype)) <= DTYPES[dtype]
