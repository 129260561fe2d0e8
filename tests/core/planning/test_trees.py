"""Trees: there and back, and the costs of their steps as `measure` has them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.planning.networks import all_trees, cost, numbered, questions
from tnadapt._planning.exact import _subsets as subsets_of
from tnadapt._planning.exact import exact_pairs
from tnadapt._planning.tensors import LARGEST, Problem, problem_of
from tnadapt._planning.trees import Nodes, leaves_of, pairs_of, tree_of
from tnadapt.binding import FIXED, OBJECTIVES


@given(question=questions(), data=st.data())
def test_a_tree_costs_what_its_order_costs(question, data):
    count = len(question.inputs)
    trees = list(all_trees(list(range(count))))
    pairs = numbered(data.draw(st.sampled_from(trees)), count)
    objective = data.draw(st.sampled_from(list(OBJECTIVES.values())))
    nodes = Nodes(problem_of(question), objective)
    leaves = [1 << place for place in range(count)]
    tree = tree_of(pairs, leaves)
    assert nodes.total(tree) == pytest.approx(cost(question, pairs, objective), rel=1e-12)
    again = pairs_of(tree, nodes.root)
    assert tree_of(again, leaves) == tree
    assert sorted(leaves_of(tree, nodes.root)) == leaves


@given(question=questions())
def test_steps_cost_the_same_one_by_one_and_all_at_once(question):
    problem = problem_of(question)
    pairs = exact_pairs(problem, FIXED["cpu"])
    tree = tree_of(pairs, [1 << place for place in range(len(question.inputs))])
    nodes, tensors = Nodes(problem, FIXED["cpu"]), subsets_of(problem)
    for whole, (left, right) in tree.items():
        sides = (np.array([side]) for side in (left, right, whole))
        assert nodes.cost(left, right) == pytest.approx(sum(tensors.terms(*sides, FIXED["cpu"]))[0], rel=1e-12)


def test_leaves_are_read_from_left_to_right():
    assert leaves_of({0b111: (0b110, 0b001), 0b110: (0b100, 0b010)}, 0b111) == [0b100, 0b010, 0b001]


def test_volumes_stop_at_the_largest():
    sizes = (10**400, *[10**100] * 9)  # more than the modes of one table
    nodes = Nodes(Problem((0b11,), 0b11, sizes, (True,), (False,)), OBJECTIVES["flops"])
    assert nodes.volume(0b10) == pytest.approx(1e100)
    assert nodes.volume(0b01) == nodes.volume(0b1100000010) == float(LARGEST)
    assert nodes.volume(0b1111111111) == float(LARGEST)
