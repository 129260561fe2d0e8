"""Cheap contraction trees to start from: greedy ones, and the best one over operands in a given line."""

import heapq
from collections.abc import Callable, Iterator, Sequence
from itertools import count as count_up

import numpy as np
from opt_einsum.paths import greedy, linear_to_ssa

from tnadapt._planning.programme import best_left_sides, splits_of
from tnadapt._planning.tensors import Numbers, Problem, Tensors, Volumes, bits_of, words_of
from tnadapt._planning.trees import Nodes, Tree, tree_of

__all__: list[str] = []

Score = Callable[[Nodes, int, int], float]


def line_work(nodes: Nodes) -> int:
    """Return the work of `best_in_line`: the splits of all runs of operands, times the look-ups of each."""
    return (nodes.count**3 // 6 + nodes.count) * nodes.problem.chunks


def best_in_line(nodes: Nodes, line: Sequence[int]) -> Tree:
    """Return the cheapest tree whose every node is a run of the line of operands.

    It is the cheapest of all for a chain in its own line, and never dearer than a tree whose leaves are the line.
    """
    count = len(line)
    runs = [0] * count**2  # the run from operand `first` to `last` has the number count * first + last
    for first in range(count):
        run = 0
        for last in range(first, count):
            run |= line[last]
            runs[count * first + last] = run
    kept = words_of([nodes.kept(run) for run in runs], len(nodes.problem.sizes))
    grad, active = (np.array([of(run) for run in runs]) for of in (nodes.grad, nodes.active))
    tensors = Tensors(Volumes(nodes.problem.sizes), kept, grad, active)
    left_side = best_left_sides(tensors, [splits_of(_runs(count))], nodes.objective)
    tree: Tree = {}
    waiting = [(0, count - 1)]
    while waiting:
        first, last = waiting.pop()
        if first < last:
            middle = int(left_side[count * first + last]) % count
            sides = (count * first + middle, count * (middle + 1) + last)
            tree[runs[count * first + last]] = (runs[sides[0]], runs[sides[1]])
            waiting += [(first, middle), (middle + 1, last)]
    return tree


def _runs(count: int) -> Iterator[tuple[Numbers, Numbers, Numbers]]:
    """Yield the runs of 2, 3, ... operands, each with the left and right sides of its splits."""
    for length in range(2, count + 1):
        first = np.arange(count - length + 1)[:, None]
        last, middle = first + length - 1, first + np.arange(length - 1)
        yield (count * first + last)[:, 0], count * first + middle, count * (middle + 1) + last


def outside_work(problem: Problem) -> int:
    """Return the work of opt_einsum's greedy order: pairs of operands that share a mode, times the modes of each."""
    carried = sum(mask.bit_count() for mask in problem.operands)
    holders = [0] * len(problem.sizes)
    for mask in problem.operands:
        for bit in bits_of(mask):
            holders[bit] += 1
    return sum(count**2 for count in holders) * carried // len(problem.operands)


def opt_einsum_greedy(problem: Problem) -> Tree:
    """Return opt_einsum's greedy order. It gets numbers for modes, since sets of strings have no fixed order."""
    operands = [frozenset(bits_of(mask)) for mask in problem.operands]
    path = greedy(operands, frozenset(bits_of(problem.answer)), dict(enumerate(problem.sizes)))
    return tree_of(linear_to_ssa(path), [1 << place for place in range(len(operands))])


def greedy_work(nodes: Nodes) -> int:
    """Return the work of `greedy_tree`: the pairs whose score is computed, times the look-ups of each."""
    return 3 * nodes.count**2 * nodes.problem.chunks


def greedy_tree(nodes: Nodes, score: Score) -> Tree:
    """Return the tree that always makes the pair of least score, of all pairs that are left."""
    alive: dict[int, None] = {}
    queue: list[tuple[float, int, int, int]] = []
    counter = count_up()  # breaks ties by age
    tree: Tree = {}
    pending = [1 << place for place in range(nodes.count)]
    while True:
        for node in pending:
            for other in alive:
                heapq.heappush(queue, (score(nodes, other, node), next(counter), other, node))
            alive[node] = None
        if len(alive) == 1:
            return tree
        left = right = 0
        while left not in alive or right not in alive:
            _, _, left, right = heapq.heappop(queue)
        del alive[left], alive[right]
        tree[left | right] = (left, right)
        pending = [left | right]


def step(nodes: Nodes, left: int, right: int) -> float:
    """Score a step by its objective."""
    return nodes.cost(left, right)


def growth(nodes: Nodes, left: int, right: int) -> float:
    """Score a step by what it adds to the tensors alive, as opt_einsum does."""
    return nodes.size(left | right) - nodes.size(left) - nodes.size(right)


def rate(nodes: Nodes, left: int, right: int) -> float:
    """Score a step by its objective for each number that it reads."""
    return nodes.cost(left, right) / (nodes.size(left) + nodes.size(right))


SCORES: tuple[Score, ...] = (step, growth, rate)
