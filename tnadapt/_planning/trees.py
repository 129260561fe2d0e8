"""Contraction trees over operands, and what each of their steps costs.

A node is the set of operands below it, as a bit mask; a tree says in which two nodes each node is split.
"""

import math
from collections.abc import Sequence
from operator import getitem

from tnadapt._planning.cost import Objective, Pair
from tnadapt._planning.tensors import LARGEST, Problem

__all__: list[str] = []

BYTE = 8  # bits
Tree = dict[int, tuple[int, int]]


class Nodes:
    """The nodes that a problem's trees can have: modes, sizes and the costs of steps, each computed once."""

    def __init__(self, problem: Problem, objective: Objective) -> None:
        """Start with the operands."""
        self.problem = problem
        self.objective = objective
        self.count = len(problem.operands)
        self.root = (1 << self.count) - 1
        self._kept = {1 << place: mask for place, mask in enumerate(problem.operands)}
        self._tables = [_volumes(problem.sizes[at : at + BYTE]) for at in range(0, len(problem.sizes), BYTE)]
        self._volumes: dict[int, float] = {}
        self._costs: dict[tuple[int, int], float] = {}
        self._grad, self._active = (
            sum(1 << place for place, flag in enumerate(flags) if flag)
            for flags in (problem.needs_grad, problem.activations)
        )

    def kept(self, node: int) -> int:
        """Return the modes of a node: of an operand all of them, of a result those that something else needs."""
        if node not in self._kept:
            inside, outside = 0, self.problem.answer
            for place, mask in enumerate(self.problem.operands):
                if node >> place & 1:
                    inside |= mask
                else:
                    outside |= mask
            self._kept[node] = inside & outside
        return self._kept[node]

    def grad(self, node: int) -> bool:
        """Return whether a node needs a gradient."""
        return bool(node & self._grad)

    def active(self, node: int) -> bool:
        """Return whether a node is an activation."""
        return bool(node & self._active)

    def volume(self, modes: int) -> float:
        """Return the product of the sizes of the modes, cut at LARGEST."""
        if modes not in self._volumes:
            parts = modes.to_bytes(len(self._tables), "little")
            self._volumes[modes] = min(math.prod(map(getitem, self._tables, parts)), float(LARGEST))
        return self._volumes[modes]

    def size(self, node: int) -> float:
        """Return the number of elements of a node, cut at LARGEST."""
        return self.volume(self.kept(node))

    def cost(self, left: int, right: int) -> float:
        """Return the objective of one step."""
        if (left, right) not in self._costs:
            goal, both = self.objective, self.kept(left) | self.kept(right)
            size_left, size_right, size = (self.size(node) for node in (left, right, left | right))
            products = self.grad(left) + self.grad(right)
            saved = size_left * (self.grad(right) and self.active(left))
            saved += size_right * (self.grad(left) and self.active(right))
            forward = self.volume(both) * (1 if both == self.kept(left | right) else 2)
            moved = (size_left + size_right + size) * (1 + products)
            cost = forward * (1.0 + goal.backward * products) + goal.saved * saved + goal.moved * moved + goal.step
            self._costs[left, right] = cost if self.active(left | right) else cost * goal.apart
        return self._costs[left, right]

    def total(self, tree: Tree) -> float:
        """Return the objective of a tree."""
        return sum(self.cost(left, right) for left, right in tree.values())


def _volumes(sizes: Sequence[int]) -> list[float]:
    """Return the volume of every subset of a few modes."""
    table = [1.0]
    for size in sizes:
        table += [min(volume * min(size, LARGEST), float(LARGEST)) for volume in table]
    return table


def tree_of(pairs: Sequence[Pair], leaves: Sequence[int]) -> Tree:
    """Return the tree of an order over these nodes."""
    nodes, tree = list(leaves), {}
    for left, right in pairs:
        whole = nodes[left] | nodes[right]
        tree[whole] = (nodes[left], nodes[right])
        nodes.append(whole)
    return tree


def pairs_of(tree: Tree, root: int) -> list[Pair]:
    """Return the order of a tree, left sides first."""
    numbers = {1 << place: place for place in range(root.bit_count())}
    pairs: list[Pair] = []
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if node in numbers:
            continue
        left, right = tree[node]
        missing = [side for side in (right, left) if side not in numbers]
        if missing:
            waiting += [node, *missing]
        else:
            numbers[node] = root.bit_count() + len(pairs)
            pairs.append((numbers[left], numbers[right]))
    return pairs


def leaves_of(tree: Tree, root: int) -> list[int]:
    """Return the operands of a tree from left to right."""
    waiting, leaves = [root], []
    while waiting:
        node = waiting.pop()
        if node in tree:
            waiting += reversed(tree[node])
        else:
            leaves.append(node)
    return leaves
