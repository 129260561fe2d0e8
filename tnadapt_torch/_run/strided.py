"""Batches of matrix products that write results and gradients in a given order of axes, so that nothing is copied."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._C import _functorch
from torch.autograd import forward_ad

__all__: list[str] = []

Order = tuple[int, int, int]
LARGE = 8  # items of a batch: half of a line of memory


def multiply(left: Tensor, right: Tensor, order: Order) -> Tensor:
    """Return the products of two batches of matrices, with their axes (batch, row, column) permuted to `order`.

    In memory the axes of the result lie in that order, and each gradient lies as its operand does. A library for
    matrices writes so if the batch is not the last axis; `torch.bmm` has the batch first, whatever the next step reads.
    What does not know how to write into a given array (a compiler, a transform, a subclass) gets a permuted view.
    A side may be a batch of one matrix, which is then repeated; the other side must not.
    """
    if not _is_plain(left, right):
        return torch.matmul(left, right).permute(order)
    if torch.is_grad_enabled() and (left.requires_grad or right.requires_grad):
        return cast("Tensor", _Product.apply(left, right, order))  # type: ignore[no-untyped-call]
    return _write(left, right, order)


class _Product(torch.autograd.Function):
    """The products with gradients of every order, since the backward pass is made of such products."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, order: Order) -> Tensor:
        """Multiply, and keep what the gradients need."""
        of_left, of_right, _ = ctx.needs_input_grad
        ctx.order, ctx.orders = order, (_order_of(left), _order_of(right))
        ctx.counts = left.shape[0], right.shape[0]
        ctx.save_for_backward(left if of_right else None, right if of_left else None)
        return _write(left, right, order)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Multiply the gradient with the other side."""
        left, right = ctx.saved_tensors
        gradient = _back(gradients[0], ctx.order)
        if not is_readable(gradient):
            gradient = _gathered(gradient, ctx.order)
        of_left, of_right = ctx.orders
        run = multiply if torch.is_grad_enabled() or not _is_plain(gradient) else _write
        to_left = None if right is None else run(gradient, right.mT, of_left)
        to_right = None if left is None else run(left.mT, gradient, of_right)
        of_one, of_other = ctx.counts
        return _own(to_left, of_left, of_one), _own(to_right, of_right, of_other), None


def _is_plain(*sides: Tensor) -> bool:
    """Return whether these are tensors of torch itself that nothing traces, transforms or casts."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return False
    # The gradients that torch.autograd.grad maps over are tensors without memory, and no transform shows that.
    if any(type(side) not in (Tensor, nn.Parameter) or not torch._C._has_storage(side) for side in sides):
        return False
    is_transformed = _functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0
    kind = sides[0].device.type
    return not is_transformed and not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind))


def _write(left: Tensor, right: Tensor, order: Order) -> Tensor:
    """Multiply into a new array whose axes lie in this order."""
    if left.shape[0] != right.shape[0]:
        count = right.shape[0] if left.shape[0] == 1 else left.shape[0]
        left, right = left.expand(count, -1, -1), right.expand(count, -1, -1)
    sizes = (left.shape[0], left.shape[1], right.shape[2])
    made = left.new_empty([sizes[axis] for axis in order])
    view = _back(made, order)
    if order[2] == 1:  # the transposed products have rows and columns as the library counts them
        torch.bmm(right.mT, left.mT, out=view.mT)
    else:
        torch.bmm(left, right, out=view)
    return made


def _gathered(value: Tensor, order: Order) -> Tensor:
    """Copy matrices of a batch that lies innermost into this order of the axes.

    A large batch is first brought before the columns, row by row: each item by itself would read all memory again.
    """
    if value.shape[0] > LARGE:
        value = value.permute(1, 0, 2).contiguous().permute(1, 0, 2)
    return _back(value.permute(order).contiguous(), order)


def _own(value: Tensor | None, order: Order, count: int) -> Tensor | None:
    """Return the gradient of a side of so many matrices: of one that was repeated, the sum, made as it lies."""
    if value is None:
        return None
    axis = order.index(0)
    return _back(value if value.shape[axis] == count else value.sum(axis, keepdim=True), order)


def _back(value: Tensor, order: Order) -> Tensor:
    """Return a view with the axes (batch, row, column) of a value whose axes are in this order."""
    return value.permute(order.index(0), order.index(1), order.index(2))


def _order_of(value: Tensor) -> Order:
    """Return the order in which the axes of a batch of matrices lie in memory, the batch at least before the last."""
    batch, down, along = value.stride()
    outer, inner = (2, 1) if down < along else (1, 2)
    if value.shape[0] > 1 and batch < value.stride(outer):
        return outer, 0, inner
    return 0, outer, inner


def is_readable(value: Tensor) -> bool:
    """Return whether a library for matrices reads these without a copy: rows or columns lie one after another."""
    rows, columns = value.shape[-2:]
    down, along = value.stride()[-2:]
    return (along == 1 and down >= max(1, columns)) or (down == 1 and along >= max(1, rows))
