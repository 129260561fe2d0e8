"""JAX agrees with the numpy reference on random specs."""

import pytest

pytest.importorskip("torch")  # tests.parity.sides imports it
pytest.importorskip("jax")

import jax
import jax.numpy as jnp
from hypothesis import HealthCheck, assume, given, settings

from tests.parity import sides
from tests.parity.jax_side import by_jax
from tests.thorough import IS_THOROUGH
from tnadapt.testing import adapters

# Each example is compiled, which takes a second, so there are few and small ones.
few = settings(
    max_examples=12 if IS_THOROUGH else 5, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow]
)


def check(adapter):
    assume(len(adapter.spec.axes) == 2)  # sides draws an x with one in axis
    assume(len(adapter.sites) <= 4)
    assume(sum(value.size for value in sides.moved(adapter).values()) <= 2000)
    params, asked = sides.moved(adapter), sides.questions(adapter)
    wanted = sides.by_reference(adapter, params, asked)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        found = by_jax(adapter, params, asked, jnp.dtype("float64"), ("site",))["site"]
    sides.assert_same(found, wanted, 1e-10)


@few
@given(adapter=adapters())
def test_a_random_spec_agrees(adapter):
    check(adapter)


@few
@given(adapter=adapters(start="centered"))
def test_a_random_centered_spec_agrees(adapter):
    check(adapter)
