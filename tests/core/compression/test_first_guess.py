"""Where alternating least squares begin."""

import pytest

from tests.core.compression.updates import random_updates
from tnadapt import (
    compress,
    families,
    grid,
)


@pytest.mark.parametrize(
    ("spec", "starts", "tried"),
    [
        (families.lotr(), None, 1),  # a tree
        (families.lora_xs(), None, 1),  # one trained factor
        (families.loha(), None, 4),
        (families.loha(), 6, 6),
        (families.loha(), 1, 1),
        (families.lotr(), 2, 2),
    ],
)
def test_how_many_starts_are_tried(spec, starts, tried):
    updates = random_updates(grid(layers=1, kinds={"q": (8, 6)}), rank=6)
    told = []
    found = compress(updates, spec, rank=2, starts=starts, sweeps=1, tell=told.append)
    begun = [one.error for one in told if one.number == 0]
    assert len(begun) == tried
    assert begun == sorted(begun, reverse=True)  # each is told with the best so far
    assert next(iter(found.history.values()))[-1] <= begun[-1]
