"""The order of axes: a copy is made where it is cheaper than a slow gradient, and nowhere else."""

import pytest
import torch

import tnadapt_torch
from tnadapt import families, grid, plan
from tnadapt.binding import FIXED, TRAINING
from tnadapt_torch._run.layout import lay_out
from tnadapt_torch._run.ways import CPU, MACHINES, Convolved, Way

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


@pytest.mark.parametrize(("machine", "size", "is_copied"), [("cpu", 32, True), ("cpu", 4, False), ("cuda", 32, False)])
def test_x_is_copied_where_its_rows_are_short_and_far_apart_and_that_is_slow(machine, size, is_copied):
    """A block has rows of 32 numbers in rows of 1,024, or of 256."""
    sites = grid(layers=1, kinds={"q": (1024, 1024)})
    network = families.gralora().bind(sites, rank=1, sizes={"o1": size, "i1": size}).networks[0]
    ((_, last),) = lay_out(plan(network, tokens=16384), MACHINES[machine])
    first = last.left
    assert (first.left.order != first.left_order) is is_copied
    assert first.strided


def test_a_product_has_no_two_operands_that_lie_against_its_result():
    """Such a product takes five times as long where one side is skinny. Its small factor is copied instead."""
    ranks = {f"r_{side}{axis}": rank for side in "oi" for axis, rank in enumerate((8, 4, 4), 1)}
    network = families.tera().bind(grid(layers=1, kinds={"q": (1024, 1024)}), rank=ranks).networks[0]
    ((_, last),) = lay_out(plan(network, tokens=2048))
    waiting, seen = [last], 0
    for way in waiting:
        if not isinstance(way, Way):
            continue
        waiting += [way.left, way.right]
        token = way.order.count("(token)")
        if token and not way.roles.batch:
            left, right = (order[-1:] for order in (way.left_order, way.right_order))
            lie = left == way.roles.summed[-1:], right != way.roles.summed[-1:], way.order[-1:] == way.roles.right[-1:]
            assert lie[0] != lie[1] or lie[1] == lie[2]
            seen += 1
    assert seen == 5


def test_the_device_of_the_factors_decides_what_is_slow(monkeypatch):
    """A model that is moved to another type of device gets code for that type, if there is a table for it."""
    block = torch.nn.Sequential(torch.nn.Linear(4, 4))
    state = tnadapt_torch.attach(block, families.lora(), target_modules=["0"], rank=2, seed=0)
    update = state.updates["0"]
    block(torch.ones(1, 4))
    assert update.machine == "cpu"
    for table in (MACHINES, TRAINING, FIXED):
        monkeypatch.setitem(table, "meta", table["cuda"])
    block.to("meta")
    assert update.machine == "meta"
    block.to_empty(device="cpu")
    assert update.machine == "cpu"
