"""One autograd function for the products of x with a weight and with matrices of factors: one gradient of x for all."""

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tnadapt_torch._run.gradient import is_transformed

__all__: list[str] = []


class Node:
    """The part of the graph that layers which read one x share. It is spent once a backward pass has used it.

    It knows the reading without holding it: the tensors of a reading hold the graph, and that holds this.
    """

    def __init__(self) -> None:
        """Begin without a reading."""
        self.reading: weakref.ref[Any] | None = None

    def end(self) -> None:
        """Note that a backward pass uses it, and let go of what the reading holds."""
        reading = None if self.reading is None else self.reading()
        if reading is not None:
            reading.is_spent = True
            reading.x = reading.handed = torch.empty(0)
            reading.products.clear()


class _Products(torch.autograd.Function):
    """The products of x with a weight and with the rows of factors, and x itself for the next layer that reads it.

    Autograd would make a gradient of x for each of them and add these up. Here each product adds its own to the last.
    """

    @staticmethod
    def forward(  # noqa: PLR0917  (as torch hands them on)
        ctx: Any,
        node: Node | None,
        scale: float,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *rows: Tensor,
    ) -> tuple[Tensor, ...]:
        """Return x W^T + bias of shape (token, out), a product (token, row) for each of the rows, and x if it is read.

        The rows of several layers are one matrix. Their products are multiplied by the scale.
        """
        flat = x.reshape(-1, x.shape[-1])
        made: Sequence[Tensor] = ()
        ctx.matrix = None
        if rows:
            matrix = rows[0] if len(rows) == 1 else torch.cat(rows)
            matrix = matrix if matrix.dtype == x.dtype else matrix.to(x.dtype)
            ctx.matrix = None if matrix is rows[0] else matrix
            whole = _scaled(flat, matrix.t(), scale)
            made = (whole,) if len(rows) == 1 else torch.split(whole, [len(one) for one in rows], 1)
        _, _, needs_x, _, _, *needs_rows = ctx.needs_input_grad
        ctx.sizes = [(len(one), one.dtype) for one in rows]
        ctx.save_for_backward(x if any(needs_rows) else None, *((weight, *rows) if needs_x else ()))
        if not needs_x:
            ctx.matrix = None
        ctx.set_materialize_grads(False)
        ctx.node, ctx.scale, ctx.shape, ctx.dtype = node, scale, x.shape, x.dtype
        return (functional.linear(flat, weight, bias), *made, *(() if node is None else (x,)))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients of x and of the rows. That of x is written into the one of the next layer.

        The tensors that are saved are inputs alone, and the products are plain ones, so that it has a gradient itself.
        """
        if torch._C._is_any_autocast_enabled():  # the forward pass was outside of it
            kind = next(grad.device.type for grad in grads if grad is not None)
            with torch.autocast(kind, enabled=False):
                return _backward(ctx, grads)
        return _backward(ctx, grads)


def _backward(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    x, *held = ctx.saved_tensors
    output, *made = grads
    total = None
    if ctx.node is not None:
        ctx.node.end()
        total = made.pop()
    needs_x, needs_rows = ctx.needs_input_grad[2], ctx.needs_input_grad[5:]
    if total is not None:
        total = total.reshape(-1, total.shape[-1])
    if needs_x and output is not None:
        output = output.to(held[0].dtype)
        total = output.mm(held[0]) if total is None else total.addmm_(output, held[0])
    parts: list[Tensor | None] = [None] * len(ctx.sizes)
    used = [number for number, grad in enumerate(made) if grad is not None]
    if used:
        given = [grad.to(ctx.dtype) for grad in made if grad is not None]
        inner = given[0] if len(given) == 1 else torch.cat(given, 1)
        if needs_x:
            matrix = _matrix(ctx, held[1:], used, inner.dtype)
            total = _scaled(inner, matrix, ctx.scale) if total is None else total.addmm_(inner, matrix, alpha=ctx.scale)
        if any(needs_rows):
            flat = x.reshape(-1, x.shape[-1])
            whole = _scaled(inner.t(), flat, ctx.scale)  # in this order no short side is innermost: slow on a CPU
            # Pieces with versions of their own; but what maps over gradients has no rule for these.
            is_plain = type(whole) is Tensor and torch._C._has_storage(whole) and not is_transformed()
            split = torch.unsafe_split_with_sizes if is_plain else torch.split
            pieces = split(whole, [ctx.sizes[number][0] for number in used])
            for number, piece in zip(used, pieces, strict=True):
                parts[number] = piece.to(ctx.sizes[number][1]) if needs_rows[number] else None
    return (None, None, None if total is None else total.reshape(ctx.shape), None, None, *parts)


def _scaled(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """Return a product times a scale, by one call of a library."""
    if scale == 1.0:
        return left.mm(right)
    return torch.addmm(left.new_empty(()), left, right, beta=0.0, alpha=scale)


def _matrix(ctx: Any, rows: Sequence[Tensor], used: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return the rows that have a gradient as one matrix; that of the forward pass, unless it needs a gradient."""
    if ctx.matrix is not None and len(used) == len(rows) and not torch.is_grad_enabled():
        whole: Tensor = ctx.matrix
        return whole
    some = [rows[number] for number in used]
    return (some[0] if len(some) == 1 else torch.cat(some)).to(dtype)


def multiply_all(node: Node | None, scale: float, *given: Tensor | None) -> Sequence[Tensor]:
    made: Sequence[Tensor] = _Products.apply(node, scale, *given)  # type: ignore[no-untyped-call]
    return made
