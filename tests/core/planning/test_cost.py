"""The costs of an order by hand."""

import pytest

from tnadapt import PlanError
from tnadapt._planning import Question, measure
from tnadapt._planning.cost import Line, check_sizes, measure_lines
from tnadapt.binding import OBJECTIVES, Cost, Objective

SIZES = {"t": 7, "i": 5, "r": 2, "o": 3}
LORA = Question((("t", "i"), ("r", "i"), ("o", "r")), ("t", "o"), SIZES, (False, True, True), (True, False, False))


def test_every_cost_of_lora_by_hand():
    results, steps, total = measure(LORA, [(0, 1), (3, 2)])
    assert results == (("t", "r"), ("t", "o"))
    first = Cost(2 * 70, 140, 35, 14, (35 + 10 + 14) * 2)  # x needs no gradient: one product, and x is saved for it
    second = Cost(2 * 42, 168, 14, 14 + 21, (14 + 6 + 21) * 3)
    assert steps == (first, second)
    assert total == Cost(224, 308, 49, 35, 118 + 123)


def test_the_peak_of_a_sum_has_what_is_summed_so_far_and_what_is_read_again():
    """Three terms B A, D A and C C': x A is kept until the second has read it, and each term is added at once."""
    inputs = (("t", "i"), ("r", "i"), ("o", "r"), ("o", "r"), ("r", "i"), ("o", "r"))
    asked = Question(inputs, ("t", "o"), SIZES, (False,) + (True,) * 5, (True,) + (False,) * 5)
    lines = [Line(0, 1, ("t", "r")), Line(6, 2, ("t", "o")), Line(6, 3, ("t", "o")), Line(0, 4, ("t", "r"))]
    lines.append(Line(9, 5, ("t", "o")))
    middle, end = 7 * 2, 7 * 3
    steps, total = measure_lines(asked, lines, (7, 8, 10))
    assert [step.peak for step in steps] == [middle, middle + end, middle + 2 * end, middle + 2 * end, middle + 2 * end]
    assert total.peak == middle + 2 * end
    assert [step.saved for step in steps] == [35, 14, 0, 0, 14]  # x is saved once, and each x A once
    assert total.forward == 2 * (2 * 70) + 3 * (2 * 42)


def test_an_objective_weighs_the_costs():
    assert Objective("own", backward=2.0, saved=3.0, moved=5.0).of(Cost(1, 10, 100, 1000, 10_000)) == 50_321
    assert OBJECTIVES["forward"].of(Cost(1, 10, 100, 1000, 10_000)) == 1


@pytest.mark.parametrize("size", [0, -1, 2.0, None])
def test_a_size_must_be_a_positive_integer(size):
    with pytest.raises(PlanError, match=r"mode 'r': expected an integer size of at least 1, got .*\nGive the mode"):
        check_sizes(Question(LORA.inputs, LORA.answer, SIZES | {"r": size}, LORA.needs_grad, LORA.activations))
