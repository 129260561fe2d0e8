"""A plan as straight-line torch code: mm, bmm, mul, and a last step that adds into the host's output."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor, fx

from tnadapt import plan
from tnadapt.binding import Network, Plan
from tnadapt_torch._run.layout import Given, Modes, Way, lay_out, size_of

__all__: list[str] = []

Code = Callable[..., Tensor]


class _Writer:
    """Writes the steps of one plan. The token axis is of any length; it is known when the code runs."""

    def __init__(self, order: Plan) -> None:
        self.order = order
        self.graph = fx.Graph()

    def input(self, name: str) -> fx.Node:
        """An argument of the code."""
        return self.graph.placeholder(name)

    def factors(self, prefix: str) -> list[fx.Node]:
        """An argument for each factor of the network, in its order."""
        return [self.input(f"{prefix}_{number}") for number in range(len(self.order.network.factors))]

    def length(self, modes: Iterable[str]) -> int:
        """Product of the sizes of these modes, -1 where the token axis is among them."""
        sizes = [self.order.network.sizes.get(mode, -1) for mode in modes]
        return -1 if -1 in sizes else math.prod(sizes)

    def reshape(self, node: fx.Node, parts: Sequence[Sequence[str]]) -> fx.Node:
        """The node with one axis for each part, a part being modes that lie side by side."""
        source = node.args[0] if _is_call(node, "reshape") else node
        return self.graph.call_method("reshape", (source, tuple(self.length(part) for part in parts)))

    def turned(self, node: fx.Node) -> fx.Node:
        """The matrix (or each of a batch) transposed."""
        if _is_call(node, "transpose"):
            return cast("fx.Node", node.args[0])
        return self.graph.call_method("transpose", (node, -2, -1))

    def split(self, node: fx.Node, modes: Modes) -> fx.Node:
        """A node of one axis for the tokens and one for all other modes, with one axis for each mode."""
        return node if len(modes) == 2 else self.reshape(node, [(mode,) for mode in modes])  # noqa: PLR2004

    def ordered(self, node: fx.Node, modes: Modes, wanted: Modes) -> fx.Node:
        """A view of the node with its axes in the wanted order."""
        if modes == wanted:
            return node
        return self.graph.call_method("permute", (node, tuple(modes.index(mode) for mode in wanted)))

    def spread(self, node: fx.Node, modes: Modes, wanted: Modes) -> fx.Node:
        """A view that broadcasts: an axis of length 1 wherever the node lacks a wanted mode, but for leading ones."""
        present = tuple(mode for mode in wanted if mode in modes)
        node = self.ordered(node, modes, present)
        inner = wanted[wanted.index(present[0]) :] if present else ()
        return node if inner == present else self.reshape(node, [(mode,) if mode in modes else () for mode in inner])

    def matrix(self, node: fx.Node, modes: Modes, read: Modes, parts: Sequence[Modes]) -> fx.Node:
        """The node as a (batch of) matrices, one axis a part; `read` is how it lies, after a copy if needed."""
        if modes != read:
            node = self.graph.call_method("contiguous", (self.ordered(node, modes, read),))
        *batch, first, second = parts
        is_turned = read == sum((*batch, second, first), ())
        lying = (*batch, second, first) if is_turned else tuple(parts)
        if any(len(part) != 1 for part in parts):
            node = self.reshape(node, lying)
        return self.turned(node) if is_turned else node

    def product(self, way: Way, operands: Sequence[fx.Node]) -> tuple[fx.Node, fx.Node, tuple[Modes, ...]]:
        """The two matrices (or batches of them) whose product a way is, and the parts of the product's axes."""
        roles = way.roles
        batch = (roles.batch,) if roles.batch else ()
        left = self.matrix(
            self.node(way.left, operands), way.left.order, way.left_order, (*batch, roles.left, roles.summed)
        )
        right = self.matrix(
            self.node(way.right, operands), way.right.order, way.right_order, (*batch, roles.summed, roles.right)
        )
        if not way.swapped:
            return left, right, (*batch, roles.left, roles.right)
        return self.turned(right), self.turned(left), (*batch, roles.right, roles.left)

    def factors_of_product(self, way: Way, operands: Sequence[fx.Node], modes: Modes) -> list[fx.Node]:
        """The two operands of an entrywise product, spread over these modes."""
        return [self.spread(self.node(side, operands), side.order, modes) for side in (way.left, way.right)]

    def node(self, way: Given | Way, operands: Sequence[fx.Node]) -> fx.Node:
        """The intermediate that a way makes from operands of the plan."""
        if isinstance(way, Given):
            return operands[way.number]
        if not way.roles.summed:
            return self.graph.call_function(torch.mul, tuple(self.factors_of_product(way, operands, way.order)))
        left, right, parts = self.product(way, operands)
        node = self.graph.call_function(torch.bmm if way.roles.batch else torch.mm, (left, right))
        return node if all(len(part) == 1 for part in parts) else self.reshape(node, [(mode,) for mode in way.order])

    def add(self, y: fx.Node, way: Way, operands: Sequence[fx.Node], scale: float) -> fx.Node:
        """The last step of apply, fused with the addition to the host's output y (token, out); of y's shape."""
        answer = self.order.answer
        lying = (answer[:1], answer[1:])
        if way.roles.summed and way.order == answer and not way.roles.batch:
            left, right, parts = self.product(way, operands)
            whole = y if parts == lying else self.reshape(y, parts)
            total = self.graph.call_function(torch.addmm, (whole, left, right), {"alpha": scale})
            return total if parts == lying else self.reshape(total, lying)
        if way.roles.summed:
            update = self.ordered(self.node(way, operands), way.order, answer)
            total = self.graph.call_function(torch.add, (self.split(y, answer), update), {"alpha": scale})
        else:
            big, small = self.factors_of_product(way, operands, answer)
            if size_of(self.order, way.left.order) < size_of(self.order, way.right.order):
                big, small = small, big
            small = small if scale == 1.0 else self.graph.call_function(torch.mul, (small, scale))
            # Into the fresh product, which no backward pass needs: addcmul multiplies by its value once more in each.
            product = self.graph.call_function(torch.mul, (big, small))
            total = self.graph.call_method("add_", (product, self.split(y, answer)))
        return total if len(answer) == len(lying) else self.reshape(total, lying)

    def function(self, result: fx.Node) -> Code:
        """The code that was written."""
        self.graph.output(result)
        self.graph.eliminate_dead_code()
        return cast("Code", fx.GraphModule(torch.nn.Module(), self.graph).forward)


