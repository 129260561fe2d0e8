"""What the tests of the core share: the families bound to small sites, and params that have moved."""

import numpy as np
import pytest

from tnadapt import Adapter, families, grid
from tnadapt.testing import random_params

KINDS = {"query": (12, 8), "value": (12, 8), "up": (8, 12)}  # two shapes: a family has to make groups
SIZES = {"lorta": {"head": 4}, "lorta heads in": {"head": 4}}
FAMILIES = {
    "lora": families.lora(),
    "lora stabilized": families.lora(rank_stabilized=True, gaussian=True),
    "lotr": families.lotr(),
    "lotr by layer": families.lotr(over="layer"),
    "lorta": families.lorta(),
    "lorta heads in": families.lorta(heads="in", over="layer"),
    "tlora": families.tlora(),
    "vera": families.vera(),
    "tera": families.tera(),
    "loha": families.loha(),
    "lokr": families.lokr(),
    "lokr whole": families.lokr(low_rank=False),
    "tera 2 1": families.tera(out_order=2, in_order=1),
}


@pytest.fixture(params=FAMILIES)
def adapter(request) -> Adapter:
    """Every family and its options, on two layers of three kinds in two shapes."""
    spec = FAMILIES[request.param]
    return spec.bind(grid(layers=2, kinds=KINDS), rank=3, sizes=SIZES.get(request.param), seed=5)


@pytest.fixture
def moved():
    """A function: params of an adapter as after training, every trainable entry drawn anew."""

    def draw(adapter: Adapter, seed: int = 0) -> dict[str, np.ndarray]:
        return random_params(adapter, np.random.default_rng(seed))

    return draw
