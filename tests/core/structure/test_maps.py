"""Generic values of factors with a map are values of the map, modulo a prime, and ranks are those at random values."""

import numpy as np
import pytest

from tnadapt import families, generic_rank, grid, trainable
from tnadapt._structure.maps import _inverse, generic_node
from tnadapt._structure.modular import PRIME, Budget, multiply, residues
from tnadapt._structure.rank import WORK
from tnadapt._values import delta
from tnadapt.testing._oracle import random_params

SHAPES = {"rotation": (3, 2, 2), "householder": (3, 5, 5), "cayley": (3, 5, 5)}


def node_of(name, seed=0):
    budget = Budget("test", flops=WORK)
    return generic_node(trainable("g a b", map=name), SHAPES[name], np.random.default_rng(seed), budget)


@pytest.mark.parametrize("name", SHAPES)
def test_what_a_map_makes_is_orthogonal_and_not_the_identity(name):
    node = node_of(name)
    one = np.eye(node.shape[-1], dtype=np.int64)
    assert node.shape == SHAPES[name]
    assert ((node >= 0) & (node < PRIME)).all()
    np.testing.assert_array_equal(multiply(node, node.swapaxes(-1, -2)), np.broadcast_to(one, node.shape))
    assert (node != one).any(axis=(-1, -2)).all()
    assert (node_of(name, 1) != node).any()


def test_a_reflection_changes_one_direction_and_a_rotation_none_for_good():
    (first, *_) = node_of("householder")
    assert np.trace(first) % PRIME == 5 - 2
    turn = node_of("rotation")
    np.testing.assert_array_equal(turn[:, 0, 0], turn[:, 1, 1])
    np.testing.assert_array_equal((turn[:, 0, 1] + turn[:, 1, 0]) % PRIME, 0)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 33])
def test_the_inverse_of_a_batch_of_matrices(size):
    matrices = residues((2, size, size), np.random.default_rng(0))
    np.testing.assert_array_equal(multiply(matrices, _inverse(matrices)), np.stack([np.eye(size, dtype=np.int64)] * 2))


def test_without_a_map_the_node_is_drawn_as_it_is():
    drawn = generic_node(trainable("a b"), (2, 3), np.random.default_rng(0), Budget("test", flops=0))
    np.testing.assert_array_equal(drawn, residues((2, 3), np.random.default_rng(0)))


@pytest.mark.parametrize("size", [2, 3, 4, 6])
@pytest.mark.parametrize("reflections", [1, 2, 3])
def test_the_generic_rank_of_reflections_is_that_at_random_values(reflections, size):
    """Three reflections are the identity but for three directions, or for one in a plane."""
    spec = families.hra(reflections=reflections, start="free")
    ranks_agree(spec.bind(grid(layers=1, kinds={"q": (size, size)}), seed=0, overparametrized=True))


@pytest.mark.parametrize(("size", "block"), [(2, 2), (3, 3), (6, 3), (4, 2)])
def test_the_generic_rank_of_rotations_is_that_at_random_values(size, block):
    """A rotation of three axes leaves one as it is."""
    ranks_agree(families.oft().bind(grid(layers=1, kinds={"q": (size, size)}), sizes={"i": block}, seed=0))


def ranks_agree(adapter):
    (site,) = adapter.sites
    params = random_params(adapter, np.random.default_rng(0))
    assert generic_rank(adapter, site) == np.linalg.matrix_rank(delta(adapter, params, site))
