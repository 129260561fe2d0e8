"""Launches, and bytes of arrays of tokens x width: against small cases that were counted by hand."""

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

pytestmark = pytest.mark.usefixtures("modules")

TOKENS, IN, OUT, RANK = 13, 64, 48, 4
SIZE = 4  # bytes of a number
X, Y = SIZE * TOKENS * IN, SIZE * TOKENS * OUT


def counted(step, width=OUT):
    from counting import count

    return count(step, tokens=TOKENS, width=width)


def tensors():
    x = torch.randn(TOKENS, IN, requires_grad=True)
    weight = torch.randn(OUT, IN)
    return x, weight, torch.randn(TOKENS, OUT)


def test_a_frozen_linear_is_two_products():
    """Forward: read x, write y. Backward: read dy, write dx."""
    x, weight, dy = tensors()
    found = counted(lambda: torch.autograd.grad(linear(x, weight), x, dy))
    assert (found.launches, found.bytes) == (2, 2 * X + 2 * Y)
    assert dict(found.operators) == {"mm": 2}


def test_a_trained_linear_with_a_bias_has_two_gradients_more():
    """The gradient of the weight reads x and dy, that of the bias reads dy. The call adds the bias by itself."""
    x, _, dy = tensors()
    layer = nn.Linear(IN, OUT)
    found = counted(lambda: torch.autograd.grad(layer(x), (x, *layer.parameters()), dy))
    assert dict(found.operators) == {"addmm": 1, "mm": 2, "sum": 1}
    assert (found.launches, found.bytes) == (4, (X + Y) + (Y + X) + (X + Y) + Y)


def test_lora_by_hand_is_eight_products_two_sums_and_two_scales():
    """As PEFT computes it: y + s (x A) B, without gradients of the base."""
    x, weight, dy = tensors()
    a, b = (torch.randn(shape, requires_grad=True) for shape in ((RANK, IN), (OUT, RANK)))
    found = counted(lambda: torch.autograd.grad(linear(x, weight) + linear(linear(x, a), b) * 0.5, (x, a, b), dy))
    assert dict(found.operators) == {"mm": 8, "mul": 2, "add": 1, "add_": 1}
    forward = (X + Y) + X + Y + 2 * Y + 3 * Y  # base, x A, (x A) B, scale, sum
    backward = 2 * Y + Y + Y + X + X + (Y + X) + 3 * X  # scale, ds, dB, dA, dx of the update, dx of the base, sum
    assert (found.launches, found.bytes) == (12, forward + backward)


def test_a_product_that_accumulates_reads_and_writes_what_it_adds_to():
    y, s, b = torch.randn(TOKENS, OUT), torch.randn(TOKENS, RANK), torch.randn(RANK, OUT)
    for step in (lambda: y.addmm_(s, b), lambda: torch.addmm(y, s, b), lambda: torch.addmm(y, s, b, out=y)):
        found = counted(step)
        assert (found.launches, found.bytes) == (1, 2 * Y)
    assert counted(lambda: torch.addmm(y, s, b, beta=0)).bytes == Y
    assert counted(lambda: torch.mm(s, b, out=y)).bytes == Y


def test_views_cost_nothing_and_copies_are_counted():
    x, z = torch.randn(TOKENS, IN), torch.randn(TOKENS, IN)
    assert counted(lambda: x.t().reshape(8, 8, TOKENS).permute(2, 0, 1).unsqueeze(0)).launches == 0
    for step in (
        lambda: x.t().contiguous(),
        x.clone,
        lambda: x.t().reshape(-1),
        lambda: x.to(torch.float32, copy=True),
    ):
        found = counted(step)
        assert dict(found.operators) == {"copy_": 1}
    assert counted(lambda: x.t().contiguous()).bytes == 2 * X
    assert counted(lambda: x.to(torch.bfloat16)).bytes == X + X // 2
    assert counted(x.contiguous).launches == 0
    assert counted(lambda: torch.empty_like(x)).launches == 0
    assert counted(lambda: torch.zeros_like(x)).bytes == X
    assert counted(lambda: torch.cat((x, z), 1)).bytes == 4 * X


def test_only_arrays_of_tokens_and_at_least_the_width_are_counted():
    """Not the weights, nor what is of the rank, nor scores of tokens x tokens; an expanded row is one row."""
    x, scores, row = torch.randn(TOKENS, IN), torch.randn(8, TOKENS, TOKENS), torch.randn(1, IN)
    assert counted(lambda: x @ torch.randn(IN, RANK)).bytes == X
    assert counted(lambda: scores + 1.0).bytes == 0
    assert counted(lambda: x + row.expand(TOKENS, IN)).bytes == 2 * X
    assert counted(lambda: x * x).bytes == 2 * X
    assert counted(lambda: x + 1.0, width=IN + 1).bytes == 0
    weight, q, k = torch.randn(8, 16), torch.randn(8, TOKENS, 8), torch.randn(8, 8, TOKENS)
    assert counted(lambda: x.reshape(TOKENS * 8, 8) @ weight).bytes == X + 2 * X  # one axis is tokens and another mode
    assert counted(lambda: torch.bmm(q, k)).bytes == 2 * X


def test_counts_are_subtracted_by_operator():
    x = torch.randn(TOKENS, IN)
    one, two = counted(lambda: x + 1.0), counted(lambda: (x + 1.0) * 2.0 + 1.0)
    more = two - one
    assert (more.launches, more.bytes, dict(more.operators)) == (2, 4 * X, {"add": 1, "mul": 1})


def test_an_autograd_function_is_counted_by_its_operators():
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, dy):
            return dy * 2

    x = torch.randn(TOKENS, IN, requires_grad=True)
    found = counted(lambda: torch.autograd.grad(Twice.apply(x), x, torch.ones(TOKENS, IN)))
    assert dict(found.operators) == {"mul": 2, "fill_": 1}
