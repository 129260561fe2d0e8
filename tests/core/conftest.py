"""What the tests of the core share: the families bound to small sites, and params that have moved."""

import numpy as np
import pytest

from tests.table import FAMILIES
from tnadapt import Adapter
from tnadapt.testing import random_params

KINDS = {"query": (12, 8), "value": (12, 8), "up": (8, 12)}  # two shapes: a family has to make groups


@pytest.fixture(params=FAMILIES)
def adapter(request) -> Adapter:
    """Every family and its options, on two layers of three kinds in two shapes."""
    return FAMILIES[request.param].bind(layers=2, kinds=KINDS, seed=5)


@pytest.fixture
def moved():
    """A function: params of an adapter as after training, every trainable entry drawn anew."""

    def draw(adapter: Adapter, seed: int = 0) -> dict[str, np.ndarray]:
        return random_params(adapter, np.random.default_rng(seed))

    return draw
