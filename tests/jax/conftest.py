"""What holds in every test of the binding: no implicit promotion of dtypes or ranks."""

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
    """The starting values of an adapter, from a host of random weights where they are read from one."""
    import numpy as np

    import tnadapt_jax

    def start(adapter):
        random = np.random.default_rng(0)
        weights = {path: random.standard_normal(sites[0].weight_shape) for path, sites in adapter.weights.items()}
        return tnadapt_jax.init(adapter, weights=weights)

    return start
