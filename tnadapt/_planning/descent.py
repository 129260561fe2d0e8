"""A cheap contraction order for more operands than the exact search can take: good, but not proven.

Cheap starts are improved by exact searches: of all orders that respect a line of operands, and of the few nodes at the
top of each subtree. The work is counted, never timed, so that every machine makes the same plan.
"""

import math
from collections.abc import Sequence

from tnadapt._planning.cost import Objective, Pair
from tnadapt._planning.exact import count_splits, exact_pairs
from tnadapt._planning.starts import (
    SCORES,
    best_in_line,
    greedy_tree,
    greedy_work,
    line_work,
    opt_einsum_greedy,
    outside_work,
)
from tnadapt._planning.tensors import Problem, join, parts_of
from tnadapt._planning.trees import Nodes, Tree, leaves_of, pairs_of, tree_of

__all__: list[str] = []

BUDGET = 4_000_000  # units of work: splits looked at, times the look-ups of each; 0.3 s on one core of 2020
CALL = 4_000  # units that one search of a subtree takes beside its splits
FIRST = 8  # nodes of a subtree that is searched exactly, for every start
LAST = 9  # the same, for the best of them
RESERVE = 0.4  # part of the budget that is left for the last searches
OUTSIDE = 1_000_000  # set operations that opt_einsum's greedy search may take where our own can replace it
LEAST_GAIN = 1e-9  # relative: smaller ones may be rounding


class Work:
    """The units of work that a search may still take."""

    def __init__(self, budget: int = BUDGET) -> None:
        """Start with the whole budget."""
        self.budget = self.left = budget

    def take(self, units: int, *, keep: float = 0.0) -> bool:
        """Take units off and return True, unless less than this part of the budget would be left."""
        if self.left - units < keep * self.budget:
            return False
        self.left -= units
        return True


def descend(problem: Problem, objective: Objective, work: Work) -> list[Pair]:
    """Return the best order found when no search improves it further, or when the work is spent.

    It is never dearer than opt_einsum's greedy order, unless that would take too long to find.
    """
    nodes = Nodes(problem, objective)
    improved = [_Improvement(nodes, start, FIRST, work, RESERVE).run() for start in _starts(nodes, work)]
    best = min(improved, key=nodes.total)
    return pairs_of(_Improvement(nodes, best, LAST, work, 0.0).run(), nodes.root)


def _starts(nodes: Nodes, work: Work) -> list[Tree]:
    """Return the starts that the work allows, cheapest first."""
    starts = []
    for score in SCORES:
        if work.take(greedy_work(nodes), keep=RESERVE):
            starts.append(greedy_tree(nodes, score))
    if not starts or outside_work(nodes.problem) <= OUTSIDE:
        starts.append(opt_einsum_greedy(nodes.problem))
    if work.take(line_work(nodes), keep=RESERVE):
        starts.append(best_in_line(nodes, [1 << place for place in range(nodes.count)]))
    return sorted(starts, key=nodes.total)


class _Improvement:
    """A tree that is made cheaper in place, by exact searches of its line and of the tops of its subtrees."""

    def __init__(self, nodes: Nodes, tree: Tree, most: int, work: Work, keep: float) -> None:
        self.nodes, self.tree, self.most, self.work, self.keep = nodes, dict(tree), most, work, keep
        self.seen: set[frozenset[int]] = set()  # the searches that are done: their result depends on the leaves alone

    def run(self) -> Tree:
        """Search lines and subtrees in turn, until nothing gets cheaper or the work is spent."""
        total = math.inf
        while self.nodes.total(self.tree) < total * (1 - LEAST_GAIN):
            total = self.nodes.total(self.tree)
            if self.work.take(line_work(self.nodes), keep=self.keep):
                line = best_in_line(self.nodes, leaves_of(self.tree, self.nodes.root))
                self.tree = min(self.tree, line, key=self.nodes.total)
            for dearest_first in (False, True):
                while self._sweep(dearest_first):
                    pass
        return self.tree

    def _sweep(self, dearest_first: bool) -> bool:
        """Search the top of each subtree once, from the root down, and return whether the tree got cheaper."""
        gained = False
        for root in sorted(self.tree, key=lambda node: (-node.bit_count(), node)):
            if root not in self.tree:
                continue
            top, leaves = self._top(root, dearest_first)
            if len(top) == 1 or frozenset(leaves) in self.seen:
                continue
            problem = _subproblem(self.nodes, root, leaves)
            if not self.work.take(count_splits(len(leaves)) * problem.chunks + CALL, keep=self.keep):
                return False
            self.seen.add(frozenset(leaves))
            gained |= self._replace(top, tree_of(exact_pairs(problem, self.nodes.objective), leaves))
        return gained

    def _top(self, root: int, dearest_first: bool) -> tuple[list[int], list[int]]:
        """Return inner nodes at the top of a subtree, and the at most `most` nodes that they are made of."""
        top: list[int] = []
        leaves = [root]
        while len(leaves) < self.most:
            inner = [node for node in leaves if node in self.tree]
            if not inner:
                break
            node = max(inner, key=lambda node: self.nodes.cost(*self.tree[node])) if dearest_first else inner[0]
            leaves.remove(node)
            leaves += self.tree[node]
            top.append(node)
        return top, leaves

    def _replace(self, top: Sequence[int], found: Tree) -> bool:
        """Put what was found in the place of the top, if it is cheaper; return whether it was."""
        if self.nodes.total(found) >= sum(self.nodes.cost(*self.tree[node]) for node in top) * (1 - LEAST_GAIN):
            return False
        for node in top:
            del self.tree[node]
        self.tree.update(found)
        return True


def _subproblem(nodes: Nodes, root: int, leaves: Sequence[int]) -> Problem:
    """Return the problem of making a node from the leaves of its top; modes that all treat alike are one."""
    masks = [nodes.kept(leaf) for leaf in leaves]
    answer = nodes.kept(root)
    parts = parts_of((*masks, answer))
    return Problem(
        join(masks, parts),
        join((answer,), parts)[0],
        tuple(int(nodes.volume(part)) for part in parts),
        tuple(map(nodes.grad, leaves)),
        tuple(map(nodes.active, leaves)),
    )