def _is_call(node: fx.Node, method: str) -> bool:
    return node.op == "call_method" and node.target == method


@lru_cache(maxsize=4096)
def lower_apply(network: Network, tokens: int, *, training: bool = True, x_needs_grad: bool = True) -> Code:
    """Code (y, x, *factors) -> y plus the scaled update of x, a new tensor.

    It is made for about this many tokens and these needs of gradients, and right for any. y (token, out) and
    x (token, in) are of one dtype; factors are those of one site, in the network's order, and for a centered network,
    after them, those of the starting values.
    """
    order = plan(network, "apply", tokens=tokens, training=training, x_needs_grad=x_needs_grad)
    way = cast("Way", lay_out(order))  # x and at least one factor: there is a step
    writer = _Writer(order)
    y, x = writer.input("y"), writer.input("x")
    factors = writer.factors("factor")
    split = writer.split(x, order.inputs[0])
    result = writer.add(y, way, [split, *factors], network.scale)
    if network.centered:
        result = writer.add(result, way, [split, *writer.factors("start")], -network.scale)
    return writer.function(result)


@lru_cache(maxsize=4096)
def lower_delta(network: Network) -> Code:
    """Code (*factors) -> the scaled dense update of one site, of the weight's shape (out axis first)."""
    order = plan(network, "delta")
    way = lay_out(order)
    writer = _Writer(order)
    dense = writer.ordered(writer.node(way, writer.factors("factor")), way.order, order.answer)
    if network.centered:
        start = writer.ordered(writer.node(way, writer.factors("start")), way.order, order.answer)
        dense = writer.graph.call_function(torch.sub, (dense, start))
    scaled = writer.graph.call_function(torch.mul, (writer.reshape(dense, network.axes), network.scale))
    return writer.function(scaled)
