"""Write the operations of a plan as a graph of torch.fx: each intermediate, and the addition of each term to y."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import permutations
from typing import cast

import torch
from torch import Tensor, fx

from tnadapt.binding import Plan
from tnadapt_torch._run.spectrum import from_spectrum, to_spectrum
from tnadapt_torch._run.strided import multiply
from tnadapt_torch._run.ways import Convolved, Given, Laid, Modes, Way, size_of

__all__: list[str] = []

Code = Callable[..., Tensor]


class Writer:
    """Writes the steps of one plan as torch code. The token axis may have any length; it is known only at run time."""

    def __init__(self, order: Plan) -> None:
        self.order = order
        self.scale = order.network.scale  # of what is added to y
        self.graph = fx.Graph()
        self.made: dict[int, fx.Node] = {}  # by the identity of a way, which several terms may share

    def input(self, name: str) -> fx.Node:
        """Add an argument to the code."""
        return self.graph.placeholder(name)

    def factors(self, other: fx.Node | None = None) -> list[fx.Node]:
        """Add an argument for each node of the network that is read, in order. `other` takes the others' places."""
        nodes = list(enumerate(self.order.network.nodes))
        read = {number: self.input(f"factor_{number}") for number, name in nodes if name not in self.order.unread}
        return cast("list[fx.Node]", [read.get(number, other) for number, _ in nodes])

    def length(self, modes: Iterable[str]) -> int:
        """Return the product of the sizes of these modes, or -1 if the token axis is among them."""
        sizes = [self.order.network.sizes.get(mode, -1) for mode in modes]
        return -1 if -1 in sizes else math.prod(sizes)

    def reshape(self, node: fx.Node, parts: Sequence[Sequence[str]]) -> fx.Node:
        """Reshape a node to one axis per part, where each part is a group of adjacent modes."""
        source = node.args[0] if _is_call(node, "reshape") else node
        return self.graph.call_method("reshape", (source, tuple(self.length(part) for part in parts)))

    def turned(self, node: fx.Node) -> fx.Node:
        """Transpose a matrix, or each matrix of a batch."""
        if _is_call(node, "transpose"):
            return cast("fx.Node", node.args[0])
        return self.graph.call_method("transpose", (node, -2, -1))

    def split(self, node: fx.Node, modes: Modes) -> fx.Node:
        """Split a node of two axes, the tokens and all other modes, into one axis per mode."""
        return node if len(modes) == 2 else self.reshape(node, [(mode,) for mode in modes])  # noqa: PLR2004

    def ordered(self, node: fx.Node, modes: Modes, wanted: Modes) -> fx.Node:
        """View a node with its axes in the wanted order."""
        if modes == wanted:
            return node
        return self.graph.call_method("permute", (node, tuple(modes.index(mode) for mode in wanted)))

    def spread(self, node: fx.Node, modes: Modes, wanted: Modes) -> fx.Node:
        """View a node for broadcasting: add an axis of length 1 for each wanted mode it lacks, except leading ones."""
        present = tuple(mode for mode in wanted if mode in modes)
        node = self.ordered(node, modes, present)
        inner = wanted[wanted.index(present[0]) :] if present else ()
        return node if inner == present else self.reshape(node, [(mode,) if mode in modes else () for mode in inner])

    def matrix(self, node: fx.Node, modes: Modes, read: Modes, parts: Sequence[Modes]) -> fx.Node:
        """View a node as a matrix or a batch of them, one axis per part, copied into the order `read` if needed."""
        if modes != read:
            node = self.graph.call_method("contiguous", (self.ordered(node, modes, read),))
        lying = next(order for order in permutations(range(len(parts))) if read == sum((parts[n] for n in order), ()))
        if any(len(part) != 1 for part in parts):
            node = self.reshape(node, [parts[n] for n in lying])
        first, *rest = lying
        if (first, rest[0]) == (len(parts) - 1, len(parts) - 2) or (rest[-2:] == [2, 1] and not first):
            return self.turned(node)
        axes = tuple(lying.index(n) for n in range(len(parts)))
        return node if lying == tuple(sorted(lying)) else self.graph.call_method("permute", (node, axes))

    def sides(self, way: Way, operands: Sequence[fx.Node]) -> tuple[fx.Node, fx.Node]:
        """Return the operands of a product as matrices, or batches of them. The batch of a repeated side is one."""
        roles = way.roles
        batches: list[tuple[Modes, ...]] = [
            () if not roles.batch else ((),) if way.repeated == side else (roles.batch,) for side in (0, 1)
        ]
        left = self.matrix(
            self.node(way.left, operands), way.left.order, way.left_order, (*batches[0], roles.left, roles.summed)
        )
        right = self.matrix(
            self.node(way.right, operands), way.right.order, way.right_order, (*batches[1], roles.summed, roles.right)
        )
        return left, right

    def product(self, way: Way, operands: Sequence[fx.Node]) -> tuple[fx.Node, fx.Node, tuple[Modes, ...]]:
        """Return the two matrices, or batches of them, whose product is this way, and the parts of its axes."""
        roles = way.roles
        batch = (roles.batch,) if roles.batch else ()
        left, right = self.sides(way, operands)
        if not way.swapped:
            return left, right, (*batch, roles.left, roles.right)
        return self.turned(right), self.turned(left), (*batch, roles.right, roles.left)

    def factors_of_product(self, way: Way, operands: Sequence[fx.Node], modes: Modes) -> list[fx.Node]:
        """Return the two operands of an elementwise product, broadcast over these modes."""
        return [self.spread(self.node(side, operands), side.order, modes) for side in (way.left, way.right)]

    def convolution(self, way: Convolved, operands: Sequence[fx.Node]) -> fx.Node:
        """Write a convolution: transform both sides, multiply matrices for each frequency, and transform back."""
        how, roles, call = way.how, way.roles, self.graph.call_function
        batch, free = how.frequencies * self.length(roles.batch), (self.length(roles.left), self.length(roles.right))
        left, right = self.node(way.left, operands), self.node(way.right, operands)
        sides = [
            self.ordered(left, way.left.order, (how.left, *roles.batch, *roles.left, *roles.summed)),
            self.ordered(right, way.right.order, (how.right, *roles.batch, *roles.summed, *roles.right)),
        ]
        small = "right" if size_of(self.order, way.left.order) > size_of(self.order, way.right.order) else "left"
        spectra = [
            call(to_spectrum, (side, how.amount if name == small else 1.0), {"conjugated": how.conjugated == name})
            for side, name in zip(sides, ("left", "right"), strict=True)
        ]
        summed = self.length(roles.summed)
        shapes = (batch, free[0], summed), (batch, summed, free[1])
        pair = tuple(
            self.graph.call_method("reshape", (one, shape)) for one, shape in zip(spectra, shapes, strict=True)
        )
        product = call(torch.bmm if roles.summed else torch.mul, pair)
        sizes = [self.length((mode,)) for mode in way.order[1:]]
        whole = self.graph.call_method("reshape", (product, (how.frequencies, *sizes)))
        return call(from_spectrum, (whole, how.size, left))

    def node(self, way: Laid, operands: Sequence[fx.Node]) -> fx.Node:
        """Write the intermediate of a way from the operands of the plan."""
        if isinstance(way, Given):
            return operands[way.number]
        if id(way) not in self.made:
            self.made[id(way)] = self._write(way, operands)
        return self.made[id(way)]

    def _write(self, way: Way | Convolved, operands: Sequence[fx.Node]) -> fx.Node:
        if isinstance(way, Convolved):
            return self.convolution(way, operands)
        if not way.roles.summed:
            return self.graph.call_function(torch.mul, tuple(self.factors_of_product(way, operands, way.order)))
        if way.strided:
            roles = way.roles
            node = self.graph.call_function(multiply, (*self.sides(way, operands), way.form))
            parts = tuple((roles.batch, roles.left, roles.right)[axis] for axis in way.form)
        else:
            left, right, parts = self.product(way, operands)
            node = self.graph.call_function(torch.bmm if way.roles.batch else torch.mm, (left, right))
        return node if all(len(part) == 1 for part in parts) else self.reshape(node, [(mode,) for mode in way.order])

    def update(self, ways: Sequence[Laid], operands: Sequence[fx.Node]) -> fx.Node:
        """Write a term, or the difference of two, which comes before the addition to y: that rounds what is added."""
        first, *less = (self.ordered(self.node(way, operands), way.order, self.order.answer) for way in ways)
        for other in less:
            first = self.graph.call_function(torch.sub, (first, other))
        return first

    def plus(self, y: fx.Node, update: fx.Node, scale: float) -> fx.Node:
        """Write y plus the update times the scale."""
        return self.graph.call_function(torch.add, (y, update), {"alpha": scale} if scale != 1.0 else {})

    def add(self, y: fx.Node, ways: Sequence[Laid], operands: Sequence[fx.Node], scale: float) -> fx.Node:
        """Write the last step, fused with the addition to the host's output y (token, out), in the shape of y."""
        answer, call, way = self.order.answer, self.graph.call_function, ways[0]
        lying = (answer[:1], answer[1:])
        # A convolution, and a term that is the product of x and the host's weight, are no Way.
        if len(ways) > 1 or not isinstance(way, Way) or (way.roles.summed and (way.order != answer or way.roles.batch)):
            total = self.plus(self.split(y, answer), self.update(ways, operands), scale)
        elif way.roles.summed:
            left, right, parts = self.product(way, operands)
            whole = y if parts == lying else self.reshape(y, parts)
            total = call(torch.addmm, (whole, left, right), {"alpha": scale})
            return total if parts == lying else self.reshape(total, lying)
        else:
            big, small = self.factors_of_product(way, operands, answer)
            if size_of(self.order, way.left.order) < size_of(self.order, way.right.order):
                big, small = small, big
            small = small if scale == 1.0 else call(torch.mul, (small, scale))
            # In place: no backward pass needs the product. addcmul multiplies by its value once more in each pass.
            total = self.graph.call_method("add_", (call(torch.mul, (big, small)), self.split(y, answer)))
        return total if len(answer) == len(lying) else self.reshape(total, lying)

    def add_plainly(
        self, y: fx.Node, ways: Sequence[Laid], operands: Sequence[fx.Node], scale: float, small: Iterable[int]
    ) -> fx.Node:
        """Write a plain addition to y, for a compiler to fuse, with the scale in the operands `small` if there are any.

        A product that accumulates into y would be a call of a library, with which nothing is fused, and a scale on the
        update would be one more pass over the gradient of y.
        """
        answer, call = self.order.answer, self.graph.call_function
        if scale != 1.0 and small:
            times = {number: call(torch.mul, (operands[number], scale)) for number in set(small)}
            operands, scale = [times.get(number, operand) for number, operand in enumerate(operands)], 1.0
        sides = self.split(y, answer), self.update(ways, operands)
        if len(answer) > 2:  # noqa: PLR2004
            return self.reshape(self.plus(*sides, scale), (answer[:1], answer[1:]))
        # Inductor turns a product that is added as it is into one that accumulates, but not where a view is in between.
        y, update = (self.graph.call_method("unsqueeze", (side, 0)) for side in sides)
        return self.graph.call_method("squeeze", (self.plus(y, update, scale), 0))

    def add_terms(
        self,
        y: fx.Node,
        terms: Sequence[tuple[int, Laid]],
        operands: Sequence[fx.Node],
        *,
        compiled: bool = False,
    ) -> fx.Node:
        """Write the addition of all terms to y, each a sign and a way."""
        groups = _grouped(self.order, terms)
        for (sign, ways), small in zip(groups, _smallest(self.order, groups), strict=True):
            scale = sign * self.scale
            y = self.add_plainly(y, ways, operands, scale, small) if compiled else self.add(y, ways, operands, scale)
        return y

    def function(self, result: fx.Node) -> Code:
        """Return the written code as a function."""
        self.graph.output(result)
        self.graph.eliminate_dead_code()
        return cast("Code", fx.GraphModule(torch.nn.Module(), self.graph).forward)


