"""Contractions of arrays whose modes have names."""

from itertools import pairwise

import numpy as np
import pytest

from tnadapt._values import contract, primed

RANDOM = np.random.default_rng(0)


def test_modes_are_matched_by_name():
    left, right = RANDOM.standard_normal((3, 4)), RANDOM.standard_normal((5, 4))
    found = contract([(left, ("out", "r")), (right, ("in", "r"))], ("in", "out"))
    np.testing.assert_allclose(found, (left @ right.T).T, atol=1e-12)


def test_a_mode_of_three_arrays_is_a_diagonal():
    a, b, c = RANDOM.standard_normal((3, 2)), RANDOM.standard_normal(2), RANDOM.standard_normal((4, 2))
    found = contract([(a, ("o", "r")), (b, ("r",)), (c, ("i", "r"))], ("o", "i"))
    np.testing.assert_allclose(found, a @ np.diag(b) @ c.T, atol=1e-12)


def test_more_modes_than_letters():
    names = [f"m{number}" for number in range(60)]
    arrays = [(np.full((1, 1), 2.0), (one, other)) for one, other in pairwise(names)]
    assert contract(arrays, (names[0], names[-1])).tolist() == [[2.0**59]]


def test_a_scalar_is_an_operand():
    assert contract([(np.array(3.0), ()), (np.ones(2), ("a",))], ("a",)).tolist() == [3.0, 3.0]


@pytest.mark.parametrize("shared", [(), ("r",), ("out", "r")])
def test_primed_operands_share_only_what_is_said(shared):
    array = RANDOM.standard_normal((3, 4))
    ((same, modes),) = primed([(array, ("out", "r"))], shared)
    assert same is array
    assert modes == tuple(mode if mode in shared else f"{mode}'" for mode in ("out", "r"))
