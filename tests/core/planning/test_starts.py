"""Starts: greedy trees against the plain definition, the best tree of a line against all of its trees."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.planning.networks import cp, hyper, pairs_by_opt_einsum, questions
from tnadapt._planning.starts import (
    SCORES,
    best_in_line,
    greedy_tree,
    greedy_work,
    line_work,
    opt_einsum_greedy,
    outside_work,
)
from tnadapt._planning.tensors import problem_of
from tnadapt._planning.trees import Nodes, leaves_of, tree_of
from tnadapt.binding import OBJECTIVES

OBJECTIVE = st.sampled_from(list(OBJECTIVES.values()))


def least_of_line(nodes, line):
    """The least cost of a tree whose leaves are this line, by plain recursion."""
    if len(line) == 1:
        return 0.0
    halves = ((line[:cut], line[cut:]) for cut in range(1, len(line)))
    return min(
        least_of_line(nodes, left) + least_of_line(nodes, right) + nodes.cost(sum(left), sum(right))
        for left, right in halves
    )


@given(
    question=questions().filter(lambda q: len(q.inputs) > 1),
    objective=OBJECTIVE,
    random=st.randoms(use_true_random=False),
)
def test_no_tree_of_the_line_is_cheaper(question, objective, random):
    nodes = Nodes(problem_of(question), objective)
    line = [1 << place for place in range(nodes.count)]
    random.shuffle(line)
    found = best_in_line(nodes, line)
    assert leaves_of(found, nodes.root) == line
    assert nodes.total(found) == pytest.approx(least_of_line(nodes, line), rel=1e-12)


@pytest.mark.parametrize("score", SCORES)
@given(question=questions(), objective=OBJECTIVE)
def test_every_greedy_step_is_one_of_least_score(score, question, objective):
    nodes = Nodes(problem_of(question), objective)
    alive = {1 << place for place in range(nodes.count)}
    for whole, (left, right) in greedy_tree(nodes, score).items():
        least = min(score(nodes, *sorted(pair)) for pair in combinations(alive, 2))
        assert score(nodes, left, right) == pytest.approx(least, rel=1e-12)
        alive = alive - {left, right} | {whole}
    assert alive == {nodes.root}


def test_opt_einsum_gives_the_order_that_it_gives_to_names():
    question = hyper(20, seed=1)
    leaves = [1 << place for place in range(20)]
    assert opt_einsum_greedy(problem_of(question)) == tree_of(pairs_by_opt_einsum(question), leaves)


def test_the_work_of_starts_by_hand():
    nodes = Nodes(problem_of(cp(9)), OBJECTIVES["flops"])  # 10 operands, 11 modes: one look-up
    assert line_work(nodes) == 1000 // 6 + 10
    assert greedy_work(nodes) == 3 * 100
    assert outside_work(nodes.problem) == (9**2 + 5 * 2**2 + 4 + 1) * (6 + 9 * 2) // 10
