"""A plan as straight-line torch code: mm, bmm, mul, and a last step that adds into the host's output."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor, fx

from tnadapt import Network, Plan, plan

__all__: list[str] = []

Code = Callable[..., Tensor]


@dataclass(frozen=True)
class Value:
    """A tensor in the code that is written: its node, and the mode of each of its axes."""

    node: fx.Node
    modes: tuple[str, ...]


class _Writer:
    """Writes the steps of one plan. The token axis is the first of x; its length is known only when the code runs."""

    def __init__(self, order: Plan) -> None:
        self.order = order
        self.graph = fx.Graph()

    def length(self, modes: Iterable[str]) -> int:
        """Product of the sizes of these modes, -1 where the token axis is among them."""
        sizes = [self.order.network.sizes.get(mode, -1) for mode in modes]
        return -1 if -1 in sizes else math.prod(sizes)

    def reshape(self, node: fx.Node, parts: Sequence[Sequence[str]]) -> fx.Node:
        """The node with one axis for each part, a part being modes that lie side by side."""
        return self.graph.call_method("reshape", (node, tuple(self.length(part) for part in parts)))

    def ordered(self, value: Value, modes: Sequence[str]) -> Value:
        """The value with its axes in this order."""
        if tuple(modes) == value.modes:
            return value
        places = tuple(value.modes.index(mode) for mode in modes)
        return Value(self.graph.call_method("permute", (value.node, places)), tuple(modes))

    def matrix(self, value: Value, *parts: Sequence[str]) -> fx.Node:
        """The value as a matrix (or a stack of them): one axis a part, joined in the order given."""
        modes = [mode for part in parts for mode in part]
        node = self.ordered(value, modes).node
        return node if all(len(part) == 1 for part in parts) else self.reshape(node, parts)

    def spread(self, value: Value, modes: Sequence[str]) -> fx.Node:
        """The value with an axis of length 1 wherever it lacks one of these modes."""
        node = self.ordered(value, [mode for mode in modes if mode in value.modes]).node
        for place, mode in enumerate(modes):
            if mode not in value.modes:
                node = self.graph.call_method("unsqueeze", (node, place))
        return node

    def step(self, left: Value, right: Value, kept: Iterable[str]) -> Value:
        """One pairwise contraction; the order of the result's axes is the cheapest to make."""
        batch, free_left, free_right, summed = _roles(left, right, set(kept))
        if not summed:
            modes = (*left.modes, *free_right)
            return Value(
                self.graph.call_function(torch.mul, (self.spread(left, modes), self.spread(right, modes))), modes
            )
        if batch:
            pair = self.matrix(left, batch, free_left, summed), self.matrix(right, batch, summed, free_right)
            node = self.graph.call_function(torch.bmm, pair)
        else:
            pair = self.matrix(left, free_left, summed), self.matrix(right, summed, free_right)
            node = self.graph.call_function(torch.mm, pair)
        modes = (*batch, *free_left, *free_right)
        if not len(free_left) == len(free_right) == 1 or len(batch) > 1:
            node = self.reshape(node, [(mode,) for mode in modes])
        return Value(node, modes)

    def add_step(self, y: fx.Node, left: Value, right: Value, scale: float) -> fx.Node:
        """The last step of apply, fused with the addition to the host's output y (..., out)."""
        answer = self.order.answer
        batch, free_left, free_right, summed = _roles(left, right, set(answer))
        if not summed:
            pair = self.spread(left, answer), self.spread(right, answer)
            wide = self.reshape(y, [(mode,) for mode in answer])
            return self.graph.call_function(torch.addcmul, (wide, *pair), {"value": scale})
        free_left, free_right = (tuple(sorted(part, key=answer.index)) for part in (free_left, free_right))
        if not batch and (*free_left, *free_right) == answer:
            pair = self.matrix(left, free_left, summed), self.matrix(right, summed, free_right)
            flat = self.reshape(y, [free_left, free_right])
            return self.graph.call_function(torch.addmm, (flat, *pair), {"alpha": scale})
        update = self.ordered(self.step(left, right, answer), answer).node
        update = self.graph.call_method("reshape_as", (update, y))
        return self.graph.call_function(torch.add, (y, update), {"alpha": scale})

    def function(self, result: fx.Node) -> Code:
        """The code that was written."""
        self.graph.output(result)
        return cast("Code", fx.GraphModule(torch.nn.Module(), self.graph).forward)


def _roles(left: Value, right: Value, kept: set[str]) -> tuple[tuple[str, ...], ...]:
    """Modes by what a step does with them: both and kept, left only, right only, both and summed."""
    both = [mode for mode in left.modes if mode in right.modes]
    batch = tuple(mode for mode in both if mode in kept)
    summed = tuple(mode for mode in both if mode not in kept)
    free_left = tuple(mode for mode in left.modes if mode not in both)
    free_right = tuple(mode for mode in right.modes if mode not in both)
    return batch, free_left, free_right, summed


@lru_cache(maxsize=4096)
def lower_apply(network: Network, sign: float = 1.0) -> Code:
    """Code (y, x, *factors) -> y plus the scaled update of x, a new tensor.

    y (..., out) and x (..., in) are of one dtype; factors are those of one site, in the network's order.
    """
    order = plan(network, "apply")
    writer = _Writer(order)
    y, x = writer.graph.placeholder("y"), writer.graph.placeholder("x")
    values = [Value(writer.reshape(x, [(mode,) for mode in order.inputs[0]]), order.inputs[0])]
    values += _factor_values(writer, order)
    for step in order.steps[:-1]:
        values.append(writer.step(values[step.left], values[step.right], step.modes))
    last = order.steps[-1]
    result = writer.add_step(y, values[last.left], values[last.right], sign * network.scale)
    return writer.function(writer.graph.call_method("reshape_as", (result, y)))


@lru_cache(maxsize=4096)
def lower_delta(network: Network) -> Code:
    """Code (*factors) -> the scaled dense update of one site, of the weight's shape (out axis first)."""
    order = plan(network, "delta")
    writer = _Writer(order)
    values = _factor_values(writer, order)
    for step in order.steps:
        values.append(writer.step(values[step.left], values[step.right], step.modes))
    dense = writer.reshape(writer.ordered(values[-1], order.answer).node, network.axes)
    return writer.function(writer.graph.call_function(torch.mul, (dense, network.scale)))


def _factor_values(writer: _Writer, order: Plan) -> list[Value]:
    first = len(order.operands) - len(order.network.factors)
    return [
        Value(writer.graph.placeholder(f"factor_{number}"), modes) for number, modes in enumerate(order.inputs[first:])
    ]
