"""The intrinsic dimension of known manifolds, and the ranks that follow from it."""

import numpy as np
import pytest

from tests.core.policies.changes import SITES
from tests.thorough import IS_THOROUGH
from tnadapt import SiteError, families
from tnadapt.policies import intrinsic_dimension, ranks_from_dimensions

POINTS, SPACE = 2_000, 30


def turned(points, random):
    """Points in a turned subspace of a larger space."""
    wide = np.zeros((len(points), SPACE))
    wide[:, : points.shape[1]] = points
    return wide @ np.linalg.qr(random.standard_normal((SPACE, SPACE)))[0]


def cube(number, random):
    return random.random((POINTS, number))


def sphere(number, random):
    points = random.standard_normal((POINTS, number + 1))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


@pytest.mark.parametrize("number", [1, 2, 5] if IS_THOROUGH else [1, 5])
@pytest.mark.parametrize("shape", [cube, sphere])
def test_the_dimension_of_cubes_and_spheres(shape, number):
    streams = [np.random.default_rng(seed) for seed in range(6)]
    found = [intrinsic_dimension(turned(shape(number, random), random)) for random in streams]
    assert np.mean(found) == pytest.approx(number, rel=0.1)
    assert found == pytest.approx([number] * len(found), rel=0.15)  # of a single draw


def test_copies_scale_and_place_do_not_matter():
    random = np.random.default_rng(0)
    points = turned(cube(2, random), random)
    found = intrinsic_dimension(points)
    assert intrinsic_dimension(np.concatenate([points, points[:500]])) == pytest.approx(found, rel=1e-12)
    assert intrinsic_dimension(3.0 * points - 7.0) == pytest.approx(found, rel=1e-6)


@pytest.mark.parametrize(("points", "match"), [
    (np.zeros((100, 3)), r"intrinsic_dimension: expected at least 10 different points, got 1"),
    (np.arange(20.0), r"intrinsic_dimension: expected a matrix of finite numbers, got the ndarray of shape \(20,\)"),
    (np.full((20, 2), np.nan), r"intrinsic_dimension: expected a matrix of finite numbers"),
    (np.stack(np.meshgrid(*[np.arange(5.0)] * 2), -1).reshape(-1, 2), r"at different distances, got a lattice"),
])  # fmt: skip
def test_wrong_points(points, match):
    with pytest.raises(SiteError, match=match):
        intrinsic_dimension(points)


def test_the_ranks_are_those_of_the_formula():
    assert ranks_from_dimensions([3, 5, 4, 4]) == {0: 3, 1: 1, 2: 1}
    assert ranks_from_dimensions([3.0, 5.2, 5.2]) == {0: 4, 1: 1}  # the bound 2.2 holds


def test_ranks_of_sites_are_taken_by_bind():
    found = ranks_from_dimensions([3, 5, 4, 5], SITES)
    assert found["layers.0.q"] == found["layers.0.k"] == 3
    adapter = families.lora().bind(SITES, rank=found)
    assert [group.network.sizes["r"] for group in adapter.groups] == [3, 3, 1, 1, 2, 2]


@pytest.mark.parametrize(("dimensions", "sites", "match"), [
    ([3], None, r"ranks_from_dimensions: expected at least two dimensions from 0, got \[3\]"),
    ([3, -1], None, r"expected at least two dimensions from 0"),
    ([3, np.nan], None, r"expected at least two dimensions from 0"),
    ([3, 4], SITES, r"expected sites with a layer from 0 to 0, got 1 at layers.1.q"),
])  # fmt: skip
def test_wrong_dimensions(dimensions, sites, match):
    with pytest.raises(SiteError, match=match):
        ranks_from_dimensions(dimensions, sites)
