"""The order of axes: a copy is made where it is cheaper than a slow gradient, and nowhere else."""

import pytest

from tnadapt import families, grid, plan
from tnadapt_torch._run.layout import OVERHEAD, lay_out

RANK, SIZE = 4, 512
LORA = families.lora().bind(grid(layers=1, kinds={"q": (SIZE, SIZE)}), rank=RANK).groups[0].network


@pytest.mark.parametrize(
    ("words", "copied"),
    [({}, RANK * SIZE + OVERHEAD), ({"training": False}, 0)],
    ids=["training", "no gradient"],
)
def test_the_skinny_factor_is_copied_only_for_a_gradient(words, copied):
    ((sign, way),) = lay_out(plan(LORA, tokens=512, **words))
    assert (sign, way.cost) == (1, copied)
