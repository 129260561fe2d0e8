"""The programme over all subsets: its work, and the same result layer by layer and all at once."""

import math

import pytest
from hypothesis import given

from tests.core.planning.networks import hyper, questions
from tnadapt._planning import exact
from tnadapt._planning.exact import count_splits, exact_pairs
from tnadapt._planning.tensors import problem_of
from tnadapt.binding import OBJECTIVES


@pytest.mark.parametrize("count", range(1, 9))
def test_it_looks_at_every_split_of_every_subset_once(count):
    looked_at = sum(len(splits.left) for splits in exact._splits(count))
    assert looked_at == count_splits(count)
    assert looked_at == sum(math.comb(count, chosen) * (2 ** (chosen - 1) - 1) for chosen in range(1, count + 1))


def test_the_work_at_the_limit():
    assert count_splits(14) == 2_375_101


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_few_operands_are_searched_as_many_are(objective, monkeypatch):
    problems = [problem_of(hyper(count, count)) for count in range(2, exact.CACHED + 1)]
    at_once = [exact_pairs(problem, objective) for problem in problems]
    monkeypatch.setattr(exact, "CACHED", 0)
    assert at_once == [exact_pairs(problem, objective) for problem in problems]


@given(question=questions())
def test_an_order_takes_every_operand_and_every_result_but_the_last(question):
    count = len(question.inputs)
    pairs = exact_pairs(problem_of(question), OBJECTIVES["training"])
    assert sorted(number for pair in pairs for number in pair) == list(range(2 * count - 2))
