"""The order of axes: a copy is made where it is cheaper than a slow gradient, and nowhere else."""

import pytest

from tnadapt import families, grid, plan
from tnadapt_torch._run.layout import lay_out
from tnadapt_torch._run.ways import CPU, Convolved

RANK, SIZE = 4, 512
LORA = families.lora().bind(grid(layers=1, kinds={"q": (SIZE, SIZE)}), rank=RANK).groups[0].network


@pytest.mark.parametrize(
    ("words", "copied"),
    [({}, 2 * (CPU.turn * RANK * SIZE + CPU.call)), ({"training": False}, 0)],
    ids=["training", "no gradient"],
)
def test_the_skinny_factor_is_copied_only_for_a_gradient(words, copied):
    """And its gradient is copied back."""
    ((sign, way),) = lay_out(plan(LORA, tokens=512, **words))
    assert (sign, way.cost) == (1, copied)


def test_a_convolution_leaves_its_mode_first_and_reads_any_order():
    network = families.c3a().bind(grid(layers=1, kinds={"q": (SIZE, SIZE)}), sizes={"o2": 128, "i2": 128}).networks[0]
    order = plan(network, tokens=128)
    ((sign, way),) = lay_out(order)
    assert isinstance(way, Convolved)
    assert (sign, way.how, way.cost) == (1, order.convolutions[0], 0.0)
    assert way.order == ("o2", order.answer[0], "o1")
    assert (way.roles.batch, way.roles.summed) == ((), ("i1",))
