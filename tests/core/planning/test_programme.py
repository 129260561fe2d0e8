"""The programme over splits: the first of the cheapest splits wins."""

import numpy as np

from tnadapt._planning.programme import best_left_sides, splits_of
from tnadapt._planning.tensors import Tensors, Volumes, words_of
from tnadapt.binding import OBJECTIVES

AB, BC, CD, ABC, BCD, ABCD = range(6)


def tensors():
    """A chain of three matrices a x b, b x c and c x d, of sizes 2, 3, 5 and 7."""
    kept = words_of([0b0011, 0b0110, 0b1100, 0b0101, 0b1010, 0b1001], 4)
    return Tensors(Volumes([2, 3, 5, 7]), kept, np.ones(6, dtype=bool), np.zeros(6, dtype=bool))


def layer(wholes, left, right):
    return np.array(wholes), np.array(left), np.array(right)


PAIRS = layer([ABC, BCD], [[AB], [BC]], [[BC], [CD]])


def test_the_cheapest_split_is_chosen_over_layers_and_groups():
    last = layer([ABCD], [[AB, ABC]], [[BCD, CD]])  # 105 + 42 against 30 + 70 products
    for groups in ([splits_of([PAIRS, last])], [splits_of([PAIRS]), splits_of([last])]):
        assert best_left_sides(tensors(), groups, OBJECTIVES["forward"]).tolist() == [0, 0, 0, AB, BC, ABC]


def test_the_first_of_equal_splits_is_chosen():
    last = layer([ABCD], [[CD, ABC]], [[ABC, CD]])
    assert best_left_sides(tensors(), [splits_of([PAIRS, last])], OBJECTIVES["flops"])[ABCD] == CD


def test_splits_lie_one_after_another():
    found = splits_of([PAIRS, layer([ABCD], [[AB, ABC]], [[BCD, CD]])])
    assert found.whole.tolist() == [ABC, BCD, ABCD, ABCD]
    assert found.left.tolist() == [AB, BC, AB, ABC]
    assert found.right.tolist() == [BC, CD, BCD, CD]
    assert [start for _, start in found.layers] == [0, 2]