def _is_call(node: fx.Node, method: str) -> bool:
    return node.op == "call_method" and node.target == method


def _grouped(order: Plan, terms: Sequence[tuple[int, Laid]]) -> list[tuple[int, list[Laid]]]:
    """Return the sign of each term and its way, with that of the next term if that one cancels it at the start."""
    ways, groups = list(terms), []
    while ways:
        sign, way = ways.pop(0)
        cancels = bool(ways) and order.cancels(len(order.results) - len(ways) - 1)
        groups.append((sign, [way, ways.pop(0)[1]] if cancels else [way]))
    return groups


def _smallest(order: Plan, groups: Iterable[tuple[int, list[Laid]]]) -> list[tuple[int, ...]]:
    """Return, for each group, the number of its smallest factor that no other group reads; () if there is none.

    A group of two has two such factors, in the same place: both are scaled alike, so that the terms still cancel.
    """
    first = len(order.operands) - len(order.network.nodes)
    places = [list(zip(*map(_leaves, ways), strict=True)) for _, ways in groups]
    uses = Counter(number for group in places for place in group for number in set(place))
    return [
        min(
            (place for place in group if all(number >= first and uses[number] == 1 for number in place)),
            key=lambda place: size_of(order, order.inputs[place[0]]),
            default=(),
        )
        for group in places
    ]


def _leaves(way: Laid) -> list[int]:
    """Return the numbers of the operands that a way reads."""
    return [way.number] if isinstance(way, Given) else [*_leaves(way.left), *_leaves(way.right)]
