"""Fixtures for all tests of the JAX binding: implicit promotion of dtypes or ranks is an error."""

import importlib.util

import pytest

collect_ignore_glob = [] if importlib.util.find_spec("jax") else ["*"]


@pytest.fixture(autouse=True)
def strict():
    import jax

    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def started():
    """A function that returns the starting values of an adapter, with random weights as its host."""
    import numpy as np

    import tnadapt_jax

    def start(adapter):
        random = np.random.default_rng(0)
        weights = {path: random.standard_normal(sites[0].weight_shape) for path, sites in adapter.weights.items()}
        return tnadapt_jax.init(adapter, weights=weights)

    return start
