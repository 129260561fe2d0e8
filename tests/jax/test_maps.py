"""Maps on factors in JAX against the maps of the core."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.thorough import IS_THOROUGH
from tnadapt import binding
from tnadapt_jax._maps import map_factor

SHAPES = {"": (3,), "rotation": (3,), "householder": (3,), "cayley": (3, 3)}


EVERY = [(lead, size) for lead in ((), (2,), (2, 4)) for size in (0.1, 2.0)]


@pytest.mark.parametrize(("lead", "size"), EVERY if IS_THOROUGH else [((), 2.0), ((2, 4), 0.1)])
@pytest.mark.parametrize("name", SHAPES)
def test_a_node_and_its_gradient_are_those_of_the_core(name, lead, size):
    random = np.random.default_rng(0)
    held = size * random.standard_normal(lead + SHAPES[name]).astype(np.float32)
    node = binding.map_factor(name, held.astype(float))
    np.testing.assert_allclose(map_factor(name, jnp.asarray(held)), node, rtol=1e-4, atol=1e-5)
    weight = random.standard_normal(node.shape).astype(np.float32)
    found = jax.grad(lambda held: jnp.sum(jnp.asarray(weight) * map_factor(name, held)))(jnp.asarray(held))
    wanted = binding.pull_back(name, held.astype(float), weight.astype(float))
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


def test_a_zero_vector_reflects_nothing_and_has_no_gradient():
    held = jnp.zeros(3)
    np.testing.assert_array_equal(map_factor("householder", held), np.eye(3))
    np.testing.assert_array_equal(jax.grad(lambda held: map_factor("householder", held).sum())(held), np.zeros(3))
